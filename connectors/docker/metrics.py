"""Every metric of the docker agent type, in one table: what is not in it is not sent, and the reference is generated from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from connectors.core.telemetry import Kind, Metric, Point


@dataclass(frozen=True, slots=True)
class Described:
    """A metric as documented: ``attributes`` are its points' own; ``only`` says when it is sent, empty for always.

    ``collector`` is the one that sends it: ``docker.containers`` (of each container, unless the meaning says otherwise),
    ``docker.engine``, ``docker.disk`` or ``docker.host``.
    """

    name: str
    unit: str
    kind: Kind
    collector: str
    meaning: str
    attributes: tuple[str, ...] = ()
    only: str = ""


_CONTAINERS, _ENGINE, _DISK, _HOST = "docker.containers", "docker.engine", "docker.disk", "docker.host"
_GAUGE, _COUNTER, _AMOUNT = Kind.GAUGE, Kind.COUNTER, Kind.UPDOWNCOUNTER
_RUNNING = "while it runs"
_NETWORKED = "while it runs in a network of its own"
_NET = ("network.interface.name", "network.io.direction")
_BLOCK = ("system.device", "disk.io.direction")
_REQUEST = ("irca.engine.request.kind",)
_NAMED = ("process.executable.name",)

TABLE: tuple[Described, ...] = (
    Described(
        "irca.container.state", "{container}", _AMOUNT, _CONTAINERS, "1 for the state it is in, 0 for the others", ("irca.container.state",)
    ),
    Described(
        "irca.container.restart.count", "{restart}", _AMOUNT, _CONTAINERS, "restarts by its restart policy since it was last started"
    ),
    Described(
        "irca.container.health.status",
        "{container}",
        _AMOUNT,
        _CONTAINERS,
        "1 for what its health check says, 0 for the others",
        ("irca.container.health.status",),
        "with a health check",
    ),
    Described("container.uptime", "s", _GAUGE, _CONTAINERS, "time since it started", only=_RUNNING),
    Described("irca.container.exit_code", "1", _GAUGE, _CONTAINERS, "exit code of its main process", only="after it has ended"),
    Described("container.cpu.time", "s", _COUNTER, _CONTAINERS, "CPU time used", only=_RUNNING),
    Described(
        "container.cpu.usage",
        "{cpu}",
        _GAUGE,
        _CONTAINERS,
        "CPUs in use since the round before",
        only="while it runs, from the second round",
    ),
    Described(
        "irca.container.cpu.mode.time",
        "s",
        _COUNTER,
        _CONTAINERS,
        "CPU time in user and kernel mode, which cgroup v1 measures more coarsely than the whole",
        ("cpu.mode",),
        _RUNNING,
    ),
    Described("irca.container.cpu.throttling.time", "s", _COUNTER, _CONTAINERS, "time held back by its CPU limit", only=_RUNNING),
    Described("irca.container.cpu.throttling.periods", "{period}", _COUNTER, _CONTAINERS, "scheduler periods held back in", only=_RUNNING),
    Described("irca.container.cpu.limit", "{cpu}", _AMOUNT, _CONTAINERS, "CPUs that it may use", only="while it runs with a CPU limit"),
    Described("container.memory.usage", "By", _AMOUNT, _CONTAINERS, "memory in use, with page cache", only=_RUNNING),
    Described("container.memory.working_set", "By", _AMOUNT, _CONTAINERS, "usage without inactive page cache", only=_RUNNING),
    Described("container.memory.rss", "By", _AMOUNT, _CONTAINERS, "anonymous memory", only=_RUNNING),
    Described(
        "irca.container.memory.limit", "By", _AMOUNT, _CONTAINERS, "memory that it may use", only="while it runs with a memory limit"
    ),
    Described("container.memory.available", "By", _AMOUNT, _CONTAINERS, "limit less working set", only="while it runs with a memory limit"),
    Described("container.paging.faults", "{fault}", _COUNTER, _CONTAINERS, "page faults", ("system.paging.fault.type",), _RUNNING),
    Described("container.network.io", "By", _COUNTER, _CONTAINERS, "bytes sent and received", _NET, _NETWORKED),
    Described("irca.container.network.packet.count", "{packet}", _COUNTER, _CONTAINERS, "packets sent and received", _NET, _NETWORKED),
    Described("irca.container.network.packet.dropped", "{packet}", _COUNTER, _CONTAINERS, "packets dropped", _NET, _NETWORKED),
    Described("irca.container.network.errors", "{error}", _COUNTER, _CONTAINERS, "network errors", _NET, _NETWORKED),
    Described("container.disk.io", "By", _COUNTER, _CONTAINERS, "bytes read and written", _BLOCK, "once a block device was used"),
    Described(
        "irca.container.disk.operations",
        "{operation}",
        _COUNTER,
        _CONTAINERS,
        "block I/O operations",
        _BLOCK,
        "once a block device was used, on cgroup v1",
    ),
    Described("irca.container.process.count", "{process}", _AMOUNT, _CONTAINERS, "processes and threads", only=_RUNNING),
    Described(
        "irca.container.process.limit",
        "{process}",
        _AMOUNT,
        _CONTAINERS,
        "processes and threads allowed",
        only="while it runs with a limit",
    ),
    Described(
        "irca.engine.container.unmeasured",
        "{container}",
        _AMOUNT,
        _CONTAINERS,
        "of the engine: containers that the engine did not answer for in this round",
    ),
    Described("irca.engine.request.count", "{request}", _COUNTER, _ENGINE, "our requests to the engine since the agent started", _REQUEST),
    Described("irca.engine.request.failed", "{request}", _COUNTER, _ENGINE, "those that failed", _REQUEST),
    Described("irca.engine.request.duration", "s", _COUNTER, _ENGINE, "time that they took, waiting included", _REQUEST),
    Described(
        "irca.engine.container.count", "{container}", _AMOUNT, _ENGINE, "containers: running, paused, stopped", ("irca.container.state",)
    ),
    Described("irca.engine.image.count", "{image}", _AMOUNT, _ENGINE, "images"),
    Described(
        "irca.engine.info",
        "1",
        _GAUGE,
        _ENGINE,
        "1; its attributes say which engine it is, and which API version is spoken with it",
        ("irca.engine.version", "irca.engine.api_version", "irca.engine.storage_driver", "irca.engine.cgroup_version"),
    ),
    Described(
        "irca.engine.disk.usage",
        "By",
        _AMOUNT,
        _DISK,
        "disk space used by images, containers' own layers, volumes and build cache",
        ("irca.engine.disk.content",),
        "unless disk_usage_interval is 0",
    ),
    Described("irca.engine.volume.count", "{volume}", _AMOUNT, _DISK, "volumes", only="unless disk_usage_interval is 0"),
    Described("irca.engine.process.cpu.time", "s", _COUNTER, _HOST, "CPU time of the engine's own processes", _NAMED, "with host_metrics"),
    Described("irca.engine.process.memory.usage", "By", _AMOUNT, _HOST, "resident memory of the same", _NAMED, "with host_metrics"),
    Described("system.cpu.time", "s", _COUNTER, _HOST, "CPU time of the host", ("cpu.logical_number", "cpu.mode"), "with host_metrics"),
    Described("system.memory.limit", "By", _AMOUNT, _HOST, "memory of the host", only="with host_metrics"),
    Described("system.memory.usage", "By", _AMOUNT, _HOST, "memory of the host by use", ("system.memory.state",), "with host_metrics"),
    Described("system.memory.linux.available", "By", _AMOUNT, _HOST, "memory that can be had without swapping", only="with host_metrics"),
    Described("system.paging.usage", "By", _AMOUNT, _HOST, "swap space", ("system.paging.state",), "with host_metrics"),
    Described("irca.system.load.1m", "{thread}", _GAUGE, _HOST, "load average of the last minute", only="with host_metrics"),
    Described("irca.system.load.5m", "{thread}", _GAUGE, _HOST, "load average of the last 5 minutes", only="with host_metrics"),
    Described("irca.system.load.15m", "{thread}", _GAUGE, _HOST, "load average of the last 15 minutes", only="with host_metrics"),
)
"""In the order in which they are documented."""

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


def status(name: str, known: Iterable[str], current: str) -> Metric:
    """One point for every known status, 1 for the current one: no series falls silent when the status changes."""
    [attribute] = METRICS[name].attributes
    return metric(name, [Point(float(each == current), {attribute: each}) for each in known])
