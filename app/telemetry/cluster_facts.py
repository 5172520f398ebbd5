"""What the series of a cluster say of its objects: pure functions from samples to facts, and from facts to what is wrong.

Series of one object may come from several pods of the agent: from one leader after the other, from the node view, from before and after
the object got its node. For each figure the newest sample counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from app.telemetry.cluster_views import WorkloadKind
from app.telemetry.store import NAME, SeriesData

QUOTAS: Mapping[str, tuple[str, str, str]] = {
    # name up to its suffix: title, unit, the attribute that tells several apart
    "k8s.resourcequota.cpu.request": ("CPU requests", "{cpu}", ""),
    "k8s.resourcequota.cpu.limit": ("CPU limits", "{cpu}", ""),
    "k8s.resourcequota.memory.request": ("Memory requests", "By", ""),
    "k8s.resourcequota.memory.limit": ("Memory limits", "By", ""),
    "k8s.resourcequota.ephemeral_storage.request": ("Ephemeral storage requests", "By", ""),
    "k8s.resourcequota.ephemeral_storage.limit": ("Ephemeral storage limits", "By", ""),
    "k8s.resourcequota.storage.request": ("Storage requests", "By", "k8s.storageclass.name"),
    "k8s.resourcequota.persistentvolumeclaim_count": ("Volume claims", "{object}", "k8s.storageclass.name"),
    "k8s.resourcequota.hugepage_count.request": ("Huge pages", "{object}", "k8s.hugepage.size"),
    "k8s.resourcequota.object_count": ("", "{object}", "k8s.resourcequota.resource_name"),
    "irca.k8s.resourcequota.extended_resource": ("", "{object}", "irca.k8s.resource.name"),
}
QUOTA_NAMES = [f"{base}.{suffix}" for base in QUOTAS for suffix in ("hard", "used")]
"""The quota metrics."""

OWNERS: Sequence[tuple[str, WorkloadKind]] = (
    ("k8s.deployment.name", WorkloadKind.DEPLOYMENT),
    ("k8s.statefulset.name", WorkloadKind.STATEFULSET),
    ("k8s.daemonset.name", WorkloadKind.DAEMONSET),
    ("k8s.cronjob.name", WorkloadKind.CRONJOB),
    ("k8s.job.name", WorkloadKind.JOB),
    ("k8s.replicaset.name", WorkloadKind.REPLICASET),
)
"""The labels that name what controls a pod, the highest first."""

CRASH_LOOP = 2
"""Restarts in the last 15 minutes that are a problem; one alone may be somebody's doing."""
GRACE_SECONDS = 60.0
"""A pod that is younger is not blamed for not being ready."""
_WORKING_REASONS = frozenset({"", "ContainerCreating", "PodInitializing", "Completed", "Running"})

Owner = tuple[WorkloadKind, str, str]
"""Kind, namespace and name of a workload."""


@dataclass(slots=True)
class Figures:
    """Figures of one object by metric, each as of its newest sample, and in which of several statuses it is."""

    labels: Mapping[str, str]
    newest: float = 0.0
    values: dict[str, float] = field(default_factory=dict)
    words: dict[str, dict[str, float]] = field(default_factory=dict)
    times: dict[tuple[str, str], tuple[float, bool]] = field(default_factory=dict)

    def take(self, name: str, word: str, value: float, time: float, labels: Mapping[str, str]) -> None:
        """Keep a figure if it is the newest; of two at one time that of a pod with a node."""
        rank = time, "k8s.node.name" in labels
        if self.times.get((name, word), (-1.0, False)) > rank:
            return
        self.times[name, word] = rank
        if rank >= (self.newest, "k8s.node.name" in self.labels):
            self.newest = time
            self.labels = labels if len(labels) >= len(self.labels) else {**self.labels, **labels}
        if word:
            self.words.setdefault(name, {})[word] = value
        else:
            self.values[name] = value

    def number(self, name: str) -> float | None:
        """The figure of this name."""
        return self.values.get(name)

    def whole(self, name: str) -> int | None:
        """Likewise, as a whole number."""
        value = self.number(name)
        return None if value is None else int(value)

    def word(self, name: str) -> str:
        """Which status of this name is current: the one that is 1, the newest where the pod that told it was replaced meanwhile."""
        current = [word for word, value in self.words.get(name, {}).items() if value]
        if len(current) > 1:
            return max((self.times[name, word], word) for word in current)[1]
        return current[0] if current else ""


def figures(series: Iterable[SeriesData], by: Sequence[str], word_labels: Mapping[str, Sequence[str]]) -> dict[tuple[str, ...], Figures]:
    """The newest figures of the objects that these labels tell apart, oldest object first.

    Args:
        series: samples, in time order.
        by: the labels.
        word_labels: of metrics with a point for each status the labels that name it, by metric.
    """
    found: dict[tuple[str, ...], Figures] = {}
    for one in series:
        value = float(one.values[-1]) if len(one.values) else math.nan
        if not math.isfinite(value):
            continue
        labels = one.labels
        name = labels[NAME]
        key = tuple(labels.get(label, "") for label in by)
        of = found.get(key)
        if of is None:
            of = found[key] = Figures(labels)
        word = "=".join([labels.get(label, "") for label in word_labels.get(name, ())])
        of.take(name, word, value, int(one.times[-1]) / 1000, labels)
    return found


@dataclass
class PodFacts:
    """One pod, with its containers by name. What follows from its figures is worked out once, when it is complete."""

    uid: str
    name: str
    namespace: str
    node: str
    owner: Owner
    figures: Figures
    containers: dict[str, Figures]
    restarts: int = 0
    recent_restarts: int = 0

    @cached_property
    def phase(self) -> str:
        """Its phase; empty when not reported."""
        return self.figures.word("k8s.pod.status.phase")

    @cached_property
    def finished(self) -> bool:
        """Whether it has ended for good."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def is_left_over(self) -> bool:
        """Whether it has failed and its controller has made another in its place."""
        return self.phase == "Failed" and self.owner[0] not in (WorkloadKind.POD, WorkloadKind.JOB, WorkloadKind.CRONJOB)

    @cached_property
    def sampled(self) -> float:
        """When it was last reported, in Unix seconds."""
        return max([self.figures.newest, *(one.newest for one in self.containers.values())])

    def reason(self) -> str:
        """Why it is in its state: its own reason, or that of the first container that has a bad one."""
        if own := self.figures.word("k8s.pod.status.reason"):
            return own
        if self.figures.number("irca.k8s.pod.unschedulable"):
            return "Unschedulable"
        reasons = [one.word("k8s.container.status.reason") for one in self.containers.values()]
        bad = [reason for reason in reasons if reason not in _WORKING_REASONS]
        return next(iter(bad), next((reason for reason in reasons if reason), ""))

    def problem(self) -> str:
        """What is wrong with it, in a few words; empty when nothing is."""
        phase, reason = self.phase, self.reason()
        if phase == "Succeeded":
            return ""
        if phase == "Failed":
            return reason or "failed"
        found = []
        if reason == "Unschedulable":
            found.append("no node fits it")
        elif reason not in _WORKING_REASONS:
            found.append(reason)
        killed = any(one.word("irca.k8s.container.last_termination.reason") == "OOMKilled" for one in self.containers.values())
        if killed and self.recent_restarts and "OOMKilled" not in found:
            found.append("out of memory")
        if self.recent_restarts >= CRASH_LOOP:
            found.append(f"restarted {self.recent_restarts} times in 15 min")
        if not found and phase == "Unknown":
            return "its node does not answer"
        if not found and phase == "Running" and self.ready() < len(self.containers) and self._is_settled():
            return "not ready"
        return ", ".join(found)

    def ready(self) -> int:
        """How many of its containers are ready."""
        return sum(bool(one.number("k8s.container.ready")) for one in self.containers.values())

    def _is_settled(self) -> bool:
        uptime = self.figures.number("k8s.pod.uptime")
        return uptime is not None and uptime >= GRACE_SECONDS


POD_WORDS: Mapping[str, Sequence[str]] = {
    "k8s.pod.status.phase": ("k8s.pod.status.phase",),
    "k8s.pod.status.reason": ("k8s.pod.status.reason",),
    "k8s.container.status.state": ("k8s.container.status.state",),
    "k8s.container.status.reason": ("k8s.container.status.reason",),
    "irca.k8s.container.last_termination.reason": ("irca.k8s.container.last_termination.reason",),
}
"""The labels that name the status, of the metrics of pods and containers that have one."""


def pod_facts(series: Sequence[SeriesData], before: Mapping[tuple[str, str], float]) -> list[PodFacts]:
    """The pods that the series tell of. ``before`` has the restarts of 15 minutes ago by pod UID and container."""
    pods: dict[str, PodFacts] = {}
    every = figures(series, ("k8s.pod.uid", "k8s.container.name"), POD_WORDS)
    for (uid, container), of in sorted(every.items()):
        if not uid:
            continue
        pod = pods.get(uid)
        if pod is None:
            labels = of.labels
            namespace, name = labels.get("k8s.namespace.name", ""), labels.get("k8s.pod.name", "")
            pod = pods[uid] = PodFacts(uid, name, namespace, labels.get("k8s.node.name", ""), owner_of(labels), of, {})
        if container:
            pod.containers[container] = of
            restarts = of.whole("k8s.container.restart.count") or 0
            pod.restarts += restarts
            pod.recent_restarts += max(0, restarts - int(before.get((uid, container), 0)))
        pod.node = pod.node or of.labels.get("k8s.node.name", "")
    return list(pods.values())


def owner_of(labels: Mapping[str, str]) -> Owner:
    """The workload that a pod with these labels belongs to: the highest of what controls it, else itself."""
    namespace = labels.get("k8s.namespace.name", "")
    for label, kind in OWNERS:
        if name := labels.get(label):
            return kind, namespace, name
    return WorkloadKind.POD, namespace, labels.get("k8s.pod.name", "")


@dataclass(slots=True)
class Sums:
    """What the pods of a workload or namespace come to."""

    pods: int = 0
    restarts: int = 0
    recent_restarts: int = 0
    newest: float = 0.0
    problems: Counter[str] = field(default_factory=Counter)

    @property
    def troubled(self) -> int:
        """Pods with problems."""
        return sum(self.problems.values())

    def add(self, pod: PodFacts, problem: str) -> None:
        """Count a pod in."""
        self.pods += not pod.finished
        self.restarts += pod.restarts
        self.recent_restarts += pod.recent_restarts
        self.newest = max(self.newest, pod.sampled)
        if problem and not pod.is_left_over:
            self.problems[problem] += 1

    def words(self) -> str:
        """The most frequent problem, and in how many pods there is one."""
        if not self.problems:
            return ""
        [(problem, _)] = self.problems.most_common(1)
        return (
            problem if self.pods <= 1 and self.troubled == 1 else f"{problem} ({self.troubled} {'pod' if self.troubled == 1 else 'pods'})"
        )


def workload_problem(kind: WorkloadKind, desired: int | None, available: int | None, failed: int, sums: Sums) -> str:
    """What is wrong with a workload, in a few words."""
    found = []
    if kind is WorkloadKind.JOB:
        if failed and (available or 0) < (desired or 1):
            return f"{failed} {'pod' if failed == 1 else 'pods'} failed"
    elif kind is WorkloadKind.CRONJOB:
        if failed:
            found.append(f"{failed} of its jobs failed" if failed > 1 else "a job of it failed")
    elif desired and available is not None and available < desired and kind is not WorkloadKind.POD:
        what = "nodes ready" if kind is WorkloadKind.DAEMONSET else "available"
        found.append(f"{available} of {desired} {what}")
    if words := sums.words():
        found.append(words)
    return ": ".join(found)


def node_problem(ready: str, conditions: Iterable[str]) -> str:
    """What is wrong with a node, in a few words."""
    found = {"false": ["not ready"], "unknown": ["its kubelet does not answer"]}.get(ready, [])
    return ", ".join([*found, *conditions])


def namespace_problem(phase: str, sums: Sums, full: Iterator[tuple[str, float]]) -> str:
    """What is wrong in a namespace, in a few words; ``full`` are quotas that are nearly used up, with their shares."""
    found = [f"{title} quota used up" if share >= 1 else f"{share:.0%} of {title} quota used".replace("%", " %") for title, share in full]
    if phase == "terminating" and sums.pods:
        found.append("terminating with pods left")
    if sums.troubled:
        found.append(f"{sums.troubled} {'pod' if sums.troubled == 1 else 'pods'} with problems")
    return ", ".join(found)
