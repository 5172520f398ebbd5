"""Rollups: what an hour of samples comes to in steps of five minutes and of one hour.

Of each step and series: least, greatest, sum and last value, and how many values there were. NaN (staleness included) counts as no
value; a step without values has the count 0 and is left out on reading. Sums of decimals are decimals: they are rounded to the digits
that the samples have, which takes the binary noise of adding away.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from app.telemetry.embedded.codec import CodecError, Floats, Integers, plan_decimals
from app.telemetry.store import Labels, MetricKind

FIVE_MINUTES_MS = 300_000
HOUR_MS = 3_600_000
_PARTS = 5
_LEVEL = 6


@dataclass(frozen=True, slots=True)
class RollupSeries:
    """A series in steps of ``resolution_ms``: ``times`` are the steps' beginnings (int64 ms); the arrays have equal lengths."""

    labels: Labels
    unit: str
    kind: MetricKind
    resolution_ms: int
    times: Integers
    minimum: Floats
    maximum: Floats
    sum: Floats
    last: Floats
    count: Integers


@dataclass(frozen=True, slots=True)
class Steps:
    """All series of a schema in steps: ``times`` are the steps' beginnings, the matrices are steps x series."""

    times: Integers
    minimum: Floats
    maximum: Floats
    sum: Floats
    last: Floats
    count: Integers


def summarise(times: Integers, values: Floats, exponents: npt.NDArray[np.int8]) -> Steps:
    """Roll ``values`` (samples x series, at least one sample, ascending ``times``) up into steps of five minutes.

    ``exponents`` are those that :func:`~app.telemetry.embedded.codec.plan_decimals` finds.
    """
    steps = times // FIVE_MINUTES_MS * FIVE_MINUTES_MS
    starts = _starts(steps)
    missing = np.isnan(values)
    some = bool(missing.any())
    with np.errstate(invalid="ignore", over="ignore"):
        minimum = np.minimum.reduceat(np.where(missing, np.inf, values) if some else values, starts, axis=0)
        maximum = np.maximum.reduceat(np.where(missing, -np.inf, values) if some else values, starts, axis=0)
        total = _decimal_sums(np.add.reduceat(np.where(missing, 0.0, values) if some else values, starts, axis=0), exponents)
    ends = np.append(starts[1:], len(times))
    if not some:
        count = np.repeat((ends - starts)[:, None], values.shape[1], axis=1)
        return Steps(steps[starts], minimum, maximum, total, values[ends - 1], count)
    count = np.add.reduceat((~missing).astype(np.int64), starts, axis=0)
    latest = np.maximum.reduceat(np.where(missing, -1, np.arange(len(times))[:, None]), starts, axis=0)
    last = np.take_along_axis(values, np.maximum(latest, 0), axis=0)
    for matrix in (minimum, maximum, last):
        matrix[count == 0] = 0.0
    return Steps(steps[starts], minimum, maximum, total, last, count)


def coarsen(steps: Steps, resolution_ms: int) -> Steps:
    """Steps joined into longer ones of ``resolution_ms``, a multiple of theirs."""
    longer = steps.times // resolution_ms * resolution_ms
    starts = _starts(longer)
    if len(starts) == len(longer):
        return replace(steps, times=longer)
    empty = steps.count == 0
    count = np.add.reduceat(steps.count, starts, axis=0)
    with np.errstate(invalid="ignore", over="ignore"):
        minimum = np.minimum.reduceat(np.where(empty, np.inf, steps.minimum), starts, axis=0)
        maximum = np.maximum.reduceat(np.where(empty, -np.inf, steps.maximum), starts, axis=0)
        total = _decimal_sums(np.add.reduceat(steps.sum, starts, axis=0), plan_decimals(steps.sum).exponents)
    latest = np.maximum.reduceat(np.where(empty, -1, np.arange(len(longer))[:, None]), starts, axis=0)
    last = np.take_along_axis(steps.last, np.maximum(latest, 0), axis=0)
    for matrix in (minimum, maximum, last):
        matrix[count == 0] = 0.0
    return Steps(longer[starts], minimum, maximum, total, last, count)


def _starts(steps: Integers) -> npt.NDArray[np.intp]:
    """Where each run of equal steps begins."""
    return np.flatnonzero(np.concatenate([[True], steps[1:] != steps[:-1]]))


def _decimal_sums(sums: Floats, exponents: npt.NDArray[np.int8]) -> Floats:
    """Sums of decimals rounded to the decimals' digits; where there are none, as they are."""
    scale = 10.0 ** np.maximum(exponents, 0)
    result: Floats = np.where((exponents >= 0) & (np.abs(sums * scale) < 2.0**53), np.rint(sums * scale) / scale, sums)
    return result


def encode_steps(steps: Steps) -> bytes:
    """Code the steps losslessly: integers (scaled decimals, or bit patterns), greatest, last and sum as differences from the least."""
    count, series = steps.count.shape
    plan = plan_decimals(np.concatenate([steps.minimum, steps.maximum, steps.sum, steps.last]))
    integers = plan.integers
    exponents = np.where(plan.all_exact, plan.exponents, -1).astype(np.int8)
    for column in np.flatnonzero(exponents < 0):
        integers[column] = plan.columns[column].view(np.int64)
    with np.errstate(over="ignore"):
        least, greatest, total, last = integers.reshape(series, 4, count).transpose(1, 0, 2)
        counts = steps.count.T
        parts = np.stack([_differences(counts), _differences(least), greatest - least, total - least * counts, last - least])
        zigzag = ((parts << 1) ^ (parts >> 63)).view(np.uint64)
    planes = zigzag.view(np.uint8).reshape(_PARTS, series * count, 8).transpose(0, 2, 1)
    front = np.array([count, series], "<u4").tobytes() + steps.times.astype("<i8").tobytes()
    return zlib.compress(front + exponents.tobytes() + planes.tobytes(), _LEVEL)


def decode_steps(coded: bytes) -> Steps:
    """The steps that :func:`encode_steps` coded.

    Raises:
        CodecError: the bytes are damaged.
    """
    try:
        raw = zlib.decompress(coded)
        count, series = (int(n) for n in np.frombuffer(raw, "<u4", 2))
        times = np.frombuffer(raw, "<i8", count, 8).astype(np.int64)
        exponents = np.frombuffer(raw, np.int8, series, 8 + 8 * count)
        planes = np.frombuffer(raw, np.uint8, _PARTS * 8 * series * count, 8 + 8 * count + series)
    except (ValueError, zlib.error) as error:
        raise CodecError(f"damaged rollup: {error}") from error
    zigzag = np.ascontiguousarray(planes.reshape(_PARTS, 8, series * count).transpose(0, 2, 1)).view("<u8").reshape(_PARTS, series, count)
    with np.errstate(over="ignore"):
        parts = (zigzag >> np.uint64(1)).view(np.int64) ^ -(zigzag & np.uint64(1)).view(np.int64)
        counts, least = np.cumsum(parts[0], axis=1), np.cumsum(parts[1], axis=1)
        integers = np.stack([least, parts[2] + least, parts[3] + least * counts, parts[4] + least])
    scale = 10.0 ** np.maximum(exponents, 0)
    decimals = integers.astype(np.float64) / scale[None, :, None]
    patterns = np.ascontiguousarray(integers).view(np.float64)
    minimum, maximum, total, last = np.where((exponents < 0)[None, :, None], patterns, decimals).transpose(0, 2, 1)
    return Steps(times, minimum, maximum, total, last, counts.T)


def _differences(rows: Integers) -> Integers:
    result: npt.NDArray[np.int64] = rows.copy()
    result[:, 1:] -= rows[:, :-1]
    return result
