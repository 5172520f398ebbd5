"""The spool's database: its schema, its books, one transaction's change of them, and what SQLite's errors mean for it."""

from __future__ import annotations

import errno
import sqlite3
import zlib
from collections.abc import Iterable
from pathlib import Path

from connectors.core.errors import SpoolFullError, StateError
from connectors.core.ledger import Drop, Gap, Ledger
from connectors.core.telemetry import new_event_id

APPLICATION_ID = 0x49524341
VERSION = 1
PAGE = 4096
_DAMAGED_SCHEMA = ("no such table", "no such column", "already exists", "malformed", "integer overflow", "unsupported file format")
SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
CREATE TABLE batch (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, signal TEXT NOT NULL, items INTEGER NOT NULL, created_at REAL NOT NULL,
    checksum INTEGER NOT NULL, payload BLOB NOT NULL
);
CREATE TABLE ledger (
    kind TEXT NOT NULL, signal TEXT NOT NULL, reason TEXT NOT NULL, items INTEGER NOT NULL, PRIMARY KEY (kind, signal, reason)
) WITHOUT ROWID;
CREATE TABLE gap (
    id TEXT PRIMARY KEY, signal TEXT NOT NULL, reason TEXT NOT NULL, items INTEGER NOT NULL, start REAL NOT NULL, finish REAL NOT NULL,
    sealed INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE begun (at REAL NOT NULL);
CREATE INDEX batch_items ON batch (signal, items);
"""
OLDEST = (
    "SELECT seq, COALESCE(CAST(signal AS TEXT), ''), COALESCE(CAST(items AS INTEGER), 0), COALESCE(CAST(created_at AS REAL), 0),"
    " COALESCE(LENGTH(payload), 0) FROM batch ORDER BY seq LIMIT 1"
)
"""The oldest batch without its payload, in types that hold even where bits have flipped."""
HELD = "SELECT COALESCE(CAST(signal AS TEXT), '') AS of, SUM(COALESCE(CAST(items AS INTEGER), 0)) FROM batch GROUP BY of"
"""Items in the table by signal."""


class Change:
    """What one transaction changes in the books: written with it, entered into memory after its commit."""

    def __init__(self, gaps: dict[str, Gap]) -> None:
        self.ledger = Ledger()
        self.batches = 0
        self.seal = False
        self.settled_gaps: tuple[str, ...] = ()
        self._gaps = dict(gaps)
        self._touched: set[str] = set()

    def drop(self, drop: Drop) -> None:
        """Count the drop and widen the open gap of its signal and reason, or begin one."""
        self.ledger.dropped[drop.signal, drop.reason] += drop.items
        for gap in self._gaps.values():
            if (gap.signal, gap.reason, gap.sealed) == (drop.signal, drop.reason, False):
                self._put(gap.widened(drop))
                return
        self._put(Gap(new_event_id(), drop.signal, drop.reason, drop.items, drop.start, drop.end))

    def keep(self, gaps: Iterable[Gap]) -> None:
        """Carry gaps over from another file."""
        for gap in gaps:
            self._put(gap)

    def write(self, database: sqlite3.Connection) -> None:
        """Write counts and gaps."""
        database.executemany(
            "INSERT INTO ledger (kind, signal, reason, items) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (kind, signal, reason) DO UPDATE SET items = items + excluded.items",
            self.ledger.rows(),
        )
        database.executemany(
            "INSERT OR REPLACE INTO gap (id, signal, reason, items, start, finish, sealed) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(g.id, g.signal, g.reason, g.items, g.start, g.end, int(g.sealed)) for g in (self._gaps[each] for each in self._touched)],
        )

    def resulting_gaps(self) -> dict[str, Gap]:
        """The gaps as they stand after the commit."""
        gaps = {each: gap for each, gap in self._gaps.items() if each not in self.settled_gaps}
        if self.seal:
            gaps = {g.id: Gap(g.id, g.signal, g.reason, g.items, g.start, g.end, sealed=True) for g in gaps.values()}
        return gaps

    def _put(self, gap: Gap) -> None:
        self._gaps[gap.id] = gap
        self._touched.add(gap.id)


def read_books(database: sqlite3.Connection) -> tuple[Ledger, dict[str, Gap], float]:
    """The counts, the gaps by id, and when the books were begun (Unix seconds).

    Raises:
        sqlite3.Error: they cannot be read.
    """
    ledger = Ledger()
    for kind, signal, reason, items in database.execute("SELECT kind, signal, reason, items FROM ledger"):
        try:
            ledger.count(kind, signal, reason, int(items))
        except (ValueError, TypeError) as exc:
            raise sqlite3.DatabaseError(f"the books are not readable: {exc}") from exc
    rows = database.execute("SELECT id, signal, reason, items, start, finish, sealed FROM gap ORDER BY start")
    gaps = {row[0]: Gap(row[0], row[1], row[2], row[3], row[4], row[5], sealed=bool(row[6])) for row in rows}
    begun = database.execute("SELECT at FROM begun").fetchone()
    if begun is None:
        raise sqlite3.DatabaseError("the books have no beginning")
    return ledger, gaps, float(begun[0])


def used_bytes(database: sqlite3.Connection) -> int:
    """Bytes of the file that hold something."""
    pages = database.execute("PRAGMA page_count").fetchone()[0] - database.execute("PRAGMA freelist_count").fetchone()[0]
    return int(pages) * PAGE


def checksum(signal: str, items: int, payload: bytes) -> int:
    """What is kept beside a batch to tell when its bits have flipped."""
    return zlib.crc32(payload, zlib.crc32(f"{signal}:{items}".encode()))


def _primary_code(exc: sqlite3.Error) -> int:
    return (getattr(exc, "sqlite_errorcode", None) or 0) & 0xFF


def is_corruption(exc: sqlite3.Error) -> bool:
    """Whether the error says that the file is damaged, rather than that the disk is full or the code wrong."""
    extended = getattr(exc, "sqlite_errorcode", None)
    if extended is None:  # raised by Python's own layer: text that is not UTF-8, or by us
        return isinstance(exc, sqlite3.DatabaseError) and not isinstance(exc, sqlite3.ProgrammingError | sqlite3.InterfaceError)
    return (
        extended in (sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)
        or _primary_code(exc)
        in (
            sqlite3.SQLITE_CORRUPT,
            sqlite3.SQLITE_NOTADB,
            sqlite3.SQLITE_CONSTRAINT,
            sqlite3.SQLITE_MISMATCH,
        )
        or (_primary_code(exc) == sqlite3.SQLITE_ERROR and any(sign in str(exc) for sign in _DAMAGED_SCHEMA))
    )


def translated(exc: sqlite3.Error, path: Path) -> StateError:
    """The error of ours for one of SQLite's."""
    if _primary_code(exc) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        return SpoolFullError(f"the spool {path} cannot be written: {exc}")
    return StateError(f"the spool {path} cannot be used: {exc}")


def translated_os(exc: OSError, path: Path) -> StateError:
    """The error of ours for one met while moving files."""
    if exc.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG):
        return SpoolFullError(f"the spool {path} cannot be written: {exc.strerror}")
    return StateError(f"the corrupt spool {path} cannot be moved aside: {exc.strerror or exc}")
