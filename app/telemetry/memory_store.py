"""A metric store in memory: the port's meaning in the fewest lines, for tests and for trying things out. Nothing survives the process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from app.errors import InvalidRequestError, QueryTooLargeError
from app.telemetry.matching import compile_matchers
from app.telemetry.store import NAME, Labels, Matcher, MetricKind, MetricMetadata, Row, Schema, SeriesData, SeriesKey, StoreStatistics

_Identity = frozenset[tuple[str, str]]


class MemoryMetricStore:
    """A :class:`~app.telemetry.store.MetricStore` in dictionaries.

    Args:
        retention: seconds that samples are kept; None keeps them for good.
    """

    def __init__(self, *, retention: float | None = None) -> None:
        self._retention = retention
        self._samples: dict[_Identity, dict[int, np.float64]] = {}
        self._traits: dict[_Identity, tuple[str, MetricKind]] = {}
        self._schemas: dict[tuple[SeriesKey, ...], Schema] = {}
        self._members: dict[int, list[_Identity]] = {}

    async def open(self) -> None:
        """Nothing to recover."""

    async def register(self, series: Sequence[SeriesKey]) -> Schema:
        """The schema of exactly these series in this order; the same list gives the same schema.

        Raises:
            InvalidRequestError: no series.
        """
        if not series:
            raise InvalidRequestError("A schema needs at least one series.")
        key = tuple(series)
        if key not in self._schemas:
            members = [frozenset((n, v) for n, v in dict(s.labels).items() if v) for s in series]
            schema = self._schemas[key] = Schema(len(self._schemas) + 1, len(key))
            self._members[schema.id] = members
            for identity, one in zip(members, series, strict=True):
                self._traits[identity] = one.unit, one.kind
                self._samples.setdefault(identity, {})
        return self._schemas[key]

    async def append(self, rows: Sequence[Row]) -> None:
        """Store ``rows``, all or none; samples stored before change nothing.

        Raises:
            InvalidRequestError: a schema is unknown, or a row has another number of values.
        """
        unpacked = [(row, _values(row)) for row in rows]
        for row, values in unpacked:
            members = self._members.get(row.schema_id)
            if members is None or len(members) != len(values):
                raise InvalidRequestError(f"A row of schema {row.schema_id} has {len(values)} values; that is not what the schema has.")
        for row, values in unpacked:
            for identity, value in zip(self._members[row.schema_id], values, strict=True):
                self._samples[identity].setdefault(row.time_ms, value)

    async def select(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int, *, max_samples: int | None = None) -> list[SeriesData]:
        """Raw samples with ``start_ms <= time <= end_ms`` of the series that match.

        Raises:
            QueryTooLargeError: more than ``max_samples`` samples would be returned.
        """
        found: list[SeriesData] = []
        for identity in self._matching(matchers):
            chosen = sorted((t, v) for t, v in self._samples[identity].items() if start_ms <= t <= end_ms)
            if chosen:
                times = np.array([t for t, _ in chosen], np.int64)
                # Bytes and not floats: a NaN's payload must survive.
                values = np.frombuffer(b"".join([self._samples[identity][int(t)].tobytes() for t in times]), np.float64)
                found.append(SeriesData(dict(identity), *self._traits[identity], times, values))
        if max_samples is not None and sum(len(f.times) for f in found) > max_samples:
            raise QueryTooLargeError(f"The query would return more than {max_samples} samples; narrow its time range or its matchers.")
        return found

    def _matching(self, matchers: Sequence[Matcher]) -> list[_Identity]:
        compiled = compile_matchers(matchers)
        return [i for i in self._samples if all(m.accepts(dict(i).get(m.name, "")) for m in compiled)]

    def _present(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[_Identity]:
        return [i for i in self._matching(matchers) if any(start_ms <= t <= end_ms for t in self._samples[i])]

    async def series(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[Labels]:
        """Labels of the matching series that have samples in the range."""
        return [dict(identity) for identity in self._present(matchers, start_ms, end_ms)]

    async def label_names(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[str]:
        """Sorted names of the labels that matching series have."""
        return sorted({name for identity in self._present(matchers, start_ms, end_ms) for name, _ in identity})

    async def label_values(self, name: str, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[str]:
        """Sorted values of one label among matching series."""
        return sorted({v for identity in self._present(matchers, start_ms, end_ms) for n, v in identity if n == name})

    async def metadata(self) -> list[MetricMetadata]:
        """Unit and kind by metric name."""
        known = {dict(identity).get(NAME, ""): traits for identity, traits in self._traits.items()}
        return [MetricMetadata(name, *traits) for name, traits in sorted(known.items()) if name]

    async def statistics(self) -> StoreStatistics:
        """Counts; nothing is on disk."""
        times = [t for samples in self._samples.values() for t in samples]
        return StoreStatistics(len(self._samples), len(times), 0, min(times, default=None), max(times, default=None))

    async def maintain(self, now_ms: int) -> None:
        """Apply retention, by whole UTC days as the embedded store does."""
        if self._retention is not None:
            day = 86_400_000
            oldest = -(-(now_ms - int(self._retention * 1000) + 1) // day) * day - day
            for samples in self._samples.values():
                for time_ms in [t for t in samples if t < oldest]:
                    del samples[time_ms]

    async def close(self) -> None:
        """Nothing to close."""


def _values(row: Row) -> list[np.float64]:
    raw: object = row.values
    return list(np.frombuffer(raw, "<f8") if isinstance(raw, bytes | bytearray | memoryview) else np.asarray(raw, np.float64))
