"""What the watchers remember on disk.

A look waits a few seconds (:data:`HOLD`) before it is written down, for the events that it led to must reach the spool first: after a
crash the comparison is made again, its events come out with the same ids, and the platform stores each id once. The other way round they
would be lost.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from connectors.core import log
from connectors.core.files import move_aside
from connectors.core.spool_database import is_corruption
from connectors.server.changes.model import Look, State

_LOG = logging.getLogger(__name__)
FILE: Final = "host-changes.db"
HOLD: Final = 4.0
_PATIENCE: Final = 60.0
_LARGEST_TEXT: Final = 262_144
_CACHE_KIB: Final = 128
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS fact (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS watcher (
    name TEXT PRIMARY KEY, stamp TEXT NOT NULL, generation INTEGER NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS item (watcher TEXT, key TEXT, value TEXT NOT NULL, PRIMARY KEY (watcher, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS text (watcher TEXT, key TEXT, value BLOB NOT NULL, PRIMARY KEY (watcher, key)) WITHOUT ROWID;
"""


@dataclass(slots=True)
class _Head:
    """A watcher's last look: its stamp, how many looks brought something before it, and Unix time."""

    stamp: str
    generation: int
    at: float


@dataclass(slots=True)
class _Waiting:
    """What is to be written down for a watcher, and when (monotonic seconds)."""

    due: float
    state: State | None = None
    texts: dict[str, str | None] = field(default_factory=dict)


class Snapshots:
    """The remembered looks. One thread uses it at a time.

    A file that cannot be read is moved aside and begun anew: :attr:`lost` then says since when. One that cannot be written costs no event:
    what should be in it stays in memory and is tried again.

    Args:
        path: the file; made at first use, readable by its owner only.
        clock: Unix seconds.
        monotonic: seconds, for the waiting.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._monotonic = monotonic
        self._heads: dict[str, _Head] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._failed = ""
        self.salt = os.urandom(32)
        self.seen_at = 0.0
        """Unix time until when an earlier run is known to have looked; 0 where there was none."""
        self.lost = 0.0
        """Unix time until when a damaged file, which was moved aside, had been in use; 0 where there was none."""
        self._load()

    def stamp(self, watcher: str) -> str | None:
        """The stamp of the watcher's last look; None where it never looked."""
        head = self._heads.get(watcher)
        return head.stamp if head else None

    def generation(self, watcher: str) -> int:
        """How many looks of the watcher brought something."""
        head = self._heads.get(watcher)
        return head.generation if head else 0

    def looked_at(self, watcher: str) -> float:
        """Unix time of the watcher's last look that is written down, or was in this run; 0 where it never looked."""
        head = self._heads.get(watcher)
        return head.at if head else 0.0

    def state(self, watcher: str) -> State | None:
        """What the watcher's last look saw; None where it never looked.

        Raises:
            sqlite3.Error: it cannot be read just now.
        """
        if watcher not in self._heads:
            return None
        waiting = self._waiting.get(watcher)
        return waiting.state if waiting and waiting.state is not None else self._stored(watcher)

    def text(self, watcher: str, key: str) -> str | None:
        """A bulky value of the watcher's; None where there is none.

        Raises:
            sqlite3.Error: it cannot be read just now.
        """
        waiting = self._waiting.get(watcher)
        if waiting and key in waiting.texts:
            return waiting.texts[key]
        with closing(self._open()) as database:
            row = database.execute("SELECT value FROM text WHERE watcher = ? AND key = ?", (watcher, key)).fetchone()
        return zlib.decompress(row[0]).decode() if row else None

    def put(self, watcher: str, look: Look, at: float) -> None:
        """Remember a look of Unix time ``at``; it is written down by :meth:`save` when it is time."""
        head = self._heads.get(watcher)
        generation = (head.generation if head else 0) + (1 if look.changes or look.state is not None else 0)
        self._heads[watcher] = _Head(look.stamp, generation, at)
        # What led to no event need not wait for one to reach the spool.
        due = self._monotonic() + (_PATIENCE if not look.lasting else HOLD if look.changes else 0.0)
        waiting = self._waiting.setdefault(watcher, _Waiting(due))
        waiting.due = due if look.changes else min(waiting.due, due)  # the latest events must reach the spool as well
        if look.state is not None:
            waiting.state = look.state
        waiting.texts.update(look.texts)

    def looked(self, watcher: str, at: float) -> None:
        """The watcher looked at Unix time ``at`` and saw nothing new."""
        if head := self._heads.get(watcher):
            head.at = at

    def touch(self) -> None:
        """Note, without writing, that this run is still looking: after a kill the next one knows since when nobody did."""
        now = self._clock()
        with suppress(OSError):  # a file that is not there yet has nothing to tell
            os.utime(self._path, (now, now))

    def save(self, *, at_once: bool = False) -> None:
        """Write down what has waited long enough, or all of it."""
        now = self._monotonic()
        due = [name for name, waiting in self._waiting.items() if at_once or waiting.due <= now]
        if not due:
            return
        try:
            with closing(self._open()) as database, database:
                database.execute("INSERT OR REPLACE INTO fact VALUES ('salt', ?)", (self.salt.hex(),))
                for name in due:
                    self._write(database, name, self._waiting[name])
        except (sqlite3.Error, OSError) as exc:
            self._complain(str(exc))
            for name in due:
                self._waiting[name].due = now + HOLD
            return
        self._failed = ""
        for name in due:
            del self._waiting[name]

    def forget(self, kept: Iterable[str]) -> None:
        """Forget the looks of all watchers but ``kept``: what one that is switched on again finds must not pass for news."""
        gone = self._heads.keys() - set(kept)
        if not gone:
            return
        try:
            with closing(self._open()) as database, database:
                for name in gone:
                    for table, column in (("watcher", "name"), ("item", "watcher"), ("text", "watcher")):
                        database.execute(f"DELETE FROM {table} WHERE {column} = ?", (name,))  # noqa: S608 - names of ours
        except (sqlite3.Error, OSError) as exc:
            self._complain(str(exc))
        for name in gone:
            del self._heads[name]

    def _write(self, database: sqlite3.Connection, name: str, waiting: _Waiting) -> None:
        head = self._heads[name]
        database.execute("INSERT OR REPLACE INTO watcher VALUES (?, ?, ?, ?)", (name, head.stamp, head.generation, head.at))
        if waiting.state is not None:
            old = dict(database.execute("SELECT key, value FROM item WHERE watcher = ?", (name,)))
            database.executemany(
                "DELETE FROM item WHERE watcher = ? AND key = ?", [(name, key) for key in old.keys() - waiting.state.keys()]
            )
            new = [(name, key, value) for key, value in waiting.state.items() if old.get(key) != value]
            database.executemany("INSERT OR REPLACE INTO item VALUES (?, ?, ?)", new)
        for key, text in waiting.texts.items():
            if text is None or len(text) > _LARGEST_TEXT:
                database.execute("DELETE FROM text WHERE watcher = ? AND key = ?", (name, key))
            else:
                content = zlib.compress(text.encode(errors="replace"))
                database.execute("INSERT OR REPLACE INTO text VALUES (?, ?, ?)", (name, key, content))

    def _stored(self, watcher: str) -> State:
        with closing(self._open()) as database:
            return dict(database.execute("SELECT key, value FROM item WHERE watcher = ?", (watcher,)))

    def _load(self) -> None:
        try:
            self.seen_at = self._path.stat().st_mtime
            self._read()
        except FileNotFoundError:
            self.seen_at = 0.0
        except (sqlite3.Error, ValueError) as exc:
            self._heads = {}
            if isinstance(exc, sqlite3.Error) and not is_corruption(exc):
                self._complain(str(exc))
                return
            try:
                aside = move_aside(self._path, self._clock())
            except OSError:
                self._complain(str(exc))
            else:
                self.lost, self.seen_at = self.seen_at, 0.0
                log.entry(_LOG, logging.WARNING, "changes.corrupt", "what was remembered is not readable", reason=str(exc), moved_to=aside)
        except OSError as exc:
            self._complain(str(exc))

    def _read(self) -> None:
        with closing(self._open()) as database:
            facts = {str(key): str(value) for key, value in database.execute("SELECT key, value FROM fact")}
            rows = database.execute("SELECT name, stamp, generation, at FROM watcher").fetchall()
        if salt := facts.get("salt"):
            self.salt = bytes.fromhex(salt)
        self._heads = {str(name): _Head(str(stamp), int(generation), float(at)) for name, stamp, generation, at in rows}

    def _open(self) -> sqlite3.Connection:
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        database = sqlite3.connect(self._path, timeout=2.0)
        try:
            database.executescript(_SCHEMA)
            database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _complain(self, reason: str) -> None:
        if reason != self._failed:
            log.entry(_LOG, logging.WARNING, "changes.memory", "what was seen cannot be remembered on disk", reason=reason)
        self._failed = reason
