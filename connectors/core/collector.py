"""Collectors: the units that gather. One that fails never takes the others along."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from connectors.core.errors import ConnectorError
from connectors.core.telemetry import Attributes, Collection, CollectorResult, Kind, Metric, Point, ResourceMetrics


class Collector(Protocol):
    """Gathers one kind of data. Whatever ``collect`` raises degrades this collector alone, and what it yielded before is kept."""

    name: str

    def collect(self) -> Iterable[ResourceMetrics]:
        """The metrics of this round, by resource."""
        ...


def run_collectors(
    collectors: Sequence[Collector],
    agent_resource: Attributes,
    *,
    clock: Callable[[], int] = time.time_ns,
    monotonic: Callable[[], float] = time.monotonic,
) -> Collection:
    """Run every collector and report each one's duration and success as ``irca.collector.*`` metrics of ``agent_resource``.

    Resources that several collectors return under equal attributes are merged, in order of first appearance.
    """
    started = clock()
    merged: dict[tuple[tuple[str, str], ...], tuple[Attributes, list[Metric]]] = {}
    results = []
    for collector in collectors:
        begin, reason = monotonic(), ""
        try:
            for item in collector.collect():
                _merge(merged, item)
        except Exception as exc:  # noqa: BLE001 - a collector's failure, whatever it is, must not silence the others
            reason = describe_failure(exc)
        results.append(CollectorResult(collector.name, monotonic() - begin, reason))
    _merge(merged, ResourceMetrics(agent_resource, _collector_metrics(results)))
    resources = [ResourceMetrics(resource, metrics) for resource, metrics in merged.values()]
    return Collection(started, resources, collectors=results)


def describe_failure(exc: BaseException) -> str:
    """One line that says what failed, for a status: the reason of our own errors, type and text of others."""
    if isinstance(exc, ConnectorError):
        return exc.reason
    text = " ".join(str(exc).split())
    return f"{type(exc).__name__}: {text}"[:500] if text else type(exc).__name__


def _merge(merged: dict[tuple[tuple[str, str], ...], tuple[Attributes, list[Metric]]], item: ResourceMetrics) -> None:
    key = tuple(sorted((k, repr(v)) for k, v in item.resource.items()))
    merged.setdefault(key, (item.resource, []))[1].extend(item.metrics)


def _collector_metrics(results: Sequence[CollectorResult]) -> list[Metric]:
    names = [{"irca.collector.name": r.name} for r in results]
    if not names:
        return []
    return [
        Metric("irca.collector.duration", "s", Kind.GAUGE, [Point(r.duration, n) for r, n in zip(results, names, strict=True)]),
        Metric("irca.collector.success", "1", Kind.GAUGE, [Point(float(r.ok), n) for r, n in zip(results, names, strict=True)]),
    ]
