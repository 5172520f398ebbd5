"""SQL for the audit log. There is no statement here that changes an entry; retention drops whole ones."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import reduce
from typing import Any

from sqlalchemy import ColumnElement, delete, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import AuditRow

Position = tuple[datetime, str]


async def newest_first(
    session: AsyncSession, conditions: Sequence[ColumnElement[bool]], before: Position | None, limit: int
) -> list[AuditRow]:
    """Entries that meet all conditions, newest first, after the position ``before``."""
    statement = select(AuditRow).where(*conditions)
    if before is not None:
        time, entry_id = before
        # The bound values get the columns' types, which know how each database keeps a time.
        statement = statement.where(or_(AuditRow.time < time, (AuditRow.time == time) & (AuditRow.id < entry_id)))
    statement = statement.order_by(AuditRow.time.desc(), AuditRow.id.desc()).limit(limit)
    return list((await session.scalars(statement)).all())


def contains(text: str) -> ColumnElement[bool]:
    """That an entry's actor, target or reason contains ``text``, in any case."""
    columns = (AuditRow.actor_name, AuditRow.target_name, AuditRow.target_id, AuditRow.reason, AuditRow.client_address)
    # One text of all of them: to fold and search five for each entry takes three times as long.
    return reduce(lambda joined, column: joined.concat("\n").concat(column), columns[1:], columns[0].concat("")).icontains(
        text, autoescape=True
    )


async def delete_older(session: AsyncSession, before: datetime) -> int:
    """Drop entries older than this; how many."""
    result: Any = await session.execute(delete(AuditRow).where(AuditRow.time < before))
    return int(result.rowcount)
