"""A key for whoever is locked out but has the platform's files: written to the database without asking the platform."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from app.auth.service import LINK_LIFETIME, AuthService, Role
from app.commands.output import CommandError
from app.commands.setup import check_data_dir, load_settings
from app.db.models import ApiKeyRow
from app.db.session import Database
from app.errors import PlatformError
from app.logs import LINK_PATH
from app.settings import Settings


def create_key(name: str, role: str, seconds: float | None, environments: Sequence[str] = ("*",)) -> dict[str, Any]:
    """Make a key in the database of ``IRCA_DATABASE_URL`` or ``IRCA_DATA_DIR``; the document is the API's (id, name, role, prefix, key).

    Raises:
        CommandError: the database cannot be used, or there is no such role.
    """
    settings = load_settings()
    check_data_dir(settings)
    try:
        return asyncio.run(_create(settings.resolved_database_url(), name, role, seconds, environments))
    except PlatformError as exc:
        lines = [f"{error.field}: {error.message}" for error in exc.errors]
        raise CommandError(exc.reason, hint="\n".join(lines)) from exc


def create_link(key: str | None, seconds: float | None) -> dict[str, Any]:
    """Make a one-time sign-in link in that database; the document is the API's (url, api_key_id, expires_at) and the key's name.

    Args:
        key: id or name of the API key to sign in with; None for the oldest admin key that is valid.
        seconds: how long it can be used; None for 15 minutes.

    Raises:
        CommandError: the database cannot be used, or there is no such key.
    """
    settings = load_settings()
    check_data_dir(settings)
    try:
        return asyncio.run(_create_link(settings, key, seconds))
    except PlatformError as exc:
        raise CommandError(exc.reason) from exc


async def _create_link(settings: Settings, key: str | None, seconds: float | None) -> dict[str, Any]:
    database = Database(settings.resolved_database_url())
    try:
        await database.open()
        auth = AuthService(database, time.time)
        await auth.load()
        row = _chosen(auth.list_keys(), key)
        token, expires = await auth.create_link(row.id, lifetime=timedelta(seconds=seconds) if seconds else LINK_LIFETIME)
    finally:
        await database.close()
    url = settings.resolved_public_url() + LINK_PATH + token
    return {"url": url, "api_key_id": row.id, "expires_at": expires.isoformat(), "name": row.name}


def _chosen(rows: Sequence[ApiKeyRow], key: str | None) -> ApiKeyRow:
    now = datetime.now(UTC)
    valid = [row for row in rows if row.revoked_at is None and (row.expires_at is None or row.expires_at > now)]
    found = [row for row in valid if key in (row.id, row.name) or (key is None and row.role == "admin")]
    if found:
        return found[0]
    hint = "`incident-rca api-keys create --offline --role admin --name me` makes one."
    raise CommandError("there is no valid admin key" if key is None else f"there is no valid API key {key!r}", hint=hint)


async def _create(database_url: str, name: str, role: str, seconds: float | None, environments: Sequence[str]) -> dict[str, Any]:
    database = Database(database_url)
    try:
        await database.open()
        auth = AuthService(database, time.time)
        await auth.load()
        lifetime = timedelta(seconds=seconds) if seconds else None
        row, text = await auth.create_key(name, Role.named(role), lifetime, environments=environments)
    finally:
        await database.close()
    return {"id": row.id, "name": row.name, "role": row.role, "prefix": row.prefix, "key": text}
