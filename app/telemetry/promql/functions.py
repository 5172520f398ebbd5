"""Functions of instant vectors: element by element, on labels, and ``histogram_quantile``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from app.errors import InvalidRequestError, UnsupportedQueryError
from app.telemetry.matching import compile_pattern
from app.telemetry.promql.errors import QueryExecutionError
from app.telemetry.promql.model import Floats, LabelSet, Mask, Vector, merged, without_name
from app.telemetry.promql.names import is_legacy_label
from app.telemetry.store import NAME


def _sgn(values: Floats) -> Floats:
    return np.where(values < 0, -1.0, np.where(values > 0, 1.0, values))


ELEMENTWISE: dict[str, Callable[[Floats], Floats]] = {
    "abs": np.abs,
    "ceil": np.ceil,
    "floor": np.floor,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "ln": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "sgn": _sgn,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "deg": np.degrees,
    "rad": np.radians,
}


def mapped(vector: Vector, values: Floats) -> Vector:
    """``vector`` with other values; its elements lose their metric names."""
    return merged([without_name(labels) for labels in vector.labels], values, vector.present)


def rounded(vector: Vector, to_nearest: Floats) -> Vector:
    """Each value rounded to the nearest multiple of ``to_nearest``, halves upwards."""
    inverse = 1.0 / to_nearest
    return mapped(vector, np.floor(vector.values * inverse + 0.5) / inverse)


def clamped(vector: Vector, least: Floats | None, greatest: Floats | None) -> Vector:
    """Each value held between ``least`` and ``greatest``; no elements where least exceeds greatest."""
    values, present = vector.values, vector.present
    if greatest is not None:
        values = np.minimum(greatest, values)
    if least is not None:
        values = np.maximum(least, values)
    if least is not None and greatest is not None:
        present = present & ~(greatest < least)
    return merged([without_name(labels) for labels in vector.labels], values, present)


def ordered(vector: Vector, *, descending: bool) -> Vector:
    """The elements of an instant query in the order of their values, NaN last; of a range query as they are."""
    if vector.values.shape[1] != 1:
        return vector
    values = vector.values[:, 0]
    order = np.lexsort((-values if descending else values, np.isnan(values)))
    return Vector([vector.labels[row] for row in order], vector.values[order], vector.present[order], ordered=True)


_REFERENCE = re.compile(r"\$(?:\$|(\w+)|\{(\w+)\})?", re.ASCII)


def label_replace(vector: Vector, target: str, replacement: str, source: str, pattern: str) -> Vector:
    """Sets the label ``target`` to ``replacement`` (with the groups of ``pattern``) where ``pattern`` matches the label ``source``.

    Raises:
        QueryExecutionError: the pattern or the target is not valid, or two elements become equal.
        UnsupportedQueryError: the pattern uses something that is not supported.
    """
    expression = _expression(pattern)
    if not is_legacy_label(target):
        raise QueryExecutionError(f"invalid destination label name in label_replace(): {target}")

    def changed(labels: LabelSet) -> LabelSet:
        found = expression(dict(labels).get(source, ""))
        return labels if found is None else _with_label(labels, target, _REFERENCE.sub(lambda name: _group(found, name), replacement))

    return merged([changed(labels) for labels in vector.labels], vector.values, vector.present)


def label_join(vector: Vector, target: str, separator: str, sources: Sequence[str]) -> Vector:
    """Sets the label ``target`` to the values of the labels ``sources``, joined.

    Raises:
        QueryExecutionError: the target is not valid, or two elements become equal.
    """
    if not is_legacy_label(target):
        raise QueryExecutionError(f"invalid destination label name in label_join(): {target}")

    def changed(labels: LabelSet) -> LabelSet:
        values = dict(labels)
        return _with_label(labels, target, separator.join(values.get(source, "") for source in sources))

    return merged([changed(labels) for labels in vector.labels], vector.values, vector.present)


def _expression(pattern: str) -> Callable[[str], re.Match[str] | None]:
    """A full match of ``pattern`` with its groups.

    Groups need Python's expressions, which backtrack; they are tried only on texts that the linear engine has found to match.
    """
    try:
        accepts = compile_pattern(pattern)
    except InvalidRequestError as error:
        raise QueryExecutionError(f"invalid regular expression in label_replace(): {error.reason}") from None
    try:
        if "[:" in pattern:
            raise ValueError("POSIX character classes")
        expression = re.compile(pattern, re.DOTALL)
    except (ValueError, re.error, RecursionError, OverflowError) as error:
        raise UnsupportedQueryError(f"the regular expression {pattern!r} is not supported in label_replace(): {error}") from None
    return lambda text: expression.fullmatch(text) if accepts(text) else None


def _group(found: re.Match[str], reference: re.Match[str]) -> str:
    """What one reference of a replacement text stands for; groups that are not there are empty."""
    if reference.group() == "$$":
        return "$"
    name = reference.group(1) or reference.group(2)
    if name is None:
        return reference.group()
    if name.isdecimal():
        return (found.group(int(name)) or "") if int(name) <= found.re.groups else ""
    return found.groupdict().get(name) or ""


def _with_label(labels: LabelSet, name: str, value: str) -> LabelSet:
    others = [pair for pair in labels if pair[0] != name]
    return tuple(sorted([*others, (name, value)])) if value else tuple(others)


def histogram_quantile(vector: Vector, phi: Floats) -> Vector:
    """The quantile that cumulative bucket counts (label ``le``) say, interpolated within the bucket."""
    groups: dict[LabelSet, list[tuple[float, int]]] = {}
    for row, labels in enumerate(vector.labels):
        try:
            bound = float(dict(labels).get("le", "").replace("_", "?"))
        except ValueError:
            continue
        groups.setdefault(tuple(pair for pair in labels if pair[0] not in ("le", NAME)), []).append((bound, row))
    if not groups:
        return Vector.empty(vector.values.shape[1])
    values, present = [], []
    for members in groups.values():
        ordered_rows = sorted(members, key=lambda member: member[0])
        rows = [row for _, row in ordered_rows]
        bounds = np.array([bound for bound, _ in ordered_rows])
        there = vector.present[rows]
        values.append(_quantiles(bounds, vector.values[rows], there, phi))
        present.append(there.any(axis=0))
    return Vector(list(groups), np.array(values), np.array(present))


def _quantiles(bounds: Floats, counts: Floats, present: Mask, phi: Floats) -> Floats:
    """One histogram's quantile at each step; steps with the same buckets are computed together."""
    result = np.full(counts.shape[1], np.nan)
    patterns, which = np.unique(present, axis=1, return_inverse=True)
    for number in range(patterns.shape[1]):
        rows, steps = patterns[:, number], np.flatnonzero(which.ravel() == number)
        if not rows.any():
            continue
        upper, first = np.unique(bounds[rows], return_index=True)
        summed = np.add.reduceat(counts[rows][:, steps], first, axis=0)  # buckets of equal bounds are one
        result[steps] = _bucket_quantiles(upper, np.maximum.accumulate(summed, axis=0), phi[steps])
    result[np.isnan(phi)] = np.nan
    result[phi < 0] = -np.inf
    result[phi > 1] = np.inf
    return result


def _bucket_quantiles(upper: Floats, counts: Floats, phi: Floats) -> Floats:
    if len(upper) < 2 or upper[-1] != np.inf:  # noqa: PLR2004 - a histogram has a bucket besides +Inf
        return np.full(len(phi), np.nan)
    rank = phi * counts[-1]
    bucket = np.minimum((counts[:-1] < rank).sum(axis=0), len(upper) - 1)
    step = np.arange(len(phi))
    below = np.maximum(bucket - 1, 0)
    begin = np.where(bucket > 0, upper[below], 0.0)
    counted = np.where(bucket > 0, counts[below, step], 0.0)
    inside = begin + (upper[bucket] - begin) * ((rank - counted) / (counts[bucket, step] - counted))
    inside = np.where((bucket == 0) & (upper[0] <= 0), upper[0], inside)
    inside = np.where(bucket == len(upper) - 1, upper[-2], inside)
    return np.where(counts[-1] == 0, np.nan, inside)
