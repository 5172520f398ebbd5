"""A made-up Kubernetes cluster, as the series that its agent's pods would send."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from app.events.records import EventRecord
from app.telemetry.store import NAME, SeriesData

UID = "0f3c9a52-7d1e-4a86-9b64-5f2c81d7e033"
MIB, GIB = 1024**2, 1024**3
INTERVAL_MS = 10_000
PHASES = ("Pending", "Running", "Succeeded", "Failed", "Unknown")
STATES = ("waiting", "running", "terminated")
STATUSES = ("true", "false", "unknown")
COLLECTORS = ("nodes", "namespaces", "pods", "deployments", "statefulsets", "daemonsets", "jobs", "cronjobs", "resourcequotas")
COUNTS = {
    "deployment": ("pod.desired", "pod.available"),
    "replicaset": ("pod.desired", "pod.available"),
    "statefulset": ("pod.desired", "pod.ready"),
    "daemonset": ("node.desired_scheduled", "node.ready"),
    "job": ("pod.desired_successful", "pod.successful"),
    "cronjob": (),
}


@dataclass
class MadePod:
    """One pod. ``waiting`` and ``ended`` are reasons; ``looping`` restarts every five minutes."""

    name: str
    namespace: str
    owners: dict[str, str] = field(default_factory=dict)
    node: str = "worker-1"
    phase: str = "Running"
    reason: str = ""
    waiting: str = ""
    ended: str = ""
    ready: bool = True
    restarts: int = 0
    looping: bool = False
    unschedulable: bool = False
    cpu: float = 0.05
    memory: float = 80.0
    limit: float = 0.0
    uptime: float = 90_000.0
    containers: tuple[str, ...] = ("app",)


@dataclass
class MadeNode:
    """One node; ``conditions`` are those that are true beside Ready."""

    name: str
    ready: str = "true"
    conditions: tuple[str, ...] = ()
    cordoned: bool = False
    cpu: float = 1.2
    memory: float = 5.0


@dataclass
class MadeWorkload:
    """One workload with what it wants and has."""

    kind: str
    namespace: str
    name: str
    desired: int = 1
    available: int = 1
    failed: int = 0
    active: int = 0
    cronjob: str = ""


@dataclass
class MadeCluster:
    """A cluster, reported by ``leaders``: (instance, from ms, until ms). ``failing`` collectors report nothing."""

    agent: str
    leaders: list[tuple[str, float, float]]
    nodes: list[MadeNode]
    namespaces: dict[str, str]
    quotas: dict[tuple[str, str], dict[str, tuple[float, float]]]
    workloads: list[MadeWorkload]
    pods: list[MadePod]
    node_view: bool = True
    failing: set[str] = field(default_factory=set)
    interval_ms: int = INTERVAL_MS

    def series(self, start_ms: float, end_ms: float) -> Iterator[SeriesData]:
        for leader, since, until in self.leaders:
            yield from self._reported(leader, max(start_ms, since), min(end_ms, until))
        if self.node_view:
            yield from self._measured(start_ms, min(end_ms, max(until for _, _, until in self.leaders)))

    def _reported(self, leader: str, start_ms: float, end_ms: float) -> Iterator[SeriesData]:
        one = self._maker(leader, start_ms, end_ms)
        if one is None:
            return
        for collector in COLLECTORS:
            yield one(
                "irca.collector.success", "1", "gauge", collector not in self.failing, irca__collector__name=f"kubernetes.{collector}"
            )
        parts: dict[str, Iterator[SeriesData]] = {
            "nodes": (found for node in self.nodes for found in _node(one, node)),
            "namespaces": (found for name, phase in self.namespaces.items() for found in _namespace(one, name, phase)),
            "resourcequotas": (found for (of, name), amounts in self.quotas.items() for found in _quota(one, of, name, amounts)),
            "pods": (found for pod in self.pods for found in _pod(one, pod)),
        }
        for kind in COUNTS:
            parts[f"{kind}s"] = self._workloads(one, kind)
        for collector, found in parts.items():
            if collector not in self.failing:
                yield from found

    def _workloads(self, one, kind: str) -> Iterator[SeriesData]:
        for workload in self.workloads:
            if workload.kind == kind:
                yield from _workload(one, workload)

    def _measured(self, start_ms: float, end_ms: float) -> Iterator[SeriesData]:
        """What the pods on the nodes measure."""
        for node in self.nodes:
            one = self._maker(f"node-view-{node.name}", start_ms, end_ms)
            if one is None or node.ready != "true":
                continue
            yield one("irca.collector.success", "1", "gauge", 1, irca__collector__name="kubernetes.kubelet")
            on = {"k8s__node__name": node.name}
            yield one("k8s.node.cpu.usage", "{cpu}", "gauge", node.cpu, **on)
            yield one("k8s.node.memory.working_set", "By", "updowncounter", node.memory * GIB, **on)
            yield one("k8s.node.filesystem.usage", "By", "updowncounter", 31 * GIB, **on)
            yield one("k8s.node.filesystem.capacity", "By", "updowncounter", 100 * GIB, **on)
            for pod in (pod for pod in self.pods if pod.node == node.name and pod.phase == "Running"):
                of = {"k8s__pod__uid": f"uid-{pod.name}", "k8s__pod__name": pod.name, "k8s__namespace__name": pod.namespace, **on}
                yield one("k8s.pod.cpu.usage", "{cpu}", "gauge", pod.cpu, **of)
                yield one("k8s.pod.memory.working_set", "By", "updowncounter", pod.memory * MIB, **of)

    def _maker(self, instance: str, start_ms: float, end_ms: float):
        if end_ms < start_ms:
            return None
        first = -(-start_ms // self.interval_ms) * self.interval_ms
        times = np.arange(first, end_ms + 1, self.interval_ms, dtype=np.int64)
        if not len(times):
            return None
        own = {"instance": instance, "agent": self.agent, "agent_type": "kubernetes"}

        def one(name, unit, kind, value, **labels):
            told = {key.replace("__", "."): text for key, text in labels.items()}
            values = value(times) if callable(value) else np.full(len(times), float(value))
            return SeriesData({NAME: name, **own, **told}, unit, kind, times, values)

        return one


def _node(one, node: MadeNode) -> Iterator[SeriesData]:
    of = {"k8s__node__name": node.name, "k8s__node__uid": f"uid-{node.name}"}
    for condition in ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure"):
        current = node.ready if condition == "Ready" else str(condition in node.conditions).lower()
        for status in STATUSES:
            more = {"k8s.node.condition.type": condition, "k8s.node.condition.status": status, **of}
            yield one("k8s.node.condition.status", "{node}", "updowncounter", status == current, **more)
    yield one("irca.k8s.node.unschedulable", "{node}", "updowncounter", node.cordoned, **of)
    yield one("k8s.node.cpu.allocatable", "{cpu}", "updowncounter", 4, **of)
    yield one("k8s.node.memory.allocatable", "By", "updowncounter", 16 * GIB, **of)
    yield one("k8s.node.pod.allocatable", "{pod}", "updowncounter", 110, **of)


def _namespace(one, name: str, phase: str) -> Iterator[SeriesData]:
    for known in ("active", "terminating"):
        more = {"k8s__namespace__phase": known, "k8s__namespace__name": name, "k8s__namespace__uid": f"uid-{name}"}
        yield one("k8s.namespace.phase", "{namespace}", "updowncounter", known == phase, **more)


def _quota(one, namespace: str, name: str, amounts: dict[str, tuple[float, float]]) -> Iterator[SeriesData]:
    of = {"k8s__namespace__name": namespace, "k8s__resourcequota__name": name, "k8s__resourcequota__uid": f"uid-{namespace}-{name}"}
    for amount, (hard, used) in amounts.items():
        more, metric = dict(of), amount
        if amount.startswith("count/") or amount == "pods":
            more["k8s__resourcequota__resource_name"], metric = amount, "object_count"
        elif ":" in amount:
            metric, more["k8s__storageclass__name"] = amount.split(":")
        unit = "By" if "memory" in amount or "storage.request" in amount else "{cpu}" if "cpu" in amount else "{object}"
        yield one(f"k8s.resourcequota.{metric}.hard", unit, "updowncounter", hard, **more)
        yield one(f"k8s.resourcequota.{metric}.used", unit, "updowncounter", used, **more)


def _workload(one, of: MadeWorkload) -> Iterator[SeriesData]:
    labels = {"k8s__namespace__name": of.namespace, f"k8s__{of.kind}__name": of.name, f"k8s__{of.kind}__uid": f"uid-{of.kind}-{of.name}"}
    if of.cronjob:
        labels["k8s__cronjob__name"] = of.cronjob
    for name, value in zip(COUNTS[of.kind], (of.desired, of.available), strict=False):
        yield one(f"k8s.{of.kind}.{name}", "{node}" if of.kind == "daemonset" else "{pod}", "updowncounter", value, **labels)
    if of.kind == "job":
        yield one("k8s.job.pod.failed", "{pod}", "updowncounter", of.failed, **labels)
        yield one("k8s.job.pod.active", "{pod}", "updowncounter", of.active, **labels)
    if of.kind == "cronjob":
        yield one("k8s.cronjob.job.active", "{job}", "updowncounter", of.active, **labels)


def _pod(one, pod: MadePod) -> Iterator[SeriesData]:
    of = {"k8s__pod__uid": f"uid-{pod.name}", "k8s__pod__name": pod.name, "k8s__namespace__name": pod.namespace}
    of |= {f"k8s__{kind}__name": name for kind, name in pod.owners.items()}
    if pod.node:
        of["k8s__node__name"] = pod.node
    else:
        yield one("irca.k8s.pod.unschedulable", "{pod}", "updowncounter", pod.unschedulable, **of)
    for phase in PHASES:
        yield one("k8s.pod.status.phase", "{pod}", "updowncounter", phase == pod.phase, k8s__pod__status__phase=phase, **of)
    if pod.reason:
        yield one("k8s.pod.status.reason", "{pod}", "updowncounter", 1, k8s__pod__status__reason=pod.reason, **of)
    if pod.phase == "Running":
        yield one("k8s.pod.uptime", "s", "gauge", pod.uptime, **of)
    for container in pod.containers if pod.node and pod.phase != "Failed" else ():
        yield from _container(one, pod, {**of, "k8s__container__name": container})


def _container(one, pod: MadePod, of: dict[str, str]) -> Iterator[SeriesData]:
    def restarts(times):
        return (times // 300_000 - 5_000_000) % 1000 + pod.restarts if pod.looping else np.full(len(times), float(pod.restarts))

    state = "waiting" if pod.waiting else "terminated" if pod.phase == "Succeeded" else "running"
    yield one("k8s.container.restart.count", "{restart}", "updowncounter", restarts, **of)
    yield one("k8s.container.ready", "{container}", "updowncounter", pod.ready and not pod.waiting, **of)
    for known in STATES:
        more = {"k8s__container__status__state": known, **of}
        yield one("k8s.container.status.state", "{container}", "updowncounter", known == state, **more)
    if pod.waiting:
        yield one("k8s.container.status.reason", "{container}", "updowncounter", 1, k8s__container__status__reason=pod.waiting, **of)
    if pod.ended:
        more = {"irca__k8s__container__last_termination__reason": pod.ended, **of}
        yield one("irca.k8s.container.last_termination.reason", "{container}", "updowncounter", 1, **more)
        yield one("irca.k8s.container.last_termination.exit_code", "1", "gauge", 137, **of)
    if pod.limit:
        yield one("k8s.container.memory.limit.desired", "By", "updowncounter", pod.limit * MIB, **of)
        yield one("k8s.container.cpu.limit.desired", "{cpu}", "updowncounter", 1, **of)


def _deployment(namespace: str, name: str, replicas: int, available: int, **pod) -> tuple[MadeWorkload, list[MadePod]]:
    owners = {"deployment": name, "replicaset": f"{name}-6c9f7d84b5"}
    first = available if pod else 0
    pods = [
        MadePod(f"{name}-6c9f7d84b5-{n:05x}", namespace, owners, f"worker-{n % 3 + 1}", **({} if n < first else pod))
        for n in range(replicas)
    ]
    return MadeWorkload("deployment", namespace, name, replicas, available), pods


def shop_cluster(agent: str, leader: str) -> MadeCluster:
    """Five nodes, seven namespaces, some forty workloads; eight things are wrong."""
    made = [
        _deployment("shop", "storefront", 4, 4),
        _deployment("shop", "checkout", 3, 1, waiting="CrashLoopBackOff", ended="Error", looping=True, restarts=41),
        _deployment("shop", "inventory", 2, 2),
        _deployment("shop", "search", 2, 1, ended="OOMKilled", looping=True, cpu=0.9, memory=490.0, limit=512.0),
        _deployment("shop", "recommendations-and-personalisation-api", 2, 2),
        _deployment("media", "thumbnails", 2, 0, waiting="ImagePullBackOff", phase="Pending"),
        _deployment("payments", "ledger", 2, 2),
        _deployment("payments", "gateway", 3, 3),
        _deployment("monitoring", "grafana", 1, 1),
        _deployment("batch", "scheduler", 1, 1),
        _deployment("staging", "preview", 0, 0),
        _deployment("kube-system", "coredns", 2, 2),
        *(_deployment("shop", f"worker-{name}", 1, 1) for name in ("emails", "exports", "feeds", "invoices", "prices", "returns", "tax")),
    ]
    workloads, pods = [workload for workload, _ in made], [pod for _, found in made for pod in found]
    workloads += [
        MadeWorkload("statefulset", "payments", "postgres", 3, 2),
        MadeWorkload("statefulset", "monitoring", "prometheus"),
        MadeWorkload("daemonset", "kube-system", "kube-proxy", 5, 4),
        MadeWorkload("daemonset", "monitoring", "node-exporter", 4, 4),
        MadeWorkload("job", "batch", "import-2026-11-21", 1, 0, failed=4),
        MadeWorkload("job", "batch", "migrate-2026-11-20", 1, 1),
        MadeWorkload("cronjob", "batch", "nightly-report", active=1),
        MadeWorkload("job", "batch", "nightly-report-29384", 1, 0, active=1, cronjob="nightly-report"),
    ]
    pods += [
        MadePod("postgres-0", "payments", {"statefulset": "postgres"}, "worker-1", memory=900.0, limit=2048.0, cpu=0.4),
        MadePod("postgres-1", "payments", {"statefulset": "postgres"}, "worker-2", memory=870.0, limit=2048.0, cpu=0.2),
        MadePod("postgres-2", "payments", {"statefulset": "postgres"}, "", phase="Pending", unschedulable=True),
        MadePod("prometheus-0", "monitoring", {"statefulset": "prometheus"}, "worker-3", memory=1800.0, cpu=0.6),
        MadePod("import-2026-11-21-x7k2p", "batch", {"job": "import-2026-11-21"}, "worker-2", phase="Failed"),
        MadePod("nightly-report-29384-q9d4m", "batch", {"job": "nightly-report-29384", "cronjob": "nightly-report"}, "worker-3", cpu=0.8),
        MadePod("debug-shell", "staging", {}, "worker-3", containers=("shell", "proxy")),
        MadePod("preview-5f6b-evicted", "staging", {"deployment": "preview"}, "worker-2", phase="Failed", reason="Evicted"),
        *(MadePod(f"kube-proxy-{n}", "kube-system", {"daemonset": "kube-proxy"}, f"worker-{n}") for n in (1, 2, 3)),
        *(MadePod(f"node-exporter-{n}", "monitoring", {"daemonset": "node-exporter"}, f"worker-{n}") for n in (1, 2, 3)),
    ]
    return MadeCluster(
        agent,
        [(leader, -math.inf, math.inf)],
        [
            MadeNode("worker-1"),
            MadeNode("worker-2", cpu=3.1, memory=13.2, conditions=("MemoryPressure",)),
            MadeNode("worker-3", cpu=0.7, memory=6.1),
            MadeNode("worker-4", ready="unknown"),
            MadeNode("control-plane-1", cordoned=True, cpu=0.3, memory=2.2),
        ],
        {
            **dict.fromkeys(("batch", "kube-system", "media", "monitoring", "payments", "shop"), "active"),
            "staging": "terminating",
        },
        {
            ("shop", "compute"): {
                "cpu.request": (8, 7.4),
                "memory.request": (32 * GIB, 21 * GIB),
                "memory.limit": (64 * GIB, 40 * GIB),
                "pods": (20, 20),
            },
            ("payments", "compute"): {"cpu.request": (6, 2.5), "memory.request": (24 * GIB, 9 * GIB)},
            ("payments", "storage"): {"storage.request:fast": (500 * GIB, 320 * GIB), "count/secrets": (50, 12)},
        },
        workloads,
        pods,
    )


def synthetic_cluster(agent: str, leader: str, pods: int) -> MadeCluster:
    """A cluster of this many pods in deployments of five."""
    made = [_deployment(f"team-{n % 40:02}", f"service-{n:04}", 5, 5) for n in range(pods // 5)]
    for n in range(0, len(made), 25):
        made[n][1][0].waiting = "CrashLoopBackOff"
    return MadeCluster(
        agent,
        [(leader, -math.inf, math.inf)],
        [MadeNode(f"worker-{n}") for n in range(1, max(4, pods // 50 + 1))],
        {f"team-{n:02}": "active" for n in range(40)},
        {(f"team-{n:02}", "compute"): {"cpu.request": (100, 40), "pods": (500, 100)} for n in range(40)},
        [workload for workload, _ in made],
        [pod for _, found in made for pod in found],
    )


def cluster_changes(agent: str, instance: str) -> list[EventRecord]:
    """What changed in the cluster, and what its agent did."""
    told = (
        # minutes ago, severity, name, namespace, kind, object, body, attributes
        (1, 13, "pod.crash_loop", "shop", "deployment", "checkout", "checkout-6c9f7d84b5-00001 is in CrashLoopBackOff.", {}),
        (2, 13, "pod.image_pull", "media", "deployment", "thumbnails", "thumbnails-6c9f7d84b5-00000 cannot pull its image.", {}),
        (
            *(6, 9, "deployment.rollout", "shop", "deployment", "checkout", "checkout rolls out registry.example.com/shop/checkout:2.5.0."),
            {"container.image.name": "registry.example.com/shop/checkout:2.5.0"},
        ),
        (9, 13, "node.condition", "", "node", "worker-4", "worker-4 is not ready: its kubelet stopped posting status.", {}),
        (31, 9, "deployment.scaled", "staging", "deployment", "preview", "preview was scaled from 1 to 0.", {}),
    )
    return [
        EventRecord(
            uuid.uuid5(uuid.NAMESPACE_DNS, f"{agent} {minutes}").hex,
            f"irca.kubernetes.{name}",
            int((time.time() - minutes * 60) * 1e9),
            severity,
            body,
            attributes,
            resource={f"k8s.{kind}.name": of, **({"k8s.namespace.name": namespace} if namespace else {})},
            agent_id=agent,
            instance_id=instance,
            agent_type="kubernetes",
        )
        for minutes, severity, name, namespace, kind, of, body, attributes in told
    ]


__all__ = ["UID", "MadeCluster", "MadeNode", "MadePod", "MadeWorkload", "cluster_changes", "shop_cluster", "synthetic_cluster"]
