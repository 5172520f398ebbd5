"""A cluster as its agent reports it, read from the metric store: what the pages and the API show of it.

The series are read from the store as they came, in a fixed number of selections however many objects there are: thousands of pods make
tens of thousands of series, and to look at them through PromQL takes several times as long. One pod of the agent
leads and reports the cluster, and another does when that one is gone; so series are asked for by agent, over all of its pods, and of
each figure the newest sample counts. What is wrong is worked out from figures; what changed is in the events.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol, cast

from app.telemetry import cluster_rows
from app.telemetry.cluster_facts import (
    QUOTA_NAMES,
    Owner,
    figures,
    pod_facts,
)
from app.telemetry.cluster_views import (
    DegradedView,
    NamespaceView,
    NodeView,
    PodView,
    WorkloadView,
)
from app.telemetry.store import NAME, Matcher, MetricStore, SeriesData

LOOKBACK = 300.0
"""Seconds that the cluster's last report is looked for; an agent silent for longer is asked about as of when it was last heard."""
MISSED_INTERVALS = 3
"""Collection intervals without a sample after which an object is gone, counted back from the newest sample of its kind."""
MOST_ASIDE = 400
"""Pods that are asked about on their own; where more are not simply running and ready, all of them are asked about."""
MANY_PODS = 1000
"""Pods from which on what was read is kept for half a collection interval: nothing new is likely to be there before."""
_MOST_KEPT = 8
RESTART_WINDOW = 900
"""Seconds within which restarts are recent."""
_RESTARTS = "k8s.container.restart.count"
_USAGE = ("k8s.pod.cpu.usage", "k8s.pod.memory.working_set")
_PHASE = "k8s.pod.status.phase"
_ASIDE_NAMES = [
    "k8s.pod.status.phase",
    "k8s.pod.status.reason",
    "k8s.pod.uptime",
    "irca.k8s.pod.unschedulable",
    "k8s.container.status.reason",
    "irca.k8s.container.last_termination.reason",
]
_POD_NAMES = [*_ASIDE_NAMES, _RESTARTS, "k8s.container.ready"]
_DETAIL_NAMES = [
    "k8s.container.status.state",
    "k8s.container.cpu.limit.desired",
    "k8s.container.memory.limit.desired",
    "irca.k8s.container.last_termination.exit_code",
]
_OBJECT_NAMES = [
    "k8s.node.condition.status",
    "irca.k8s.node.unschedulable",
    "k8s.node.cpu.allocatable",
    "k8s.node.memory.allocatable",
    "k8s.node.pod.allocatable",
    "k8s.node.cpu.usage",
    "k8s.node.memory.working_set",
    "k8s.node.filesystem.usage",
    "k8s.node.filesystem.capacity",
    "k8s.namespace.phase",
    *(name for names in cluster_rows.COUNTS.values() for name in names if name),
    "k8s.job.pod.active",
    "k8s.job.pod.failed",
    "k8s.cronjob.job.active",
    *QUOTA_NAMES,
]
_SUBJECTS = {
    "resourcequotas": "quotas",
    "replicasets": "replica sets",
    "statefulsets": "stateful sets",
    "daemonsets": "daemon sets",
    "cronjobs": "cron jobs",
    "horizontalpodautoscalers": "autoscalers",
    "persistentvolumeclaims": "volume claims",
    "poddisruptionbudgets": "disruption budgets",
    "kubelet": "the use of CPU and memory",
}
_COLLECTOR = re.compile(r"(?:^|; )(kubernetes\.\w+): ")


class Told(Protocol):
    """What a pod of the agent says of its collectors that fail."""

    @property
    def instance_id(self) -> str:
        """The pod's instance."""
        ...

    @property
    def last_error(self) -> str:
        """``kubernetes.pods: why; kubernetes.nodes: why``."""
        ...


class Described(Protocol):
    """What the fleet knows of a cluster."""

    @property
    def agent_ids(self) -> list[str]:
        """The agents in it."""
        ...

    @property
    def instance_ids(self) -> list[str]:
        """Their pods in it, where they have others elsewhere."""
        ...

    @property
    def last_seen_at(self) -> datetime | None:
        """When one of them was last heard."""
        ...

    @property
    def collect_interval(self) -> float:
        """Seconds between collections."""
        ...

    @property
    def collectors(self) -> Sequence[Told]:
        """What the pods say of their collectors that fail."""
        ...


@dataclass(frozen=True, slots=True)
class ClusterScope:
    """Whose series are a cluster's.

    ``instances`` narrows them where an agent has pods in several clusters; ``interval`` is in seconds; ``reasons`` has what each of the
    agent's pods says of its collectors that fail, by instance and collector.
    """

    agents: tuple[str, ...]
    instances: tuple[str, ...] = ()
    last_seen_at: datetime | None = None
    interval: float = 10.0
    reasons: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Described) -> ClusterScope:
        """The scope of a cluster that the fleet knows."""
        reasons = {(told.instance_id, name): why for told in found.collectors for name, why in collector_reasons(told.last_error).items()}
        return cls(tuple(found.agent_ids), tuple(found.instance_ids), found.last_seen_at, found.collect_interval, reasons)

    @property
    def identity(self) -> tuple[object, ...]:
        """What tells apart the answers that are read for it, but for the time."""
        return self.agents, self.instances, self.interval, frozenset(self.reasons.items())

    @property
    def matchers(self) -> list[Matcher]:
        """What these series have in common."""
        agents = _any_of("agent", self.agents)
        return [agents, _any_of("instance", self.instances)] if self.instances else [agents]


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster as of ``newest``, the time of its newest sample; None when there is none."""

    nodes: Sequence[NodeView] = ()
    namespaces: Sequence[NamespaceView] = ()
    workloads: Sequence[WorkloadView] = ()
    phases: Mapping[str, int] = field(default_factory=dict)
    degraded: Sequence[DegradedView] = ()
    newest: datetime | None = None


@dataclass(frozen=True, slots=True)
class Pods:
    """Some of a cluster's pods, and what of the cluster its agent cannot see."""

    items: Sequence[PodView] = ()
    degraded: Sequence[DegradedView] = ()


@dataclass(frozen=True, slots=True)
class _When:
    """The time as of which is asked, how far back, and which collectors fail."""

    at_ms: int
    seconds: float
    newest: float | None
    degraded: Sequence[DegradedView]


class ClusterService:
    """Answers questions about clusters."""

    def __init__(self, store: MetricStore, *, max_samples: int, clock: Callable[[], float]) -> None:
        self._store = store
        self._max_samples = max_samples
        self._clock = clock
        self._kept: dict[tuple[object, ...], tuple[float, Any]] = {}

    async def read(self, scope: ClusterScope, *, usage: bool = False) -> Cluster:
        """The cluster's nodes, namespaces and workloads, in five selections; with ``usage`` a sixth adds up what namespaces use.

        Raises:
            PlatformError: the store failed, or there is more to read than a query may.
        """
        key = (*scope.identity, "cluster", usage)
        if (kept := self._recent(key, scope)) is not None:
            return cast("Cluster", kept)
        found = await self._read(scope, usage=usage)
        self._keep(key, found, sum(found.phases.values()))
        return found

    def forget(self) -> None:
        """Let go of what was read and kept."""
        self._kept.clear()

    def _recent(self, key: tuple[object, ...], scope: ClusterScope) -> Any:
        """What was read under this key less than half a collection interval ago; None when there is nothing."""
        since, kept = self._kept.get(key, (0.0, None))
        return kept if 0 <= self._clock() - since < scope.interval / 2 else None

    def _keep(self, key: tuple[object, ...], found: Any, pods: int) -> None:
        self._kept.pop(key, None)
        if pods >= MANY_PODS:
            self._kept[key] = self._clock(), found
        while len(self._kept) > _MOST_KEPT:
            self._kept.pop(next(iter(self._kept)))

    async def workload(self, scope: ClusterScope, owner: Owner) -> WorkloadView | None:
        """One workload; None when it is not reported (any more).

        Raises:
            PlatformError: as :meth:`read`.
        """
        found = await self._read(scope, *_of(owner))
        return next((one for one in found.workloads if (one.kind, one.namespace, one.name) == owner), None)

    async def _read(self, scope: ClusterScope, *narrowed: Matcher, usage: bool = False) -> Cluster:
        when = await self._when(scope)
        objects = await self._samples(scope, _OBJECT_NAMES, when, *narrowed)
        plain, more, before = await self._every_pod(scope, when, *narrowed)
        measured = await self._samples(scope, _USAGE, when) if usage else []

        def rows() -> Cluster:
            window = MISSED_INTERVALS * scope.interval
            facts = cluster_rows.present(pod_facts([*plain, *more], before), window)
            groups = cluster_rows.grouped(objects, window)
            problems = {pod.uid: pod.problem() for pod in facts}
            newest = max((pod.sampled for pod in facts), default=when.newest)
            in_namespaces = [*groups.get("namespace", ()), *groups.get("resourcequota", ())]
            return Cluster(
                nodes=list(cluster_rows.nodes(groups.get("node", ()), facts)),
                namespaces=list(cluster_rows.namespaces(in_namespaces, facts, problems, figures(measured, ("k8s.pod.uid",), {}))),
                workloads=list(cluster_rows.workloads(groups, facts, problems)),
                phases=cluster_rows.phases(facts),
                degraded=when.degraded,
                newest=None if newest is None or not (facts or objects) else datetime.fromtimestamp(newest, UTC),
            )

        return await asyncio.to_thread(rows)

    async def pods(self, scope: ClusterScope, *, owner: Owner | None = None, namespace: str = "") -> Pods:
        """The pods of a workload, of a namespace, or all of them, each with its containers, in four selections.

        Raises:
            PlatformError: as :meth:`read`.
        """
        key = (*scope.identity, "pods", owner, namespace)
        if (kept := self._recent(key, scope)) is not None:
            return cast("Pods", kept)
        when = await self._when(scope)
        in_namespace = [Matcher("k8s.namespace.name", "=", namespace)] if namespace else []
        narrowed = _of(owner) if owner is not None else in_namespace
        series = await self._samples(scope, [*_POD_NAMES, *_DETAIL_NAMES], when, *narrowed)
        before = await self._restarts_before(scope, when, *narrowed)
        uids = {one.labels.get("k8s.pod.uid", "") for one in series}
        measured = await self._samples(scope, _USAGE, when, *in_namespace, *_only(uids)) if uids else []

        def rows() -> list[PodView]:
            facts = cluster_rows.present(pod_facts(series, before), MISSED_INTERVALS * scope.interval)
            usage = figures(measured, ("k8s.pod.uid",), {})
            return [cluster_rows.pod_view(pod, usage.get((pod.uid,))) for pod in facts if owner is None or pod.owner == owner]

        found = Pods(await asyncio.to_thread(rows), when.degraded)
        self._keep(key, found, len(found.items))
        return found

    async def node_names(self, scope: ClusterScope) -> list[str]:
        """The cluster's nodes; empty while they cannot be read."""
        when = await self._when(scope)
        if any(one.collector == "kubernetes.nodes" for one in when.degraded):
            return []
        names = ["irca.k8s.node.unschedulable", "k8s.node.pod.allocatable"]
        found = cluster_rows.grouped(await self._samples(scope, names, when), MISSED_INTERVALS * scope.interval)
        return sorted({of.labels.get("k8s.node.name", "") for of in found.get("node", ())} - {""})

    async def _when(self, scope: ClusterScope) -> _When:
        now = self._clock()
        seen = scope.last_seen_at.timestamp() if scope.last_seen_at else now
        asked = seen + 1 if now - seen > LOOKBACK else now
        matchers = [*scope.matchers, _any_of(NAME, ["irca.collector.success"]), Matcher("irca.collector.name", "=~", r"kubernetes\..+")]
        end = int(asked * 1000)
        collectors = await self._store.select(matchers, end - round(LOOKBACK * 1000), end, max_samples=self._max_samples)
        ends = {(one.labels["irca.collector.name"], one.labels.get("instance", "")): one for one in collectors}
        newest = max((int(one.times[-1]) / 1000 for one in collectors), default=None)
        if newest is None:
            return _When(int(asked * 1000), LOOKBACK, None, ())
        window = MISSED_INTERVALS * scope.interval
        degraded, seconds = [], window
        for (collector, instance), one in sorted(_newest_of_each(ends).items()):
            time = int(one.times[-1]) / 1000
            if one.values[-1] or time < newest - window:
                continue
            degraded.append(_degraded(collector, scope.reasons.get((instance, collector), "")))
            succeeded = one.times[one.values > 0]
            seconds = max(seconds, newest - int(succeeded[-1]) / 1000 + window) if len(succeeded) else LOOKBACK
        return _When(int(newest * 1000), min(seconds, LOOKBACK), newest, list({one.collector: one for one in degraded}.values()))

    async def _every_pod(
        self, scope: ClusterScope, when: _When, *narrowed: Matcher
    ) -> tuple[Sequence[SeriesData], Sequence[SeriesData], Mapping[tuple[str, str], float]]:
        """Series of every pod, more of those that are not simply running and ready, and the restarts of 15 minutes ago."""
        running = Matcher(_PHASE, "=~", "|Running")  # of the phases this one; metrics that are of no phase, too
        plain = await self._samples(scope, [_PHASE, _RESTARTS, "k8s.container.ready"], when, running, *narrowed)
        aside: set[str] = set()
        restarted: set[str] = set()
        for one in plain:
            if one.labels[NAME] != _RESTARTS and not one.values[-1]:
                aside.add(one.labels.get("k8s.pod.uid", ""))
            elif one.labels[NAME] == _RESTARTS and one.values[-1]:
                restarted.add(one.labels.get("k8s.pod.uid", ""))
        more = await self._samples(scope, _ASIDE_NAMES, when, *_only(aside | restarted)) if aside or restarted else []
        before = await self._restarts_before(scope, when, *_only(restarted)) if restarted else {}
        return plain, more, before

    async def _restarts_before(self, scope: ClusterScope, when: _When, *narrowed: Matcher) -> dict[tuple[str, str], float]:
        """The restarts of 15 minutes ago, by pod UID and container."""
        earlier = replace(when, at_ms=when.at_ms - RESTART_WINDOW * 1000)
        found: dict[tuple[str, str], float] = {}
        for one in await self._samples(scope, [_RESTARTS], earlier, *narrowed):
            key = one.labels.get("k8s.pod.uid", ""), one.labels.get("k8s.container.name", "")
            found[key] = max(found.get(key, 0.0), float(one.values[-1]))
        return found

    async def _samples(self, scope: ClusterScope, names: Iterable[str], when: _When, *narrowed: Matcher) -> Sequence[SeriesData]:
        matchers = [_any_of(NAME, names), *scope.matchers, *narrowed]
        start = when.at_ms - round(when.seconds * 1000) + 1
        return await self._store.select(matchers, start, when.at_ms, max_samples=self._max_samples)


def _any_of(label: str, values: Iterable[str]) -> Matcher:
    return Matcher(label, "=~", "|".join(re.escape(value) if "." in value else value for value in values))


def collector_reasons(last_error: str) -> dict[str, str]:
    """What a health report says of the collectors that fail, by collector."""
    parts = _COLLECTOR.split(last_error)
    return dict(zip(parts[1::2], (reason.strip() for reason in parts[2::2]), strict=True))


def _of(owner: Owner) -> list[Matcher]:
    """What is of a workload: itself, its pods, and the jobs of a cron job."""
    kind, namespace, name = owner
    return [Matcher("k8s.namespace.name", "=", namespace), Matcher(f"k8s.{kind.value}.name", "=", name)]


def _only(uids: set[str]) -> list[Matcher]:
    """What leaves other pods out; nothing where these are too many."""
    return [_any_of("k8s.pod.uid", sorted(uids))] if len(uids) <= MOST_ASIDE else []


def _newest_of_each(ends: Mapping[tuple[str, str], SeriesData]) -> dict[tuple[str, str], SeriesData]:
    """Of each collector the pod that ran it last; of the kubelet's, which runs on every node, each pod."""
    newest: dict[str, tuple[str, str]] = {}
    for key, one in ends.items():
        known = newest.get(key[0])
        if known is None or one.times[-1] > ends[known].times[-1]:
            newest[key[0]] = key
    return {key: one for key, one in ends.items() if key[0] == "kubernetes.kubelet" or newest[key[0]] == key}


def _degraded(collector: str, reason: str) -> DegradedView:
    name = collector.removeprefix("kubernetes.")
    return DegradedView(
        collector=collector, subject=_SUBJECTS.get(name, name), reason=reason or "the agent says no more than that it fails"
    )
