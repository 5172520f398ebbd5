"""A metric store that is a list of series: just enough of the port for tests of what reads from it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from app.errors import QueryTooLargeError
from app.telemetry.store import NAME, Matcher, MetricMetadata, SeriesData


def series(name, labels=(), samples=(), *, unit="", kind="gauge"):
    """A series from (seconds, value) pairs."""
    pairs = sorted(samples)
    return SeriesData(
        {NAME: name, **dict(labels)},
        unit,
        kind,
        np.array([round(t * 1000) for t, _ in pairs], dtype=np.int64),
        np.array([v for _, v in pairs], dtype=np.float64),
    )


def _meets(matcher: Matcher, value: str) -> bool:
    if matcher.operator in ("=", "!="):
        return (value == matcher.value) == (matcher.operator == "=")
    return (re.fullmatch(matcher.value, value) is not None) == (matcher.operator == "=~")


class ListedStore:
    """Counts the calls of ``select`` and keeps the matchers it was asked for."""

    def __init__(self, held: Iterable[SeriesData] = ()) -> None:
        self.held = list(held)
        self.asked: list[tuple[Matcher, ...]] = []

    def _matching(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int):
        for one in self.held:
            if all(_meets(m, one.labels.get(m.name, "")) for m in matchers):
                inside = (one.times >= start_ms) & (one.times <= end_ms)
                if inside.all():
                    yield one
                elif inside.any():
                    yield replace(one, times=one.times[inside], values=one.values[inside])

    async def select(self, matchers, start_ms, end_ms, *, max_samples=None):
        self.asked.append(tuple(matchers))
        found = list(self._matching(matchers, start_ms, end_ms))
        if max_samples is not None and sum(len(one.times) for one in found) > max_samples:
            raise QueryTooLargeError(f"more than {max_samples} samples")
        return found

    async def series(self, matchers, start_ms, end_ms):
        return [one.labels for one in self._matching(matchers, start_ms, end_ms)]

    async def label_names(self, matchers, start_ms, end_ms):
        return sorted({name for one in self._matching(matchers, start_ms, end_ms) for name in one.labels})

    async def label_values(self, name, matchers, start_ms, end_ms):
        return sorted({one.labels[name] for one in self._matching(matchers, start_ms, end_ms) if name in one.labels})

    async def metadata(self):
        return list({(m.name, m.unit, m.kind): m for m in (MetricMetadata(o.labels[NAME], o.unit, o.kind) for o in self.held)}.values())
