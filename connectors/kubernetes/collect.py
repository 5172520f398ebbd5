"""The collectors of the kubernetes agent type. Each lists one kind of object, page by page, and fails alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from lightkube.models.core_v1 import Container, ContainerStatus
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.apps_v1 import Deployment
from lightkube.resources.core_v1 import Node, Pod, ResourceQuota

from connectors.core.telemetry import Attributes, AttributeValue, Kind, Metric, Point, ResourceMetrics
from connectors.kubernetes.cluster import Cluster
from connectors.kubernetes.quota import quantity, quota_metrics

PHASES = ("Pending", "Running", "Succeeded", "Failed", "Unknown")
CONTAINER_STATES = ("waiting", "running", "terminated")
CONDITION_STATUSES = ("true", "false", "unknown")
_ALLOCATABLE = (
    ("cpu", "k8s.node.cpu.allocatable", "{cpu}"),
    ("memory", "k8s.node.memory.allocatable", "By"),
    ("ephemeral-storage", "k8s.node.ephemeral_storage.allocatable", "By"),
    ("pods", "k8s.node.pod.allocatable", "{pod}"),
)


class PodCollector:
    """Pods and their containers."""

    name = "kubernetes.pods"

    def __init__(self, cluster: Cluster, clock: Callable[[], float] = time.time) -> None:
        self._cluster = cluster
        self._clock = clock

    def collect(self) -> Iterator[ResourceMetrics]:
        """One resource for each pod, and one for each of its containers.

        Raises:
            ControlError: the pods cannot be listed.
        """
        now = self._clock()
        for pod in self._cluster.list(Pod):
            yield from pod_metrics(pod, now)


class NodeCollector:
    """Nodes: conditions and what pods may use."""

    name = "kubernetes.nodes"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def collect(self) -> Iterator[ResourceMetrics]:
        """One resource for each node.

        Raises:
            ControlError: the nodes cannot be listed.
        """
        for node in self._cluster.list(Node):
            yield node_metrics(node)


class DeploymentCollector:
    """Deployments: pods wanted and available."""

    name = "kubernetes.deployments"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def collect(self) -> Iterator[ResourceMetrics]:
        """One resource for each deployment.

        Raises:
            ControlError: the deployments cannot be listed.
        """
        for deployment in self._cluster.list(Deployment):
            yield deployment_metrics(deployment)


class QuotaCollector:
    """Namespace quotas."""

    name = "kubernetes.resourcequotas"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def collect(self) -> Iterator[ResourceMetrics]:
        """One resource for each quota.

        Raises:
            ControlError: the quotas cannot be listed.
        """
        for quota in self._cluster.list(ResourceQuota):
            status = quota.status
            metrics = quota_metrics((status and status.hard) or {}, (status and status.used) or {})
            yield ResourceMetrics(_identity("k8s.resourcequota", quota.metadata), metrics)


def pod_metrics(pod: Pod, now: float) -> Iterator[ResourceMetrics]:
    """A pod's metrics, then those of each of its containers (init containers too: they are what a stuck pod waits for)."""
    status, spec = pod.status, pod.spec
    resource: dict[str, AttributeValue] = dict(_identity("k8s.pod", pod.metadata))
    if spec and spec.nodeName:
        resource["k8s.node.name"] = spec.nodeName
    phase = (status and status.phase) or "Unknown"
    metrics = [_status("k8s.pod.status.phase", "{pod}", PHASES, phase)]
    if phase == "Running" and status and status.startTime:
        metrics.append(Metric("k8s.pod.uptime", "s", Kind.GAUGE, [Point(max(0.0, now - status.startTime.timestamp()))]))
    yield ResourceMetrics(resource, metrics)
    if status and spec:
        statuses = {s.name: s for s in [*(status.initContainerStatuses or ()), *(status.containerStatuses or ())]}
        for container in [*(spec.initContainers or ()), *spec.containers]:
            if seen := statuses.get(container.name):
                yield ResourceMetrics(_container_resource(resource, container), _container_metrics(seen))


def node_metrics(node: Node) -> ResourceMetrics:
    """A node's conditions (one point for each status, 1 for the current one) and allocatable resources."""
    status = node.status
    conditions = [
        Point(float(condition.status.lower() == value), {"k8s.node.condition.type": condition.type, "k8s.node.condition.status": value})
        for condition in (status and status.conditions) or ()
        for value in CONDITION_STATUSES
    ]
    metrics = [Metric("k8s.node.condition.status", "{node}", Kind.UPDOWNCOUNTER, conditions)] if conditions else []
    allocatable = (status and status.allocatable) or {}
    for key, name, unit in _ALLOCATABLE:
        value = quantity(allocatable.get(key))
        if value is not None:
            metrics.append(Metric(name, unit, Kind.UPDOWNCOUNTER, [Point(value)]))
    return ResourceMetrics(_identity("k8s.node", node.metadata), metrics)


def deployment_metrics(deployment: Deployment) -> ResourceMetrics:
    """How many pods a deployment wants and has available."""
    desired = deployment.spec.replicas if deployment.spec and deployment.spec.replicas is not None else 1
    available = (deployment.status and deployment.status.availableReplicas) or 0
    metrics = [
        Metric("k8s.deployment.pod.desired", "{pod}", Kind.UPDOWNCOUNTER, [Point(float(desired))]),
        Metric("k8s.deployment.pod.available", "{pod}", Kind.UPDOWNCOUNTER, [Point(float(available))]),
    ]
    return ResourceMetrics(_identity("k8s.deployment", deployment.metadata), metrics)


def _identity(prefix: str, metadata: ObjectMeta | None) -> Attributes:
    """UID and name under ``prefix``, and the namespace. The UID comes first: names are used again."""
    if metadata is None:
        return {}
    attributes = {f"{prefix}.uid": metadata.uid, f"{prefix}.name": metadata.name, "k8s.namespace.name": metadata.namespace}
    return {key: value for key, value in attributes.items() if value}


def _container_resource(pod: Attributes, container: Container) -> Attributes:
    # Without the container's id: it changes at every restart, and the count of restarts must not begin a new series then.
    return {**pod, "k8s.container.name": container.name}


def _container_metrics(status: ContainerStatus) -> list[Metric]:
    state = next((name for name in CONTAINER_STATES if status.state and getattr(status.state, name)), "waiting")
    return [
        Metric("k8s.container.restart.count", "{restart}", Kind.UPDOWNCOUNTER, [Point(float(status.restartCount))]),
        Metric("k8s.container.ready", "{container}", Kind.UPDOWNCOUNTER, [Point(float(status.ready))]),
        _status("k8s.container.status.state", "{container}", CONTAINER_STATES, state),
    ]


def _status(name: str, unit: str, known: Sequence[str], current: str) -> Metric:
    """One point for every known status, 1 for the current one, as OpenTelemetry defines these metrics."""
    return Metric(name, unit, Kind.UPDOWNCOUNTER, [Point(float(status == current), {name: status}) for status in known])
