"""How the status of an instance or an agent went, and how available it was: pure functions of changes, maintenance and the clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from app.fleet.views import Status

Span = tuple[float, float]
"""A stretch of time: begin and end, in seconds since the epoch."""

AVAILABLE = frozenset({Status.HEALTHY, Status.DEGRADED})
"""Statuses of what is heard: it may be unwell, and it is there."""
COUNTED = AVAILABLE | {Status.OFFLINE}
"""Statuses that tell of availability. What was stopped or archived is wanted so; what is pending was never there."""


@dataclass(frozen=True, slots=True)
class Change:
    """A status changed. ``replaced`` says that the instance is a pod whose work another one does."""

    time: float
    previous: Status
    status: Status
    reason: str = ""
    replaced: bool = False


@dataclass(frozen=True, slots=True)
class Stretch:
    """A time in which a status held; None where it is not known, before the first contact."""

    start: float
    end: float
    status: Status | None
    reason: str = ""
    replaced: bool = False

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Life:
    """What is known of an instance: its changes, oldest first, how it stands now, and since when it is known at all.

    ``work`` is what a pod does (:class:`app.fleet.status.Pod`); empty for others.
    """

    changes: Sequence[Change]
    status: Status
    reason: str
    known_since: float
    work: str = ""


@dataclass(frozen=True, slots=True)
class Availability:
    """How available something was in a range of time. ``seconds`` by status leave maintenance out."""

    seconds: Mapping[Status, float]
    maintenance: float
    unknown: float
    replaced: float
    outages: int
    available: float | None = field(default=None)
    """Share of the seconds in which it was heard, 0 to 1, of those in which it should have been; None where there were none."""


def timeline(life: Life, start: float, end: float) -> list[Stretch]:
    """The stretches between ``start`` and ``end`` without a gap, oldest first; neighbours differ in status or reason."""
    first = life.changes[0] if life.changes else None
    begin = min(max(start, life.known_since), end)
    stretches = [Stretch(start, begin, None)] if begin > start else []
    status, reason = (first.previous, "") if first else (life.status, life.reason)
    replaced, time = False, begin
    for change in life.changes:
        if change.time >= end:
            break
        if change.time > time:
            stretches.append(Stretch(time, change.time, status, reason, replaced))
            time = change.time
        status, reason, replaced = change.status, change.reason, change.replaced
    if end > time:
        stretches.append(Stretch(time, end, status, reason, replaced))
    return _joined(stretches)


def combined(lives: Mapping[str, Life], judge: Callable[[Iterable[tuple[str, Status]]], tuple[Status, str]], end: float) -> Life:
    """The life of an agent, told from those of its instances by name.

    Args:
        lives: its instances' lives.
        judge: the agent's status, and a reason or "", as of the works and statuses of its instances, each pair once.
        end: the last moment that is of interest.
    """
    points: list[tuple[float, str, Status, str]] = []
    for name, life in lives.items():
        points.append((life.known_since, name, *_standing(life)))
        points += [(c.time, name, c.status, c.reason) for c in life.changes if c.time > life.known_since]
    known_since = min((life.known_since for life in lives.values()), default=end)
    now: dict[str, tuple[Status, str]] = {}
    present: Counter[tuple[str, Status]] = Counter()
    changes: list[Change] = []
    status, reason = Status.PENDING, "no contact yet"
    for time, name, own, why in sorted(points, key=lambda p: (p[0], p[1])):
        if name in now:
            present[lives[name].work, now[name][0]] -= 1
        now[name] = own, why
        present[lives[name].work, own] += 1
        became, because = judge(pair for pair, count in present.items() if count > 0)
        if became is not status:
            told = because or next((f"{n}: {r}" for n, (s, r) in now.items() if s is became and r), "")
            changes.append(Change(time, status, became, told))
            status, reason = became, told
    return Life(changes, status, reason, known_since)


def _standing(life: Life) -> tuple[Status, str]:
    """How an instance stood when it became known, and why."""
    if not life.changes:
        return life.status, life.reason
    last = next((change for change in reversed(life.changes) if change.time <= life.known_since), None)
    return (last.status, last.reason) if last else (life.changes[0].previous, "")


def availability(stretches: Sequence[Stretch], maintenance: Sequence[Span]) -> Availability:
    """How available something was. Maintenance is left out; so is what is not known, pending, stopped, archived, or a replaced pod."""
    quiet = merged(maintenance)
    seconds = dict.fromkeys(Status, 0.0)
    in_maintenance = unknown = replaced = 0.0
    outages = 0
    for stretch in stretches:
        outside = stretch.seconds - sum(max(0.0, min(stretch.end, b) - max(stretch.start, a)) for a, b in quiet)
        in_maintenance += stretch.seconds - outside
        if stretch.status is None:
            unknown += outside
        elif stretch.replaced and stretch.status not in AVAILABLE:
            replaced += outside
        else:
            seconds[stretch.status] += outside
            outages += stretch.status is Status.OFFLINE and outside > 0
    counted = sum(seconds[status] for status in COUNTED)
    heard = sum(seconds[status] for status in AVAILABLE)
    return Availability(seconds, in_maintenance, unknown, replaced, outages, heard / counted if counted > 0 else None)


def merged(spans: Sequence[Span]) -> list[Span]:
    """The same times without overlaps, in order."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        elif end > start:
            joined.append((start, end))
    return joined


def _joined(stretches: Sequence[Stretch]) -> list[Stretch]:
    joined: list[Stretch] = []
    for one in stretches:
        last = joined[-1] if joined else None
        if last is not None and (last.status, last.reason, last.replaced) == (one.status, one.reason, one.replaced):
            joined[-1] = Stretch(last.start, one.end, one.status, one.reason, one.replaced)
        else:
            joined.append(one)
    return joined
