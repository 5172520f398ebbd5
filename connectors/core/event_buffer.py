"""Events of a watch, gathered for a moment so that a burst of them is written in few batches."""

from __future__ import annotations

import threading
from collections.abc import Callable

from connectors.core.telemetry import Event

PAUSE = 1.0
"""Seconds for which an event may wait for others."""
MOST = 500
"""Events that wait at most; the one that fills the buffer is written with the others at once."""


class EventBuffer:
    """Holds what :meth:`add` is given and hands it to ``write``: within a second by :meth:`run`, at once when many have come."""

    def __init__(self, write: Callable[[list[Event]], None]) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self.wake = threading.Event()
        """Set while events wait; set by whoever wants :meth:`run` to see that it is to stop."""

    def add(self, event: Event) -> None:
        """Take an event; may be called from any thread."""
        with self._lock:
            self._events.append(event)
            full = len(self._events) >= MOST
        if full:
            self.flush()
        else:
            self.wake.set()

    def flush(self) -> None:
        """Write all that waits, now."""
        with self._lock:
            self.wake.clear()
            events, self._events = self._events, []
        self._write(events)

    def run(self, stopping: threading.Event) -> None:
        """Write what comes until ``stopping``; a loop of the runner."""
        while not stopping.is_set():
            self.wake.wait()
            stopping.wait(PAUSE)
            self.flush()
