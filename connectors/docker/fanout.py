"""Many questions to an engine at once, in one thread.

An engine answers one container's statistics when it next takes readings, up to a second later, but then answers for all who wait. So
everything is asked first and read as it comes: two hundred containers take as long as one.
"""

from __future__ import annotations

import json
import selectors
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any, Self

from connectors.core.errors import ConnectorError, NotDeployedError, RuntimeUnavailableError
from connectors.docker.engine import FAILURES, Engine, explain, explain_answer

_OK = 200
_READ_TIMEOUT = 2.0
"""Seconds that the rest of an answer may take once it has begun."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request: the engine's document, or why there is none. ``status`` is 0 when no answer came."""

    status: int
    document: Mapping[str, Any]
    failure: ConnectorError | None = None


@dataclass(slots=True)
class _Asked:
    """A question that is under way, and since when (monotonic seconds)."""

    key: str
    connection: HTTPConnection
    began: float


class Fanout:
    """Asks an engine for many documents of one kind. Connections are opened as needed, used again, and closed with the context.

    Args:
        engine: where to ask.
        width: how many requests are under way at a time.
        monotonic: seconds of a clock that is never set.
    """

    def __init__(self, engine: Engine, *, width: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._width = width
        self._monotonic = monotonic
        self._idle: list[HTTPConnection] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._idle:
            self._idle.pop().close()

    def ask(self, kind: str, paths: Mapping[str, str], *, patience: float, deadline: float) -> dict[str, Answer]:
        """``GET`` every path, by key; the answers by the same keys, in the order of ``paths``.

        Args:
            kind: which of :data:`~connectors.docker.engine.REQUESTS` they are.
            paths: with the version, as :meth:`Engine.path` gives them.
            patience: seconds without any answer after which no more are awaited.
            deadline: when, by ``monotonic``, what is still missing is given up.
        """
        answers: dict[str, Answer] = {}
        waiting = deque(paths.items())
        progress = self._monotonic()
        with selectors.DefaultSelector() as selector:
            try:
                while waiting or selector.get_map():
                    while waiting and len(selector.get_map()) < self._width and self._monotonic() < deadline:
                        key, path = waiting.popleft()
                        self._begin(selector, kind, key, path, answers)
                    left = min(deadline, progress + patience) - self._monotonic()
                    ready = selector.select(max(0.0, left)) if selector.get_map() else []
                    for event, _ in ready:
                        selector.unregister(event.fileobj)
                        asked: _Asked = event.data
                        answers[asked.key] = self._finish(kind, asked)
                        progress = self._monotonic()
                    if not ready and left <= 0:
                        break
            finally:
                unanswered: Sequence[_Asked] = [entry.data for entry in list(selector.get_map().values())]
                for asked in unanswered:
                    asked.connection.close()
        for asked in unanswered:
            self._engine.count(kind, self._monotonic() - asked.began, failed=True)
        late = Answer(0, {}, RuntimeUnavailableError(f"the Docker engine at {self._engine.host} did not answer in time"))
        return {key: answers.get(key, late) for key in paths}

    def _begin(self, selector: selectors.BaseSelector, kind: str, key: str, path: str, answers: dict[str, Answer]) -> None:
        asked = _Asked(key, self._idle.pop() if self._idle else self._engine.connection(), self._monotonic())
        try:
            asked.connection.request("GET", path)
            selector.register(asked.connection.sock, selectors.EVENT_READ, asked)
        except FAILURES as exc:
            asked.connection.close()
            answers[key] = self._failed(kind, asked, exc)

    def _finish(self, kind: str, asked: _Asked) -> Answer:
        connection = asked.connection
        connection.sock.settimeout(_READ_TIMEOUT)
        try:
            response = connection.getresponse()
            content = response.read()
            if not content and response.status == _OK:
                # The engine had begun to answer when the container went: there is nothing left to tell of it.
                connection.close()
                self._engine.count(kind, self._monotonic() - asked.began)
                return Answer(_OK, {}, NotDeployedError(f"the container went while {asked.key} was read"))
            document = json.loads(content)
        except (*FAILURES, ValueError) as exc:
            connection.close()
            return self._failed(kind, asked, exc)
        self._idle.append(connection)
        spent = self._monotonic() - asked.began
        if response.status != _OK:
            self._engine.count(kind, spent, failed=True)
            words = document.get("message") if isinstance(document, dict) else ""
            return Answer(response.status, {}, explain_answer(response.status, str(words or response.reason), self._engine.host))
        self._engine.count(kind, spent)
        return Answer(_OK, document if isinstance(document, dict) else {})

    def _failed(self, kind: str, asked: _Asked, exc: BaseException) -> Answer:
        self._engine.count(kind, self._monotonic() - asked.began, failed=True)
        return Answer(0, {}, explain(exc, self._engine.host, self._engine.timeout))
