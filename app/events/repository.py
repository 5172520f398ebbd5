"""SQL for events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, delete, insert, literal_column, or_, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import EventRow
from app.events.event_type import ERROR
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


def at_least(severity: int) -> list[ColumnElement[bool]]:
    """That an event is of this severity or a higher one; of errors in the words of their index, too, which a bound value would hide."""
    found = [EventRow.severity >= severity]
    return [*found, EventRow.severity >= literal_column(str(ERROR))] if severity >= ERROR else found


def names_container(container_id: str | None, container_name: str | None) -> ColumnElement[bool]:
    """That an event's resource or attributes name the container: by its id, or by its name."""
    wanted = [(key, value) for key, value in (("container.id", container_id), ("container.name", container_name)) if value is not None]
    return or_(*(column[key].as_string() == value for column in (EventRow.resource, EventRow.attributes) for key, value in wanted))


async def position_after(
    session: AsyncSession, conditions: Sequence[ColumnElement[bool]], before: tuple[int, str] | None, count: int
) -> tuple[int, str] | None:
    """The position of the last of the ``count`` events that follow ``before``, newest first; None when there are fewer."""
    position = tuple_(EventRow.time_unix_nano, EventRow.id)
    statement = select(EventRow.time_unix_nano, EventRow.id).where(*conditions)
    if before is not None:
        statement = statement.where(position < before)
    statement = statement.order_by(EventRow.time_unix_nano.desc(), EventRow.id.desc()).offset(count - 1).limit(1)
    found = (await session.execute(statement)).first()
    return None if found is None else (found[0], found[1])


def not_beyond(position: tuple[int, str]) -> ColumnElement[bool]:
    """That an event is at ``position`` or newer."""
    return tuple_(EventRow.time_unix_nano, EventRow.id) >= position


async def delete_older(session: AsyncSession, time_unix_nano: int) -> int:
    """Drop events older than this; how many were dropped."""
    result: Any = await session.execute(delete(EventRow).where(EventRow.time_unix_nano < time_unix_nano))
    return int(result.rowcount)
