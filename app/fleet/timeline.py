"""Histories and availability of instances and agents, read from the events of their changes: one statement each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from pydantic import BaseModel, Field
from sqlalchemy import ColumnElement

from app.db.models import EventRow
from app.db.session import Database
from app.errors import FieldError, InvalidRequestError, NotFoundError
from app.events import catalogue
from app.events import repository as events
from app.fleet import history
from app.fleet import status as rules
from app.fleet.history import Availability, Change, Life, Stretch
from app.fleet.maintenance import MaintenanceService
from app.fleet.registry import Agent, Instance, Registry, moment
from app.fleet.views import Status

MOST_CHANGES = 5000
"""Changes that a history goes back at most; what was before is not known to it."""
DEFAULT_RANGE = 86_400.0
"""Seconds that a history covers unless it is asked for others."""
LONGEST_RANGE = 400 * 86_400.0


class StretchView(BaseModel):
    """A time in which a status held."""

    start: datetime
    end: datetime
    seconds: float = Field(description="How long it lasted.")
    status: Status | None = Field(description="Null where it is not known: before the first contact, or longer ago than is kept.")
    reason: str = Field(description="Why the status was what it was, in a few words; may be empty.")
    replaced: bool = Field(description="A pod that was gone while another did its work.")


class SpanView(BaseModel):
    """A stretch of time."""

    start: datetime
    end: datetime


class HistoryView(BaseModel):
    """How a status went: the range in stretches, oldest first, without a gap."""

    start: datetime
    end: datetime
    stretches: list[StretchView]
    maintenance: list[SpanView] = Field(description="When events were muted.")


class AvailabilityView(BaseModel):
    """How available something was over a range."""

    start: datetime
    end: datetime
    available: float | None = Field(
        description="Share, 0 to 1, of the seconds in which it was heard (healthy or degraded) in those in which it should have been "
        "(these and offline). Maintenance and times in which it was pending, stopped, archived or not known do not count; null where "
        "nothing is left."
    )
    seconds: dict[Status, float] = Field(description="Seconds of each status, outside maintenance.")
    maintenance_seconds: float = Field(description="Within maintenance windows.")
    unknown_seconds: float = Field(description="Before the first contact, or longer ago than is kept.")
    replaced_seconds: float = Field(description="Gone, while another pod did the work.")
    outages: int = Field(description="Times that it was offline, outside maintenance.")


class HistoryService:
    """Answers how it went."""

    def __init__(
        self, database: Database, registry: Registry, maintenance: MaintenanceService, retention: float, clock: Callable[[], float]
    ) -> None:
        self._database = database
        self._registry = registry
        self._maintenance = maintenance
        self._retention = retention
        self._clock = clock

    async def of_instance(
        self, instance_id: str, start: datetime | None = None, end: datetime | None = None, *, last: float = DEFAULT_RANGE
    ) -> tuple[HistoryView, AvailabilityView]:
        """The history and the availability of an instance; without ``start`` over the ``last`` seconds before the end.

        Raises:
            NotFoundError: no such instance.
            InvalidRequestError: the range is none.
        """
        instance = self._registry.instances.get(instance_id)
        if instance is None:
            raise NotFoundError(f"there is no instance {instance_id}")
        begin, until = self._range(start, end, last)
        changes, oldest = await self._changes(EventRow.instance_id == instance_id, begin)
        life = self._life(instance, changes.get(instance_id, []), oldest)
        return self._views(instance.agent, life, begin, until)

    async def of_agent(
        self, agent_id: str, start: datetime | None = None, end: datetime | None = None
    ) -> tuple[HistoryView, AvailabilityView]:
        """The history and the availability of an agent, as its status follows from its instances'.

        Raises:
            NotFoundError: no such agent.
            InvalidRequestError: the range is none.
        """
        agent = self._registry.agents.get(agent_id)
        if agent is None:
            raise NotFoundError(f"there is no agent {agent_id}")
        begin, until = self._range(start, end)
        changes, oldest = await self._changes(EventRow.agent_id == agent_id, begin)
        lives = {i.id: self._life(i, changes.get(i.id, []), oldest) for i in agent.instances.values()}
        life = history.combined(lives, lambda pairs: _judge(agent, pairs), until)
        return self._views(agent, life, begin, until)

    async def _changes(self, condition: ColumnElement[bool], start: float) -> tuple[dict[str, list[Change]], float]:
        """The changes since ``start`` by instance, oldest first, and from when on they are complete."""
        conditions = [condition, EventRow.name == catalogue.INSTANCE_STATUS_CHANGED.name, EventRow.time_unix_nano >= int(start * 1e9)]
        async with self._database.read() as session:
            rows = await events.newest_first(session, conditions, None, MOST_CHANGES)
        found: dict[str, list[Change]] = {}
        for row in reversed(rows):
            found.setdefault(row.instance_id or "", []).append(_change(row))
        return found, rows[-1].time_unix_nano / 1e9 if len(rows) == MOST_CHANGES else 0.0

    def _life(self, instance: Instance, changes: list[Change], complete_since: float) -> Life:
        known = max(instance.first_seen, complete_since, self._clock() - self._retention)
        work = instance.pod().work if instance.agent.has_pods else ""
        return Life(changes, instance.status, instance.status_reason, known, work)

    def _views(self, agent: Agent, life: Life, start: float, end: float) -> tuple[HistoryView, AvailabilityView]:
        stretches = history.timeline(life, start, end)
        spans = history.merged(self._maintenance.spans(agent, start, end))
        figures = history.availability(stretches, spans)
        told = HistoryView(
            start=moment(start),
            end=moment(end),
            stretches=[_stretch_view(one) for one in stretches],
            maintenance=[SpanView(start=moment(a), end=moment(b)) for a, b in spans],
        )
        return told, _availability_view(figures, start, end)

    def _range(self, start: datetime | None, end: datetime | None, last: float = DEFAULT_RANGE) -> tuple[float, float]:
        for name, time in (("start", start), ("end", end)):
            if time is not None and time.tzinfo is None:
                raise InvalidRequestError("the range is not valid", errors=[FieldError(name, "must carry its time zone")])
        now = self._clock()
        until = min(now, end.timestamp()) if end is not None else now
        begin = start.timestamp() if start is not None else until - last
        if begin < 0 or not 0 < until - begin <= LONGEST_RANGE:
            wrong = FieldError("start", "must be after 1970, before the end and now, and at most 400 days before")
            raise InvalidRequestError("the range is not valid", errors=[wrong])
        return begin, until


def _judge(agent: Agent, pairs: Iterable[tuple[str, Status]]) -> tuple[Status, str]:
    if agent.has_pods:
        return rules.of_pods([rules.Pod(work, status) for work, status in pairs], agent.nodes)
    return rules.worst([status for _, status in pairs]), ""


def _change(row: EventRow) -> Change:
    told = row.attributes
    return Change(
        row.time_unix_nano / 1e9,
        _status(told.get("irca.status.previous")),
        _status(told.get("irca.status")),
        str(told.get("irca.status.reason") or ""),
        told.get("irca.instance.replaced") is True,
    )


def _status(text: object) -> Status:
    return next((status for status in Status if status.value == text), Status.PENDING)


def _stretch_view(one: Stretch) -> StretchView:
    return StretchView(
        start=moment(one.start),
        end=moment(one.end),
        seconds=round(one.seconds, 3),
        status=one.status,
        reason=one.reason,
        replaced=one.replaced,
    )


def _availability_view(figures: Availability, start: float, end: float) -> AvailabilityView:
    return AvailabilityView(
        start=datetime.fromtimestamp(start, UTC),
        end=datetime.fromtimestamp(end, UTC),
        available=figures.available,
        seconds={status: round(seconds, 3) for status, seconds in figures.seconds.items()},
        maintenance_seconds=round(figures.maintenance, 3),
        unknown_seconds=round(figures.unknown, 3),
        replaced_seconds=round(figures.replaced, 3),
        outages=figures.outages,
    )
