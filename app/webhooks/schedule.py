"""When a delivery is tried again and when an endpoint is left alone: pure functions of what happened and the clock."""

from __future__ import annotations

from dataclasses import dataclass

RETRY_PAUSES = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 7200.0, 14_400.0, 21_600.0)
"""Seconds between one try and the next; the last is repeated."""
GIVE_UP_AFTER = 86_400.0
"""Seconds after which a delivery that still fails is dead."""
JITTER = 0.2
CIRCUIT_OPENS_AT = 5
"""Failures in a row after which an endpoint is left alone for a while."""
CIRCUIT_PAUSE, LONGEST_CIRCUIT_PAUSE = 30.0, 3600.0


@dataclass(frozen=True, slots=True)
class Circuit:
    """An endpoint's standing: failures in a row, and until when (Unix seconds) it is left alone; None while it is not."""

    failures: int = 0
    open_until: float | None = None

    def state(self, now: float) -> str:
        """``closed`` (deliveries go out), ``open`` (none does) or ``half-open`` (one is tried)."""
        if self.open_until is None:
            return "closed"
        return "open" if now < self.open_until else "half-open"


def next_attempt(attempts: int, created: float, now: float, retry_after: float | None, random: float) -> float | None:
    """When a delivery that has failed ``attempts`` times is tried again; None when it is dead.

    Args:
        attempts: tries so far, all failed.
        created: when the delivery was made, Unix seconds.
        now: Unix seconds.
        retry_after: seconds that the receiver asked for, if it did.
        random: in [0, 1), spreads the tries.
    """
    if now - created >= GIVE_UP_AFTER:
        return None
    pause = RETRY_PAUSES[min(attempts, len(RETRY_PAUSES)) - 1] * (1 + JITTER * (2 * random - 1))
    # The last try comes at the end of the time, not hours before it.
    due = now + max(pause, min(retry_after or 0.0, LONGEST_CIRCUIT_PAUSE))
    return min(due, max(created + GIVE_UP_AFTER, now + RETRY_PAUSES[0]))


def after_attempt(circuit: Circuit, *, succeeded: bool, now: float) -> Circuit:
    """An endpoint's standing after one more try."""
    if succeeded:
        return Circuit()
    if circuit.state(now) == "open":
        return circuit  # it was on its way when the circuit opened: that deliveries fail side by side says no more than that one does
    failures = circuit.failures + 1
    if failures < CIRCUIT_OPENS_AT:
        return Circuit(failures)
    pause = min(CIRCUIT_PAUSE * 2 ** min(failures - CIRCUIT_OPENS_AT, 20), LONGEST_CIRCUIT_PAUSE)
    return Circuit(failures, now + pause)
