"""Receives OTLP over HTTP on loopback (protobuf, plain or gzip) and passes metrics and logs on through the spool.

What comes in goes out as it came, with attributes of this host added to each resource that lacks them. Answers are the protocol's: 400
for what is malformed, 413 for what is too large, 415 for other encodings, 429 with Retry-After while the agent's limit of bytes is
reached, and a partial success where series are over theirs. No web page can post here: it would have to ask first (the content type is
none that a browser sends unasked), and requests to other names than this host's own are refused.
"""

from __future__ import annotations

import contextlib
import http.server
import ipaddress
import socket
import threading
import time
import zlib
from http import HTTPStatus
from typing import Any, Final

from connectors.core import wire
from connectors.core.custom.intake import MAX_PAYLOAD, SOURCE_ATTRIBUTE, Intake, OverLimitError
from connectors.core.custom.otlp_payload import only_series, records_of, series_of, with_event_ids, with_resource
from connectors.core.errors import CollectorError
from connectors.core.telemetry import Attributes

NAME: Final = "otlp"
PATHS: Final = ("/v1/metrics", "/v1/logs")
_PROTOBUF: Final = "application/x-protobuf"
_MOST_CONNECTIONS: Final = 16
_PATIENCE: Final = 10.0
_TICK: Final = 0.2
_TELL_EVERY: Final = 30.0
_FORGET_AFTER: Final = 3600.0
"""Seconds after which the series that were received are counted anew: those that ended make room."""
_RETRY_AFTER: Final = 30


class OtlpReceiver:
    """The source that listens at ``address`` (``127.0.0.1:4318``, ``[::1]:4318``)."""

    name = NAME
    timeout = 0.0

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._address = (host.strip("[]"), int(port))
        self.port = 0
        """Where it listens, once it does."""

    def run(self, intake: Intake, stopping: threading.Event) -> None:
        """As every source's; an address that is taken is tried again."""
        while not stopping.is_set():
            begun = time.monotonic()
            try:
                server = _Server(self._address, intake)
            except OSError as exc:
                reason = f"{self._address[0]}:{self._address[1]} cannot be listened on: {exc.strerror or exc}"
                intake.ran(NAME, time.monotonic() - begun, CollectorError(reason))
                stopping.wait(_PATIENCE)
                continue
            with server:
                self.port = server.server_address[1]
                self._serve(server, intake, stopping)

    def _serve(self, server: _Server, intake: Intake, stopping: threading.Event) -> None:
        tell = forget = time.monotonic()
        while not stopping.is_set():
            now = time.monotonic()
            if now >= tell:
                intake.ran(NAME, 0.0, server.take_failure())
                tell = now + _TELL_EVERY
            if now >= forget:
                intake.budget.admitted(NAME, ())
                forget = now + _FORGET_AFTER
            server.handle_request()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    timeout = _TICK

    def __init__(self, address: tuple[str, int], intake: Intake) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.intake = intake
        self._free = threading.Semaphore(_MOST_CONNECTIONS)
        self._failure: OverLimitError | None = None
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without asking what this host is called, which may take a name server."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread, but so many at once only."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """As the base class's."""
        threading.current_thread().name = "irca-otlp-connection"
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""

    def over(self, failure: OverLimitError) -> None:
        """A request was over a limit."""
        self._failure = failure
        self.intake.ran(NAME, 0.0, failure)

    def take_failure(self) -> OverLimitError | None:
        """What was over a limit since this was last asked."""
        failure, self._failure = self._failure, None
        return failure

    def take(self, path: str, body: bytes) -> tuple[HTTPStatus, bytes]:
        """Take a request's body; status and body of the answer.

        Raises:
            WireError: it is no OTLP request.
        """
        added = _host_attributes(self.intake.resource()) | {SOURCE_ATTRIBUTE: NAME}
        if path == "/v1/logs":
            signal, items, lost = "logs", records_of(body), 0
            body = with_event_ids(body)
        else:
            series = series_of(body)
            allowed, _new = self.intake.budget.admitted(NAME, series, keep=True)
            lost = sum(each not in allowed for each in series)
            signal, items = "metrics", len(series) - lost
            body = only_series(body, allowed) if lost else body
        payload = with_resource(body, added)
        if len(payload) > MAX_PAYLOAD:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b""
        if items and not self.intake.budget.take(len(payload)):
            self.over(OverLimitError("bytes", self.intake.limits.bytes, len(payload)))
            return HTTPStatus.TOO_MANY_REQUESTS, b""
        if items:
            self.intake.append("logs" if signal == "logs" else "metrics", payload, items)
        if not lost:
            return HTTPStatus.OK, b""
        failure = OverLimitError("series", self.intake.limits.series, lost)
        self.over(failure)
        return HTTPStatus.OK, wire.message(1, wire.integer(1, lost) + wire.text(2, failure.reason))


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "incident-rca-agent"
    sys_version = ""
    timeout = _PATIENCE

    def do_POST(self) -> None:
        """Take one export."""
        status, body = self._answer()
        self.send_response_only(status)
        self.send_header("Content-Type", _PROTOBUF)
        self.send_header("Content-Length", str(len(body)))
        if status is HTTPStatus.TOO_MANY_REQUESTS:
            self.send_header("Retry-After", str(_RETRY_AFTER))
        if status is not HTTPStatus.OK:
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing: the collector's health does."""

    def _answer(self) -> tuple[HTTPStatus, bytes]:
        if not _is_this_host(self.headers.get("Host", "")):
            return HTTPStatus.FORBIDDEN, b""
        if self.path not in PATHS:
            return HTTPStatus.NOT_FOUND, b""
        encoding = self.headers.get("Content-Encoding", "identity").lower()
        if self.headers.get("Content-Type", "").split(";")[0].strip() != _PROTOBUF or encoding not in ("identity", "gzip"):
            return HTTPStatus.UNSUPPORTED_MEDIA_TYPE, b""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            return HTTPStatus.LENGTH_REQUIRED, b""
        if len(length) > len(str(MAX_PAYLOAD)) or int(length) > MAX_PAYLOAD:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b""
        body = self.rfile.read(int(length))
        try:
            if encoding == "gzip":
                unpacking = zlib.decompressobj(31)
                body = unpacking.decompress(body, MAX_PAYLOAD)
                if unpacking.unconsumed_tail:
                    return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b""
                if not unpacking.eof:
                    return HTTPStatus.BAD_REQUEST, b""
            return self.server.take(self.path, body)
        except (wire.WireError, zlib.error):
            return HTTPStatus.BAD_REQUEST, b""


def _host_attributes(resource: Attributes) -> dict[str, Any]:
    """What a resource says of the host, not of the agent as a service."""
    return {key: value for key, value in resource.items() if not key.startswith("service.")}


def _is_this_host(header: str) -> bool:
    host = header.rpartition(":")[0] if not header.endswith("]") and ":" in header else header
    if host.lower() == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return False
