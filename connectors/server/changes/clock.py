"""Steps of the clock: somebody or something set it, so that times before and after do not compare."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar, Final

from connectors.core.telemetry import Severity
from connectors.server.changes.model import Change, Look, Memory, Watcher, read_file

STEP: Final = 0.5
"""Seconds from which on a jump is told. Keeping time moves both clocks alike, so that what differs was set."""
_LARGE: Final = 60.0
_NANO: Final = 1_000_000_000


class ClockWatcher(Watcher):
    """Compares the clock with one that nobody sets, and remembers by how much they differed in this boot."""

    name: ClassVar[str] = "clock"
    interval: ClassVar[float] = 2.0

    def __init__(self, root: str = "", wall: Callable[[], int] = time.time_ns, steady: Callable[[], int] | None = None) -> None:
        self._root = root
        self._wall = wall
        self._steady = steady or _steady
        self._boot = ""

    def look(self, memory: Memory) -> Look | None:
        """As :meth:`Watcher.look`."""
        if not self._boot:
            self._boot = read_file(f"{self._root}/proc/sys/kernel/random/boot_id", 64).decode(errors="replace").strip()
        before = self._steady()
        now = self._wall()
        offset = now - (before + self._steady()) // 2
        boot, _, known = (memory.stamp or "").partition(" ")
        if boot != self._boot or not known:
            return Look(f"{self._boot} {offset}", {})
        step = (offset - int(known)) / _NANO
        if abs(step) < STEP:
            return None
        body = f"The clock was set {'forward' if step > 0 else 'back'} by {abs(step):.1f} s"
        attributes = {
            "irca.clock.step": step,
            "irca.clock.before_time_unix_nano": now - (offset - int(known)),
            "irca.clock.after_time_unix_nano": now,
        }
        severity = Severity.WARN if abs(step) >= _LARGE else Severity.INFO
        return Look(f"{self._boot} {offset}", None, [Change("clock.stepped", "clock", body, attributes, severity, now)])


def _steady() -> int:
    """A clock that nobody sets, suspended time included, in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic_ns()
