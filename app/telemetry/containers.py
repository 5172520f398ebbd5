"""The containers of an instance, read from the metric store: what the pages and the API show of them.

Everything is PromQL through the in-process engine, in a fixed number of queries however many containers there are. Only what
identifies a container is on its series (id, name, image name); what describes it (tags, digests, labels) is in its events, and so is
that it ran out of memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar

from pydantic import BaseModel, Field

from app.cursors import decode_cursor, encode_cursor
from app.events.service import EventService
from app.events.views import Page
from app.telemetry.promql.engine import QueryEngine, Result
from app.telemetry.promql.model import Allowance, Vector
from app.telemetry.promql.names import prometheus_name
from app.telemetry.promql.quoting import any_of, quoted
from app.telemetry.store import NAME, Matcher, MetricKind

MISSED_INTERVALS = 3
"""Collection intervals without a sample after which a container is gone. They are counted back from the newest sample of any of the
instance's containers: when the agent falls silent, what it last reported stays."""
LOOKBACK = 300.0
"""Seconds that an instant query looks back; an instance silent for longer is asked about as of when it was last heard."""
HISTORY_SECONDS, HISTORY_STEP = 900, 30
"""Length of a sparkline and the distance of its points, in seconds."""

DESCRIBED_FOR = 86_400
"""Seconds that a container which is gone can still be found by its series."""


class ContainerState(StrEnum):
    """A container's state, in the engine's words."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    REMOVING = "removing"
    EXITED = "exited"
    DEAD = "dead"


class ContainerSort(StrEnum):
    """What containers are listed by."""

    PROBLEM = "problem"
    NAME = "name"
    STATE = "state"
    HEALTH = "health"
    CPU = "cpu"
    MEMORY = "memory"
    RESTARTS = "restarts"
    UPTIME = "uptime"
    IMAGE = "image"


class SortOrder(StrEnum):
    """Which end of a list comes first. Containers without a value come last in both."""

    ASCENDING = "asc"
    DESCENDING = "desc"


class ContainerView(BaseModel):
    """One container as of its newest sample. What its agent does not report is null."""

    id: str = Field(description="The engine's id of the container, whole.")
    name: str
    image_name: str = Field(description="Without tag and digest; empty for an image without a name.")
    state: str = Field(description="created, running, paused, restarting, removing, exited or dead; empty when not reported.")
    health: str | None = Field(description="starting, healthy or unhealthy; null without a health check.")
    problem: str = Field(description="What is wrong with it, in a few words; empty when nothing is.")
    exit_code: int | None = Field(description="Of a container that has ended.")
    cpu_usage: float | None = Field(description="CPUs in use; 1 is one whole core.")
    memory_usage: int | None = Field(description="Bytes, page cache included.")
    memory_working_set: int | None = Field(description="Bytes that cannot be reclaimed easily.")
    memory_limit: int | None = Field(description="Bytes; null without a limit of its own.")
    process_count: int | None = Field(description="Processes and threads in it; null while it does not run.")
    restart_count: int | None = Field(description="Restarts by its restart policy since somebody last started it.")
    recent_restarts: int = Field(description="Restarts in the last 15 minutes.")
    uptime_seconds: float | None = Field(description="Since its last start; null while it does not run.")
    sampled_at: datetime = Field(description="When these values were measured.")


@dataclass(frozen=True, slots=True)
class ContainerFilter:
    """Which containers are wanted, and in which order. ``search`` looks in name, image and the beginning of the id."""

    state: ContainerState | None = None
    search: str = ""
    problems_only: bool = False
    sort: ContainerSort = ContainerSort.PROBLEM
    order: SortOrder | None = None


@dataclass(frozen=True, slots=True)
class Containers:
    """All containers of an instance as of ``newest``, the time of its newest sample; None when there is none."""

    items: Sequence[ContainerView]
    newest: datetime | None


History = Mapping[str, Sequence[float | None]]
"""CPUs in use by container id, oldest first, :data:`HISTORY_STEP` apart; None where there was no sample."""

_STATE, _HEALTH = "irca.container.state", "irca.container.health.status"
_RESTARTS = "irca.container.restart.count"
_METRICS: Mapping[str, tuple[str, MetricKind]] = {
    _STATE: ("{container}", "updowncounter"),
    _HEALTH: ("{container}", "updowncounter"),
    _RESTARTS: ("{restart}", "updowncounter"),
    "irca.container.exit_code": ("1", "gauge"),
    "irca.container.process.count": ("{process}", "updowncounter"),
    "irca.container.memory.limit": ("By", "updowncounter"),
    "container.memory.usage": ("By", "updowncounter"),
    "container.memory.working_set": ("By", "updowncounter"),
    "container.cpu.usage": ("{cpu}", "gauge"),
    "container.uptime": ("s", "gauge"),
}
_PROM = {name: prometheus_name(name, unit, kind) for name, (unit, kind) in _METRICS.items()}
_DEFAULT_INTERVAL = 10.0
_OOM, _MOST_OOM = "irca.docker.container.oom", 500
_CRASH_LOOP = 2  # restarts in the last 15 minutes; one alone may be somebody's docker restart
_DESCENDING_FIRST = frozenset({ContainerSort.CPU, ContainerSort.MEMORY, ContainerSort.RESTARTS, ContainerSort.UPTIME})
_STATE_PLACE = {state.value: place for place, state in enumerate(ContainerState)}
_HEALTH_PLACE = {"unhealthy": 0, "starting": 1, "healthy": 2}

Listed = TypeVar("Listed")
_Key = tuple[str, str]  # container id and name: after a rename the series of the old name are still there
_Rows = list[tuple[dict[str, str], list[float | None]]]


class ContainerService:
    """Answers questions about the containers of instances."""

    def __init__(self, engine: QueryEngine, events: EventService, *, allowance: Allowance, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._events = events
        self._allowance = allowance
        self._clock = clock

    async def read(
        self, instance_id: str, *, last_seen_at: datetime | None, interval: object = None, container_id: str | None = None
    ) -> Containers:
        """Every container that the instance reports; one that is gone has had no sample for three intervals.

        Args:
            instance_id: whose containers.
            last_seen_at: when the instance was last heard; what it reported then is what is known of one that has fallen silent.
            interval: seconds between collections, as the instance's configuration has them; anything else means the default.
            container_id: only this one.

        Raises:
            PlatformError: the store failed, or there is more to read than a query may.
        """
        now = self._clock()
        seen = last_seen_at.timestamp() if last_seen_at else now
        asked = int((seen + 1 if now - seen > LOOKBACK else now) * 1000)
        instance = f"instance={quoted(instance_id)}"
        # Every round has the series of every state, 1 or 0, of every container: one of them tells when it was last reported.
        sampled = await self._instant(f'timestamp({_PROM[_STATE]}{{{instance},irca_container_state="running"}})', asked)
        times = {_key(labels): values[0] for labels, values in sampled if values[0] is not None}
        if not times:
            return Containers((), None)
        newest = max(times.values())
        window = MISSED_INTERVALS * _seconds(interval)
        named: dict[str, _Key] = {}
        for key, time in sorted(times.items(), key=lambda pair: pair[1]):
            if time > newest - window and container_id in (None, key[0]):
                named[key[0]] = key
        if container_id is not None:
            instance += f",container_id={quoted(container_id)}"
        at = int(newest * 1000)
        snapshot = await self._instant(
            f"last_over_time({{__name__=~{any_of(sorted(_PROM.values()))},{instance}}}[{round(window * 1000)}ms])", at
        )
        restarts = await self._instant(
            f"max_over_time({_PROM[_RESTARTS]}{{{instance}}}[{HISTORY_SECONDS}s])"
            f" - min_over_time({_PROM[_RESTARTS]}{{{instance}}}[{HISTORY_SECONDS}s])",
            at,
        )
        oom = await self._out_of_memory(instance_id, newest)
        facts = _facts(snapshot)
        recent = {_key(labels): values[0] or 0.0 for labels, values in restarts}
        items = [_view(key, facts.get(key, _Facts()), recent.get(key, 0.0), times[key], oom.get(key[0])) for key in named.values()]
        return Containers(items, datetime.fromtimestamp(newest, UTC))

    async def cpu_history(self, instance_id: str, containers: Sequence[ContainerView], newest: datetime | None) -> History:
        """What a sparkline of each of ``containers`` draws: the 15 minutes before ``newest``, in one query.

        Raises:
            PlatformError: as :meth:`read`.
        """
        if not containers or newest is None:
            return {}
        end = int(newest.timestamp()) // HISTORY_STEP * HISTORY_STEP + HISTORY_STEP
        selector = f"instance={quoted(instance_id)},container_id=~{any_of([one.id for one in containers])}"
        rows = await self._engine.range(
            f"avg_over_time({_PROM['container.cpu.usage']}{{{selector}}}[{HISTORY_STEP}s])",
            (end - HISTORY_SECONDS) * 1000,
            end * 1000,
            HISTORY_STEP * 1000,
            self._allowance,
            _rows,
        )
        history: dict[str, list[float | None]] = {}
        for labels, values in rows:
            before = history.get(labels.get("container_id", ""))  # there when it was renamed on the way
            joined = values if before is None else [b if a is None else a for a, b in zip(values, before, strict=True)]
            history[labels.get("container_id", "")] = joined
        return history

    async def describe(self, instance_id: str, container_id: str) -> dict[str, str]:
        """Labels of a container that may be gone, as its series of the last day have them; empty when there are none.

        Raises:
            PlatformError: as :meth:`read`.
        """
        now = int(self._clock() * 1000)
        wanted = (Matcher("instance", "=", instance_id), Matcher("container_id", "=", container_id))
        found = await self._engine.series([wanted], now - DESCRIBED_FOR * 1000, now)
        return dict(found[0]) if found else {}

    async def _out_of_memory(self, instance_id: str, newest: float) -> dict[str, float]:
        """When containers last ran out of memory, in the day before ``newest``: no metric tells, an event does."""
        start = datetime.fromtimestamp(newest - DESCRIBED_FOR, UTC)
        page = await self._events.list_events(limit=_MOST_OOM, instance_id=instance_id, name=_OOM, start=start)
        told = [(e.resource.get("container.id") or e.attributes.get("container.id"), e.time.timestamp()) for e in page.items]
        return {str(container): time for container, time in reversed(told) if container}

    async def _instant(self, query: str, time_ms: int) -> _Rows:
        return await self._engine.instant(query, time_ms, self._allowance, _rows)


def listed(containers: Iterable[ContainerView], wanted: ContainerFilter) -> list[ContainerView]:
    """Those of ``containers`` that are wanted, in the order that is wanted; by name where that leaves it open."""
    search = wanted.search.casefold()
    found = [
        one
        for one in containers
        if (wanted.state is None or one.state == wanted.state.value)
        and (not wanted.problems_only or one.problem)
        and (not search or search in one.name.casefold() or search in one.image_name.casefold() or one.id.startswith(search))
    ]
    found.sort(key=lambda one: (one.name, one.id))
    if wanted.sort is ContainerSort.PROBLEM and wanted.order is None:
        found.sort(key=_trouble)
        return found
    known = [(value, one) for one in found if (value := _SORT_KEYS[wanted.sort](one)) is not None]
    unknown = [one for one in found if _SORT_KEYS[wanted.sort](one) is None]
    order = wanted.order or default_order(wanted.sort)
    known.sort(key=lambda pair: pair[0], reverse=order is SortOrder.DESCENDING)
    return [one for _, one in known] + unknown


def default_order(sort: ContainerSort) -> SortOrder:
    """The end that is worth looking at first: the greatest consumers, the most restarts; otherwise A to Z."""
    return SortOrder.DESCENDING if sort in _DESCENDING_FIRST else SortOrder.ASCENDING


def page_of(items: Sequence[ContainerView], cursor: str | None, limit: int) -> Page[ContainerView]:
    """One page of a list. Its cursor is a place in the list: containers that come and go between two requests move the places.

    Raises:
        InvalidRequestError: the cursor is not one of ours.
    """
    shown, next_cursor = cut_page(items, cursor, limit)
    return Page[ContainerView](items=shown, next_cursor=next_cursor)


def cut_page(items: Sequence[Listed], cursor: str | None, limit: int) -> tuple[list[Listed], str | None]:
    """The items of one page, and the cursor of the next one; otherwise as :func:`page_of`.

    Raises:
        InvalidRequestError: the cursor is not one of ours.
    """
    start = max(0, (decode_cursor(cursor or None, int) or (0,))[0])
    more = len(items) > start + limit
    return list(items[start : start + limit]), encode_cursor(start + limit) if more else None


@dataclass(slots=True)
class _Facts:
    image: str = ""
    state: str = ""
    health: str | None = None
    values: dict[str, float] | None = None

    def number(self, name: str) -> float | None:
        return (self.values or {}).get(_PROM[name])

    def whole(self, name: str) -> int | None:
        value = self.number(name)
        return None if value is None else int(value)


def _facts(rows: _Rows) -> dict[_Key, _Facts]:
    found: dict[_Key, _Facts] = {}
    for labels, (value, *_) in rows:
        if value is None or not math.isfinite(value):
            continue
        facts = found.setdefault(_key(labels), _Facts(values={}))
        facts.image = labels.get("container_image_name", facts.image)
        metric = labels.get(NAME, "")
        if metric == _PROM[_STATE]:
            facts.state = labels.get("irca_container_state", "") if value else facts.state
        elif metric == _PROM[_HEALTH]:
            facts.health = labels.get("irca_container_health_status") if value else facts.health
        elif facts.values is not None:
            facts.values[metric] = value
    return found


def _view(key: _Key, facts: _Facts, recent: float, sampled: float, oom: float | None) -> ContainerView:
    runs = facts.state in ("running", "paused", "restarting", "")
    exit_code = None if runs else facts.whole("irca.container.exit_code")
    health = facts.health if runs else None
    return ContainerView(
        id=key[0],
        name=key[1] or key[0][:12],
        image_name=facts.image,
        state=facts.state,
        health=health,
        problem=_problem(facts.state, health, exit_code, int(recent), None if oom is None else sampled - oom),
        exit_code=exit_code,
        cpu_usage=facts.number("container.cpu.usage") if runs else None,
        memory_usage=facts.whole("container.memory.usage") if runs else None,
        memory_working_set=facts.whole("container.memory.working_set") if runs else None,
        memory_limit=facts.whole("irca.container.memory.limit"),
        process_count=facts.whole("irca.container.process.count") if runs else None,
        restart_count=facts.whole(_RESTARTS),
        recent_restarts=int(recent),
        uptime_seconds=facts.number("container.uptime") if runs else None,
        sampled_at=datetime.fromtimestamp(sampled, UTC),
    )


def _problem(state: str, health: str | None, exit_code: int | None, recent: int, since_oom: float | None) -> str:
    if state == "dead":
        return "could not be removed"
    if state == "exited":
        code = f"exit code {exit_code}" if exit_code else ""
        return ", ".join([code] + ["out of memory"] * (since_oom is not None)) if code else ""
    found = []
    if health == "unhealthy":
        found.append("health check fails")
    if recent >= _CRASH_LOOP:
        found.append(f"restarted {recent} times in 15 min")
    if since_oom is not None and since_oom < HISTORY_SECONDS and state in ("running", "restarting", "paused"):
        found.append("out of memory in the last 15 min")
    return ", ".join(found) or ("restarting" if state == "restarting" else "")


def _trouble(one: ContainerView) -> int:
    """Worst first: what should run and does not do so well, what ended badly, what may become either, then the rest."""
    if one.problem:
        return 1 if one.state == "exited" else 0
    if one.state == "paused" or one.health == "starting":
        return 2
    return 3 if one.state == "running" else 4


_SORT_KEYS: Mapping[ContainerSort, Callable[[ContainerView], float | str | None]] = {
    ContainerSort.PROBLEM: _trouble,
    ContainerSort.NAME: lambda one: one.name,
    ContainerSort.STATE: lambda one: _STATE_PLACE.get(one.state),
    ContainerSort.HEALTH: lambda one: _HEALTH_PLACE.get(one.health or ""),
    ContainerSort.CPU: lambda one: one.cpu_usage,
    ContainerSort.MEMORY: lambda one: one.memory_working_set,
    ContainerSort.RESTARTS: lambda one: one.restart_count,
    ContainerSort.UPTIME: lambda one: one.uptime_seconds,
    ContainerSort.IMAGE: lambda one: one.image_name or None,
}


def _rows(result: Result) -> _Rows:
    value = result.value
    if not isinstance(value, Vector):
        return []
    return [
        (dict(labels), [float(v) if there else None for v, there in zip(values, present, strict=True)])
        for labels, values, present in zip(value.labels, value.values, value.present, strict=True)
    ]


def _key(labels: Mapping[str, str]) -> _Key:
    return labels.get("container_id", ""), labels.get("container_name", "")


def _seconds(interval: object) -> float:
    try:
        seconds = float(str(interval))
    except ValueError:
        return _DEFAULT_INTERVAL
    return seconds if math.isfinite(seconds) and seconds > 0 else _DEFAULT_INTERVAL
