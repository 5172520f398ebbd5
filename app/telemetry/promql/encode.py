"""Results as the JSON of the Prometheus HTTP API. Range queries spend most of their time here, so numbers are formatted in bulk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from app.telemetry.promql.engine import Result
from app.telemetry.promql.model import Floats, LabelSet, RangeVector, Scalar, String, Times, Vector

_SECOND = 1000


def result_json(result: Result, *, matrix: bool, limit: int = 0) -> tuple[bytes, bool]:
    """The ``data`` member for ``result``: a matrix (range queries), or what the query's type says (instant queries).

    With a ``limit`` at most so many series are shown; the second element says whether any were left out.
    """
    value, grid = result.value, result.grid
    if isinstance(value, String):
        return _data("string", b"[%s,%s]" % (_seconds(grid.times)[0], msgspec.json.encode(value.value))), False
    if isinstance(value, Scalar):
        if not matrix:
            return _data("scalar", _sample(_seconds(grid.times)[0], _numbers(value.values)[0])), False
        return _data("matrix", b"[%s]" % _series((), _samples(_seconds(grid.times), _numbers(value.values)))), False
    if isinstance(value, RangeVector):
        rows = list(_windows(value))
    elif matrix:
        rows = list(_rows(value, grid.times))
    else:
        rows = list(_elements(value, grid.times))
    shown = rows[:limit] if limit else rows
    kind = "matrix" if matrix or isinstance(value, RangeVector) else "vector"
    return _data(kind, b"[%s]" % b",".join(shown)), len(shown) < len(rows)


def _data(kind: str, result: bytes) -> bytes:
    return b'{"resultType":"%s","result":%s}' % (kind.encode(), result)


def _elements(vector: Vector, times: Times) -> Iterator[bytes]:
    rows = [row for row in range(len(vector.labels)) if vector.present[row, 0]]
    if not vector.ordered:
        rows.sort(key=vector.labels.__getitem__)
    moment = _seconds(times)[0]
    numbers = _numbers(vector.values[rows, 0])
    for row, number in zip(rows, numbers, strict=True):
        yield b'{"metric":%s,"value":%s}' % (_metric(vector.labels[row]), _sample(moment, number))


def _rows(vector: Vector, times: Times) -> Iterator[bytes]:
    moments = _seconds(times)
    for row in sorted(range(len(vector.labels)), key=vector.labels.__getitem__):
        present = vector.present[row]
        if present.all():
            yield _series(vector.labels[row], _samples(moments, _numbers(vector.values[row])))
        elif present.any():
            chosen = np.flatnonzero(present).tolist()
            yield _series(vector.labels[row], _samples([moments[step] for step in chosen], _numbers(vector.values[row][present])))


def _windows(vector: RangeVector) -> Iterator[bytes]:
    end = int(vector.ends[0])
    for one in sorted(vector.series, key=lambda series: series.labels):
        inside = slice(*np.searchsorted(one.times, [end - vector.range_ms, end + 1]))
        if len(one.times[inside]):
            yield _series(one.labels, _samples(_seconds(one.times[inside]), _numbers(one.values[inside])))


def _series(labels: LabelSet, samples: bytes) -> bytes:
    return b'{"metric":%s,"values":%s}' % (_metric(labels), samples)


def _metric(labels: LabelSet) -> bytes:
    return msgspec.json.encode(dict(labels))


def _sample(moment: bytes, number: bytes) -> bytes:
    return b'[%s,"%s"]' % (moment, number)


def _samples(moments: Sequence[bytes], numbers: Sequence[bytes]) -> bytes:
    if not moments:
        return b"[]"
    return b'[[%s"]]' % b'"],['.join(map(b',"'.join, zip(moments, numbers, strict=True)))


def _seconds(times: Times) -> list[bytes]:
    """Times in seconds with no more decimals than needed."""
    if not (times % _SECOND).any():
        return msgspec.json.encode((times // _SECOND).tolist())[1:-1].split(b",")
    return [
        (b"%d.%03d" % divmod(one, _SECOND)).rstrip(b"0").rstrip(b".") if one % _SECOND else b"%d" % (one // _SECOND)
        for one in times.tolist()
    ]


def _numbers(values: Floats) -> list[bytes]:
    """Numbers in the shortest form that reads back as the same float64."""
    if not len(values):
        return []
    text = msgspec.json.encode(values.tolist()).replace(b".0,", b",").removesuffix(b"]").removesuffix(b".0")
    numbers = text[1:].split(b",")
    for position in np.flatnonzero(~np.isfinite(values)):
        value = values[position]
        numbers[position] = b"NaN" if np.isnan(value) else b"+Inf" if value > 0 else b"-Inf"
    return numbers
