"""Which files are to go: planning only, from what there is and the clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app.telemetry.embedded.files import DAY_MS, Period


def expired(period: Period, keys: Sequence[int], now_ms: int, retention_ms: int) -> list[int]:
    """The periods that ended longer than ``retention_ms`` ago."""
    return [key for key in keys if period.start_ms(key + 1) <= now_ms - retention_ms]


def over_budget(sizes: Mapping[int, int], everything: int, budget: int, now_ms: int) -> list[int]:
    """The days to drop, the oldest first, until ``everything`` (bytes of the whole store) is within ``budget``.

    Today and later stay whatever they cost: a store that cannot hold a day is too small, and deleting what has just arrived helps nobody.
    """
    dropped: list[int] = []
    for day in sorted(sizes):
        if everything <= budget or day >= now_ms // DAY_MS:
            break
        dropped.append(day)
        everything -= sizes[day]
    return dropped
