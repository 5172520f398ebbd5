"""The authenticated HTTP session with the platform: OTLP and OpAMP calls over two kept-alive connections."""

from __future__ import annotations

import email.utils
import http.client
import json
import logging
import math
import os
import socket
import ssl
import threading
import time
import urllib.parse
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from connectors._version import __version__
from connectors.core import log, wire
from connectors.core.errors import AuthenticationError, ConfigError, RejectedError, TransportError
from connectors.core.proxies import Proxy, proxy_for
from connectors.core.secret import Secret

_LOG = logging.getLogger(__name__)
USER_AGENT = f"incident-rca-agent/{__version__}"
PROTOBUF = "application/x-protobuf"
COMPRESS_ABOVE = 1024
MAX_RESPONSE_BYTES = 4_194_304
_FINAL = {400, 413, 415, 422}
_STALE = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ConnectionAbortedError)
Channel = Literal["data", "management"]


@dataclass(frozen=True, slots=True)
class Response:
    """An answer with a 2xx status. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """One session with the platform at ``platform_url`` (its path is kept as the base of every call).

    Args:
        platform_url: as :class:`~connectors.core.base_agent.BaseAgent` checks it.
        bearer: gives the token or credential of a data request at the time it is made, so that a rotated one is used at once.
        timeout: seconds that one request may take.
        ca_file: PEM bundle to trust instead of the system's.
        environ: where proxies are looked up.
        clock: Unix seconds, for the clock skew.

    Data and management have a connection each: a heartbeat never waits behind a slow send. Methods may be called from any thread.

    Raises:
        ConfigError: ``ca_file`` or a proxy variable is not usable.
    """

    def __init__(
        self,
        platform_url: str,
        bearer: Callable[[], Secret],
        *,
        timeout: float = 15.0,
        ca_file: str = "",
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.clock_skew: float | None = None
        """Seconds that this machine's clock is ahead of the platform's, from the last answer's ``Date``; None before the first."""
        self._bearer = bearer
        self._clock = clock
        self._connector = connector = _Connector(platform_url, proxy_for(platform_url, environ), timeout, ca_file)
        self._base_path = connector.base_path
        self._channels: dict[Channel, _Connection] = {"data": _Connection(connector), "management": _Connection(connector)}

    def post(
        self, path: str, body: bytes, content_type: str = PROTOBUF, *, channel: Channel = "data", bearer: Secret | None = None
    ) -> Response:
        """POST ``body`` to ``path`` below the platform's URL, compressed when it is large.

        Raises:
            AuthenticationError: 401 or 403; ``refusal`` is the platform's code for why.
            RejectedError: 400, 413, 415 or 422: final for this body.
            TransportError: no connection, no answer in time, a redirect, or any other status; ``retry_after`` is what the platform asked.
        """
        headers = {
            "Authorization": f"Bearer {(bearer or self._bearer()).reveal()}",
            "Content-Type": content_type,
            "User-Agent": USER_AGENT,
        }
        if len(body) > COMPRESS_ABOVE:
            compressor = zlib.compressobj(6, zlib.DEFLATED, 31)
            body = compressor.compress(body) + compressor.flush()
            headers["Content-Encoding"] = "gzip"
        begun = self._clock()
        response = self._channels[channel].exchange(f"{self._base_path}{path}", body, headers)
        self._note_date(response.headers.get("date"), begun, self._clock())
        if not 200 <= response.status < 300:  # noqa: PLR2004 - the HTTP class of success
            raise _refusal(path, response, self._clock())
        return response

    def export_metrics(self, payload: bytes) -> int:
        """Send a serialised ExportMetricsServiceRequest; how many data points the platform refused of it.

        Raises:
            TransportError: as :meth:`post`.
        """
        return self._export("/v1/metrics", payload)

    def export_logs(self, payload: bytes) -> int:
        """Send a serialised ExportLogsServiceRequest; how many log records the platform refused of it.

        Raises:
            TransportError: as :meth:`post`.
        """
        return self._export("/v1/logs", payload)

    def opamp(self, message: bytes, bearer: Secret | None = None) -> bytes:
        """One OpAMP exchange on the management connection, under ``bearer`` where given: serialised AgentToServer to ServerToAgent.

        Raises:
            TransportError: as :meth:`post`.
        """
        return self.post("/v1/opamp", message, channel="management", bearer=bearer).body

    def _export(self, path: str, payload: bytes) -> int:
        answer = self.post(path, payload)
        try:
            partial = wire.blobs(answer.body).get(1, [b""])[-1]
            rejected = wire.numbers(partial).get(1, 0)
            reason = wire.blobs(partial).get(2, [b""])[-1].decode(errors="replace")
        except wire.WireError as exc:
            raise TransportError(
                f"what answers at platform_url is not the platform: {answer.headers.get('content-type', 'no content type')}",
                status=answer.status,
            ) from exc
        if rejected:
            log.entry(_LOG, logging.WARNING, "send.partial", "the platform refused some items", path=path, rejected=rejected, reason=reason)
        return rejected

    def stop_by(self, deadline: float) -> None:
        """From now on no call lasts beyond ``deadline`` on the monotonic clock: what is under way at a stop must not hold it up."""
        self._connector.deadline = deadline

    def close(self) -> None:
        """Close both connections; a later call opens them again."""
        for channel in self._channels.values():
            channel.close()

    def _note_date(self, date: str | None, begun: float, ended: float) -> None:
        if date and 0 <= ended - begun <= 10:  # noqa: PLR2004 - a slower answer says too little about the time
            served = _http_date(date)
            if served is not None:
                skew = (begun + ended) / 2 - (served + 0.5)  # the header cuts the second off
                self.clock_skew = 0.0 if abs(skew) <= 1.0 else skew


class _Connector:
    """How to open a connection: straight, through a CONNECT tunnel, or to a proxy that forwards plain HTTP."""

    def __init__(self, url: str, proxy: Proxy | None, timeout: float, ca_file: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self.timeout = timeout
        self.deadline = math.inf
        self._https = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._https else 80)
        self._proxy = proxy
        self._ca_file = ca_file
        self._lazy_trust = False
        self._context = self._make_context() if self._https else None
        self.base_path = parts.path.rstrip("/")
        forwards = proxy is not None and not self._https
        self.target_prefix = f"http://{parts.netloc}" if forwards else ""
        self.extra_headers = {"Proxy-Authorization": proxy.authorization} if forwards and proxy and proxy.authorization else {}
        if forwards:
            self.extra_headers["Host"] = parts.netloc

    def open(self) -> http.client.HTTPConnection:
        """A connected connection.

        Raises:
            OSError, http.client.HTTPException: it could not be made.
        """
        try:
            return self._opened()
        except OSError as exc:
            if not (self._lazy_trust and _is_untrusted(exc)):
                raise
        self._lazy_trust = False
        self._context = self._make_context(lazy=False)
        return self._opened()

    def _opened(self) -> http.client.HTTPConnection:
        timeout = min(self.timeout, max(0.1, self.deadline - time.monotonic()))
        host, port = (self._proxy.host, self._proxy.port) if self._proxy else (self._host, self._port)
        connection: http.client.HTTPConnection
        if self._https:
            connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=self._context)
            if self._proxy:
                headers = {"Proxy-Authorization": self._proxy.authorization} if self._proxy.authorization else {}
                connection.set_tunnel(self._host, self._port, headers)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=timeout)
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection

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
            except (OSError, ssl.SSLError) as exc:
                raise ConfigError(f"ca_file {self._ca_file} cannot be read as PEM certificates: {exc}", field="ca_file") from exc
            return context
        directory = ssl.get_default_verify_paths().capath if lazy and not os.environ.get("SSL_CERT_FILE") else None
        if directory and _is_hashed(directory):
            context.load_verify_locations(capath=directory)
            self._lazy_trust = True
        else:
            context.load_default_certs()
        return context


class _Connection:
    """One kept-alive connection; calls wait for each other."""

    def __init__(self, connector: _Connector) -> None:
        self._connector = connector
        self._lock = threading.Lock()
        self._open: http.client.HTTPConnection | None = None

    def exchange(self, path: str, body: bytes, headers: Mapping[str, str]) -> Response:
        """POST and read the answer whole; once more on a fresh connection when the kept one had gone stale.

        Raises:
            TransportError: there was no complete answer.
        """
        with self._lock:
            deadline = min(time.monotonic() + self._connector.timeout, self._connector.deadline)
            try:
                if self._open is not None:
                    try:
                        return self._try(self._open, path, body, headers, deadline)
                    except _STALE:
                        self._drop()
                if self._open is None:
                    self._open = self._connector.open()
                return self._try(self._open, path, body, headers, deadline)
            except (OSError, http.client.HTTPException) as exc:
                self._drop()
                raise TransportError(_describe(exc, self._connector.timeout)) from exc
            except TransportError:
                self._drop()
                raise

    def close(self) -> None:
        """Close it, waiting for nobody: an exchange under way fails."""
        self._drop()

    def _try(self, connection: http.client.HTTPConnection, path: str, body: bytes, headers: Mapping[str, str], deadline: float) -> Response:
        _limit(connection, deadline)
        sent = {**headers, **self._connector.extra_headers}
        connection.request("POST", f"{self._connector.target_prefix}{path}", body=body, headers=sent)
        answer = connection.getresponse()
        content = bytearray()
        while chunk := answer.read(65_536):
            content += chunk
            if len(content) > MAX_RESPONSE_BYTES:
                raise TransportError(f"the answer is larger than {MAX_RESPONSE_BYTES} bytes")
            _limit(connection, deadline)
        if answer.length:
            raise http.client.IncompleteRead(bytes(content), answer.length)
        if answer.will_close:
            self._drop()
        return Response(answer.status, {name.lower(): value for name, value in answer.getheaders()}, bytes(content))

    def _drop(self) -> None:
        connection, self._open = self._open, None
        if connection is not None:
            connection.close()


def _limit(connection: http.client.HTTPConnection, deadline: float) -> None:
    if connection.sock is not None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        connection.sock.settimeout(remaining)


def _refusal(path: str, response: Response, now: float) -> TransportError:
    status = response.status
    problem = _problem(response)
    detail = str(problem.get("detail") or http.client.responses.get(status, "")).strip()
    if status in (401, 403):
        refusal = str(problem.get("code") or _challenge_error(response) or ("forbidden" if status == 403 else "unauthenticated"))  # noqa: PLR2004
        return AuthenticationError(f"the platform refused this agent: {detail or refusal} ({refusal})", refusal=refusal, status=status)
    if 300 <= status < 400:  # noqa: PLR2004 - the HTTP class of redirects
        where = response.headers.get("location", "nowhere")
        return TransportError(
            f"the platform redirects {path} to {where}; redirects are not followed: set platform_url to it", status=status
        )
    if status in _FINAL:
        return RejectedError(f"the platform refused the request to {path} with {status}: {detail}", status=status)
    retry_after = _retry_after(response.headers.get("retry-after"), now)
    return TransportError(f"the platform answered {path} with {status}: {detail}", status=status, retry_after=retry_after)


def _problem(response: Response) -> Mapping[str, Any]:
    if "json" not in response.headers.get("content-type", ""):
        return {}
    try:
        document = json.loads(response.body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _challenge_error(response: Response) -> str:
    _, found, rest = response.headers.get("www-authenticate", "").partition('error="')
    return rest.partition('"')[0] if found else ""


def _retry_after(value: str | None, now: float) -> float | None:
    """The pause that a ``Retry-After`` header asks for, in seconds: it holds seconds or a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        at = _http_date(value)
        return None if at is None else max(0.0, at - now)


def _http_date(value: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _is_hashed(directory: str) -> bool:
    """Whether the directory holds certificates under their hashes, as OpenSSL looks them up."""
    try:
        with os.scandir(directory) as entries:
            return any(len(e.name) == 10 and e.name.endswith(".0") for e in entries)  # noqa: PLR2004 - eight digits and ".0"
    except OSError:
        return False


def _is_untrusted(exc: Exception) -> bool:
    return isinstance(exc, ssl.SSLCertVerificationError)


def _describe(exc: Exception, timeout: float) -> str:
    """What went wrong on the way, for a person."""
    if isinstance(exc, TimeoutError):
        return f"the platform did not answer within {timeout:g} s"
    if isinstance(exc, socket.gaierror):
        return f"the platform's name cannot be resolved: {exc.strerror}"
    if isinstance(exc, ConnectionRefusedError):
        return "the platform refuses the connection: nothing listens there"
    if _is_untrusted(exc):
        return f"the platform's certificate is not trusted: {getattr(exc, 'verify_message', exc)}; ca_file names a private CA"
    if isinstance(exc, http.client.IncompleteRead | http.client.RemoteDisconnected):
        return "the connection ended before the answer was complete"
    if isinstance(exc, http.client.HTTPException):
        return f"what answers is not an HTTP server: {type(exc).__name__}"
    return f"the connection to the platform failed: {exc.strerror or exc}" if isinstance(exc, OSError) else str(exc)
