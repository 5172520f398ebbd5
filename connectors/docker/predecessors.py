"""What the watch remembers on disk: how far it has come, and each name's last container.

A write waits a few seconds (:data:`HOLD`), for the events that it stands for must reach the spool first: after a crash the engine is
asked from an older time, the events come again, and the platform stores each id once. The other way round they would be lost.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from connectors.core import log
from connectors.core.files import move_aside
from connectors.core.spool_database import is_corruption
from connectors.docker.difference import Description

_LOG = logging.getLogger(__name__)
FILE = "docker-changes.db"
HOLD = 4.0
_TOGETHER = 1.0
LIMIT = 2_000
"""Names that are remembered; those not seen for longest are forgotten first."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS fact (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS predecessor (key TEXT PRIMARY KEY, description TEXT NOT NULL, seen_at REAL NOT NULL) WITHOUT ROWID;
"""
_PREDECESSOR = "predecessor"
_FACT = "fact"


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the watch has come: the last event it took (its id and Unix nanoseconds) of which engine.

    ``event`` is empty where nothing had happened yet; the time is then that of the first look.
    """

    engine: str
    time_unix_nano: int
    event: str = ""


class Predecessors:
    """Remembered containers and the mark. One thread uses it at a time.

    A file that cannot be read is moved aside and begun anew; one that cannot be written costs no event: what should be in it stays in
    memory and is tried again.

    Args:
        path: the file; made at first use, readable by its owner only (it holds the key of the hashes).
        clock: Unix seconds.
        monotonic: seconds, for the waiting.
    """

    def __init__(
        self, path: Path, clock: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic, *, limit: int = LIMIT
    ) -> None:
        self._path = path
        self._clock = clock
        self._monotonic = monotonic
        self._limit = limit
        self._facts: dict[str, str] = {}
        self._known: dict[str, str] = {}
        self._pending: deque[tuple[float, str, str, str]] = deque()
        self._failed = ""
        self._load()
        self._facts.setdefault("salt", os.urandom(32).hex())

    @property
    def salt(self) -> bytes:
        """The key of this instance's hashes."""
        return bytes.fromhex(self._facts["salt"])

    @property
    def mark(self) -> Mark | None:
        """How far the watch has come, saved or not; None at the very first start."""
        try:
            return Mark(self._facts["engine"], int(self._facts["time"]), self._facts["event"])
        except (KeyError, ValueError):
            return None

    def advance(self, mark: Mark) -> None:
        """Move the mark."""
        for key, value in (("engine", mark.engine), ("time", str(mark.time_unix_nano)), ("event", mark.event)):
            self._facts[key] = value
        now = self._monotonic()
        value = f"{mark.time_unix_nano} {mark.event} {mark.engine}"
        if self._pending and self._pending[-1][1] == _FACT and now - self._pending[-1][0] < _TOGETHER:
            self._pending[-1] = (self._pending[-1][0], _FACT, "mark", value)  # one entry for all marks of a second
        else:
            self._pending.append((now, _FACT, "mark", value))

    def get(self, key: str) -> Description | None:
        """Who bore this key last."""
        text = self._known.get(key)
        return Description.from_json(text) if text else None

    def put(self, key: str, description: Description) -> None:
        """Remember who bears this key now."""
        text = description.to_json()
        self._known.pop(key, None)
        self._known[key] = text
        while len(self._known) > self._limit:
            self._known.pop(next(iter(self._known)))
        self._pending.append((self._monotonic(), _PREDECESSOR, key, text))

    def save(self, *, at_once: bool = False) -> None:
        """Write what has waited long enough, or all of it."""
        due = self._monotonic() - (0.0 if at_once else HOLD)
        writes = [entry for entry in self._pending if entry[0] <= due]
        if not writes:
            return
        try:
            with closing(self._open()) as database, database:
                self._write(database, writes)
        except (sqlite3.Error, OSError) as exc:
            self._complain(str(exc))
            self._pending = deque(list(self._pending)[-2 * self._limit :])
            return
        self._failed = ""
        for _ in writes:
            self._pending.popleft()

    def _write(self, database: sqlite3.Connection, writes: list[tuple[float, str, str, str]]) -> None:
        now = self._clock()
        for _, kind, key, value in writes:
            if kind == _FACT:
                database.execute("INSERT OR REPLACE INTO fact (key, value) VALUES (?, ?)", (key, value))
            else:
                database.execute("INSERT OR REPLACE INTO predecessor (key, description, seen_at) VALUES (?, ?, ?)", (key, value, now))
        database.execute("INSERT OR REPLACE INTO fact (key, value) VALUES ('salt', ?)", (self._facts["salt"],))
        database.execute(
            "DELETE FROM predecessor WHERE key NOT IN (SELECT key FROM predecessor ORDER BY seen_at DESC, key LIMIT ?)", (self._limit,)
        )

    def _load(self) -> None:
        try:
            self._read()
        except sqlite3.Error as exc:
            if not is_corruption(exc):
                self._complain(str(exc))
                return
            try:
                aside = move_aside(self._path, self._clock())
            except OSError:
                self._complain(str(exc))
            else:
                log.entry(_LOG, logging.WARNING, "changes.corrupt", "what was remembered is not readable", reason=str(exc), moved_to=aside)
        except OSError as exc:
            self._complain(str(exc))

    def _read(self) -> None:
        if not self._path.exists():
            return
        with closing(self._open()) as database:
            facts = {str(key): str(value) for key, value in database.execute("SELECT key, value FROM fact")}
            rows = database.execute(
                "SELECT key, description FROM predecessor ORDER BY seen_at, key DESC LIMIT ?", (self._limit,)
            ).fetchall()
        try:
            bytes.fromhex(facts.get("salt", ""))
        except ValueError as exc:
            raise sqlite3.DatabaseError("the key of the hashes is damaged") from exc
        if len(facts.get("salt", "")) == 64:  # noqa: PLR2004 - 32 bytes in hexadecimal
            self._facts["salt"] = facts["salt"]
            self._known = {str(key): str(text) for key, text in rows}
        when, _, rest = facts.get("mark", "").partition(" ")
        if when.isdecimal():
            event, _, engine = rest.partition(" ")
            self._facts.update(time=when, event=event, engine=engine)

    def _open(self) -> sqlite3.Connection:
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        database = sqlite3.connect(self._path, timeout=2.0)
        try:
            database.executescript(_SCHEMA)
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _complain(self, reason: str) -> None:
        if reason != self._failed:
            log.entry(_LOG, logging.WARNING, "changes.memory", "what was seen cannot be remembered on disk", reason=reason)
        self._failed = reason
