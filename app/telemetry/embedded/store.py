"""The embedded store: how its parts work together.

Files in one directory: ``index.db`` (series and schemas), ``head.db`` (rows as they came), ``day-*.db`` (sealed chunks) and
``rollup-*.db`` (steps of five minutes and one hour). One thread writes index and head, one maintains, two read; the event loop waits
for none of them. What sealing guarantees stands in :mod:`.seal`, what reading does in :mod:`.reader`.

Samples of one series under two schemas at the same time: the value under the schema registered first counts.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np

from app.errors import InvalidRequestError, StartupError, StorageError
from app.telemetry.embedded.chunk import merge
from app.telemetry.embedded.codec import Floats, Integers, plan_decimals
from app.telemetry.embedded.directory import DirectoryLock
from app.telemetry.embedded.files import DAY_MS, LAST_MS, DataFiles, Day, Month, is_corruption, set_aside, size_on_disk
from app.telemetry.embedded.head import Entry, Head
from app.telemetry.embedded.index import SeriesIndex, digest_of
from app.telemetry.embedded.reader import Budget, Damage, Interrupted, ReadSession
from app.telemetry.embedded.retention import expired, over_budget
from app.telemetry.embedded.rollup import FIVE_MINUTES_MS, HOUR_MS, RollupSeries, Steps, coarsen, summarise
from app.telemetry.embedded.seal import DAY_TABLES, MONTH_TABLES, Sealed, Sealer
from app.telemetry.embedded.writer import Writer
from app.telemetry.matching import CompiledMatcher, compile_matchers
from app.telemetry.store import Labels, Matcher, MetricMetadata, Row, Schema, SeriesData, SeriesKey, StoreStatistics

logger = logging.getLogger(__name__)

SEAL_AFTER_MS = 600_000  # how long after its end an hour waits for stragglers
_READERS = 2
_QUEUE_BYTES = 64 * 2**20
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """What went wrong or was given up, and what waits; for /metrics.

    ``quarantined_files`` and ``damaged_chunks`` count since the store was opened, as do ``days_dropped_for_space`` (the disk budget),
    ``failed_commits`` and ``refused_appends`` (too much was waiting). ``unsealed_rows`` is what the head holds now.
    """

    quarantined_files: int
    damaged_chunks: int
    days_dropped_for_space: int
    failed_commits: int
    refused_appends: int
    commits: int
    unsealed_rows: int


class EmbeddedMetricStore:
    """A :class:`~app.telemetry.store.MetricStore` on SQLite files.

    Args:
        directory: where the files are; made if need be. One process at a time.
        retention: seconds that raw samples are kept; applied by whole UTC days.
        rollup_retention: seconds that rollups are kept; applied by whole months.
        disk_budget: bytes; the oldest days go first when the store grows beyond.
        clock: seconds since 1970.
        queue_bytes: what may wait for a commit before appends are refused.
    """

    def __init__(
        self,
        directory: Path,
        *,
        retention: float,
        rollup_retention: float,
        disk_budget: int,
        clock: Callable[[], float] = time.time,
        queue_bytes: int = _QUEUE_BYTES,
    ) -> None:
        self._directory = directory
        self._retention_ms = int(retention * 1000)
        self._rollup_retention_ms = int(rollup_retention * 1000)
        self._disk_budget = disk_budget
        self._clock = clock
        self._queue_bytes = queue_bytes
        self._lock = DirectoryLock(directory / "lock")
        self._damage = Damage()
        self._quarantined = 0
        self._dropped = 0
        self._closing = threading.Event()
        self._is_open = False
        self._maintaining = asyncio.Lock()

    # Opening and closing

    async def open(self) -> None:
        """Make it ready: recover what an unclean end left. Called once, first.

        Raises:
            StartupError: the directory cannot be used, or another process uses it.
        """
        try:
            await asyncio.to_thread(self._open)
        except (OSError, sqlite3.Error) as error:
            self._lock.release()
            raise StartupError(f"The metric store in {self._directory} cannot be opened: {error}.") from error
        self._writer.start()
        self._maintenance = ThreadPoolExecutor(1, "metric-store-maintenance")
        self._readers = ThreadPoolExecutor(_READERS, "metric-store-reader")
        self._sessions: SimpleQueue[ReadSession] = SimpleQueue()
        for _ in range(_READERS):
            self._sessions.put(self._session())
        self._own_session = self._session()
        self._is_open = True

    def _session(self) -> ReadSession:
        return ReadSession(self._head.path, self._days, self._months, self._damage)

    def _open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        index_path = self._directory / "index.db"
        self._index = SeriesIndex(index_path)
        try:
            self._index.open()
        except (sqlite3.DatabaseError, TypeError, ValueError, IndexError) as error:
            self._index.close()
            if isinstance(error, sqlite3.OperationalError) and not is_corruption(error) and "no such" not in str(error):
                raise
            # Without their index the other files mean nothing: they carry its identity, and go the same way below.
            self._set_aside(index_path, error)
            self._index = SeriesIndex(index_path)
            self._index.open()
        identity = self._index.identity
        self._days = DataFiles(self._directory, Day(), DAY_TABLES, identity, self._clock)
        self._months = DataFiles(self._directory, Month(), MONTH_TABLES, identity, self._clock)
        self._days.open()
        self._months.open()
        self._load_spans()
        self._head = Head(self._directory / "head.db")
        try:
            self._open_head(identity)
        except (sqlite3.DatabaseError, TypeError, ValueError) as error:
            self._head.close()
            if isinstance(error, sqlite3.OperationalError) and not is_corruption(error) and "no such" not in str(error):
                raise
            self._set_aside(self._head.path, error)
            self._open_head(identity)
        self._sealer = Sealer(self._index, self._days, self._months, self._damage)
        self._writer = Writer(self._index, self._head, self._queue_bytes)

    def _open_head(self, identity: str) -> None:
        self._head.open(identity)
        for schema_id, oldest, newest in self._head.spans(self._index.schema_ids()):
            self._index.touch(schema_id, oldest, newest)

    def _load_spans(self) -> None:
        for day in self._days.periods():
            try:
                connection = self._days.reader(day)
                try:
                    for schema_id, oldest, newest in connection.execute("SELECT schema_id, oldest_ms, newest_ms FROM spans"):
                        self._index.touch(schema_id, oldest, newest)
                finally:
                    connection.close()
            except sqlite3.DatabaseError as error:
                self._days.quarantine(day, str(error))

    def _set_aside(self, path: Path, error: Exception) -> None:
        set_aside(path, self._clock(), str(error))
        self._quarantined += 1

    async def close(self) -> None:
        """Finish what is under way and close files."""
        if self._is_open:
            self._is_open = False
            self._closing.set()
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._maintenance.shutdown(wait=True)
        self._readers.shutdown(wait=True)
        self._writer.stop()
        while not self._sessions.empty():
            self._sessions.get().close()
        self._own_session.close()
        self._days.close()
        self._months.close()
        self._head.close()
        self._index.close()
        self._lock.release()

    # Writing

    async def register(self, series: Sequence[SeriesKey]) -> Schema:
        """The schema of exactly these series in this order; the same list gives the same schema. Durable on return.

        Raises:
            InvalidRequestError: no series, or text that is not Unicode.
            StorageError: it could not be stored.
        """
        self._check_open()
        if not series:
            raise InvalidRequestError("A schema needs at least one series.")
        try:
            digest = digest_of(series)
        except UnicodeEncodeError as error:
            raise InvalidRequestError("Labels must be valid Unicode text.") from error
        known = self._index.known(digest)
        if known is not None:
            return known
        schema: Schema = await self._writer.register(digest, series)
        return schema

    async def append(self, rows: Sequence[Row]) -> None:
        """Store ``rows``, all or none; durable on return. Rows stored before (same series and time) change nothing.

        ``values`` may also be bytes of little-endian float64.

        Raises:
            InvalidRequestError: a schema is unknown, a row has another number of values, or a time is outside the years 1970 to 9999.
            StorageError: nothing was stored; the caller may try again.
            OverloadedError: too much is waiting already.
        """
        self._check_open()
        size_of = self._index.size
        entries: list[Entry] = []
        for row in rows:
            values = row.values
            packed = values.tobytes() if isinstance(values, np.ndarray) and values.dtype == np.float64 else _pack(values)
            if size_of(row.schema_id) != len(packed) // 8:
                raise InvalidRequestError(
                    f"A row of schema {row.schema_id} has {len(packed) // 8} values; the schema has {size_of(row.schema_id)}."
                )
            if not 0 <= row.time_ms < LAST_MS:
                raise InvalidRequestError(f"The time {row.time_ms} ms is out of range.")
            entries.append((row.schema_id, int(row.time_ms), packed))
        if entries:
            await self._writer.append(entries)

    # Reading

    async def select(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int, *, max_samples: int | None = None) -> list[SeriesData]:
        """Raw samples with ``start_ms <= time <= end_ms`` of the series that match; series without samples there are left out.

        Raises:
            QueryTooLargeError: more than ``max_samples`` samples would be returned.
            InvalidRequestError: a regular expression is not valid.
            StorageError: the files could not be read.
        """
        compiled = compile_matchers(matchers)
        return await self._read(lambda session: self._select(session, compiled, start_ms, end_ms, Budget(max_samples)))

    def _select(
        self, session: ReadSession, matchers: Sequence[CompiledMatcher], start_ms: int, end_ms: int, budget: Budget
    ) -> list[SeriesData]:
        found: dict[int, list[tuple[Integers, Floats]]] = {}
        for schema_id, columns, series in self._index.places(self._index.match(matchers), start_ms, end_ms):
            if self._closing.is_set():
                raise Interrupted
            size = self._index.size(schema_id) or 1
            for number, piece in zip(series.tolist(), session.columns(schema_id, size, columns, start_ms, end_ms, budget), strict=True):
                if len(piece[0]):
                    found.setdefault(number, []).append(piece)
        return [SeriesData(*self._index.describe(number), *merge(pieces)) for number, pieces in sorted(found.items())]

    async def select_rollup(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int, step_ms: int) -> list[RollupSeries]:
        """The matching series in the coarsest steps that are no longer than ``step_ms`` (five minutes at least).

        The steps that begin at ``start_ms <= time <= end_ms``; the latest hours, not yet sealed, are rolled up on the way.

        Raises:
            InvalidRequestError: a regular expression is not valid.
            StorageError: the files could not be read.
        """
        resolution = HOUR_MS if step_ms >= HOUR_MS else FIVE_MINUTES_MS
        compiled = compile_matchers(matchers)
        return await self._read(lambda session: self._select_rollup(session, compiled, start_ms, end_ms, resolution))

    def _select_rollup(
        self, session: ReadSession, matchers: Sequence[CompiledMatcher], start_ms: int, end_ms: int, resolution: int
    ) -> list[RollupSeries]:
        unsealed = [hour for hour in self._head.hours() if start_ms < hour + HOUR_MS and hour <= end_ms]
        ids = self._index.match(matchers)
        found: dict[int, dict[int, tuple[float, float, float, float, int]]] = {}
        for schema_id, columns, series in self._index.places(ids, None, LAST_MS):
            for steps in session.steps(schema_id, resolution, start_ms, end_ms):
                for column, number in zip(columns.tolist(), series.tolist(), strict=True):
                    found.setdefault(number, {}).update(_steps_of(steps, column))
        for hour in unsealed:
            for number, piece in self._raw(session, ids, hour):
                values = piece[1].reshape(-1, 1)
                steps = summarise(piece[0], values, plan_decimals(values).exponents)
                found.setdefault(number, {}).update(_steps_of(coarsen(steps, resolution), 0))
        result = []
        for number, steps_of in sorted(found.items()):
            chosen = [(at, *values) for at, values in sorted(steps_of.items()) if start_ms <= at <= end_ms and values[-1]]
            if chosen:
                times, minimum, maximum, total, last, count = (np.array(part) for part in zip(*chosen, strict=True))
                described = self._index.describe(number)
                result.append(RollupSeries(*described, resolution, times, minimum, maximum, total, last, count))
        return result

    def _raw(self, session: ReadSession, ids: Any, hour: int) -> Iterator[tuple[int, tuple[Integers, Floats]]]:
        for schema_id, columns, series in self._index.places(ids, hour, hour + HOUR_MS - 1):
            pieces = session.columns(schema_id, self._index.size(schema_id) or 1, columns, hour, hour + HOUR_MS - 1, Budget(None))
            yield from ((number, piece) for number, piece in zip(series.tolist(), pieces, strict=True) if len(piece[0]))

    async def series(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[Labels]:
        """Labels of the matching series that may have samples in the range."""
        compiled = compile_matchers(matchers)
        return await self._read(lambda _: [self._index.describe(n)[0] for n in self._present(compiled, start_ms, end_ms).tolist()])

    async def label_names(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[str]:
        """Sorted names of the labels that matching series have."""
        compiled = compile_matchers(matchers)
        return await self._read(lambda _: self._index.label_names(self._present(compiled, start_ms, end_ms)))

    async def label_values(self, name: str, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[str]:
        """Sorted values of one label among matching series."""
        compiled = compile_matchers(matchers)
        return await self._read(lambda _: self._index.label_values(name, self._present(compiled, start_ms, end_ms)))

    def _present(self, matchers: Sequence[CompiledMatcher], start_ms: int, end_ms: int) -> Any:
        """The matching series of schemas that may have samples in the range; what retention took does not count."""
        oldest = self._extent()[2]
        if oldest is None:
            return np.empty(0, np.uint32)
        places = self._index.places(self._index.match(matchers), max(start_ms, oldest), end_ms)
        return np.unique(np.concatenate([place[2] for place in places])) if places else np.empty(0, np.uint32)

    async def metadata(self) -> list[MetricMetadata]:
        """Unit and kind by metric name."""
        return await self._read(lambda _: self._index.metadata())

    async def statistics(self) -> StoreStatistics:
        """Counts and sizes. A repeated sample of an hour that is sealed already counts twice until the next maintenance finds it out."""
        return await self._read(lambda _: self._statistics())

    def _statistics(self) -> StoreStatistics:
        _, samples, oldest, newest = self._extent()
        return StoreStatistics(len(self._index), samples, self._disk_bytes(), oldest, newest)

    def _extent(self) -> tuple[int, int, int | None, int | None]:
        """Rows, samples, oldest and newest time of everything."""
        parts: list[Any] = [*self._head.hours().values(), *(totals for _, totals in self._days.totals())]
        oldest = [p.oldest_ms for p in parts if p.oldest_ms is not None]
        newest = [p.newest_ms for p in parts if p.newest_ms is not None]
        return sum(p.rows for p in parts), sum(p.samples for p in parts), min(oldest, default=None), max(newest, default=None)

    def _disk_bytes(self) -> int:
        fixed = sum(size_on_disk(self._directory / name) for name in ("index.db", "head.db"))
        return fixed + self._days.disk_bytes() + self._months.disk_bytes()

    def health(self) -> StoreHealth:
        """What went wrong or was given up since the store was opened, and what waits."""
        counts = self._writer.counts
        quarantined = self._quarantined + self._days.quarantined + self._months.quarantined
        unsealed = sum(hour.rows for hour in self._head.hours().values())
        return StoreHealth(quarantined, self._damage.chunks, self._dropped, counts.failures, counts.refusals, counts.commits, unsealed)

    # Background work

    async def maintain(self, now_ms: int) -> None:
        """One round of background work: seal hours that ended more than ten minutes ago, apply retention and the disk budget.

        Raises:
            StorageError: a file could not be written; the next round tries again.
        """
        self._check_open()
        async with self._maintaining:
            try:
                for hour_ms in sorted(self._head.hours()):
                    if hour_ms + HOUR_MS + SEAL_AFTER_MS <= now_ms:
                        await self._seal(hour_ms, now_ms)
                await self._off_loop(self._maintenance, lambda: self._remove_old(now_ms))
            except Interrupted:
                return

    async def _seal(self, hour_ms: int, now_ms: int) -> None:
        discard = hour_ms // DAY_MS * DAY_MS + DAY_MS <= now_ms - self._retention_ms
        pending = self._index.active_schemas(hour_ms, hour_ms + HOUR_MS - 1)
        while pending and not self._closing.is_set():
            step = partial(self._seal_slice, hour_ms, pending, discard)
            sealed, taken = await self._off_loop(self._maintenance, step)
            pending = pending[taken:]
            if sealed.stretches:
                await self._writer.remove(sealed.stretches, partial(self._account, sealed))

    def _seal_slice(self, hour_ms: int, schemas: Sequence[int], discard: bool) -> tuple[Sealed, int]:
        return self._sealer.slice(self._own_session.head(), hour_ms, schemas, discard=discard)

    def _account(self, sealed: Sealed) -> None:
        """In the writer thread: from now on the rows count as the day's and not as the head's."""
        if sealed.totals is not None:
            self._days.set_totals(sealed.day, sealed.totals)

    def _remove_old(self, now_ms: int) -> None:
        for files, retention in ((self._days, self._retention_ms), (self._months, self._rollup_retention_ms)):
            files.set_suspects_aside()
            files.settle()
            for key in expired(files.period, files.periods(), now_ms, retention):
                logger.info("metric store: %s is past its retention and removed", files.path(key).name)
                files.drop(key)
        sizes = {key: size_on_disk(self._days.path(key)) for key in self._days.periods()}
        for key in over_budget(sizes, self._disk_bytes(), self._disk_budget, now_ms):
            logger.warning(
                "metric store: %s is removed, the disk budget of %d bytes is used up", self._days.path(key).name, self._disk_budget
            )
            self._days.drop(key)
            self._dropped += 1

    # Threads

    def _check_open(self) -> None:
        if not self._is_open:
            raise StorageError("The metric store is not open.")

    async def _read(self, work: Callable[[ReadSession], T]) -> T:
        self._check_open()

        def borrowed() -> T:
            with self._borrow() as session:
                return work(session)

        try:
            return await self._off_loop(self._readers, borrowed)
        except Interrupted as error:
            raise StorageError("The metric store is closing.") from error

    @contextmanager
    def _borrow(self) -> Iterator[ReadSession]:
        session = self._sessions.get()
        try:
            yield session
        except sqlite3.Error:
            session.close()  # whatever state its connections are in, the next reader begins afresh
            raise
        finally:
            self._sessions.put(session)

    async def _off_loop(self, executor: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, work)
        except (sqlite3.Error, OSError) as error:
            logger.exception("metric store: background work failed")
            raise StorageError(f"The metric store failed: {error}.") from error
        except RuntimeError as error:
            if self._closing.is_set():
                raise StorageError("The metric store is closing.") from error
            raise


def _pack(values: Any) -> bytes:
    """A row's values as little-endian float64, from bytes or from any array of numbers."""
    packed = bytes(values) if isinstance(values, bytes | bytearray | memoryview) else np.ascontiguousarray(values, "<f8").tobytes()
    if len(packed) % 8:
        raise InvalidRequestError("A row's bytes must be whole float64 values.")
    return packed


def _steps_of(steps: Steps, column: int) -> Iterator[tuple[int, tuple[float, float, float, float, int]]]:
    parts = (steps.minimum, steps.maximum, steps.sum, steps.last, steps.count)
    return zip(steps.times.tolist(), zip(*(part[:, column].tolist() for part in parts), strict=True), strict=True)
