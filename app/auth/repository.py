"""SQL for API keys and browser sessions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import ApiKeyRow, BrowserSessionRow


async def all_keys(session: AsyncSession) -> list[ApiKeyRow]:
    """Every key, oldest first."""
    return list((await session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.id))).all())


async def set_revoked(session: AsyncSession, key_id: str, at: datetime) -> None:
    """Mark a key revoked and end its browser sessions."""
    await session.execute(update(ApiKeyRow).where(ApiKeyRow.id == key_id).values(revoked_at=at))
    await session.execute(delete(BrowserSessionRow).where(BrowserSessionRow.api_key_id == key_id))


async def set_last_used(session: AsyncSession, used: Mapping[str, datetime]) -> None:
    """Record when keys were last used, in the keys' order so that concurrent writers cannot deadlock."""
    for key_id in sorted(used):
        await session.execute(update(ApiKeyRow).where(ApiKeyRow.id == key_id).values(last_used_at=used[key_id]))


async def find_session(session: AsyncSession, token_hash: bytes) -> BrowserSessionRow | None:
    """The browser session of this token digest."""
    return await session.get(BrowserSessionRow, token_hash)


async def delete_session(session: AsyncSession, token_hash: bytes) -> None:
    """End a browser session."""
    await session.execute(delete(BrowserSessionRow).where(BrowserSessionRow.token_hash == token_hash))


async def delete_expired_sessions(session: AsyncSession, now: datetime) -> None:
    """End the sessions whose time is over."""
    await session.execute(delete(BrowserSessionRow).where(BrowserSessionRow.expires_at <= now))
