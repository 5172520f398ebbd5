"""The store's files: one SQLite database for each day of chunks and each month of rollups, beside the index and the head.

Retention is the removal of a whole file. A file that SQLite finds corrupt is set aside (``<name>.corrupt-<time>``) with a log line
and a count, and the store goes on without it. Every file carries the identity of the index it belongs to, because schema numbers mean
nothing under another one.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

logger = logging.getLogger(__name__)

DAY_MS = 86_400_000
SUFFIXES = ("", "-wal", "-shm")
LAST_MS = 253_402_300_800_000  # the year 10,000: file names end there
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OPEN_WRITERS = 4
_BUSY_TIMEOUT = 10.0
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class Period(Protocol):
    """How time is cut into files."""

    prefix: str

    def key(self, time_ms: int) -> int:
        """The period that holds ``time_ms``."""
        ...

    def start_ms(self, key: int) -> int:
        """When a period begins; the next one's beginning is its end."""
        ...

    def name(self, key: int) -> str:
        """The file's name without its suffix."""
        ...


class Day:
    """A UTC day: ``day-2026-10-05``."""

    prefix = "day-"

    def key(self, time_ms: int) -> int:
        """Days since 1970."""
        return time_ms // DAY_MS

    def start_ms(self, key: int) -> int:
        """Midnight."""
        return key * DAY_MS

    def name(self, key: int) -> str:
        """The file's name without its suffix."""
        return f"{self.prefix}{_EPOCH + timedelta(days=key):%Y-%m-%d}"


class Month:
    """A UTC month: ``rollup-2026-10``."""

    prefix = "rollup-"

    def key(self, time_ms: int) -> int:
        """Months since the year 0."""
        moment = _EPOCH + timedelta(milliseconds=time_ms)
        return moment.year * 12 + moment.month - 1

    def start_ms(self, key: int) -> int:
        """Midnight of the first."""
        if key >= 10_000 * 12:
            return LAST_MS
        return int((datetime(key // 12, key % 12 + 1, 1, tzinfo=UTC) - _EPOCH).total_seconds()) * 1000

    def name(self, key: int) -> str:
        """The file's name without its suffix."""
        return f"{self.prefix}{key // 12:04}-{key % 12 + 1:02}"


@dataclass(slots=True)
class Totals:
    """What a file holds."""

    rows: int = 0
    samples: int = 0
    oldest_ms: int | None = None
    newest_ms: int | None = None


def connect(path: Path, *, read_only: bool = False, durable: bool = True, cache_kib: int = 4096) -> sqlite3.Connection:
    """Open a database of the store: WAL, synced at every commit, transactions by hand, usable from any one thread at a time."""
    connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        connection.execute("PRAGMA secure_delete=OFF")  # some distributions switch it on, and then freed pages are written again
        connection.execute(f"PRAGMA cache_size=-{cache_kib}")
        if read_only:
            connection.execute("PRAGMA query_only=ON")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """One write transaction: committed at the end, rolled back on any exception."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def is_corruption(error: BaseException) -> bool:
    """Whether SQLite says that the file itself is damaged (and not, say, that the disk is full)."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, sqlite3.DatabaseError) and code is not None and code & 0xFF in _CORRUPT


def set_aside(path: Path, now: float, reason: str) -> Path:
    """Rename a database and its companions to ``<name>.corrupt-<time>``; the new path of the database itself."""
    moment = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    target = path.with_name(f"{path.name}.corrupt-{moment}")
    for suffix in SUFFIXES:
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{target}{suffix}")
    logger.error("metric store: %s cannot be used and was set aside as %s: %s", path.name, target.name, reason)
    return target


def size_on_disk(path: Path) -> int:
    """Bytes of a database with its companions; 0 when it is gone."""
    total = 0
    for suffix in SUFFIXES:
        with suppress(FileNotFoundError):
            total += Path(f"{path}{suffix}").stat().st_size
    return total


class DataFiles:
    """The files of one kind of period. Writers are borrowed by one thread; the set of files may be asked for from any.

    Args:
        directory: where they are.
        period: how time is cut.
        tables: the SQL that makes a new file's tables, beside ``meta``, which every file has.
        identity: the index's identity; a file of another is set aside.
        clock: seconds since 1970, for the names of files set aside.
    """

    def __init__(self, directory: Path, period: Period, tables: str, identity: str, clock: Callable[[], float]) -> None:
        self._directory = directory
        self._period = period
        self._tables = tables
        self._identity = identity
        self._clock = clock
        self._lock = threading.Lock()
        self._totals: dict[int, Totals] = {}
        self._generation: dict[int, int] = {}
        self._writers: OrderedDict[int, sqlite3.Connection] = OrderedDict()
        self._opened = 0
        self._suspects: dict[int, str] = {}
        self.quarantined = 0

    @property
    def period(self) -> Period:
        """How time is cut."""
        return self._period

    def path(self, key: int) -> Path:
        """The file of a period, whether it exists or not."""
        return self._directory / f"{self._period.name(key)}.db"

    def open(self) -> None:
        """Find the files there are; what cannot be read is set aside."""
        for path in sorted(self._directory.glob(f"{self._period.prefix}*.db")):
            key = self._key_of(path)
            if key is None:
                continue
            try:
                self._adopt(key, path)
            except (sqlite3.DatabaseError, ValueError) as error:
                if isinstance(error, sqlite3.OperationalError) and not is_corruption(error) and "no such table" not in str(error):
                    raise
                self.quarantine(key, str(error))

    def _key_of(self, path: Path) -> int | None:
        text = path.stem.removeprefix(self._period.prefix)
        try:
            moment = datetime.fromisoformat(text if text.count("-") > 1 else f"{text}-01").replace(tzinfo=UTC)
        except ValueError:
            return None
        return self._period.key(int((moment - _EPOCH).total_seconds()) * 1000)

    def _adopt(self, key: int, path: Path) -> None:
        connection = connect(path)
        try:
            row = connection.execute("SELECT identity, rows, samples, oldest_ms, newest_ms FROM meta").fetchone()
        finally:
            connection.close()
        if row is None or row[0] != self._identity:
            raise ValueError("it belongs to another index")
        self._know(key, Totals(*row[1:]))

    def _know(self, key: int, totals: Totals) -> None:
        with self._lock:
            self._opened += 1
            self._totals[key] = totals
            self._generation[key] = self._opened

    def periods(self) -> list[int]:
        """The periods that have a file, in order."""
        with self._lock:
            return sorted(self._totals)

    def generation(self, key: int) -> int | None:
        """A number that changes when a period's file is another one; None without a file."""
        with self._lock:
            return self._generation.get(key)

    def totals(self) -> list[tuple[int, Totals]]:
        """What the files hold, in order."""
        with self._lock:
            return sorted(self._totals.items())

    def set_totals(self, key: int, totals: Totals) -> None:
        """Note what a file holds now; a file that is gone stays gone."""
        with self._lock:
            if key in self._totals:
                self._totals[key] = totals

    def writer(self, key: int) -> sqlite3.Connection:
        """The connection that writes to a period's file, made if need be. Few stay open: the longest unused is closed first."""
        self.set_suspects_aside()
        connection = self._writers.get(key)
        if connection is not None:
            self._writers.move_to_end(key)
            return connection
        while len(self._writers) >= _OPEN_WRITERS:
            self._writers.popitem(last=False)[1].close()
        path = self.path(key)
        connection = connect(path)
        try:
            with transaction(connection):
                known = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'meta'").fetchone()[0]
                if not known:
                    connection.execute(
                        "CREATE TABLE meta (identity TEXT, rows INTEGER, samples INTEGER, oldest_ms INTEGER, newest_ms INTEGER)"
                    )
                    connection.execute("INSERT INTO meta VALUES (?, 0, 0, NULL, NULL)", (self._identity,))
                    for statement in filter(str.strip, self._tables.split(";")):
                        connection.execute(statement)
        except BaseException:
            connection.close()
            raise
        self._writers[key] = connection
        if self.generation(key) is None:
            self._know(key, Totals())
        return connection

    def reader(self, key: int) -> sqlite3.Connection:
        """A new connection that only reads."""
        return connect(self.path(key), read_only=True, cache_kib=2048)

    def forget(self, key: int) -> None:
        """Readers are not sent to this period any more, and its writer is closed."""
        with self._lock:
            self._totals.pop(key, None)
            self._generation.pop(key, None)
        writer = self._writers.pop(key, None)
        if writer is not None:
            with suppress(sqlite3.Error):
                writer.close()

    def drop(self, key: int) -> None:
        """Remove a period's file."""
        self.forget(key)
        for suffix in SUFFIXES:
            Path(f"{self.path(key)}{suffix}").unlink(missing_ok=True)

    def quarantine(self, key: int, reason: str) -> None:
        """Set a period's file aside; for the thread that writes."""
        self.suspect(key, reason)
        self.set_suspects_aside()

    def suspect(self, key: int, reason: str) -> None:
        """Any thread: a period's file is corrupt. Nobody reads it from now on; the writing thread sets it aside when it comes by."""
        with self._lock:
            if key not in self._suspects:
                self._suspects[key] = reason
                self.quarantined += 1
            self._totals.pop(key, None)
            self._generation.pop(key, None)

    def set_suspects_aside(self) -> None:
        """Set aside what was reported with :meth:`suspect`."""
        with self._lock:
            suspects = list(self._suspects.items())
        for key, reason in suspects:
            self.forget(key)
            set_aside(self.path(key), self._clock(), reason)
            with self._lock:
                del self._suspects[key]

    def settle(self) -> None:
        """Bring the write-ahead logs of the files written lately into the files, where no reader is in the way."""
        for connection in self._writers.values():
            connection.execute("PRAGMA busy_timeout=0")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            connection.execute(f"PRAGMA busy_timeout={int(_BUSY_TIMEOUT * 1000)}")

    def disk_bytes(self) -> int:
        """Bytes of all files."""
        return sum(size_on_disk(self.path(key)) for key in self.periods())

    def close(self) -> None:
        """Close the writers."""
        while self._writers:
            with suppress(sqlite3.Error):
                self._writers.popitem()[1].close()
