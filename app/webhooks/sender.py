"""One try of a delivery: a POST to an address that was looked at, bounded in time and size, that follows no redirect."""

from __future__ import annotations

import ssl
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2

from app.webhooks.guard import AddressRefusedError, Network, Resolve, allowed_address
from connectors._version import __version__

TIMEOUT = 10.0
"""Seconds that a receiver has to answer."""
KEPT_BODY = 4096
"""Bytes of an answer that are read and kept."""
GONE = 410


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of a try. ``status_code`` is None when there was no answer; ``error`` is empty when the receiver took the delivery."""

    status_code: int | None
    error: str
    response_body: str
    latency_ms: float
    retry_after: float | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the receiver took it."""
        return not self.error


class WebhookSender:
    """Sends. ``allowed`` are networks that deliveries may go to although they are not public."""

    def __init__(self, allowed: Sequence[Network], *, timeout: float = TIMEOUT, resolve: Resolve | None = None) -> None:
        self._allowed = allowed
        self._timeout = timeout
        self._resolve = resolve
        self._client = httpx2.AsyncClient(
            timeout=timeout,
            follow_redirects=False,
            trust_env=False,
            verify=ssl.create_default_context(),
            limits=httpx2.Limits(max_connections=50),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Attempt:
        """POST ``body`` to ``url``. Whatever goes wrong is in the attempt, not raised."""
        started = time.monotonic()
        try:
            status, retry_after, text = await self._post(url, headers, body)
        except AddressRefusedError as exc:
            return _failed(f"refused: {exc}", started)
        except httpx2.TimeoutException:
            return _failed(f"no answer within {self._timeout:g} s", started)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ssl.SSLError, UnicodeError) as exc:
            return _failed(" ".join(str(exc).split())[:500] or type(exc).__name__, started)
        error = ""
        if 300 <= status < 400:  # noqa: PLR2004 - HTTP's own numbers
            error = f"redirected ({status}): redirects are not followed; give the endpoint its final URL"
        elif not 200 <= status < 300:  # noqa: PLR2004 - as above
            error = f"the receiver answered {status}"
        return Attempt(status, error, text, (time.monotonic() - started) * 1000, retry_after)

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, float | None, str]:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        address = await allowed_address(host, port, self._allowed, self._resolve)
        literal = f"[{address}]" if ":" in address else address
        target = parts._replace(netloc=f"{literal}:{port}").geturl()
        sent = {"Host": parts.netloc, "User-Agent": f"incident-rca/{__version__}", "Content-Type": "application/json", **headers}
        extensions = {"sni_hostname": host} if parts.scheme == "https" else {}
        async with self._client.stream("POST", target, headers=sent, content=body, extensions=extensions) as response:
            kept = b""
            async for piece in response.aiter_raw():
                kept += piece
                if len(kept) >= KEPT_BODY:
                    break
            return response.status_code, retry_after(response.headers.get("retry-after", "")), kept[:KEPT_BODY].decode(errors="replace")


def retry_after(text: str, now: datetime | None = None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for, in either of its forms; None where it says nothing usable."""
    if text.isdecimal():
        return float(min(int(text), 86_400))
    try:
        return max(0.0, (parsedate_to_datetime(text) - (now or datetime.now(UTC))).total_seconds())
    except (ValueError, TypeError):
        return None


def _failed(error: str, started: float) -> Attempt:
    return Attempt(None, error, "", (time.monotonic() - started) * 1000)
