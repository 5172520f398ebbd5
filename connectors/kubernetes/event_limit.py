"""How many events of a kind, and about one object, go through; the rest is counted.

Events of one kind must not crowd out those of another, and one object that changes all the time must not fill the timeline.
"""

from __future__ import annotations

from collections.abc import Mapping

from connectors.kubernetes.lru import Recent

MOST_A_MINUTE = 600
"""Events of one kind in a minute, and as many at a time after a quiet one."""
FEWER_A_MINUTE: Mapping[str, int] = {"warning.recorded": 120}
"""The same for kinds of which less is enough: of the cluster's own warnings, most follow from what is told otherwise."""
MOST_OF_AN_OBJECT = 12
"""Events of one kind about one object within :data:`OBJECT_SECONDS`."""
OBJECT_SECONDS = 600.0
MOST_OBJECTS = 5_000
SETTLE = 60.0
"""Seconds between two records of what was left out."""


class EventLimit:
    """A bucket for each kind of event, and one for each object that there were events about. Times are Unix seconds of whoever calls."""

    def __init__(
        self, a_minute: int = MOST_A_MINUTE, of_an_object: int = MOST_OF_AN_OBJECT, fewer: Mapping[str, int] = FEWER_A_MINUTE
    ) -> None:
        self._kinds: dict[str, tuple[float, float]] = {}
        self._objects: Recent[tuple[str, str], tuple[float, float]] = Recent(MOST_OBJECTS)
        self._a_minute = a_minute
        self._fewer = fewer
        self._of_an_object = float(of_an_object)
        self._counts: dict[str, int] = {}
        self._since = 0.0

    def admits(self, kind: str, about: str, now: float) -> bool:
        """Whether an event of ``kind`` about the object with the UID ``about`` goes through; if not, it is counted."""
        of_kind = _filled(self._kinds.get(kind), float(self._fewer.get(kind, self._a_minute)), 60.0, now)
        of_object = _filled(self._objects.get((kind, about)), self._of_an_object, OBJECT_SECONDS, now)
        if of_kind < 1.0 or of_object < 1.0:
            self.count(kind, 1, now)
            return False
        self._kinds[kind] = (of_kind - 1.0, now)
        self._objects.put((kind, about), (of_object - 1.0, now))
        return True

    def count(self, kind: str, number: int, now: float) -> None:
        """Enter events that were left out."""
        if not self._counts:
            self._since = now
        self._counts[kind] = self._counts.get(kind, 0) + number

    def settle(self, now: float, *, at_once: bool = False) -> tuple[Mapping[str, int], float] | None:
        """What was left out and since when, a minute after the first of it; None while there is nothing to tell."""
        if not self._counts or (not at_once and 0.0 <= now - self._since < SETTLE):
            return None
        counts, self._counts = self._counts, {}
        return counts, self._since


def _filled(bucket: tuple[float, float] | None, most: float, seconds: float, now: float) -> float:
    """How many events a bucket has room for now. A clock that was set back fills nothing."""
    if bucket is None:
        return most
    room, at = bucket
    return min(most, room + max(0.0, now - at) * most / seconds)
