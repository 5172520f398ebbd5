"""What is explored, as the URL says it: where, which metrics, over which time, how grouped.

Pure planning: the text of a query string in, PromQL and links out.
"""

from __future__ import annotations

import math
import re
import urllib.parse
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

from app.errors import PlatformError
from app.telemetry.matching import compile_matchers
from app.telemetry.promql.names import prometheus_label, prometheus_name
from app.telemetry.promql.quoting import quoted
from app.telemetry.store import Matcher, MatchOperator, MetricKind
from app.web.charts import CHARTS, CONTAINER_PAGE_CHARTS, RANGES, Measure, TimeRange

ScopeKind = Literal["instance", "agent", "environment"]
MOST_METRICS = 6
PREVIOUS = "previous"
ONE_LINE = "none"
"""What ``by`` says to have everything in one line."""
AGGREGATES = ("sum", "avg", "max", "min")
SEVERITIES = {"": None, "warn": 13, "error": 17}
NO_EVENTS = "none"
SPANS: Mapping[str, TimeRange] = {
    **RANGES,
    "7d": TimeRange("7d", "7 days", 604_800, 3_600, 7_200),
    "30d": TimeRange("30d", "30 days", 2_592_000, 14_400, 28_800),
}
DEFAULT_SPAN = SPANS["1h"]

_STEPS = (1, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 14_400, 28_800, 86_400)
_POINTS = 260
_LEAST_WINDOW = 60
_SMOOTHED_FROM = 60
"""Steps longer than this hold several samples; a line through single ones of them would miss what happened between."""
_EARLIEST, _LATEST = 0.0, 4_102_444_800.0
_CONDITION = re.compile(r"\s*([^\s=!~]+)\s*(=~|!~|!=|=)(.*)", re.DOTALL)
_CUMULATIVE_PARTS = ("_bucket", "_count", "_sum")
_WHEN = "must be a time such as 2026-01-31 14:00, in UTC unless it says its zone"
_MEASURES: Mapping[str, Measure] = {
    measure.metric: measure
    for charts in (CONTAINER_PAGE_CHARTS, *CHARTS.values())  # what an instance's page groups by goes before a container's
    for chart in charts
    for measure in chart.measures
}


@dataclass(frozen=True, slots=True)
class Scope:
    """Where series are looked for: one instance, all of an agent, or all of an environment (by its name)."""

    kind: ScopeKind
    id: str

    @classmethod
    def read(cls, text: str) -> Scope | None:
        """The scope that ``text`` (``instance:<id>``) names; None when it names none."""
        kind, _, identifier = text.partition(":")
        if not identifier:
            return None
        for known in ("instance", "agent", "environment"):
            if kind == known:
                return cls(known, identifier)
        return None

    def __str__(self) -> str:
        return f"{self.kind}:{self.id}"

    @property
    def matcher(self) -> Matcher:
        """The condition that its series meet: the label that the platform sets has the kind's name."""
        return Matcher(self.kind, "=", self.id)


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time in seconds since 1970, the step between its points, and the window of rates."""

    start: int
    end: int
    step: int
    window: int

    @property
    def seconds(self) -> int:
        """How long it is."""
        return self.end - self.start

    @property
    def times(self) -> list[int]:
        """Its points; first and last included."""
        return list(range(self.start, self.end + 1, self.step))


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric that can be drawn. ``attributes`` are those that its points are documented to have."""

    name: str
    unit: str
    kind: MetricKind
    meaning: str = ""
    attributes: tuple[str, ...] = ()

    @property
    def rated(self) -> bool:
        """Whether it only ever counts up, and so is shown as its rate a second."""
        return self.kind == "counter" or (self.kind in ("histogram", "summary") and self.name.endswith(_CUMULATIVE_PARTS))


@dataclass(frozen=True, slots=True)
class Asked:
    """The state of the page as its URL has it, texts that may be wrong included."""

    scope: str = ""
    metrics: tuple[str, ...] = ()
    range: str = ""
    start: str = ""
    end: str = ""
    by: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    aggregate: str = ""
    compare: str = ""
    severity: str = ""
    find: str = ""

    @classmethod
    def read(cls, pairs: Iterable[tuple[str, str]]) -> Asked:
        """From the pairs of a query string; names that are not of this page are ignored."""
        given: dict[str, list[str]] = {}
        for name, value in pairs:
            if value.strip():
                given.setdefault(name, []).append(value.strip())

        def one(name: str) -> str:
            return given.get(name, [""])[-1]

        def each(name: str) -> tuple[str, ...]:
            return tuple(dict.fromkeys(given.get(name, ())))

        scope = one("scope") or next((f"{kind}:{one(kind)}" for kind in ("instance", "agent", "environment") if one(kind)), "")
        return cls(
            scope=scope,
            metrics=each("metric"),
            range=one("range"),
            start=one("from"),
            end=one("to"),
            by=tuple(dict.fromkeys(name for text in each("by") for name in text.split(",") if name)),
            where=each("where"),
            aggregate=one("agg"),
            compare=one("compare"),
            severity=one("severity"),
            find=one("find"),
        )

    def pairs(self) -> list[tuple[str, str]]:
        """The same as pairs of a query string; what is not set is left out."""
        single = {
            "scope": self.scope,
            "range": self.range,
            "from": self.start,
            "to": self.end,
            "agg": self.aggregate,
            "compare": self.compare,
            "severity": self.severity,
            "find": self.find,
        }
        pairs = [(name, value) for name, value in single.items() if value]
        for name, values in (("metric", self.metrics), ("by", self.by), ("where", self.where)):
            pairs += [(name, value) for value in values]
        return pairs

    @property
    def url(self) -> str:
        """The page in this state."""
        query = urllib.parse.urlencode(self.pairs())
        return "/explore" + (f"?{query}" if query else "")

    def over(self, start: int, end: int) -> Asked:
        """The same between two times, in seconds."""
        return replace(self, range="", start=instant_text(start), end=instant_text(end))


@dataclass(slots=True)
class Plan:
    """What is to be read. ``errors`` holds a sentence for each field that was not understood and was therefore left out."""

    asked: Asked
    span: Span
    chosen: str
    """The name of the range, empty for one that was entered."""
    where: tuple[tuple[str, MatchOperator, str], ...] = ()
    errors: dict[str, str] = field(default_factory=dict)


def plan(asked: Asked, now: float) -> Plan:
    """What ``asked`` comes to at the time ``now``; whatever is wrong becomes an error of its field and its default."""
    errors: dict[str, str] = {}
    span, chosen = _span(asked, now, errors)
    conditions = []
    for text in asked.where:
        condition = _condition(text)
        if condition is None:
            errors["where"] = f"{text!r} is no condition: write cpu.mode=user, cpu.mode!=idle or cpu.mode=~user|system"
        else:
            conditions.append(condition)
    if asked.aggregate and asked.aggregate not in AGGREGATES:
        errors["agg"] = f"must be one of {', '.join(AGGREGATES)}"
    if asked.severity not in {*SEVERITIES, NO_EVENTS}:
        errors["severity"] = "must be warn, error or none"
    if len(asked.metrics) > MOST_METRICS:
        errors["metric"] = f"at most {MOST_METRICS} at a time; the first {MOST_METRICS} are shown"
    return Plan(asked, span, chosen, tuple(conditions), errors)


def span_between(start: float, end: float) -> Span:
    """The stretch between two times on whole steps, in at most some 260 of them."""
    step = next((step for step in _STEPS if (end - start) / step <= _POINTS), 0) or math.ceil((end - start) / _POINTS / 86_400) * 86_400
    first = math.floor(start / step) * step
    last = max(first + step, math.floor(end / step) * step)
    return Span(first, last, step, max(_LEAST_WINDOW, 2 * step))


def _span(asked: Asked, now: float, errors: dict[str, str]) -> tuple[Span, str]:
    if asked.start or asked.end:
        start = _moment("from", asked.start, now - DEFAULT_SPAN.seconds, errors)
        end = _moment("to", asked.end, now, errors)
        if start is not None and end is not None:
            if start >= end:
                errors["from"] = "must be before the end"
            elif start >= now:
                errors["from"] = "lies in the future"
            else:
                return span_between(start, min(end, now)), ""
    elif asked.range and asked.range not in SPANS:
        errors["range"] = f"must be one of {', '.join(SPANS)}"
    chosen = SPANS.get(asked.range, DEFAULT_SPAN)
    end_of_it = math.floor(now / chosen.step) * chosen.step
    return Span(end_of_it - chosen.seconds, end_of_it, chosen.step, chosen.window), chosen.name


def _moment(name: str, text: str, default: float, errors: dict[str, str]) -> float | None:
    if not text:
        return default
    try:
        found = datetime.fromisoformat(text)
        seconds = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        seconds = math.nan
    if not _EARLIEST <= seconds <= _LATEST:
        errors[name] = _WHEN
        return None
    return seconds


def _condition(text: str) -> tuple[str, MatchOperator, str] | None:
    found = _CONDITION.fullmatch(text)
    if found is None:
        return None
    attribute, operator, value = found[1], found[2], found[3].strip()
    for known in ("=~", "!~", "!=", "="):
        if operator == known:
            try:
                compile_matchers([Matcher(attribute, known, value)])
            except PlatformError:
                return None
            return attribute, known, value
    return None


def grouping(metric: Metric, asked: Asked, scope: Scope, attributes: Collection[str]) -> tuple[str, ...]:
    """The attributes that tell the lines of ``metric`` apart, chosen where the URL does not say; ``attributes`` are those of its series."""
    if ONE_LINE in asked.by:
        return ()
    if asked.by:
        return tuple(name for name in asked.by if name in attributes)
    if scope.kind != "instance":
        return ("instance",)
    measure = _MEASURES.get(metric.name)
    wanted = measure.by if measure is not None else metric.attributes
    if measure is None and "container.name" in attributes:
        wanted = ("container.name", *wanted)
    return tuple(name for name in dict.fromkeys(wanted) if name in attributes)


def aggregate_of(metric: Metric, asked: Asked) -> str:
    """How series of one line become one: as asked, as the instance's page does it, or by the kind of the metric."""
    if asked.aggregate in AGGREGATES:
        return asked.aggregate
    if metric.name in _MEASURES:
        return _MEASURES[metric.name].aggregate
    return "sum" if metric.rated or metric.kind == "updowncounter" else "avg"


def expression(metric: Metric, scope: Scope, planned: Plan, by: Sequence[str]) -> str:
    """The metric's lines in PromQL."""
    matchers = [f"{scope.kind}={quoted(scope.id)}"]
    matchers += [f"{prometheus_label(name)}{operator}{quoted(value)}" for name, operator, value in planned.where]
    selector = f"{prometheus_name(metric.name, metric.unit, metric.kind)}{{{','.join(matchers)}}}"
    aggregate, span = aggregate_of(metric, planned.asked), planned.span
    if metric.rated:
        selector = f"rate({selector}[{span.window}s])"
    elif span.step > _SMOOTHED_FROM:
        selector = f"{aggregate if aggregate in ('max', 'min') else 'avg'}_over_time({selector}[{span.step}s])"
    grouped = f" by ({', '.join(prometheus_label(name) for name in by)})" if by else ""
    return f"{aggregate}{grouped} ({selector})"


def instant_text(seconds: float) -> str:
    """A time as the URL has it: ISO 8601 in UTC to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def around(time: datetime, before: float = 1_800, after: float = 1_800) -> tuple[str, str]:
    """The two ends of a range around ``time``, as the URL has them."""
    at = time.timestamp()
    return instant_text(at - before), instant_text(at + after)
