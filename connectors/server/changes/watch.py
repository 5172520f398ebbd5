"""The watch of a host: one thread that runs every watcher in turn and tells what changed.

A look that found nothing costs a few ``stat`` calls. Where the kernel tells of directories in which something happens (inotify), the
watchers of files look when it does, and otherwise only once a minute. A watcher that fails is tried again at its next turn; the others go
on.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from connectors.core import log
from connectors.core.collector import describe_failure
from connectors.core.errors import CollectorError
from connectors.core.telemetry import Attributes, AttributeValue, CollectorResult, Event, Severity
from connectors.server.changes.model import LONGEST, PREFIX, Change, Look, State, Watcher
from connectors.server.changes.store import FILE, Snapshots

_LOG = logging.getLogger(__name__)
TICK: Final = 2.0
"""Seconds between two looks at the clock, and so what a stated delay may be exceeded by."""
NOTIFIED_INTERVAL: Final = 60.0
"""Seconds between two looks of a watcher that the kernel tells when to look."""
MOST_AT_A_TIME: Final = 300
"""Events that are told at a time; as many again only where they are warnings or worse."""
_REFILLED_IN: Final = 60.0
_TOUCH: Final = 60.0
_NANO: Final = 1_000_000_000
_NAMED: Final = 100
_LATE: Final = 300.0

CHANGES_DROPPED: Final = f"{PREFIX}.changes.dropped"
CHANGES_LIMITED: Final = f"{PREFIX}.changes.limited"
CHANGES_GAP: Final = f"{PREFIX}.changes.gap"


class ChangeWatch:
    """Runs ``watchers`` and remembers what they saw in ``state_dir``. :meth:`run` may be called again: it goes on where it was.

    Args:
        watchers: in the order in which they look.
        resource: the host's attributes; ``host.id`` is part of every event's id.
        state_dir: where to remember.
        interval: the least seconds between two looks of a watcher that polls.
        notify: makes what tells of directories, or gives None where there is no such thing.
        clock: Unix seconds.
        monotonic: seconds, for periods.
    """

    def __init__(
        self,
        watchers: Sequence[Watcher],
        resource: Attributes,
        state_dir: Path,
        *,
        interval: float = 10.0,
        notify: Callable[[], Notifier | None] = lambda: None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watchers = list(watchers)
        self._resource = resource
        self._interval = interval
        self._make_notifier = notify
        self._clock = clock
        self._monotonic = monotonic
        self._path = state_dir / FILE
        self._snapshots: Snapshots | None = None
        self._notifier: Notifier | None = None
        self._due: dict[str, float] = {}
        self._touched = 0.0
        self._failures: dict[str, str] = {}
        self._notes: dict[str, str] = {}
        self._started = 0.0
        self._fresh: set[str] = set()
        self._budget = float(MOST_AT_A_TIME)
        self._filled = monotonic()

    def failures(self) -> list[CollectorResult]:
        """The watchers whose last look failed, each as a failed collector of the name ``changes.<watcher>``."""
        return [CollectorResult(f"changes.{name}", 0.0, reason) for name, reason in sorted(self._failures.copy().items())]

    def run(self, emit: Callable[[Event], None], stopping: threading.Event) -> None:
        """Tell changes through ``emit`` until ``stopping`` is set."""
        snapshots = self._open(emit)
        self._notifier = self._make_notifier()
        try:
            while not stopping.is_set():
                self.turn(emit)
                stopping.wait(TICK)
        finally:
            # An orderly end writes the events down after us; after a failure what waits goes on waiting.
            snapshots.save(at_once=stopping.is_set())
            for watcher in self._watchers:
                watcher.close()
            if self._notifier is not None:
                self._notifier.close()
                self._notifier = None

    def turn(self, emit: Callable[[Event], None]) -> None:
        """Let every watcher look whose time has come, and write down what has waited long enough."""
        snapshots, now = self._open(emit), self._monotonic()
        if self._notifier is not None:
            for name in self._notifier.woken():
                self._due[name] = min(self._due.get(name, now), now)
        for watcher in self._watchers:
            if self._due.get(watcher.name, 0.0) <= now:
                self._look(watcher, snapshots, emit)
                notified = self._notifier is not None and self._notifier.watch(watcher.name, watcher.directories())
                self._due[watcher.name] = now + max(self._interval, NOTIFIED_INTERVAL if notified else watcher.interval)
                snapshots.save()  # watcher by watcher: what one saw need not stay in memory until the last has looked
        snapshots.save()
        if now - self._touched >= _TOUCH:
            snapshots.touch()
            self._touched = now

    def _open(self, emit: Callable[[Event], None]) -> Snapshots:
        if self._snapshots is not None:
            return self._snapshots
        snapshots = self._snapshots = Snapshots(self._path, self._clock, self._monotonic)
        self._started = self._clock()
        names = {watcher.name for watcher in self._watchers}
        self._fresh = {name for name in names if snapshots.stamp(name) is not None}
        snapshots.forget(names)
        if snapshots.lost:
            emit(self._gap(snapshots.lost))
        return snapshots

    def _look(self, watcher: Watcher, snapshots: Snapshots, emit: Callable[[Event], None]) -> None:
        name, begun = watcher.name, self._clock()
        try:
            memory = _Memory(snapshots, name, self._boundary(watcher, snapshots))
            look = watcher.look(memory)
            if look is None:
                snapshots.looked(name, begun)
            else:
                for event in self._events(watcher, look, snapshots, memory.boundary):
                    emit(event)
                snapshots.put(name, look, begun)
        except (OSError, CollectorError, sqlite3.Error, ValueError, LookupError, TypeError, AttributeError) as exc:
            reason = _reason(exc)
            if self._failures.get(name) != reason:
                log.entry(_LOG, logging.WARNING, "changes.failed", "a watcher failed", watcher=name, reason=reason)
            self._failures[name] = reason
            return
        self._fresh.discard(name)
        self._failures.pop(name, None)
        if watcher.note and self._notes.get(name) != watcher.note:
            log.entry(_LOG, logging.INFO, "changes.limited", "a watcher does not see everything", watcher=name, reason=watcher.note)
            emit(self._limited(watcher))
        self._notes[name] = watcher.note

    def _boundary(self, watcher: Watcher, snapshots: Snapshots) -> float:
        """Since when what is found now may have changed: the last look, as far as a run that was killed left a trace of it."""
        looked = snapshots.looked_at(watcher.name)
        if watcher.name in self._fresh:
            alive = snapshots.seen_at - max(self._interval, watcher.interval, NOTIFIED_INTERVAL)
            looked = max(looked, alive)
        return min(looked, self._clock())

    def _events(self, watcher: Watcher, look: Look, snapshots: Snapshots, boundary: float) -> list[Event]:
        """The look's changes as events, as many as go through, and one more that counts the others."""
        if not look.changes:
            return []
        generation, now = snapshots.generation(watcher.name), self._clock()
        host = str(self._resource.get("host.id", ""))
        self._refill()
        told, left_out = [], []
        for change in look.changes:
            if self._budget < (1 if change.severity < Severity.WARN else 1 - MOST_AT_A_TIME):
                left_out.append(change)
                continue
            self._budget -= 1
            parts = (change.identity,) if change.identity else (snapshots.salt.hex(), str(generation), change.subject)
            told.append(
                self._event(change, event_id(host, watcher.name, change.name, *parts), boundary, now, away=watcher.name in self._fresh)
            )
        if left_out:
            identity = event_id(host, watcher.name, "dropped", snapshots.salt.hex(), str(generation))
            told.append(self._dropped(watcher, left_out, identity, boundary, now))
        return told

    def _refill(self) -> None:
        now = self._monotonic()
        self._budget = min(float(MOST_AT_A_TIME), self._budget + (now - self._filled) * MOST_AT_A_TIME / _REFILLED_IN)
        self._filled = now

    def _event(self, change: Change, identity: str, start: float, end: float, *, away: bool) -> Event:
        when = change.time_unix_nano
        body = change.body
        attributes: dict[str, AttributeValue] = dict(change.attributes)
        known = bool(when) and when <= (end + _LATE) * _NANO and (bool(change.identity) or when >= (start - _LATE) * _NANO)
        if not change.identity:
            attributes |= {
                "irca.change.start_time_unix_nano": int(start * _NANO),
                "irca.change.end_time_unix_nano": int(end * _NANO),
                "irca.change.while_away": away,
            }
            if away:
                body += f" (between {_clock(start)} and {_clock(end)}, while the agent was not running)"
        return Event(
            name=f"{PREFIX}.{change.name}",
            attributes=attributes,
            severity=change.severity,
            body=body[: 2 * LONGEST],
            resource=self._resource,
            time_unix_nano=when if known else int(end * _NANO),
            id=identity,
        )

    def _dropped(self, watcher: Watcher, changes: Sequence[Change], identity: str, start: float, end: float) -> Event:
        counts = Counter(f"{PREFIX}.{change.name}" for change in changes).most_common()
        return Event(
            name=CHANGES_DROPPED,
            attributes={
                "irca.watcher.name": watcher.name,
                "irca.events.dropped": len(changes),
                "irca.events.dropped.kinds": [f"{name}: {count}" for name, count in counts],
                "irca.events.dropped.subjects": [change.subject[:LONGEST] for change in changes[:_NAMED]],
                "irca.change.start_time_unix_nano": int(start * _NANO),
                "irca.change.end_time_unix_nano": int(end * _NANO),
            },
            severity=Severity.WARN,
            body=f"{len(changes)} more changes of {watcher.name} came at the same time and are only counted",
            resource=self._resource,
            time_unix_nano=int(end * _NANO),
            id=identity,
        )

    def _limited(self, watcher: Watcher) -> Event:
        host = str(self._resource.get("host.id", ""))
        return Event(
            name=CHANGES_LIMITED,
            attributes={"irca.watcher.name": watcher.name, "irca.watcher.note": watcher.note},
            body=f"The watcher of {watcher.name} does not see everything: {watcher.note}",
            resource=self._resource,
            time_unix_nano=int(self._clock() * _NANO),
            id=event_id(host, watcher.name, "limited", watcher.note),
        )

    def _gap(self, since: float) -> Event:
        now = self._clock()
        return Event(
            name=CHANGES_GAP,
            attributes={
                "irca.gap.reason": "corrupt",
                "irca.gap.start_time_unix_nano": int(since * _NANO),
                "irca.gap.end_time_unix_nano": int(now * _NANO),
            },
            severity=Severity.WARN,
            body=f"What was remembered of the host was damaged: what changed between {_clock(since)} and {_clock(now)} is not known",
            resource=self._resource,
            time_unix_nano=int(now * _NANO),
            id=event_id(str(self._resource.get("host.id", "")), "gap", str(since)),
        )


class Notifier:
    """What tells of directories in which something happens. This one tells nothing; see :mod:`connectors.server.changes.inotify`."""

    def watch(self, name: str, directories: Iterable[str]) -> bool:  # noqa: ARG002 - for those that tell
        """Wake ``name`` when something happens in one of ``directories``; whether that is so for all of them."""
        return False

    def woken(self) -> set[str]:
        """Whom to wake."""
        return set()

    def close(self) -> None:
        """Let go of what was opened."""


class _Memory:
    """What the snapshots hold for one watcher."""

    def __init__(self, snapshots: Snapshots, name: str, boundary: float) -> None:
        self._snapshots = snapshots
        self._name = name
        self.boundary = boundary

    @property
    def stamp(self) -> str | None:
        return self._snapshots.stamp(self._name)

    @property
    def key(self) -> bytes:
        return self._snapshots.salt

    def state(self) -> State | None:
        return self._snapshots.state(self._name)

    def text(self, key: str) -> str | None:
        return self._snapshots.text(self._name, key)


def event_id(*parts: str) -> str:
    """An id of 32 hexadecimal digits that is the same whenever the same thing is told again."""
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:32]


def _reason(exc: Exception) -> str:
    if isinstance(exc, PermissionError):
        return f"no permission to read {exc.filename or 'its source'}"
    if isinstance(exc, OSError):
        return f"{exc.filename or 'its source'} cannot be read: {exc.strerror or exc}"
    return describe_failure(exc)


def _clock(unix: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix))
