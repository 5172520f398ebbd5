"""Every metric of the server agent type, in one table: the reference is generated from it, and a test holds the collectors to it.

The running agent does not load it: each of its hosts would carry the descriptions in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from connectors.core.telemetry import Kind


@dataclass(frozen=True, slots=True)
class Described:
    """A metric as documented: ``collector`` sends it, ``attributes`` are its points' own, ``only`` says when; empty for always."""

    name: str
    unit: str
    kind: Kind
    collector: str
    meaning: str
    attributes: tuple[str, ...] = ()
    only: str = ""


_GAUGE, _COUNTER, _AMOUNT = Kind.GAUGE, Kind.COUNTER, Kind.UPDOWNCOUNTER
_MODE = ("cpu.mode",)
_BLOCK, _DEVICE = ("system.device", "disk.io.direction"), ("system.device",)
_NET = ("network.interface.name", "network.io.direction")
_MOUNT = ("system.device", "system.filesystem.mountpoint", "system.filesystem.type", "system.filesystem.mode")
_PROCESS = ("process.pid", "process.executable.name", "process.command_line")
_LINUX, _SYSTEMD, _TOP = "on Linux", "where systemd runs the host", "with top_processes; process.command_line with top_process_arguments"

TABLE: tuple[Described, ...] = (
    Described("system.cpu.time", "s", _COUNTER, "cpu", "CPU time", ("cpu.mode", "cpu.logical_number")),
    Described("system.cpu.utilization", "1", _GAUGE, "cpu", "share of each mode since the round before", _MODE, "from the second round"),
    Described("system.cpu.logical.count", "{cpu}", _AMOUNT, "cpu", "logical CPUs"),
    Described("irca.system.load.1m", "{thread}", _GAUGE, "load", "load average of the last minute"),
    Described("irca.system.load.5m", "{thread}", _GAUGE, "load", "load average of the last 5 minutes"),
    Described("irca.system.load.15m", "{thread}", _GAUGE, "load", "load average of the last 15 minutes"),
    Described("system.memory.usage", "By", _AMOUNT, "memory", "memory by use", ("system.memory.state",)),
    Described("system.memory.utilization", "1", _GAUGE, "memory", "the same as a share of all", ("system.memory.state",)),
    Described("system.memory.limit", "By", _AMOUNT, "memory", "memory of the host"),
    Described("system.memory.linux.available", "By", _AMOUNT, "memory", "memory that can be had without swapping", only=_LINUX),
    Described("system.paging.usage", "By", _AMOUNT, "paging", "swap space", ("system.paging.state",)),
    Described("system.paging.utilization", "1", _GAUGE, "paging", "the same as a share of all", ("system.paging.state",), "with swap"),
    Described("system.paging.faults", "{fault}", _COUNTER, "paging", "page faults", ("system.paging.fault.type",), _LINUX),
    Described("system.paging.operations", "{operation}", _COUNTER, "paging", "pages swapped", ("system.paging.direction",), _LINUX),
    Described("system.disk.io", "By", _COUNTER, "disk", "bytes read and written", _BLOCK, "once the device was used"),
    Described("system.disk.operations", "{operation}", _COUNTER, "disk", "reads and writes", _BLOCK, "once the device was used"),
    Described("system.disk.io_time", "s", _COUNTER, "disk", "time in which the device was busy", _DEVICE, "on Linux, once it was used"),
    Described("system.filesystem.usage", "By", _AMOUNT, "filesystem", "space by state", (*_MOUNT, "system.filesystem.state")),
    Described("system.filesystem.utilization", "1", _GAUGE, "filesystem", "used / (used + free for everybody), as df has it", _MOUNT),
    Described("system.filesystem.limit", "By", _AMOUNT, "filesystem", "size", _MOUNT),
    Described("system.network.io", "By", _COUNTER, "network", "bytes received and sent", _NET),
    Described("system.network.errors", "{error}", _COUNTER, "network", "errors", _NET),
    Described("system.network.packet.dropped", "{packet}", _COUNTER, "network", "packets dropped", _NET),
    Described(
        "system.network.connection.count",
        "{connection}",
        _AMOUNT,
        "network",
        "TCP connections by state, UDP sockets",
        ("network.transport", "network.connection.state"),
    ),
    Described("system.process.count", "{process}", _AMOUNT, "processes", "processes"),
    Described("system.uptime", "s", _GAUGE, "uptime", "time since the host booted"),
    Described(
        "irca.host.file_descriptor.count", "{file_descriptor}", _AMOUNT, "file_descriptors", "open files of the whole host", only=_LINUX
    ),
    Described("irca.host.file_descriptor.limit", "{file_descriptor}", _AMOUNT, "file_descriptors", "how many there may be", only=_LINUX),
    Described(
        "process.unix.file_descriptor.count",
        "{file_descriptor}",
        _AMOUNT,
        "file_descriptors",
        "open files of the agent itself",
        only="not on Windows, where it is process.windows.handle.count",
    ),
    Described("irca.systemd.unit.count", "{unit}", _AMOUNT, "systemd", "units by state", ("irca.systemd.unit.active_state",), _SYSTEMD),
    Described(
        "irca.systemd.unit.state",
        "{unit}",
        _AMOUNT,
        "systemd",
        "1 for the state the unit is in, 0 for the others",
        ("irca.systemd.unit.name", "irca.systemd.unit.active_state"),
        "for units that failed since the agent started, and those that systemd_units names",
    ),
    Described("process.memory.usage", "By", _AMOUNT, "top_processes", "resident memory of a process", _PROCESS, _TOP),
    Described(
        "process.cpu.utilization",
        "1",
        _GAUGE,
        "top_processes",
        "its share of the host's CPU time since the round before",
        _PROCESS,
        _TOP,
    ),
)
"""In the order in which they are documented."""

METRICS: Mapping[str, Described] = {described.name: described for described in TABLE}
"""The table by name."""
