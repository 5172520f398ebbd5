"""Evaluation of a parsed query over series that were fetched before: pure computation, meant for a thread.

What has to be fetched is a function of the tree and the steps (:func:`fetches`), and evaluation looks the answers up under the same
keys. The semantics are those of Prometheus 2: look-back and ranges include both of their ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.errors import QueryTooLargeError
from app.telemetry.promql import functions
from app.telemetry.promql.aggregate import aggregate
from app.telemetry.promql.binary import combine
from app.telemetry.promql.errors import QueryExecutionError
from app.telemetry.promql.model import (
    Floats,
    Grid,
    LabelSet,
    Limits,
    Mask,
    RangeVector,
    Scalar,
    Series,
    String,
    Times,
    Value,
    Vector,
    is_stale,
    without_name,
)
from app.telemetry.promql.parse import (
    ELEMENTWISE_FUNCTIONS,
    RANGE_FUNCTIONS,
    Aggregate,
    At,
    Binary,
    Call,
    Negate,
    Node,
    Number,
    Range,
    Selector,
    Subquery,
    Text,
    children,
)
from app.telemetry.promql.windows import WINDOW_FUNCTIONS, Windows
from app.telemetry.store import NAME, Matcher

LOOKBACK_MS = 300_000
"""How far an instant selector looks back for a sample."""
DEFAULT_SUBQUERY_STEP_MS = 60_000
_MAX_SUBQUERY_STEPS = 1_000_000
_CHECK_EVERY = 128


@dataclass(frozen=True, slots=True)
class Fetch:
    """Samples that a query needs: of series that meet ``matchers``, between two times (inclusive, milliseconds)."""

    matchers: tuple[Matcher, ...]
    start_ms: int
    end_ms: int


def fetches(node: Node, grid: Grid) -> Iterator[Fetch]:
    """What evaluating ``node`` at the steps of ``grid`` needs."""
    if isinstance(node, Selector):
        yield _fetch(node, grid, LOOKBACK_MS)
    elif isinstance(node, Range):
        yield _fetch(node.selector, grid, node.range_ms)
    elif isinstance(node, Subquery):
        yield from fetches(node.expr, _inner_grid(node, grid))
    else:
        for child in children(node):
            yield from fetches(child, grid)


def _fetch(selector: Selector, grid: Grid, behind_ms: int) -> Fetch:
    ends = _ends(grid, selector.offset_ms, selector.at)
    return Fetch(selector.matchers, int(ends[0]) - behind_ms, int(ends[-1]))


def _ends(grid: Grid, offset_ms: int, at: At) -> Times:
    """The times that a selector looks at, one for each step."""
    if at is None:
        return grid.times - offset_ms
    moment = {"start": grid.start_ms, "end": grid.end_ms}[at] if isinstance(at, str) else at
    return np.full(len(grid.times), moment - offset_ms, dtype=np.int64)


def _inner_grid(node: Subquery, grid: Grid) -> Grid:
    """A subquery's own steps: multiples of its step, from within the first window to the end of the last."""
    ends = _ends(grid, node.offset_ms, node.at)
    step = node.step_ms or DEFAULT_SUBQUERY_STEP_MS
    first = -((int(ends[0]) - node.range_ms) // -step) * step
    if (int(ends[-1]) - first) // step >= _MAX_SUBQUERY_STEPS:
        raise QueryTooLargeError(f"a subquery has more than {_MAX_SUBQUERY_STEPS:,} steps")
    times = np.arange(first, int(ends[-1]) + 1, step, dtype=np.int64)
    if not len(times):  # the window lies between two steps: the step behind it is in no window, but well-formed
        times = np.array([first], dtype=np.int64)
    return Grid(times, grid.start_ms, grid.end_ms)


@dataclass(slots=True)
class Evaluation:
    """One query under way: the fetched series and what the query may use."""

    data: Mapping[Fetch, Sequence[Series]]
    limits: Limits

    def run(self, node: Node, grid: Grid) -> Value:
        """The value of ``node`` at the steps of ``grid``.

        Raises:
            QueryExecutionError: the series cannot be combined as asked.
            QueryTimeoutError: the deadline has passed.
            QueryTooLargeError: an intermediate result is too large.
        """
        with np.errstate(all="ignore"):  # infinities and NaN are results here, not mistakes
            return self._value(node, grid)

    def _value(self, node: Node, grid: Grid) -> Value:
        self.limits.check_deadline()
        steps = len(grid.times)
        if isinstance(node, Number):
            return Scalar(np.full(steps, node.value))
        if isinstance(node, Text):
            return String(node.value)
        if isinstance(node, Selector):
            return self._instant(node, grid)[0]
        if isinstance(node, Range | Subquery):
            return self._range(node, grid)
        if isinstance(node, Negate):
            value = self._value(node.expr, grid)
            return Scalar(-value.values) if isinstance(value, Scalar) else functions.mapped(_vector(value), -_vector(value).values)
        if isinstance(node, Aggregate):
            parameter = None if node.param is None else self._value(node.param, grid)
            vector = _vector(self._value(node.expr, grid))
            return aggregate(node.operator, vector, parameter, node.labels, without=node.without)
        if isinstance(node, Binary):
            return combine(node, self._value(node.lhs, grid), self._value(node.rhs, grid), self.limits)
        return self._call(node, grid)

    def _instant(self, node: Selector, grid: Grid) -> tuple[Vector, Floats]:
        """The latest sample of each series within the look-back, and the samples' times in seconds."""
        series = self.data[_fetch(node, grid, LOOKBACK_MS)]
        ends = _ends(grid, node.offset_ms, node.at)
        self.limits.check_cells(len(series), len(ends))
        values = np.zeros((len(series), len(ends)))
        present = np.zeros((len(series), len(ends)), dtype=bool)
        times = np.zeros((len(series), len(ends)))
        found: _Positions = {}
        for row, one in enumerate(series):
            self._breathe(row)
            index, there = _latest(one.times, ends, found)
            chosen = one.values[index]
            values[row] = chosen
            present[row] = there & ~is_stale(chosen)
            times[row] = one.times[index] / 1000.0
        rows = np.flatnonzero(present.any(axis=1)).tolist()
        labels = [series[row].labels for row in rows]
        if len(rows) < len(series):
            values, present, times = values[rows], present[rows], times[rows]
        return Vector(labels, values, present), times

    def _range(self, node: Range | Subquery, grid: Grid) -> RangeVector:
        if isinstance(node, Range):
            ends = _ends(grid, node.selector.offset_ms, node.selector.at)
            series = [_without_stale(one) for one in self.data[_fetch(node.selector, grid, node.range_ms)]]
        else:
            ends = _ends(grid, node.offset_ms, node.at)
            inner = _inner_grid(node, grid)
            vector = _vector(self._value(node.expr, inner))
            series = [
                Series(labels, inner.times[there], values[there])
                for labels, values, there in zip(vector.labels, vector.values, vector.present, strict=True)
            ]
        return RangeVector([one for one in series if len(one.times)], ends, node.range_ms)

    def _breathe(self, row: int) -> None:
        if row % _CHECK_EVERY == 0:
            self.limits.check_deadline()

    def _call(self, node: Call, grid: Grid) -> Scalar | Vector:  # noqa: C901, PLR0911, PLR0912 - one branch for each kind of function
        name, args, steps = node.function, node.args, len(grid.times)
        if name in ("absent", "absent_over_time"):
            return self._absent(args[0], grid)
        if name in RANGE_FUNCTIONS:
            return self._over_time(node, grid)
        if name in ELEMENTWISE_FUNCTIONS:
            vector = self._vector(args[0], grid)
            return functions.mapped(vector, functions.ELEMENTWISE[name](vector.values))
        if name == "time":
            return Scalar(grid.times / 1000.0)
        if name == "pi":
            return Scalar(np.full(steps, np.pi))
        if name == "timestamp":
            return self._timestamp(args[0], grid)
        if name == "vector":
            return Vector([()], self._scalar(args[0], grid)[None, :], np.ones((1, steps), dtype=bool))
        if name == "scalar":
            return _only_element(self._vector(args[0], grid))
        if name == "round":
            return functions.rounded(self._vector(args[0], grid), self._scalar(args[1], grid) if len(args) > 1 else np.ones(steps))
        if name.startswith("clamp"):
            bounds = [self._scalar(arg, grid) for arg in args[1:]]
            least = bounds[0] if name != "clamp_max" else None
            greatest = bounds[-1] if name != "clamp_min" else None
            return functions.clamped(self._vector(args[0], grid), least, greatest)
        if name == "label_replace":
            target, replacement, source, pattern = (_text(arg) for arg in args[1:])
            return functions.label_replace(self._vector(args[0], grid), target, replacement, source, pattern)
        if name == "label_join":
            target, separator, *sources = (_text(arg) for arg in args[1:])
            return functions.label_join(self._vector(args[0], grid), target, separator, sources)
        if name == "histogram_quantile":
            return functions.histogram_quantile(self._vector(args[1], grid), self._scalar(args[0], grid))
        return functions.ordered(self._vector(args[0], grid), descending=name == "sort_desc")

    def _over_time(self, node: Call, grid: Grid) -> Vector:
        function = WINDOW_FUNCTIONS[node.function]
        *parameters, ranged = node.args
        parameter = self._scalar(parameters[0], grid) if parameters else None
        vector = self._value(ranged, grid)
        if not isinstance(vector, RangeVector):  # pragma: no cover - the parser has checked it
            raise QueryExecutionError(f"{node.function}() takes a range vector")
        steps = len(grid.times)
        self.limits.check_cells(len(vector.series), steps)
        values = np.zeros((len(vector.series), steps))
        present = np.zeros((len(vector.series), steps), dtype=bool)
        found: _Edges = {}
        for row, one in enumerate(vector.series):
            self._breathe(row)
            lo, hi = _edges(one.times, vector, found)
            values[row], present[row] = function(Windows(one.times, one.values, lo, hi, vector.ends, vector.range_ms, parameter))
        rows = np.flatnonzero(present.any(axis=1)).tolist()
        labels = [vector.series[row].labels for row in rows]
        if node.function != "last_over_time":
            labels = [without_name(label_set) for label_set in labels]
            if len(set(labels)) < len(labels):
                raise QueryExecutionError("vector cannot contain metrics with the same labelset")
        return Vector(labels, values[rows], present[rows])

    def _absent(self, arg: Node, grid: Grid) -> Vector:
        value = self._value(arg, grid)
        steps = len(grid.times)
        there: Mask = np.zeros(steps, dtype=bool)
        if isinstance(value, RangeVector):
            found: _Edges = {}
            for one in value.series:
                lo, hi = _edges(one.times, value, found)
                there |= hi > lo
        else:
            there |= _vector(value).present.any(axis=0)
        return Vector([_absent_labels(arg)], np.ones((1, steps)), ~there[None, :])

    def _timestamp(self, arg: Node, grid: Grid) -> Vector:
        if isinstance(arg, Selector):
            vector, times = self._instant(arg, grid)
            return functions.mapped(vector, times)
        vector = self._vector(arg, grid)
        return functions.mapped(vector, np.broadcast_to(grid.times / 1000.0, vector.values.shape))

    def _vector(self, node: Node, grid: Grid) -> Vector:
        return _vector(self._value(node, grid))

    def _scalar(self, node: Node, grid: Grid) -> Floats:
        value = self._value(node, grid)
        if not isinstance(value, Scalar):  # pragma: no cover - the parser has checked it
            raise QueryExecutionError("expected a scalar")
        return value.values


_Positions = dict[int, tuple[Times, "tuple[Times, Mask]"]]
_Edges = dict[int, tuple[Times, "tuple[Times, Times]"]]
"""Searches by the identity of the times searched: series that were written together share them. The times are kept alive beside."""


def _latest(times: Times, ends: Times, found: _Positions) -> tuple[Times, Mask]:
    """Index of the last sample at or before each of ``ends``, and whether it lies within the look-back."""
    known = found.get(id(times))
    if known is None:
        index = np.searchsorted(times, ends, side="right") - 1
        there = index >= 0
        index = np.maximum(index, 0)
        there &= times[index] >= ends - LOOKBACK_MS
        known = found[id(times)] = (times, (index, there))
    return known[1]


def _edges(times: Times, vector: RangeVector, found: _Edges) -> tuple[Times, Times]:
    known = found.get(id(times))
    if known is None:
        lo = np.searchsorted(times, vector.ends - vector.range_ms, side="left")
        hi = np.searchsorted(times, vector.ends, side="right")
        known = found[id(times)] = (times, (lo, hi))
    return known[1]


def _without_stale(series: Series) -> Series:
    stale = is_stale(series.values)
    return Series(series.labels, series.times[~stale], series.values[~stale]) if stale.any() else series


def _only_element(vector: Vector) -> Scalar:
    """The element of each step that has exactly one; NaN at the others."""
    if not len(vector.labels):
        return Scalar(np.full(vector.values.shape[1], np.nan))
    total = np.where(vector.present, vector.values, 0.0).sum(axis=0)
    return Scalar(np.where(vector.present.sum(axis=0) == 1, total, np.nan))


def _absent_labels(arg: Node) -> LabelSet:
    """Labels for an absent series: those that the selector demands with ``=``, once each."""
    selector = arg.selector if isinstance(arg, Range) else arg
    if not isinstance(selector, Selector):
        return ()
    labels: dict[str, str] = {}
    seen: set[str] = set()
    for matcher in selector.matchers:
        if matcher.name == NAME:
            continue
        if matcher.operator == "=" and matcher.name not in seen:
            labels[matcher.name] = matcher.value
            seen.add(matcher.name)
        else:
            labels.pop(matcher.name, None)
    return tuple(sorted((name, value) for name, value in labels.items() if value))


def _vector(value: Value) -> Vector:
    if not isinstance(value, Vector):  # pragma: no cover - the parser has checked it
        raise QueryExecutionError("expected an instant vector")
    return value


def _text(node: Node) -> str:
    if not isinstance(node, Text):  # pragma: no cover - the parser has checked it
        raise QueryExecutionError("expected a string literal")
    return node.value
