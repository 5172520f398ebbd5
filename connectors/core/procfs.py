"""A Linux host's own figures as metrics: pure functions of the texts in ``/proc``, for the types that read another host's, or their node's.

Counters start when the host booted, which ``/proc/stat`` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from connectors.core.telemetry import Attributes, Kind, Metric, Point

_CPU_COLUMNS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_CPU_MODES = {mode: (mode,) for mode in ("user", "nice", "system", "idle", "iowait", "steal")} | {"interrupt": ("irq", "softirq")}
_SECTOR = 512
"""Bytes of a sector in ``/proc/diskstats``, whatever the device's own are."""
_VIRTUAL_DISKS = ("loop", "ram", "zram", "dm-", "md", "sr", "fd")


def boot_time(stat: str) -> int:
    """When the host booted, in Unix nanoseconds, from ``/proc/stat``; 0 where it does not say."""
    found = next((line for line in stat.splitlines() if line.startswith("btime ")), "btime 0")
    return int(found.split()[1]) * 1_000_000_000


def cpu_metrics(stat: str, ticks: int) -> Iterator[Metric]:
    """``system.cpu.time`` by CPU and mode, from ``/proc/stat`` with ``ticks`` a second."""
    points = []
    for line in stat.splitlines():
        key, *values = line.split()
        if key.startswith("cpu") and key != "cpu":
            spent = dict(zip(_CPU_COLUMNS, map(int, values), strict=False))
            for mode, columns in _CPU_MODES.items():
                seconds = sum(spent.get(column, 0) for column in columns) / ticks
                points.append(Point(seconds, {"cpu.logical_number": int(key[3:]), "cpu.mode": mode}))
    yield Metric("system.cpu.time", "s", Kind.COUNTER, points, boot_time(stat))


def memory_metrics(meminfo: str) -> Iterator[Metric]:
    """Memory by state, its limit, and paging space, from ``/proc/meminfo``."""
    held = {key: int(rest.split()[0]) * 1024 for key, _, rest in (line.partition(":") for line in meminfo.splitlines()) if rest.strip()}
    cached = held["Cached"] + held.get("SReclaimable", 0)
    states = {"free": held["MemFree"], "cached": cached, "buffers": held["Buffers"]}
    states["used"] = max(0, held["MemTotal"] - sum(states.values()))
    yield _bytes("system.memory.limit", {"": held["MemTotal"]}, "")
    yield _bytes("system.memory.usage", states, "system.memory.state")
    yield _bytes("system.memory.linux.available", {"": held["MemAvailable"]}, "")
    swap = {"used": held["SwapTotal"] - held["SwapFree"], "free": held["SwapFree"]}
    yield _bytes("system.paging.usage", swap, "system.paging.state")


def load_metrics(loadavg: str) -> Iterator[Metric]:
    """The load averages of ``/proc/loadavg``."""
    for span, text in zip(("1m", "5m", "15m"), loadavg.split()[:3], strict=True):
        yield Metric(f"irca.system.load.{span}", "{thread}", Kind.GAUGE, [Point(float(text))])


def disk_metrics(diskstats: str, started: int) -> Iterator[Metric]:
    """Bytes, operations and busy time of each disk, from ``/proc/diskstats``; partitions and what lies upon disks are left out.

    ``started`` is when counting began, in Unix nanoseconds.
    """
    transferred, operations, busy, seen = [], [], [], ""
    for line in diskstats.splitlines():
        _, _, name, *rest = line.split()
        reads, _, sectors_read, _, writes, _, sectors_written, _, _, milliseconds = map(int, rest[:10])
        if name.startswith(_VIRTUAL_DISKS) or not (reads or writes) or _is_partition(name, seen):
            continue
        seen = name
        directions: list[Attributes] = [{"system.device": name, "disk.io.direction": each} for each in ("read", "write")]
        transferred += [Point(float(n * _SECTOR), d) for n, d in zip((sectors_read, sectors_written), directions, strict=True)]
        operations += [Point(float(n), d) for n, d in zip((reads, writes), directions, strict=True)]
        busy.append(Point(milliseconds / 1000, {"system.device": name}))
    if busy:
        yield Metric("system.disk.io", "By", Kind.COUNTER, transferred, started)
        yield Metric("system.disk.operations", "{operation}", Kind.COUNTER, operations, started)
        yield Metric("system.disk.io_time", "s", Kind.COUNTER, busy, started)


def _is_partition(name: str, disk: str) -> bool:
    """Whether this is a part of the disk that was listed before it (sda1 of sda, nvme0n1p2 of nvme0n1)."""
    rest = name.removeprefix(disk).removeprefix("p")
    return bool(disk) and name.startswith(disk) and rest.isdigit()


def _bytes(name: str, values: Mapping[str, int], attribute: str) -> Metric:
    points = [Point(float(value), {attribute: key} if attribute else {}) for key, value in values.items()]
    return Metric(name, "By", Kind.UPDOWNCOUNTER, points)
