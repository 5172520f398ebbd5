"""ASGI middleware around the whole application: whatever leaves it, an error of the server's own included, has the security headers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping

from app.api.asgi import Message, Receive, Scope, Send
from app.headers import API_HEADERS, STATIC_HEADERS, TRANSPORT_SECURITY

Headers = tuple[tuple[bytes, bytes], ...]


class SecurityHeaders:
    """Adds the headers of :mod:`app.headers` that an answer has not set itself. With ``tls`` browsers are told to stay with HTTPS."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], *, tls: bool) -> None:
        self._app = app
        transport = {"Strict-Transport-Security": TRANSPORT_SECURITY} if tls else {}
        self._answers = _raw({**API_HEADERS, **transport})
        self._static = _raw({**STATIC_HEADERS, **transport})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; its answer gets the headers as it begins."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = self._static if scope["path"].startswith("/static/") else self._answers

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _joined(message.get("headers", ()), headers)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _joined(own: Iterable[tuple[bytes, bytes]], others: Headers) -> list[tuple[bytes, bytes]]:
    """The answer's own headers, and of the others those that it has not."""
    headers = list(own)
    names = {name.lower() for name, _ in headers}
    return headers + [pair for pair in others if pair[0] not in names]


def _raw(headers: Mapping[str, str]) -> Headers:
    return tuple((name.lower().encode("ascii"), value.encode("ascii")) for name, value in headers.items())
