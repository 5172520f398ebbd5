"""The connection to a Docker engine, and what its failures mean. With ``control`` and ``collect`` the only place that knows docker-py."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import docker.errors
import docker.utils
import requests.exceptions
from docker import APIClient
from docker.constants import MINIMUM_DOCKER_API_VERSION

from connectors.core.errors import ControlError, NotDeployedError, PermissionRefusedError, RuntimeUnavailableError

FAILURES = (docker.errors.DockerException, requests.exceptions.RequestException, OSError)
"""What docker-py lets through when the engine or the way to it fails."""


class Engine:
    """A Docker engine: connected at first use, and anew after the connection broke. Safe to use from several threads.

    Args:
        environ: ``DOCKER_HOST``, ``DOCKER_TLS_VERIFY`` and ``DOCKER_CERT_PATH`` say where the engine is, as for the docker command.
        host: overrides ``DOCKER_HOST`` when not empty.
        timeout: seconds that one request may take.
        connections: how many requests may be under way at a time.
    """

    def __init__(self, environ: Mapping[str, str] | None = None, *, host: str = "", timeout: float = 5.0, connections: int = 10) -> None:
        known = dict(os.environ if environ is None else environ)
        if host:
            known["DOCKER_HOST"] = host
        self.host = known.setdefault("DOCKER_HOST", "") or "unix:///var/run/docker.sock"
        self.timeout = timeout
        self._environ = known
        self._connections = connections
        self._lock = threading.Lock()
        self._client: APIClient | None = None

    @property
    def socket(self) -> str:
        """The path of the engine's socket; empty when it is reached over the network."""
        return self.host.removeprefix("unix://") if self.host.startswith("unix://") else ""

    @contextmanager
    def client(self) -> Iterator[APIClient]:
        """The low-level client, its failures translated.

        Raises:
            RuntimeUnavailableError: the engine is not there, or does not answer in time.
            PermissionRefusedError: the socket, or a proxy before the engine, refuses this user.
            NotDeployedError: the engine knows no such container.
            ControlError: the engine refused the request for another reason; the engine's own words say which.
        """
        try:
            yield self._connected()
        except FAILURES as exc:
            error = explain(exc, self.host, self.timeout)
            if isinstance(error, RuntimeUnavailableError):
                self.close()
            raise error from exc

    def close(self) -> None:
        """Close the connection; the next use opens a new one."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connected(self) -> APIClient:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> APIClient:
        """A client that speaks the engine's own API version, whether the engine is older or newer than we are."""
        if self.socket:
            # docker-py leaves a socket that did not connect to the garbage collector; trying first keeps that from happening each round.
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(self.timeout)
                probe.connect(self.socket)
        # docker-py's own version="auto" cannot be closed when the engine does not answer it.
        asking = self._new_client(MINIMUM_DOCKER_API_VERSION)
        try:
            version = str(asking.version(api_version=False)["ApiVersion"])
        finally:
            asking.close()
        return self._new_client(version)

    def _new_client(self, version: str) -> APIClient:
        return APIClient(
            version=version,
            timeout=self.timeout,  # type: ignore[arg-type]  # typeshed says int, requests takes fractions of a second
            max_pool_size=self._connections,
            **docker.utils.kwargs_from_env(self._environ),
        )


def explain(exc: BaseException, host: str, timeout: float) -> ControlError:
    """What a failed request to the engine at ``host`` means, as an error of our own with a reason for a person."""
    if isinstance(exc, docker.errors.APIError) and exc.status_code is not None:
        return _explain_answer(exc.status_code, str(exc.explanation or exc), host)
    causes = list(_causes(exc))
    if any(isinstance(cause, PermissionError) for cause in causes):
        return PermissionRefusedError(
            f"no permission to use the Docker engine at {host}: run as root, or as a member of the group that owns the socket"
        )
    if any(isinstance(cause, FileNotFoundError) for cause in causes):
        return RuntimeUnavailableError(f"there is no Docker engine at {host}: the socket does not exist")
    if any(isinstance(cause, (TimeoutError, requests.exceptions.Timeout)) for cause in causes):
        return RuntimeUnavailableError(f"the Docker engine at {host} does not answer within {timeout:g} s")
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return RuntimeUnavailableError(f"there is no Docker engine at {host}: the connection was refused")
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return RuntimeUnavailableError(f"there is no Docker engine at {host}: the name does not resolve")
    return RuntimeUnavailableError(f"the Docker engine at {host} cannot be used: {' '.join(str(exc).split())[:300]}")


def _explain_answer(status: int, words: str, host: str) -> ControlError:
    words = " ".join(words.split())[:300]
    if status in (401, 403):
        return PermissionRefusedError(f"the Docker engine at {host} (or a proxy before it) refused this: {words}")
    if status == 404:  # noqa: PLR2004 - HTTP's own number
        return NotDeployedError(words)
    if status in (502, 503, 504):
        return RuntimeUnavailableError(f"the Docker engine at {host} is not available: {words}")
    return ControlError(f"the Docker engine at {host} answered {status}: {words}")


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
