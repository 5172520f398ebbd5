"""A limit on failures: who guesses secrets is slowed down, who has one is not."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

from app.errors import TooManyRequestsError


class FailureLimit:
    """Lets ``burst`` failures through at once for each key (such as a client's address), and one more every ``every`` seconds.

    At most ``most_keys`` are remembered; the one that failed longest ago is forgotten first.
    """

    def __init__(self, burst: int, every: float, clock: Callable[[], float], most_keys: int = 10_000) -> None:
        self._burst = burst
        self._every = every
        self._clock = clock
        self._most_keys = most_keys
        self._free_at: OrderedDict[str, float] = OrderedDict()
        """For each key, when all of its failures will be forgiven."""

    def check(self, key: str) -> None:
        """Do nothing while ``key`` may fail once more.

        Raises:
            TooManyRequestsError: it may not; with the seconds until it may.
        """
        excess = self._free_at.get(key, 0.0) - self._clock() - (self._burst - 1) * self._every
        if excess > 0:
            raise TooManyRequestsError("too many failures from this address; try again later", retry_after=math.ceil(excess))

    def count(self, key: str) -> None:
        """Count a failure of ``key`` that has happened: whoever fails too often learns that instead of why.

        Raises:
            TooManyRequestsError: as :meth:`check`; the failure is not counted then.
        """
        self.check(key)
        self.failed(key)

    def failed(self, key: str) -> None:
        """Count a failure of ``key``."""
        self._free_at[key] = max(self._free_at.get(key, 0.0), self._clock()) + self._every
        self._free_at.move_to_end(key)
        while len(self._free_at) > self._most_keys:
            self._free_at.popitem(last=False)
