"""The connection to a cluster's API server, and what its failures mean. The only place that knows lightkube.

Of lightkube only the finding of cluster and credentials is used: objects are taken as the JSON that they are, for its models of thousands
of objects would cost many times the memory.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import msgspec
from lightkube.config.client_adapter import user_auth, verify_cluster
from lightkube.config.kubeconfig import KubeConfig, SingleConfig

from connectors._version import __version__
from connectors.core.errors import ControlError, PermissionRefusedError, RuntimeUnavailableError
from connectors.kubernetes.access import Access

MAX_LINE = 16 * 1024 * 1024
"""Bytes of one line of a watch: the API server takes objects of some 1.5 MiB."""
FORBIDDEN = 403
_UNAUTHORIZED = 401
_AWAY = (429, 502, 503, 504)
_KEEPALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
"""A watch whose other end vanished without a word is noticed after half a minute."""
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API server answered."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body, read.

        Raises:
            ControlError: it is not JSON.
        """
        try:
            return msgspec.json.decode(self.body)
        except msgspec.DecodeError as exc:
            raise ControlError("the Kubernetes API server's answer is not JSON") from exc


class Stream:
    """A watch's lines as they come. Another thread may end it with :meth:`interrupt`. ``status`` is what the API server answered."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self.status = response.status_code
        network = response.extensions.get("network_stream")
        found = network.get_extra_info("socket") if network is not None else None
        self._socket: socket.socket | None = found if isinstance(found, socket.socket) else None
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for name, value in _KEEPALIVE:
                    if hasattr(socket, name):
                        self._socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def __iter__(self) -> Iterator[bytes]:
        """Whole lines without their ends; what is cut off at the end of the stream is left out.

        Raises:
            ControlError: a line is longer than :data:`MAX_LINE`.
        """
        rest = b""
        for chunk in self._response.iter_bytes():
            *lines, rest = (rest + chunk).split(b"\n")
            yield from filter(None, lines)
            if len(rest) > MAX_LINE:
                raise ControlError("the Kubernetes API server sent a line that is too long")

    def interrupt(self) -> None:
        """End it now, even while another thread waits for its next line."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                # The plain socket's: an SSL socket's own forgets its state under the thread that reads.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


@dataclass(slots=True)
class Connection:
    """A client with the configuration that it was made of, and how many use it now."""

    client: httpx2.Client
    config: SingleConfig
    users: int = 0
    retired: bool = False


class Cluster:
    """A Kubernetes cluster: connected at first use, by the pod's service account, else by ``KUBECONFIG``, else by ``~/.kube/config``.

    Any thread may use it.

    Args:
        timeout: seconds that one request may take.
        page_size: objects that one page of a list holds.
        configure: finds cluster and credentials; by default lightkube's own way.
    """

    def __init__(self, *, timeout: float = 10.0, page_size: int = 500, configure: Callable[[], SingleConfig] | None = None) -> None:
        self.timeout = timeout
        self.page_size = page_size
        self._configure = configure or _configured
        self._lock = threading.Lock()
        self._current: Connection | None = None

    def request(
        self,
        method: str,
        path: str,
        access: Access,
        *,
        params: Mapping[str, str] | None = None,
        document: Mapping[str, Any] | None = None,
        expect: tuple[int, ...] = (),
        timeout: float | None = None,
    ) -> Answer:
        """One request to the API server. Answers of the statuses in ``expect`` come back, other failures are raised.

        ``access`` is what the request takes, for the reason when it is refused; ``timeout`` goes before the cluster's own.

        Raises:
            RuntimeUnavailableError: there is no cluster, it does not answer in time, or does not take our credentials (which may have been
                changed: the next request reads them anew).
            PermissionRefusedError: the account may not; the reason names verb and resource.
            ControlError: the API server refused for another reason.
        """
        content = None if document is None else msgspec.json.encode(document)
        headers = {"Content-Type": "application/json"} if content is not None else {}
        seconds = timeout or self.timeout
        with self._using() as client, self._explained(access, seconds):
            response = client.request(method, path, params=params, content=content, headers=headers, timeout=seconds)
            if response.is_success or response.status_code in expect:
                return Answer(response.status_code, response.content)
            raise explain_answer(response.status_code, _words(response.content), access)

    @contextmanager
    def stream(
        self, path: str, access: Access, params: Mapping[str, str], *, silence: float, expect: tuple[int, ...] = ()
    ) -> Iterator[Stream]:
        """A request whose answer's lines are read as they come; ``silence`` is how many seconds may pass without any.

        Answers of the statuses in ``expect`` come back, as with :meth:`request`.

        Raises:
            ControlError: as :meth:`request`; also while the lines are read.
        """
        limit = httpx2.Timeout(self.timeout, read=silence)
        with (
            self._using() as client,
            self._explained(access, silence),
            client.stream("GET", path, params=params, timeout=limit) as response,
        ):
            if not response.is_success and response.status_code not in expect:
                raise explain_answer(response.status_code, _words(response.read()), access)
            yield Stream(response)

    def uid(self) -> str:
        """The cluster's identity: the UID of its ``kube-system`` namespace.

        Raises:
            ControlError: as :meth:`request`.
        """
        return self._uid_of("namespaces", "kube-system")

    def node_uid(self, name: str) -> str:
        """The UID of a node.

        Raises:
            ControlError: as :meth:`request`.
        """
        return self._uid_of("nodes", name)

    def _uid_of(self, resource: str, name: str) -> str:
        found = self.request("GET", f"/api/v1/{resource}/{name}", Access("get", "", resource)).json()
        return str((found.get("metadata") or {}).get("uid") or "")

    def allowed(self, access: Access) -> bool:
        """Whether the account that we use has this access (SelfSubjectAccessReview, which every account may ask).

        Raises:
            ControlError: as :meth:`request`.
        """
        resource, _, subresource = access.resource.partition("/")
        asked = {"verb": access.verb, "group": access.group, "resource": resource, "subresource": subresource}
        if access.namespaced:
            asked["namespace"] = self.namespace
        if access.names:
            asked["name"] = access.names[0]
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": asked}}
        needed = Access("create", "authorization.k8s.io", "selfsubjectaccessreviews")
        answer = self.request("POST", _REVIEWS, needed, document=review).json()
        return bool((answer.get("status") or {}).get("allowed"))

    @property
    def config(self) -> SingleConfig:
        """Where the cluster is and how we show who we are, as it was found.

        Raises:
            RuntimeUnavailableError: nothing here says so.
        """
        with self._lock:
            return self._connected().config

    @property
    def server(self) -> str:
        """The API server's address.

        Raises:
            RuntimeUnavailableError: as :attr:`config`.
        """
        return str(self.config.cluster.server)

    @property
    def namespace(self) -> str:
        """The namespace that we are in: the pod's own (``POD_NAMESPACE``), else that of the configuration.

        Raises:
            RuntimeUnavailableError: as :attr:`config`.
        """
        return os.environ.get("POD_NAMESPACE") or self.config.namespace

    def close(self) -> None:
        """Close the connection, as soon as nobody uses it; the next use opens a new one."""
        with self._lock:
            if self._current is not None:
                self._retire(self._current)

    @contextmanager
    def _using(self) -> Iterator[httpx2.Client]:
        with self._lock:
            connection = self._connected()
            connection.users += 1
        try:
            yield connection.client
        except RuntimeUnavailableError:
            # The next try reads the configuration anew: address, certificate and credentials may have changed.
            with self._lock:
                self._retire(connection)
            raise
        finally:
            with self._lock:
                connection.users -= 1
                done = connection.retired and not connection.users
            if done:
                connection.client.close()

    def _retire(self, connection: Connection) -> None:
        if self._current is connection:
            self._current = None
        if not connection.retired and not connection.users:
            connection.client.close()
        connection.retired = True

    @contextmanager
    def _explained(self, access: Access, timeout: float) -> Iterator[None]:
        try:
            yield
        except (httpx2.HTTPError, OSError) as exc:
            raise explain(exc, access, timeout) from exc

    def _connected(self) -> Connection:
        if self._current is None:
            try:
                self._current = self._connect()
            except Exception as exc:  # a kubeconfig can be wrong in more ways than lightkube has errors for
                words = f"{type(exc).__name__}: {' '.join(str(exc).split())[:300]}"
                raise RuntimeUnavailableError(f"no Kubernetes cluster is configured here: {words}") from exc
        return self._current

    def _connect(self) -> Connection:
        config = self._configure()
        user = config.user
        if user is None:
            raise ControlError(f"the context {config.context_name!r} names no user")
        client = httpx2.Client(
            base_url=str(config.cluster.server),
            verify=verify_cluster(config.cluster, user, config.abs_file),
            auth=user_auth(user),
            timeout=httpx2.Timeout(self.timeout),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=4, keepalive_expiry=30.0),
            headers={"User-Agent": f"incident-rca-agent/{__version__}", "Accept": "application/json"},
        )
        return Connection(client, config)


def explain(exc: BaseException, access: Access, timeout: float) -> ControlError:
    """What a failed request to the API server means, as an error of our own with a reason for a person."""
    if isinstance(exc, httpx2.HTTPStatusError):
        return explain_answer(exc.response.status_code, exc.response.reason_phrase, access)
    if isinstance(exc, (httpx2.TimeoutException, TimeoutError)):
        return RuntimeUnavailableError(f"the Kubernetes API server does not answer within {timeout:g} s")
    return RuntimeUnavailableError(f"the Kubernetes API server cannot be reached: {' '.join(str(exc).split())[:300] or type(exc).__name__}")


def explain_answer(status: int, words: str, access: Access) -> ControlError:
    """What a refusal means; ``words`` are the API server's own."""
    if status == FORBIDDEN:
        return PermissionRefusedError(f"forbidden: the agent's role lacks {access.rule}")
    if status == _UNAUTHORIZED:
        # Not for good: tokens are rotated, and the next try reads them anew.
        return RuntimeUnavailableError(
            f"the Kubernetes API server does not accept the agent's credentials: {words}; "
            "if its service account was made anew, its pods must be too"
        )
    if status in _AWAY:
        return RuntimeUnavailableError(f"the Kubernetes API server is not available ({status}): {words}")
    return ControlError(f"the Kubernetes API server answered {status}: {words}")


def _configured() -> SingleConfig:
    found: SingleConfig | None = KubeConfig.from_env().get()
    if found is None:
        raise ControlError("the configuration names no context")
    return found


def _words(body: bytes) -> str:
    """The message of a refusal (a Status object), on one line; empty where it is something else."""
    try:
        message = msgspec.json.decode(body).get("message")
    except (msgspec.DecodeError, AttributeError):
        message = body.decode("utf-8", "replace")
    return " ".join(str(message or "").split())[:300]
