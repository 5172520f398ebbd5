"""The live stream as an iterator that survives a broken connection."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from app.client.errors import ClientError, NoAnswerError, UnavailableError, UnreachableError
from app.client.session import Session

PATH = "/api/v1/live"
SILENCE = 45.0
"""Seconds without even a heartbeat (they come every 15) after which the connection is taken for broken."""
PATIENCE = 300.0
"""Seconds for which the platform may be away; what happened in a longer time it does not keep either."""

Topic = Literal["agent", "instance", "samples", "event", "delivery"]


@dataclass(frozen=True, slots=True)
class LiveEvent:
    """Something that happened.

    ``topic`` is ``agent``, ``instance``, ``samples``, ``event``, or ``lagged``: some were lost, read again what you show. ``id`` is where
    :meth:`Live.follow` can go on.
    """

    topic: str
    id: str
    data: Mapping[str, Any] = field(default_factory=dict)


class Live:
    """What happens, as it happens."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def follow(
        self,
        *,
        topic: Iterable[Topic] = (),
        instance: Iterable[str] = (),
        agent: Iterable[str] = (),
        last_event_id: str | None = None,
        patience: float = PATIENCE,
    ) -> Iterator[LiveEvent]:
        """Events, waited for.

        A connection that breaks is made again and goes on after the last event: nothing is lost or doubled as long as the platform keeps
        what happened, and an event ``lagged`` tells when it did not.

        Args:
            topic: only these; none for all.
            instance: only what concerns these instances, by id.
            agent: only what concerns these agents, by id.
            last_event_id: begin after this event instead of now.
            patience: seconds for which the platform may be away.

        Raises:
            ClientError: the platform refused, such as at the end of the key's life, or was away for too long.
        """
        query = {"topic": list(topic), "instance": list(instance), "agent": list(agent)}
        reader = _Reader(last_event_id or "")
        heard = time.monotonic()
        while True:
            resumed = {"Last-Event-ID": reader.id} if reader.id else {}
            failure: ClientError | None = None
            try:
                with self._session.stream(PATH, query=query, headers={"Accept": "text/event-stream", **resumed}, timeout=SILENCE) as answer:
                    for line in answer.iter_lines():
                        heard = time.monotonic()
                        if (event := reader.read(line)) is not None:
                            yield event
            except (UnreachableError, NoAnswerError, UnavailableError) as exc:
                failure = exc
            reader.forget()
            if failure is not None and time.monotonic() - heard > patience:
                raise failure
            self._session.sleep(max(reader.retry, (failure.retry_after if failure else None) or 0.0))


class _Reader:
    """The event stream format, line by line."""

    def __init__(self, last_id: str) -> None:
        self.id = last_id
        self.retry = 2.0
        self._new_id = last_id
        self._topic = ""
        self._data: list[str] = []

    def forget(self) -> None:
        """Begin anew: what came of an event without its end does not count."""
        self._new_id, self._topic, self._data = self.id, "", []

    def read(self, line: str) -> LiveEvent | None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            return self._end()
        if name == "id":
            self._new_id = value
        elif name == "event":
            self._topic = value
        elif name == "data":
            self._data.append(value)
        elif name == "retry" and value.isdecimal():
            self.retry = int(value) / 1000
        return None

    def _end(self) -> LiveEvent | None:
        self.id = self._new_id
        event = LiveEvent(self._topic or "message", self.id, json.loads("\n".join(self._data))) if self._data else None
        self.forget()
        return event
