"""What the plain ASGI endpoints (``/v1/*``) share: reading a body within limits, the bearer token, and answering.

FastAPI's machinery for one request costs several times the work of an ingest request, so these endpoints are ASGI callables that do
without it. A body is bounded twice: as it travels and after decompression; decompression stops at the bound, so that a small body
that would unfold to gigabytes costs no more than the bound.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from app.errors import (
    BodyTooLargeError,
    MalformedBodyError,
    OverloadedError,
    Problem,
    UnauthenticatedError,
    UnsupportedMediaTypeError,
)
from app.headers import HOT_HEADERS

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_WINDOWS: Mapping[str, int] = {"gzip": _GZIP_WINDOW, "x-gzip": _GZIP_WINDOW, "deflate": zlib.MAX_WBITS}
_THREAD_ABOVE = 32_768
_DIGITS = 18  # of a number that fits into 64 bits
"""Compressed bodies larger than this are unfolded in a thread: at the usual limits one can keep a core busy for tenths of a second."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Bounds of a request body: bytes as it travels, bytes after decompression, and seconds within which it must have arrived."""

    max_body_bytes: int = 1_048_576
    max_decompressed_bytes: int = 20_971_520
    timeout: float = 30.0


def header(scope: Scope, name: bytes) -> str | None:
    """The value of the request header ``name`` (in lower case); None where the request has none."""
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text.strip()
    return None


def media_type(scope: Scope) -> str:
    """The request's media type in lower case without parameters; empty where none is told."""
    return (header(scope, b"content-type") or "").partition(";")[0].strip().lower()


def bearer(scope: Scope) -> str:
    """The token of ``Authorization: Bearer``.

    Raises:
        UnauthenticatedError: the header is missing, or is not of that form.
    """
    value = header(scope, b"authorization")
    if value is None:
        raise UnauthenticatedError("the request carries no Authorization header; send 'Authorization: Bearer <token>'")
    scheme, _, token = value.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise UnauthenticatedError("the Authorization header is not of the form 'Bearer <token>'")
    return token


def client_address(scope: Scope) -> str:
    """The address of the other end of the connection; ``unknown`` where the server does not tell."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


async def read_body(scope: Scope, receive: Receive, limits: BodyLimits) -> bytes:
    """The whole body of the request, decompressed (``Content-Encoding``: gzip, deflate or identity).

    Raises:
        UnsupportedMediaTypeError: the encoding is another one.
        BodyTooLargeError: one of the limits is exceeded; reading stops there.
        MalformedBodyError: the compressed data are damaged or incomplete, or the client went away in the middle.
        OverloadedError: the body did not arrive in time; the client may try again.
    """
    encoding = (header(scope, b"content-encoding") or "identity").lower()
    if encoding != "identity" and encoding not in _WINDOWS:
        raise UnsupportedMediaTypeError(
            f"the content encoding {encoding!r} is not supported; use gzip, deflate or none", headers={"Accept-Encoding": "gzip, deflate"}
        )
    length = header(scope, b"content-length")
    if length is not None and length.isdecimal() and (len(length) > _DIGITS or int(length) > limits.max_body_bytes):
        raise _too_large(limits.max_body_bytes)
    try:
        async with asyncio.timeout(limits.timeout):
            body = await _receive_all(receive, limits.max_body_bytes)
    except TimeoutError:
        raise OverloadedError(f"the body did not arrive within {limits.timeout:g} s", retry_after=1) from None
    if encoding == "identity":
        return body
    if len(body) > _THREAD_ABOVE:
        return await asyncio.to_thread(decompress, body, encoding, limits.max_decompressed_bytes)
    return decompress(body, encoding, limits.max_decompressed_bytes)


def decompress(data: bytes, encoding: str, limit: int) -> bytes:
    """``data`` unfolded from ``encoding`` (gzip, x-gzip, deflate); never holds more than ``limit`` bytes of result.

    Empty data stand for an empty body. A gzip body may consist of several members (RFC 1952). Some clients send ``deflate`` without
    the zlib wrapper that RFC 9110 asks for; that is understood too.

    Raises:
        BodyTooLargeError: the result would be longer than ``limit``.
        MalformedBodyError: the data are damaged, incomplete, or followed by something else.
    """
    if not data:
        return b""
    window = _WINDOWS[encoding]
    if encoding == "deflate" and not _has_zlib_header(data):
        window = -zlib.MAX_WBITS
    parts: list[bytes] = []
    size = 0
    rest = data
    while rest:
        unfolding = zlib.decompressobj(window)
        try:
            part = unfolding.decompress(rest, limit - size + 1)
        except zlib.error as error:
            raise MalformedBodyError(f"the body is not valid {encoding} data: {error}") from None
        size += len(part)
        if size > limit:
            raise BodyTooLargeError(f"the body unfolds to more than {limit} bytes")
        if not unfolding.eof:
            raise MalformedBodyError(f"the body's {encoding} data end too early")
        parts.append(part)
        rest = unfolding.unused_data
        if rest and window != _GZIP_WINDOW:
            raise MalformedBodyError(f"the body's {encoding} data are followed by {len(rest)} other bytes")
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def send_answer(
    send: Send, status: int, body: bytes, content_type: str, headers: Iterable[tuple[str, str]] | Mapping[str, str] = ()
) -> None:
    """Answer with ``body`` whole; ``Content-Length`` is added."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    raw = [(b"content-type", content_type.encode("latin-1")), (b"content-length", b"%d" % len(body)), *HOT_HEADERS]
    raw.extend((key.lower().encode("latin-1"), value.encode("latin-1")) for key, value in pairs)
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def send_problem(send: Send, problem: Problem) -> None:
    """Answer with ``application/problem+json``, the platform's one shape for errors."""
    body = json.dumps(problem.body(), separators=(",", ":")).encode()
    await send_answer(send, problem.treatment.status, body, "application/problem+json", problem.headers())


async def _receive_all(receive: Receive, limit: int) -> bytes:
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        whole: bytes = message.get("body", b"")
        if len(whole) > limit:
            raise _too_large(limit)
        return whole
    parts: list[bytes] = []
    size = 0
    while True:
        if message["type"] != "http.request":
            raise MalformedBodyError("the client went away before its request was complete")
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)
        message = await receive()


def _too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is larger than {limit} bytes; send smaller batches")


def _has_zlib_header(data: bytes) -> bool:
    return len(data) > 1 and data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0  # noqa: PLR2004 - RFC 1950, 2.2: method 8, check 31
