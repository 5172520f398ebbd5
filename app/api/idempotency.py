"""``Idempotency-Key`` on every request that creates something: one piece of ASGI middleware, and what the OpenAPI document says of it.

Which operations these are is read off the routes: a POST under ``/api/v1`` that answers 201 or 202, and what :func:`creates` marks because
it answers 200. Answers other than 2xx changed nothing and use no key up.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any, TypeVar

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp

from app.api.asgi import BodyLimits, Message, Receive, Scope, Send, header, read_body, send_problem
from app.api.dependencies import identify
from app.errors import FieldError, InvalidRequestError, PlatformError, Problem, StorageError
from app.idempotency import Answer, Begun, KeyedRequest
from app.platform import Platform

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"

_PREFIX = "/api/v1/"
_CREATING = frozenset({201, 202})
_LONGEST = 255
_KEPT_HEADERS = frozenset({"content-type", "etag", "location", "cache-control"})
_MARK = "irca_creates"
_log = logging.getLogger(__name__)
_Endpoint = TypeVar("_Endpoint", bound=Callable[..., Any])


def creates(endpoint: _Endpoint) -> _Endpoint:
    """Mark a route's function: it creates something, though it answers 200."""
    setattr(endpoint, _MARK, True)
    return endpoint


def creating_routes(routes: Iterable[BaseRoute]) -> Iterator[APIRoute]:
    """Those of ``routes``, and of the routers among them, that create something."""
    for route in routes:
        yield from creating_routes(getattr(getattr(route, "original_router", None), "routes", ()))
        if not isinstance(route, APIRoute) or "POST" not in (route.methods or ()) or not route.path.startswith(_PREFIX):
            continue
        if route.status_code in _CREATING or getattr(route.endpoint, _MARK, False):
            yield route


def document(openapi: MutableMapping[str, Any], routes: Iterable[APIRoute]) -> None:
    """Write the header and the answers that come of it into the operations of ``routes`` in an OpenAPI document; once or more."""
    parameter = {
        "name": HEADER,
        "in": "header",
        "required": False,
        "schema": {"type": "string", "minLength": 1, "maxLength": _LONGEST, "pattern": "^[!-~]+$", "title": HEADER},
        "description": "Chosen by the client for this request. Repeated with the same key within 24 hours it is answered as the first "
        f"time, with the header {REPLAYED}: true, and creates nothing more.",
    }
    for route in routes:
        operation = openapi["paths"][route.path_format]["post"]
        parameters = operation.setdefault("parameters", [])
        if all(known["name"] != HEADER for known in parameters):
            parameters.append(parameter)
        answers = operation["responses"]
        for status, answer in answers.items():
            if status.startswith("2"):
                answer.setdefault("headers", {})[REPLAYED] = {
                    "schema": {"type": "string", "enum": ["true"]},
                    "description": "There when this is the answer to the first request with this key.",
                }
        answers.setdefault("409", {"description": "The change conflicts with what stands, or the first request is still being answered."})
        answers.setdefault("422", {"description": "The request is not valid, or its idempotency key was used for another one."})


class Idempotency:
    """Answers a repeated request with the first one's answer, which it keeps before it is sent.

    Args:
        app: what answers.
        routes: the operations that take a key.
        limits: of the bodies that are read.
    """

    def __init__(self, app: ASGIApp, *, routes: Iterable[APIRoute], limits: BodyLimits) -> None:
        self._app = app
        self._routes = tuple(routes)
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        key = header(scope, b"idempotency-key") if scope["type"] == "http" and scope["method"] == "POST" else None
        if key is None or not self._takes_key(scope):
            await self._app(scope, receive, send)
            return
        try:
            await self._answer(key, scope, receive, send)
        except PlatformError as exc:
            problem = Problem.of(exc)
            _log.log(problem.treatment.log_level, "%s", problem.detail, extra={"action": "request_refused", "code": problem.code})
            await send_problem(send, problem)

    def _takes_key(self, scope: Scope) -> bool:
        return any(route.matches(scope)[0] is Match.FULL for route in self._routes)

    async def _answer(self, key: str, scope: Scope, receive: Receive, send: Send) -> None:
        if not 0 < len(key) <= _LONGEST or not all("!" <= character <= "~" for character in key):
            expected = f"1 to {_LONGEST} visible ASCII characters"
            raise InvalidRequestError(f"the {HEADER} header must be {expected}", errors=[FieldError(HEADER, f"must be {expected}")])
        platform: Platform = scope["app"].state.platform
        identity = await identify(Request(scope), platform)
        body = await read_body({**scope, "headers": _plain(scope)}, receive, self._limits)
        route = f"{scope['method']} {scope['path']}"
        # Whose rights were changed since gets no answer that was given to the rights before.
        asked = [route, scope["query_string"].decode("latin-1"), header(scope, b"content-type"), identity.role, identity.environments]
        request_hash = hashlib.sha256(json.dumps(asked).encode() + b"\n" + body).digest()
        begun = await platform.idempotency.begin(KeyedRequest(identity.key_id, key, route[:_LONGEST], request_hash))
        if isinstance(begun, Answer):
            await _replay(send, begun)
            return
        await self._make(begun, platform, scope, _once(body, receive), send)

    async def _make(self, begun: Begun, platform: Platform, scope: Scope, receive: Receive, send: Send) -> None:
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        try:
            await self._app(scope, receive, keep)
        except Exception:
            await platform.idempotency.forget(begun)
            raise
        try:
            status = messages[0]["status"]
            if 200 <= status < 300:  # noqa: PLR2004 - the class of statuses that say it is done
                await platform.idempotency.finish(begun, _answer_of(messages))
            else:
                await platform.idempotency.forget(begun)
        except StorageError as exc:  # what was asked is done, and said
            _log.warning("an answer could not be kept: %s", exc.reason, extra={"action": "idempotency_not_kept"})
        for message in messages:
            await send(message)


def _plain(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The headers without those of an encoding: the route takes a body as it comes, and so does the digest."""
    return [pair for pair in scope["headers"] if pair[0] != b"content-encoding"]


def _once(body: bytes, receive: Receive) -> Receive:
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def _answer_of(messages: list[Message]) -> Answer:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in messages[0]["headers"]}
    body = b"".join(message.get("body", b"") for message in messages[1:] if message["type"] == "http.response.body")
    return Answer(messages[0]["status"], body, {name: value for name, value in headers.items() if name in _KEPT_HEADERS})


async def _replay(send: Send, answer: Answer) -> None:
    headers = {**answer.headers, "content-length": str(len(answer.body)), REPLAYED.lower(): "true"}
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})
    await send({"type": "http.response.body", "body": answer.body})
