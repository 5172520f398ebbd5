"""An instance's latest values, read from the metric store: what a page shows before, and without, any JavaScript."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from app.telemetry.store import NAME, Labels, Matcher, MetricStore, SeriesData
from app.web.charts import CHARTS, Aggregate, Chart, Measure, TimeRange, generic_charts, queries
from app.web.formats import format_otel, format_value

LATEST_WINDOW_MS = 180_000
"""How far back a value still counts as the latest: some missed rounds, but no value of yesterday."""
MAX_SAMPLES = 200_000
CONTAINER_ID = "container.id"
_AGGREGATES: Mapping[Aggregate, Callable[[list[float]], float]] = {
    "sum": math.fsum,
    "avg": lambda values: math.fsum(values) / len(values),
    "max": max,
}
_OWN_LABELS = frozenset({NAME, "agent", "agent_type", "environment", "instance"})


@dataclass(frozen=True, slots=True)
class LegendLine:
    """A line of a chart as text: its name and its latest value."""

    label: str
    value: str


@dataclass(frozen=True, slots=True)
class ChartPanel:
    """A chart as the page holds it: what the browser asks for, as JSON values, and its lines as text."""

    chart: Chart
    queries: list[dict[str, object]]
    lines: list[LegendLine]


@dataclass(frozen=True, slots=True)
class LatestRow:
    """The latest value of one series. ``attributes`` are those that tell it from its siblings."""

    metric: str
    attributes: str
    value: str
    time_ms: int


async def read_latest(
    store: MetricStore, instance_id: str, now_ms: int, agent_type: str = "", *, container_id: str | None = None
) -> list[SeriesData]:
    """The instance's series, or one of its container's, with their samples of the last minutes.

    Of an instance that has containers by the hundred (type docker) only what its charts need of them is read besides its own series.

    Raises:
        PlatformError: the store failed, or there are too many samples for a page.
    """
    instance = Matcher("instance", "=", instance_id)
    wanted = [[instance]]
    if container_id is not None:
        wanted = [[instance, Matcher(CONTAINER_ID, "=", container_id)]]
    elif agent_type == "docker":
        names = sorted({measure.metric for chart in CHARTS[agent_type] for measure in chart.measures})
        charted = Matcher(NAME, "=~", "|".join(re.escape(name) for name in names))
        wanted = [[instance, Matcher(CONTAINER_ID, "=", "")], [instance, Matcher(CONTAINER_ID, "!=", ""), charted]]
    found = [one for matchers in wanted for one in await store.select(matchers, now_ms - LATEST_WINDOW_MS, now_ms, max_samples=MAX_SAMPLES)]
    return [s for s in found if len(s.times)]


def charts_for(agent_type: str, series: Sequence[SeriesData]) -> tuple[Chart, ...]:
    """The charts of an agent type; a type without a row in the table gets them from the metrics that it sends."""
    if agent_type in CHARTS:
        return CHARTS[agent_type]
    metrics = sorted({(s.labels[NAME], s.unit, s.kind) for s in series})
    return generic_charts(metrics, {name: _differing([s.labels for s in series if s.labels[NAME] == name]) for name, _, _ in metrics})


def legend(chart: Chart, series: Sequence[SeriesData]) -> list[LegendLine]:
    """The chart's lines with their latest values, in the chart's order."""
    lines: list[tuple[str, float]] = []
    for measure in chart.measures:
        lines += _evaluate(measure, series)
    if len(chart.measures) == 1:  # lines of several measures keep the order of the measures
        place = {label: at for at, label in enumerate(chart.order)}
        lines.sort(key=lambda line: (place.get(line[0], len(place)), -line[1], line[0]))
    return [LegendLine(label, format_value(value, chart.unit)) for label, value in lines]


def chart_panels(charts: Sequence[Chart], series: Sequence[SeriesData], instance_id: str, chosen: TimeRange) -> list[ChartPanel]:
    """The charts over a range, with the latest values of ``series``."""
    return [
        ChartPanel(
            chart,
            [{"promql": q.promql, "by": q.by, "label": q.label} for q in queries(chart, instance_id, chosen.window)],
            legend(chart, series),
        )
        for chart in charts
    ]


def latest_rows(series: Sequence[SeriesData], resource: Mapping[str, object], limit: int = 300) -> tuple[list[LatestRow], int]:
    """The first ``limit`` series with their latest values, by metric and attributes, and how many were left out."""
    rows = []
    for one in series:
        attributes = ", ".join(f"{k}={v}" for k, v in sorted(one.labels.items()) if k not in _OWN_LABELS and str(resource.get(k)) != v)
        value = format_otel(float(one.values[-1]), one.unit)
        rows.append(LatestRow(one.labels[NAME], attributes, value, int(one.times[-1])))
    rows.sort(key=lambda row: (row.metric, row.attributes))
    return rows[:limit], max(0, len(rows) - limit)


def _evaluate(measure: Measure, series: Iterable[SeriesData]) -> list[tuple[str, float]]:
    groups: dict[tuple[str, ...], list[float]] = {}
    for one in series:
        if one.labels[NAME] != measure.metric or not all(condition.holds(one.labels) for condition in measure.where):
            continue
        value = _rate(one) if measure.kind == "counter" else float(one.values[-1])
        if value is not None and math.isfinite(value):
            groups.setdefault(tuple(one.labels.get(attribute, "") for attribute in measure.by), []).append(value)
    combine = _AGGREGATES[measure.aggregate]
    return [(" ".join(part for part in key if part) or measure.label or measure.metric, combine(values)) for key, values in groups.items()]


def _rate(one: SeriesData) -> float | None:
    if len(one.times) < 2:  # noqa: PLR2004 - a rate needs two samples
        return None
    increase = sum(
        later - earlier if later >= earlier else later
        for earlier, later in zip(one.values[:-1].tolist(), one.values[1:].tolist(), strict=True)
    )
    return float(increase / ((int(one.times[-1]) - int(one.times[0])) / 1000))


def _differing(siblings: Sequence[Labels]) -> list[str]:
    names = sorted({name for labels in siblings for name in labels} - _OWN_LABELS)
    return [name for name in names if len({labels.get(name, "") for labels in siblings}) > 1]
