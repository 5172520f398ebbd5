"""Reading: a session of connections that one thread at a time borrows.

A read looks at the head first and at the chunks after it. Sealing writes the chunk before it takes the rows from the head, so that this
order sees every row at least once; where both have it, the chunk's value is the one that was there first.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.errors import QueryTooLargeError
from app.telemetry.embedded.chunk import Chunk, merge
from app.telemetry.embedded.codec import CodecError, Floats, Integers
from app.telemetry.embedded.files import DataFiles, connect, is_corruption
from app.telemetry.embedded.head import read_column, read_rows
from app.telemetry.embedded.rollup import HOUR_MS, Steps, decode_steps

logger = logging.getLogger(__name__)

HOURS_A_DAY = 24
HOURS_A_MONTH = 744
_OPEN_FILES = 40
_WHOLE_CHUNK_FROM = 0.004  # share of a chunk's columns from which it is cheaper to fetch all of it than to pick: measured
_WHOLE_CHUNKS = "SELECT id, body FROM chunks WHERE id BETWEEN ? AND ? ORDER BY id"
_CHUNK_IDS = "SELECT id FROM chunks WHERE id BETWEEN ? AND ? ORDER BY id"
_FIVE_MINUTES = "SELECT id, body FROM rollup_five_minutes WHERE id BETWEEN ? AND ? ORDER BY id"
_HOURS = "SELECT id, body FROM rollup_hour WHERE id BETWEEN ? AND ? ORDER BY id"


class Interrupted(Exception):  # noqa: N818 - not an error: the store is closing, or the query has ended
    """The read was told to stop."""


@dataclass(slots=True)
class Damage:
    """Counts damaged chunks; shared by the sessions."""

    chunks: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def report(self, schema_id: int, hour_ms: int, error: CodecError) -> None:
        """Count and log one."""
        with self.lock:
            self.chunks += 1
        logger.error("metric store: the chunk of schema %d at %d is damaged and passed over: %s", schema_id, hour_ms, error)


class Budget:
    """Samples that a query may still return."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._used = 0

    def take(self, samples: int) -> None:
        """Count samples.

        Raises:
            QueryTooLargeError: there are more than the limit.
        """
        self._used += samples
        if self._limit is not None and self._used > self._limit:
            raise QueryTooLargeError(f"The query would return more than {self._limit} samples; narrow its time range or its matchers.")


class ReadSession:
    """Connections for reading: the head, and the data files used lately."""

    def __init__(self, head_path: Path, days: DataFiles, months: DataFiles, damage: Damage) -> None:
        self._head_path = head_path
        self._days = days
        self._months = months
        self._damage = damage
        self._head: sqlite3.Connection | None = None
        self._open: OrderedDict[tuple[str, int], tuple[int, sqlite3.Connection]] = OrderedDict()

    def head(self) -> sqlite3.Connection:
        """The connection to the head."""
        if self._head is None:
            self._head = connect(self._head_path, read_only=True)
        return self._head

    def close(self) -> None:
        """Close everything."""
        for _, connection in self._open.values():
            with suppress(sqlite3.Error):
                connection.close()
        self._open.clear()
        if self._head is not None:
            self._head.close()
            self._head = None

    def _file(self, files: DataFiles, key: int) -> sqlite3.Connection | None:
        """The connection to a period's file; None when there is none (any more)."""
        name = (files.period.prefix, key)
        generation = files.generation(key)
        known = self._open.pop(name, None)
        if known is not None:
            if known[0] == generation:
                self._open[name] = known
                return known[1]
            known[1].close()
        if generation is None:
            return None
        while len(self._open) >= _OPEN_FILES:
            self._open.popitem(last=False)[1][1].close()
        connection = files.reader(key)
        self._open[name] = generation, connection
        return connection

    def _overlapping(self, files: DataFiles, start_ms: int, end_ms: int) -> list[int]:
        return [k for k in files.periods() if files.period.start_ms(k) <= end_ms and files.period.start_ms(k + 1) > start_ms]

    def _ask(self, files: DataFiles, key: int, statement: str, bounds: tuple[int, int]) -> tuple[sqlite3.Connection | None, list[Any]]:
        """Rows from a period's file, and the connection they came over; none when the file is gone, or corrupt (which is reported)."""
        try:
            connection = self._file(files, key)
            return connection, [] if connection is None else connection.execute(statement, bounds).fetchall()
        except sqlite3.Error as error:
            if files.generation(key) is not None:  # else it was removed while this read was under way
                if not is_corruption(error):
                    raise
                files.suspect(key, str(error))
            return None, []

    def columns(
        self, schema_id: int, size: int, columns: npt.NDArray[np.intp], start_ms: int, end_ms: int, budget: Budget
    ) -> list[tuple[Integers, Floats]]:
        """Times and values of each of ``columns`` of a schema with ``start_ms <= time <= end_ms``.

        Raises:
            QueryTooLargeError: more samples than ``budget`` allows.
            sqlite3.Error: a file cannot be read (and is not just corrupt).
        """
        if len(columns) == 1:
            head_times, one = read_column(self.head(), schema_id, start_ms, end_ms + 1, int(columns[0]))
            head_values = one.reshape(-1, 1)
        else:
            head_times, every = read_rows(self.head(), schema_id, start_ms, end_ms + 1, size)
            head_values = every[:, columns]
        budget.take(len(head_times) * len(columns))
        pieces: list[list[tuple[Integers, Floats]]] = [[] for _ in columns]
        for chunk in self._chunks(schema_id, start_ms, end_ms, len(columns) / size):
            low, high = np.searchsorted(chunk.times, [start_ms, end_ms + 1])
            if low == high:
                continue
            budget.take(int(high - low) * len(columns))
            for target, column in zip(pieces, columns, strict=True):
                try:
                    target.append((chunk.times[low:high], chunk.column(int(column))[low:high]))
                except CodecError as error:
                    self._damage.report(schema_id, int(chunk.times[0]) // HOUR_MS * HOUR_MS, error)
        return [merge([*target, (head_times, head_values[:, index])]) for index, target in enumerate(pieces)]

    def _chunks(self, schema_id: int, start_ms: int, end_ms: int, share: float) -> Iterator[Chunk]:
        whole = share >= _WHOLE_CHUNK_FROM
        for day in self._overlapping(self._days, start_ms, end_ms):
            midnight = self._days.period.start_ms(day)
            first = max(0, (start_ms - midnight) // HOUR_MS)
            last = min(HOURS_A_DAY - 1, (end_ms - midnight) // HOUR_MS)
            bounds = schema_id * HOURS_A_DAY + first, schema_id * HOURS_A_DAY + last
            connection, rows = self._ask(self._days, day, _WHOLE_CHUNKS if whole else _CHUNK_IDS, bounds)
            if connection is None:
                continue
            for number, *body in rows:
                try:
                    yield Chunk(body[0] if body else partial(_part, connection, number))
                except CodecError as error:
                    self._damage.report(schema_id, midnight + number % HOURS_A_DAY * HOUR_MS, error)

    def steps(self, schema_id: int, resolution_ms: int, start_ms: int, end_ms: int) -> Iterator[Steps]:
        """The stored rollups of a schema whose hours overlap the range, in order."""
        statement = _HOURS if resolution_ms == HOUR_MS else _FIVE_MINUTES
        for month in self._overlapping(self._months, start_ms, end_ms):
            beginning = self._months.period.start_ms(month)
            first = max(0, (start_ms - beginning) // HOUR_MS)
            last = min(HOURS_A_MONTH - 1, (end_ms - beginning) // HOUR_MS)
            bounds = schema_id * HOURS_A_MONTH + first, schema_id * HOURS_A_MONTH + last
            for number, body in self._ask(self._months, month, statement, bounds)[1]:
                try:
                    yield decode_steps(body)
                except CodecError as error:
                    self._damage.report(schema_id, beginning + number % HOURS_A_MONTH * HOUR_MS, error)


def _part(connection: sqlite3.Connection, number: int, start: int, end: int) -> bytes:
    """A part of a chunk, without reading the rest of it."""
    try:
        with connection.blobopen("chunks", "body", number, readonly=True) as blob:
            blob.seek(start)
            return blob.read(end - start)
    except (sqlite3.DatabaseError, ValueError) as error:
        if isinstance(error, ValueError) or is_corruption(error):
            raise CodecError(str(error)) from error
        raise
