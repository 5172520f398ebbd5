"""The connection to a Docker engine, and what its failures mean. With ``control`` and ``collect`` the only place that knows docker-py."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass

import docker.errors
import docker.tls
import docker.utils
import requests.exceptions
from docker import APIClient
from docker.constants import DEFAULT_DOCKER_API_VERSION, MINIMUM_DOCKER_API_VERSION

from connectors.core.errors import ControlError, NotDeployedError, PermissionRefusedError, RuntimeUnavailableError

FAILURES = (docker.errors.DockerException, requests.exceptions.RequestException, http.client.HTTPException, OSError)
"""What docker-py and the connections below let through when the engine or the way to it fails."""

REQUESTS = ("info", "list", "inspect", "stats", "images", "disk_usage")
"""The kinds of requests whose cost is counted."""

_HOLD = 1.0
"""Seconds for which an engine that has just not answered in time is not asked again: the rest of a round would only wait as long."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What the requests of one kind have cost so far: how many there were, how many of them failed, seconds spent waiting for them."""

    count: int = 0
    failed: int = 0
    seconds: float = 0.0


class Engine:
    """A Docker engine: connected at first use, and anew after the connection broke. Safe to use from several threads.

    Args:
        environ: ``DOCKER_HOST``, ``DOCKER_TLS_VERIFY`` and ``DOCKER_CERT_PATH`` say where the engine is, as for the docker command.
        host: overrides ``DOCKER_HOST`` when not empty.
        timeout: seconds that one request may take.
        connections: how many requests docker-py may have under way at a time.
        monotonic: seconds of a clock that is never set.
    """

    def __init__(
        self,
        environ: Mapping[str, str] | None = None,
        *,
        host: str = "",
        timeout: float = 5.0,
        connections: int = 10,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        known = dict(os.environ if environ is None else environ)
        if host:
            known["DOCKER_HOST"] = host
        self.host = known.setdefault("DOCKER_HOST", "") or "unix:///var/run/docker.sock"
        self.timeout = timeout
        self._environ = known
        self._connections = connections
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._client: APIClient | None = None
        self._silent: tuple[float, str] | None = None
        self._costs = dict.fromkeys(REQUESTS, Cost())

    @property
    def socket(self) -> str:
        """The path of the engine's socket; empty when it is reached over the network."""
        return self.host.removeprefix("unix://") if self.host.startswith("unix://") else ""

    @contextmanager
    def client(self, kind: str = "", *, timeout: float | None = None) -> Iterator[APIClient]:
        """The low-level client, its failures translated.

        Args:
            kind: which of :data:`REQUESTS` the block makes; its cost is counted then.
            timeout: seconds for requests in this block, which then has a client of its own.

        Raises:
            RuntimeUnavailableError: the engine is not there, does not answer in time, or speaks no API version that we do.
            PermissionRefusedError: the socket, or a proxy before the engine, refuses this user.
            NotDeployedError: the engine knows no such container.
            ControlError: the engine refused the request for another reason; the engine's own words say which.
        """
        begun = self._monotonic()
        silent = self._silent
        if silent and begun < silent[0] + _HOLD:
            raise RuntimeUnavailableError(silent[1])
        failed = True
        try:
            if timeout is None:
                yield self._connected()
            else:
                with self.client() as shared:
                    version = shared.api_version
                with closing(self._new_client(version, timeout)) as client:
                    yield client
            failed = False
        except FAILURES as exc:
            raise self._failure(exc, timeout) from exc
        finally:
            if kind:
                self.count(kind, self._monotonic() - begun, failed=failed)

    def connection(self) -> http.client.HTTPConnection:
        """A connection of its own, not yet open, for requests that :meth:`path` names. The caller closes it."""
        if self.socket:
            return _UnixConnection(self.socket, self.timeout)
        address = urllib.parse.urlsplit(self.host.replace("tcp://", "http://", 1))
        settings = docker.utils.kwargs_from_env(self._environ).get("tls")
        if not settings:
            return http.client.HTTPConnection(address.hostname or "localhost", address.port or 2375, timeout=self.timeout)
        return http.client.HTTPSConnection(
            address.hostname or "localhost", address.port or 2376, timeout=self.timeout, context=_tls(settings)
        )

    def path(self, path: str) -> str:
        """``path`` in the API version that was agreed with the engine."""
        with self.client() as client:
            return f"/v{client.api_version}{path}"

    def speaks(self, version: str) -> bool:
        """Whether the API version that was agreed with the engine is ``version`` or newer.

        Raises:
            ControlError: as :meth:`client`.
        """
        with self.client() as client:
            return docker.utils.version_gte(client.api_version, version)

    def count(self, kind: str, seconds: float, *, failed: bool = False) -> None:
        """Count one request of a kind that took ``seconds``."""
        with self._lock:
            cost = self._costs[kind]
            self._costs[kind] = Cost(cost.count + 1, cost.failed + failed, cost.seconds + seconds)

    def costs(self) -> Mapping[str, Cost]:
        """What our requests have cost so far, for each of :data:`REQUESTS`."""
        with self._lock:
            return dict(self._costs)

    def try_again(self) -> None:
        """Ask even if the engine has just not answered in time: a new round begins."""
        self._silent = None

    def close(self) -> None:
        """Close the connection; the next use opens a new one."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _failure(self, exc: BaseException, timeout: float | None) -> ControlError:
        error = explain(exc, self.host, self.timeout if timeout is None else timeout)
        if timeout is None and isinstance(error, RuntimeUnavailableError):
            self.close()
            if any(isinstance(cause, (TimeoutError, requests.exceptions.Timeout)) for cause in _causes(exc)):
                self._silent = (self._monotonic(), error.reason)
        return error

    def _connected(self) -> APIClient:
        if self.socket:
            # docker-py leaves a socket that did not connect to the garbage collector; trying first keeps that from happening each round.
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(self.timeout)
                probe.connect(self.socket)
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> APIClient:
        """A client that speaks an API version that the engine and we both know."""
        # docker-py's own version="auto" cannot be closed when the engine does not answer it.
        asking = self._new_client(MINIMUM_DOCKER_API_VERSION, self.timeout)
        try:
            answer = asking.version(api_version=False)
        finally:
            asking.close()
        return self._new_client(agree(str(answer["ApiVersion"]), str(answer.get("MinAPIVersion") or "")), self.timeout)

    def _new_client(self, version: str, timeout: float) -> APIClient:
        return APIClient(
            version=version,
            timeout=timeout,  # type: ignore[arg-type]  # typeshed says int, requests takes fractions of a second
            max_pool_size=self._connections,
            **docker.utils.kwargs_from_env(self._environ),
        )


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        made = socket.socket(socket.AF_UNIX)
        try:
            made.settimeout(self.timeout)
            made.connect(self._path)
        except BaseException:
            made.close()
            raise
        self.sock = made


class _UnknownVersionError(docker.errors.DockerException):
    """The engine and we know no API version in common."""


def agree(newest: str, oldest: str) -> str:
    """The API version to speak with an engine that knows versions ``oldest`` (empty when it does not say) to ``newest``.

    That is the engine's newest, but none newer than docker-py was made for, unless the engine knows only newer ones.

    Raises:
        docker.errors.DockerException: the engine is too old for us.
    """
    if docker.utils.version_lt(newest, MINIMUM_DOCKER_API_VERSION):
        raise _UnknownVersionError(f"it speaks API {newest}, and this agent {MINIMUM_DOCKER_API_VERSION} or newer: update the engine")
    wanted = newest if docker.utils.version_lt(newest, DEFAULT_DOCKER_API_VERSION) else DEFAULT_DOCKER_API_VERSION
    return oldest if oldest and docker.utils.version_lt(wanted, oldest) else wanted


def explain(exc: BaseException, host: str, timeout: float) -> ControlError:
    """What a failed request to the engine at ``host`` means, as an error of our own with a reason for a person."""
    if isinstance(exc, docker.errors.APIError) and exc.status_code is not None:
        return explain_answer(exc.status_code, str(exc.explanation or exc), host)
    causes = list(_causes(exc))
    if any(isinstance(cause, PermissionError) for cause in causes):
        return PermissionRefusedError(
            f"no permission to use the Docker engine at {host}: run as root, or as a member of the group that owns the socket"
        )
    if any(isinstance(cause, FileNotFoundError) for cause in causes):
        return RuntimeUnavailableError(f"there is no Docker engine at {host}: the socket does not exist")
    # A Unix socket whose queue is full, for nobody accepts, says "try again" at once.
    if any(isinstance(cause, (TimeoutError, BlockingIOError, requests.exceptions.Timeout)) for cause in causes):
        return RuntimeUnavailableError(f"the Docker engine at {host} does not answer within {timeout:g} s")
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return RuntimeUnavailableError(f"there is no Docker engine at {host}: the connection was refused")
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return RuntimeUnavailableError(f"there is no Docker engine at {host}: the name does not resolve")
    return RuntimeUnavailableError(f"the Docker engine at {host} cannot be used: {' '.join(str(exc).split())[:300]}")


def explain_answer(status: int, words: str, host: str) -> ControlError:
    """What an answer of the engine (or a proxy) with an HTTP status of failure means; ``words`` are its own."""
    words = " ".join(words.split())[:300]
    if status in (401, 403):
        return PermissionRefusedError(f"the Docker engine at {host} (or a proxy before it) refused this: {words}")
    if status == 404:  # noqa: PLR2004 - HTTP's own number
        return NotDeployedError(words)
    if status == 400 and "client version" in words:  # noqa: PLR2004 - HTTP's own number
        # The engine was replaced by another version meanwhile: the next use agrees on a version anew.
        return RuntimeUnavailableError(f"the Docker engine at {host} no longer speaks the API version that it did: {words}")
    if status in (502, 503, 504):
        return RuntimeUnavailableError(f"the Docker engine at {host} is not available: {words}")
    return ControlError(f"the Docker engine at {host} answered {status}: {words}")


def _tls(settings: docker.tls.TLSConfig) -> ssl.SSLContext:
    """The same trust and the same certificate as docker-py's."""
    context = ssl.create_default_context(cafile=settings.ca_cert or None)
    if not settings.verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if settings.cert:
        context.load_cert_chain(*settings.cert)
    return context


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """``exc`` and everything that led to it: urllib3 keeps the operating system's error in its arguments, not in the chain."""
    waiting, seen = [exc], set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [x for x in (one.__cause__, one.__context__, getattr(one, "reason", None), *one.args) if isinstance(x, BaseException)]
