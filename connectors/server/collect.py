"""Collectors of a server agent: what the operating system counts, under OpenTelemetry's names.

They are read every few seconds on somebody's machine, so each reads few files, none reads anything for each process or socket unless
it was asked for, and attributes are built once. The points of a host that does not change keep their order and number from the second
round on (CPU utilisation needs two samples), which lets the platform recognise them. Counters start when the host booted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import psutil

from connectors.core.collector import Collector
from connectors.core.errors import CollectorError
from connectors.core.telemetry import Attributes, Kind, Metric, Point
from connectors.server.config import ServerConfig
from connectors.server.filesystems import FilesystemCollector
from connectors.server.host_collector import BootTime, Exclusion, HostCollector, read_proc
from connectors.server.processes import FileDescriptorCollector, TopProcessCollector
from connectors.server.units_collector import UnitsCollector

_IO_DIRECTIONS: Final = ("read", "write")
_NETWORK_DIRECTIONS: Final = ("receive", "transmit")

_CPU_MODES: Final = (
    ("user", ("user",)),
    ("system", ("system",)),
    ("nice", ("nice",)),
    ("idle", ("idle",)),
    ("iowait", ("iowait",)),
    ("interrupt", ("irq", "softirq")),
    ("steal", ("steal",)),
)
"""``cpu.mode`` values and the fields of psutil's that make them up. Guest time is left out: Linux counts it under user already."""


def make_collectors(config: ServerConfig, resource: Attributes) -> list[Collector]:
    """The collectors that ``config`` selects, in the order of its list, then the one of the top processes; all report for ``resource``."""
    boot = BootTime()
    makers: dict[str, Callable[[], Collector]] = {
        "cpu": lambda: CpuCollector(resource, boot, per_core=config.cpu_per_core),
        "load": lambda: LoadCollector(resource),
        "memory": lambda: MemoryCollector(resource),
        "paging": lambda: PagingCollector(resource, boot),
        "disk": lambda: DiskCollector(resource, boot, Exclusion(config.disk_exclude_devices)),
        "filesystem": lambda: FilesystemCollector(
            resource,
            Exclusion(config.filesystem_exclude_types),
            Exclusion(config.filesystem_exclude_mounts),
            timeout=config.filesystem_timeout,
        ),
        "network": lambda: NetworkCollector(resource, boot, Exclusion(config.network_exclude_interfaces)),
        "processes": lambda: ProcessCollector(resource),
        "uptime": lambda: UptimeCollector(resource),
        "file_descriptors": lambda: FileDescriptorCollector(resource),
        "systemd": lambda: UnitsCollector(resource, config.systemd_units),
    }
    collectors = [makers[name]() for name in config.collectors]
    if config.top_processes:
        collectors.append(TopProcessCollector(resource, config.top_processes, arguments=config.top_process_arguments))
    return collectors


class CpuCollector(HostCollector):
    """CPU time by mode (and logical CPU), the share of each mode since the last round, and the number of logical CPUs."""

    name = "cpu"
    _source = "CPU times"

    def __init__(self, resource: Attributes, boot: BootTime, *, per_core: bool = True) -> None:
        super().__init__(resource)
        self._boot = boot
        self._per_core = per_core
        self._modes: list[tuple[int, ...]] = []
        self._labels: list[Attributes] = []
        self._time_labels: list[Attributes] = []
        self._last: list[float] = []
        self._shares: list[float] = []

    def _gather(self) -> Iterator[Sequence[Metric]]:
        cores: Sequence[tuple[float, ...]] = psutil.cpu_times(percpu=True)
        if not cores:
            raise CollectorError("the system lists no CPU")
        if not self._modes:
            self._learn(getattr(cores[0], "_fields", ()))
        modes = self._modes
        times = [[sum([core[i] for i in fields]) for fields in modes] for core in cores]
        totals = [sum(column) for column in zip(*times, strict=True)]
        values = [value for core in times for value in core] if self._per_core else totals
        if len(self._time_labels) != len(values):
            self._time_labels = (
                [{**label, "cpu.logical_number": number} for number in range(len(cores)) for label in self._labels]
                if self._per_core
                else self._labels
            )
            self._last = []  # CPUs came or went: their times must not be taken for time that passed
        metrics = [
            _counter("system.cpu.time", "s", _points(values, self._time_labels), self._boot),
            Metric("system.cpu.logical.count", "{cpu}", Kind.UPDOWNCOUNTER, [Point(len(cores))]),
        ]
        if shares := self._utilization(totals):
            metrics.append(Metric("system.cpu.utilization", "1", Kind.GAUGE, _points(shares, self._labels)))
        yield metrics

    def _learn(self, fields: Sequence[str]) -> None:
        known = [(mode, parts) for mode, parts in _CPU_MODES if all(part in fields for part in parts)]
        self._modes = [tuple(fields.index(part) for part in parts) for _, parts in known]
        self._labels = [{"cpu.mode": mode} for mode, _ in known]

    def _utilization(self, totals: list[float]) -> list[float]:
        """Each mode's share of the time since the last round; the last shares again when none passed, nothing in the first round."""
        last, self._last = self._last, totals
        if not last:
            self._shares = []
            return []
        # Linux lets idle and iowait of a CPU step back by a tick.
        passed = [max(0.0, now - before) for now, before in zip(totals, last, strict=True)]
        if whole := sum(passed):
            self._shares = [part / whole for part in passed]
        return self._shares


class LoadCollector(HostCollector):
    """Load averages. OpenTelemetry has no name for them; they have one of our own."""

    name = "load"
    _source = "load averages"

    def _gather(self) -> Iterator[Sequence[Metric]]:
        loads = zip(("1m", "5m", "15m"), psutil.getloadavg(), strict=True)
        yield [Metric(f"irca.system.load.{span}", "{thread}", Kind.GAUGE, [Point(load)]) for span, load in loads]


class MemoryCollector(HostCollector):
    """Physical memory by state. On Linux ``used`` is what is not available, as the conventions say, so that states may overlap."""

    name = "memory"
    _source = "memory statistics"

    _states = tuple({"system.memory.state": state} for state in ("used", "free", "buffers", "cached"))

    def _gather(self) -> Iterator[Sequence[Metric]]:
        memory = psutil.virtual_memory()
        total = memory.total
        used = max(0, total - memory.available)
        sizes = [used, memory.free, memory.buffers, memory.cached] if psutil.LINUX else [used, total - used]
        if not total:
            raise CollectorError("the system reports no memory")
        metrics = [
            Metric("system.memory.usage", "By", Kind.UPDOWNCOUNTER, _points(sizes, self._states)),
            Metric("system.memory.utilization", "1", Kind.GAUGE, _points([size / total for size in sizes], self._states)),
            Metric("system.memory.limit", "By", Kind.UPDOWNCOUNTER, [Point(total)]),
        ]
        if psutil.LINUX:
            metrics.append(Metric("system.memory.linux.available", "By", Kind.UPDOWNCOUNTER, [Point(memory.available)]))
        yield metrics


class PagingCollector(HostCollector):
    """Swap space by state; on Linux also page faults, and pages that went to swap and came back."""

    name = "paging"
    _source = "paging statistics"

    _states = tuple({"system.paging.state": state} for state in ("used", "free"))
    _directions = tuple({"system.paging.direction": direction} for direction in ("in", "out"))
    _faults = tuple({"system.paging.fault.type": kind} for kind in ("major", "minor"))

    def __init__(self, resource: Attributes, boot: BootTime) -> None:
        super().__init__(resource)
        self._boot = boot

    def _gather(self) -> Iterator[Sequence[Metric]]:
        if psutil.LINUX:
            memory = read_proc("meminfo")
            total, free = (_field(memory, name) * 1024 for name in (b"SwapTotal:", b"SwapFree:"))
            yield self._space(total - free, free)
            yield self._events(read_proc("vmstat"))
        else:
            swap = psutil.swap_memory()
            yield self._space(swap.used, swap.free)

    def _space(self, used: int, free: int) -> list[Metric]:
        metrics = [Metric("system.paging.usage", "By", Kind.UPDOWNCOUNTER, _points([used, free], self._states))]
        if total := used + free:  # a host without swap uses no share of it
            shares = [used / total, free / total]
            metrics.append(Metric("system.paging.utilization", "1", Kind.GAUGE, _points(shares, self._states)))
        return metrics

    def _events(self, statistics: bytes) -> list[Metric]:
        all_faults, major = _field(statistics, b"pgfault"), _field(statistics, b"pgmajfault")
        swapped = [_field(statistics, b"pswpin"), _field(statistics, b"pswpout")]
        return [
            _counter("system.paging.faults", "{fault}", _points([major, max(0, all_faults - major)], self._faults), self._boot),
            _counter("system.paging.operations", "{operation}", _points(swapped, self._directions), self._boot),
        ]


class DiskCollector(HostCollector):
    """Bytes, operations and busy time of each block device. A device that has done nothing since boot is left out."""

    name = "disk"
    _source = "disk statistics"

    def __init__(self, resource: Attributes, boot: BootTime, exclusion: Exclusion) -> None:
        super().__init__(resource)
        self._boot = boot
        self._exclusion = exclusion
        self._labels = _DirectionLabels("system.device", "disk.io.direction", _IO_DIRECTIONS)

    def _gather(self) -> Iterator[Sequence[Metric]]:
        counters: Mapping[str, Any] = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
        disks = {name: disk for name, disk in counters.items() if (disk.read_count or disk.write_count) and name not in self._exclusion}
        if not disks:
            return
        labels = self._labels.of(disks)
        metrics = [
            _counter("system.disk.io", "By", _points(_pairs(disks, "read_bytes", "write_bytes"), labels), self._boot),
            _counter("system.disk.operations", "{operation}", _points(_pairs(disks, "read_count", "write_count"), labels), self._boot),
        ]
        if hasattr(next(iter(disks.values())), "busy_time"):
            busy = [disk.busy_time / 1000 for disk in disks.values()]
            metrics.append(_counter("system.disk.io_time", "s", _points(busy, self._labels.names), self._boot))
        yield metrics


class NetworkCollector(HostCollector):
    """Bytes, errors and drops of each network interface, and connections.

    On Linux connections are what the kernel keeps count of: TCP connections that are established (those that the peer has closed
    included) or in time_wait, and UDP sockets. Reading them socket by socket would cost milliseconds on any host.
    """

    name = "network"
    _source = "network statistics"

    _connections = (
        {"network.transport": "tcp", "network.connection.state": "established"},
        {"network.transport": "tcp", "network.connection.state": "time_wait"},
        {"network.transport": "udp"},
    )

    def __init__(self, resource: Attributes, boot: BootTime, exclusion: Exclusion) -> None:
        super().__init__(resource)
        self._boot = boot
        self._exclusion = exclusion
        self._labels = _DirectionLabels("network.interface.name", "network.io.direction", _NETWORK_DIRECTIONS)

    def _gather(self) -> Iterator[Sequence[Metric]]:
        counters: Mapping[str, Any] = psutil.net_io_counters(pernic=True, nowrap=False)
        cards = {name: card for name, card in counters.items() if name not in self._exclusion}
        if cards:
            labels = self._labels.of(cards)
            yield [
                _counter("system.network.io", "By", _points(_pairs(cards, "bytes_recv", "bytes_sent"), labels), self._boot),
                _counter("system.network.errors", "{error}", _points(_pairs(cards, "errin", "errout"), labels), self._boot),
                _counter("system.network.packet.dropped", "{packet}", _points(_pairs(cards, "dropin", "dropout"), labels), self._boot),
            ]
        counts = self._count_linux() if psutil.LINUX else self._count_portable()
        yield [Metric("system.network.connection.count", "{connection}", Kind.UPDOWNCOUNTER, _points(counts, self._connections))]

    @staticmethod
    def _count_linux() -> list[int]:
        sockets = read_proc("net/sockstat")
        try:
            sockets6 = read_proc("net/sockstat6")
        except FileNotFoundError:  # a kernel without IPv6
            sockets6 = b"UDP6: inuse 0"
        udp = _named(sockets, b"UDP:", b"inuse") + _named(sockets6, b"UDP6:", b"inuse")
        return [_tcp_established(read_proc("net/snmp")), _named(sockets, b"TCP:", b"tw"), udp]

    @staticmethod
    def _count_portable() -> list[int]:
        connections = psutil.net_connections("inet")
        states = [connection.status for connection in connections]
        return [states.count(psutil.CONN_ESTABLISHED), states.count(psutil.CONN_TIME_WAIT), states.count(psutil.CONN_NONE)]


class ProcessCollector(HostCollector):
    """How many processes there are. Their states would have to be read one by one."""

    name = "processes"
    _source = "processes"

    def _gather(self) -> Iterator[Sequence[Metric]]:
        pids = psutil.pids()
        if psutil.LINUX and 1 not in pids:
            raise CollectorError("the processes of other users are hidden from the agent (/proc is mounted with hidepid)")
        yield [Metric("system.process.count", "{process}", Kind.UPDOWNCOUNTER, [Point(len(pids))])]


class UptimeCollector(HostCollector):
    """How long the host has been up."""

    name = "uptime"
    _source = "uptime"

    def _gather(self) -> Iterator[Sequence[Metric]]:
        seconds = float(read_proc("uptime").split()[0]) if psutil.LINUX else max(0.0, time.time() - psutil.boot_time())
        yield [Metric("system.uptime", "s", Kind.GAUGE, [Point(seconds)])]


class _DirectionLabels:
    """Attributes of things that count in two directions, built once for each set of things."""

    def __init__(self, name_key: str, direction_key: str, directions: tuple[str, str]) -> None:
        self._name_key = name_key
        self._direction_key = direction_key
        self._directions = directions
        self._known: list[str] = []
        self._both: list[Attributes] = []
        self.names: list[Attributes] = []

    def of(self, things: Iterable[str]) -> list[Attributes]:
        """For each of ``things`` one attribute set a direction; afterwards ``names`` holds one without direction for each."""
        if (names := list(things)) != self._known:
            self._known = names
            self.names = [{self._name_key: name} for name in names]
            self._both = [{**label, self._direction_key: direction} for label in self.names for direction in self._directions]
        return self._both


def _points(values: Iterable[float], labels: Iterable[Attributes]) -> list[Point]:
    return [Point(value, label) for value, label in zip(values, labels, strict=False)]


def _counter(name: str, unit: str, points: Sequence[Point], boot: BootTime) -> Metric:
    return Metric(name, unit, Kind.COUNTER, points, boot.nanoseconds())


def _pairs(things: Mapping[str, Any], first: str, second: str) -> list[float]:
    return [getattr(thing, name) for thing in things.values() for name in (first, second)]


def _field(text: bytes, name: bytes) -> int:
    """The number after ``name`` at the beginning of a line. Raises LookupError or ValueError where there is none."""
    start = 0 if text.startswith(name) else text.find(b"\n" + name) + 1
    if not text.startswith(name, start):
        raise LookupError(f"{name.decode().rstrip(':')} is missing")
    return int(text[start + len(name) : start + len(name) + 32].split(None, 1)[0])


def _named(text: bytes, line_name: bytes, name: bytes) -> int:
    """The number after ``name`` in the line that begins with ``line_name``."""
    for line in text.splitlines():
        if line.startswith(line_name):
            words = line.split()
            return int(words[words.index(name) + 1])
    raise LookupError(f"{line_name.decode().rstrip(':')} is missing")


def _tcp_established(text: bytes) -> int:
    """``CurrEstab`` of /proc/net/snmp, where a protocol has a line of names and one of numbers."""
    names, numbers = [line.split() for line in text.splitlines() if line.startswith(b"Tcp:")]
    return int(numbers[names.index(b"CurrEstab")])
