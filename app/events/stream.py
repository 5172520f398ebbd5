"""The live stream: in-process fan-out of what just happened to whoever is connected (SSE). Published only after commit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class LiveMessage:
    """``topic`` is what it is about: ``instance`` (its row changed), ``samples`` (new metrics arrived), ``event`` (a timeline event)."""

    topic: str
    data: Mapping[str, Any] = field(default_factory=dict)


class LiveStream:
    """Fan-out with a bounded queue for each subscriber; one that falls behind is told so (topic ``lagged``) and loses the oldest."""

    def __init__(self, queue_size: int = 256) -> None:
        self._queue_size = queue_size
        self._subscribers: set[asyncio.Queue[LiveMessage]] = set()
        self._closed = False

    @property
    def subscribers(self) -> int:
        """How many are listening."""
        return len(self._subscribers)

    def publish(self, message: LiveMessage) -> None:
        """Hand ``message`` to every subscriber, without waiting. Call from the event loop."""
        for queue in self._subscribers:
            if queue.full():
                while queue.qsize() > self._queue_size // 2:
                    queue.get_nowait()
                queue.put_nowait(LiveMessage("lagged"))
            queue.put_nowait(message)

    def close(self) -> None:
        """Tell every subscriber, now and later, that nothing more will come (topic ``closed``): the platform is stopping."""
        self._closed = True
        self.publish(LiveMessage("closed"))

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[asyncio.Queue[LiveMessage]]:
        """A queue that receives what is published from now until the block ends."""
        queue: asyncio.Queue[LiveMessage] = asyncio.Queue(self._queue_size)
        self._subscribers.add(queue)
        if self._closed:
            queue.put_nowait(LiveMessage("closed"))
        try:
            yield queue
        finally:
            self._subscribers.discard(queue)
