"""What the agent knows of the cluster: the trimmed objects of each watched kind, and who is told of each change, in order.

Objects are held as JSON text and read when they are looked at: thousands of pods take a few megabytes that way.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import msgspec

from connectors.core import log
from connectors.core.collector import describe_failure
from connectors.kubernetes.kinds import Kind

_LOG = logging.getLogger(__name__)
MAX_WAITING = 10_000
"""Changes that wait for the listeners. Whoever watches a stored kind waits for room; events of the cluster are counted and left out."""
MAX_KNOWN = 20_000
"""Objects of a kind that is not stored, of which the last version is remembered."""
BATCH = 100
"""Changes that are told between two looks at whether they still may be."""

Json = Mapping[str, Any]
Listener = Callable[[str, Json | None, Json | None, bool], None]
"""Called with a kind's name, the object before and after (None where there was or is none), and whether it belongs to the first list."""
Key = tuple[str, str]
"""An object's namespace (empty where it has none) and name."""


@dataclass(frozen=True, slots=True)
class KindState:
    """How the watch of one kind fares.

    ``served`` is false for a kind that is not watched, or that the cluster does not have; ``synced`` says that a whole list was read;
    ``reason`` is why it is degraded, empty while it is not; ``down`` says that the watch itself is, so that what is held may be out of
    date; ``requests`` and ``relists`` count since the agent's start, ``dropped`` the events that found no room.
    """

    name: str
    served: bool = False
    synced: bool = False
    reason: str = ""
    count: int = 0
    requests: int = 0
    relists: int = 0
    dropped: int = 0
    down: bool = False


@dataclass(slots=True)
class _Held:
    """One kind's objects (key -> uid, version, text) and figures."""

    kind: Kind
    served: bool = True
    synced: bool = False
    reason: str = ""
    listener_reason: str = ""
    requests: int = 0
    relists: int = 0
    dropped: int = 0
    entries: dict[Key, tuple[str, str, bytes]] = field(default_factory=dict)
    versions: OrderedDict[str, str] = field(default_factory=OrderedDict)


class Objects(Sequence[Json]):
    """A snapshot of objects, each read from its text when it is looked at."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, index: int) -> Json: ...

    @overload
    def __getitem__(self, index: slice) -> Objects: ...

    def __getitem__(self, index: int | slice) -> Json | Objects:
        if isinstance(index, slice):
            return Objects(self._texts[index])
        return _read(self._texts[index])

    def __iter__(self) -> Iterator[Json]:
        return map(_read, self._texts)


class View:
    """The watched objects. Watching threads write, one thread tells the listeners (:meth:`tell`), anyone reads."""

    def __init__(self, kinds: Iterable[Kind], *, max_waiting: int = MAX_WAITING) -> None:
        self._held = {kind.name: _Held(kind) for kind in kinds}
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._came = threading.Condition(self._lock)
        self._queue: deque[tuple[str, bytes | None, bytes | None, bool]] = deque()
        self._listeners: list[Listener] = []
        self._term = 0

    # Reading

    @property
    def kinds(self) -> Sequence[Kind]:
        """The kinds that are watched."""
        return [held.kind for held in self._held.values()]

    def all(self, kind_name: str) -> Sequence[Json]:
        """The objects of a kind as they are now; none of a kind that is not watched or not stored."""
        held = self._held.get(kind_name)
        if held is None:
            return Objects(())
        with self._lock:
            return Objects([text for _, _, text in held.entries.values()])

    def get(self, kind_name: str, namespace: str, name: str) -> Json | None:
        """One object; ``namespace`` is empty for kinds without."""
        held = self._held.get(kind_name)
        if held is None:
            return None
        with self._lock:
            entry = held.entries.get((namespace, name))
        return _read(entry[2]) if entry else None

    def state(self, kind_name: str) -> KindState:
        """How the watch of this kind fares."""
        held = self._held.get(kind_name)
        if held is None:
            return KindState(kind_name)
        with self._lock:
            return KindState(
                name=kind_name,
                served=held.served,
                synced=held.synced,
                reason=held.reason or held.listener_reason,
                count=len(held.entries),
                requests=held.requests,
                relists=held.relists,
                dropped=held.dropped,
                down=bool(held.reason),
            )

    # Telling

    def listen(self, listener: Listener) -> None:
        """Tell ``listener`` of every change from now on."""
        self._listeners.append(listener)

    def forget(self, listener: Listener) -> None:
        """Tell ``listener`` no more."""
        self._listeners.remove(listener)

    def wait(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for something to tell; whether there is."""
        with self._lock:
            return bool(self._queue) or self._came.wait(timeout)

    def tell(self, timeout: float) -> int:
        """Tell the listeners what waits, at most :data:`BATCH` changes; wait up to ``timeout`` seconds for the first. How many it were.

        A listener that fails misses that one change; its kind is degraded until it takes one again.
        """
        with self._lock:
            if not self._queue:
                self._came.wait(timeout)
            batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            self._room.notify_all()
        for kind_name, before, after, initial in batch:
            self._tell_one(kind_name, _read(before) if before else None, _read(after) if after else None, initial)
        return len(batch)

    @property
    def waiting(self) -> int:
        """How many changes wait to be told."""
        return len(self._queue)

    def _tell_one(self, kind_name: str, before: Json | None, after: Json | None, initial: bool) -> None:
        held, failed = self._held[kind_name], ""
        for listener in list(self._listeners):
            try:
                listener(kind_name, before, after, initial)
            except Exception as exc:  # noqa: BLE001 - one object that a listener stumbles over must not end the watch of all others
                failed = f"a change could not be worked on: {describe_failure(exc)}"
                if failed != held.listener_reason:
                    facts = {"action": "watch.listener", "facts": {"kind": kind_name}}
                    _LOG.error("a change could not be worked on", exc_info=exc, extra=facts)
        held.listener_reason = failed

    # Writing

    def begin(self) -> int:
        """Forget every object and what waits to be told; the number of the term that begins. Writers of earlier terms are ignored."""
        with self._lock:
            self._term += 1
            self._queue.clear()
            for held in self._held.values():
                held.entries.clear()
                held.versions.clear()
                held.synced, held.served = False, True
                held.reason = held.listener_reason = ""
            self._room.notify_all()
            return self._term

    def put(self, term: int, kind_name: str, item: Json, *, initial: bool = False) -> None:
        """An object (trimmed) as it is now. Waits for room where too much waits to be told."""
        held, meta = self._held[kind_name], item["metadata"]
        key, uid, version = key_of(meta), str(meta.get("uid") or ""), str(meta.get("resourceVersion") or "")
        text = msgspec.json.encode(item)
        with self._lock:
            if term != self._term:
                return
            if not held.kind.stored:
                self._put_passing(held, uid, version, text, initial)
                return
            known = held.entries.get(key)
            held.entries[key] = (uid, version, text)
            if known is None:
                self._enqueue(term, kind_name, None, text, initial)
            elif known[0] != uid:  # made again under its old name, and nobody saw it go
                self._enqueue(term, kind_name, known[2], None, False)
                self._enqueue(term, kind_name, None, text, False)
            elif known[1] != version and _differs(known[2], item):
                self._enqueue(term, kind_name, known[2], text, False)

    def remove(self, term: int, kind_name: str, key: Key) -> None:
        """An object is gone."""
        with self._lock:
            held = self._held[kind_name]
            if term == self._term and (known := held.entries.pop(key, None)):
                self._enqueue(term, kind_name, known[2], None, False)

    def keep(self, term: int, kind_name: str, keys: set[Key]) -> None:
        """A whole list has been read: it held these objects, and those that it did not hold are gone."""
        held = self._held[kind_name]
        with self._lock:
            gone = [key for key in held.entries if key not in keys] if term == self._term else []
        for key in gone:
            self.remove(term, kind_name, key)
        with self._lock:
            held.synced = held.synced or term == self._term

    def note(self, term: int, kind_name: str, *, reason: str | None = None, served: bool | None = None) -> None:
        """Record why a kind is degraded (empty: it is not), or whether the cluster has it."""
        held = self._held[kind_name]
        with self._lock:
            if term != self._term:
                return
            changed, held.reason = reason is not None and reason != held.reason, held.reason if reason is None else reason
            held.served = held.served if served is None else served
        if changed and reason:
            log.entry(_LOG, logging.WARNING, "watch.degraded", "a kind cannot be watched", kind=kind_name, reason=reason)
        elif changed:
            log.entry(_LOG, logging.INFO, "watch.recovered", "a kind is watched again", kind=kind_name)

    def count(self, kind_name: str, *, requests: int = 0, relists: int = 0) -> None:
        """Add to a kind's figures."""
        with self._lock:
            self._held[kind_name].requests += requests
            self._held[kind_name].relists += relists

    def _put_passing(self, held: _Held, uid: str, version: str, text: bytes, initial: bool) -> None:
        if held.versions.get(uid) == version:
            return
        held.versions[uid] = version
        held.versions.move_to_end(uid)
        while len(held.versions) > MAX_KNOWN:
            held.versions.popitem(last=False)
        if len(self._queue) >= self._max_waiting:
            held.dropped += 1
            return
        self._queue.append((held.kind.name, None, text, initial))
        self._came.notify()

    def _enqueue(self, term: int, kind_name: str, before: bytes | None, after: bytes | None, initial: bool) -> None:
        if not self._listeners:
            return
        # A term that ends empties the queue and wakes everybody up.
        self._room.wait_for(lambda: len(self._queue) < self._max_waiting or term != self._term)
        if term == self._term:
            self._queue.append((kind_name, before, after, initial))
            self._came.notify()


def key_of(meta: Json) -> Key:
    """Where an object with this metadata is held."""
    return str(meta.get("namespace") or ""), str(meta.get("name") or "")


def _read(text: bytes) -> dict[str, Any]:
    return msgspec.json.decode(text, type=dict[str, Any])


def _differs(text: bytes, item: Json) -> bool:
    """Whether anything differs but the version and who wrote last."""
    return _substance(_read(text)) != _substance(item)


def _substance(item: Json) -> dict[str, Any]:
    meta = {key: value for key, value in item["metadata"].items() if key not in ("resourceVersion", "managedFields")}
    return {**item, "metadata": meta}
