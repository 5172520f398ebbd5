"""The live stream: in-process fan-out of what just happened to whoever is connected (SSE). Published only after commit.

Of each topic the newest messages are kept for a few minutes, so that who was cut off goes on where it was. A message's id is the time
at which the stream began (milliseconds) and a number that goes up by one: ``1800000000000-17``.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from heapq import merge
from typing import Any

LAGGED = "lagged"
"""Topic of the message that tells a subscriber that others were lost."""
CLOSED = "closed"
"""Topic of the last message: the platform is stopping."""
_DIGITS = 19
"""Of a number that a client may name."""


@dataclass(frozen=True, slots=True)
class LiveMessage:
    """Something that happened.

    ``topic`` is what it is about: ``agent`` and ``instance`` (its row changed), ``samples`` (new metrics arrived), ``event`` (a timeline
    event), ``delivery`` (a webhook delivery was tried). ``number`` is given when it is published.
    """

    topic: str
    data: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0


@dataclass(slots=True)
class _Ring:
    """The newest messages of one topic with the time of each, and the number of the last that was dropped."""

    messages: deque[tuple[float, LiveMessage]] = field(default_factory=deque)
    dropped: int = 0

    def drop(self, size: int, before: float) -> None:
        while self.messages and (len(self.messages) > size or self.messages[0][0] < before):
            self.dropped = self.messages.popleft()[1].number

    def after(self, number: int) -> list[LiveMessage]:
        found = []
        for _, message in reversed(self.messages):
            if message.number <= number:
                break
            found.append(message)
        return found[::-1]


class Subscription:
    """What one subscriber has still to hear; of the topics it follows, in the order of publishing.

    One that falls behind further than is kept hears a message of topic ``lagged`` and then what there still is; when the stream is closed,
    one of topic ``closed``, again and again.
    """

    def __init__(self, stream: LiveStream, topics: Collection[str], position: int) -> None:
        self.position = position
        """Number of the last message that was looked at."""
        self._stream = stream
        self._topics = frozenset(topics)
        self._waiting: deque[LiveMessage] = deque()
        self._looked = position
        self._news = asyncio.Event()

    async def get(self) -> LiveMessage:
        """The next message, waited for."""
        while not self._look():
            self._news.clear()
            await self._news.wait()
        return self.get_nowait()

    def get_nowait(self) -> LiveMessage:
        """The next message.

        Raises:
            asyncio.QueueEmpty: there is none yet.
        """
        if not self._look():
            raise asyncio.QueueEmpty
        message = self._waiting.popleft()
        self.position = max(self.position, message.number)
        if not self._waiting and message.topic != CLOSED:
            self.position = max(self.position, self._looked)
        return message

    def qsize(self) -> int:
        """How many can be had without waiting."""
        self._look()
        return len(self._waiting)

    def empty(self) -> bool:
        """Whether the next one must be waited for."""
        return not self._look()

    def wake(self) -> None:
        """Tell that something was published."""
        self._news.set()

    def lag(self, number: int) -> None:
        """Have the next message say that some before ``number`` were lost."""
        self._waiting.append(LiveMessage(LAGGED, number=number))

    def _look(self) -> bool:
        if not self._waiting:
            found, self._looked = self._stream.after(self.position, self._topics)
            self._waiting.extend(found)
            if not found:
                self.position = max(self.position, self._looked)
            if not found and self._stream.closed:
                self._waiting.append(LiveMessage(CLOSED))
        return bool(self._waiting)


class LiveStream:
    """Fan-out over what is kept of each topic: at most ``queue_size`` messages, for ``max_age`` seconds.

    Args:
        queue_size: messages of each topic that are kept.
        max_age: for how long, in seconds.
        clock: seconds, monotonic.
        started: when the stream began, Unix milliseconds; the first part of every id.
    """

    def __init__(
        self,
        queue_size: int = 4096,
        *,
        max_age: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
        started: int | None = None,
    ) -> None:
        self._size = queue_size
        self._max_age = max_age
        self._clock = clock
        self._started = int(time.time() * 1000) if started is None else started
        self._number = 0
        self._rings: dict[str, _Ring] = {}
        self._subscribers: set[Subscription] = set()
        self._left_at: float | None = None
        self.closed = False
        """Whether nothing more will come."""

    @property
    def subscribers(self) -> int:
        """How many are listening."""
        return len(self._subscribers)

    @property
    def followed(self) -> bool:
        """Whether somebody listens, or did so lately and may come back for what is published meanwhile."""
        return bool(self._subscribers) or (self._left_at is not None and self._clock() - self._left_at < self._max_age)

    def id_of(self, number: int) -> str:
        """The id under which a client knows the message of this number."""
        return f"{self._started}-{number}"

    def publish(self, message: LiveMessage) -> None:
        """Number ``message``, keep it, and wake every subscriber. Call from the event loop."""
        self._number += 1
        now = self._clock()
        ring = self._rings.setdefault(message.topic, _Ring())
        ring.messages.append((now, replace(message, number=self._number)))
        ring.drop(self._size, now - self._max_age)
        for subscriber in self._subscribers:
            subscriber.wake()

    def close(self) -> None:
        """Tell every subscriber, now and later, that nothing more will come: the platform is stopping."""
        self.closed = True
        for subscriber in self._subscribers:
            subscriber.wake()

    def after(self, number: int, topics: Collection[str] = ()) -> tuple[list[LiveMessage], int]:
        """What is kept that came after a message, in order, with ``lagged`` at its beginning where some of it is no longer kept.

        Args:
            number: of that message.
            topics: only these; an empty collection for all.

        Returns:
            The messages, and the number of the newest of all topics.
        """
        rings = [ring for topic, ring in self._rings.items() if not topics or topic in topics]
        before = self._clock() - self._max_age
        for ring in rings:
            ring.drop(self._size, before)
        found = list(merge(*(ring.after(number) for ring in rings), key=lambda m: m.number))
        dropped = max((ring.dropped for ring in rings), default=0)
        if dropped > number:
            first = found[0].number - 1 if found else self._number
            found.insert(0, LiveMessage(LAGGED, number=min(dropped, first)))
        return found, self._number

    @asynccontextmanager
    async def subscribe(self, topics: Collection[str] = (), *, last_event_id: str | None = None) -> AsyncIterator[Subscription]:
        """What is published from now, or since ``last_event_id``, until the block ends.

        Args:
            topics: only these; an empty collection for all.
            last_event_id: id of the last message that the subscriber had. Where what came since then is not kept, or the platform was
                restarted, the first message is of topic ``lagged``.
        """
        position, lost = self._number, False
        if last_event_id is not None:
            position, lost = self._resume(last_event_id)
        subscription = Subscription(self, topics, position)
        if lost:
            subscription.lag(self._number)
        self._subscribers.add(subscription)
        try:
            yield subscription
        finally:
            self._subscribers.discard(subscription)
            if not self._subscribers:
                self._left_at = self._clock()

    def _resume(self, last_event_id: str) -> tuple[int, bool]:
        started, _, text = last_event_id.strip().partition("-")
        known = started == str(self._started) and text.isascii() and text.isdecimal() and len(text) <= _DIGITS
        if not known or int(text) > self._number or not self.followed:
            return self._number, True
        return int(text), False
