"""How this instance is, as a pure function of what was recorded and the clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from connectors.core.opamp import Component
from connectors.core.telemetry import CollectorResult

MAX_CLOCK_SKEW = 60.0
MISSED_COLLECTIONS = 3


@dataclass(frozen=True, slots=True)
class Facts:
    """What was last recorded. Times are Unix seconds; a reason is empty where nothing is wrong."""

    started_at: float
    collect_interval: float
    collectors: tuple[CollectorResult, ...] = ()
    custom: tuple[CollectorResult, ...] = ()
    collect_reason: str = ""
    last_collection_at: float | None = None
    spool_reason: str = ""
    send_reason: str = ""
    last_send_at: float | None = None
    heartbeat_reason: str = ""
    last_heartbeat_at: float | None = None
    enrolled: bool = False
    watch_reason: str = ""
    loop_reasons: Mapping[str, str] | None = None
    clock_skew: float | None = None

    def renewed(self, collect_interval: float) -> Facts:
        """Without what was collected and watched: another configuration has taken over."""
        return replace(self, collect_interval=collect_interval, collectors=(), custom=(), collect_reason="", watch_reason="")


def health(facts: Facts, now: float) -> Component:
    """The health of the whole with its parts ``collectors`` (one inside for each), ``spool``, ``transport``, ``watch`` and ``clock``."""
    parts = {
        "collectors": _collectors(facts, now),
        "spool": _part(facts.spool_reason),
        "transport": _part(facts.heartbeat_reason or facts.send_reason),
        "watch": _part(facts.watch_reason),
        "clock": _clock(facts.clock_skew),
    }
    sick = {name: part.reason for name, part in parts.items() if not part.healthy}
    reason = "; ".join(f"{name}: {why}" for name, why in sick.items())
    return Component(not sick, "degraded" if sick else "healthy", reason, parts)


def reasons(component: Component) -> dict[str, str]:
    """Why each part of ``component`` is not healthy, by name."""
    return {name: part.reason for name, part in component.components.items() if not part.healthy}


def _part(reason: str) -> Component:
    return Component(not reason, "failing" if reason else "ok", reason)


def _collectors(facts: Facts, now: float) -> Component:
    results = (*facts.collectors, *facts.custom)
    inner = {result.name: _part(result.reason) for result in results}
    since = facts.last_collection_at or facts.started_at
    reason = facts.collect_reason
    if not reason and now - since > MISSED_COLLECTIONS * facts.collect_interval + 5:
        reason = f"no data was collected for {MISSED_COLLECTIONS} intervals"
    if not reason:
        reason = "; ".join(f"{result.name}: {result.reason}" for result in results if not result.ok)
    return Component(not reason, "failing" if reason else "ok", reason, inner)


def _clock(skew: float | None) -> Component:
    if skew is None or abs(skew) <= MAX_CLOCK_SKEW:
        return _part("")
    # Rounded coarsely: a reason that changes with every answer would look like a change of health.
    minutes = max(1, round(abs(skew) / 60))
    return _part(f"this machine's clock is about {minutes} min {'ahead of' if skew > 0 else 'behind'} the platform's")
