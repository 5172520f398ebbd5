"""The list and the watch of each kind: pages, then what changes from there on, for as long as the agent leads.

Each kind has a thread of its own and fails alone. Objects are trimmed one by one as they come in; at most two kinds read lists at a time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from connectors.core.backoff import Backoff, around, unit_random
from connectors.core.collector import describe_failure
from connectors.core.errors import ConnectorError, ControlError, PermissionRefusedError, RuntimeUnavailableError
from connectors.kubernetes import discovery
from connectors.kubernetes.access import Access
from connectors.kubernetes.cluster import Cluster, Stream, explain_answer
from connectors.kubernetes.kinds import Kind
from connectors.kubernetes.view import Key, View, key_of

_LOG = logging.getLogger(__name__)
FORBIDDEN_PAUSE = 30.0
"""Seconds until a kind that we may not read is tried again."""
UNSERVED_PAUSE = 600.0
"""Seconds until a kind that the cluster does not have is looked for again."""
LONGEST_PAUSE = 30.0
WATCH_SECONDS = 240.0
"""About how long one watch lasts before the API server ends it and we begin the next where it ended."""
_SILENCE = 30.0
_SETTLED = 5.0
_LISTS_AT_ONCE = 2
_RESUMED = 6
"""Attempts to go on where a watch ended, before the whole list is read again: the cluster may be another, or have gone back in time."""
_GONE, _NOT_FOUND, _BAD_REQUEST = 410, 404, 400
Shape = TypeVar("Shape")
_DISCOVERY = Access("get", "", "API discovery")


class _ListMeta(msgspec.Struct):
    version: str = msgspec.field(name="resourceVersion", default="")
    further: str = msgspec.field(name="continue", default="")


class _Page(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _WatchEvent(msgspec.Struct):
    type: str
    object: msgspec.Raw


class Catalogue:
    """What the cluster serves, asked when it is first needed."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lock = threading.Lock()
        self._groups: discovery.Json | None = None
        self._resources: dict[str, discovery.Json] = {}

    def path(self, kind: Kind) -> str | None:
        """The path that lists a kind; None when the cluster does not have it.

        Raises:
            ControlError: the cluster cannot be asked.
        """
        with self._lock:
            if self._groups is None:
                self._groups = self._ask("/apis")
            served = discovery.group_versions(self._groups)
            for base in discovery.candidates(kind, served):
                if base not in self._resources:
                    self._resources[base] = self._ask(base)
            return discovery.path_of(kind, served, self._resources)

    def forget(self) -> None:
        """Ask anew next time: the cluster may have been upgraded."""
        with self._lock:
            self._groups = None
            self._resources.clear()

    def _ask(self, path: str) -> discovery.Json:
        answer = self._cluster.request("GET", path, _DISCOVERY, expect=(_NOT_FOUND,))
        found = answer.json()
        return found if isinstance(found, dict) else {}


class KindWatch:
    """Keeps one kind of the view as the cluster has it.

    Args:
        kind: what to watch.
        cluster: where.
        catalogue: knows where the API has it.
        view: where objects go, in ``term``.
        stopping: set when it is to end.
        listing: as many permits as kinds may read lists at the same time.
        random: numbers in [0, 1), for pauses.
    """

    def __init__(
        self,
        kind: Kind,
        cluster: Cluster,
        catalogue: Catalogue,
        view: View,
        term: int,
        stopping: threading.Event,
        *,
        listing: threading.Semaphore,
        random: Callable[[], float] = unit_random,
    ) -> None:
        self._kind = kind
        self._cluster = cluster
        self._catalogue = catalogue
        self._view = view
        self._term = term
        self._stopping = stopping
        self._listing = listing
        self._random = random
        self._backoff = Backoff(random, last=LONGEST_PAUSE)
        self._lock = threading.Lock()
        self._stream: Stream | None = None
        self._listed = False
        self._version = ""

    def run(self) -> None:
        """List and watch until told to stop; what fails is noted in the view and tried again."""
        while not self._stopping.is_set():
            try:
                pause = self._round()
            except PermissionRefusedError as exc:
                self._note(exc.reason)
                pause = around(FORBIDDEN_PAUSE, self._random)
            except ConnectorError as exc:
                self._note(exc.reason)
                pause = self._backoff.pause()
                if not exc.retryable or self._backoff.attempts > _RESUMED:
                    self._version = ""
            except Exception as exc:  # noqa: BLE001 - a kind that comes in an unforeseen shape must not end the watch of the others
                if self._stopping.is_set():
                    return
                _LOG.error("a watch failed", exc_info=exc, extra={"action": "watch.failed", "facts": {"kind": self._kind.name}})
                self._note(describe_failure(exc))
                self._version, pause = "", self._backoff.pause()
            self._stopping.wait(pause)

    def read(self) -> None:
        """Read the list once, without watching; what fails is noted in the view."""
        try:
            path = self._catalogue.path(self._kind)
            self._view.note(self._term, self._kind.name, served=path is not None)
            if path is not None:
                self._list(path)
        except ConnectorError as exc:
            self._note(exc.reason)

    def interrupt(self) -> None:
        """End what the watch waits for, once ``stopping`` is set."""
        with self._lock:
            if self._stream is not None:
                self._stream.interrupt()

    def _round(self) -> float:
        """One list, if one is due, and one watch; how many seconds to pause after it."""
        path = self._catalogue.path(self._kind)
        self._view.note(self._term, self._kind.name, served=path is not None)
        if path is None:
            self._note("")
            self._stopping.wait(around(UNSERVED_PAUSE, self._random))
            self._catalogue.forget()
            return 0.0
        if not self._version:
            with self._listing:
                self._version = self._list(path)
        begun, version = time.monotonic(), self._version
        self._version = self._follow(path)
        if self._version and (self._version != version or time.monotonic() - begun > _SETTLED):
            self._backoff.reset()
            return 0.0
        return self._backoff.pause()  # what ends at once, whatever the reason, must not be asked for in a circle

    def _list(self, path: str) -> str:
        """Read the whole list into the view, page by page; the version that it is of."""
        seen: set[Key] = set()
        further, version = "", ""
        access = Access("list", self._kind.group, self._kind.name)
        if self._listed:
            self._view.count(self._kind.name, relists=1)
        while not self._stopping.is_set():
            params = {"limit": str(self._cluster.page_size)} | ({"continue": further} if further else {})
            answer = self._request(path, params | self._selector, access)
            if answer is None:  # the list expired while we were reading: what was read stands, and is compared with the next
                seen.clear()
                further = ""
                self._stopping.wait(self._backoff.pause())
                continue
            page = _decoded(answer, _Page)
            for raw in page.items or ():
                seen.add(self._put(raw, initial=not self._listed))
            further, version = page.metadata.further, page.metadata.version
            if not further:
                break
        if self._stopping.is_set():
            return ""
        self._view.keep(self._term, self._kind.name, seen)
        self._listed = True
        self._note("")
        return version

    def _follow(self, path: str) -> str:
        """Watch from the current version until the API server ends it; the version to go on from, empty when a new list is needed."""
        seconds = around(WATCH_SECONDS, self._random, share=0.25)
        params = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(int(seconds)),
        }
        access = Access("watch", self._kind.group, self._kind.name)
        self._view.count(self._kind.name, requests=1)
        expect = (_GONE, _NOT_FOUND, _BAD_REQUEST)
        with self._cluster.stream(path, access, params | self._selector, silence=seconds + _SILENCE, expect=expect) as stream:
            if stream.status in expect:
                return self._refused(stream.status)
            with self._lock:
                self._stream = stream
            try:
                if self._stopping.is_set():  # since before there was a stream to interrupt
                    return ""
                self._note("")
                for line in stream:
                    if self._stopping.is_set() or not self._take(line):
                        return ""
            finally:
                with self._lock:
                    self._stream = None
        return self._version

    def _take(self, line: bytes) -> bool:
        """Work on one line of a watch; whether the watch goes on from where it is."""
        came = _decoded(line, _WatchEvent)
        if came.type == "ERROR":
            status = msgspec.json.decode(came.object)
            code = int(status.get("code") or 0)
            if code == _GONE:
                return False
            raise explain_answer(code, str(status.get("message") or ""), Access("watch", self._kind.group, self._kind.name))
        if came.type == "BOOKMARK":
            self._version = str(msgspec.json.decode(came.object)["metadata"]["resourceVersion"])
        elif came.type == "DELETED":
            meta = msgspec.json.decode(came.object)["metadata"]
            self._view.remove(self._term, self._kind.name, key_of(meta))
            self._version = str(meta["resourceVersion"])
        elif came.type in ("ADDED", "MODIFIED"):
            self._put(came.object)
        return True

    def _put(self, raw: msgspec.Raw, *, initial: bool = False) -> Key:
        item: dict[str, Any] = self._kind.trim(msgspec.json.decode(raw))
        meta = item["metadata"]
        if not (meta.get("name") and meta.get("resourceVersion")):
            raise RuntimeUnavailableError("the Kubernetes API server sent an object without name or version")
        self._view.put(self._term, self._kind.name, item, initial=initial)
        if not initial and self._version:
            self._version = str(meta["resourceVersion"])
        return key_of(meta)

    def _request(self, path: str, params: dict[str, str], access: Access) -> bytes | None:
        """One page; None when the list has expired."""
        self._view.count(self._kind.name, requests=1)
        answer = self._cluster.request("GET", path, access, params=params, expect=(_GONE, _NOT_FOUND))
        if answer.status == _NOT_FOUND:
            self._refused(answer.status)
            raise ControlError(f"the Kubernetes API server does not have {path} any more")
        return None if answer.status == _GONE else answer.body

    def _refused(self, status: int) -> str:
        if status == _NOT_FOUND:
            self._catalogue.forget()
        return ""

    def _note(self, reason: str) -> None:
        if not self._stopping.is_set():
            self._view.note(self._term, self._kind.name, reason=reason)

    @property
    def _selector(self) -> dict[str, str]:
        return {"fieldSelector": self._kind.selector} if self._kind.selector else {}


class Watches:
    """The watches of all kinds of a view, from :meth:`start` to :meth:`stop`."""

    def __init__(self, cluster: Cluster, view: View) -> None:
        self._stopping = threading.Event()
        self.term = view.begin()
        catalogue, listing = Catalogue(cluster), threading.Semaphore(_LISTS_AT_ONCE)
        self._watches: Sequence[KindWatch] = [
            KindWatch(kind, cluster, catalogue, view, self.term, self._stopping, listing=listing) for kind in view.kinds
        ]
        self._threads = [
            threading.Thread(target=watch.run, name=f"irca-k8s-{kind.name}", daemon=True)
            for watch, kind in zip(self._watches, view.kinds, strict=True)
        ]
        self._view = view

    def start(self) -> None:
        """Begin to list and to watch."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """End it at once and forget what was seen; threads that wait for an answer end when it comes, and change nothing any more."""
        self._stopping.set()
        self._view.begin()
        for watch in self._watches:
            watch.interrupt()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def list_once(cluster: Cluster, view: View) -> None:
    """Read every kind once into the view, without watching: for an agent that collects without running.

    Kinds that cannot be read are noted in the view.
    """
    term, catalogue = view.begin(), Catalogue(cluster)
    stopping, listing = threading.Event(), threading.Semaphore()
    for kind in view.kinds:
        KindWatch(kind, cluster, catalogue, view, term, stopping, listing=listing).read()


def _decoded(text: bytes, shape: type[Shape]) -> Shape:
    try:
        return msgspec.json.decode(text, type=shape)
    except msgspec.DecodeError as exc:
        raise RuntimeUnavailableError(f"the Kubernetes API server's answer is not what it should be: {exc}") from exc
