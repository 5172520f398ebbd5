"""What the tests of the spool share: a clock that a test sets, a spool's books, and that they balance."""

from __future__ import annotations

MB = 1_048_576


class Clock:
    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def books(spool) -> dict:
    ledger = spool.statistics().ledger
    return {"produced": dict(+ledger.produced), "sent": dict(+ledger.sent), "dropped": dict(+ledger.dropped)}


def held(spool) -> int:
    total, after = 0, 0
    while batches := spool.peek(after=after):
        total += sum(b.items for b in batches)
        after = batches[-1].seq
    return total


def assert_balanced(spool) -> None:
    ledger = spool.statistics().ledger
    assert sum(ledger.produced.values()) == sum(ledger.sent.values()) + sum(ledger.dropped.values()) + held(spool)
