"""What the metrics of nodes, namespaces, volume claims and quotas are made of: pure functions of an object of the API."""

from __future__ import annotations

from connectors.core.telemetry import Metric, Point, ResourceMetrics
from connectors.kubernetes.metrics import CLAIM_PHASES, CONDITION_STATUSES, NAMESPACE_PHASES, amounts, constant, metric, status
from connectors.kubernetes.quota import quantity, quota_metrics
from connectors.kubernetes.resources import Json, object_resource

_ALLOCATABLE = (
    ("cpu", "k8s.node.cpu.allocatable"),
    ("memory", "k8s.node.memory.allocatable"),
    ("ephemeral-storage", "k8s.node.ephemeral_storage.allocatable"),
    ("pods", "k8s.node.pod.allocatable"),
)


def node_metrics(item: Json) -> ResourceMetrics:
    """A node's conditions, whether it is cordoned, and what pods may use of it."""
    spec, state = item.get("spec") or {}, item.get("status") or {}
    conditions = [
        Point(
            float(condition["status"].lower() == value), {"k8s.node.condition.type": condition["type"], "k8s.node.condition.status": value}
        )
        for condition in state.get("conditions") or ()
        for value in CONDITION_STATUSES
    ]
    metrics: list[Metric] = [metric("k8s.node.condition.status", conditions)] if conditions else []
    metrics.append(constant("irca.k8s.node.unschedulable", float(bool(spec.get("unschedulable")))))
    allocatable = state.get("allocatable") or {}
    metrics += amounts((name, quantity(allocatable.get(key))) for key, name in _ALLOCATABLE)
    return ResourceMetrics(object_resource("k8s.node", item), metrics)


def namespace_metrics(item: Json) -> ResourceMetrics:
    """A namespace's phase. Its name is what its objects carry as theirs."""
    meta = item["metadata"]
    phase = str((item.get("status") or {}).get("phase") or "Active").lower()
    resource = {"k8s.namespace.name": str(meta["name"]), "k8s.namespace.uid": str(meta["uid"])}
    return ResourceMetrics(resource, [status("k8s.namespace.phase", NAMESPACE_PHASES, phase)])


def claim_metrics(item: Json) -> ResourceMetrics:
    """A volume claim's phase, and the storage that it asks for and has."""
    spec, state = item.get("spec") or {}, item.get("status") or {}
    requests = (spec.get("resources") or {}).get("requests") or {}
    metrics = [
        status("k8s.persistentvolumeclaim.status.phase", CLAIM_PHASES, str(state.get("phase") or "Pending")),
        *amounts(
            (
                ("k8s.persistentvolumeclaim.storage.request", quantity(requests.get("storage"))),
                ("k8s.persistentvolumeclaim.storage.capacity", quantity((state.get("capacity") or {}).get("storage"))),
            )
        ),
    ]
    return ResourceMetrics(object_resource("k8s.persistentvolumeclaim", item), metrics)


def resource_quota_metrics(item: Json) -> ResourceMetrics:
    """What a quota allows, and what counts against it; nothing until its controller has looked at it."""
    state = item.get("status") or {}
    return ResourceMetrics(object_resource("k8s.resourcequota", item), quota_metrics(state.get("hard") or {}, state.get("used") or {}))
