"""Pauses between attempts: exponential ceilings with full jitter, never shorter than what the other side asked for."""

from __future__ import annotations

import os
from collections.abc import Callable

FIRST_CEILING = 1.0
LAST_CEILING = 300.0
RETRY_AFTER_LIMIT = 3600.0
"""A longer ``Retry-After`` is taken for a mistake and shortened to this."""


def unit_random() -> float:
    """A number in [0, 1). The ``random`` module would cost memory."""
    return int.from_bytes(os.urandom(6), "big") / 2.0**48


def full_jitter(
    attempt: int, random: Callable[[], float], *, retry_after: float | None = None, first: float = FIRST_CEILING, last: float = LAST_CEILING
) -> float:
    """Seconds to wait after failed attempt number ``attempt`` (from 0).

    Uniform between 0 and a ceiling that doubles from ``first`` to ``last``; ``random`` gives numbers in [0, 1). A ``retry_after`` is
    the lower bound: the jitter comes on top of it, so that a fleet that was told the same pause does not return as one.
    """
    ceiling = min(last, first * 2.0 ** min(max(attempt, 0), 64))
    least = min(max(retry_after or 0.0, 0.0), RETRY_AFTER_LIMIT)
    return least + random() * ceiling


def around(interval: float, random: Callable[[], float], *, share: float = 0.1) -> float:
    """``interval`` plus or minus up to ``share`` of it."""
    return interval * (1.0 + share * (2.0 * random() - 1.0))


def next_round(now: float, interval: float, offset: float) -> float:
    """When the next collection is due: at a multiple of ``interval`` plus ``offset``, no sooner than half an interval from ``now``."""
    earliest = now + interval / 2
    rounds = -(-(earliest - offset) // interval)
    return rounds * interval + offset


class Backoff:
    """Counts failed attempts for one peer: :meth:`pause` after each failure, :meth:`reset` after success."""

    def __init__(self, random: Callable[[], float], *, first: float = FIRST_CEILING, last: float = LAST_CEILING) -> None:
        self._random = random
        self._first = first
        self._last = last
        self.attempts = 0

    def pause(self, retry_after: float | None = None) -> float:
        """Seconds to wait before the next attempt; each call counts one more failure."""
        seconds = full_jitter(self.attempts, self._random, retry_after=retry_after, first=self._first, last=self._last)
        self.attempts += 1
        return seconds

    def reset(self) -> None:
        """An attempt succeeded."""
        self.attempts = 0
