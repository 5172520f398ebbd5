"""What the engine says about a container, as metrics: pure functions of its answers.

The inputs are the engine's JSON: a *summary* (one entry of ``/containers/json``), an *inspection* (``/containers/<id>/json``),
*statistics* (``/containers/<id>/stats``, one shot) and an *image* (one entry of ``/images/json``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from connectors.core.telemetry import Attributes, AttributeValue, Metric, Point
from connectors.docker.metrics import metric, single, status

STATES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
HEALTH = ("starting", "healthy", "unhealthy")
COMPOSE_LABELS = ("com.docker.compose.project", "com.docker.compose.service")
"""Labels that are always sent: they say what a container is, as its name does."""
NANO = 1_000_000_000
_DIRECTIONS = {"read": "read", "write": "write"}
_CPU_PERIOD = 100_000
_MODES = (("usage_in_usermode", "user"), ("usage_in_kernelmode", "kernel"))
_NETWORK = (
    ("container.network.io", "bytes"),
    ("irca.container.network.packet.count", "packets"),
    ("irca.container.network.packet.dropped", "dropped"),
    ("irca.container.network.errors", "errors"),
)

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


def container_resource(summary: Json, labels: Sequence[str], *, reference: str = "", image: Json | None = None) -> Attributes:
    """OTel resource attributes of a container: identifying ones first, and of its labels the compose ones and those in ``labels``.

    Args:
        summary: the container, from the list of containers.
        labels: keys of labels that become ``container.label.<key>``.
        reference: the image as the container was created with it. The list shows an image's id instead once its tag has moved on.
        image: the image, where the engine lets us list them: it knows all tags and the digests.
    """
    named = split_image(reference or summary.get("Image") or "")
    image = image or {}
    attributes: dict[str, AttributeValue] = {"container.id": summary["Id"]}
    if names := summary.get("Names"):
        # A linked container has further names of the form /other/alias; its own is the one without a second slash.
        attributes["container.name"] = min(names, key=lambda name: name.count("/")).lstrip("/")
    if named.name:
        attributes["container.image.name"] = named.name
    others = (split_image(tag) for tag in image.get("RepoTags") or ())
    tags = {other.tag for other in others if other.name == named.name} | {named.tag}
    if known := sorted(tags - {""}):
        attributes["container.image.tags"] = known
    digests = {digest for digest in image.get("RepoDigests") or () if not digest.startswith("<none>")}
    if named.digest:
        digests.add(f"{named.name}@{named.digest}")
    if digests:
        attributes["container.image.repo_digests"] = sorted(digests)
    if image_id := summary.get("ImageID"):
        attributes["container.image.id"] = image_id
    attributes["container.runtime.name"] = "docker"
    present = summary.get("Labels") or {}
    wanted = dict.fromkeys((*COMPOSE_LABELS, *labels))
    attributes.update({f"container.label.{key}": present[key] for key in wanted if key in present})
    return attributes


def listed_state(summary: Json) -> list[Metric]:
    """The state alone, from the list of containers: all that is known of one that the engine did not answer for."""
    return [status("irca.container.state", STATES, summary.get("State", ""))]


def state_metrics(inspection: Json, now_unix_nano: int) -> list[Metric]:
    """State, restarts, health, exit code and uptime, from a container's inspection."""
    state = inspection["State"]
    metrics = [
        status("irca.container.state", STATES, state.get("Status", "")),
        single("irca.container.restart.count", inspection.get("RestartCount") or 0),
    ]
    if (health := (state.get("Health") or {}).get("Status")) in HEALTH:
        metrics.append(status("irca.container.health.status", HEALTH, health))
    started = unix_nano(state.get("StartedAt", ""))
    if state.get("Running") and started:
        metrics.append(single("container.uptime", max(0, now_unix_nano - started) / NANO))
    elif unix_nano(state.get("FinishedAt", "")):
        metrics.append(single("irca.container.exit_code", state.get("ExitCode") or 0))
    return metrics


def usage_metrics(inspection: Json, statistics: Json, previous: CpuSample | None) -> list[Metric]:
    """CPU, memory, paging, network, block I/O and processes of a running container. What the engine leaves out is left out."""
    if not unix_nano(statistics.get("read", "")):
        return []  # it had just ended, or was about to begin: the engine read nothing
    started = unix_nano(inspection["State"].get("StartedAt", ""))
    host = inspection.get("HostConfig") or {}
    if previous is not None and previous.time_unix_nano < started:
        previous = None
    return [
        *_cpu(statistics, previous, started),
        *_cpu_limit(host),
        *_memory(statistics.get("memory_stats") or {}, int(host.get("Memory") or 0), started),
        *_network(statistics.get("networks") or {}, started),
        *_disk(statistics.get("blkio_stats") or {}, started),
        *_processes(statistics.get("pids_stats") or {}, int(host.get("PidsLimit") or 0)),
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


def _cpu(statistics: Json, previous: CpuSample | None, started: int) -> Iterator[Metric]:
    current = cpu_sample(statistics)
    if current is None:
        return
    yield single("container.cpu.time", current.used / NANO, started)
    usage = cpu_usage(previous, current)
    if usage is not None:
        yield single("container.cpu.usage", usage)
    spent = statistics["cpu_stats"]["cpu_usage"]
    if all(key in spent for key, _ in _MODES):
        points = [Point(int(spent[key]) / NANO, {"cpu.mode": mode}) for key, mode in _MODES]
        yield metric("irca.container.cpu.mode.time", points, started)
    throttling = statistics["cpu_stats"].get("throttling_data") or {}
    if "throttled_time" in throttling:
        yield single("irca.container.cpu.throttling.time", int(throttling["throttled_time"]) / NANO, started)
        yield single("irca.container.cpu.throttling.periods", int(throttling.get("throttled_periods") or 0), started)


def _cpu_limit(host: Json) -> Iterator[Metric]:
    limit = int(host.get("NanoCpus") or 0) / NANO or int(host.get("CpuQuota") or 0) / int(host.get("CpuPeriod") or _CPU_PERIOD)
    if limit > 0:
        yield single("irca.container.cpu.limit", limit)


def _memory(memory: Json, limit: int, started: int) -> Iterator[Metric]:
    if "usage" not in memory:
        return
    details = memory.get("stats") or {}
    used = working_set(memory)
    yield single("container.memory.usage", int(memory["usage"]))
    yield single("container.memory.working_set", used)
    resident = details.get("total_rss", details.get("anon"))
    if resident is not None:
        yield single("container.memory.rss", int(resident))
    if limit:  # without a limit of its own the engine reports the host's memory, which is no limit of the container
        yield single("irca.container.memory.limit", limit)
        yield single("container.memory.available", max(0, limit - used))
    faults = details.get("total_pgfault", details.get("pgfault"))
    major = details.get("total_pgmajfault", details.get("pgmajfault"))
    if faults is not None and major is not None:
        points = [
            Point(float(major), {"system.paging.fault.type": "major"}),
            Point(float(max(0, faults - major)), {"system.paging.fault.type": "minor"}),
        ]
        yield metric("container.paging.faults", points, started)


def _network(networks: Mapping[str, Json], started: int) -> Iterator[Metric]:
    for name, counter in _NETWORK:
        points = [
            Point(float(counters.get(f"{way}_{counter}") or 0), {"network.interface.name": interface, "network.io.direction": direction})
            for interface, counters in sorted(networks.items())
            for way, direction in (("rx", "receive"), ("tx", "transmit"))
        ]
        if points:
            yield metric(name, points, started)


def _disk(block: Json, started: int) -> Iterator[Metric]:
    if points := _block_points(block.get("io_service_bytes_recursive") or ()):
        yield metric("container.disk.io", points, started)
    if points := _block_points(block.get("io_serviced_recursive") or ()):
        yield metric("irca.container.disk.operations", points, started)


def _block_points(entries: Iterable[Json]) -> list[Point]:
    totals: dict[tuple[str, str], int] = {}
    for entry in entries:
        direction = _DIRECTIONS.get(str(entry.get("op", "")).lower())  # "Read" by cgroup v1, "read" by v2; "Total" and others are sums
        if direction:
            key = (f"{entry.get('major', 0)}:{entry.get('minor', 0)}", direction)
            totals[key] = totals.get(key, 0) + int(entry.get("value") or 0)
    return [Point(float(value), {"system.device": device, "disk.io.direction": way}) for (device, way), value in sorted(totals.items())]


def _processes(pids: Json, limit: int) -> Iterator[Metric]:
    if pids.get("current"):
        yield single("irca.container.process.count", int(pids["current"]))
        if limit > 0:
            yield single("irca.container.process.limit", limit)
