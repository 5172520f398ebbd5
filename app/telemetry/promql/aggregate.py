"""Aggregations of a vector by groups of labels, at all steps at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from app.telemetry.promql.errors import QueryExecutionError
from app.telemetry.promql.model import Floats, LabelSet, Mask, Scalar, String, Value, Vector, merged
from app.telemetry.promql.names import is_legacy_label
from app.telemetry.promql.windows import interpolated
from app.telemetry.store import NAME

Rows = npt.NDArray[np.intp]


def aggregate(operator: str, vector: Vector, parameter: Value | None, labels: Sequence[str], *, without: bool) -> Vector:
    """``operator`` over the groups of ``vector`` by ``labels`` (or by all labels but those and the name).

    Raises:
        QueryExecutionError: the parameter is out of range.
    """
    groups = _groups(vector.labels, frozenset(labels), without=without)
    if operator in ("topk", "bottomk"):
        return _best(vector, list(groups.values()), _numbers(parameter), largest=operator == "topk")
    if operator == "count_values":
        return _count_values(vector, groups, parameter)
    if not groups:
        return Vector.empty(vector.values.shape[1])
    if operator == "quantile":
        phi = _numbers(parameter)
        quantiles = [_quantile(vector.values[rows], vector.present[rows], phi) for rows in groups.values()]
        return Vector(list(groups), np.array(quantiles), _counted(vector.present, groups) > 0)
    values = _SIMPLE[operator](vector.values, vector.present, groups)
    return Vector(list(groups), values, _counted(vector.present, groups) > 0)


Groups = dict[LabelSet, Rows]


def _groups(label_sets: Sequence[LabelSet], names: frozenset[str], *, without: bool) -> Groups:
    rows: dict[LabelSet, list[int]] = {}
    dropped = names | {NAME}
    for row, label_set in enumerate(label_sets):
        if without:
            key = tuple(pair for pair in label_set if pair[0] not in dropped)
        elif names:
            key = tuple(pair for pair in label_set if pair[0] in names)
        else:
            key = ()
        rows.setdefault(key, []).append(row)
    return {key: np.array(members, dtype=np.intp) for key, members in rows.items()}


def _reduced(ufunc: np.ufunc, values: Floats, groups: Groups) -> Floats:
    """``ufunc`` down the rows of each group."""
    order = np.concatenate(list(groups.values()))
    sizes = np.array([len(rows) for rows in groups.values()])
    result: Floats = ufunc.reduceat(values[order], np.cumsum(sizes) - sizes, axis=0)
    return result


def _counted(present: Mask, groups: Groups) -> Floats:
    return _reduced(np.add, present.astype(np.float64), groups)


def _sum(values: Floats, present: Mask, groups: Groups) -> Floats:
    return _reduced(np.add, np.where(present, values, 0.0), groups)


def _avg(values: Floats, present: Mask, groups: Groups) -> Floats:
    counts = _counted(present, groups)
    mean = _sum(values, present, groups) / counts
    if np.isinf(mean).any():  # the sum may have overflowed where the mean does not
        sizes = np.empty_like(values)
        for row, rows in enumerate(groups.values()):
            sizes[rows] = counts[row]
        return _sum(values / sizes, present, groups)
    return mean


def _min(values: Floats, present: Mask, groups: Groups) -> Floats:
    return _reduced(np.fmin, np.where(present, values, np.nan), groups)


def _max(values: Floats, present: Mask, groups: Groups) -> Floats:
    return _reduced(np.fmax, np.where(present, values, np.nan), groups)


def _group(values: Floats, _: Mask, groups: Groups) -> Floats:
    return np.ones((len(groups), values.shape[1]))


def _count(_: Floats, present: Mask, groups: Groups) -> Floats:
    return _counted(present, groups)


def _stdvar(values: Floats, present: Mask, groups: Groups) -> Floats:
    mean = _avg(values, present, groups)
    deviation = values.copy()
    for row, rows in enumerate(groups.values()):
        deviation[rows] -= mean[row]
    return _sum(deviation * deviation, present, groups) / _counted(present, groups)


def _stddev(values: Floats, present: Mask, groups: Groups) -> Floats:
    return np.sqrt(_stdvar(values, present, groups))


_SIMPLE: dict[str, Callable[[Floats, Mask, Groups], Floats]] = {
    "sum": _sum,
    "avg": _avg,
    "min": _min,
    "max": _max,
    "count": _count,
    "group": _group,
    "stdvar": _stdvar,
    "stddev": _stddev,
}


def _numbers(parameter: Value | None) -> Floats:
    if not isinstance(parameter, Scalar):  # pragma: no cover - the parser has checked it
        raise QueryExecutionError("the aggregation's parameter is not a number")
    return parameter.values


def _quantile(values: Floats, present: Mask, phi: Floats) -> Floats:
    """The quantile of each column's elements, NaN being the least."""
    numbers = ~np.isnan(values)
    order = np.lexsort((np.where(numbers, values, 0.0), numbers, ~present), axis=0)
    ascending = np.take_along_axis(values, order, axis=0)
    rows, steps = values.shape
    return interpolated(ascending.T.ravel(), np.arange(steps) * rows, present.sum(axis=0), phi)


def _best(vector: Vector, groups: Sequence[Rows], wanted: Floats, *, largest: bool) -> Vector:
    """The ``wanted`` largest (or smallest) elements of each group at each step; NaN comes last either way."""
    if np.isnan(wanted).any() or (np.abs(wanted) >= 2**63).any():
        raise QueryExecutionError("Scalar value is not a number that an int64 can hold")
    keep = np.zeros_like(vector.present)
    order: list[int] = []
    for rows in groups:
        values, present = vector.values[rows], vector.present[rows]
        sort_key = -values if largest else values
        ranking = np.lexsort((np.where(np.isnan(values), 0.0, sort_key), np.isnan(values), ~present), axis=0)
        places = np.empty_like(ranking)
        np.put_along_axis(places, ranking, np.arange(len(rows))[:, None], axis=0)
        keep[rows] = present & (places < np.trunc(wanted))
        order += rows[ranking[:, 0]].tolist()
    chosen = [row for row in order if keep[row].any()]
    return Vector([vector.labels[row] for row in chosen], vector.values[chosen], keep[chosen], ordered=True)


def _count_values(vector: Vector, groups: Groups, parameter: Value | None) -> Vector:
    """How many elements of each group have each value; the value becomes the label that the parameter names."""
    name = parameter.value if isinstance(parameter, String) else ""
    if not is_legacy_label(name):
        raise QueryExecutionError(f"invalid label name {name!r}")
    rows = list(_value_rows(vector, groups, name))
    if not rows:
        return Vector.empty(vector.values.shape[1])
    counts = np.array([count for _, count in rows])
    return merged([labels for labels, _ in rows], counts, counts > 0)


def _value_rows(vector: Vector, groups: Groups, name: str) -> Iterator[tuple[LabelSet, Floats]]:
    for key, members in groups.items():
        values, present = vector.values[members], vector.present[members]
        base = tuple(pair for pair in key if pair[0] != name)
        for value in np.unique(values[present]):
            same = np.isnan(values) if np.isnan(value) else values == value
            yield tuple(sorted((*base, (name, plain(float(value)))))), (same & present).sum(axis=0).astype(np.float64)


def plain(value: float) -> str:
    """``value`` in the shortest form without an exponent, as Prometheus writes it into labels."""
    if value != value:  # noqa: PLR0124 - only NaN differs from itself
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return np.format_float_positional(value, unique=True, trim="-")
