"""The engine's event stream: read by a thread of its own into a bounded queue, so that the engine never waits for us.

An engine gives a listener that does not read 100 ms and 1,024 events, then leaves events out without a word.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import docker.errors
import requests
import urllib3.exceptions
from docker import APIClient

from connectors.core.errors import ControlError, RuntimeUnavailableError
from connectors.docker.death_logs import stamp
from connectors.docker.engine import FAILURES, Engine, explain
from connectors.docker.events import EngineEvent, parse

MAX_WAITING = 4_000
"""Events that wait to be worked on; what comes beyond is counted and left out."""
_MAX_LINE = 1024 * 1024
_JOIN = 2.0
_BROKEN = (*FAILURES, urllib3.exceptions.HTTPError, ValueError, AttributeError)
"""What reading a connection raises that breaks, or that is closed meanwhile (http.client then meets its own None)."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The stream's end: why, as an error of ours."""

    error: ControlError


def read_past(engine: Engine, since: int, until: int) -> list[EngineEvent]:
    """The events that the engine still holds between two times of its own clock (Unix nanoseconds): 256 at most, of all kinds.

    Raises:
        ControlError: the engine cannot be asked.
    """
    with engine.client() as client, _get(client, since, engine.timeout, until=until) as response:
        try:
            return [event for line in _lines(response) if (event := parse(line))]
        except urllib3.exceptions.HTTPError as exc:
            raise explain(exc, engine.host, engine.timeout) from exc


class EventStream:
    """The events from ``since`` (Unix nanoseconds of the engine's clock) on, as they come. A context manager.

    Raises:
        ControlError: the stream cannot be opened.
    """

    def __init__(self, engine: Engine, since: int) -> None:
        self._engine = engine
        self._queue: deque[EngineEvent | Ended] = deque()
        self._left: dict[str, int] = {}
        self._arrived = threading.Condition()
        with engine.client() as client:
            self._response = _get(client, since, engine.timeout)
            self._socket = _without_timeout(client, self._response)
        self._thread = threading.Thread(target=self._read, name="irca-docker-events", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def next(self, timeout: float) -> EngineEvent | Ended | None:
        """What came next; None when nothing has come within ``timeout`` seconds. After :class:`Ended` nothing comes."""
        with self._arrived:
            if not self._queue:
                self._arrived.wait(timeout)
            return self._queue.popleft() if self._queue else None

    @property
    def waiting(self) -> int:
        """How many events wait to be worked on."""
        return len(self._queue)

    def has_waiting(self, kind: str, action: str, actor: str) -> bool:
        """Whether such an event waits to be worked on."""
        with self._arrived:
            return any(isinstance(e, EngineEvent) and (e.type, e.action, e.actor) == (kind, action, actor) for e in self._queue)

    def left_out(self) -> Mapping[str, int]:
        """How many events of which kind found no room since this was last asked."""
        with self._arrived:
            left, self._left = self._left, {}
        return left

    def close(self) -> None:
        """End the reading, at once even while it waits for the engine."""
        with contextlib.suppress(*_BROKEN):
            # Closing what another thread reads from does not wake it up; ending the connection under it does.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(_JOIN)
        self._response.close()

    def _read(self) -> None:
        error: ControlError = RuntimeUnavailableError(f"the Docker engine at {self._engine.host} ended the stream of its events")
        try:
            for line in _lines(self._response):
                if event := parse(line):
                    self._put(event)
        except _BROKEN as exc:
            if not isinstance(exc, urllib3.exceptions.ProtocolError):
                error = explain(exc, self._engine.host, self._engine.timeout)
        with self._arrived:
            self._queue.append(Ended(error))
            self._arrived.notify()

    def _put(self, event: EngineEvent) -> None:
        with self._arrived:
            last = self._queue[-1] if self._queue else None
            if not event.is_recorded and isinstance(last, EngineEvent) and not last.is_recorded:
                self._queue[-1] = event  # only tells how far the stream has come
            elif len(self._queue) < (2 * MAX_WAITING if event.is_vital else MAX_WAITING):
                self._queue.append(event)
            elif event.is_recorded:
                self._left[event.kind] = self._left.get(event.kind, 0) + 1
            self._arrived.notify()


def _get(client: APIClient, since: int, timeout: float, *, until: int | None = None) -> requests.Response:
    """Ask for events: those from ``since`` to ``until``, or from ``since`` on for ever."""
    asked = {"since": stamp(since)} | ({"until": stamp(until)} if until is not None else {})
    response = client.get(f"{client.base_url}/v{client.api_version}/events", params=asked, stream=True, timeout=timeout)
    try:
        response.raise_for_status()
    except requests.exceptions.HTTPError as exc:
        docker.errors.create_api_error_from_http_exception(exc)
    return response


def _without_timeout(client: APIClient, response: requests.Response) -> Any:
    """The connection of a response, which may now be silent for long: whoever reads it asks by other means whether the engine is alive."""
    untyped: Any = client  # requests has no way to the connection, docker-py has
    connection = untyped._get_raw_response_socket(response)  # noqa: SLF001 - as above
    untyped._disable_socket_timeout(connection)  # noqa: SLF001 - as above
    return getattr(connection, "_sock", connection)


def _lines(response: requests.Response) -> Iterator[bytes]:
    chunks: Iterable[bytes] = response.raw.stream(65_536, decode_content=True)
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
        if len(rest) > _MAX_LINE:
            rest = b""  # its end, when it comes, is not JSON and left out as well
    if rest:
        yield rest
