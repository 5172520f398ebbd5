"""Maintenance windows: times in which the events of some instances are on record and nobody is told."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import BaseModel, Field
from sqlalchemy import delete, select, update

from app.audit.records import Actor, Target
from app.audit.service import AuditService
from app.auth.service import Identity
from app.cursors import decode_cursor, encode_cursor
from app.db.models import MaintenanceWindowRow
from app.db.session import Database
from app.errors import ConflictError, FieldError, ForbiddenError, InvalidRequestError, NotFoundError
from app.events.records import EventRecord
from app.events.views import Page
from app.fleet.registry import Agent, Registry, moment
from app.fleet.views import Status

LONGEST = 30 * 86_400.0
"""Seconds that a window lasts at most: what is forgotten must not stay mute for ever."""
_MOST_REASON = 500

Pattern = Annotated[str, Field(min_length=1, max_length=200)]


class WindowState(StrEnum):
    """Where a window stands against the clock."""

    SCHEDULED = "scheduled"
    ACTIVE = "active"
    ENDED = "ended"
    CANCELLED = "cancelled"


class _Lookup:
    """Agents by id, by environment and by label, for counting those of many windows."""

    def __init__(self, agents: Iterable[Agent]) -> None:
        self.by_id = {agent.id: agent for agent in agents}
        self._by_value: dict[str, dict[str, set[Agent]]] = {}

    def where(self, key: str, patterns: Sequence[str]) -> set[Agent]:
        """Those whose label ``key`` (their environment, where it is empty) is like one of the patterns."""
        by_value = self._by_value.get(key)
        if by_value is None:
            by_value = self._by_value[key] = {}
            for agent in self.by_id.values():
                if (value := agent.labels.get(key) if key else agent.environment_name) is not None:
                    by_value.setdefault(value, set()).add(agent)
        alike = (found for value, found in by_value.items() if any(fnmatchcase(value, pattern) for pattern in patterns))
        return set().union(*alike)


class MaintenanceSelector(BaseModel):
    """Whose events are muted: instances of agents that meet every part that is given. At least one must be."""

    model_config = {"extra": "forbid", "frozen": True}

    environments: Annotated[list[Pattern], Field(max_length=100)] = Field(
        [], description="Names of environments; * stands for any characters."
    )
    agent_ids: Annotated[list[Pattern], Field(max_length=500)] = Field([], description="Ids of agents.")
    labels: Annotated[dict[Pattern, Pattern], Field(max_length=20)] = Field(
        {}, description="Labels that an agent must have, with patterns of their values as above."
    )

    def selects(self, agent: Agent) -> bool:
        """Whether the instances of ``agent`` are meant."""
        if self.environments and not any(fnmatchcase(agent.environment_name, pattern) for pattern in self.environments):
            return False
        if self.agent_ids and agent.id not in self.agent_ids:
            return False
        return all(key in agent.labels and fnmatchcase(agent.labels[key], pattern) for key, pattern in self.labels.items())

    def count(self, agents: _Lookup) -> int:
        """How many of the agents are meant."""
        parts: list[set[Agent]] = []
        if self.environments:
            parts.append(agents.where("", self.environments))
        if self.agent_ids:
            parts.append({agents.by_id[agent_id] for agent_id in self.agent_ids if agent_id in agents.by_id})
        parts += [agents.where(key, [pattern]) for key, pattern in self.labels.items()]
        return len(set.intersection(*parts)) if parts else len(agents.by_id)

    def is_empty(self) -> bool:
        """Whether no part is given."""
        return not (self.environments or self.agent_ids or self.labels)


class MaintenanceView(BaseModel):
    """A maintenance window."""

    id: str
    reason: str
    selector: MaintenanceSelector
    state: WindowState
    starts_at: datetime
    ends_at: datetime = Field(description="When it ends, or was ended.")
    created_by: str = Field(description="Name of whoever made it.")
    created_at: datetime
    agents: int = Field(description="Agents that it selects now.")


@dataclass(frozen=True, slots=True)
class Window:
    """A window in memory. Times are seconds since the epoch; ``ends_at`` is not part of it."""

    id: str
    reason: str
    selector: MaintenanceSelector
    starts_at: float
    ends_at: float
    created_by: str
    created_at: datetime

    @classmethod
    def of(cls, row: MaintenanceWindowRow) -> Window:
        """The window that a row holds."""
        selector = MaintenanceSelector.model_validate(row.selector)
        return cls(row.id, row.reason, selector, row.starts_at.timestamp(), row.ends_at.timestamp(), row.created_by, row.created_at)

    def holds(self, time: float) -> bool:
        """Whether ``time`` falls into it."""
        return self.starts_at <= time < self.ends_at

    def state(self, now: float) -> WindowState:
        """Where it stands at ``now``."""
        if self.starts_at >= self.ends_at:
            return WindowState.CANCELLED
        if now < self.starts_at:
            return WindowState.SCHEDULED
        return WindowState.ACTIVE if self.holds(now) else WindowState.ENDED


@dataclass(frozen=True, slots=True)
class WindowSpec:
    """A window that somebody wants: from ``starts_at`` (None: now) for ``duration`` seconds."""

    reason: str
    selector: MaintenanceSelector
    duration: float
    starts_at: datetime | None = None


class MaintenanceService:
    """Keeps the windows, all of them in memory with the database as their durable copy, and says what they mute."""

    def __init__(self, database: Database, registry: Registry, audit: AuditService, clock: Callable[[], float]) -> None:
        self._database = database
        self._registry = registry
        self._audit = audit
        self._clock = clock
        self._windows: dict[str, Window] = {}

    async def load(self) -> None:
        """Read the windows; once, after the fleet was loaded."""
        async with self._database.read() as session:
            self._windows = {row.id: Window.of(row) for row in await session.scalars(select(MaintenanceWindowRow))}
        self.mark()
        for instance in self._registry.instances.values():
            in_maintenance = instance.status is Status.OFFLINE and instance.agent.maintenance_until is not None
            instance.quiet_muted = in_maintenance and self.covers(instance.agent, instance.status_since)

    # What the fleet and the timeline ask.

    def mark(self) -> None:
        """Tell every agent until when it is in maintenance."""
        now = self._clock()
        active = [w for w in self._windows.values() if w.holds(now)]
        for agent in self._registry.agents.values():
            agent.maintenance_until = max((w.ends_at for w in active if w.selector.selects(agent)), default=None) if active else None

    def covers(self, agent: Agent, time: float) -> bool:
        """Whether the agent was, is or will be in maintenance at ``time``."""
        return any(w.holds(time) and w.selector.selects(agent) for w in self._windows.values())

    def mutes(self, record: EventRecord) -> bool:
        """Whether an event, which may be told long after it happened, is of an instance that was in maintenance then."""
        if record.instance_id is None or not self._windows:
            return False
        agent = self._registry.agents.get(record.agent_id or "")
        return agent is not None and self.covers(agent, record.time_unix_nano / 1e9)

    def spans(self, agent: Agent, start: float, end: float) -> list[tuple[float, float]]:
        """The times between ``start`` and ``end`` in which the agent was in maintenance; they may overlap."""
        found = ((max(w.starts_at, start), min(w.ends_at, end)) for w in self._windows.values() if w.selector.selects(agent))
        return sorted(span for span in found if span[0] < span[1])

    async def drop_older(self, seconds: float) -> int:
        """Drop windows that ended longer ago than this; how many."""
        old = [w.id for w in self._windows.values() if w.ends_at < self._clock() - seconds]
        if old:
            async with self._database.write() as session:
                await session.execute(delete(MaintenanceWindowRow).where(MaintenanceWindowRow.id.in_(old)))
            for window_id in old:
                self._windows.pop(window_id, None)
        return len(old)

    # What people do.

    async def create(self, spec: WindowSpec, actor: Actor, identity: Identity) -> MaintenanceView:
        """A new window.

        Raises:
            InvalidRequestError: it selects nothing in particular, has no reason, or its times are not usable.
            ForbiddenError: it reaches beyond the environments that ``identity`` is for.
        """
        now = self._clock()
        starts_at = now if spec.starts_at is None else _seconds(spec.starts_at)
        errors = []
        if not spec.reason.strip() or len(spec.reason) > _MOST_REASON:
            errors.append(FieldError("reason", f"must have 1 to {_MOST_REASON} characters: others will ask why nobody was told"))
        if spec.selector.is_empty():
            errors.append(FieldError("selector", "must name environments, agents or labels; the environment * is all of them"))
        if not 0 < spec.duration <= LONGEST:
            errors.append(FieldError("duration", "must be more than 0 and at most 30 days"))
        if starts_at + spec.duration <= now:
            errors.append(FieldError("starts_at", "must not be so early that the window is over"))
        if errors:
            raise InvalidRequestError("the maintenance window is not usable", errors=errors)
        starts_at = max(starts_at, now)  # what was told cannot be taken back
        self._check_reach(spec.selector, identity)
        row = MaintenanceWindowRow(
            id=str(uuid.uuid4()),
            reason=spec.reason.strip(),
            selector=spec.selector.model_dump(),
            starts_at=moment(starts_at),
            ends_at=moment(starts_at + spec.duration),
            created_by=actor.name[:255],
            created_at=moment(now),
        )
        window = Window.of(row)
        async with self._database.write() as session:
            session.add(row)
            self._audit.add(session, actor, "maintenance.create", _target(window), after=_audited(window))
        self._windows[window.id] = window
        self.mark()
        return self._view(window, self._visible(identity))

    async def end(self, window_id: str, actor: Actor, identity: Identity) -> MaintenanceView:
        """End a window now; one that has not begun is cancelled.

        Raises:
            NotFoundError: no such window.
            ConflictError: it is over already.
            ForbiddenError: as :meth:`create`.
        """
        window, now = self._window(window_id, identity), self._clock()
        self._check_reach(window.selector, identity)
        if window.state(now) not in (WindowState.ACTIVE, WindowState.SCHEDULED):
            raise ConflictError("this maintenance window is over already")
        ends_at = max(now, window.starts_at)
        after = Window(window.id, window.reason, window.selector, window.starts_at, ends_at, window.created_by, window.created_at)
        async with self._database.write() as session:
            statement = update(MaintenanceWindowRow).where(MaintenanceWindowRow.id == window_id)
            await session.execute(statement.values(ends_at=moment(ends_at)))
            self._audit.add(session, actor, "maintenance.end", _target(window), before=_audited(window), after=_audited(after))
        self._windows[window_id] = after
        self.mark()
        return self._view(after, self._visible(identity))

    def get(self, window_id: str, identity: Identity) -> MaintenanceView:
        """One window.

        Raises:
            NotFoundError: no such window, or none that ``identity`` may see.
        """
        return self._view(self._window(window_id, identity), self._visible(identity))

    def list_windows(
        self, identity: Identity, cursor: str | None = None, limit: int = 50, *, state: WindowState | None = None
    ) -> Page[MaintenanceView]:
        """The windows that ``identity`` may see, the latest first.

        Raises:
            InvalidRequestError: the cursor is not one of this list.
        """
        now, after = self._clock(), decode_cursor(cursor, float, str)
        agents = self._visible(identity)
        seen = [w for w in self._windows.values() if self._is_seen(w, identity, agents) and (state is None or w.state(now) is state)]
        ranked = sorted(((-w.starts_at, w.id), w) for w in seen)
        ranked = [one for one in ranked if after is None or one[0] > after]
        shown = [w for _, w in ranked[:limit]]
        following = encode_cursor(-float(shown[-1].starts_at), shown[-1].id) if len(ranked) > limit else None
        return Page[MaintenanceView](items=[self._view(w, agents) for w in shown], next_cursor=following)

    def _window(self, window_id: str, identity: Identity) -> Window:
        window = self._windows.get(window_id)
        if window is None or not self._is_seen(window, identity, self._visible(identity)):
            raise NotFoundError(f"there is no maintenance window {window_id}")
        return window

    def _is_seen(self, window: Window, identity: Identity, agents: _Lookup) -> bool:
        return identity.everywhere or _within(window.selector, identity) or window.selector.count(agents) > 0

    def _visible(self, identity: Identity) -> _Lookup:
        """The agents in environments that ``identity`` sees."""
        seen = {name: identity.sees(name) for name in {agent.environment_name for agent in self._registry.agents.values()}}
        return _Lookup(agent for agent in self._registry.agents.values() if seen[agent.environment_name])

    def _view(self, window: Window, agents: _Lookup) -> MaintenanceView:
        return MaintenanceView(
            id=window.id,
            reason=window.reason,
            selector=window.selector,
            state=window.state(self._clock()),
            starts_at=moment(window.starts_at),
            ends_at=moment(window.ends_at),
            created_by=window.created_by,
            created_at=window.created_at,
            agents=window.selector.count(agents),
        )

    def _check_reach(self, selector: MaintenanceSelector, identity: Identity) -> None:
        if identity.everywhere or _within(selector, identity):
            return
        raise ForbiddenError(
            f"the key {identity.name!r} is limited to environments {', '.join(identity.environments)}: name only such in the window"
        )


def _within(selector: MaintenanceSelector, identity: Identity) -> bool:
    """Whether every environment that is named is one that ``identity`` sees: a plain name, or one of its own patterns."""
    names: Sequence[str] = selector.environments
    plain = [name for name in names if name not in identity.environments]
    return bool(names) and all(not set(name) & set("*?[") and identity.sees(name) for name in plain)


def _target(window: Window) -> Target:
    environments = window.selector.environments
    only = environments[0] if len(environments) == 1 and "*" not in environments[0] else None
    return Target("maintenance-window", window.id, window.reason[:100], only[:63] if only else None)


def _audited(window: Window) -> dict[str, Any]:
    return {
        "reason": window.reason,
        "selector": window.selector.model_dump(),
        "starts_at": moment(window.starts_at).isoformat(),
        "ends_at": moment(window.ends_at).isoformat(),
    }


def _seconds(time: datetime) -> float:
    if time.tzinfo is None:
        raise InvalidRequestError("the request is not valid", errors=[FieldError("starts_at", "must carry its time zone")])
    return time.timestamp()
