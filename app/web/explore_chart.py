"""A panel of the explorer: its lines with their figures, its drawing as SVG paths, and the marks of events. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from app.events.views import EventView
from app.telemetry.promql.engine import Result
from app.telemetry.promql.model import Vector
from app.telemetry.promql.names import prometheus_label
from app.web.charts import Unit
from app.web.explore import Metric, Span
from app.web.formats import format_value

MOST_LINES = 10
WIDTH, HEIGHT = 1000.0, 200.0
"""The drawing's own units; the page stretches it."""
_TICKS = 4
_NONE = "\N{EN DASH}"

Values = tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Track:
    """What a query gave for one line: a value, or None, at each point of the range."""

    label: str
    values: Values


@dataclass(frozen=True, slots=True)
class Line:
    """A line with its figures as texts. ``before`` is what it is compared with, ``change`` the difference of the averages."""

    label: str
    place: int
    values: Values
    last: str
    least: str
    average: str
    most: str
    before: Values | None = None
    average_before: str = ""
    change: str = ""


@dataclass(frozen=True, slots=True)
class Axis:
    """The value axis: its ends, and its ticks as texts from the top down, evenly apart."""

    low: float
    high: float
    ticks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drawing:
    """The chart as SVG: a path for each line (its place, whether it is the dashed one); grid lines as heights."""

    axis: Axis
    paths: tuple[tuple[int, bool, str], ...]
    grid: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """Events at nearly the same time: where they stand (of :data:`WIDTH`), when, the first's number in the list, the worst's severity."""

    x: float
    time: float
    number: int
    count: int
    severity: str
    title: str


def tracks(result: Result, by: Sequence[str], metric: Metric, names: Mapping[str, str]) -> list[Track]:
    """The lines of a query's answer. ``names`` has what to call the values of the attribute ``instance``."""
    if not isinstance(result.value, Vector):
        return []
    keys = [(name, prometheus_label(name)) for name in by]
    found = []
    for place, labels in enumerate(result.value.labels):
        held = dict(labels)
        parts = [names.get(held.get(key, ""), held.get(key, "")) if name == "instance" else held.get(key, "") for name, key in keys]
        row = zip(result.value.values[place].tolist(), result.value.present[place].tolist(), strict=True)
        values = tuple(value if present and math.isfinite(value) else None for value, present in row)
        if any(value is not None for value in values):
            found.append(Track(" ".join(part for part in parts if part) or (metric.name if not by else "(none)"), values))
    return found


def top(found: Sequence[Track]) -> tuple[list[Track], int]:
    """The lines with the greatest averages, greatest first, and how many others there are."""
    ranked = sorted(found, key=lambda track: (-_mean(track.values), track.label))
    return ranked[:MOST_LINES], max(0, len(ranked) - MOST_LINES)


def with_figures(shown: Sequence[Track], compared: Sequence[Track] | None, text: Callable[[float], str]) -> list[Line]:
    """The lines with their figures; ``compared`` are those of the other period or instance, matched by their labels."""
    others = None if compared is None else {track.label: track.values for track in compared}
    lines = []
    for place, track in enumerate(shown, 1):
        known = [value for value in track.values if value is not None]
        before = None if others is None else others.get(track.label, (None,) * len(track.values))
        average = math.fsum(known) / len(known)
        earlier = _mean(before) if before is not None and any(v is not None for v in before) else None
        lines.append(
            Line(
                track.label,
                place,
                track.values,
                text(known[-1]),
                text(min(known)),
                text(average),
                text(max(known)),
                before,
                _NONE if earlier is None else text(earlier),
                _NONE if earlier is None else change(earlier, average),
            )
        )
    return lines


def change(before: float, now: float) -> str:
    """By how much ``now`` differs from ``before``, in per cent; beyond a tenfold as a multiple."""
    if before == 0:
        return "±0 %" if now == 0 else "new"
    share = (now - before) / abs(before)
    if share >= 9:  # noqa: PLR2004 - a tenfold
        return f"{now / before:.0f} times"
    text = f"{share * 100:+.0f} %"
    return "±0 %" if text[1:] == "0 %" else text.replace("-", "\N{MINUS SIGN}")


def unit_of(metric: Metric) -> tuple[Unit, str]:
    """How values of a metric read: the page's unit, and what is written behind a plain number."""
    if metric.unit == "By":
        return ("bytes/s" if metric.rated else "bytes"), ""
    if metric.unit == "1" and metric.kind == "gauge":
        return "ratio", ""
    plain = "" if metric.unit == "1" else metric.unit.strip("{}")
    return "number", f"{plain}/s" if metric.rated else plain


def text_of(metric: Metric) -> Callable[[float], str]:
    """What writes a value of the metric."""
    unit, suffix = unit_of(metric)
    return lambda value: format_value(value, unit) + (f" {suffix}" if suffix else "")


def drawing(lines: Sequence[Line], metric: Metric) -> Drawing:
    """The lines as paths, those they are compared with first, so that they lie beneath."""
    axis = axis_of(
        [value for line in lines for values in (line.values, line.before or ()) for value in values if value is not None], metric
    )
    paths = [(line.place, True, _path(line.before, axis)) for line in lines if line.before is not None]
    paths += [(line.place, False, _path(line.values, axis)) for line in lines]
    steps = len(axis.ticks) - 1
    grid = tuple(round(HEIGHT * place / steps, 1) for place in range(steps + 1))
    return Drawing(axis, tuple(one for one in paths if one[2]), grid)


def axis_of(values: Sequence[float], metric: Metric) -> Axis:
    """An axis that holds the values, from zero where they are on one side of it, with round ticks."""
    low, high = min(0.0, *values, 0.0), max(0.0, *values, 0.0)
    if high == low:
        high = 1.0
    step = _round_step((high - low) / _TICKS, binary=metric.unit == "By")
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    text = text_of(metric)
    return Axis(first * step, last * step, tuple(text(place * step) for place in range(last, first - 1, -1)))


def ticks_of_time(span: Span, count: int = 5) -> list[float]:
    """Times evenly apart from the beginning to the end, in seconds."""
    return [span.start + span.seconds * place / (count - 1) for place in range(count)]


def marks(events: Sequence[EventView], span: Span) -> list[Mark]:
    """The events on the axis of time, oldest first; those that would lie on one another are one mark. Numbers count from 1 as listed."""
    apart = span.seconds / 120
    found: list[list[tuple[int, EventView]]] = []
    for number, event in sorted(enumerate(events, 1), key=lambda pair: pair[1].time):
        if found and (event.time - found[-1][0][1].time).total_seconds() < apart:
            found[-1].append((number, event))
        else:
            found.append([(number, event)])
    return [_mark(group, span) for group in found]


def _mark(group: Sequence[tuple[int, EventView]], span: Span) -> Mark:
    severities = [event.severity for _, event in group]
    worst = next((one for one in ("fatal", "error", "warn") if one in severities), "info")
    number, first = next((number, event) for number, event in group if worst in (event.severity, "info"))
    time = first.time.timestamp()
    title = first.body or first.name
    more = f" and {len(group) - 1} more" if len(group) > 1 else ""
    x = min(WIDTH, max(0.0, (time - span.start) / span.seconds * WIDTH))
    return Mark(round(x, 1), time, number, len(group), worst, f"{title}{more}")


def _path(values: Values, axis: Axis) -> str:
    """A path with a gap wherever there is no value."""
    parts: list[str] = []
    drawn = False
    across = WIDTH / max(1, len(values) - 1)
    for place, value in enumerate(values):
        if value is not None:
            y = HEIGHT * (axis.high - value) / (axis.high - axis.low)
            alone = not drawn and (place + 1 == len(values) or values[place + 1] is None)
            parts.append(f"{'L' if drawn else 'M'}{place * across:.1f} {y:.1f}{'h1' if alone else ''}")
        drawn = value is not None
    return "".join(parts)


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else 0.0


def _round_step(least: float, *, binary: bool) -> float:
    if binary:
        return float(2.0 ** math.ceil(math.log2(least)))
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9))
