"""Functions over ranges of samples: ``rate`` and its kin, and ``*_over_time``; for one series at all steps at once.

The formulas and their corner cases are those of Prometheus 2: windows include both of their ends, counters that fall have been reset,
``rate``, ``increase`` and ``delta`` extrapolate to the window's ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.telemetry.promql.model import Floats, Mask, Times

_CHUNK = 1 << 20
_EXTRAPOLATION_THRESHOLD = 1.1


@dataclass(frozen=True, slots=True)
class Windows:
    """One series' windows: those of its samples with ``lo <= index < hi``, one pair for each step."""

    times: Times
    values: Floats
    lo: npt.NDArray[np.intp]
    hi: npt.NDArray[np.intp]
    ends: Times
    range_ms: int
    parameter: Floats | None = None
    """A scalar argument for each step (the quantile)."""

    @property
    def counts(self) -> npt.NDArray[np.intp]:
        """How many samples each window holds."""
        return self.hi - self.lo

    def reduce(self, ufunc: np.ufunc, values: Floats) -> Floats:
        """``ufunc`` over each window's part of ``values``; NaN for empty windows."""
        result = np.full(len(self.lo), np.nan)
        filled = self.hi > self.lo
        edges = np.empty(2 * int(filled.sum()), dtype=np.intp)
        edges[0::2] = self.lo[filled]
        edges[1::2] = self.hi[filled]
        if len(edges):
            result[filled] = ufunc.reduceat(np.append(values, 0.0), edges)[::2]
        return result

    def gathered(self) -> Iterator[tuple[slice, Floats, npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
        """The windows written out one after the other, some at a time: which windows, their values, counts and beginnings."""
        counts = self.counts
        total = np.cumsum(counts)
        begin = 0
        while begin < len(counts):
            before = total[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(total, before + _CHUNK, side="right")))
            some = slice(begin, end)
            starts = total[some] - counts[some] - before
            index = np.arange(total[end - 1] - before) - np.repeat(starts - self.lo[some], counts[some])
            yield some, self.values[index], counts[some], starts
            begin = end


Answer = tuple[Floats, Mask]
"""Values for each step, and where there is one."""


def _extrapolated(windows: Windows, *, counter: bool, per_second: bool) -> Answer:
    """The change over each window, extrapolated to its ends as Prometheus does it."""
    result = np.zeros(len(windows.lo))
    present = windows.counts >= 2  # noqa: PLR2004 - a change needs two samples
    lo, last = windows.lo[present], windows.hi[present] - 1
    values, times, ends = windows.values, windows.times, windows.ends[present]
    first_values = values[lo]
    change = values[last] - first_values
    if counter:
        change += _resets_between(windows, present)
    to_start = (times[lo] - (ends - windows.range_ms)) / 1000.0
    to_end = (ends - times[last]) / 1000.0
    sampled = (times[last] - times[lo]) / 1000.0
    average = sampled / (last - lo)
    if counter:
        falling_to_zero = sampled * (first_values / change)
        clamp = (change > 0) & (first_values >= 0) & (falling_to_zero < to_start)
        to_start = np.where(clamp, falling_to_zero, to_start)
    threshold = average * _EXTRAPOLATION_THRESHOLD
    interval = sampled + np.where(to_start < threshold, to_start, average / 2)
    interval += np.where(to_end < threshold, to_end, average / 2)
    factor = interval / sampled
    if per_second:
        factor /= windows.range_ms / 1000.0
    result[present] = change * factor
    return result, present


def _resets_between(windows: Windows, present: Mask) -> Floats:
    """What the counter had reached before each fall within each window, summed up."""
    values = windows.values
    before_fall = np.zeros(len(values))
    np.copyto(before_fall[1:], values[:-1], where=values[1:] < values[:-1])
    if not before_fall.any():
        return np.zeros(int(present.sum()))
    behind_first = Windows(windows.times, values, windows.lo + 1, windows.hi, windows.ends, windows.range_ms)
    return behind_first.reduce(np.add, before_fall)[present]


def rate(windows: Windows) -> Answer:
    """Per-second increase of a counter."""
    return _extrapolated(windows, counter=True, per_second=True)


def increase(windows: Windows) -> Answer:
    """Increase of a counter."""
    return _extrapolated(windows, counter=True, per_second=False)


def delta(windows: Windows) -> Answer:
    """Difference of a gauge."""
    return _extrapolated(windows, counter=False, per_second=False)


def _last_two(windows: Windows, *, counter: bool) -> Answer:
    present = windows.counts >= 2  # noqa: PLR2004 - a change needs two samples
    last = windows.hi[present] - 1
    newer, older = windows.values[last], windows.values[last - 1]
    result = np.zeros(len(windows.lo))
    if counter:
        seconds = (windows.times[last] - windows.times[last - 1]) / 1000.0
        result[present] = np.where(newer < older, newer, newer - older) / seconds
    else:
        result[present] = newer - older
    return result, present


def irate(windows: Windows) -> Answer:
    """Per-second increase between a counter's last two samples."""
    return _last_two(windows, counter=True)


def idelta(windows: Windows) -> Answer:
    """Difference of a gauge's last two samples."""
    return _last_two(windows, counter=False)


def _count_between(windows: Windows, happens: Mask) -> Answer:
    """How often ``happens`` (from one sample to the next) is true within each window."""
    running = np.concatenate(([0, 0], np.cumsum(happens)))  # running[i] counts what happened up to sample i - 1
    present = windows.counts > 0
    result = np.where(present, running[windows.hi] - running[np.minimum(windows.lo + 1, len(windows.values))], 0)
    return result.astype(np.float64), present


def changes(windows: Windows) -> Answer:
    """How often the value changes."""
    older, newer = windows.values[:-1], windows.values[1:]
    return _count_between(windows, (older != newer) & ~(np.isnan(older) & np.isnan(newer)))


def resets(windows: Windows) -> Answer:
    """How often a counter falls."""
    return _count_between(windows, windows.values[1:] < windows.values[:-1])


def avg_over_time(windows: Windows) -> Answer:
    """Mean of the samples."""
    counts = windows.counts
    result = windows.reduce(np.add, windows.values) / counts
    for step in np.flatnonzero(np.isinf(result)):
        inside = windows.values[windows.lo[step] : windows.hi[step]]
        result[step] = np.sum(inside / len(inside))  # the sum may have overflowed where the mean does not
    return result, counts > 0


def sum_over_time(windows: Windows) -> Answer:
    """Sum of the samples."""
    return windows.reduce(np.add, windows.values), windows.counts > 0


def min_over_time(windows: Windows) -> Answer:
    """Least sample; NaN only where there is nothing else."""
    return windows.reduce(np.fmin, windows.values), windows.counts > 0


def max_over_time(windows: Windows) -> Answer:
    """Greatest sample; NaN only where there is nothing else."""
    return windows.reduce(np.fmax, windows.values), windows.counts > 0


def count_over_time(windows: Windows) -> Answer:
    """Number of samples."""
    return windows.counts.astype(np.float64), windows.counts > 0


def present_over_time(windows: Windows) -> Answer:
    """1 where there is a sample."""
    return np.ones(len(windows.lo)), windows.counts > 0


def last_over_time(windows: Windows) -> Answer:
    """Latest sample."""
    present = windows.counts > 0
    result = np.zeros(len(windows.lo))
    result[present] = windows.values[windows.hi[present] - 1]
    return result, present


def stdvar_over_time(windows: Windows) -> Answer:
    """Population variance of the samples."""
    result = np.full(len(windows.lo), np.nan)
    for some, values, counts, starts in windows.gathered():
        filled = counts > 0
        if not filled.any():
            continue
        begins, sizes = starts[filled], counts[filled]
        mean = np.add.reduceat(values, begins) / sizes
        deviation = values - np.repeat(mean, sizes)
        part = np.full(len(counts), np.nan)
        part[filled] = np.add.reduceat(deviation * deviation, begins) / sizes
        result[some] = part
    return result, windows.counts > 0


def stddev_over_time(windows: Windows) -> Answer:
    """Population standard deviation of the samples."""
    variance, present = stdvar_over_time(windows)
    return np.sqrt(variance), present


def quantile_over_time(windows: Windows) -> Answer:
    """The quantile of the samples that the parameter says, interpolated between neighbours."""
    result = np.full(len(windows.lo), np.nan)
    phi = np.zeros(len(windows.lo)) if windows.parameter is None else windows.parameter
    for some, values, counts, starts in windows.gathered():
        number = np.isnan(values)
        order = np.lexsort((np.where(number, 0.0, values), ~number, np.repeat(np.arange(len(counts)), counts)))
        result[some] = interpolated(values[order], starts, counts, phi[some])
    return result, windows.counts > 0


def interpolated(ordered: Floats, starts: npt.NDArray[np.intp], counts: npt.NDArray[np.intp], phi: Floats) -> Floats:
    """The quantiles ``phi`` of ascending runs of ``ordered`` (``counts`` values from ``starts``); NaN for empty runs.

    A quantile below 0 is -Inf and above 1 +Inf.
    """
    result = np.full(len(counts), np.nan)
    usable = (counts > 0) & (phi >= 0) & (phi <= 1)
    size = counts[usable]
    rank = phi[usable] * (size - 1)
    lower = np.maximum(0, np.floor(rank)).astype(np.intp)
    upper = np.minimum(size - 1, lower + 1)
    weight = rank - np.floor(rank)
    begin = starts[usable]
    result[usable] = ordered[begin + lower] * (1 - weight) + ordered[begin + upper] * weight
    result[(counts > 0) & (phi < 0)] = -np.inf
    result[(counts > 0) & (phi > 1)] = np.inf
    return result


WINDOW_FUNCTIONS: dict[str, Callable[[Windows], Answer]] = {
    function.__name__: function
    for function in (
        *(rate, increase, delta, irate, idelta, changes, resets),
        *(avg_over_time, sum_over_time, min_over_time, max_over_time, count_over_time, present_over_time, last_over_time),
        *(stdvar_over_time, stddev_over_time, quantile_over_time),
    )
}
