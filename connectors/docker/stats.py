"""What the engine says about a container, as metrics: pure functions of its answers.

The inputs are the engine's JSON: a *summary* (one entry of ``/containers/json``), an *inspection* (``/containers/<id>/json``) and
*statistics* (``/containers/<id>/stats``, one shot).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from connectors.core.telemetry import Attributes, AttributeValue, Kind, Metric, Point

STATES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
HEALTH = ("starting", "healthy", "unhealthy")
NANO = 1_000_000_000
_DIRECTIONS = {"read": "read", "write": "write"}

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CpuSample:
    """How much CPU time a container had used (nanoseconds) when the engine read it (Unix nanoseconds)."""

    used: int
    time_unix_nano: int


@dataclass(frozen=True, slots=True)
class ImageReference:
    """A reference to an image, taken apart. ``registry:5000/team/app:1.2@sha256:…`` has name ``registry:5000/team/app`` and tag ``1.2``."""

    name: str
    tag: str
    digest: str


def split_image(reference: str) -> ImageReference:
    """Take an image reference apart. A bare image id (an untagged image) has neither name nor tag."""
    rest, _, digest = reference.partition("@")
    if rest.startswith("sha256:"):
        return ImageReference("", "", "")
    path, slash, last = rest.rpartition("/")
    last, _, tag = last.partition(":")
    return ImageReference(f"{path}{slash}{last}", tag, digest)


def unix_nano(text: str) -> int:
    """The engine's RFC 3339 time as Unix nanoseconds; 0 for "never" (year 1) and for no time at all."""
    if not text or text.startswith("0001-"):
        return 0
    moment = datetime.fromisoformat(text)
    return int(moment.timestamp()) * NANO + moment.microsecond * 1000


def container_resource(summary: Json, labels: Sequence[str]) -> Attributes:
    """OTel resource attributes of a container: identifying ones first, and of its labels those in ``labels`` only."""
    image = split_image(summary.get("Image") or "")
    attributes: dict[str, AttributeValue] = {"container.id": summary["Id"]}
    if names := summary.get("Names"):
        # A linked container has further names of the form /other/alias; its own is the one without a second slash.
        attributes["container.name"] = min(names, key=lambda name: name.count("/")).lstrip("/")
    if image.name:
        attributes["container.image.name"] = image.name
    if image.tag:
        attributes["container.image.tags"] = [image.tag]
    if image.digest:
        attributes["container.image.repo_digests"] = [f"{image.name}@{image.digest}"]
    if image_id := summary.get("ImageID"):
        attributes["container.image.id"] = image_id
    attributes["container.runtime.name"] = "docker"
    present = summary.get("Labels") or {}
    attributes.update({f"container.label.{key}": present[key] for key in labels if key in present})
    return attributes


def state_metrics(inspection: Json, now_unix_nano: int) -> list[Metric]:
    """State, restarts, health, exit code and uptime, from a container's inspection."""
    state = inspection["State"]
    metrics = [
        _status("irca.container.state", "{container}", STATES, state.get("Status", "")),
        Metric("irca.container.restart.count", "{restart}", Kind.UPDOWNCOUNTER, [Point(float(inspection.get("RestartCount") or 0))]),
    ]
    if (health := (state.get("Health") or {}).get("Status")) in HEALTH:
        metrics.append(_status("irca.container.health.status", "{container}", HEALTH, health))
    started = unix_nano(state.get("StartedAt", ""))
    if state.get("Running") and started:
        metrics.append(Metric("container.uptime", "s", Kind.GAUGE, [Point(max(0, now_unix_nano - started) / NANO)]))
    elif unix_nano(state.get("FinishedAt", "")):
        metrics.append(Metric("irca.container.exit_code", "1", Kind.GAUGE, [Point(float(state.get("ExitCode") or 0))]))
    return metrics


def usage_metrics(inspection: Json, statistics: Json, previous: CpuSample | None) -> list[Metric]:
    """CPU, memory, paging, network, block I/O and processes of a running container. What the engine leaves out is left out."""
    started = unix_nano(inspection["State"].get("StartedAt", ""))
    return [
        *_cpu(statistics, previous, started),
        *_memory(statistics.get("memory_stats") or {}, int((inspection.get("HostConfig") or {}).get("Memory") or 0), started),
        *_network(statistics.get("networks") or {}, started),
        *_disk((statistics.get("blkio_stats") or {}).get("io_service_bytes_recursive") or (), started),
        *_processes(statistics.get("pids_stats") or {}),
    ]


def cpu_sample(statistics: Json) -> CpuSample | None:
    """The CPU time in ``statistics``; None when the engine read nothing (the container had just ended)."""
    used = ((statistics.get("cpu_stats") or {}).get("cpu_usage") or {}).get("total_usage")
    read = unix_nano(statistics.get("read", ""))
    return CpuSample(int(used), read) if used and read else None


def cpu_usage(previous: CpuSample | None, current: CpuSample) -> float | None:
    """CPUs in use between two samples of our own; None when they cannot be compared (first sample, restart, clock set back)."""
    if previous is None or current.time_unix_nano <= previous.time_unix_nano or current.used < previous.used:
        return None
    return (current.used - previous.used) / (current.time_unix_nano - previous.time_unix_nano)


def working_set(memory: Json) -> int:
    """Bytes that cannot be reclaimed easily: usage without inactive page cache, which cgroup v1 and v2 name differently."""
    details = memory.get("stats") or {}
    inactive = details.get("total_inactive_file", details.get("inactive_file", 0))  # v1 has both, and means the hierarchy by total_*
    return max(0, int(memory["usage"]) - int(inactive))


def _status(name: str, unit: str, known: Sequence[str], current: str) -> Metric:
    """One point for every known status, 1 for the current one: no series falls silent when the status changes."""
    return Metric(name, unit, Kind.UPDOWNCOUNTER, [Point(float(status == current), {name: status}) for status in known])


def _cpu(statistics: Json, previous: CpuSample | None, started: int) -> Iterator[Metric]:
    current = cpu_sample(statistics)
    if current is None:
        return
    yield Metric("container.cpu.time", "s", Kind.COUNTER, [Point(current.used / NANO)], started)
    usage = cpu_usage(previous, current)
    if usage is not None:
        yield Metric("container.cpu.usage", "{cpu}", Kind.GAUGE, [Point(usage)])


def _memory(memory: Json, limit: int, started: int) -> Iterator[Metric]:
    if "usage" not in memory:
        return
    details = memory.get("stats") or {}
    used = working_set(memory)
    yield _bytes("container.memory.usage", int(memory["usage"]))
    yield _bytes("container.memory.working_set", used)
    resident = details.get("total_rss", details.get("anon"))
    if resident is not None:
        yield _bytes("container.memory.rss", int(resident))
    if limit:  # without a limit of its own the engine reports the host's memory, which is no limit of the container
        yield _bytes("irca.container.memory.limit", limit)
        yield _bytes("container.memory.available", max(0, limit - used))
    faults = details.get("total_pgfault", details.get("pgfault"))
    major = details.get("total_pgmajfault", details.get("pgmajfault"))
    if faults is not None and major is not None:
        points = [
            Point(float(major), {"system.paging.fault.type": "major"}),
            Point(float(max(0, faults - major)), {"system.paging.fault.type": "minor"}),
        ]
        yield Metric("container.paging.faults", "{fault}", Kind.COUNTER, points, started)


def _network(networks: Mapping[str, Json], started: int) -> Iterator[Metric]:
    points = [
        Point(float(counters.get(key) or 0), {"network.interface.name": interface, "network.io.direction": direction})
        for interface, counters in sorted(networks.items())
        for key, direction in (("rx_bytes", "receive"), ("tx_bytes", "transmit"))
    ]
    if points:
        yield Metric("container.network.io", "By", Kind.COUNTER, points, started)


def _disk(entries: Iterable[Json], started: int) -> Iterator[Metric]:
    totals: dict[tuple[str, str], int] = {}
    for entry in entries:
        direction = _DIRECTIONS.get(str(entry.get("op", "")).lower())  # "Read" by cgroup v1, "read" by v2; "Total" and others are sums
        if direction:
            key = (f"{entry.get('major', 0)}:{entry.get('minor', 0)}", direction)
            totals[key] = totals.get(key, 0) + int(entry.get("value") or 0)
    points = [Point(float(value), {"system.device": device, "disk.io.direction": way}) for (device, way), value in sorted(totals.items())]
    if points:
        yield Metric("container.disk.io", "By", Kind.COUNTER, points, started)


def _processes(pids: Json) -> Iterator[Metric]:
    if pids.get("current"):
        yield Metric("irca.container.process.count", "{process}", Kind.UPDOWNCOUNTER, [Point(float(pids["current"]))])


def _bytes(name: str, value: int) -> Metric:
    return Metric(name, "By", Kind.UPDOWNCOUNTER, [Point(float(value))])
