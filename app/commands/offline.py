"""A key for whoever is locked out but has the platform's files: written to the database without asking the platform."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

from app.auth.service import AuthService, Role
from app.commands.output import CommandError
from app.commands.setup import check_data_dir, load_settings
from app.db.session import Database
from app.errors import PlatformError


def create_key(name: str, role: str, seconds: float | None) -> dict[str, Any]:
    """Make a key in the database of ``IRCA_DATABASE_URL`` or ``IRCA_DATA_DIR``; the document is the API's (id, name, role, prefix, key).

    Raises:
        CommandError: the database cannot be used, or there is no such role.
    """
    settings = load_settings()
    check_data_dir(settings)
    try:
        return asyncio.run(_create(settings.resolved_database_url(), name, role, seconds))
    except PlatformError as exc:
        lines = [f"{error.field}: {error.message}" for error in exc.errors]
        raise CommandError(exc.reason, hint="\n".join(lines)) from exc


async def _create(database_url: str, name: str, role: str, seconds: float | None) -> dict[str, Any]:
    database = Database(database_url)
    try:
        await database.open()
        auth = AuthService(database, time.time)
        await auth.load()
        row, text = await auth.create_key(name, Role.named(role), timedelta(seconds=seconds) if seconds else None)
    finally:
        await database.close()
    return {"id": row.id, "name": row.name, "role": row.role, "prefix": row.prefix, "key": text}
