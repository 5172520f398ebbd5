"""The cluster's changes as events: what the watches tell, made into findings, each told once, in bounded numbers.

Called from the one thread that tells the view's changes. What it remembers is in memory, bounded, and ends with the term of leadership. A
new leader has nothing to compare with: what happened while nobody led is told where objects say when it happened (``since``), under the
same ids as the former leader would have used. Not found that way:

- what differs of a config map, secret or role that was changed meanwhile: that it was changed is told, where the cluster wrote down when
  (1.20 does so only when keys come or go);
- changes of autoscalers, quotas, budgets, cron jobs, taints and numbers of replicas, and whatever was deleted;
- of stateful sets and daemon sets, a rollout that began and ended meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from connectors.core.telemetry import Attributes, Event
from connectors.kubernetes.change_event import NANO, Finding, created, dropped_event, to_event
from connectors.kubernetes.cluster_events import Warnings
from connectors.kubernetes.config import K8sAgentConfig
from connectors.kubernetes.event_limit import EventLimit
from connectors.kubernetes.lru import Recent
from connectors.kubernetes.node_changes import node_changes
from connectors.kubernetes.object_changes import CHANGES, DESCRIBED, HELM_RELEASE, SECRETS, is_leaving
from connectors.kubernetes.pod_reasons import PodReasons
from connectors.kubernetes.resources import Json
from connectors.kubernetes.rollouts import KINDS as ROLLED_OUT
from connectors.kubernetes.rollouts import Rollouts
from connectors.kubernetes.view import View
from connectors.kubernetes.workload_changes import KINDS as WORKLOADS
from connectors.kubernetes.workload_changes import WorkloadChanges

MARGIN = 5.0
"""Seconds that are looked back beyond the former leader's last sign of life: clocks differ, and what is told twice is stored once."""
LONGEST = 86_400.0
"""Seconds that are looked back at most."""
MOST_TOLD = 10_000
"""Ids of events that are remembered, so that none is sent twice."""

_CLUSTER_UID = "k8s.cluster.uid"
_WATCHED = "events of the cluster"


class ChangeReporter:
    """Makes events of the changes of one term of leadership.

    Args:
        view: what the watches hold.
        config: the agent's options; secrets are told of where the option ``features`` says so.
        cluster_resource: the agent's resource, for the cluster's UID.
        emit: takes the events.
        clock: Unix nanoseconds.
        since: until when another leader has told changes (Unix seconds), as far as anybody knows: the last time it renewed its Lease. What
            happened after it is told although it was there when we came. None: whatever is there is no news.
    """

    def __init__(
        self,
        view: View,
        config: K8sAgentConfig,
        cluster_resource: Callable[[], Attributes],
        emit: Callable[[Event], None],
        *,
        clock: Callable[[], int] = time.time_ns,
        since: float | None = None,
    ) -> None:
        self._view = view
        self._features = frozenset(config.features)
        self._resource = cluster_resource
        self._emit = emit
        self._clock = clock
        self._since = None if since is None else max(since - MARGIN, clock() / NANO - LONGEST)
        self._cluster = ""
        self._told: Recent[str, None] = Recent(MOST_TOLD)
        self._limit = EventLimit()
        self._dropped = view.state("events").dropped
        self._rollouts = Rollouts(view.get, view.all, self._replica_sets_known, self._since)
        self._workloads = WorkloadChanges(view.all)
        self._pods = PodReasons()
        self._warnings = Warnings(view.get, self._since)

    def __call__(self, kind: str, before: Json | None, after: Json | None, initial: bool) -> None:
        """Take a change, as :class:`~connectors.kubernetes.view.View` tells it. ``initial`` objects are remembered, not told."""
        now = self._clock() / NANO
        if kind == "events":
            if after is not None:
                self._tell(self._warnings.take(after, initial=initial, now=now))
        elif initial and after is not None:
            self._tell(self._recent(kind, after, now))
        else:
            self._tell(self._changes(kind, before, after, now))

    def tick(self, now: float) -> None:
        """Report what was waited with; ``now`` is Unix seconds. To be called about once a second."""
        self._flush(now, at_once=False)

    def close(self) -> None:
        """Report everything that was waited with, before the end."""
        self._flush(self._clock() / NANO, at_once=True)

    def _flush(self, now: float, *, at_once: bool) -> None:
        self._tell(self._rollouts.tick(now))
        self._tell(self._workloads.tick(now, at_once=at_once))
        self._tell(self._warnings.tick(now, at_once=at_once))
        dropped = self._view.state("events").dropped
        if dropped > self._dropped:
            self._limit.count(_WATCHED, dropped - self._dropped, now)
            self._dropped = dropped
        if settled := self._limit.settle(now, at_once=at_once):
            counts, since = settled
            self._emit(dropped_event(self._cluster_uid(), counts, int(since * NANO), int(now * NANO)))

    def _changes(self, kind: str, before: Json | None, after: Json | None, now: float) -> Iterator[Finding]:
        """What a change means."""
        if after is None and before is not None and self._goes_with_namespace(kind, before):
            # One event says it: that the namespace is deleted.
            if kind in ROLLED_OUT:
                yield from self._rollouts.take(kind, before, None, initial=False, now=now)
            return
        if kind in WORKLOADS:
            yield from self._workloads.take(kind, before, after, now)
        if kind in ROLLED_OUT:
            yield from self._rollouts.take(kind, before, after, initial=False, now=now)
        elif kind == "pods":
            yield from self._pods.take(before, after)
        elif kind == "nodes":
            yield from node_changes(before, after)
        elif kind in CHANGES and (kind != "secrets" or "secrets" in self._features):
            yield from CHANGES[kind](before, after)

    def _recent(self, kind: str, after: Json, now: float) -> Iterator[Finding]:
        """What happened to an object that was there when we came, as far as it is newer than what a former leader has told."""
        found: Iterable[Finding] = ()
        if kind in ROLLED_OUT:
            found = self._rollouts.take(kind, None, after, initial=True, now=now)
            yield from found  # which knows by itself what is new
            found = self._workloads.take(kind, None, after, now)
        else:
            found = self._changes(kind, None, after, now)
        fresh = [finding for finding in found if self._is_fresh(finding.time if finding.time is not None else created(after))]
        yield from fresh
        described = SECRETS if kind == "secrets" else DESCRIBED.get(kind)
        if not fresh and described is not None and after.get("type") != HELM_RELEASE and self._is_wanted(kind):
            unseen = described.changed_unseen(after)
            if unseen is not None and self._is_fresh(unseen.time):
                yield unseen

    def _is_wanted(self, kind: str) -> bool:
        return kind != "secrets" or "secrets" in self._features

    def _is_fresh(self, when: float | None) -> bool:
        return self._since is not None and when is not None and when >= self._since

    def _goes_with_namespace(self, kind: str, item: Json) -> bool:
        namespace = (item.get("metadata") or {}).get("namespace")
        if not namespace or kind == "pods":
            return False
        held = self._view.get("namespaces", "", str(namespace))
        return is_leaving(held) if held is not None else self._view.state("namespaces").synced

    def _replica_sets_known(self) -> bool:
        state = self._view.state("replicasets")
        return state.synced or not state.served

    def _tell(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            now = self._clock()
            event = to_event(finding, self._cluster_uid(), self._view.get, now)
            if event.id in self._told:
                continue
            about = str((finding.item.get("metadata") or {}).get("uid") or "")
            if self._limit.admits(finding.what, about, now / NANO):
                self._told.put(event.id, None)
                self._emit(event)

    def _cluster_uid(self) -> str:
        if not self._cluster:
            self._cluster = str(self._resource().get(_CLUSTER_UID) or "")
        return self._cluster
