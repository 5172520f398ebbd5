"""SQL for events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, delete, insert, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import EventRow
from app.events.records import EventRecord


async def insert_new(session: AsyncSession, records: Sequence[EventRecord]) -> list[str]:
    """Insert the records whose ids are not known yet; the ids that were new."""
    rows = sorted(({**asdict(r), "attributes": dict(r.attributes), "resource": dict(r.resource)} for r in records), key=lambda r: r["id"])
    dialect = session.get_bind().dialect.name
    new: list[str] = []
    for start in range(0, len(rows), 500):  # SQLite bounds the number of variables in a statement
        part = rows[start : start + 500]
        statement: Any = (postgresql if dialect == "postgresql" else sqlite).insert(EventRow).values(part)
        result = await session.execute(statement.on_conflict_do_nothing(index_elements=["id"]).returning(EventRow.id))
        new += result.scalars().all()
    return new


async def insert_one(session: AsyncSession, record: EventRecord) -> None:
    """Insert a record that was made here and so is new."""
    await session.execute(
        insert(EventRow).values(**{**asdict(record), "attributes": dict(record.attributes), "resource": dict(record.resource)})
    )


async def newest_first(
    session: AsyncSession, conditions: Sequence[ColumnElement[bool]], before: tuple[int, str] | None, limit: int
) -> list[EventRow]:
    """Events that meet all conditions, newest first, after the position ``before``."""
    statement = select(EventRow).where(*conditions).order_by(EventRow.time_unix_nano.desc(), EventRow.id.desc()).limit(limit)
    if before is not None:
        statement = statement.where(tuple_(EventRow.time_unix_nano, EventRow.id) < before)
    return list((await session.scalars(statement)).all())


async def delete_older(session: AsyncSession, time_unix_nano: int) -> int:
    """Drop events older than this; how many were dropped."""
    result: Any = await session.execute(delete(EventRow).where(EventRow.time_unix_nano < time_unix_nano))
    return int(result.rowcount)
