"""Binary operators between scalars and vectors, at all steps at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from app.telemetry.promql.errors import QueryExecutionError
from app.telemetry.promql.model import Floats, LabelSet, Limits, Mask, Scalar, Value, Vector, merged, shown, without_name
from app.telemetry.promql.parse import COMPARISONS, SET_OPERATORS, Binary, Matching
from app.telemetry.store import NAME

_ARITHMETIC: dict[str, Callable[[Floats, Floats], Floats]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "%": np.fmod,
    "^": np.power,
    "atan2": np.arctan2,
}
_COMPARE: dict[str, Callable[[Floats, Floats], Mask]] = {
    "==": np.equal,
    "!=": np.not_equal,
    ">": np.greater,
    "<": np.less,
    ">=": np.greater_equal,
    "<=": np.less_equal,
}


def combine(node: Binary, lhs: Value, rhs: Value, limits: Limits) -> Scalar | Vector:
    """The value of ``node`` from those of its sides.

    Raises:
        QueryExecutionError: the match between the sides is ambiguous.
        QueryTooLargeError: there are too many matches.
    """
    if isinstance(lhs, Vector) and isinstance(rhs, Vector):
        if node.operator in SET_OPERATORS:
            return _set_operation(node.operator, lhs, rhs, node.matching)
        return _join(node, lhs, rhs, limits)
    if isinstance(lhs, Vector) and isinstance(rhs, Scalar):
        return _with_scalar(node, lhs, lhs.values, rhs.values)
    if isinstance(lhs, Scalar) and isinstance(rhs, Vector):
        return _with_scalar(node, rhs, lhs.values, rhs.values)
    if isinstance(lhs, Scalar) and isinstance(rhs, Scalar):
        if node.operator in COMPARISONS:
            return Scalar(_COMPARE[node.operator](lhs.values, rhs.values).astype(np.float64))
        return Scalar(_ARITHMETIC[node.operator](lhs.values, rhs.values))
    raise QueryExecutionError("binary expression must contain only scalar and instant vector types")  # pragma: no cover - the parser checks


def _with_scalar(node: Binary, vector: Vector, left: Floats, right: Floats) -> Vector:
    if node.operator not in COMPARISONS:
        values = _ARITHMETIC[node.operator](left, right)
        return merged([without_name(labels) for labels in vector.labels], values, vector.present)
    holds = _COMPARE[node.operator](left, right)
    if node.return_bool:
        return merged([without_name(labels) for labels in vector.labels], holds.astype(np.float64), vector.present)
    return Vector(vector.labels, vector.values, vector.present & holds)


def _signature(matching: Matching) -> Callable[[LabelSet], LabelSet]:
    names = frozenset(matching.labels)
    if matching.on:
        return lambda labels: tuple(pair for pair in labels if pair[0] in names)
    ignored = names | {NAME}
    return lambda labels: tuple(pair for pair in labels if pair[0] not in ignored)


def _by_signature(label_sets: Sequence[LabelSet], matching: Matching) -> dict[LabelSet, list[int]]:
    signature = _signature(matching)
    rows: dict[LabelSet, list[int]] = {}
    for row, labels in enumerate(label_sets):
        rows.setdefault(signature(labels), []).append(row)
    return rows


def _set_operation(operator: str, lhs: Vector, rhs: Vector, matching: Matching) -> Vector:
    kept, other = (rhs, lhs) if operator == "or" else (lhs, rhs)
    others = _by_signature(other.labels, matching)
    present = kept.present.copy()
    for signature, rows in _by_signature(kept.labels, matching).items():
        found = others.get(signature)
        there = other.present[found].any(axis=0) if found else np.zeros(present.shape[1], dtype=bool)
        present[rows] &= there if operator == "and" else ~there
    if operator != "or":
        return Vector(lhs.labels, lhs.values, present)
    return merged([*lhs.labels, *rhs.labels], np.concatenate((lhs.values, rhs.values)), np.concatenate((lhs.present, present)))


def _join(node: Binary, lhs: Vector, rhs: Vector, limits: Limits) -> Vector:
    """Arithmetic or comparison between the elements of two vectors that match.

    The right side (the left one, with ``group_right``) may have one element only for each signature.
    """
    matching = node.matching
    swapped = matching.card == "one-to-many"
    many, one = (rhs, lhs) if swapped else (lhs, rhs)
    partners = _by_signature(one.labels, matching)
    both = lhs.present.any(axis=0) & rhs.present.any(axis=0)
    for signature, rows in partners.items():
        if len(rows) > 1 and (both & (one.present[rows].sum(axis=0) > 1)).any():
            side = "left" if swapped else "right"
            raise QueryExecutionError(
                f"found duplicate series for the match group {shown(signature)} on the {side} hand-side of the operation: "
                f"[{', '.join(shown(one.labels[row]) for row in rows[:2])}];"
                "many-to-many matching not allowed: matching labels must be unique on one side"
            )
    signature_of = _signature(matching)
    pairs: list[tuple[LabelSet, int, int]] = []
    for row, labels in enumerate(many.labels):
        signature = signature_of(labels)
        pairs += [(signature, row, partner) for partner in partners.get(signature, ())]
    steps = many.values.shape[1]
    if not pairs:
        return Vector.empty(steps)
    limits.check_cells(len(pairs), steps)
    many_rows = np.array([pair[1] for pair in pairs])
    one_rows = np.array([pair[2] for pair in pairs])
    present = many.present[many_rows] & one.present[one_rows]
    left, right = many.values[many_rows], one.values[one_rows]
    if swapped:
        left, right = right, left
    if node.operator in COMPARISONS:
        holds = _COMPARE[node.operator](left, right)
        values = holds.astype(np.float64) if node.return_bool else left
        present = present if node.return_bool else present & holds
    else:
        values = _ARITHMETIC[node.operator](left, right)
    labels_out = [_result_labels(node, many.labels[row], one.labels[partner]) for _, row, partner in pairs]
    _check_matches(matching, [pair[0] for pair in pairs], labels_out, present)
    return merged(labels_out, values, present)


def _check_matches(matching: Matching, signatures: list[LabelSet], labels: list[LabelSet], present: Mask) -> None:
    """Refuse several results for one signature (one-to-one) or for one signature and label set (grouped) at the same step."""
    if matching.card == "one-to-one":
        keys: list[object] = list(signatures)
        reason = "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)"
    else:
        keys = list(zip(signatures, labels, strict=True))
        reason = "multiple matches for labels: grouping labels must ensure unique matches"
    repeated = {key for key, count in Counter(keys).items() if count > 1}
    rows: dict[object, list[int]] = {}
    for row, key in enumerate(keys):
        if key in repeated:
            rows.setdefault(key, []).append(row)
    for members in rows.values():
        counts: npt.NDArray[np.int64] = present[members].sum(axis=0)
        if (counts > 1).any():
            raise QueryExecutionError(reason)


def _result_labels(node: Binary, many: LabelSet, one: LabelSet) -> LabelSet:
    matching = node.matching
    labels = dict(many)
    if node.operator not in COMPARISONS or node.return_bool:
        labels.pop(NAME, None)
    if matching.card == "one-to-one":
        listed = frozenset(matching.labels)
        labels = {key: value for key, value in labels.items() if (key in listed) == matching.on}
    if matching.include:
        other = dict(one)
        for name in matching.include:
            if value := other.get(name):
                labels[name] = value
            else:
                labels.pop(name, None)
    return tuple(sorted(labels.items()))
