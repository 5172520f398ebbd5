"""From what was produced to what the platform took: the outbox and the sender that drains it."""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from connectors.core import log
from connectors.core.errors import RejectedError, StateError, TransportError
from connectors.core.ledger import Batch, Drop, DropReason, Gap, Ledger, Signal, SpoolStatistics
from connectors.core.spool import Spool
from connectors.core.telemetry import Attributes, encode_events

_LOG = logging.getLogger(__name__)
MEMORY_BYTES = 1_048_576
"""What the outbox keeps in memory, at most, while the disk takes nothing."""
REFUSED_GAP_PAUSE = 3600.0
"""Seconds before gap events that the platform refused are offered again."""


@dataclass(frozen=True, slots=True)
class _Settlement:
    """How a batch ended: how many of its items the platform rejected (None: all of them), and why."""

    rejected: int | None
    reason: str


class Outbox:
    """The spool, or, while the disk is full or read-only, a bounded queue in memory.

    What memory could not hold is counted and entered in the spool's books, with a gap, as soon as the disk is back; what is still in
    memory then moves into the spool. Without the disk, delivery goes on from memory. :attr:`reason` says what is wrong (empty: nothing).
    """

    def __init__(self, open_spool: Callable[[], Spool], clock: Callable[[], float], memory_bytes: int = MEMORY_BYTES) -> None:
        self._open_spool = open_spool
        self._clock = clock
        self._memory_bytes = memory_bytes
        self._lock = threading.RLock()
        self._memory: collections.deque[Batch] = collections.deque()
        self._memory_used = 0
        self._memory_seq = 0
        self._pending = Ledger()
        self._pending_drops: dict[str, Drop] = {}
        self._unsettled: dict[int, _Settlement] = {}
        self._spool: Spool | None = None
        self.reason = ""
        with self._lock:
            self._ready()

    @property
    def max_payload(self) -> int:
        """The largest payload that the spool's bounds leave room for."""
        return self._spool.max_payload if self._spool else self._memory_bytes // 2

    def append(self, signal: Signal, payload: bytes, items: int) -> None:
        """Keep a batch: on disk and durable, or in memory while the disk takes nothing."""
        with self._lock:
            if (spool := self._ready()) is not None:
                try:
                    spool.append(signal, payload, items)
                except StateError as exc:
                    self._fail(exc)
                else:
                    return
            self._remember(signal, payload, items)

    def reopen(self, open_spool: Callable[[], Spool]) -> None:
        """Go on with the same spool under other bounds, as ``open_spool`` opens it."""
        with self._lock:
            self._open_spool = open_spool
            if self._spool is not None:
                self._spool.close()
                self._spool = None
            self._ready()

    def peek(self) -> list[Batch]:
        """The oldest batches, those on disk first. Batches in memory have negative numbers."""
        with self._lock:
            if (spool := self._ready()) is not None or (spool := self._spool) is not None:
                try:
                    batches = [batch for batch in spool.peek(after=max(self._unsettled, default=0)) if batch.seq not in self._unsettled]
                except StateError as exc:
                    self._fail(exc)
                else:
                    if batches:
                        return batches
            return list(self._memory)[:16]

    def acknowledge(self, seq: int, rejected: int = 0) -> None:
        """The platform took the batch, but for ``rejected`` of its items."""
        self._settle(seq, _Settlement(rejected, DropReason.REJECTED))

    def reject(self, seq: int, reason: str = DropReason.REJECTED) -> None:
        """The platform refused the batch for good."""
        self._settle(seq, _Settlement(None, reason))

    def gaps(self) -> list[Gap]:
        """The gaps to deliver next; none while the disk takes nothing."""
        with self._lock:
            if (spool := self._ready()) is None:
                return []
            try:
                return spool.gaps()
            except StateError as exc:
                self._fail(exc)
                return []

    def settle_gaps(self, ids: Sequence[str]) -> None:
        """The platform knows these gaps. Where that cannot be written down they are told again, under the same event ids."""
        with self._lock:
            if self._spool is not None:
                try:
                    self._spool.settle_gaps(ids)
                except StateError as exc:
                    self._fail(exc)

    def statistics(self) -> SpoolStatistics:
        """Counts and sizes, with what waits in memory and what is not yet written down."""
        with self._lock:
            on_disk = self._spool.statistics() if self._spool else SpoolStatistics(0, 0, None, Ledger(), self._clock())
            books = on_disk.ledger
            books.add(self._pending)
            for drop in self._pending_drops.values():
                books.dropped[drop.signal, drop.reason] += drop.items
            for batch in self._memory:
                books.produced[batch.signal] += batch.items
            oldest = on_disk.oldest_at if on_disk.oldest_at is not None or not self._memory else self._memory[0].created_at
            return SpoolStatistics(on_disk.size_bytes, on_disk.batches + len(self._memory), oldest, books, on_disk.since)

    def recover(self) -> bool:
        """Try the disk again; whether all is on disk and written down."""
        with self._lock:
            return self._ready() is not None

    def close(self) -> None:
        """Write down what can be and close the spool."""
        with self._lock:
            self._ready()
            if self._spool is not None:
                self._spool.close()

    def _ready(self) -> Spool | None:
        """The spool, once it has taken everything that waits in memory; None while it does not."""
        try:
            spool = self._spool or self._open_spool()
            self._spool = spool
            for seq, settlement in list(self._unsettled.items()):
                self._settle_on(spool, seq, settlement)
                del self._unsettled[seq]
            if self._pending_drops or self._pending.rows():
                spool.record(self._pending, list(self._pending_drops.values()))
                self._pending, self._pending_drops = Ledger(), {}
            while self._memory:
                batch = self._memory[0]
                spool.append(batch.signal, batch.payload, batch.items, batch.created_at)
                self._forget(0)
            if self.reason:
                spool.check_room()
        except StateError as exc:
            self._fail(exc)
            return None
        if self.reason:
            log.entry(_LOG, logging.INFO, "spool.recovered", "the spool takes data again")
            self.reason = ""
        return spool

    def _fail(self, exc: StateError) -> None:
        if not self.reason:
            log.entry(_LOG, logging.ERROR, "spool.unusable", "the spool takes no data; keeping a little in memory", reason=exc.reason)
        self.reason = exc.reason

    def _remember(self, signal: Signal, payload: bytes, items: int) -> None:
        now = self._clock()
        self._memory_seq -= 1
        self._memory.append(Batch(self._memory_seq, signal, payload, items, now))
        self._memory_used += len(payload)
        while self._memory_used > self._memory_bytes:
            batch = self._forget(0)
            self._pending.produced[batch.signal] += batch.items
            known = self._pending_drops.get(batch.signal)
            self._pending_drops[batch.signal] = Drop(
                batch.signal,
                DropReason.DISK_FULL,
                batch.items + (known.items if known else 0),
                known.start if known else batch.created_at,
                batch.created_at,
            )

    def _forget(self, index: int) -> Batch:
        batch = self._memory[index]
        del self._memory[index]
        self._memory_used -= len(batch.payload)
        return batch

    def _settle(self, seq: int, settlement: _Settlement) -> None:
        with self._lock:
            if seq < 0:
                self._settle_in_memory(seq, settlement)
                return
            if self._spool is None:
                return
            try:
                self._settle_on(self._spool, seq, settlement)
            except StateError as exc:
                self._unsettled[seq] = settlement
                self._fail(exc)

    def _settle_in_memory(self, seq: int, settlement: _Settlement) -> None:
        for index, batch in enumerate(self._memory):
            if batch.seq == seq:
                self._forget(index)
                lost = batch.items if settlement.rejected is None else min(max(settlement.rejected, 0), batch.items)
                self._pending.produced[batch.signal] += batch.items
                self._pending.sent[batch.signal] += batch.items - lost
                self._pending.dropped[batch.signal, settlement.reason] += lost
                return

    @staticmethod
    def _settle_on(spool: Spool, seq: int, settlement: _Settlement) -> None:
        if settlement.rejected is None:
            spool.reject(seq, settlement.reason)
        else:
            spool.acknowledge(seq, settlement.rejected)


@dataclass(frozen=True, slots=True)
class Drained:
    """How a drain went: batches that the platform took, and what ended it early (None: nothing, or its caller)."""

    taken: int
    error: TransportError | None = None


class Exporter(Protocol):
    """Where batches go. Both methods return how many items the platform refused of an otherwise accepted request."""

    def export_metrics(self, payload: bytes) -> int:
        """Send a serialised ExportMetricsServiceRequest."""
        ...

    def export_logs(self, payload: bytes) -> int:
        """Send a serialised ExportLogsServiceRequest."""
        ...


class Sender:
    """Drains an outbox into an exporter, one batch a request, oldest first. One drain at a time."""

    def __init__(self, outbox: Outbox, exporter: Exporter, resource: Attributes, clock: Callable[[], float]) -> None:
        self._outbox = outbox
        self._exporter = exporter
        self._resource = resource
        self._clock = clock
        self._lock = threading.Lock()
        self._refused_gaps: dict[str, float] = {}

    def drain(self, proceed: Callable[[], bool] = lambda: True) -> Drained:
        """Send until the outbox is empty, ``proceed`` says no, or the platform is away or refuses this agent; what was not sent stays.

        Batches that the platform refused for good are dropped and counted, and are not among those that it took.
        """
        taken = 0
        with self._lock:
            try:
                while proceed():
                    self._send_gaps()
                    batches = self._outbox.peek()
                    if not batches:
                        break
                    for batch in batches:
                        if not proceed():
                            break
                        taken += self._send(batch)
            except TransportError as exc:
                return Drained(taken, exc)
        return Drained(taken)

    def _send(self, batch: Batch) -> bool:
        export = self._exporter.export_metrics if batch.signal == "metrics" else self._exporter.export_logs
        try:
            rejected = export(batch.payload)
        except RejectedError as exc:
            log.entry(_LOG, logging.ERROR, "send.rejected", "the platform refused a batch for good", status=exc.status, reason=exc.reason)
            self._outbox.reject(batch.seq)
            return False
        self._outbox.acknowledge(batch.seq, rejected)
        return True

    def _send_gaps(self) -> None:
        now = self._clock()
        gaps = [gap for gap in self._outbox.gaps() if self._refused_gaps.get(gap.id, now) <= now]
        if not gaps:
            return
        try:
            self._exporter.export_logs(encode_events([gap.event(self._resource) for gap in gaps], int(now * 1e9)))
        except RejectedError as exc:
            log.entry(_LOG, logging.ERROR, "send.gap-refused", "the platform refused gap events; they are kept", reason=exc.reason)
            self._refused_gaps.update({gap.id: now + REFUSED_GAP_PAUSE for gap in gaps})
        else:
            self._outbox.settle_gaps([gap.id for gap in gaps])
