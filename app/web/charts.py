"""THE table of charts: what an instance's page draws, by agent type.

A chart is a list of measures in OTel terms. From one measure come both the PromQL that the browser asks and the latest value that the
server writes into the page, so that the page reads the same with and without JavaScript.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from app.telemetry.promql.names import prometheus_label, prometheus_name
from app.telemetry.promql.quoting import quoted
from app.telemetry.store import MatchOperator, MetricKind

Unit = Literal["ratio", "bytes", "bytes/s", "number"]
Aggregate = Literal["sum", "avg", "max"]


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on an attribute, by its OTel name; regular expressions are anchored as in PromQL."""

    attribute: str
    operator: MatchOperator
    value: str

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether a series of these labels (OTel names) meets it."""
        value = labels.get(self.attribute, "")
        if self.operator in ("=", "!="):
            return (value == self.value) is (self.operator == "=")
        return bool(re.fullmatch(self.value, value)) is (self.operator == "=~")


@dataclass(frozen=True, slots=True)
class Measure:
    """Lines of a chart: a metric aggregated over all its attributes but those in ``by``; a counter as its rate a second.

    ``label`` names the line where ``by`` is empty.
    """

    metric: str
    unit: str
    kind: MetricKind
    by: tuple[str, ...] = ()
    where: tuple[Condition, ...] = ()
    aggregate: Aggregate = "sum"
    label: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart. ``stacked`` lays the lines on each other; ``maximum`` fixes the top of the axis.

    ``order`` names lines that come first, from the bottom up; the others follow, greatest first.
    """

    title: str
    unit: Unit
    measures: tuple[Measure, ...]
    stacked: bool = False
    maximum: float | None = None
    order: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TimeRange:
    """A range that can be chosen: its name in the URL, and in seconds its length, the step between points and the window of rates."""

    name: str
    title: str
    seconds: int
    step: int
    window: int


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL query of a chart, and what names each of its lines: the values of these labels, or the fixed text."""

    promql: str
    by: tuple[str, ...]
    label: str


_NOT_LOOPBACK = Condition("network.interface.name", "!~", "lo[0-9]*")

HOST_CHARTS = (
    Chart(
        "CPU",
        "ratio",
        (
            Measure(
                "system.cpu.utilization",
                "1",
                "gauge",
                by=("cpu.mode",),
                where=(Condition("cpu.mode", "!~", "idle|iowait"),),
                aggregate="avg",
            ),
        ),
        stacked=True,
        maximum=1.0,
        order=("user", "system"),
    ),
    Chart(
        "Memory",
        "bytes",
        (Measure("system.memory.usage", "By", "updowncounter", by=("system.memory.state",)),),
        stacked=True,
        order=("used", "cached", "buffers", "free"),
    ),
    Chart(
        "Load average",
        "number",
        tuple(
            Measure(f"irca.system.load.{span}", "{thread}", "gauge", label=title)
            for span, title in (("1m", "1 min"), ("5m", "5 min"), ("15m", "15 min"))
        ),
    ),
    Chart("Network", "bytes/s", (Measure("system.network.io", "By", "counter", by=("network.io.direction",), where=(_NOT_LOOPBACK,)),)),
    Chart("Disk I/O", "bytes/s", (Measure("system.disk.io", "By", "counter", by=("disk.io.direction",)),)),
    Chart(
        "Filesystem use",
        "ratio",
        (Measure("system.filesystem.utilization", "1", "gauge", by=("system.filesystem.mountpoint",), aggregate="max"),),
        maximum=1.0,
    ),
)

CONTAINER_CHARTS = (
    Chart("Container CPU, in cores", "number", (Measure("container.cpu.usage", "{cpu}", "gauge", by=("container.name",)),)),
    Chart("Container memory", "bytes", (Measure("container.memory.usage", "By", "updowncounter", by=("container.name",)),)),
    Chart("Network of all containers", "bytes/s", (Measure("container.network.io", "By", "counter", by=("network.io.direction",)),)),
    Chart("Disk I/O of all containers", "bytes/s", (Measure("container.disk.io", "By", "counter", by=("disk.io.direction",)),)),
)

CONTAINER_PAGE_CHARTS = (
    Chart("CPU, in cores", "number", (Measure("container.cpu.usage", "{cpu}", "gauge", label="CPU"),)),
    Chart(
        "Memory",
        "bytes",
        (
            Measure("container.memory.working_set", "By", "updowncounter", label="working set"),
            Measure("container.memory.usage", "By", "updowncounter", label="with page cache"),
            Measure("irca.container.memory.limit", "By", "updowncounter", label="limit"),
        ),
    ),
    Chart("Network", "bytes/s", (Measure("container.network.io", "By", "counter", by=("network.io.direction",)),)),
    Chart("Block I/O", "bytes/s", (Measure("container.disk.io", "By", "counter", by=("disk.io.direction",)),)),
    Chart("Processes", "number", (Measure("irca.container.process.count", "{process}", "updowncounter", label="processes"),)),
    Chart("Restarts", "number", (Measure("irca.container.restart.count", "{restart}", "updowncounter", label="restarts"),)),
)
"""What a container's own page draws."""

CLUSTER_CHARTS = (
    Chart(
        "Pods by phase",
        "number",
        (Measure("k8s.pod.status.phase", "{pod}", "updowncounter", by=("k8s.pod.status.phase",)),),
        stacked=True,
    ),
    Chart(
        "Pods of deployments",
        "number",
        (
            Measure("k8s.deployment.pod.desired", "{pod}", "updowncounter", label="desired"),
            Measure("k8s.deployment.pod.available", "{pod}", "updowncounter", label="available"),
        ),
    ),
    Chart(
        "Ready containers",
        "number",
        (Measure("k8s.container.ready", "{container}", "updowncounter", by=("k8s.namespace.name",)),),
        stacked=True,
    ),
    Chart(
        "Container restarts", "number", (Measure("k8s.container.restart.count", "{restart}", "updowncounter", by=("k8s.namespace.name",)),)
    ),
)

CHARTS: Mapping[str, tuple[Chart, ...]] = {"docker": CONTAINER_CHARTS, "kubernetes": CLUSTER_CHARTS, "server": HOST_CHARTS}
"""Charts by agent type. A type without a row has its charts made from the metrics that it sends."""

RANGES: Mapping[str, TimeRange] = {
    r.name: r
    for r in (
        TimeRange("15m", "15 min", 900, 10, 60),
        TimeRange("1h", "1 hour", 3_600, 15, 60),
        TimeRange("6h", "6 hours", 21_600, 90, 180),
        TimeRange("24h", "24 hours", 86_400, 300, 600),
    )
}
DEFAULT_RANGE = RANGES["15m"]


def container_charts(container_id: str) -> tuple[Chart, ...]:
    """The charts of one container."""
    only = (Condition("container.id", "=", container_id),)
    return tuple(
        replace(chart, measures=tuple(replace(measure, where=measure.where + only) for measure in chart.measures))
        for chart in CONTAINER_PAGE_CHARTS
    )


def queries(chart: Chart, instance_id: str, window: int) -> list[Query]:
    """What the browser asks for this chart of this instance; ``window`` is the rate window in seconds."""
    return [
        Query(
            promql(measure, instance_id, window),
            tuple(prometheus_label(attribute) for attribute in measure.by),
            measure.label or measure.metric,
        )
        for measure in chart.measures
    ]


def promql(measure: Measure, instance_id: str, window: int) -> str:
    """The measure of one instance as PromQL."""
    matchers = [f"instance={quoted(instance_id)}"]
    matchers += [f"{prometheus_label(c.attribute)}{c.operator}{quoted(c.value)}" for c in measure.where]
    selector = f"{prometheus_name(measure.metric, measure.unit, measure.kind)}{{{','.join(matchers)}}}"
    if measure.kind == "counter":
        selector = f"rate({selector}[{window}s])"
    grouping = f" by ({', '.join(prometheus_label(attribute) for attribute in measure.by)})" if measure.by else ""
    return f"{measure.aggregate}{grouping} ({selector})"


def generic_charts(
    metrics: Sequence[tuple[str, str, MetricKind]], attributes: Mapping[str, Sequence[str]], limit: int = 6
) -> tuple[Chart, ...]:
    """One chart for each of the first ``limit`` metrics (name, unit, kind), split by the attributes that its series differ in."""
    return tuple(
        Chart(
            name,
            _display_unit(unit, kind),
            (Measure(name, unit, kind, by=tuple(attributes.get(name, ())), label=name),),
        )
        for name, unit, kind in metrics[:limit]
    )


def _display_unit(unit: str, kind: MetricKind) -> Unit:
    if unit == "By":
        return "bytes/s" if kind == "counter" else "bytes"
    return "ratio" if unit == "1" and kind == "gauge" else "number"
