"""Sealing: from rows in the head to chunks and rollups.

The order makes a crash harmless: rollups and chunks are committed first, the rows leave the head last; what was sealed but not yet
removed is sealed again from the same rows, with the same result. Work is cut into slices so that neither the writer nor a reader waits
long. All of it runs in the maintenance thread.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.telemetry.embedded.chunk import Chunk, encode_chunk, merge, stack
from app.telemetry.embedded.codec import CodecError, Floats, Integers, plan_decimals
from app.telemetry.embedded.files import DataFiles, Totals, is_corruption, transaction
from app.telemetry.embedded.head import Stretch, read_rows
from app.telemetry.embedded.index import SeriesIndex
from app.telemetry.embedded.reader import HOURS_A_DAY, HOURS_A_MONTH, Damage
from app.telemetry.embedded.rollup import HOUR_MS, coarsen, encode_steps, summarise

logger = logging.getLogger(__name__)

DAY_TABLES = """CREATE TABLE chunks (id INTEGER PRIMARY KEY, samples INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE spans (schema_id INTEGER PRIMARY KEY, oldest_ms INTEGER NOT NULL, newest_ms INTEGER NOT NULL)"""
MONTH_TABLES = """CREATE TABLE rollup_five_minutes (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE rollup_hour (id INTEGER PRIMARY KEY, body BLOB NOT NULL)"""
SLICE_SAMPLES = 125_000
SLICE_ROWS = 1_000
_SPAN = """INSERT INTO spans VALUES (?1, ?2, ?3) ON CONFLICT (schema_id) DO UPDATE
SET oldest_ms = min(oldest_ms, ?2), newest_ms = max(newest_ms, ?3)"""


@dataclass(frozen=True, slots=True)
class Sealed:
    """One slice's outcome: what to remove from the head, and what the day's file holds afterwards (None: nothing was written)."""

    stretches: Sequence[Stretch]
    day: int
    totals: Totals | None


@dataclass(frozen=True, slots=True)
class _Written:
    """A chunk to write."""

    schema_id: int
    times: Integers
    body: bytes
    five_minutes: bytes
    hour: bytes
    more_rows: int
    size: int


@dataclass(frozen=True, slots=True)
class _Known:
    """What was sealed before: rows counted, what of them can be read, and the columns that cannot."""

    rows: int
    pieces: list[tuple[Integers, Floats]]
    lost: frozenset[int]
    damaged: bool


class Sealer:
    """Seals slices of an hour.

    Args:
        index: for the sizes of schemas.
        days: where chunks go.
        months: where rollups go.
        damage: counts chunks that cannot be read when late rows are to join them.
    """

    def __init__(self, index: SeriesIndex, days: DataFiles, months: DataFiles, damage: Damage) -> None:
        self._index = index
        self._days = days
        self._months = months
        self._damage = damage

    def slice(self, head: sqlite3.Connection, hour_ms: int, schemas: Sequence[int], *, discard: bool) -> tuple[Sealed, int]:
        """Seal the rows of one hour of the first of ``schemas``, as many as make a slice; how many schemas that were.

        With ``discard`` (an hour past retention) nothing is written.

        Raises:
            sqlite3.Error: a file cannot be written; the head keeps its rows.
        """
        stretches: list[Stretch] = []
        gathered: list[tuple[int, Integers, Floats]] = []
        taken = rows = samples = 0
        for schema_id in schemas:
            size = self._index.size(schema_id) or 1
            times, values = read_rows(head, schema_id, hour_ms, hour_ms + HOUR_MS, size)
            taken += 1
            if not len(times):
                continue
            stretches.append(Stretch(schema_id, hour_ms, hour_ms + HOUR_MS, len(times), size))
            gathered.append((schema_id, times, values))
            rows += len(times)
            samples += values.size
            if samples >= SLICE_SAMPLES or rows >= SLICE_ROWS:
                break
        day = self._days.period.key(hour_ms)
        if discard or not gathered:
            return Sealed(stretches, day, None), taken
        try:
            return Sealed(stretches, day, self._write(day, hour_ms, gathered)), taken
        except sqlite3.DatabaseError as error:
            if is_corruption(error):
                self._find_corrupt(hour_ms, str(error))
            raise

    def _find_corrupt(self, hour_ms: int, reason: str) -> None:
        """Set aside whichever of the two files of an hour is damaged, so that the next round can go on."""
        for files in (self._days, self._months):
            key = files.period.key(hour_ms)
            try:
                sound = files.writer(key).execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
            except sqlite3.DatabaseError:
                sound = False
            if not sound:
                files.quarantine(key, reason)

    def _write(self, day: int, hour_ms: int, gathered: Sequence[tuple[int, Integers, Floats]]) -> Totals:
        writer = self._days.writer(day)
        hour_of_day = hour_ms % (HOURS_A_DAY * HOUR_MS) // HOUR_MS
        written: list[_Written] = []
        for schema_id, times, values in gathered:
            known = self._sealed_before(writer, schema_id, hour_ms, hour_of_day)
            merged_times, merged = merge([*known.pieces, (times, values)])
            more = len(merged_times) - known.rows
            if not more and not known.damaged:
                continue  # every row was sealed already
            plan = plan_decimals(merged)
            steps = summarise(merged_times, merged, plan.exponents)
            written.append(
                _Written(
                    schema_id,
                    merged_times,
                    encode_chunk(merged_times, plan, lost=known.lost),
                    encode_steps(steps),
                    encode_steps(coarsen(steps, HOUR_MS)),
                    more,
                    merged.shape[1],
                )
            )
        month = self._months.period.key(hour_ms)
        base = (hour_ms - self._months.period.start_ms(month)) // HOUR_MS
        rollups = self._months.writer(month)
        with transaction(rollups):
            rollups.executemany(
                "INSERT OR REPLACE INTO rollup_five_minutes VALUES (?, ?)",
                [(w.schema_id * HOURS_A_MONTH + base, w.five_minutes) for w in written],
            )
            rollups.executemany(
                "INSERT OR REPLACE INTO rollup_hour VALUES (?, ?)", [(w.schema_id * HOURS_A_MONTH + base, w.hour) for w in written]
            )
        with transaction(writer):
            writer.executemany(
                "INSERT OR REPLACE INTO chunks VALUES (?, ?, ?)",
                [(w.schema_id * HOURS_A_DAY + hour_of_day, len(w.times), w.body) for w in written],
            )
            writer.executemany(_SPAN, [(w.schema_id, int(w.times[0]), int(w.times[-1])) for w in written])
            if written:
                writer.execute(
                    """UPDATE meta SET rows = rows + ?1, samples = samples + ?2,
                    oldest_ms = min(coalesce(oldest_ms, ?3), ?3), newest_ms = max(coalesce(newest_ms, ?4), ?4)""",
                    (
                        sum(w.more_rows for w in written),
                        sum(w.more_rows * w.size for w in written),
                        min(int(w.times[0]) for w in written),
                        max(int(w.times[-1]) for w in written),
                    ),
                )
            return Totals(*writer.execute("SELECT rows, samples, oldest_ms, newest_ms FROM meta").fetchone())

    def _sealed_before(self, writer: sqlite3.Connection, schema_id: int, hour_ms: int, hour_of_day: int) -> _Known:
        """What a schema's chunk of this hour holds already, as far as it can be read."""
        row = writer.execute("SELECT samples, body FROM chunks WHERE id = ?", (schema_id * HOURS_A_DAY + hour_of_day,)).fetchone()
        if row is None:
            return _Known(0, [], frozenset(), damaged=False)
        try:
            chunk = Chunk(row[1])
        except CodecError as error:
            self._damage.report(schema_id, hour_ms, error)
            return _Known(row[0], [], frozenset(), damaged=True)
        columns: list[Floats] = []
        lost: set[int] = set()
        for column in range(chunk.columns):
            try:
                columns.append(chunk.column(column))
            except CodecError as error:
                self._damage.report(schema_id, hour_ms, error)
                columns.append(np.full(chunk.samples, np.nan))
                lost.add(column)
        return _Known(row[0], [(chunk.times, stack(columns, chunk.samples))], frozenset(lost), damaged=bool(lost))
