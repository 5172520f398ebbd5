"""A host as its server agent measures it, read from the metric store: what the page and the API show of it.

Everything is PromQL through the in-process engine, in a fixed number of queries however many disks, mounts or units there are.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

from pydantic import BaseModel, Field

from app.telemetry.promql.engine import QueryEngine, Result
from app.telemetry.promql.model import Allowance, Vector
from app.telemetry.promql.names import prometheus_label, prometheus_name
from app.telemetry.promql.quoting import any_of, quoted
from app.telemetry.store import NAME
from connectors.server.metrics import METRICS

MISSED_INTERVALS = 3
"""Collection intervals without a sample after which a disk, mount or unit is gone, counted back from the host's newest sample."""
LOOKBACK = 300.0
"""Seconds that an instant query looks back; a host silent for longer is asked about as of when it was last heard."""
LEAST_RATE_WINDOW = 60.0
MOST_PROCESSES = 50


class CpuView(BaseModel):
    """Use of all CPUs together since the round before; shares are 0 to 1."""

    used: float | None = Field(description="What is neither idle nor waiting for disks.")
    modes: dict[str, float] = Field(description="Share by cpu.mode.")
    logical_count: int | None = Field(description="CPUs as the operating system counts them.")


class LoadView(BaseModel):
    """Load averages; each CPU can bear 1."""

    one: float | None = Field(description="Over the last minute.")
    five: float | None = Field(description="Over the last 5 minutes.")
    fifteen: float | None = Field(description="Over the last 15 minutes.")


class MemoryView(BaseModel):
    """Memory, or swap space, in bytes. Of swap space only used and limit are known."""

    used: float | None = Field(description="Total less what can be had without swapping.")
    available: float | None = Field(description="What can be had without swapping.")
    cached: float | None
    buffers: float | None
    limit: float | None = Field(description="All that there is.")


class DiskView(BaseModel):
    """A block device; rates are averages of about the last minute."""

    device: str
    read_bytes: float | None = Field(description="Bytes a second.")
    written_bytes: float | None = Field(description="Bytes a second.")
    operations: float | None = Field(description="Reads and writes a second.")
    busy: float | None = Field(description="Share of the time in which it had something to do, 0 to 1.")


class FilesystemView(BaseModel):
    """A mounted filesystem; sizes in bytes."""

    mountpoint: str
    device: str
    type: str = Field(description="Such as ext4 or xfs.")
    mode: str = Field(description="rw or ro.")
    used: float | None
    free: float | None = Field(description="For everybody; what is reserved for the superuser is not in it.")
    limit: float | None = Field(description="Its whole size.")
    utilization: float | None = Field(description="used / (used + free), 0 to 1, as df prints it.")


class InterfaceView(BaseModel):
    """A network interface; rates are averages of about the last minute."""

    name: str
    received_bytes: float | None = Field(description="Bytes a second.")
    sent_bytes: float | None = Field(description="Bytes a second.")
    errors: float | None = Field(description="Errors a second, both directions.")
    dropped: float | None = Field(description="Packets a second, both directions.")


class UnitView(BaseModel):
    """A systemd unit that failed since the agent started, or that the agent was told to report."""

    name: str
    active_state: str = Field(description="active, activating, deactivating, failed, inactive or reloading.")


class ProcessView(BaseModel):
    """One of the processes with the most CPU time or memory, where the agent was told to report them."""

    pid: int
    name: str
    command_line: str = Field(description="Shortened; empty unless the agent was told to report it.")
    cpu_utilization: float | None = Field(description="Share of all CPUs since the round before, 0 to 1.")
    memory: float | None = Field(description="Resident bytes.")


class HostView(BaseModel):
    """A host as of its newest sample. What its agent does not report is null or empty."""

    sampled_at: datetime | None = Field(description="Null when it has sent nothing lately.")
    uptime_seconds: float | None = Field(description="Since it was started.")
    cpu: CpuView
    load: LoadView
    memory: MemoryView
    swap: MemoryView
    disks: list[DiskView]
    filesystems: list[FilesystemView] = Field(description="The fullest first.")
    interfaces: list[InterfaceView]
    unit_counts: dict[str, int] = Field(description="systemd units by state; empty where systemd does not run the host.")
    units: list[UnitView] = Field(description="Failed ones first.")
    processes: list[ProcessView] = Field(description="The greatest users of CPU time first.")
    process_count: int | None
    connections: dict[str, int] = Field(description="TCP connections by state, and udp.")
    open_files: int | None = Field(description="File descriptors that are open on the whole host.")
    open_files_limit: float | None = Field(description="File descriptors that the kernel allows on the whole host.")


_NOW = (
    "system.uptime",
    "system.cpu.utilization",
    "system.cpu.logical.count",
    "irca.system.load.1m",
    "irca.system.load.5m",
    "irca.system.load.15m",
    "system.memory.usage",
    "system.memory.limit",
    "system.memory.linux.available",
    "system.paging.usage",
    "system.filesystem.usage",
    "system.filesystem.utilization",
    "system.filesystem.limit",
    "system.network.connection.count",
    "system.process.count",
    "irca.host.file_descriptor.count",
    "irca.host.file_descriptor.limit",
    "irca.systemd.unit.count",
    "irca.systemd.unit.state",
)
_HEARTBEATS = (
    "system.uptime",
    "system.memory.limit",
    "irca.system.load.1m",
    "system.process.count",
    "system.filesystem.limit",
    "system.network.connection.count",
)
"""One of these is in every round: each is of a collector of its own, and they have few series."""
_TOP = ("process.memory.usage", "process.cpu.utilization")
_RATES = (
    "system.disk.io",
    "system.disk.operations",
    "system.disk.io_time",
    "system.network.io",
    "system.network.errors",
    "system.network.packet.dropped",
)
_PROM = {name: prometheus_name(name, METRICS[name].unit, METRICS[name].kind.value) for name in (*_NOW, *_TOP, *_RATES)}
_OTEL = {translated: name for name, translated in _PROM.items()}
_IDLE = frozenset({"idle", "iowait"})
_DEFAULT_INTERVAL = 10.0

_Row = tuple[Mapping[str, str], float]


class HostService:
    """Answers questions about the hosts of server agents."""

    def __init__(self, engine: QueryEngine, *, allowance: Allowance, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._allowance = allowance
        self._clock = clock

    async def read(self, instance_id: str, *, last_seen_at: datetime | None, interval: object = None) -> HostView:
        """The host that the instance measures.

        Args:
            instance_id: whose host.
            last_seen_at: when the instance was last heard; what it reported then is what is known of one that has fallen silent.
            interval: seconds between collections, as the instance's configuration has them; anything else means the default.

        Raises:
            PlatformError: the store failed, or there is more to read than a query may.
        """
        now = self._clock()
        seen = last_seen_at.timestamp() if last_seen_at else now
        asked = int((seen + 1 if now - seen > LOOKBACK else now) * 1000)
        instance = f"instance={quoted(instance_id)}"
        sampled = await self._instant(" or ".join(f"max(timestamp({_PROM[name]}{{{instance}}}))" for name in _HEARTBEATS), asked)
        if not sampled:
            return host_view(None, [], [], {})
        newest, seconds = sampled[0][1], _seconds(interval)
        at = int(newest * 1000)
        snapshot, top, *rates = await asyncio.gather(
            self._instant(_last(_NOW, instance, MISSED_INTERVALS * seconds), at),
            self._instant(_last(_TOP, f'{instance},process_pid!=""', 1.5 * seconds), at),
            *(self._instant(f"rate({_PROM[n]}{{{instance}}}[{round(max(LEAST_RATE_WINDOW, 4 * seconds))}s])", at) for n in _RATES),
        )
        return host_view(datetime.fromtimestamp(newest, UTC), snapshot, top, dict(zip(_RATES, rates, strict=True)))

    async def _instant(self, query: str, time_ms: int) -> list[_Row]:
        return await self._engine.instant(query, time_ms, self._allowance, _rows)


def host_view(sampled_at: datetime | None, snapshot: Iterable[_Row], top: Iterable[_Row], rates: Mapping[str, Iterable[_Row]]) -> HostView:
    """The host that these rows (labels and value) describe: a pure function. ``rates`` are a second, by OTel metric name."""
    values: dict[str, list[_Row]] = {}
    for labels, value in snapshot:
        values.setdefault(_OTEL.get(labels.get(NAME, ""), ""), []).append((labels, value))
    modes = _by(values.get("system.cpu.utilization", ()), "cpu.mode")
    memory = _by(values.get("system.memory.usage", ()), "system.memory.state")
    paging = _by(values.get("system.paging.usage", ()), "system.paging.state")
    counts = {state: round(n) for state, n in _by(values.get("irca.systemd.unit.count", ()), "irca.systemd.unit.active_state").items()}
    return HostView(
        sampled_at=sampled_at,
        uptime_seconds=_one(values, "system.uptime"),
        cpu=CpuView(
            used=min(1.0, sum(share for mode, share in modes.items() if mode not in _IDLE)) if modes else None,
            modes=modes,
            logical_count=_whole(_one(values, "system.cpu.logical.count")),
        ),
        load=LoadView(
            one=_one(values, "irca.system.load.1m"), five=_one(values, "irca.system.load.5m"), fifteen=_one(values, "irca.system.load.15m")
        ),
        memory=MemoryView(
            used=memory.get("used"),
            available=_one(values, "system.memory.linux.available"),
            cached=memory.get("cached"),
            buffers=memory.get("buffers"),
            limit=_one(values, "system.memory.limit"),
        ),
        swap=MemoryView(used=paging.get("used"), available=None, cached=None, buffers=None, limit=sum(paging.values()) if paging else None),
        disks=_disks(rates),
        filesystems=_filesystems(values),
        interfaces=_interfaces(rates),
        unit_counts={state: n for state, n in sorted(counts.items()) if n},
        units=_units(values.get("irca.systemd.unit.state", ())),
        processes=_processes(top),
        process_count=_whole(_one(values, "system.process.count")),
        connections=_connections(values.get("system.network.connection.count", ())),
        open_files=_whole(_one(values, "irca.host.file_descriptor.count")),
        open_files_limit=_one(values, "irca.host.file_descriptor.limit"),
    )


def _disks(rates: Mapping[str, Iterable[_Row]]) -> list[DiskView]:
    device, direction = "system.device", "disk.io.direction"
    moved = _by(rates.get("system.disk.io", ()), device, direction)
    operations = _by(rates.get("system.disk.operations", ()), device)
    busy = _by(rates.get("system.disk.io_time", ()), device)
    return [
        DiskView(
            device=name,
            read_bytes=moved.get(f"{name}\0read"),
            written_bytes=moved.get(f"{name}\0write"),
            operations=operations.get(name),
            busy=min(1.0, busy[name]) if name in busy else None,
        )
        for name in sorted({key.partition("\0")[0] for key in moved} | operations.keys())
    ]


def _filesystems(values: Mapping[str, Iterable[_Row]]) -> list[FilesystemView]:
    mount = "system.filesystem.mountpoint"
    usage = _by(values.get("system.filesystem.usage", ()), mount, "system.filesystem.state")
    limits, shares = (_by(values.get(f"system.filesystem.{name}", ()), mount) for name in ("limit", "utilization"))
    found = []
    for labels, _ in values.get("system.filesystem.limit", ()):
        point = _label(labels, mount)
        found.append(
            FilesystemView(
                mountpoint=point,
                device=_label(labels, "system.device"),
                type=_label(labels, "system.filesystem.type"),
                mode=_label(labels, "system.filesystem.mode"),
                used=usage.get(f"{point}\0used"),
                free=usage.get(f"{point}\0free"),
                limit=limits.get(point),
                utilization=shares.get(point),
            )
        )
    return sorted(found, key=lambda one: (-(one.utilization or 0.0), one.mountpoint))


def _interfaces(rates: Mapping[str, Iterable[_Row]]) -> list[InterfaceView]:
    name = "network.interface.name"
    moved = _by(rates.get("system.network.io", ()), name, "network.io.direction")
    errors, dropped = (_by(rates.get(metric, ()), name) for metric in ("system.network.errors", "system.network.packet.dropped"))
    return [
        InterfaceView(
            name=one,
            received_bytes=moved.get(f"{one}\0receive"),
            sent_bytes=moved.get(f"{one}\0transmit"),
            errors=errors.get(one),
            dropped=dropped.get(one),
        )
        for one in sorted({key.partition("\0")[0] for key in moved})
    ]


def _units(rows: Iterable[_Row]) -> list[UnitView]:
    found = [
        UnitView(name=_label(labels, "irca.systemd.unit.name"), active_state=_label(labels, "irca.systemd.unit.active_state"))
        for labels, value in rows
        if value
    ]
    return sorted(found, key=lambda unit: (unit.active_state != "failed", unit.active_state == "active", unit.name))


def _processes(rows: Iterable[_Row]) -> list[ProcessView]:
    found: dict[str, ProcessView] = {}
    for labels, value in rows:
        pid = _label(labels, "process.pid")
        name, line = _label(labels, "process.executable.name"), _label(labels, "process.command_line")
        if not pid.isdigit():
            continue
        one = found.setdefault(f"{pid}\0{name}", ProcessView(pid=int(pid), name=name, command_line=line, cpu_utilization=None, memory=None))
        if _OTEL.get(labels.get(NAME, "")) == "process.memory.usage":
            one.memory = value
        else:
            one.cpu_utilization = value
    return sorted(found.values(), key=lambda p: (-(p.cpu_utilization or 0.0), -(p.memory or 0.0), p.pid))[:MOST_PROCESSES]


def _connections(rows: Iterable[_Row]) -> dict[str, int]:
    named = [(_label(labels, "network.connection.state") or _label(labels, "network.transport"), value) for labels, value in rows]
    return {name: round(value) for name, value in sorted(named)}


def _last(names: Iterable[str], selector: str, window: float) -> str:
    return f"last_over_time({{__name__=~{any_of(sorted(_PROM[name] for name in names))},{selector}}}[{round(window * 1000)}ms])"


def _by(rows: Iterable[_Row], *keys: str) -> dict[str, float]:
    """Sums of the values by the values of these attributes, joined by NUL where there are several."""
    sums: dict[str, float] = {}
    for labels, value in rows:
        key = "\0".join(_label(labels, each) for each in keys)
        sums[key] = sums.get(key, 0.0) + value
    return sums


def _one(values: Mapping[str, list[_Row]], name: str) -> float | None:
    rows = values.get(name)
    return rows[-1][1] if rows else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _label(labels: Mapping[str, str], key: str) -> str:
    return labels.get(prometheus_label(key), "")


def _rows(result: Result) -> list[_Row]:
    value = result.value
    if not isinstance(value, Vector):
        return []
    return [
        (dict(labels), float(values[0]))
        for labels, values, present in zip(value.labels, value.values, value.present, strict=True)
        if present[0] and math.isfinite(values[0])
    ]


def _seconds(interval: object) -> float:
    valid = isinstance(interval, int | float) and not isinstance(interval, bool) and interval > 0 and math.isfinite(interval)
    return float(interval) if valid and isinstance(interval, int | float) else _DEFAULT_INTERVAL
