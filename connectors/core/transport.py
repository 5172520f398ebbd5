"""The authenticated HTTP session with the platform: OTLP and OpAMP calls over two kept-alive connections."""

from __future__ import annotations

import json
import logging
import math
import os
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

from connectors._version import __version__
from connectors.core import log, wire
from connectors.core.errors import AuthenticationError, RejectedError, TransportError
from connectors.core.http import Connection, Origin, Response, parse_http_date
from connectors.core.proxies import proxy_for
from connectors.core.secret import Secret

_LOG = logging.getLogger(__name__)
USER_AGENT = f"incident-rca-agent/{__version__}"
PROTOBUF = "application/x-protobuf"
COMPRESS_ABOVE = 1024
_FINAL = {400, 413, 415, 422}
Channel = Literal["data", "management"]


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
        self.timeout = timeout
        self._deadline = math.inf
        origin = Origin(platform_url, proxy_for(platform_url, environ), ca_file)
        self._channels: dict[Channel, Connection] = {"data": Connection(origin), "management": Connection(origin)}

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
        response = self._channels[channel].post(path, body, headers, self._until)
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
        self._deadline = deadline

    def close(self) -> None:
        """Close both connections; a later call opens them again."""
        for channel in self._channels.values():
            channel.close()

    def _until(self) -> float:
        return min(time.monotonic() + self.timeout, self._deadline)

    def _note_date(self, date: str | None, begun: float, ended: float) -> None:
        if date and 0 <= ended - begun <= 10:  # noqa: PLR2004 - a slower answer says too little about the time
            served = parse_http_date(date)
            if served is not None:
                skew = (begun + ended) / 2 - (served + 0.5)  # the header cuts the second off
                self.clock_skew = 0.0 if abs(skew) <= 1.0 else skew


def _refusal(path: str, response: Response, now: float) -> TransportError:
    status = response.status
    problem = _problem(response)
    detail = str(problem.get("detail") or "no reason given").strip()
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
        at = parse_http_date(value)
        return None if at is None else max(0.0, at - now)
