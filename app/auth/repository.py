"""SQL for API keys, browser sessions and sign-in links."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

from sqlalchemy import CursorResult, delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import ApiKeyRow, BrowserSessionRow, SignInLinkRow


async def all_keys(session: AsyncSession) -> list[ApiKeyRow]:
    """Every key, oldest first."""
    return list((await session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.id))).all())


async def set_revoked(session: AsyncSession, key_id: str, at: datetime) -> None:
    """Mark a key revoked and end its browser sessions."""
    await session.execute(update(ApiKeyRow).where(ApiKeyRow.id == key_id).values(revoked_at=at))
    await session.execute(delete(BrowserSessionRow).where(BrowserSessionRow.api_key_id == key_id))


async def set_expiry(session: AsyncSession, key_id: str, at: datetime) -> None:
    """Let a key end at a time."""
    await session.execute(update(ApiKeyRow).where(ApiKeyRow.id == key_id).values(expires_at=at))


async def set_last_used(session: AsyncSession, used: Mapping[str, datetime]) -> None:
    """Record when keys were last used, in the keys' order so that concurrent writers cannot deadlock."""
    for key_id in sorted(used):
        await session.execute(update(ApiKeyRow).where(ApiKeyRow.id == key_id).values(last_used_at=used[key_id]))


async def find_session(session: AsyncSession, token_hash: bytes) -> BrowserSessionRow | None:
    """The browser session of this token digest."""
    return await session.get(BrowserSessionRow, token_hash)


async def live_sessions(session: AsyncSession, now: datetime) -> list[BrowserSessionRow]:
    """The browser sessions whose time is not over, newest first."""
    found = select(BrowserSessionRow).where(BrowserSessionRow.expires_at > now)
    return list((await session.scalars(found.order_by(BrowserSessionRow.created_at.desc(), BrowserSessionRow.token_hash))).all())


async def delete_session(session: AsyncSession, token_hash: bytes) -> None:
    """End a browser session."""
    await session.execute(delete(BrowserSessionRow).where(BrowserSessionRow.token_hash == token_hash))


async def delete_user_sessions(session: AsyncSession) -> None:
    """End the browser sessions of the OpenID provider's users."""
    await session.execute(delete(BrowserSessionRow).where(BrowserSessionRow.api_key_id.is_(None)))


async def delete_expired_sessions(session: AsyncSession, now: datetime) -> None:
    """End the sessions whose time is over."""
    await session.execute(delete(BrowserSessionRow).where(BrowserSessionRow.expires_at <= now))


async def find_link(session: AsyncSession, token_hash: bytes) -> SignInLinkRow | None:
    """The sign-in link of this token digest."""
    return await session.get(SignInLinkRow, token_hash)


async def use_link(session: AsyncSession, token_hash: bytes, now: datetime) -> bool:
    """Use a link up; whether it was this call that did, for of several at once one does."""
    unused = (SignInLinkRow.token_hash == token_hash, SignInLinkRow.used_at.is_(None), SignInLinkRow.expires_at > now)
    done = cast("CursorResult[Any]", await session.execute(update(SignInLinkRow).where(*unused).values(used_at=now)))
    return done.rowcount == 1


async def delete_links_before(session: AsyncSession, time: datetime) -> None:
    """Drop the links that ended before ``time``."""
    await session.execute(delete(SignInLinkRow).where(SignInLinkRow.expires_at < time))
