"""Waiting for what comes about by itself: the one loop of all tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE = 150.0
"""Seconds after which it will not come about any more. This bounds hanging and promises nothing: a kubelet that misses a container's end
lets its pod go only with its next collection of garbage, a minute later. What is promised within a time is measured by its test."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.3
"""Seconds between two looks: what is quick is seen at once, what takes long is not held up by being asked about."""
_NOTICED = 1.0
"""Seconds by which a pause has to be too long to count as time that the machine gave to nobody."""

Found = TypeVar("Found")


def eventually(condition: Callable[[], Found], seconds: float = PATIENCE, why: Callable[[], object] = str) -> Found:
    """What ``condition`` gives once it gives something; ``why`` is asked for a word when it never does.

    Time in which the machine stood still for everybody does not count towards ``seconds``.
    """
    deadline, pause = time.monotonic() + seconds, _FIRST_PAUSE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not so within {seconds:g} s: {why()}"
        slept = time.monotonic()
        time.sleep(pause)
        late = time.monotonic() - slept - pause
        deadline += late if late > _NOTICED else 0.0
        pause = min(1.5 * pause, _LONGEST_PAUSE)
    return found
