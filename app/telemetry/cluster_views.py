"""What the API and the pages show of a cluster: nodes, namespaces with their quotas, workloads, pods; and how they can be listed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TypeVar

from pydantic import BaseModel, Field

from app.telemetry.containers import SortOrder


class WorkloadKind(StrEnum):
    """Kinds of workloads, as OpenTelemetry names them; a pod that nothing controls is one itself."""

    DEPLOYMENT = "deployment"
    STATEFULSET = "statefulset"
    DAEMONSET = "daemonset"
    REPLICASET = "replicaset"
    CRONJOB = "cronjob"
    JOB = "job"
    POD = "pod"


class ClusterSort(StrEnum):
    """What objects of a cluster are listed by; what an object does not have sorts as unknown, which comes last."""

    PROBLEM = "problem"
    NAME = "name"
    NAMESPACE = "namespace"
    KIND = "kind"
    READY = "ready"
    PODS = "pods"
    RESTARTS = "restarts"
    CPU = "cpu"
    MEMORY = "memory"
    QUOTA = "quota"
    NODE = "node"


class NodeView(BaseModel):
    """One node. What is not reported is null: usage comes from the node view (DaemonSet), which may not be installed."""

    name: str
    uid: str
    ready: str = Field(description="true, false or unknown; empty when not reported.")
    conditions: list[str] = Field(description="Conditions beside Ready that are true, such as MemoryPressure.")
    unschedulable: bool = Field(description="Whether it is cordoned.")
    problem: str = Field(description="What is wrong with it, in a few words; empty when nothing is.")
    pods: int = Field(description="Pods that run on it.")
    pods_allocatable: int | None = Field(description="Pods that may run on it.")
    cpu_usage: float | None = Field(description="CPUs in use; 1 is one whole core.")
    cpu_allocatable: float | None = Field(description="CPUs that pods may use.")
    memory_working_set: int | None = Field(description="Bytes that cannot be reclaimed easily.")
    memory_allocatable: int | None = Field(description="Bytes that pods may use.")
    filesystem_usage: int | None = Field(description="Bytes used on the kubelet's file system.")
    filesystem_capacity: int | None = Field(description="Size of the kubelet's file system in bytes.")
    sampled_at: datetime = Field(description="When these values were measured.")


class QuotaAmount(BaseModel):
    """One amount that a quota bounds."""

    title: str = Field(description="What is bounded, for people: CPU requests, memory limits, pods.")
    unit: str = Field(description="OTel unit: By, {cpu}, {object} and so on.")
    hard: float = Field(description="The bound, in the unit.")
    used: float = Field(description="What is taken of it, in the unit.")

    @property
    def share(self) -> float:
        """Used part; 1 of a quota of nothing."""
        return self.used / self.hard if self.hard > 0 else 1.0


class QuotaView(BaseModel):
    """One ResourceQuota."""

    name: str
    amounts: list[QuotaAmount] = Field(description="Most used first.")


class NamespaceView(BaseModel):
    """One namespace."""

    name: str
    phase: str = Field(description="active or terminating; empty when not reported.")
    problem: str = Field(description="What is wrong in it, in a few words; empty when nothing is.")
    pods: int = Field(description="Pods that are not finished.")
    pods_with_problems: int
    restarts: int = Field(description="Restarts of its pods' containers, as long as the kubelet remembers.")
    cpu_usage: float | None = Field(description="CPUs in use by its pods; 1 is one whole core. Null without the node view.")
    memory_working_set: int | None = Field(description="Bytes of its pods that cannot be reclaimed easily; null without the node view.")
    quotas: list[QuotaView]
    sampled_at: datetime = Field(description="When these values were measured.")

    @property
    def fullest(self) -> float | None:
        """The most used share of its quotas."""
        return max((amount.share for quota in self.quotas for amount in quota.amounts), default=None)


class WorkloadView(BaseModel):
    """A workload and what its pods come to."""

    kind: WorkloadKind
    namespace: str
    name: str
    desired: int | None = Field(
        description="Pods (of a daemon set: nodes) wanted; of a job those that have to succeed. Null for cron jobs."
    )
    available: int | None = Field(description="Pods available (ready, for stateful and daemon sets); of a job those that have succeeded.")
    active: int | None = Field(description="Pods of a job, or jobs of a cron job, that are under way.")
    problem: str = Field(description="What is wrong with it, in a few words; empty when nothing is.")
    pods: int = Field(description="Pods that are not finished.")
    restarts: int = Field(description="Restarts of its pods' containers, as long as the kubelet remembers.")
    recent_restarts: int = Field(description="Restarts in the last 15 minutes.")
    sampled_at: datetime = Field(description="When these values were measured.")


class ContainerStatusView(BaseModel):
    """A container of a pod."""

    name: str
    state: str = Field(description="waiting, running or terminated; empty when not reported.")
    reason: str = Field(description="Why it is in that state, such as CrashLoopBackOff.")
    last_termination: str = Field(description="Why it last ended, such as OOMKilled.")
    last_exit_code: int | None = Field(description="Exit code with which it last ended; null when it has not, or that is not reported.")
    ready: bool
    restarts: int = Field(description="Restarts, as long as the kubelet remembers.")


class PodView(BaseModel):
    """One pod."""

    uid: str
    name: str
    namespace: str
    node: str = Field(description="Empty while it has none.")
    workload_kind: WorkloadKind
    workload_name: str = Field(description="Name of the workload that it belongs to; its own where it belongs to none.")
    phase: str = Field(description="Pending, Running, Succeeded, Failed or Unknown; empty when not reported.")
    reason: str = Field(description="Why it is so: of the pod (Evicted) or of a container (CrashLoopBackOff).")
    problem: str = Field(description="What is wrong with it, in a few words; empty when nothing is.")
    ready: int = Field(description="Containers that are ready.")
    containers: list[ContainerStatusView]
    restarts: int = Field(description="Restarts of its containers, as long as the kubelet remembers.")
    recent_restarts: int = Field(description="Restarts in the last 15 minutes.")
    cpu_usage: float | None = Field(description="CPUs in use; null without the node view.")
    cpu_limit: float | None = Field(description="CPUs that its containers may use; null when one of them has no limit.")
    memory_working_set: int | None = Field(description="Bytes that cannot be reclaimed easily; null without the node view.")
    memory_limit: int | None = Field(description="Bytes that its containers may use; null when one of them has no limit.")
    uptime_seconds: float | None = Field(description="Since it was started; null when not reported.")
    sampled_at: datetime = Field(description="When these values were measured.")


class DegradedView(BaseModel):
    """A part of the cluster that the agent cannot see."""

    collector: str = Field(description="Such as kubernetes.resourcequotas.")
    subject: str = Field(description="What is not visible, for people: quotas.")
    reason: str = Field(description="Why, in the agent's words: which rule its role lacks, for example.")


@dataclass(frozen=True, slots=True)
class ClusterFilter:
    """Which objects are wanted, and in which order. ``search`` looks in names; ``kind`` is for workloads and pods."""

    search: str = ""
    namespace: str = ""
    kind: WorkloadKind | None = None
    problems_only: bool = False
    sort: ClusterSort = ClusterSort.PROBLEM
    order: SortOrder | None = None


AnyView = TypeVar("AnyView", NodeView, NamespaceView, WorkloadView, PodView)
_Key = Callable[[AnyView], float | str | None]

_DESCENDING_FIRST = frozenset({ClusterSort.PODS, ClusterSort.RESTARTS, ClusterSort.CPU, ClusterSort.MEMORY, ClusterSort.QUOTA})


def default_order(sort: ClusterSort) -> SortOrder:
    """The end that is worth looking at first: the greatest consumers, the most restarts; otherwise A to Z, the least ready."""
    return SortOrder.DESCENDING if sort in _DESCENDING_FIRST else SortOrder.ASCENDING


def listed(items: Iterable[AnyView], wanted: ClusterFilter) -> list[AnyView]:
    """Those of ``items`` that are wanted, in the order that is wanted; by namespace and name where that leaves it open."""
    search = wanted.search.casefold()
    found = [
        one
        for one in items
        if (not wanted.problems_only or one.problem)
        and (not wanted.namespace or _namespace(one) == wanted.namespace)
        and (wanted.kind is None or _kind(one) == wanted.kind.value)
        and (not search or search in one.name.casefold() or search in _also(one).casefold())
    ]
    found.sort(key=lambda one: (_namespace(one), one.name, _kind(one)))
    if wanted.sort is ClusterSort.PROBLEM and wanted.order is None:
        found.sort(key=trouble)
        return found
    keys = [(_sort_key(one, wanted.sort), one) for one in found]
    known = [(value, one) for value, one in keys if value is not None]
    known.sort(key=lambda pair: pair[0], reverse=(wanted.order or default_order(wanted.sort)) is SortOrder.DESCENDING)
    return [one for _, one in known] + [one for value, one in keys if value is None]


def trouble(one: BaseModel) -> int:
    """Worst first: what is down, what is not as it should be, what may become so, then the rest."""
    if getattr(one, "problem", ""):
        down = (isinstance(one, NodeView) and one.ready != "true") or (isinstance(one, WorkloadView) and one.available == 0)
        return 0 if down else 1
    if isinstance(one, NodeView):
        return 2 if one.unschedulable else 3
    if isinstance(one, PodView):
        return 2 if one.phase == "Pending" else 3
    return 3


def _namespace(one: BaseModel) -> str:
    return str(getattr(one, "namespace", "") or (one.name if isinstance(one, NamespaceView) else ""))


def _kind(one: BaseModel) -> str:
    kind = getattr(one, "kind", None) or getattr(one, "workload_kind", None)
    return kind.value if isinstance(kind, WorkloadKind) else ""


def _also(one: BaseModel) -> str:
    """What a search finds an object by beside its name."""
    return " ".join(str(getattr(one, name, "")) for name in ("namespace", "node", "workload_name"))


def _ready_share(one: BaseModel) -> float | str | None:
    if isinstance(one, WorkloadView):
        return None if not one.desired or one.available is None else one.available / one.desired
    if isinstance(one, PodView):
        return one.ready / len(one.containers) if one.containers else None
    return {"false": "0", "unknown": "1", "true": "2"}.get(getattr(one, "ready", ""))


_SORT_KEYS: Mapping[ClusterSort, Callable[[BaseModel], float | str | None]] = {
    ClusterSort.PROBLEM: trouble,
    ClusterSort.NAME: lambda one: str(getattr(one, "name", "")),
    ClusterSort.NAMESPACE: lambda one: _namespace(one) or None,
    ClusterSort.KIND: lambda one: _kind(one) or None,
    ClusterSort.READY: _ready_share,
    ClusterSort.PODS: lambda one: getattr(one, "pods", None),
    ClusterSort.RESTARTS: lambda one: getattr(one, "restarts", None),
    ClusterSort.CPU: lambda one: getattr(one, "cpu_usage", None),
    ClusterSort.MEMORY: lambda one: getattr(one, "memory_working_set", None),
    ClusterSort.QUOTA: lambda one: one.fullest if isinstance(one, NamespaceView) else None,
    ClusterSort.NODE: lambda one: getattr(one, "node", None) or None,
}


def _sort_key(one: BaseModel, sort: ClusterSort) -> float | str | None:
    return _SORT_KEYS[sort](one)
