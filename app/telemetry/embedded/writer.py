"""The writer: one thread that owns the index's and the head's connections and commits whatever has gathered, together.

Appends that wait while a commit is under way share the next one, so that many agents cost one sync. Callers are answered after the
commit, on their event loop.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from app.errors import OverloadedError, StorageError
from app.telemetry.embedded.head import Entry, Head, Stretch
from app.telemetry.embedded.index import SeriesIndex
from app.telemetry.store import SeriesKey

logger = logging.getLogger(__name__)

_GROUP_BYTES = 8 * 2**20
_GROUP_REGISTRATIONS = 32
_ROW_BYTES = 64  # what a waiting row costs beside its values


@dataclass(slots=True)
class _Work:
    """One thing to do, and who waits for it."""

    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    entries: Sequence[Entry] = ()
    registration: tuple[bytes, Sequence[SeriesKey]] | None = None
    removal: tuple[Sequence[Stretch], Callable[[], None]] | None = None
    cost: int = 0


@dataclass(slots=True)
class WriterCounts:
    """What the writer has done since it was started."""

    commits: int = 0
    rows: int = 0
    failures: int = 0
    refusals: int = 0


class Writer:
    """The writer thread.

    Args:
        index: where series are registered.
        head: where rows go.
        queue_bytes: what may wait; more is refused.
    """

    def __init__(self, index: SeriesIndex, head: Head, queue_bytes: int) -> None:
        self._index = index
        self._head = head
        self._queue_bytes = queue_bytes
        self._waiting: deque[_Work] = deque()
        self._waiting_bytes = 0
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="metric-store-writer", daemon=True)
        self.counts = WriterCounts()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def append(self, entries: Sequence[Entry]) -> None:
        """Store rows, all or none; durable on return.

        Raises:
            StorageError: nothing was stored.
            OverloadedError: too much is waiting already.
        """
        await self._submit(self._work(entries=entries, cost=sum(len(e[2]) + _ROW_BYTES for e in entries)))

    async def register(self, digest: bytes, series: Sequence[SeriesKey]) -> Any:
        """Register a schema; durable on return.

        Raises:
            StorageError: it was not registered.
            OverloadedError: too much is waiting already.
        """
        return await self._submit(self._work(registration=(digest, series), cost=_ROW_BYTES * len(series)))

    async def remove(self, stretches: Sequence[Stretch], then: Callable[[], None]) -> None:
        """Remove sealed rows from the head; ``then`` runs in the writer thread right after, before anything else is written.

        Raises:
            StorageError: nothing was removed.
        """
        await self._submit(self._work(removal=(stretches, then)))

    def _work(self, **fields: Any) -> _Work:
        loop = asyncio.get_running_loop()
        return _Work(loop.create_future(), loop, **fields)

    def _submit(self, work: _Work) -> asyncio.Future[Any]:
        with self._wake:
            if self._stopping or not self._thread.is_alive():
                raise StorageError("The metric store is closed.")
            if self._waiting_bytes + work.cost > self._queue_bytes and work.cost:
                self.counts.refusals += 1
                raise OverloadedError("Too many samples are waiting to be stored.", retry_after=1.0)
            self._waiting.append(work)
            self._waiting_bytes += work.cost
            self._wake.notify()
        return work.future

    def stop(self) -> None:
        """Finish what is waiting and end the thread. Blocks."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while group := self._next_group():
            outcomes = self._perform(group)
            _answer(group, outcomes)

    def _next_group(self) -> list[_Work]:
        with self._wake:
            while not self._waiting and not self._stopping:
                self._wake.wait()
            group: list[_Work] = []
            size = registrations = 0
            while self._waiting and size < _GROUP_BYTES and registrations < _GROUP_REGISTRATIONS:
                if self._waiting[0].removal is not None and group:
                    break
                work = self._waiting.popleft()
                group.append(work)
                size += work.cost
                self._waiting_bytes -= work.cost
                registrations += work.registration is not None
                if work.removal is not None:
                    break
            return group

    def _perform(self, group: Sequence[_Work]) -> list[Any]:
        """Each work's result, or the exception that ends it."""
        outcomes: dict[int, Any] = {}
        registrations = [work for work in group if work.registration is not None]
        appends = [work for work in group if work.entries]
        if registrations:
            outcomes.update(
                _outcome(
                    registrations, self._attempt(lambda: self._index.register(w.registration for w in registrations if w.registration))
                )
            )
        if appends:
            outcomes.update(_outcome(appends, self._attempt(lambda: self._append(appends))))
        for work in group:
            if work.removal is not None:
                outcomes.update(_outcome([work], self._attempt(partial(self._remove, *work.removal))))
        return [outcomes.get(id(work)) for work in group]

    def _append(self, appends: Sequence[_Work]) -> list[None]:
        self._head.insert(entry for work in appends for entry in work.entries)
        touch = self._index.touch
        for work in appends:
            self.counts.rows += len(work.entries)
            for schema, time_ms, _ in work.entries:
                touch(schema, time_ms, time_ms)
        self.counts.commits += 1
        return [None] * len(appends)

    def _remove(self, stretches: Sequence[Stretch], then: Callable[[], None]) -> list[None]:
        self._head.remove(stretches)
        then()
        return [None]

    def _attempt(self, step: Callable[[], list[Any]]) -> list[Any] | BaseException:
        try:
            return step()
        except sqlite3.Error as error:
            self.counts.failures += 1
            logger.exception("metric store: a commit failed")
            return StorageError(f"The metric store could not commit: {error}.")
        except Exception as error:
            self.counts.failures += 1
            logger.exception("metric store: the writer failed")
            return StorageError(f"The metric store failed: {error}.")


def _outcome(works: Sequence[_Work], result: list[Any] | BaseException) -> dict[int, Any]:
    results = [result] * len(works) if isinstance(result, BaseException) else result
    return {id(work): outcome for work, outcome in zip(works, results, strict=True)}


def _answer(group: Sequence[_Work], outcomes: Sequence[Any]) -> None:
    """Hand the outcomes over on the event loops that wait for them: one call for each loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for work, outcome in zip(group, outcomes, strict=True):
        by_loop.setdefault(work.loop, []).append((work.future, outcome))
    for loop, answers in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, answers)
        except RuntimeError:
            logger.warning("metric store: %d answers had nobody waiting: their event loop is closed", len(answers))


def _resolve(answers: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, outcome in answers:
        if future.done():
            continue
        if isinstance(outcome, BaseException):
            future.set_exception(StorageError(str(outcome), retry_after=1.0))  # one of its own for each: tracebacks are not shared
        else:
            future.set_result(outcome)
