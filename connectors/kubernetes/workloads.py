"""What the metrics of workloads are made of: pure functions of an object of the API."""

from __future__ import annotations

from collections.abc import Iterable

from connectors.core.telemetry import Metric, ResourceMetrics
from connectors.kubernetes.metrics import constant, single
from connectors.kubernetes.resources import Json, object_resource, owner_attributes, uid


def deployment_metrics(item: Json) -> ResourceMetrics:
    """How many pods a deployment wants and has."""
    spec, status = _parts(item)
    return ResourceMetrics(
        object_resource("k8s.deployment", item),
        [
            _count("k8s.deployment.pod.desired", spec.get("replicas", 1)),
            _count("k8s.deployment.pod.available", status.get("availableReplicas")),
            _count("irca.k8s.deployment.pod.updated", status.get("updatedReplicas")),
            _count("irca.k8s.deployment.pod.unavailable", status.get("unavailableReplicas")),
        ],
    )


class ReplicaSetMetrics:
    """Replica sets. One that neither wants nor has pods is the mere memory of a revision: it is told once, when it becomes so."""

    def __init__(self) -> None:
        self._before: set[str] = set()
        self._alive: set[str] = set()

    def begin(self) -> None:
        """A round begins."""
        self._before, self._alive = self._alive, set()

    def of(self, item: Json, _now: float) -> Iterable[ResourceMetrics]:
        """The metrics of a replica set that matters."""
        spec, status = _parts(item)
        desired = spec.get("replicas", 1)
        if desired or status.get("replicas"):
            self._alive.add(uid(item))
        elif uid(item) not in self._before:
            return ()
        metrics = [
            _count("k8s.replicaset.pod.desired", desired),
            _count("k8s.replicaset.pod.available", status.get("availableReplicas")),
        ]
        return (ResourceMetrics({**object_resource("k8s.replicaset", item), **owner_attributes(item)}, metrics),)


def statefulset_metrics(item: Json) -> ResourceMetrics:
    """How many pods a stateful set wants and has, and of which revision."""
    spec, status = _parts(item)
    return ResourceMetrics(
        object_resource("k8s.statefulset", item),
        [
            _count("k8s.statefulset.pod.desired", spec.get("replicas", 1)),
            _count("k8s.statefulset.pod.ready", status.get("readyReplicas")),
            _count("k8s.statefulset.pod.current", status.get("currentReplicas")),
            _count("k8s.statefulset.pod.updated", status.get("updatedReplicas")),
        ],
    )


def daemonset_metrics(item: Json) -> ResourceMetrics:
    """On how many nodes a daemon set should run, and does."""
    status = _parts(item)[1]
    return ResourceMetrics(
        object_resource("k8s.daemonset", item),
        [
            _count("k8s.daemonset.node.desired_scheduled", status.get("desiredNumberScheduled")),
            _count("k8s.daemonset.node.current_scheduled", status.get("currentNumberScheduled")),
            _count("k8s.daemonset.node.misscheduled", status.get("numberMisscheduled")),
            _count("k8s.daemonset.node.ready", status.get("numberReady")),
            _count("irca.k8s.daemonset.node.updated", status.get("updatedNumberScheduled")),
            _count("irca.k8s.daemonset.node.unavailable", status.get("numberUnavailable")),
        ],
    )


def job_metrics(item: Json) -> ResourceMetrics:
    """How far a job is. Without a wanted number of completions, one success ends it."""
    spec, status = _parts(item)
    return ResourceMetrics(
        {**object_resource("k8s.job", item), **owner_attributes(item)},
        [
            _count("k8s.job.pod.active", status.get("active")),
            _count("k8s.job.pod.failed", status.get("failed")),
            _count("k8s.job.pod.successful", status.get("succeeded")),
            _count("k8s.job.pod.desired_successful", spec.get("completions", 1)),
            _count("k8s.job.pod.max_parallel", spec.get("parallelism", 1)),
        ],
    )


def cronjob_metrics(item: Json) -> ResourceMetrics:
    """How many jobs of a cron job are under way."""
    active = _parts(item)[1].get("active") or ()
    return ResourceMetrics(object_resource("k8s.cronjob", item), [_count("k8s.cronjob.job.active", len(active))])


def autoscaler_metrics(item: Json) -> ResourceMetrics:
    """The bounds of a horizontal pod autoscaler, and what it found and wants."""
    spec, status = _parts(item)
    return ResourceMetrics(
        object_resource("k8s.hpa", item),
        [
            _count("k8s.hpa.pod.min", spec.get("minReplicas", 1)),
            _count("k8s.hpa.pod.max", spec["maxReplicas"]),
            _count("k8s.hpa.pod.current", status.get("currentReplicas")),
            _count("k8s.hpa.pod.desired", status.get("desiredReplicas")),
        ],
    )


def disruption_budget_metrics(item: Json) -> ResourceMetrics:
    """What a pod disruption budget demands and allows; nothing until its controller has looked at it."""
    status = _parts(item)[1]
    names = (
        ("irca.k8s.poddisruptionbudget.pod.expected", "expectedPods"),
        ("irca.k8s.poddisruptionbudget.pod.desired_healthy", "desiredHealthy"),
        ("irca.k8s.poddisruptionbudget.pod.current_healthy", "currentHealthy"),
        ("irca.k8s.poddisruptionbudget.disruption.allowed", "disruptionsAllowed"),
    )
    metrics = [single(name, status[key]) for name, key in names if key in status]
    return ResourceMetrics(object_resource("irca.k8s.poddisruptionbudget", item), metrics)


def _parts(item: Json) -> tuple[Json, Json]:
    return item.get("spec") or {}, item.get("status") or {}


def _count(name: str, value: int | None) -> Metric:
    """The API leaves out counts that are 0."""
    return constant(name, float(value or 0))
