"""The connection to a cluster's API server, and what its failures mean. With ``collect`` the only place that knows lightkube."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx2
from lightkube import ApiError, Client
from lightkube.core.resource import GlobalResource, NamespacedResource, Resource, api_info
from lightkube.models.authorization_v1 import ResourceAttributes, SelfSubjectAccessReviewSpec
from lightkube.resources.authorization_v1 import SelfSubjectAccessReview
from lightkube.resources.core_v1 import Namespace

from connectors.core.errors import ControlError, PermissionRefusedError, RuntimeUnavailableError
from connectors.kubernetes.access import Access

Listed = TypeVar("Listed", bound=Resource)


class Cluster:
    """A Kubernetes cluster: connected at first use, by the pod's service account, else by ``KUBECONFIG``, else by ``~/.kube/config``.

    Args:
        timeout: seconds that one request may take.
        page_size: objects that one page of a list holds.
        connect: makes the client; by default lightkube's own way.
    """

    def __init__(self, *, timeout: float = 10.0, page_size: int = 500, connect: Callable[[httpx2.Timeout], Client] | None = None) -> None:
        self.timeout = timeout
        self._page_size = page_size
        self._connect = connect or (lambda limit: Client(timeout=limit, field_manager="incident-rca-agent"))
        self._lock = threading.Lock()
        self._client: Client | None = None

    def list(self, resource: type[Listed]) -> Iterator[Listed]:
        """Every object of ``resource`` in the whole cluster, page by page.

        Raises:
            RuntimeUnavailableError: there is no cluster, or it does not answer in time.
            PermissionRefusedError: the account may not list them; the reason names verb and resource.
            ControlError: the API server refused for another reason.
        """
        with self._translated(access_to("list", resource)):
            client = self._connected()
            if issubclass(resource, NamespacedResource):
                yield from client.list(resource, namespace="*", chunk_size=self._page_size)
            elif issubclass(resource, GlobalResource):
                yield from client.list(resource, chunk_size=self._page_size)

    def uid(self) -> str:
        """The cluster's identity: the UID of its ``kube-system`` namespace.

        Raises:
            ControlError: as :meth:`list`.
        """
        with self._translated(access_to("get", Namespace)):
            metadata = self._connected().get(Namespace, "kube-system").metadata
            return (metadata.uid if metadata else None) or ""

    def allowed(self, access: Access) -> bool:
        """Whether the account that we use has this access (SelfSubjectAccessReview, which every account may ask).

        Raises:
            ControlError: as :meth:`list`.
        """
        asked = ResourceAttributes(verb=access.verb, group=access.group, resource=access.resource)
        review = SelfSubjectAccessReview(spec=SelfSubjectAccessReviewSpec(resourceAttributes=asked))
        with self._translated(access_to("create", SelfSubjectAccessReview)):
            answer = self._connected().create(review)
        return bool(answer.status and answer.status.allowed)

    @property
    def server(self) -> str:
        """The API server's address.

        Raises:
            RuntimeUnavailableError: nothing here says where the cluster is.
        """
        return str(self._connected().config.cluster.server)

    def close(self) -> None:
        """Close the connection; the next use opens a new one."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    @contextmanager
    def _translated(self, access: Access) -> Iterator[None]:
        try:
            yield
        except (httpx2.HTTPError, OSError) as exc:
            error = explain(exc, access, self.timeout)
            if isinstance(error, RuntimeUnavailableError):
                self.close()  # the next try reads the configuration anew: address and certificate may have changed
            raise error from exc

    def _connected(self) -> Client:
        with self._lock:
            if self._client is None:
                try:
                    self._client = self._connect(httpx2.Timeout(self.timeout))
                except Exception as exc:  # a kubeconfig can be wrong in more ways than lightkube has errors for
                    words = f"{type(exc).__name__}: {' '.join(str(exc).split())[:300]}"
                    raise RuntimeUnavailableError(f"no Kubernetes cluster is configured here: {words}") from exc
            return self._client


def access_to(verb: str, resource: type[Resource]) -> Access:
    """The access that ``verb`` on objects of ``resource`` takes."""
    info = api_info(resource)
    return Access(verb, info.resource.group, info.plural)


def explain(exc: BaseException, access: Access, timeout: float) -> ControlError:
    """What a failed request to the API server means, as an error of our own with a reason for a person."""
    if isinstance(exc, ApiError):
        words = " ".join((exc.status.message or "").split())[:300]
        return _explain_answer(exc.status.code or 0, words, access)
    if isinstance(exc, httpx2.HTTPStatusError):
        return _explain_answer(exc.response.status_code, exc.response.reason_phrase, access)
    if isinstance(exc, (httpx2.TimeoutException, TimeoutError)):
        return RuntimeUnavailableError(f"the Kubernetes API server does not answer within {timeout:g} s")
    return RuntimeUnavailableError(f"the Kubernetes API server cannot be reached: {' '.join(str(exc).split())[:300]}")


def _explain_answer(status: int, words: str, access: Access) -> ControlError:
    if status == 403:  # noqa: PLR2004 - HTTP's own number
        return PermissionRefusedError(f"forbidden: the agent's role lacks {access.rule}")
    if status == 401:  # noqa: PLR2004 - as above
        return PermissionRefusedError(f"the Kubernetes API server does not accept the agent's credentials: {words}")
    if status in (429, 502, 503, 504):
        return RuntimeUnavailableError(f"the Kubernetes API server is not available ({status}): {words}")
    return ControlError(f"the Kubernetes API server answered {status}: {words}")
