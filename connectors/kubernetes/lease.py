"""Which of several pods leads: a Lease that its holder renews, and that another takes when it has stood unrenewed for too long.

Nobody's clock is trusted but one's own: a candidate counts from when it saw the Lease change, not from the times written in it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from connectors.core import log
from connectors.core.collector import describe_failure
from connectors.core.errors import ConnectorError
from connectors.kubernetes.access import LEASE_GROUP, Access

if TYPE_CHECKING:
    from connectors.kubernetes.cluster import Cluster

_LOG = logging.getLogger(__name__)
DURATION = 10.0
"""Seconds that a Lease holds unrenewed. With the looks of :data:`LOOK_EVERY` another leads 12 s after a leader was killed."""
RENEW_EVERY = 3.0
RENEW_WITHIN = 7.0
"""Seconds after its last renewal at which a leader stops leading by itself: before anybody else may begin."""
LOOK_EVERY = 2.0
_TIMEOUT = 4.0
_LONGEST_DURATION = 60
_CONFLICT, _NOT_FOUND = 409, 404
_OUTRUN = (_CONFLICT, _NOT_FOUND)
"""Another has written or removed it meanwhile."""


class Action(StrEnum):
    """What to do about the Lease now."""

    CREATE = "create"
    RENEW = "renew"
    TAKE = "take"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Seen:
    """A Lease as it was last seen, and since when it has been so (our own monotonic seconds)."""

    holder: str
    renewed: str
    duration: float
    since: float


class Standing(StrEnum):
    """How this pod stands: it leads; it led and does not know whether it still may; it stands by."""

    LEADING = "leading"
    SUSPENDED = "suspended"
    STANDBY = "standby"


def observe(previous: Seen | None, lease: Mapping[str, Any], now: float) -> Seen:
    """What a Lease says, seen at ``now``; one that has not changed since ``previous`` has been so since then."""
    spec = lease.get("spec") or {}
    try:
        duration = float(min(max(int(spec.get("leaseDurationSeconds") or 0), 1), _LONGEST_DURATION))
    except (TypeError, ValueError):
        duration = DURATION
    found = Seen(str(spec.get("holderIdentity") or ""), str(spec.get("renewTime") or ""), duration, now)
    if previous is not None and replace(previous, since=now) == found:
        return previous
    return found


def decide(seen: Seen | None, identity: str, now: float) -> Action:
    """What ``identity`` is to do about the Lease as seen (None: there is none) at ``now``."""
    if seen is None:
        return Action.CREATE
    if seen.holder == identity:
        return Action.RENEW
    if not seen.holder or now - seen.since >= seen.duration:
        return Action.TAKE
    return Action.WAIT


def lease_document(
    current: Mapping[str, Any] | None, name: str, namespace: str, identity: str, wall: float, *, release: bool = False
) -> dict[str, Any]:
    """The Lease to write: ``current`` (whose version guards against writing over another's) held by ``identity`` or, released, by nobody.

    ``wall`` is Unix seconds, for people who look at it.
    """
    spec = dict((current or {}).get("spec") or {})
    moment = datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    if spec.get("holderIdentity") != identity:
        spec["acquireTime"] = moment
        spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + (1 if current else 0)
    spec |= {"holderIdentity": "" if release else identity, "leaseDurationSeconds": int(DURATION), "renewTime": moment}
    if release:
        spec["leaseDurationSeconds"] = 1
    meta = dict((current or {}).get("metadata") or {"name": name, "namespace": namespace})
    meta.pop("managedFields", None)
    return {"apiVersion": f"{LEASE_GROUP}/v1", "kind": "Lease", "metadata": meta, "spec": spec}


def _renewed_at(seen: Seen, latest: float) -> float:
    try:
        return min(datetime.fromisoformat(seen.renewed).timestamp(), latest)
    except ValueError:
        return latest


class Elector:
    """Keeps a Lease, in a thread of its own.

    Args:
        cluster: where the Lease is.
        name: the Lease's, in our namespace.
        identity: who we are; no two pods that live at the same time may be the same.
        clock: Unix seconds, which are only shown.
        monotonic: seconds, which all decisions are made by.
    """

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        identity: str,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._name = name
        self.identity = identity
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._seen: Seen | None = None
        self._lease: Mapping[str, Any] | None = None
        self._held_until: float | None = None
        self._term = 0
        self._led_until: float | None = None
        self._reason = ""
        self._looked = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to stand for election."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="irca-k8s-lease", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop standing for election, and give the Lease up if we hold it, so that another need not wait."""
        self._stopping.set()
        thread, self._thread = self._thread, None
        if thread is None:
            return
        thread.join(_TIMEOUT / 2)
        with self._lock:
            held, self._held_until = self._held_until is not None, None
        if held and not thread.is_alive():
            self._release()

    @property
    def standing(self) -> tuple[Standing, int]:
        """How we stand now, and in which term: a number that changes whenever we lead after another may have led."""
        with self._lock:
            if self._held_until is None:
                return Standing.STANDBY, self._term
            return (Standing.LEADING if self._monotonic() < self._held_until else Standing.SUSPENDED), self._term

    @property
    def led_until(self) -> float | None:
        """When another, or we ourselves as another process, led last before our term (Unix seconds); None when nobody ever did.

        It is what the Lease says, but no later than when we saw it: a clock that is ahead would hide what happened since.
        """
        with self._lock:
            return self._led_until

    @property
    def looked(self) -> bool:
        """Whether the Lease has been looked at, with whatever result."""
        with self._lock:
            return self._looked

    @property
    def reason(self) -> str:
        """Why the Lease cannot be kept or looked at; empty while it can."""
        with self._lock:
            return self._reason

    @property
    def holder(self) -> str:
        """Who holds the Lease, as last seen; empty when nobody does."""
        with self._lock:
            return self._seen.holder if self._seen else ""

    def step(self) -> float:
        """Look at the Lease, do what is to be done, and say after how many seconds to do so again.

        Raises:
            ControlError: the API server is away or refuses.
        """
        self._look()
        action = decide(self._seen, self.identity, self._monotonic())
        if action is not Action.WAIT:
            self._write(action)
        with self._lock:
            if self._held_until is not None:
                return RENEW_EVERY
            left = LOOK_EVERY
            if self._seen is not None and self._seen.holder:
                left = self._seen.since + self._seen.duration - self._monotonic()
        return min(max(left, 0.1), LOOK_EVERY)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                pause, reason = self.step(), ""
            except Exception as exc:  # noqa: BLE001 - whatever goes wrong, we go on standing, and say why we do not lead
                pause, reason = LOOK_EVERY / 2, describe_failure(exc)
                if not isinstance(exc, ConnectorError):
                    _LOG.error("the lease could not be looked at", exc_info=exc, extra={"action": "lease.failed", "facts": {}})
            with self._lock:
                changed, self._reason = reason != self._reason, reason
                self._looked = True
            if changed and reason:
                log.entry(_LOG, logging.WARNING, "lease.failed", "the lease cannot be kept", lease=self._name, reason=reason)
            self._stopping.wait(pause)

    def _look(self) -> None:
        answer = self._cluster.request("GET", self._path, self._access("get"), expect=(_NOT_FOUND,), timeout=_TIMEOUT)
        lease = None if answer.status == _NOT_FOUND else answer.json()
        now = self._monotonic()
        with self._lock:
            self._lease = lease
            self._seen = None if lease is None else observe(self._seen, lease, now)
            # A Lease that somebody removed while we hold it is made again: if another does so first, we see its name.
            if self._held_until is not None and self._seen is not None and self._seen.holder != self.identity:
                self._held_until = None
                log.entry(_LOG, logging.WARNING, "lease.lost", "another leads now", lease=self._name, holder=self._seen.holder)

    def _write(self, action: Action) -> None:
        # The Lease holds from before the request, for nobody knows when in its course it was written.
        begun, before = self._monotonic(), self._seen
        document = lease_document(self._lease, self._name, self._cluster.namespace, self.identity, self._clock())
        method, path, verb = ("POST", self._collection, "create") if action is Action.CREATE else ("PUT", self._path, "update")
        answer = self._cluster.request(method, path, self._access(verb), document=document, expect=_OUTRUN, timeout=_TIMEOUT)
        if answer.status in _OUTRUN:
            return  # another was quicker: the next look shows who
        lease = answer.json()
        with self._lock:
            self._lease = lease
            self._seen = observe(self._seen, lease, self._monotonic())
            if self._held_until is None:
                self._term += 1
                self._led_until = None if before is None else _renewed_at(before, self._clock() - (begun - before.since))
                log.entry(_LOG, logging.INFO, "lease.leading", "this pod leads", lease=self._name, identity=self.identity)
            self._held_until = begun + RENEW_WITHIN

    def _release(self) -> None:
        try:
            self._look()
            if self._seen is not None and self._seen.holder == self.identity:
                document = lease_document(self._lease, self._name, self._cluster.namespace, self.identity, self._clock(), release=True)
                self._cluster.request("PUT", self._path, self._access("update"), document=document, expect=_OUTRUN, timeout=_TIMEOUT)
        except ConnectorError as exc:
            log.entry(_LOG, logging.INFO, "lease.release", "the lease could not be given up", lease=self._name, reason=exc.reason)

    @property
    def _collection(self) -> str:
        return f"/apis/{LEASE_GROUP}/v1/namespaces/{self._cluster.namespace}/leases"

    @property
    def _path(self) -> str:
        return f"{self._collection}/{self._name}"

    def _access(self, verb: str) -> Access:
        return Access(verb, LEASE_GROUP, "leases", namespaced=True)
