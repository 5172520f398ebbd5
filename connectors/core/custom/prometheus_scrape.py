"""Scrapes a Prometheus endpoint: on loopback, or where the host's owner allows it. Redirects are not followed."""

from __future__ import annotations

import http.client
import ipaddress
import ssl
import time
import urllib.parse
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from connectors.core.custom.readings import prometheus_metrics
from connectors.core.errors import CollectorError, ConfigError
from connectors.core.telemetry import Metric

MAX_BODY: Final = 4_194_304
_CHUNK: Final = 65_536
_HEADERS: Final = {"Accept": "text/plain;version=0.0.4", "Accept-Encoding": "identity", "User-Agent": "incident-rca-agent"}
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to scrape."""

    scheme: str
    host: str
    port: int
    target: str

    def __str__(self) -> str:
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def checked_endpoint(url: str, allowed: Collection[str]) -> Endpoint:
    """The endpoint that ``url`` names; ``allowed`` are hosts beyond loopback, each as ``host`` or ``host:port``.

    Raises:
        ConfigError: it is no such URL, or neither on loopback nor allowed.
    """

    def refuse(what: str) -> ConfigError:
        return ConfigError(f"custom_prometheus: {url!r} {what}", field="custom_prometheus")

    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError as exc:
        raise refuse(f"is not a URL: {exc}") from exc
    if parts.scheme not in _PORTS or not host or not url.isascii() or any(not c.isprintable() or c == " " for c in url):
        raise refuse("must look like http://127.0.0.1:9100/metrics")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise refuse("must not hold credentials or a fragment")
    if not (_is_loopback(host) or host in allowed or f"{host}:{port}" in allowed or f"[{host}]:{port}" in allowed):
        raise refuse("is not on loopback, and custom_prometheus_hosts on the host does not allow it")
    target = urllib.parse.urlunsplit(("", "", parts.path or "/metrics", parts.query, ""))
    return Endpoint(parts.scheme, host, port, target)


def scrape(endpoint: Endpoint, timeout: float, labels: Collection[str]) -> Sequence[Metric]:
    """What ``endpoint`` exposes, within ``timeout`` seconds in all; ``labels`` as in the reader of the format.

    Raises:
        CollectorError: it does not answer in time, answers with something else, or too much.
    """
    try:
        body = _get(endpoint, time.monotonic() + timeout)
    except TimeoutError as exc:
        raise CollectorError(f"{endpoint} did not answer within {timeout:g} s") from exc
    except ssl.SSLError as exc:
        raise CollectorError(f"{endpoint}: TLS failed: {exc.reason or exc}") from exc
    except OSError as exc:
        raise CollectorError(f"{endpoint} cannot be reached: {exc.strerror or exc}") from exc
    except http.client.HTTPException as exc:
        raise CollectorError(f"{endpoint} does not speak HTTP as it should: {type(exc).__name__}") from exc
    try:
        text = body.decode()
    except UnicodeDecodeError as exc:
        raise CollectorError(f"what {endpoint} exposes is not UTF-8") from exc
    return prometheus_metrics(text, labels)


def _get(endpoint: Endpoint, deadline: float) -> bytes:
    kind = http.client.HTTPSConnection if endpoint.scheme == "https" else http.client.HTTPConnection
    connection = kind(endpoint.host, endpoint.port, timeout=_remaining(deadline))
    try:
        connection.connect()
        peer = connection.sock
        peer.settimeout(_remaining(deadline))
        connection.request("GET", endpoint.target, headers=_HEADERS)
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise CollectorError(f"{endpoint} answers with {response.status}")
        body = bytearray()
        peer.settimeout(_remaining(deadline))
        while piece := response.read1(_CHUNK):
            body += piece
            if len(body) > MAX_BODY:
                raise CollectorError(f"{endpoint} exposes more than {MAX_BODY} bytes")
            remaining = _remaining(deadline)
            if connection.sock is not None:  # else the whole answer is here
                peer.settimeout(remaining)
        return bytes(body)
    finally:
        connection.close()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining
