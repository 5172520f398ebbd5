"""The head: rows as they came, in one append-only table, until their hour is sealed.

One file for all days, so that an append is one transaction whatever times its rows have: all or none, also in a crash. ``hours`` keeps
exact counts by hour in the same transactions. Everything here belongs to the writer thread but :meth:`Head.hours`, which is a copy.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.telemetry.embedded.codec import Floats, Integers
from app.telemetry.embedded.files import connect, transaction
from app.telemetry.embedded.rollup import HOUR_MS

Entry = tuple[int, int, bytes]  # schema, time in ms, float64 values little-endian
_TABLES = (
    "CREATE TABLE identity (value TEXT NOT NULL)",
    "CREATE TABLE head (schema_id INTEGER NOT NULL, time_ms INTEGER NOT NULL, vals BLOB NOT NULL, PRIMARY KEY (schema_id, time_ms))",
    "CREATE TABLE hours (hour_ms INTEGER PRIMARY KEY, rows INTEGER, samples INTEGER, oldest_ms INTEGER, newest_ms INTEGER)",
)
_COUNT = """INSERT INTO hours VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (hour_ms) DO UPDATE SET rows = rows + ?2, samples = samples + ?3,
oldest_ms = min(oldest_ms, ?4), newest_ms = max(newest_ms, ?5)"""


@dataclass(frozen=True, slots=True)
class HeadHour:
    """What the head holds of one hour."""

    rows: int
    samples: int
    oldest_ms: int
    newest_ms: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows of a schema with ``start_ms <= time < end_ms``: ``rows`` of them, ``size`` values each, were read and sealed."""

    schema_id: int
    start_ms: int
    end_ms: int
    rows: int
    size: int


class Head:
    """The head over one ``head.db``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._hours: dict[int, HeadHour] = {}

    def open(self, identity: str) -> None:
        """Open or make the file.

        Raises:
            sqlite3.Error: it cannot be opened, or is damaged.
            ValueError: it belongs to another index.
        """
        self._connection = connect(self.path, cache_kib=32768)
        if self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            with transaction(self._connection):
                for statement in _TABLES:
                    self._connection.execute(statement)
                self._connection.execute("INSERT INTO identity VALUES (?)", (identity,))
        if self._connection.execute("SELECT value FROM identity").fetchone() != (identity,):
            raise ValueError("it belongs to another index")
        self._load_hours()

    def _load_hours(self) -> None:
        rows = self.connection.execute("SELECT hour_ms, rows, samples, oldest_ms, newest_ms FROM hours").fetchall()
        with self._lock:
            self._hours = {row[0]: HeadHour(*row[1:]) for row in rows}

    @property
    def connection(self) -> sqlite3.Connection:
        """The writer's connection."""
        if self._connection is None:
            raise sqlite3.ProgrammingError("the head is not open")
        return self._connection

    def hours(self) -> dict[int, HeadHour]:
        """What the head holds, by hour; from any thread."""
        with self._lock:
            return dict(self._hours)

    def spans(self, schema_ids: Iterable[int]) -> list[tuple[int, int, int]]:
        """``(schema, oldest, newest)`` of those schemas that have rows here."""
        statement = """SELECT (SELECT time_ms FROM head WHERE schema_id = ?1 ORDER BY time_ms LIMIT 1),
        (SELECT time_ms FROM head WHERE schema_id = ?1 ORDER BY time_ms DESC LIMIT 1)"""
        found = ((schema, *self.connection.execute(statement, (schema,)).fetchone()) for schema in schema_ids)
        return [row for row in found if row[1] is not None]

    def insert(self, entries: Iterable[Entry]) -> None:
        """Store rows in one durable transaction; those of a known schema and time change nothing.

        Raises:
            sqlite3.Error: nothing was stored.
        """
        groups: dict[tuple[int, int], list[Entry]] = {}
        for entry in entries:
            key = (entry[1] // HOUR_MS, len(entry[2]))
            group = groups.get(key)
            if group is None:
                groups[key] = [entry]
            else:
                group.append(entry)
        counted: list[tuple[int, int, int, int, int]] = []
        connection = self.connection
        with transaction(connection):
            for (hour, size), group in groups.items():
                done = connection.executemany("INSERT OR IGNORE INTO head VALUES (?, ?, ?)", group).rowcount
                if done:
                    # Times of rows that were there before widen nothing: their hour holds them already.
                    counted.append((hour * HOUR_MS, done, done * size // 8, min(e[1] for e in group), max(e[1] for e in group)))
            connection.executemany(_COUNT, counted)
        with self._lock:
            for hour_ms, rows, samples, oldest, newest in counted:
                known = self._hours.get(hour_ms)
                self._hours[hour_ms] = (
                    HeadHour(rows, samples, oldest, newest)
                    if known is None
                    else HeadHour(known.rows + rows, known.samples + samples, min(known.oldest_ms, oldest), max(known.newest_ms, newest))
                )

    def remove(self, stretches: Sequence[Stretch]) -> None:
        """Remove what was sealed, in one transaction; a stretch that has got more rows since it was read stays for another round.

        Raises:
            sqlite3.Error: nothing was removed.
        """
        connection = self.connection
        removed: dict[int, tuple[int, int]] = {}
        with transaction(connection):
            for stretch in stretches:
                where = (stretch.schema_id, stretch.start_ms, stretch.end_ms)
                condition = "schema_id = ? AND time_ms >= ? AND time_ms < ?"
                there = connection.execute(f"SELECT count(*) FROM head WHERE {condition}", where).fetchone()[0]  # noqa: S608 - a constant
                if there != stretch.rows:
                    continue
                connection.execute(f"DELETE FROM head WHERE {condition}", where)  # noqa: S608 - a constant
                hour_ms = stretch.start_ms // HOUR_MS * HOUR_MS
                rows, samples = removed.get(hour_ms, (0, 0))
                removed[hour_ms] = (rows + stretch.rows, samples + stretch.rows * stretch.size)
            for hour_ms, (rows, samples) in removed.items():
                connection.execute("UPDATE hours SET rows = rows - ?, samples = samples - ? WHERE hour_ms = ?", (rows, samples, hour_ms))
            connection.execute("DELETE FROM hours WHERE rows <= 0")
        with self._lock:
            for hour_ms, (rows, samples) in removed.items():
                known = self._hours[hour_ms]
                if known.rows <= rows:
                    del self._hours[hour_ms]
                else:
                    self._hours[hour_ms] = HeadHour(known.rows - rows, known.samples - samples, known.oldest_ms, known.newest_ms)

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def read_rows(connection: sqlite3.Connection, schema_id: int, start_ms: int, end_ms: int, size: int) -> tuple[Integers, Floats]:
    """A schema's rows with ``start_ms <= time < end_ms`` in time order: times, and values as samples x columns."""
    rows = connection.execute(
        "SELECT time_ms, vals FROM head WHERE schema_id = ? AND time_ms >= ? AND time_ms < ? ORDER BY time_ms",
        (schema_id, start_ms, end_ms),
    ).fetchall()
    times = np.fromiter((row[0] for row in rows), np.int64, len(rows))
    values = np.frombuffer(b"".join([row[1] for row in rows]), "<f8").reshape(len(rows), size)
    return times, values


def read_column(connection: sqlite3.Connection, schema_id: int, start_ms: int, end_ms: int, column: int) -> tuple[Integers, Floats]:
    """One column of a schema's rows, as :func:`read_rows`."""
    rows = connection.execute(
        "SELECT time_ms, substr(vals, ?, 8) FROM head WHERE schema_id = ? AND time_ms >= ? AND time_ms < ? ORDER BY time_ms",
        (column * 8 + 1, schema_id, start_ms, end_ms),
    ).fetchall()
    times = np.fromiter((row[0] for row in rows), np.int64, len(rows))
    return times, np.frombuffer(b"".join([row[1] for row in rows]), "<f8")
