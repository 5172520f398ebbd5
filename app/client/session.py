"""The one HTTP session towards the platform: keep-alive, timeouts, retries, and refusals as errors."""

from __future__ import annotations

import random
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Self, TypeVar

import httpx2
import msgspec

from app.client.errors import (
    BY_STATUS,
    AnswerTimeoutError,
    ClientError,
    FieldProblem,
    NoAnswerError,
    RefusedError,
    UnexpectedAnswerError,
    UnreachableError,
)

TIMEOUT = 15.0
"""Seconds within which the platform must connect, and then answer."""
RETRIES = 3
MAX_WAIT = 30.0
"""A ``Retry-After`` of more seconds than this is not waited for."""
IDEMPOTENCY_KEY = "Idempotency-Key"

_FIRST_PAUSE = 0.25
_BUSY = frozenset({429, 503})
_IN_PROGRESS = "request-in-progress"
_Result = TypeVar("_Result")


class Session:
    """One keep-alive connection to the platform, for one thread at a time.

    Answers 429 and 503, and a platform that cannot be reached, are tried again after a pause, which ``Retry-After`` may lengthen. An answer
    that was lost on its way is asked for again where that does no harm: when reading, and when creating under an idempotency key.

    Args:
        url: where the platform is.
        key: API key; empty for none.
        timeout: seconds.
        retries: how often at most a request is repeated.
        http: makes the requests instead of a client of its own; :meth:`close` leaves it open.
        direct: whether to pass by the proxies of the environment.
        sleep: waits that many seconds.
    """

    def __init__(
        self,
        url: str,
        key: str = "",
        *,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
        http: httpx2.Client | None = None,
        direct: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url.rstrip("/")
        self.retries = retries
        self.sleep = sleep
        self._headers = {"Accept": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        mounts: dict[str, httpx2.BaseTransport | None] = {f"all://{urllib.parse.urlsplit(url).hostname}": None} if direct else {}
        self._own = http is None
        self._http = httpx2.Client(timeout=timeout, mounts=mounts) if http is None else http

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._own:
            self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        """Ask, again where that may help, and return the answer, which is a success.

        Args:
            method: of HTTP.
            path: below the platform's address, escaped.
            query: parameters; None leaves one out, a sequence repeats it.
            content: a JSON document.
            headers: of the request.

        Raises:
            ClientError: nothing answered, or the platform refused.
        """
        sent = dict(self._headers)
        if content is not None:
            sent["Content-Type"] = "application/json"
        sent.update(headers or {})
        repeatable = method in ("GET", "HEAD") or IDEMPOTENCY_KEY in sent
        for tries in range(self.retries + 1):
            try:
                return self._ask(method, path, parameters(query or {}), content, sent)
            except ClientError as exc:
                pause = _pause(exc, tries, repeatable=repeatable)
                if pause is None or tries == self.retries:
                    raise
                self.sleep(pause)
        raise AssertionError("the last try returned or raised")

    def call(
        self,
        method: str,
        path: str,
        result: type[_Result],
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        if_match: int | None = None,
        creates: bool = False,
        idempotency_key: str | None = None,
    ) -> _Result:
        """Ask and return the answer as a ``result``.

        Args:
            method: of HTTP.
            path: below the platform's address, escaped.
            result: a model, or ``type(None)`` where the answer has no content.
            query: parameters.
            body: a model; None for no content.
            if_match: the version that the change was made from.
            creates: the operation takes an idempotency key: one is made where none is given.
            idempotency_key: the caller's own.

        Raises:
            ClientError: nothing answered, or the platform refused, or the answer is not a ``result``.
        """
        headers = {} if if_match is None else {"If-Match": f'"{if_match}"'}
        if creates:
            headers[IDEMPOTENCY_KEY] = idempotency_key or str(uuid.uuid4())
        content = None if body is None else msgspec.json.encode(body)
        answer = self.request(method, path, query=query, content=content, headers=headers)
        if result is type(None):
            return None
        try:
            return msgspec.json.decode(answer.content, type=result)
        except msgspec.MsgspecError as exc:
            raise UnexpectedAnswerError(
                f"the answer of {self.url}{path} is not what this version knows: {exc}", status=answer.status_code
            ) from exc

    def lines(self, path: str, *, query: Mapping[str, Any] | None = None) -> Iterator[str]:
        """The lines of a text that may be long, as they arrive.

        Raises:
            ClientError: nothing answered, the platform refused, or the connection broke in the middle.
        """
        with self.stream(path, query=query, headers={"Accept": "*/*"}) as answer:
            yield from answer.iter_lines()

    @contextmanager
    def stream(
        self, path: str, *, query: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None, timeout: float = TIMEOUT
    ) -> Iterator[httpx2.Response]:
        """An answer whose content is read while it arrives.

        Args:
            path: below the platform's address, escaped.
            query: parameters.
            headers: of the request.
            timeout: seconds that may pass between two pieces.

        Raises:
            ClientError: nothing answered, the platform refused, or the connection broke in the middle.
        """
        sent = {**self._headers, **(headers or {})}
        try:
            with self._http.stream("GET", self.url + path, params=parameters(query or {}) or None, headers=sent, timeout=timeout) as answer:
                if not answer.is_success:
                    answer.read()
                    raise refusal(answer, self.url)
                yield answer
        except httpx2.HTTPError as exc:
            raise _broken(exc, self.url) from exc

    def _ask(
        self, method: str, path: str, query: tuple[tuple[str, str], ...], content: bytes | None, headers: Mapping[str, str]
    ) -> httpx2.Response:
        try:
            # None, for an empty mapping would take the query from a path that has one.
            answer = self._http.request(method, self.url + path, params=query or None, content=content, headers=dict(headers))
        except httpx2.HTTPError as exc:
            raise _broken(exc, self.url) from exc
        if not answer.is_success:
            raise refusal(answer, self.url)
        return answer


def segment(value: str) -> str:
    """A value as one segment of a path."""
    return urllib.parse.quote(value, safe="")


def parameters(query: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Query parameters as the platform reads them: None left out, sequences repeated, instants in ISO 8601, truth in lower case."""
    pairs = []
    for name, value in query.items():
        values = value if isinstance(value, list | tuple) else [value]
        pairs += [(name, _text(item)) for item in values if item is not None]
    return tuple(pairs)


def refusal(answer: httpx2.Response, url: str) -> ClientError:
    """The error for an answer that is none of success."""
    status = answer.status_code
    try:
        problem = answer.json()
    except ValueError:
        problem = {}
    wait = answer.headers.get("retry-after", "")
    retry_after = float(wait) if wait.isdecimal() else None
    if isinstance(problem, dict) and "errorType" in problem:  # Prometheus' own shape
        problem = {**problem, "code": str(problem["errorType"]), "detail": str(problem.get("error", "")), "retryable": status in _BUSY}
    if not isinstance(problem, dict) or "code" not in problem:
        return UnexpectedAnswerError(
            f"{url} answers {status}, but not as an incident-rca platform",
            status=status,
            retryable=status in _BUSY,
            retry_after=retry_after,
        )
    errors = [FieldProblem(str(e.get("field", "?")), str(e.get("message", ""))) for e in problem.get("errors", ())]
    return BY_STATUS.get(status, RefusedError)(
        str(problem.get("detail") or problem.get("title") or problem["code"]),
        status=status,
        code=str(problem["code"]),
        retryable=bool(problem.get("retryable")),
        retry_after=retry_after,
        errors=errors,
        problem=problem,
    )


def _broken(exc: httpx2.HTTPError, url: str) -> ClientError:
    if isinstance(exc, httpx2.ConnectError | httpx2.ConnectTimeout):
        return UnreachableError(f"nothing answers at {url}: {exc}", retryable=True)
    if isinstance(exc, httpx2.TimeoutException):
        return AnswerTimeoutError(f"{url} did not answer in time", retryable=True)
    return NoAnswerError(f"no answer from {url}: {exc}", retryable=True)


def _pause(exc: ClientError, tries: int, *, repeatable: bool) -> float | None:
    """Seconds to wait before the request is repeated; None where it shall not be."""
    busy = exc.status in _BUSY or exc.code == _IN_PROGRESS
    if not (busy or isinstance(exc, UnreachableError) or (repeatable and isinstance(exc, NoAnswerError))):
        return None
    backoff = _FIRST_PAUSE * 2**tries * (0.5 + random.random())  # noqa: S311 - spreads clients, keeps no secret
    wait = max(backoff, exc.retry_after or 0.0)
    return wait if wait <= MAX_WAIT else None


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if isinstance(value, datetime) else str(value)
