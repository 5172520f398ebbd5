"""The timeline: events in, each id once, and out again by filter."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.cursors import decode_cursor, encode_cursor
from app.db.models import EventRow
from app.db.session import Database
from app.errors import FieldError, InvalidRequestError, NotFoundError
from app.events import repository
from app.events.records import MUTED, EventRecord
from app.events.stream import LiveMessage, LiveStream
from app.events.views import EventView, Page

CONTAINER_SCAN = 10_000
"""Events that one page may look through for a container: its id is inside the event, where no index leads."""


Outbox = Callable[[AsyncSession, Sequence[EventRecord]], Awaitable[None]]


class EventService:
    """Records events and answers questions about them."""

    def __init__(self, database: Database, live: LiveStream) -> None:
        self._database = database
        self._live = live
        self.is_muted: Callable[[EventRecord], bool] = lambda _record: False
        """Whether an event happened in a maintenance window; such events are marked (:data:`app.events.records.MUTED`)."""
        self.outbox: Outbox | None = None
        """Told of new events in the transaction that records them, so that what it adds stands if and only if they do."""

    async def add(self, session: AsyncSession, record: EventRecord) -> None:
        """Record an event of the platform's own in the caller's transaction. Call :meth:`publish` after the commit."""
        record = self._marked(record)
        await repository.insert_one(session, record)
        if self.outbox is not None:
            await self.outbox(session, [record])

    async def add_many(self, session: AsyncSession, records: Sequence[EventRecord]) -> None:
        """Record events of the platform's own in the caller's transaction, in few statements. Call :meth:`publish` after the commit."""
        marked = [self._marked(record) for record in records]
        await repository.insert_new(session, marked)
        if self.outbox is not None and marked:
            await self.outbox(session, marked)

    def publish(self, records: Sequence[EventRecord]) -> None:
        """Tell whoever is connected; only after the records' transaction has been committed."""
        for record in records:
            about = {"id": record.id, "name": record.name, "instance_id": record.instance_id, "agent_id": record.agent_id}
            self._live.publish(LiveMessage("event", {**about, "severity": record.severity, "body": record.body}))

    def tell(self, message: LiveMessage) -> None:
        """Tell whoever is connected of something that is no event of the timeline; only after it has been committed."""
        self._live.publish(message)

    async def record(self, records: Sequence[EventRecord]) -> int:
        """Record events that agents delivered, each id once; how many were new. Durable on return.

        Raises:
            StorageError: none was recorded.
        """
        if not records:
            return 0
        unique = {r.id: self._marked(r) for r in reversed(records)}
        async with self._database.write() as session:
            new = set(await repository.insert_new(session, list(unique.values())))
            if self.outbox is not None and new:
                await self.outbox(session, [r for r in unique.values() if r.id in new])
        self.publish([r for r in unique.values() if r.id in new])
        return len(new)

    def _marked(self, record: EventRecord) -> EventRecord:
        muted = self.is_muted(record)
        if not muted and MUTED not in record.attributes:
            return record
        others = {key: value for key, value in record.attributes.items() if key != MUTED}
        return replace(record, attributes=others | {MUTED: True} if muted else others)

    async def list_events(  # noqa: PLR0913 - one argument for each filter of the API
        self,
        cursor: str | None = None,
        limit: int = 50,
        *,
        agent_id: str | None = None,
        instance_id: str | None = None,
        name: str | None = None,
        environment_name: str | None = None,
        environment_names: Collection[str] | None = None,
        container_id: str | None = None,
        container_name: str | None = None,
        min_severity: int | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> Page[EventView]:
        """Events that meet all filters, newest first. ``start`` is inclusive, ``end`` exclusive; None lets all environments pass.

        Of ``container_id`` and ``container_name`` either is enough where both are given: the successor of a container bears its name.
        With them a page looks through :data:`CONTAINER_SCAN` events at most; it may hold fewer than ``limit`` and yet have a next one.

        Raises:
            InvalidRequestError: the cursor is not one of ours.
        """
        conditions: list[ColumnElement[bool]] = []
        for column, value in (
            (EventRow.agent_id, agent_id),
            (EventRow.instance_id, instance_id),
            (EventRow.name, name),
            (EventRow.environment_name, environment_name),
        ):
            if value is not None:
                conditions.append(column == value)
        if environment_names is not None:
            conditions.append(EventRow.environment_name.in_(environment_names))
        if min_severity is not None:
            conditions += repository.at_least(min_severity)
        if start is not None:
            conditions.append(EventRow.time_unix_nano >= _nanoseconds(start))
        if end is not None:
            conditions.append(EventRow.time_unix_nano < _nanoseconds(end))
        before, looked_to = decode_cursor(cursor, int, str), None
        async with self._database.read() as session:
            if container_id is not None or container_name is not None:
                looked_to = await repository.position_after(session, conditions, before, CONTAINER_SCAN)
                if looked_to is not None:
                    conditions.append(repository.not_beyond(looked_to))
                conditions.append(repository.names_container(container_id, container_name))
            rows = await repository.newest_first(session, conditions, before, limit + 1)
        following = looked_to
        if len(rows) > limit:
            rows = rows[:limit]
            following = rows[-1].time_unix_nano, rows[-1].id
        return Page[EventView](items=[_view(r) for r in rows], next_cursor=encode_cursor(*following) if following else None)

    async def get_event(self, event_id: str) -> EventView:
        """One event.

        Raises:
            NotFoundError: no such event.
        """
        async with self._database.read() as session:
            row = await session.get(EventRow, event_id)
        if row is None:
            raise NotFoundError(f"there is no event {event_id}")
        return _view(row)

    async def extent(self) -> tuple[int, datetime | None]:
        """How many events there are, and the time of the oldest."""
        async with self._database.read() as session:
            # Two questions in one statement: each has its own index, both together would scan a large one.
            counted = select(func.count()).select_from(EventRow).scalar_subquery()
            count, oldest = (await session.execute(select(counted, select(func.min(EventRow.time_unix_nano)).scalar_subquery()))).one()
        return int(count), None if oldest is None else datetime.fromtimestamp(oldest / 1e9, UTC)

    async def drop_older(self, time_unix_nano: int) -> int:
        """Apply retention; how many events were dropped."""
        async with self._database.write() as session:
            return await repository.delete_older(session, time_unix_nano)


_LATEST = 2**63 - 1  # what the column holds: no event is later than that, so a later bound means the same


def severity_text(number: int) -> str:
    """OTel's short name of a severity number."""
    for least, text in ((21, "fatal"), (17, "error"), (13, "warn"), (9, "info"), (5, "debug")):
        if number >= least:
            return text
    return "trace"


def _nanoseconds(time: datetime) -> int:
    if time.tzinfo is None:
        raise InvalidRequestError(
            "times need a zone", errors=[FieldError("start", "must carry its time zone, such as 2026-01-01T00:00:00Z")]
        )
    return max(-_LATEST, min(_LATEST, int(time.timestamp() * 1_000_000) * 1000))


def _view(row: EventRow) -> EventView:
    return EventView(
        id=row.id,
        name=row.name,
        time=datetime.fromtimestamp(row.time_unix_nano / 1e9, UTC),
        severity=severity_text(row.severity),
        body=row.body,
        attributes=row.attributes,
        resource=row.resource,
        agent_id=row.agent_id,
        instance_id=row.instance_id,
        agent_type=row.agent_type,
        environment_name=row.environment_name,
    )
