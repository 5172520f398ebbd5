"""What the agent measures of itself, beside what it collects. Pure but for reading this process's own figures."""

from __future__ import annotations

import os
from collections.abc import Sequence

from connectors.core.ledger import SIGNALS, SpoolStatistics
from connectors.core.telemetry import Attributes, Collection, Kind, Metric, Point, ResourceMetrics


def own_metrics(statistics: SpoolStatistics, started_at: float) -> list[Metric]:
    """Spool size and books (``irca.agent.*``), and this process's CPU time and resident memory. ``started_at`` is Unix seconds."""
    ledger, begun, started = statistics.ledger, int(statistics.since * 1e9), int(started_at * 1e9)
    dropped = [
        Point(float(items), {"irca.signal": signal, "irca.drop.reason": reason})
        for (signal, reason), items in sorted(ledger.dropped.items())
        if items
    ]
    times = os.times()
    metrics = [
        Metric("irca.agent.spool.size", "By", Kind.UPDOWNCOUNTER, [Point(float(statistics.size_bytes))]),
        Metric("irca.agent.spool.items", "{item}", Kind.UPDOWNCOUNTER, _by_signal({s: ledger.waiting(s) for s in SIGNALS})),
        Metric("irca.agent.items.produced", "{item}", Kind.COUNTER, _by_signal(ledger.produced), begun),
        Metric("irca.agent.items.sent", "{item}", Kind.COUNTER, _by_signal(ledger.sent), begun),
        Metric(
            "process.cpu.time",
            "s",
            Kind.COUNTER,
            [Point(times.user, {"cpu.mode": "user"}), Point(times.system, {"cpu.mode": "system"})],
            started,
        ),
    ]
    if dropped:
        metrics.append(Metric("irca.agent.items.dropped", "{item}", Kind.COUNTER, dropped, begun))
    resident = _resident_bytes()
    if resident is not None:
        metrics.append(Metric("process.memory.usage", "By", Kind.UPDOWNCOUNTER, [Point(float(resident))]))
    return metrics


def with_own_metrics(collection: Collection, host: Attributes, own_resource: Attributes, own: Sequence[Metric]) -> Collection:
    """``collection`` with ``own`` metrics; those of the resource ``host`` come under ``own_resource``, which also names the instance.

    Metrics of other resources (containers, pods) keep the resource that their collector gave them.
    """
    mine: list[Metric] = []
    others = []
    for gathered in collection.resources:
        if dict(gathered.resource) == dict(host):
            mine.extend(gathered.metrics)
        else:
            others.append(gathered)
    resources = [ResourceMetrics(own_resource, [*mine, *own]), *others]
    return Collection(collection.time_unix_nano, resources, collection.events, collection.collectors)


def _by_signal(items: dict[str, int]) -> list[Point]:
    return [Point(float(items.get(signal, 0)), {"irca.signal": signal}) for signal in SIGNALS]


def _resident_bytes() -> int | None:
    """This process's resident memory, where the system tells it for one small read."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - every round; a Path for it would cost more than the read
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return None
