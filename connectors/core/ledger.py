"""The books of what the agent produced: every item is sent, dropped with a reason, or still waiting. Pure values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from connectors.core.telemetry import Attributes, Event, Severity

Signal = Literal["metrics", "logs"]
SIGNALS: tuple[Signal, ...] = ("metrics", "logs")
GAP_EVENT = "irca.agent.gap"


class DropReason(StrEnum):
    """Why items were dropped."""

    AGE = "age"
    SIZE = "size"
    REJECTED = "rejected"
    DISK_FULL = "disk-full"
    CORRUPT = "corrupt"


@dataclass(frozen=True, slots=True)
class Drop:
    """Items lost: of which signal, why, how many (0 where nobody can know), and when they were produced (Unix seconds)."""

    signal: str
    reason: str
    items: int
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch known to be missing: drops of one signal and reason, coalesced.

    ``id`` is its event's id and never changes; a ``sealed`` gap has been handed out for delivery and grows no more.
    """

    id: str
    signal: str
    reason: str
    items: int
    start: float
    end: float
    sealed: bool = False

    def widened(self, drop: Drop) -> Gap:
        """This gap with ``drop`` in it."""
        return Gap(self.id, self.signal, self.reason, self.items + drop.items, min(self.start, drop.start), max(self.end, drop.end))

    def event(self, resource: Attributes) -> Event:
        """The event that tells the platform."""
        return Event(
            name=GAP_EVENT,
            attributes={
                "irca.gap.signal": self.signal,
                "irca.gap.reason": self.reason,
                "irca.gap.items": self.items,
                "irca.gap.start_time_unix_nano": int(self.start * 1e9),
                "irca.gap.end_time_unix_nano": int(self.end * 1e9),
            },
            severity=Severity.WARN,
            body=f"{self.items or 'An unknown number of'} items of {self.signal} were dropped: {self.reason}",
            resource=resource,
            time_unix_nano=int(self.end * 1e9),
            id=self.id,
        )


@dataclass(slots=True)
class Ledger:
    """Items by signal: ``produced``, ``sent``, and ``dropped`` by (signal, reason)."""

    produced: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)

    def dropped_of(self, signal: str) -> int:
        """Dropped items of one signal, whatever the reason."""
        return sum(items for (of, _reason), items in self.dropped.items() if of == signal)

    def waiting(self, signal: str) -> int:
        """Items produced and neither sent nor dropped."""
        return self.produced[signal] - self.sent[signal] - self.dropped_of(signal)

    def add(self, other: Ledger) -> None:
        """Count what ``other`` counted as well."""
        self.produced.update(other.produced)
        self.sent.update(other.sent)
        self.dropped.update(other.dropped)

    def copy(self) -> Ledger:
        """An independent copy."""
        return Ledger(self.produced.copy(), self.sent.copy(), self.dropped.copy())

    def rows(self) -> list[tuple[str, str, str, int]]:
        """(kind, signal, reason, items) of every count that is not zero; the reason is empty but for drops."""
        rows = [("produced", signal, "", items) for signal, items in self.produced.items()]
        rows += [("sent", signal, "", items) for signal, items in self.sent.items()]
        rows += [("dropped", signal, reason, items) for (signal, reason), items in self.dropped.items()]
        return [row for row in rows if row[3]]

    def count(self, kind: str, signal: str, reason: str, items: int) -> None:
        """Add one row, as :meth:`rows` gives them.

        Raises:
            ValueError: ``kind`` is none of produced, sent, dropped.
        """
        if kind == "dropped":
            self.dropped[signal, reason] += items
        elif kind in ("produced", "sent"):
            getattr(self, kind)[signal] += items
        else:
            raise ValueError(f"no such kind of count: {kind!r}")


@dataclass(frozen=True, slots=True)
class SpoolStatistics:
    """The spool about itself. ``size_bytes`` is what its files take on disk, ``since`` when the books were begun (Unix seconds)."""

    size_bytes: int
    batches: int
    oldest_at: float | None
    ledger: Ledger
    since: float

    @property
    def waiting(self) -> Mapping[str, int]:
        """Items still spooled, by signal."""
        return {signal: self.ledger.waiting(signal) for signal in SIGNALS}


@dataclass(frozen=True, slots=True)
class Batch:
    """One spooled OTLP request body. ``items`` counts its data points or events; ``created_at`` is Unix seconds."""

    seq: int
    signal: Signal
    payload: bytes
    items: int
    created_at: float
