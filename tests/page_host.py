"""A made-up server for the tests of its page: series that its agent would send, and changes that it would tell."""

from __future__ import annotations

import hashlib
import time

from app.events.records import EventRecord

GIB = 1024**3
MIB = 1024**2

Shape = tuple[str, str, str, dict[str, str], float]


def host_shapes() -> list[Shape]:
    """Name, unit, kind, attributes and level (a second, for counters) of each series."""
    shapes: list[Shape] = [
        ("system.uptime", "s", "gauge", {}, 1_234_567.0),
        ("system.cpu.logical.count", "{cpu}", "updowncounter", {}, 8),
        ("irca.system.load.1m", "{thread}", "gauge", {}, 3.42),
        ("irca.system.load.5m", "{thread}", "gauge", {}, 2.9),
        ("irca.system.load.15m", "{thread}", "gauge", {}, 2.5),
        ("system.memory.limit", "By", "updowncounter", {}, 16 * GIB),
        ("system.memory.linux.available", "By", "updowncounter", {}, 6 * GIB),
        ("system.process.count", "{process}", "updowncounter", {}, 214),
        ("irca.host.file_descriptor.count", "{file_descriptor}", "updowncounter", {}, 4100),
        ("irca.host.file_descriptor.limit", "{file_descriptor}", "updowncounter", {}, 9.223372036854775807e18),
    ]
    for mode, share in {"user": 0.31, "system": 0.08, "iowait": 0.04, "steal": 0.01, "idle": 0.56}.items():
        shapes.append(("system.cpu.utilization", "1", "gauge", {"cpu.mode": mode}, share))
    for state, size in {"used": 10, "cached": 4.5, "buffers": 0.4, "free": 1.1}.items():
        shapes.append(("system.memory.usage", "By", "updowncounter", {"system.memory.state": state}, size * GIB))
    for state, size in {"used": 0.2, "free": 1.8}.items():
        shapes.append(("system.paging.usage", "By", "updowncounter", {"system.paging.state": state}, size * GIB))
    mounts = (
        ("/", "/dev/sda1", "ext4", "rw", 24, 40),
        ("/var/lib/postgresql", "/dev/nvme0n1", "xfs", "rw", 465, 480),
        ("/boot", "/dev/sda2", "vfat", "ro", 0.2, 1),
    )
    for mountpoint, device, kind, mode, used, size in mounts:
        labels = {
            "system.device": device,
            "system.filesystem.mountpoint": mountpoint,
            "system.filesystem.type": kind,
            "system.filesystem.mode": mode,
        }
        shapes.append(("system.filesystem.utilization", "1", "gauge", labels, used / size))
        shapes.append(("system.filesystem.limit", "By", "updowncounter", labels, size * GIB))
        for state, part in {"used": used, "free": size - used, "reserved": 0}.items():
            shapes.append(("system.filesystem.usage", "By", "updowncounter", {**labels, "system.filesystem.state": state}, part * GIB))
    return [*shapes, *_disk_shapes(), *_network_shapes()]


def _disk_shapes() -> list[Shape]:
    shapes: list[Shape] = []
    for device, read, written in (("nvme0n1", 4 * MIB, 22 * MIB), ("sda", 0.1 * MIB, 0.5 * MIB)):
        for direction, level in {"read": read, "write": written}.items():
            labels = {"system.device": device, "disk.io.direction": direction}
            shapes.append(("system.disk.io", "By", "counter", labels, level))
            shapes.append(("system.disk.operations", "{operation}", "counter", labels, level / 65_536))
        shapes.append(("system.disk.io_time", "s", "counter", {"system.device": device}, 0.21 if device == "nvme0n1" else 0.01))
    return shapes


def _network_shapes() -> list[Shape]:
    shapes: list[Shape] = []
    for name, received, sent in (("eth0", 3 * MIB, 9 * MIB), ("eth1", 0.0, 0.0)):
        for direction, level in {"receive": received, "transmit": sent}.items():
            labels = {"network.interface.name": name, "network.io.direction": direction}
            shapes.append(("system.network.io", "By", "counter", labels, level))
            shapes.append(("system.network.errors", "{error}", "counter", labels, 0.0))
            shapes.append(("system.network.packet.dropped", "{packet}", "counter", labels, 0.5 if name == "eth0" else 0.0))
    for transport, state, count in (("tcp", "established", 87), ("tcp", "time_wait", 12), ("udp", "", 9)):
        labels = {"network.transport": transport} | ({"network.connection.state": state} if state else {})
        shapes.append(("system.network.connection.count", "{connection}", "updowncounter", labels, count))
    return shapes


def unit_shapes(**states: str) -> list[Shape]:
    """systemd's units: many that are well, and those that are given (``nightly_backup="failed"``)."""
    names = ("active", "activating", "deactivating", "failed", "inactive", "reloading")
    counts = {"active": 131, "inactive": 42, "failed": list(states.values()).count("failed")}
    shapes: list[Shape] = [
        ("irca.systemd.unit.count", "{unit}", "updowncounter", {"irca.systemd.unit.active_state": state}, counts.get(state, 0))
        for state in names
    ]
    for unit, current in states.items():
        for state in names:
            labels = {"irca.systemd.unit.name": f"{unit.replace('_', '-')}.service", "irca.systemd.unit.active_state": state}
            shapes.append(("irca.systemd.unit.state", "{unit}", "updowncounter", labels, float(state == current)))
    return shapes


def process_shapes(*, arguments: bool = False) -> list[Shape]:
    """The processes with the most CPU time and memory."""
    shapes: list[Shape] = []
    processes = (
        (812, "postgres", "postgres: checkpointer", 0.21, 6200),
        (4411, "java", "java -Xmx2g -jar app.jar --db.password=[redacted]", 0.09, 2100),
        (1, "systemd", "systemd --system", 0.0, 14),
    )
    for pid, name, line, share, size in processes:
        labels = {"process.pid": str(pid), "process.executable.name": name} | ({"process.command_line": line} if arguments else {})
        shapes.append(("process.memory.usage", "By", "updowncounter", labels, size * MIB))
        shapes.append(("process.cpu.utilization", "1", "gauge", labels, share))
    return shapes


def host_changes(agent_id: str, instance_id: str) -> list[EventRecord]:
    """Changes of the host, newest first."""
    told: tuple[tuple[float, int, str, str, dict[str, object]], ...] = (
        (
            2,
            17,
            "irca.host.unit.failed",
            "nightly-backup.service failed.",
            {
                "irca.unit.name": "nightly-backup.service",
                "irca.unit.state.before": "active (running)",
                "irca.unit.state.after": "failed (failed)",
            },
        ),
        (
            7,
            9,
            "irca.host.file.changed",
            "/etc/nginx/nginx.conf changed.",
            {
                "file.path": "/etc/nginx/nginx.conf",
                "irca.file.hash.before": "aa" * 32,
                "irca.file.hash.after": "bb" * 32,
                "irca.file.diff": ["-worker_connections 512;", "+worker_connections 4096;"],
            },
        ),
        (
            31,
            9,
            "irca.host.package.upgraded",
            "openssl was upgraded from 3.0.14 to 3.0.15.",
            {"irca.package.name": "openssl", "irca.package.version.before": "3.0.14", "irca.package.version.after": "3.0.15"},
        ),
        (48, 9, "irca.host.port.opened", "postgres listens on 0.0.0.0:5433.", {"irca.port.address.after": "0.0.0.0:5433"}),
        (70, 13, "irca.host.user.removed", "<b>mallory</b> was removed.", {"irca.user.shell.before": "/bin/sh"}),
    )
    return [
        EventRecord(
            hashlib.sha256(f"{name} {minutes}".encode()).hexdigest()[:32],
            name,
            int((time.time() - minutes * 60) * 1e9),
            severity,
            body,
            attributes=attributes,
            agent_id=agent_id,
            instance_id=instance_id,
            agent_type="server",
        )
        for minutes, severity, name, body, attributes in told
    ]
