"""The checks that every agent type shares: is there a way from here to the platform, and may the agent do its work here?

From the name to the token, each check stands on the one before it, so that the first failure names the cause. A forward proxy
(``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY``, ``NO_PROXY``) and a private CA are honoured as the agent honours them. Every call has
a deadline; nothing that is tried leaves a trace on the platform or on the disk, and no use of the token is spent.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import ssl
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from connectors._version import __version__
from connectors.core.errors import ConfigError
from connectors.core.preflight import Check, Outcome
from connectors.core.proxies import proxy_for
from connectors.core.secret import Secret

SKEW_WARNING = 30.0
"""Seconds that the clocks may differ before it is worth saying."""
SKEW_FAILURE = 300.0
"""Seconds of difference from which on what this agent reports can no longer be put beside what others report."""
CERTIFICATE_WARNING_DAYS = 14
MINIMUM_FREE_BYTES = 16_777_216
"""Free space below which the spool cannot work at all."""

_WHOAMI = "/api/v1/agent/whoami"
_LARGEST_ANSWER = 65_536

# OpenSSL's X509_V_ERR_* numbers, which the ssl module hands through without names.
_CERT_NOT_YET_VALID = 9
_CERT_HAS_EXPIRED = 10
_UNTRUSTED = (18, 19, 20, 21)
_MISMATCHES = (62, 64)

Verdict = tuple[Outcome, str, str]


@dataclass(frozen=True, slots=True)
class Target:
    """What the checks look at.

    ``secret`` is the instance's credential or else the enrolment token, empty where there is none; ``clock`` gives seconds since the
    epoch; ``environ`` is where proxies are looked up; ``timeout`` is seconds for each step.
    """

    platform_url: str
    secret: Secret
    state_dir: Path
    spool_max_bytes: int
    ca_file: str = ""
    timeout: float = 15.0
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    clock: Callable[[], float] = time.time


@dataclass(frozen=True, slots=True)
class Route:
    """The way to the platform: its own address, or that of the proxy in front of it.

    ``host`` and ``port`` are what the agent connects to; ``proxy`` is empty or the proxy's URL without its credentials.
    """

    scheme: str
    origin_host: str
    origin_port: int
    path: str
    host: str
    port: int
    proxy: str = ""
    proxy_authorization: Secret = field(default_factory=lambda: Secret(""))

    @property
    def through(self) -> str:
        """What to add to a sentence about this route."""
        return f" through the proxy {self.proxy}" if self.proxy else ""


def plan_route(platform_url: str, environ: Mapping[str, str]) -> Route:
    """The way to ``platform_url`` in this environment.

    Raises:
        ConfigError: the proxy that the environment names cannot be used.
    """
    url = urllib.parse.urlsplit(platform_url)
    host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    proxy = proxy_for(platform_url, environ)
    if proxy is None:
        return Route(url.scheme, host, port, url.path.rstrip("/"), host, port)
    shown = f"http://{_bracketed(proxy.host)}:{proxy.port}"
    return Route(url.scheme, host, port, url.path.rstrip("/"), proxy.host, proxy.port, shown, Secret(proxy.authorization))


def common_checks(target: Target) -> Sequence[Check]:
    """The checks for ``target`` in the order in which to run them; those that make no sense for its URL are left out."""
    probe = _Probe(target)
    checks = [Check("dns", probe.dns), Check("tcp", probe.tcp, needs=("dns",))]
    below = "tcp"
    if target.platform_url.startswith("https:"):
        checks.append(Check("tls", probe.tls, needs=("tcp",)))
        below = "tls"
    return (
        *checks,
        Check("http", probe.http, needs=(below,)),
        Check("clock", probe.clock, needs=("http",)),
        Check("token", probe.token, needs=("http",)),
        Check("permissions", lambda: check_permissions(target.state_dir)),
        Check("disk", lambda: check_disk(target.state_dir, target.spool_max_bytes)),
    )


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the platform answered, and when by this machine's clock (Unix seconds)."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    sent_at: float
    received_at: float

    def document(self) -> Mapping[str, Any]:
        try:
            parsed = json.loads(self.body)
        except ValueError:
            return {}
        return parsed if isinstance(parsed, dict) else {}


class _Probe:
    """Walks the way to the platform once; later checks reuse what earlier ones found (address, answer)."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._answer: _Answer | None = None

    def _route(self) -> Route:
        return plan_route(self._target.platform_url, self._target.environ)

    def dns(self) -> Verdict:
        try:
            route = self._route()
        except ConfigError as exc:
            return Outcome.FAIL, exc.reason, "Correct HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, or list the platform's host in NO_PROXY."
        try:
            found = socket.getaddrinfo(route.host, route.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            what = f"{route.host} does not resolve: {_describe(exc)}"
            whose = "the proxy's name in HTTPS_PROXY or HTTP_PROXY" if route.proxy else "the name in PLATFORM_API_URL"
            return Outcome.FAIL, what, f"Check {whose} and this machine's resolver."
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        detail = f"{route.host} is {', '.join(addresses)}" if addresses != [route.host] else f"{route.host} is an address"
        return Outcome.PASS, detail + (f" (the proxy for {route.origin_host})" if route.proxy else ""), ""

    def tcp(self) -> Verdict:
        route = self._route()
        started = time.monotonic()
        try:
            socket.create_connection((route.host, route.port), timeout=self._target.timeout).close()
        except ConnectionRefusedError:
            advice = "Start what should listen there, or correct the port in " + (
                "the proxy setting." if route.proxy else "PLATFORM_API_URL."
            )
            return Outcome.FAIL, f"{_address(route)} refuses connections", advice
        except TimeoutError:
            advice = "A firewall on the way drops the packets: allow this machine to reach that address, or set HTTPS_PROXY."
            return Outcome.FAIL, f"{_address(route)} does not answer within {self._target.timeout:g} s", advice
        except OSError as exc:
            return Outcome.FAIL, f"{_address(route)} cannot be reached: {_describe(exc)}", "Check this machine's network and routes."
        return Outcome.PASS, f"{_address(route)} answers in {(time.monotonic() - started) * 1000:.0f} ms", ""

    def tls(self) -> Verdict:
        route = self._route()
        try:
            context = tls_context(self._target.ca_file)
        except ConfigError as exc:
            return Outcome.FAIL, exc.reason, "Let ca_file name a readable PEM bundle with the CA's certificate."
        try:
            with contextlib.closing(_connection(route, self._target.timeout, context)) as connection:
                connection.connect()
                peer = connection.sock.getpeercert() or {}
                version = connection.sock.version()
        except (OSError, http.client.HTTPException) as exc:
            return _explain_handshake(exc, route, self._target.ca_file)
        days = (ssl.cert_time_to_seconds(str(peer["notAfter"])) - self._target.clock()) / 86_400
        detail = f"{version}, certificate valid for another {days:.0f} days"
        if days < CERTIFICATE_WARNING_DAYS:
            return Outcome.WARN, detail, "Renew the platform's certificate before it expires."
        return Outcome.PASS, detail, ""

    def http(self) -> Verdict:
        route = self._route()
        try:
            answer = self._answer = self._get("/healthz")
        except (OSError, http.client.HTTPException) as exc:
            what = f"no HTTP answer{route.through}: {_describe(exc)}"
            advice = "Check that the port belongs to the platform" + (" and serves http, not https." if route.scheme == "http" else ".")
            return Outcome.FAIL, what, advice
        if answer.status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            return (
                Outcome.FAIL,
                f"the proxy {route.proxy} wants credentials",
                "Put them into the proxy setting: http://user:password@host:port.",
            )
        if HTTPStatus.MULTIPLE_CHOICES <= answer.status < HTTPStatus.BAD_REQUEST:
            where = answer.headers.get("location", "")
            return Outcome.FAIL, f"redirected to {where}: agents do not follow redirects", "Set PLATFORM_API_URL to the final address."
        if answer.status != HTTPStatus.OK or answer.document().get("service") != "incident-rca":
            what = f"GET /healthz answers {answer.status}, but not as an incident-rca platform"
            if answer.status in (502, 503, 504):
                return Outcome.FAIL, f"GET /healthz answers {answer.status}{route.through}", "Start the platform, or look at its log."
            return Outcome.FAIL, what, "Check host, port and path of PLATFORM_API_URL."
        took = (answer.received_at - answer.sent_at) * 1000
        return Outcome.PASS, f"the platform answers in {took:.0f} ms{route.through}", ""

    def clock(self) -> Verdict:
        answer = self._answer or self._get("/healthz")
        try:
            told = parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
        except (TypeError, ValueError):
            return Outcome.WARN, "the platform's answer carries no date, so the clocks cannot be compared", "Compare them by hand."
        return judge_skew(told, answer.sent_at, answer.received_at)

    def token(self) -> Verdict:
        if not self._target.secret:
            advice = "Set AGENT_TOKEN or AGENT_TOKEN_FILE to the token from provisioning."
            return Outcome.FAIL, "there is neither a token nor a credential", advice
        try:
            answer = self._get(_WHOAMI, self._target.secret)
        except (OSError, http.client.HTTPException) as exc:
            return Outcome.FAIL, f"no answer: {_describe(exc)}", "Try again; look at the platform's log if it stays so."
        return explain_token(answer.status, answer.document())

    def _get(self, path: str, bearer: Secret | None = None) -> _Answer:
        route = self._route()
        context = tls_context(self._target.ca_file) if route.scheme == "https" else None
        headers = {"Accept": "application/json", "User-Agent": f"incident-rca-agent/{__version__} (check)"}
        if bearer:
            headers["Authorization"] = f"Bearer {bearer.reveal()}"
        target = route.path + path
        if route.proxy and context is None:
            target = f"http://{_bracketed(route.origin_host)}:{route.origin_port}{target}"
            if route.proxy_authorization:
                headers["Proxy-Authorization"] = route.proxy_authorization.reveal()
        with contextlib.closing(_connection(route, self._target.timeout, context)) as connection:
            connection.connect()
            sent_at = self._target.clock()
            connection.request("GET", target, headers=headers)
            response = connection.getresponse()
            received_at = self._target.clock()
            body = response.read(_LARGEST_ANSWER)
        return _Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, body, sent_at, received_at)


def _connection(route: Route, timeout: float, context: ssl.SSLContext | None) -> Any:
    """A connection that is not open yet; through a proxy, HTTPS travels in a tunnel."""
    if context is None:
        return http.client.HTTPConnection(route.host, route.port, timeout=timeout)
    connection = http.client.HTTPSConnection(route.host, route.port, timeout=timeout, context=context)
    if route.proxy:
        authorization = {"Proxy-Authorization": route.proxy_authorization.reveal()} if route.proxy_authorization else {}
        connection.set_tunnel(route.origin_host, route.origin_port, headers=authorization)
    return connection


def tls_context(ca_file: str) -> ssl.SSLContext:
    """A verifying context that trusts ``ca_file`` where it is given, else the system's certificates.

    Raises:
        ConfigError: the file cannot be read or holds no certificate.
    """
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(f"ca_file {ca_file} cannot be used: {_describe(exc)}", field="ca_file") from exc


def _explain_handshake(exc: Exception, route: Route, ca_file: str) -> Verdict:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return explain_certificate(exc, route.origin_host, ca_file)
    if isinstance(exc, ssl.SSLError):
        if exc.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
            what = f"{_bracketed(route.origin_host)}:{route.origin_port} does not speak TLS"
            return Outcome.FAIL, what, "Use http:// or the port that serves TLS."
        what = f"the TLS handshake failed: {exc.reason or _describe(exc)}"
        return Outcome.FAIL, what, "Check the TLS settings of the platform or of the proxy in front of it."
    what = f"the connection broke before TLS was set up{route.through}: {_describe(exc)}"
    if route.proxy:
        return Outcome.FAIL, what, "Ask whoever runs the proxy to allow CONNECT to this host, or list the host in NO_PROXY."
    return Outcome.FAIL, what, "Check that the port serves TLS."


def explain_certificate(exc: ssl.SSLCertVerificationError, host: str, ca_file: str) -> Verdict:
    """What is wrong with the certificate that ``host`` showed, and what to do."""
    if exc.verify_code in _MISMATCHES:
        return (
            Outcome.FAIL,
            f"the certificate is not for {host}: {exc.verify_message}",
            ("Use a name that stands in the certificate in PLATFORM_API_URL, or have one issued for this name."),
        )
    if exc.verify_code == _CERT_HAS_EXPIRED:
        return (
            Outcome.FAIL,
            "the certificate has expired",
            "Renew it; if it is fresh, correct this machine's clock.",
        )
    if exc.verify_code == _CERT_NOT_YET_VALID:
        return Outcome.FAIL, "the certificate is not valid yet", "Correct this machine's clock, or wait."
    if exc.verify_code in _UNTRUSTED:
        trusted = f"the bundle {ca_file}" if ca_file else "this machine"
        return (
            Outcome.FAIL,
            f"the certificate's CA is not trusted by {trusted}: {exc.verify_message}",
            ("Give the platform's CA certificate as ca_file (CA_FILE), or install it in the system's store."),
        )
    return Outcome.FAIL, f"the certificate is refused: {exc.verify_message}", "Check the certificate chain that the platform serves."


def judge_skew(told: float, sent_at: float, received_at: float) -> Verdict:
    """How far this machine's clock is from the platform's, which said ``told`` (whole seconds) between the two local times."""
    # Inside this interval the answer fits a clock without error: the date is cut to seconds and was set on the way.
    ahead = max(0.0, sent_at - (told + 1.0))
    behind = max(0.0, told - received_at)
    skew = ahead or behind
    if skew < 1:
        return Outcome.PASS, "agrees with the platform's within a second", ""
    detail = f"this machine's clock is {_span(skew)} {'ahead of' if ahead else 'behind'} the platform's"
    advice = "Synchronise both machines (NTP: chrony, systemd-timesyncd, w32time)."
    if skew > SKEW_FAILURE:
        return Outcome.FAIL, detail, advice
    if skew > SKEW_WARNING:
        return Outcome.WARN, detail, advice
    return Outcome.PASS, detail, ""


def explain_token(status: int, document: Mapping[str, Any]) -> Verdict:
    """What the platform's answer to the token or credential means."""
    if status == HTTPStatus.OK:
        kind = {"enrolment": "enrolment token"}.get(str(document.get("kind")), "credential")
        return Outcome.PASS, f"{kind} of a {document.get('agent_type')} agent in {document.get('environment_name')}", ""
    if status == HTTPStatus.UNAUTHORIZED:
        code = str(document.get("code", "unauthenticated"))
        advice = _TOKEN_ADVICE.get(code, "Provision the environment again and use the new token.")
        return Outcome.FAIL, f"refused ({code}): {document.get('detail', 'no reason given')}", advice
    if status == HTTPStatus.NOT_FOUND:
        return Outcome.FAIL, "the platform does not know how to check a token", "Update the platform: an agent is never newer than it."
    return Outcome.FAIL, f"the platform answers {status}: {document.get('detail', 'no reason given')}", "Look at the platform's log."


_TOKEN_ADVICE = {
    "token-unknown": "Copy the token again from the provisioning answer, and check that PLATFORM_API_URL names the platform that gave it.",
    "token-expired": "Provision the environment again and use the new token.",
    "token-used-up": "Provision this machine on its own: the token has enrolled as many machines as it may.",
    "token-revoked": "Somebody revoked it. Ask them, or provision the environment again.",
}


def check_permissions(state_dir: Path) -> Verdict:
    """Whether the agent can keep its state in ``state_dir``, which need not exist yet."""
    advice = f"Run as the agent's user, give it the directory (chown), or set STATE_DIR to one that it owns ({_user()} runs this check)."
    if state_dir.is_dir():
        try:
            with tempfile.TemporaryFile(dir=state_dir) as file:
                file.write(b"x")
        except OSError as exc:
            return Outcome.FAIL, f"{state_dir} cannot be written: {_describe(exc)}", advice
        return Outcome.PASS, f"{state_dir} is writable", ""
    if state_dir.exists():
        return Outcome.FAIL, f"{state_dir} is not a directory", "Remove it, or set STATE_DIR to a directory."
    parent = _nearest_existing(state_dir)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return Outcome.FAIL, f"{state_dir} does not exist and cannot be made in {parent}", advice
    return Outcome.PASS, f"{state_dir} will be made in {parent}", ""


def check_disk(state_dir: Path, spool_max_bytes: int) -> Verdict:
    """Whether the disk of ``state_dir`` has room for a full spool beside what it holds already."""
    try:
        free = shutil.disk_usage(_nearest_existing(state_dir)).free
        spooled = sum(entry.stat().st_size for entry in state_dir.glob("spool*")) if state_dir.is_dir() else 0
    except OSError as exc:
        return Outcome.WARN, f"free space cannot be read: {_describe(exc)}", "Make sure that the spool has room."
    wanted = max(0, spool_max_bytes - spooled)
    detail = f"{_size(free)} free; the spool may still grow by {_size(wanted)}"
    if free < MINIMUM_FREE_BYTES:
        return Outcome.FAIL, detail, "Free some space, or set STATE_DIR to a disk that has it."
    if free < wanted:
        return Outcome.WARN, detail, "Free some space, or lower SPOOL_MAX_BYTES: an outage would fill the disk before the spool is full."
    return Outcome.PASS, detail, ""


def _nearest_existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _user() -> str:
    return f"user id {os.geteuid()}" if hasattr(os, "geteuid") else "the current user"


def _address(route: Route) -> str:
    return f"{_bracketed(route.host)}:{route.port}" + (" (the proxy)" if route.proxy else "")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _describe(exc: Exception) -> str:
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    return str(exc) or type(exc).__name__


def _span(seconds: float) -> str:
    for size, word in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word}"
    return f"{seconds:.0f} s"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:  # noqa: PLR2004 - the step between two units
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
