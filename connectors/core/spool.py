"""The agent's queue on disk: what was produced and not yet taken by the platform, bounded by bytes and age, with exact books.

One SQLite file in WAL mode with ``synchronous=FULL``: when :meth:`Spool.append` returns, the batch and its place in the books survive
a kill and a power loss. Batches and counts change in the same transactions, so ``produced = sent + dropped + spooled`` holds at every
moment. What is dropped leaves a *gap* behind, which is kept until it has been delivered.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from connectors.core import log
from connectors.core.errors import SpoolFullError, StateError
from connectors.core.files import Ballast, move_aside
from connectors.core.ledger import Batch, Drop, DropReason, Gap, Ledger, Signal, SpoolStatistics
from connectors.core.spool_database import (
    APPLICATION_ID,
    HELD,
    OLDEST,
    PAGE,
    SCHEMA,
    VERSION,
    Change,
    checksum,
    is_corruption,
    read_books,
    translated,
    translated_os,
    used_bytes,
)

Result = TypeVar("Result")
_Row = tuple[int, str, int, float, int]  # number, signal, items, time in Unix seconds, bytes

_LOG = logging.getLogger(__name__)
_SHARED_MEMORY = 32_768
_QUARANTINES_KEPT = 2
_VACUUM_PAGES = 256


class Spool:
    """The queue in the file ``path``.

    Args:
        path: the database file; its directory must exist. ``-wal`` and ``-shm`` files stand beside it.
        max_bytes: bound of all its files together; the oldest batches are dropped to stay below.
        max_age: seconds after which a batch is dropped.
        clock: Unix seconds.

    Methods may be called from any thread.

    Raises:
        SpoolFullError: the disk is full or read-only.
        StateError: the file cannot be used for another reason. A corrupt file is no reason: it is moved aside and a fresh one begun.
    """

    def __init__(self, path: Path, max_bytes: int, max_age: float, clock: Callable[[], float]) -> None:
        self.path = path
        self._max_age = max_age
        self._clock = clock
        self._wal_budget = min(2_097_152, max_bytes // 4)
        # As large as what a full write-ahead log may add to the file: with it let go, the log can be emptied even on a full disk.
        self._ballast = Ballast(path.with_name(f"{path.name}-ballast"), self._wal_budget)
        self._budget = max_bytes - 2 * self._wal_budget - _SHARED_MEMORY
        self._lock = threading.RLock()
        self._ledger = Ledger()
        self._gaps: dict[str, Gap] = {}
        self._batches = 0
        self._oldest: float | None = None
        self._since = clock()
        self._connection: sqlite3.Connection | None = None
        self._attempt(self._open)

    @property
    def max_payload(self) -> int:
        """The largest payload, in bytes, that the bounds leave room for."""
        return min(self._wal_budget * 9 // 10 - 65_536, self._budget - 65_536)

    def append(self, signal: Signal, payload: bytes, items: int, created_at: float | None = None) -> int | None:
        """Store a batch; durable on return. Older batches give way where a bound asks for it.

        Returns:
            The batch's sequence number, or None when it alone exceeds the bounds and was dropped at once.

        Raises:
            SpoolFullError: the disk has no room; nothing was stored or counted.
            StateError: the database failed in another way; nothing was stored or counted.
        """
        now = self._clock()
        made_at = now if created_at is None else created_at

        def store() -> int | None:
            self._ballast.lay()  # what was let go in need comes back before anything new is stored
            fits = len(payload) <= self.max_payload
            self._drop_oldest(now, len(payload) if fits else None)
            with self._transaction(room_for=len(payload) if fits else 0) as (database, change):
                change.ledger.produced[signal] += items
                if not fits:
                    change.drop(Drop(signal, DropReason.SIZE, items, made_at, made_at))
                    return None
                cursor = database.execute(
                    "INSERT INTO batch (signal, items, created_at, checksum, payload) VALUES (?, ?, ?, ?, ?)",
                    (signal, items, made_at, checksum(signal, items, payload), payload),
                )
                change.batches += 1
                return cursor.lastrowid

        return self._attempt(store)

    def peek(self, limit: int = 16, max_bytes: int = 1_048_576, after: int = 0) -> list[Batch]:
        """The oldest batches with a sequence number above ``after``: at most ``limit``, and (but for the first) ``max_bytes`` of payload.

        A batch whose checksum does not match is dropped and counted as corrupt.

        Raises:
            SpoolFullError, StateError: as :meth:`append`.
        """

        def read() -> tuple[list[Batch], list[int]]:
            batches: list[Batch] = []
            broken: list[int] = []
            room = max_bytes
            rows = self._database().execute(
                "SELECT seq, signal, payload, items, created_at, checksum FROM batch WHERE seq > ? ORDER BY seq", (after,)
            )
            with contextlib.closing(rows):
                for seq, signal, payload, items, created_at, expected in rows:
                    if not isinstance(payload, bytes) or not isinstance(created_at, float) or expected != checksum(signal, items, payload):
                        broken.append(seq)
                        continue
                    if len(batches) >= limit or (batches and len(payload) > room):
                        break
                    room -= len(payload)
                    batches.append(Batch(seq, signal, payload, items, created_at))
            return batches, broken

        with self._lock:
            batches, broken = self._attempt(read)
            if broken:
                log.entry(_LOG, logging.WARNING, "spool.corrupt-batch", "dropped batches whose checksum is wrong", batches=len(broken))
                self._attempt(lambda: self._discard_broken(broken))
            return batches

    def acknowledge(self, seq: int, rejected: int = 0) -> None:
        """The platform took batch ``seq``, but for ``rejected`` of its items, which are counted as dropped. Unknown numbers are ignored.

        Raises:
            SpoolFullError, StateError: as :meth:`append`; the batch stays.
        """
        self._attempt(lambda: self._settle(seq, rejected), needs_room=True)

    def reject(self, seq: int, reason: str = DropReason.REJECTED) -> None:
        """The platform refused batch ``seq`` for good: it is dropped and counted under ``reason``. Unknown numbers are ignored.

        Raises:
            SpoolFullError, StateError: as :meth:`append`; the batch stays.
        """
        self._attempt(lambda: self._settle(seq, None, reason), needs_room=True)

    def record(self, ledger: Ledger, drops: Sequence[Drop] = ()) -> None:
        """Enter counts that never were batches here. ``drops`` make gaps and are counted as dropped; ``ledger`` must not hold them too.

        Raises:
            SpoolFullError, StateError: as :meth:`append`; nothing was entered.
        """

        def enter() -> None:
            with self._transaction() as (_database, change):
                change.ledger.add(ledger)
                for drop in drops:
                    change.drop(drop)

        self._attempt(enter, needs_room=True)

    def gaps(self) -> list[Gap]:
        """The gaps to deliver next.

        They are sealed first, so what an event id stands for never changes; while sealed ones wait, newer drops gather in gaps of their
        own, which come after them.

        Raises:
            SpoolFullError, StateError: as :meth:`append`.
        """

        def seal() -> list[Gap]:
            if not any(gap.sealed for gap in self._gaps.values()) and self._gaps:
                with self._transaction() as (database, change):
                    database.execute("UPDATE gap SET sealed = 1")
                    change.seal = True
            return [gap for gap in self._gaps.values() if gap.sealed]

        return self._attempt(seal)

    def settle_gaps(self, ids: Sequence[str]) -> None:
        """The platform knows these gaps now.

        Raises:
            SpoolFullError, StateError: as :meth:`append`; they stay.
        """

        def forget() -> None:
            with self._transaction() as (database, change):
                database.executemany("DELETE FROM gap WHERE id = ?", [(each,) for each in ids])
                change.settled_gaps = tuple(ids)

        self._attempt(forget, needs_room=True)

    def check_room(self) -> None:
        """Write a little, to see whether the disk takes anything.

        Raises:
            SpoolFullError, StateError: as :meth:`append`.
        """

        def write() -> None:
            self._ballast.lay()
            with self._transaction() as (database, _change):
                database.execute("UPDATE begun SET at = at")

        self._attempt(write)

    def expire(self) -> None:
        """Drop what is older than the bound on age.

        Raises:
            SpoolFullError, StateError: as :meth:`append`.
        """
        self._attempt(lambda: self._drop_oldest(self._clock()))

    def statistics(self) -> SpoolStatistics:
        """Counts and sizes as of the last commit; touches the disk only to ask for file sizes."""
        with self._lock:
            return SpoolStatistics(self._disk_size(), self._batches, self._oldest, self._ledger.copy(), self._since)

    def close(self) -> None:
        """Close the file; what is spooled stays. Closing twice does nothing."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    connection.close()

    # Transactions.

    @contextlib.contextmanager
    def _transaction(self, room_for: int = 0) -> Iterator[tuple[sqlite3.Connection, Change]]:
        database = self._database()
        self._checkpoint(room_for=room_for)
        change = Change(self._gaps)
        database.execute("BEGIN IMMEDIATE")
        try:
            yield database, change
            change.write(database)
            row = database.execute("SELECT created_at FROM batch ORDER BY seq LIMIT 1").fetchone()
            database.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                database.execute("ROLLBACK")
            raise
        self._ledger.add(change.ledger)
        self._gaps = change.resulting_gaps()
        self._batches += change.batches
        self._oldest = row[0] if row else None

    def _attempt(self, operation: Callable[[], Result], *, needs_room: bool = False) -> Result:
        """Run ``operation``, and once more where that can help.

        When the file proves corrupt, a fresh one is begun; when the disk is full and the operation makes room (``needs_room``), the
        ballast is let go first.
        """
        with self._lock:
            try:
                try:
                    return operation()
                except sqlite3.Error as exc:
                    if is_corruption(exc):
                        self._quarantine(str(exc))
                    elif not (needs_room and isinstance(translated(exc, self.path), SpoolFullError) and self._ballast.drop()):
                        raise
                return operation()
            except sqlite3.Error as exc:
                raise translated(exc, self.path) from exc
            except OSError as exc:
                raise translated_os(exc, self.path) from exc

    def _settle(self, seq: int, rejected: int | None, reason: str = DropReason.REJECTED) -> None:
        with self._transaction() as (database, change):
            row = database.execute("SELECT signal, items, created_at FROM batch WHERE seq = ?", (seq,)).fetchone()
            if row is None:
                return
            signal, items, created_at = row
            lost = items if rejected is None else min(max(rejected, 0), items)
            change.ledger.sent[signal] += items - lost
            if lost or rejected is None:
                change.drop(Drop(signal, reason, lost, created_at, created_at))
            database.execute("DELETE FROM batch WHERE seq = ?", (seq,))
            change.batches -= 1
        self._shrink()

    def _discard_broken(self, seqs: Sequence[int]) -> None:
        """Drop rows that cannot be trusted: what they held is what the books miss once they are gone."""
        with self._transaction() as (database, change):
            now = self._clock()
            for seq in seqs:
                database.execute("DELETE FROM batch WHERE seq = ?", (seq,))
            change.batches -= len(seqs)
            self._balance(database, change, now)

    def _drop_oldest(self, now: float, size: int | None = None) -> None:
        """Drop the oldest batches that are past the bound on age, and those that leave no room for a payload of ``size`` bytes.

        In transactions of their own, each no larger than the write-ahead log may grow: a full spool can age all at once.
        """
        while self._to_drop(self._database(), now, size):
            with self._transaction(room_for=self._wal_budget // 4) as (database, change):
                room = self._wal_budget // 4
                while room > 0 and (found := self._to_drop(database, now, size)):
                    row, reason = found
                    self._drop_row(database, change, row, reason)
                    room -= 64 + min(row[4], PAGE) + row[4] // 256  # the page it begins on is written again, not those it goes on to

    def _to_drop(self, database: sqlite3.Connection, now: float, size: int | None) -> tuple[_Row, str] | None:
        """The batch that must go next, and why; None when none must."""
        row: _Row | None = database.execute(OLDEST).fetchone()
        if row is None:
            return None
        if row[3] < now - self._max_age:
            return row, DropReason.AGE
        full = size is not None and used_bytes(database) + size + size // 50 + 4 * PAGE > self._budget
        return (row, DropReason.SIZE) if full else None

    def _drop_row(self, database: sqlite3.Connection, change: Change, row: _Row, reason: str) -> None:
        seq, signal, items, created_at, _size = row
        database.execute("DELETE FROM batch WHERE seq = ?", (seq,))
        change.batches -= 1
        change.drop(Drop(signal, reason, items, created_at, created_at))

    def _balance(self, database: sqlite3.Connection, change: Change, now: float) -> None:
        """Count as corrupt what the books say is spooled and the table no longer holds (or the other way round, as produced)."""
        held = dict(database.execute(HELD).fetchall())
        for signal in sorted({*self._ledger.produced, *held}):
            missing = self._ledger.waiting(signal) + change.ledger.waiting(signal) - int(held.get(signal, 0))
            if missing > 0:
                change.drop(Drop(signal, DropReason.CORRUPT, missing, self._oldest or now, now))
            elif missing < 0:
                change.ledger.produced[signal] -= missing

    # The files.

    def _database(self) -> sqlite3.Connection:
        if self._connection is None:
            self._open()
        if self._connection is None:  # pragma: no cover - _open raises or connects
            raise StateError("the spool is closed")
        return self._connection

    def _open(self) -> None:
        self.close()
        fresh = not self.path.exists()
        connection = sqlite3.connect(self.path, timeout=5, isolation_level=None, check_same_thread=False)
        try:
            connection.execute(f"PRAGMA page_size = {PAGE}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            # Some builds overwrite what they delete: dropping a full spool would pass through the write-ahead log as large as it is.
            connection.execute("PRAGMA secure_delete = OFF")
            connection.execute("PRAGMA cache_size = -256")
            connection.execute("PRAGMA temp_store = MEMORY")
            if fresh or not connection.execute("PRAGMA user_version").fetchone()[0]:
                connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} INSERT INTO begun VALUES ({self._clock()!r}); COMMIT;")  # noqa: S608 - a number, and scripts take no parameters
                if not fresh:
                    log.entry(_LOG, logging.WARNING, "spool.open", "the file was empty; began afresh", path=self.path)
            found = connection.execute("PRAGMA application_id").fetchone()[0], connection.execute("PRAGMA user_version").fetchone()[0]
            if found != (APPLICATION_ID, VERSION):
                raise sqlite3.DatabaseError(f"not a spool of this version: {found}")
            ledger, gaps, since = read_books(connection)
            batches = connection.execute("SELECT COUNT(*) FROM batch").fetchone()[0]
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._ledger, self._gaps, self._since = ledger, gaps, since
        self._batches = batches
        with self._transaction() as (database, change):
            self._balance(database, change, self._clock())

    def _quarantine(self, reason: str) -> None:
        """Move the corrupt files aside, begin afresh, and carry over the books as far as they are known."""
        now = self._clock()
        known = self._connection is not None
        self.close()
        begun_at = self.path.stat().st_mtime if self.path.exists() else now
        aside = move_aside(self.path, now)
        for suffix in ("-wal", "-shm"):
            beside = self.path.with_name(self.path.name + suffix)
            if beside.exists():
                beside.replace(aside.with_name(aside.name + suffix))
        log.entry(_LOG, logging.ERROR, "spool.quarantine", "the spool was corrupt and was moved aside", path=aside, reason=reason)
        ledger, gaps, since, oldest = self._ledger, self._gaps, self._since, self._oldest
        if not known:
            with contextlib.suppress(sqlite3.Error, ValueError, TypeError), contextlib.closing(sqlite3.connect(aside)) as database:
                ledger, gaps, since = read_books(database)
        self._open()
        start = min(oldest or begun_at, now)
        drops = [Drop(s, DropReason.CORRUPT, ledger.waiting(s), start, now) for s in ledger.produced if ledger.waiting(s) > 0]
        with self._transaction() as (database, change):
            database.execute("UPDATE begun SET at = ?", (since,))
            change.ledger.add(ledger)
            change.keep(gaps.values())
            for drop in drops or [Drop("all", DropReason.CORRUPT, 0, start, now)]:
                change.drop(drop)
        self._since = since
        self._forget_old_quarantines()

    def _forget_old_quarantines(self) -> None:
        found = sorted(self.path.parent.glob(f"{self.path.name}.corrupt-*"), key=lambda each: each.name.split("-wal")[0])
        stems = sorted({each.name.removesuffix("-wal").removesuffix("-shm") for each in found})
        for each in found:
            if each.name.removesuffix("-wal").removesuffix("-shm") not in stems[-_QUARANTINES_KEPT:]:
                with contextlib.suppress(OSError):
                    each.unlink()

    def _checkpoint(self, *, room_for: int) -> None:
        """Empty the write-ahead log when the next transaction would take it past its bound."""
        if self._ballast.laid and self._file_size("-wal") + room_for + room_for // 50 + 65_536 <= self._wal_budget:
            return
        if not self._file_size("-wal"):
            return
        busy = self._database().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:  # pragma: no cover - nobody else reads this file
            raise SpoolFullError("the spool's write-ahead log cannot be emptied: another process reads it")

    def _shrink(self) -> None:
        """Give disk space back, a little at a time, after a backlog has gone."""
        database = self._database()
        pages = min(_VACUUM_PAGES, self._wal_budget // PAGE // 2)
        if database.execute("PRAGMA freelist_count").fetchone()[0] > pages:
            self._checkpoint(room_for=pages * PAGE)  # each may take the place of one that goes
            database.executescript(f"PRAGMA incremental_vacuum({pages})")  # execute() would free one page only
            if not self._batches:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _disk_size(self) -> int:
        return sum(self._file_size(suffix) for suffix in ("", "-wal", "-shm", "-ballast"))

    def _file_size(self, suffix: str) -> int:
        try:
            return self.path.with_name(self.path.name + suffix).stat().st_size
        except OSError:
            return 0
