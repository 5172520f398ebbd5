"""What evaluation works on: the grid of steps, series, and values over the grid.

A value is dense: a *vector* has one row for each label set and one column for each step, with a mask that says where a row has an
element at all (NaN is a value like any other).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.errors import QueryTooLargeError
from app.telemetry.promql.errors import QueryExecutionError, QueryTimeoutError
from app.telemetry.store import NAME

LabelSet = tuple[tuple[str, str], ...]
"""Labels with non-empty values, sorted by name."""

Floats = npt.NDArray[np.float64]
Times = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_STALE_BITS = np.uint64(0x7FF0000000000002)


@dataclass(frozen=True, slots=True)
class Grid:
    """The steps at which an expression is evaluated, in milliseconds; an instant query has one.

    ``start_ms`` and ``end_ms`` are the query's own (for ``@ start()`` and ``@ end()``), also within subqueries.
    """

    times: Times
    start_ms: int
    end_ms: int

    @classmethod
    def of(cls, start_ms: int, end_ms: int, step_ms: int) -> Grid:
        """The steps from ``start_ms`` to at most ``end_ms``."""
        return cls(np.arange(start_ms, end_ms + 1, step_ms, dtype=np.int64), start_ms, end_ms)


@dataclass(frozen=True, slots=True)
class Series:
    """A series as the query sees it."""

    labels: LabelSet
    times: Times
    values: Floats


@dataclass(frozen=True, slots=True)
class Scalar:
    """One number for each step."""

    values: Floats


@dataclass(frozen=True, slots=True)
class String:
    """A string."""

    value: str


@dataclass(frozen=True, slots=True)
class Vector:
    """Elements by label set (rows) and step (columns); ``ordered`` when the order of the rows is part of the answer."""

    labels: Sequence[LabelSet]
    values: Floats
    present: Mask
    ordered: bool = False

    @classmethod
    def empty(cls, steps: int) -> Vector:
        """No elements."""
        return cls([], np.empty((0, steps)), np.empty((0, steps), dtype=bool))


@dataclass(frozen=True, slots=True)
class RangeVector:
    """Samples by series, seen through a window of ``range_ms`` that ends (inclusively) at each of ``ends``. Without stale markers."""

    series: Sequence[Series]
    ends: Times
    range_ms: int


Value = Scalar | String | Vector | RangeVector


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one query may use: seconds, and values (samples fetched by it, or held in one intermediate result)."""

    timeout: float
    max_samples: int


class Limits:
    """An allowance that is being used: the deadline on the monotonic clock, and the samples fetched so far."""

    def __init__(self, allowance: Allowance) -> None:
        self.timeout = allowance.timeout
        self.max_samples = allowance.max_samples
        self.deadline = time.monotonic() + allowance.timeout
        self.fetched = 0

    def check_deadline(self) -> None:
        """Raises QueryTimeoutError once the deadline has passed."""
        if time.monotonic() > self.deadline:
            raise QueryTimeoutError(f"query timed out: it took longer than {self.timeout:g} s")

    def check_cells(self, rows: int, steps: int) -> None:
        """Raises QueryTooLargeError when an intermediate result would hold more than ``max_samples`` values."""
        if rows * steps > self.max_samples:
            raise QueryTooLargeError(
                f"query processing would load too many samples into memory: {rows} series at {steps} steps, {self.max_samples} allowed"
            )


def is_stale(values: Floats) -> Mask:
    """Where ``values`` are Prometheus' staleness marker."""
    mask: Mask = np.ascontiguousarray(values).view(np.uint64) == _STALE_BITS
    return mask


def without_name(labels: LabelSet) -> LabelSet:
    """``labels`` without the metric name."""
    return tuple(pair for pair in labels if pair[0] != NAME)


def merged(labels: Sequence[LabelSet], values: Floats, present: Mask, *, ordered: bool = False) -> Vector:
    """A vector of these rows; rows of equal label sets become one.

    Raises:
        QueryExecutionError: two of them have an element at the same step.
    """
    if len(set(labels)) == len(labels):
        return Vector(labels, values, present, ordered)
    position: dict[LabelSet, int] = {}
    rows = np.array([position.setdefault(label_set, len(position)) for label_set in labels])
    counts = np.zeros((len(position), values.shape[1]), dtype=np.int64)
    np.add.at(counts, rows, present)
    if (counts > 1).any():
        raise QueryExecutionError("vector cannot contain metrics with the same labelset")
    result = np.zeros(counts.shape)
    for source, row in enumerate(rows):
        np.copyto(result[row], values[source], where=present[source])
    return Vector(list(position), result, counts > 0, ordered)


def shown(labels: LabelSet) -> str:
    """``labels`` as PromQL writes them, for messages."""
    name = dict(labels).get(NAME, "")
    return f"{name}{{{', '.join(f'{key}={value!r}' for key, value in labels if key != NAME)}}}"
