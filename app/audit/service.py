"""The audit log: written in the transaction of the act it tells of, and only ever added to."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.audit import repository
from app.audit.records import Actor, Target, changed, redacted
from app.audit.views import AuditEntry
from app.cursors import decode_cursor, encode_cursor
from app.db.models import AuditRow
from app.db.session import Database
from app.errors import FieldError, InvalidRequestError
from app.events.views import Page

EXPORT_PAGE = 500
"""Entries that an export reads at a time."""


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries are wanted; None and empty let all pass. ``start`` is inclusive, ``end`` exclusive."""

    actor_id: str | None = None
    action: str | None = None
    target_kind: str | None = None
    target_id: str | None = None
    environment_name: str | None = None
    outcome: str | None = None
    search: str = ""
    start: datetime | None = None
    end: datetime | None = None


class AuditService:
    """Keeps the log."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def add(
        self,
        session: AsyncSession,
        actor: Actor,
        action: str,
        target: Target,
        *,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
        outcome: Literal["done", "refused"] = "done",
        reason: str = "",
    ) -> None:
        """Log an act in the caller's transaction: it stands if and only if the act does.

        Args:
            session: the transaction of the act.
            actor: who.
            action: ``<noun>.<verb>``, such as ``group.update``.
            target: what is acted on.
            before: its state before; keys that did not change are left out, secrets replaced.
            after: its state afterwards, likewise.
            outcome: whether it was done, or refused for ``reason``.
            reason: why it was refused, or what the actor gave as a reason.
        """
        old, new = changed(before, after)
        session.add(
            AuditRow(
                id=str(uuid.uuid4()),
                time=datetime.fromtimestamp(self._clock(), UTC),
                actor_kind=actor.kind,
                actor_id=actor.id[:255],
                actor_name=actor.name[:255],
                action=action,
                target_kind=target.kind,
                target_id=target.id[:255],
                target_name=target.name[:255],
                environment_name=target.environment_name,
                before=redacted(old),
                after=redacted(new),
                outcome=outcome,
                reason=reason,
                client_address=actor.client_address[:64],
                user_agent=actor.user_agent[:255],
            )
        )

    async def record(
        self,
        actor: Actor,
        action: str,
        target: Target,
        *,
        outcome: Literal["done", "refused"] = "done",
        reason: str = "",
        after: Mapping[str, Any] | None = None,
    ) -> None:
        """Log an act that has no transaction of its own, such as a refused one. Durable on return."""
        async with self._database.write() as session:
            self.add(session, actor, action, target, outcome=outcome, reason=reason, after=after)

    async def list_entries(self, wanted: AuditFilter, cursor: str | None = None, limit: int = 50) -> Page[AuditEntry]:
        """Entries that meet the filter, newest first.

        Raises:
            InvalidRequestError: the cursor is not one of this list, or a time carries no zone.
        """
        async with self._database.read() as session:
            rows = await repository.newest_first(session, _conditions(wanted), decode_cursor(cursor, datetime, str), limit + 1)
        items = [AuditEntry.model_validate(row, from_attributes=True) for row in rows[:limit]]
        return Page[AuditEntry](items=items, next_cursor=encode_cursor(items[-1].time, items[-1].id) if len(rows) > limit else None)

    async def export(self, wanted: AuditFilter) -> AsyncIterator[AuditEntry]:
        """Every entry that meets the filter, newest first, read page by page."""
        cursor: str | None = None
        while True:
            page = await self.list_entries(wanted, cursor, EXPORT_PAGE)
            for entry in page.items:
                yield entry
            cursor = page.next_cursor
            if cursor is None:
                return

    async def extent(self) -> tuple[int, datetime | None]:
        """How many entries there are, and the time of the oldest."""
        async with self._database.read() as session:
            # Two questions in one statement: each has its own index, both together would scan a large one.
            counted = select(func.count()).select_from(AuditRow).scalar_subquery()
            count, oldest = (await session.execute(select(counted, select(func.min(AuditRow.time)).scalar_subquery()))).one()
        return int(count), oldest

    async def drop_older(self, seconds: float) -> int:
        """Apply retention; how many entries were dropped."""
        async with self._database.write() as session:
            return await repository.delete_older(session, datetime.fromtimestamp(self._clock() - seconds, UTC))


def _conditions(wanted: AuditFilter) -> list[ColumnElement[bool]]:
    equal = (
        (AuditRow.actor_id, wanted.actor_id),
        (AuditRow.action, wanted.action),
        (AuditRow.target_kind, wanted.target_kind),
        (AuditRow.target_id, wanted.target_id),
        (AuditRow.environment_name, wanted.environment_name),
        (AuditRow.outcome, wanted.outcome),
    )
    conditions: list[ColumnElement[bool]] = [column == value for column, value in equal if value]
    if wanted.search:
        conditions.append(repository.contains(wanted.search))
    for name, time in (("start", wanted.start), ("end", wanted.end)):
        if time is not None and time.tzinfo is None:
            raise InvalidRequestError("the request is not valid", errors=[FieldError(name, "must carry its time zone")])
    if wanted.start is not None:
        conditions.append(AuditRow.time >= wanted.start)
    if wanted.end is not None:
        conditions.append(AuditRow.time < wanted.end)
    return conditions
