"""The metric store port: what ingest writes to and queries read from. Every store passes ``tests/contract/test_metric_stores.py``.

A *series* is identified by its labels, the OTel metric name (as it came) among them under ``__name__``. Timestamps are kept to the
millisecond. Samples are idempotent by (series, timestamp): the first value stored for a pair stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Labels = Mapping[str, str]
MatchOperator = Literal["=", "!=", "=~", "!~"]
MetricKind = Literal["gauge", "counter", "updowncounter", "histogram", "summary", "unknown"]
NAME = "__name__"


@dataclass(frozen=True, slots=True)
class SeriesKey:
    """A series to write: all of its labels (OTel metric name under ``__name__``), its unit and kind."""

    labels: tuple[tuple[str, str], ...]
    unit: str
    kind: MetricKind


@dataclass(frozen=True, slots=True)
class Schema:
    """An ordered list of series, registered once; a row of samples refers to it by ``id`` and holds one value for each series."""

    id: int
    size: int


@dataclass(frozen=True, slots=True)
class Row:
    """One value for each series of a schema at one time. NaN is a value like any other (Prometheus' staleness included)."""

    schema_id: int
    time_ms: int
    values: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Matcher:
    """A label condition; regular expressions are anchored at both ends, a missing label is the empty string."""

    name: str
    operator: MatchOperator
    value: str


@dataclass(frozen=True, slots=True)
class SeriesData:
    """A series' samples in time order without duplicates: int64 milliseconds and float64 values of equal length."""

    labels: Labels
    unit: str
    kind: MetricKind
    times: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MetricMetadata:
    """What is known of a metric name: unit and kind."""

    name: str
    unit: str
    kind: MetricKind


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """The store about itself, for /metrics and the ledger."""

    series: int
    samples: int
    disk_bytes: int
    oldest_ms: int | None
    newest_ms: int | None


class MetricStore(Protocol):
    """A store of float64 samples. Methods may be called concurrently from one event loop; nothing blocks that loop."""

    async def open(self) -> None:
        """Make it ready: recover what an unclean end left. Called once, first."""
        ...

    async def register(self, series: Sequence[SeriesKey]) -> Schema:
        """The schema of exactly these series in this order; the same list gives the same schema. Durable on return."""
        ...

    async def append(self, rows: Sequence[Row]) -> None:
        """Store ``rows``, all or none; durable on return. Rows stored before (same series and time) change nothing.

        Raises:
            StorageError: nothing was stored; the caller may try again.
            OverloadedError: too much is waiting already.
        """
        ...

    async def select(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int, *, max_samples: int | None = None) -> list[SeriesData]:
        """Raw samples with ``start_ms <= time <= end_ms`` of the series that match; series without samples there are left out.

        Raises:
            QueryTooLargeError: more than ``max_samples`` samples would be returned.
        """
        ...

    async def series(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[Labels]:
        """Labels of the matching series that may have samples in the range."""
        ...

    async def label_names(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[str]:
        """Sorted names of the labels that matching series have."""
        ...

    async def label_values(self, name: str, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[str]:
        """Sorted values of one label among matching series."""
        ...

    async def metadata(self) -> list[MetricMetadata]:
        """Unit and kind by metric name."""
        ...

    async def statistics(self) -> StoreStatistics:
        """Counts and sizes."""
        ...

    async def maintain(self, now_ms: int) -> None:
        """One round of background work: seal finished hours, roll up, apply retention and the disk budget."""
        ...

    async def close(self) -> None:
        """Finish what is under way and close files."""
        ...
