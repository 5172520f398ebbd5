"""HTTP/1.1 over one kept-alive connection: as much of it as posting to one origin takes.

Written on sockets, because the standard library's client brings the ``email`` package with it: a megabyte resident, on every host.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from connectors.core.errors import ConfigError, TransportError
from connectors.core.proxies import Proxy

MAX_RESPONSE_BYTES = 4_194_304
_MAX_HEAD_BYTES = 65_536
_CHUNK = 65_536
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True, slots=True)
class Response:
    """An answer. Header names are in lower case; of a repeated one the last counts."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class ProtocolError(Exception):
    """What came back is not HTTP, or ended too soon."""


class StaleError(ProtocolError):
    """The connection ended before the first byte of an answer: a kept one may have been closed meanwhile."""


class Origin:
    """Where requests go: straight, through a CONNECT tunnel, or to a proxy that forwards plain HTTP.

    Raises:
        ConfigError: ``ca_file`` cannot be read.
    """

    def __init__(self, url: str, proxy: Proxy | None, ca_file: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self._https = parts.scheme == "https"
        self._host = _ascii(parts.hostname or "")
        self._port = parts.port or (443 if self._https else 80)
        self._proxy = proxy
        self._ca_file = ca_file
        self._lazy_trust = False
        self._context = self._make_context() if self._https else None
        self.base_path = parts.path.rstrip("/")
        forwards = proxy is not None and not self._https
        self.target_prefix = f"http://{parts.netloc}" if forwards else ""
        self.headers = {"Host": parts.netloc}
        if forwards and proxy and proxy.authorization:
            self.headers["Proxy-Authorization"] = proxy.authorization

    def connect(self, deadline: float) -> socket.socket:
        """A connected socket, with TLS where the URL says so.

        Raises:
            OSError, ProtocolError: it could not be made by ``deadline`` (monotonic).
        """
        try:
            return self._connected(deadline)
        except ssl.SSLCertVerificationError:
            if not self._lazy_trust:
                raise
        self._lazy_trust = False
        self._context = self._make_context(lazy=False)
        return self._connected(deadline)

    def _connected(self, deadline: float) -> socket.socket:
        host, port = (self._proxy.host, self._proxy.port) if self._proxy else (self._host, self._port)
        # As bytes, here and below: for text, Python loads its tables of international names, whatever the name.
        address = (_ascii(host).encode(), port)
        connection = socket.create_connection(address, timeout=_remaining(deadline))  # type: ignore[arg-type]  # typeshed knows text only
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                if self._proxy:
                    self._tunnel(connection, self._proxy, deadline)
                connection.settimeout(_remaining(deadline))
                connection = self._context.wrap_socket(connection, server_hostname=self._host.encode())
        except BaseException:
            connection.close()
            raise
        return connection

    def _tunnel(self, connection: socket.socket, proxy: Proxy, deadline: float) -> None:
        host = f"[{self._host}]" if ":" in self._host else self._host
        lines = [f"CONNECT {host}:{self._port} HTTP/1.1", f"Host: {host}:{self._port}"]
        if proxy.authorization:
            lines.append(f"Proxy-Authorization: {proxy.authorization}")
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        status, _headers = _Reader(connection, deadline).head()
        if not 200 <= status < 300:  # noqa: PLR2004 - the HTTP class of success
            raise ProtocolError(f"the proxy {proxy.host}:{proxy.port} refuses the tunnel with {status}")

    def _make_context(self, *, lazy: bool = True) -> ssl.SSLContext:
        """Verifying TLS 1.2 or newer.

        The system's hashed directory of certificates is read one at a time, as they are needed: loading the whole bundle would cost every
        agent some 2 MB. The bundle is loaded all the same when the directory does not suffice.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._ca_file:
            try:
                context.load_verify_locations(cafile=self._ca_file)
            except OSError as exc:
                raise ConfigError(f"ca_file {self._ca_file} cannot be read as PEM certificates: {exc}", field="ca_file") from exc
            return context
        directory = ssl.get_default_verify_paths().capath if lazy and not os.environ.get("SSL_CERT_FILE") else None
        if directory and _is_hashed(directory):
            context.load_verify_locations(capath=directory)
            self._lazy_trust = True
        else:
            context.load_default_certs()
        return context


class Connection:
    """One kept-alive connection to ``origin``; calls from several threads wait for each other."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._lock = threading.Lock()
        self._open: socket.socket | None = None

    def post(self, path: str, body: bytes, headers: Mapping[str, str], deadline: Callable[[], float]) -> Response:
        """POST and read the whole answer; once more on a fresh connection when the kept one had gone stale.

        ``deadline`` is asked once it is this call's turn, and answers on the monotonic clock.

        Raises:
            TransportError: there was no complete answer in time.
        """
        with self._lock:
            begun, until = time.monotonic(), deadline()
            try:
                if self._open is not None:
                    try:
                        return self._exchange(self._open, path, body, headers, until)
                    except (StaleError, ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
                        self._drop()
                self._open = self._origin.connect(until)
                return self._exchange(self._open, path, body, headers, until)
            except (OSError, ProtocolError) as exc:
                self._drop()
                raise TransportError(_describe(exc, until - begun)) from exc

    def close(self) -> None:
        """Close it, waiting for nobody: a call under way fails, a later one connects again."""
        connection = self._open
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # wakes who waits for an answer, which close() alone does not
            self._drop()

    def _exchange(self, connection: socket.socket, path: str, body: bytes, headers: Mapping[str, str], deadline: float) -> Response:
        lines = [f"POST {self._origin.target_prefix}{self._origin.base_path}{path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in {**self._origin.headers, **headers, "Content-Length": str(len(body))}.items()]
        connection.settimeout(_remaining(deadline))
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        reader = _Reader(connection, deadline)
        status, answered = reader.head()
        while 100 <= status < 200:  # noqa: PLR2004 - provisional answers precede the real one
            status, answered = reader.head()
        content = reader.body(status, answered)
        if reader.ended or answered.get("connection", "").lower() == "close":
            self._drop()
        return Response(status, answered, content)

    def _drop(self) -> None:
        connection, self._open = self._open, None
        if connection is not None:
            connection.close()


class _Reader:
    """Reads one answer from a socket, by ``deadline``."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self._buffer = bytearray()
        self._begun = False
        self.ended = False

    def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers."""
        lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        begin = re.fullmatch(r"HTTP/1\.[01] (\d{3})( .*)?", lines[0])
        if begin is None:
            raise ProtocolError("what answers is not an HTTP server")
        headers = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon:
                raise ProtocolError("what answers sends a malformed header")
            headers[name.strip().lower()] = value.strip()
        return int(begin[1]), headers

    def body(self, status: int, headers: Mapping[str, str]) -> bytes:
        """The content, by the headers' length, in chunks, or up to the connection's end."""
        if status in (204, 304):
            return b""
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return self._chunks()
        if (length := headers.get("content-length")) is not None:
            if not re.fullmatch(r"\d{1,18}", length):
                raise ProtocolError("what answers sends a malformed length")
            return self._exactly(int(length))
        content = bytearray(self._buffer)
        while piece := self._receive():
            content += piece
            _check_size(len(content))
        _check_size(len(content))
        self.ended = True
        return bytes(content)

    def _chunks(self) -> bytes:
        content = bytearray()
        while True:
            size = self._until(b"\r\n").split(b";")[0].strip()
            if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", size):
                raise ProtocolError("what answers sends a malformed chunk")
            if int(size, 16) == 0:
                while self._until(b"\r\n"):
                    """Trailers say nothing to us."""
                return bytes(content)
            content += self._exactly(int(size, 16))
            _check_size(len(content))
            self._until(b"\r\n")

    def _exactly(self, size: int) -> bytes:
        _check_size(size)
        while len(self._buffer) < size:
            self._more()
        content = bytes(self._buffer[:size])
        del self._buffer[:size]
        return content

    def _until(self, mark: bytes) -> bytes:
        while (end := self._buffer.find(mark)) < 0:
            if len(self._buffer) > _MAX_HEAD_BYTES:
                raise ProtocolError("the answer's headers are too large")
            self._more()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + len(mark)]
        return line

    def _more(self) -> None:
        piece = self._receive()
        if not piece:
            raise (ProtocolError if self._begun else StaleError)("the connection ended before the answer was complete")
        self._buffer += piece

    def _receive(self) -> bytes:
        self._connection.settimeout(_remaining(self._deadline))
        piece = self._connection.recv(_CHUNK)
        self._begun = self._begun or bool(piece)
        return piece


def parse_http_date(value: str) -> float | None:
    """Unix seconds of an HTTP date, None when it is none."""
    found = re.fullmatch(r"\w{3}, (\d\d) (\w{3}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT", value.strip())
    if found is None or found[2] not in _MONTHS:
        return None
    day, year, hour, minute, second = (int(found[n]) for n in (1, 3, 4, 5, 6))
    try:
        return datetime(year, _MONTHS.index(found[2]) + 1, day, hour, minute, min(second, 59), tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _ascii(host: str) -> str:
    return host if host.isascii() else host.encode("idna").decode("ascii")


def _check_size(size: int) -> None:
    if size > MAX_RESPONSE_BYTES:
        raise ProtocolError(f"the answer is larger than {MAX_RESPONSE_BYTES} bytes")


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining


def _is_hashed(directory: str) -> bool:
    """Whether the directory holds certificates under their hashes, as OpenSSL looks them up."""
    try:
        with os.scandir(directory) as entries:
            return any(re.fullmatch(r"[0-9a-f]{8}\.0", entry.name) for entry in entries)
    except OSError:
        return False


def _describe(exc: Exception, allowed: float) -> str:
    """What went wrong on the way, for a person."""
    if isinstance(exc, TimeoutError):
        return f"the platform did not answer within {allowed:.3g} s"
    if isinstance(exc, socket.gaierror):
        return f"the platform's name cannot be resolved: {exc.strerror}"
    if isinstance(exc, ConnectionRefusedError):
        return "the connection is refused: nothing listens there"
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"the platform's certificate is not trusted: {exc.verify_message}; ca_file names a private CA"
    if isinstance(exc, ssl.SSLError):
        return f"TLS failed: {exc.reason or exc}"
    if isinstance(exc, OSError):
        return f"the connection failed: {exc.strerror or exc}"
    return str(exc)
