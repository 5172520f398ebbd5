"""An instance's status as a pure function of what was last heard and the clock.

Thresholds: *degraded* after two missed heartbeats, *offline* after max(4 intervals, 90 s), *archived* after a settable silence.
Hysteresis: an instance that was degraded or offline needs two good heartbeats in a row to be *healthy* again.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.fleet.views import Status

OFFLINE_AT_LEAST = 90.0
"""Seconds of silence below which nothing is called offline, however short its interval."""
JITTER = 0.1
"""Share by which agents spread their heartbeats."""
GOOD_BEATS_NEEDED = 2

_SEVERITY = {
    Status.OFFLINE: 5,
    Status.DEGRADED: 4,
    Status.PENDING: 3,
    Status.HEALTHY: 2,
    Status.STOPPED: 1,
    Status.ARCHIVED: 0,
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an instance. Times are seconds since the epoch; ``last_heard`` is None before first contact."""

    last_heard: float | None
    interval: float
    healthy: bool | None = None
    last_error: str = ""
    good_beats: int = 0
    said_goodbye: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """A status and why."""

    status: Status
    reason: str = ""


def evaluate(facts: Facts, now: float, previous: Status, archive_after: float) -> Verdict:
    """The status at ``now`` of an instance whose status was ``previous``."""
    if facts.last_heard is None:
        return Verdict(Status.PENDING, "no contact yet")
    silence = max(0.0, now - facts.last_heard)
    if silence >= archive_after:
        return Verdict(Status.ARCHIVED, f"silent for {_span(silence)}")
    if facts.said_goodbye:
        return Verdict(Status.STOPPED, "stopped in good order")
    if silence > offline_after(facts.interval):
        return Verdict(Status.OFFLINE, f"no heartbeat since {_span(offline_after(facts.interval))} or more")
    if silence > late_after(facts.interval):
        return Verdict(Status.DEGRADED, "missed two heartbeats")
    if facts.healthy is False:
        return Verdict(Status.DEGRADED, facts.last_error or "the agent reports that it is not healthy")
    if previous in (Status.DEGRADED, Status.OFFLINE) and facts.good_beats < GOOD_BEATS_NEEDED:
        return Verdict(Status.DEGRADED, f"recovering: {facts.good_beats} of {GOOD_BEATS_NEEDED} good heartbeats")
    return Verdict(Status.HEALTHY)


def late_after(interval: float) -> float:
    """Seconds of silence after which two heartbeats have been missed, jitter allowed for."""
    return 2 * interval * (1 + JITTER) + 1


def offline_after(interval: float) -> float:
    """Seconds of silence after which an instance is offline."""
    return max(4 * interval, OFFLINE_AT_LEAST)


def count_beat(good_beats: int, healthy: bool, silence: float | None, interval: float) -> int:
    """The run of good heartbeats after one more: it begins anew after an unhealthy or late one."""
    if not healthy:
        return 0
    if silence is not None and silence > late_after(interval):
        return 1
    return min(good_beats + 1, GOOD_BEATS_NEEDED)


def severity(status: Status) -> int:
    """How much a status calls for attention: offline most, archived least."""
    return _SEVERITY[status]


def worst(statuses: list[Status]) -> Status:
    """An agent's status: the worst of its instances', leaving archived ones aside while others are left; pending without any."""
    present = [s for s in statuses if s is not Status.ARCHIVED] or statuses
    return max(present, key=severity) if present else Status.PENDING


def _span(seconds: float) -> str:
    """A duration for people: ``90 s``, ``12 min``, ``3 h``, ``14 d``."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{round(seconds / size)} {unit}"
    return f"{round(seconds)} s"
