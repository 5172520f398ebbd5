"""Every metric of the kubernetes agent type, in one table: what is not in it is not sent, and the reference is generated from it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from connectors.core.telemetry import Kind, Metric, Point

POD_PHASES = ("Pending", "Running", "Succeeded", "Failed", "Unknown")
CLAIM_PHASES = ("Pending", "Bound", "Lost")
NAMESPACE_PHASES = ("active", "terminating")
CONTAINER_STATES = ("waiting", "running", "terminated")
CONDITION_STATUSES = ("true", "false", "unknown")


@dataclass(frozen=True, slots=True)
class Described:
    """A metric as documented: ``attributes`` are its points' own; ``only`` says when it is sent, empty for always.

    ``collector`` is the one that sends it, and ``resource`` what it is a metric of: an object of the cluster, or the agent itself.
    """

    name: str
    unit: str
    kind: Kind
    collector: str
    resource: str
    meaning: str
    attributes: tuple[str, ...] = ()
    only: str = ""


_GAUGE, _COUNTER, _AMOUNT = Kind.GAUGE, Kind.COUNTER, Kind.UPDOWNCOUNTER
_Row = tuple[str, str, Kind, str] | tuple[str, str, Kind, str, tuple[str, ...]] | tuple[str, str, Kind, str, tuple[str, ...], str]


def _of(collector: str, resource: str, *rows: _Row) -> Iterator[Described]:
    """Rows of one collector and resource: name, unit, kind and meaning, then attributes and condition where there are any."""
    for row in rows:
        name, unit, kind, meaning, *rest = row
        yield Described(name, unit, kind, f"kubernetes.{collector}", resource, meaning, *rest)


def _usage(collector: str, resource: str, prefix: str) -> Iterator[Described]:
    """What the kubelet measures of nodes, pods and containers alike."""
    yield from _of(
        collector,
        resource,
        (f"{prefix}.cpu.time", "s", _COUNTER, "CPU time used"),
        (f"{prefix}.cpu.usage", "{cpu}", _GAUGE, "CPUs in use, as the kubelet measures it over some seconds"),
        (f"{prefix}.memory.usage", "By", _AMOUNT, "memory in use, with page cache"),
        (f"{prefix}.memory.working_set", "By", _AMOUNT, "usage without inactive page cache, which eviction goes by"),
        (f"{prefix}.memory.rss", "By", _AMOUNT, "anonymous memory"),
        (f"{prefix}.memory.available", "By", _AMOUNT, "limit less working set", (), "with a memory limit, and of nodes"),
    )


_FAULT = ("system.paging.fault.type",)
_NET = ("network.interface.name", "network.io.direction")
_VOLUME = ("k8s.volume.name", "k8s.volume.type", "k8s.persistentvolumeclaim.name")
_STORAGE_CLASS = ("k8s.storageclass.name",)
_WATCH = ("irca.k8s.watch.resource",)
_LIMITED, _REQUESTED = "with a limit, until its pod has finished", "with a request, until its pod has finished"
_OBJECTS = ("k8s.resourcequota.resource_name",)
_SERVED = "where the API server says it"


def _quota_rows() -> Iterator[_Row]:
    amounts: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
        ("k8s.resourcequota.cpu.limit", "{cpu}", "CPU limits", ()),
        ("k8s.resourcequota.cpu.request", "{cpu}", "CPU requests", ()),
        ("k8s.resourcequota.memory.limit", "By", "memory limits", ()),
        ("k8s.resourcequota.memory.request", "By", "memory requests", ()),
        ("k8s.resourcequota.ephemeral_storage.limit", "By", "ephemeral storage limits", ()),
        ("k8s.resourcequota.ephemeral_storage.request", "By", "ephemeral storage requests", ()),
        ("k8s.resourcequota.storage.request", "By", "storage requests of claims", _STORAGE_CLASS),
        ("k8s.resourcequota.persistentvolumeclaim_count", "{persistentvolumeclaim}", "claims", _STORAGE_CLASS),
        ("k8s.resourcequota.hugepage_count.request", "{hugepage}", "huge pages", ("k8s.hugepage.size",)),
        ("k8s.resourcequota.object_count", "{object}", "objects of a kind", _OBJECTS),
        ("irca.k8s.resourcequota.extended_resource", "{resource}", "extended resources", ("irca.k8s.resource.name",)),
    )
    for name, unit, what, attributes in amounts:
        yield f"{name}.hard", unit, _AMOUNT, f"{what} that the quota allows", attributes, "where the quota bounds it"
        yield f"{name}.used", unit, _AMOUNT, f"{what} that count against it", attributes, "where the quota bounds it"


TABLE: tuple[Described, ...] = (
    *_of(
        "nodes",
        "node",
        (
            *("k8s.node.condition.status", "{node}", _AMOUNT, "1 for the status that the condition has, 0 for the others"),
            ("k8s.node.condition.type", "k8s.node.condition.status"),
        ),
        ("irca.k8s.node.unschedulable", "{node}", _AMOUNT, "1 while it is cordoned"),
        ("k8s.node.cpu.allocatable", "{cpu}", _AMOUNT, "CPUs that pods may use"),
        ("k8s.node.memory.allocatable", "By", _AMOUNT, "memory that pods may use"),
        ("k8s.node.ephemeral_storage.allocatable", "By", _AMOUNT, "ephemeral storage that pods may use"),
        ("k8s.node.pod.allocatable", "{pod}", _AMOUNT, "pods that it may run"),
    ),
    *_of(
        "namespaces",
        "namespace",
        ("k8s.namespace.phase", "{namespace}", _AMOUNT, "1 for the phase it is in, 0 for the other", ("k8s.namespace.phase",)),
    ),
    *_of(
        "pods",
        "pod",
        (
            *("k8s.pod.status.phase", "{pod}", _AMOUNT, "1 for the phase it is in, 0 for the others", ("k8s.pod.status.phase",)),
            "of all but the finished pods of jobs, which are told once",
        ),
        (
            *("k8s.pod.status.reason", "{pod}", _AMOUNT, "1 for the reason of its status (Evicted), 0 for one it had before"),
            *(("k8s.pod.status.reason",), "once it has had one"),
        ),
        ("k8s.pod.uptime", "s", _GAUGE, "time since the kubelet took it", (), "while it runs"),
        ("irca.k8s.pod.unschedulable", "{pod}", _AMOUNT, "1 while no node fits it", (), "until it has a node"),
    ),
    *_of(
        "pods",
        "container",
        ("k8s.container.restart.count", "{restart}", _AMOUNT, "restarts, as long as the kubelet remembers", (), "once it was created"),
        ("k8s.container.ready", "{container}", _AMOUNT, "1 while it is ready", (), "once it was created"),
        (
            *("k8s.container.status.state", "{container}", _AMOUNT, "1 for the state it is in, 0 for the others"),
            *(("k8s.container.status.state",), "once it was created"),
        ),
        (
            *("k8s.container.status.reason", "{container}", _AMOUNT),
            "1 for the reason of its state (CrashLoopBackOff, ImagePullBackOff, OOMKilled, Completed), 0 for those it had before",
            *(("k8s.container.status.reason",), "once it has had one"),
        ),
        (
            *("irca.k8s.container.last_termination.reason", "{container}", _AMOUNT),
            "1 for the reason of its last end (OOMKilled, Error), 0 for those it had before",
            *(("irca.k8s.container.last_termination.reason",), "once it was restarted"),
        ),
        ("irca.k8s.container.last_termination.exit_code", "1", _GAUGE, "exit code of its last end", (), "once it was restarted"),
        ("k8s.container.cpu.limit.desired", "{cpu}", _AMOUNT, "CPUs that it may use", (), _LIMITED),
        ("k8s.container.cpu.request.desired", "{cpu}", _AMOUNT, "CPUs that are kept for it", (), _REQUESTED),
        ("k8s.container.memory.limit.desired", "By", _AMOUNT, "memory that it may use", (), _LIMITED),
        ("k8s.container.memory.request.desired", "By", _AMOUNT, "memory that is kept for it", (), _REQUESTED),
        ("k8s.container.ephemeral_storage.limit", "By", _AMOUNT, "ephemeral storage that it may use", (), _LIMITED),
        ("k8s.container.ephemeral_storage.request", "By", _AMOUNT, "ephemeral storage that is kept for it", (), _REQUESTED),
    ),
    *_of(
        "deployments",
        "deployment",
        ("k8s.deployment.pod.desired", "{pod}", _AMOUNT, "pods wanted"),
        ("k8s.deployment.pod.available", "{pod}", _AMOUNT, "pods that have been ready for long enough"),
        ("irca.k8s.deployment.pod.updated", "{pod}", _AMOUNT, "pods of the newest template"),
        ("irca.k8s.deployment.pod.unavailable", "{pod}", _AMOUNT, "pods that are still missing"),
    ),
    *_of(
        "replicasets",
        "replica set",
        (
            *("k8s.replicaset.pod.desired", "{pod}", _AMOUNT, "pods wanted", ()),
            "of all but those that neither want nor have pods (old revisions), which are told once",
        ),
        ("k8s.replicaset.pod.available", "{pod}", _AMOUNT, "pods that have been ready for long enough", (), "likewise"),
    ),
    *_of(
        "statefulsets",
        "stateful set",
        ("k8s.statefulset.pod.desired", "{pod}", _AMOUNT, "pods wanted"),
        ("k8s.statefulset.pod.ready", "{pod}", _AMOUNT, "pods that are ready"),
        ("k8s.statefulset.pod.current", "{pod}", _AMOUNT, "pods of the current revision"),
        ("k8s.statefulset.pod.updated", "{pod}", _AMOUNT, "pods of the newest revision"),
    ),
    *_of(
        "daemonsets",
        "daemon set",
        ("k8s.daemonset.node.desired_scheduled", "{node}", _AMOUNT, "nodes that should run its pod"),
        ("k8s.daemonset.node.current_scheduled", "{node}", _AMOUNT, "nodes that run it as they should"),
        ("k8s.daemonset.node.misscheduled", "{node}", _AMOUNT, "nodes that run it and should not"),
        ("k8s.daemonset.node.ready", "{node}", _AMOUNT, "nodes on which it is ready"),
        ("irca.k8s.daemonset.node.updated", "{node}", _AMOUNT, "nodes that run the newest template"),
        ("irca.k8s.daemonset.node.unavailable", "{node}", _AMOUNT, "nodes on which it is still missing"),
    ),
    *_of(
        "jobs",
        "job",
        ("k8s.job.pod.active", "{pod}", _AMOUNT, "pods that are under way"),
        ("k8s.job.pod.failed", "{pod}", _AMOUNT, "pods that failed"),
        ("k8s.job.pod.successful", "{pod}", _AMOUNT, "pods that succeeded"),
        ("k8s.job.pod.desired_successful", "{pod}", _AMOUNT, "pods that have to succeed"),
        ("k8s.job.pod.max_parallel", "{pod}", _AMOUNT, "pods that may be under way at a time"),
    ),
    *_of("cronjobs", "cron job", ("k8s.cronjob.job.active", "{job}", _AMOUNT, "jobs that are under way")),
    *_of(
        "horizontalpodautoscalers",
        "autoscaler",
        ("k8s.hpa.pod.min", "{pod}", _AMOUNT, "fewest pods that it sets"),
        ("k8s.hpa.pod.max", "{pod}", _AMOUNT, "most pods that it sets"),
        ("k8s.hpa.pod.current", "{pod}", _AMOUNT, "pods that it found last"),
        ("k8s.hpa.pod.desired", "{pod}", _AMOUNT, "pods that it wants"),
    ),
    *_of(
        "poddisruptionbudgets",
        "disruption budget",
        ("irca.k8s.poddisruptionbudget.pod.expected", "{pod}", _AMOUNT, "pods that it counts", (), _SERVED),
        ("irca.k8s.poddisruptionbudget.pod.desired_healthy", "{pod}", _AMOUNT, "pods that have to stay healthy", (), _SERVED),
        ("irca.k8s.poddisruptionbudget.pod.current_healthy", "{pod}", _AMOUNT, "pods that are healthy", (), _SERVED),
        ("irca.k8s.poddisruptionbudget.disruption.allowed", "{pod}", _AMOUNT, "pods that may be evicted now", (), _SERVED),
    ),
    *_of(
        "persistentvolumeclaims",
        "volume claim",
        (
            *("k8s.persistentvolumeclaim.status.phase", "{persistentvolumeclaim}", _AMOUNT, "1 for the phase it is in, 0 for the others"),
            ("k8s.persistentvolumeclaim.status.phase",),
        ),
        ("k8s.persistentvolumeclaim.storage.request", "By", _AMOUNT, "storage that it asks for"),
        ("k8s.persistentvolumeclaim.storage.capacity", "By", _AMOUNT, "storage that it has", (), "once it is bound"),
    ),
    *_of("resourcequotas", "quota", *_quota_rows()),
    *_of(
        "watches",
        "agent",
        ("irca.k8s.watch.object.count", "{object}", _AMOUNT, "objects of the kind that the agent holds", _WATCH),
        ("irca.k8s.watch.request.count", "{request}", _COUNTER, "our requests to the API server for the kind", _WATCH),
        ("irca.k8s.watch.relist.count", "{list}", _COUNTER, "times that the kind had to be listed anew", _WATCH),
        ("irca.k8s.watch.synced", "1", _AMOUNT, "1 while the kind is known in full", _WATCH),
    ),
    *_usage("kubelet", "node", "k8s.node"),
    *_of(
        "kubelet",
        "node",
        ("k8s.node.uptime", "s", _GAUGE, "time since the node started"),
        ("k8s.node.paging.faults", "{fault}", _COUNTER, "page faults", _FAULT),
        ("k8s.node.network.io", "By", _COUNTER, "bytes sent and received", _NET),
        ("k8s.node.network.errors", "{error}", _COUNTER, "network errors", _NET),
        ("k8s.node.filesystem.usage", "By", _AMOUNT, "space used on the kubelet's file system"),
        ("k8s.node.filesystem.available", "By", _AMOUNT, "space left on it"),
        ("k8s.node.filesystem.capacity", "By", _AMOUNT, "its size"),
        ("k8s.node.filesystem.inode.count", "{inode}", _AMOUNT, "its inodes"),
        ("k8s.node.filesystem.inode.free", "{inode}", _AMOUNT, "its free inodes"),
        ("irca.k8s.node.image_filesystem.usage", "By", _AMOUNT, "space that images and containers' own layers use"),
        ("irca.k8s.node.image_filesystem.available", "By", _AMOUNT, "space left on the file system that holds them"),
        ("irca.k8s.node.image_filesystem.capacity", "By", _AMOUNT, "its size"),
        ("irca.k8s.node.process.count", "{process}", _AMOUNT, "processes and threads", (), "where the kubelet says it"),
        ("irca.k8s.node.process.limit", "{process}", _AMOUNT, "processes and threads that the kernel allows", (), "likewise"),
        ("irca.k8s.node.kubelet.pod.count", "{pod}", _AMOUNT, "pods that the kubelet measured"),
    ),
    *_of(
        "kubelet",
        "system container (kubelet, runtime, pods)",
        ("k8s.node.system_container.cpu.time", "s", _COUNTER, "CPU time used"),
        ("k8s.node.system_container.cpu.usage", "{cpu}", _GAUGE, "CPUs in use"),
        ("k8s.node.system_container.memory.usage", "By", _AMOUNT, "memory in use, with page cache"),
        ("k8s.node.system_container.memory.working_set", "By", _AMOUNT, "usage without inactive page cache"),
    ),
    *_usage("kubelet", "pod", "k8s.pod"),
    *_of(
        "kubelet",
        "pod",
        ("k8s.pod.network.io", "By", _COUNTER, "bytes sent and received", _NET, "in a network of its own"),
        ("k8s.pod.network.errors", "{error}", _COUNTER, "network errors", _NET, "in a network of its own"),
        ("k8s.pod.filesystem.usage", "By", _AMOUNT, "ephemeral storage that it uses"),
        ("k8s.pod.volume.usage", "By", _AMOUNT, "space used on a volume", _VOLUME, "of a claim that the kubelet can measure"),
        ("k8s.pod.volume.available", "By", _AMOUNT, "space left on it", _VOLUME, "likewise"),
        ("k8s.pod.volume.capacity", "By", _AMOUNT, "its size", _VOLUME, "likewise"),
        ("k8s.pod.volume.inode.count", "{inode}", _AMOUNT, "its inodes", _VOLUME, "likewise"),
        ("k8s.pod.volume.inode.free", "{inode}", _AMOUNT, "its free inodes", _VOLUME, "likewise"),
        ("k8s.pod.volume.inode.used", "{inode}", _AMOUNT, "its inodes in use", _VOLUME, "likewise"),
    ),
    *_usage("kubelet", "container", "container"),
    *_of(
        "kubelet",
        "container",
        ("container.uptime", "s", _GAUGE, "time since it started"),
        ("container.paging.faults", "{fault}", _COUNTER, "page faults", _FAULT),
        (
            *("k8s.container.ephemeral_storage.usage", "By", _AMOUNT, "its own layer and its logs"),
            ("k8s.container.ephemeral_storage.fs_type",),
        ),
    ),
    *_of(
        "host",
        "agent",
        ("system.cpu.time", "s", _COUNTER, "CPU time of the host", ("cpu.logical_number", "cpu.mode")),
        ("system.memory.limit", "By", _AMOUNT, "memory of the host"),
        ("system.memory.usage", "By", _AMOUNT, "memory of the host by use", ("system.memory.state",)),
        ("system.memory.linux.available", "By", _AMOUNT, "memory that can be had without swapping"),
        ("system.paging.usage", "By", _AMOUNT, "swap space", ("system.paging.state",)),
        ("system.disk.io", "By", _COUNTER, "bytes read and written", ("system.device", "disk.io.direction")),
        ("system.disk.operations", "{operation}", _COUNTER, "reads and writes", ("system.device", "disk.io.direction")),
        ("system.disk.io_time", "s", _COUNTER, "time that the disk was busy", ("system.device",)),
        ("irca.system.load.1m", "{thread}", _GAUGE, "load average of the last minute"),
        ("irca.system.load.5m", "{thread}", _GAUGE, "load average of the last 5 minutes"),
        ("irca.system.load.15m", "{thread}", _GAUGE, "load average of the last 15 minutes"),
    ),
)
"""In the order in which they are documented: the cluster view's, then the node view's."""

METRICS: Mapping[str, Described] = {described.name: described for described in TABLE}
"""The table by name."""


def metric(name: str, points: Sequence[Point], start_time_unix_nano: int = 0) -> Metric:
    """A metric of the table with these points.

    Raises:
        KeyError: it is not in the table.
    """
    described = METRICS[name]
    return Metric(name, described.unit, described.kind, points, start_time_unix_nano)


def single(name: str, value: float, start_time_unix_nano: int = 0) -> Metric:
    """A metric of the table with one point that has no attributes."""
    return metric(name, [Point(float(value))], start_time_unix_nano)


@functools.lru_cache(maxsize=4096)
def constant(name: str, value: float) -> Metric:
    """As :func:`single`, shared: thousands of objects have the same few values."""
    return single(name, value)


@functools.lru_cache(maxsize=4096)
def status(name: str, known: tuple[str, ...], current: str) -> Metric:
    """One point for every known status, 1 for the current one: no series falls silent when the status changes."""
    [attribute] = METRICS[name].attributes
    return metric(name, [Point(float(each == current), {attribute: each}) for each in known])


def amounts(values: Iterable[tuple[str, float | None]]) -> list[Metric]:
    """Metrics of the table with one point each, of those values that there are."""
    return [single(name, value) for name, value in values if value is not None]
