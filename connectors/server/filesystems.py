"""The filesystem collector. A filesystem whose server is gone must not take the agent along.

Looking at a mount point can hang for ever, in a call that no signal interrupts. Types that live on this machine are asked directly;
all others (network, FUSE) in a thread of their own with a deadline. A mount that does not answer is named in the collector's reason
and not asked again until that call has come back.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import psutil

from connectors.core.errors import CollectorError
from connectors.core.telemetry import Attributes, Kind, Metric, Point
from connectors.server.host_collector import Exclusion, HostCollector, read_proc

_LOCAL_TYPES: Final = re.compile(
    r"apfs|bcachefs|btrfs|erofs|exfat|ext[234]|f2fs|fat(?:16|32)?|hfs(?:plus)?|jfs|msdos|ntfs3?|overlay|ramfs|refs|reiserfs|rootfs|squashfs|tmpfs|"
    r"udf|ufs|vfat|xfs|zfs",
    re.IGNORECASE,
)
_STATES: Final = ("used", "free", "reserved")
_MOST_NAMED: Final = 3
_MOUNT_POINT, _OPTIONS = 4, 2
"""Fields of a line of mountinfo: before its hyphen, and after."""

Sizes = tuple[int, int, int]
"""Bytes used, free for everybody, and reserved for the superuser: together the filesystem's size."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted filesystem that is reported. ``labels`` are its attributes, ``state_labels`` the same with each state."""

    mountpoint: str
    local: bool
    labels: Attributes
    state_labels: Sequence[Attributes]


class FilesystemCollector(HostCollector):
    """Space of each filesystem by state. One that is mounted in several places is reported at the first."""

    name = "filesystem"
    _source = "mounted filesystems"

    def __init__(
        self,
        resource: Attributes,
        types: Exclusion,
        mountpoints: Exclusion,
        *,
        timeout: float = 2.0,
        measure: Callable[[str], Sizes] | None = None,
    ) -> None:
        super().__init__(resource)
        self._types = types
        self._mountpoints = mountpoints
        self._timeout = timeout
        self._measure = measure or measure_filesystem
        self._table = b""
        self._mounts: list[Mount] = []
        self._probes: dict[str, _Probe] = {}

    def _gather(self) -> Iterator[Sequence[Metric]]:
        self._refresh()
        failures: list[str] = []
        remote = self._ask_remote()
        usage: list[Point] = []
        shares: list[Point] = []
        limits: list[Point] = []
        for mount in self._mounts:
            try:
                sizes = self._measure(mount.mountpoint) if mount.local else remote[mount.mountpoint].result()
            except OSError as exc:
                failures.append(f"{mount.mountpoint}: {exc.strerror or exc}")
                continue
            used, free, _ = sizes
            if not (whole := sum(sizes)):
                continue  # it has no size: nothing is kept there
            usage.extend(Point(size, label) for size, label in zip(sizes, mount.state_labels, strict=True))
            shares.append(Point(used / (used + free) if used + free else 1.0, mount.labels))
            limits.append(Point(whole, mount.labels))
        if usage:
            yield [
                Metric("system.filesystem.usage", "By", Kind.UPDOWNCOUNTER, usage),
                Metric("system.filesystem.utilization", "1", Kind.GAUGE, shares),
                Metric("system.filesystem.limit", "By", Kind.UPDOWNCOUNTER, limits),
            ]
        if failures:
            more = f" and {len(failures) - _MOST_NAMED} more" if len(failures) > _MOST_NAMED else ""
            raise CollectorError(
                f"{'; '.join(failures[:_MOST_NAMED])}{more} (filesystem_exclude_mounts leaves out what need not be watched)"
            )

    def _refresh(self) -> None:
        """Read the mount table anew where it has changed."""
        table = read_proc("self/mounts") if psutil.LINUX else b""
        if table and table == self._table:
            return
        found: dict[str, Mount] = {}
        devices: dict[str, str] = {}
        for device, mountpoint, fstype, options in _partitions():
            if not fstype or mountpoint in self._mountpoints or (fstype in self._types and mountpoint != "/"):
                found.pop(mountpoint, None)  # what is mounted over a filesystem hides it
                continue
            if devices.setdefault(device, mountpoint) != mountpoint and _is_path(device):
                continue
            found[mountpoint] = _describe(device, mountpoint, fstype, options)
        self._mounts = list(found.values())
        self._table = table

    def _ask_remote(self) -> dict[str, _Probe]:
        """Start asking every mount that might hang, all at a time, and give them their time together."""
        names = [mount.mountpoint for mount in self._mounts if not mount.local]
        waiting = {name: probe for name, probe in self._probes.items() if not probe.done()}
        probes = {name: waiting.get(name) or _Probe(name, self._measure) for name in names}
        deadline = time.monotonic() + self._timeout
        for name, probe in probes.items():
            probe.wait(0 if name in waiting else max(0.0, deadline - time.monotonic()))
        self._probes = waiting | probes
        return probes


class _Probe:
    """One question to one mount, in a thread that is left behind if the answer does not come."""

    def __init__(self, mountpoint: str, measure: Callable[[str], Sizes]) -> None:
        self._mountpoint = mountpoint
        self._measure = measure
        self._asked = time.monotonic()
        self._answer: Sizes | OSError | None = None
        self._answered = threading.Event()
        threading.Thread(target=self._run, name=f"statvfs {mountpoint}", daemon=True).start()

    def _run(self) -> None:
        try:
            self._answer = self._measure(self._mountpoint)
        except OSError as exc:
            self._answer = exc
        finally:
            self._answered.set()

    def wait(self, timeout: float) -> None:
        self._answered.wait(timeout)

    def done(self) -> bool:
        return self._answered.is_set()

    def result(self) -> Sizes:
        """The answer. Raises OSError when it is an error or has not come."""
        if isinstance(self._answer, tuple):
            return self._answer
        raise self._answer or OSError(f"no answer for {time.monotonic() - self._asked:.0f} s")


def measure_filesystem(mountpoint: str) -> Sizes:
    """How the bytes of the filesystem at ``mountpoint`` divide.

    Raises:
        OSError: the system refuses to say.
    """
    if hasattr(os, "statvfs"):
        found = os.statvfs(mountpoint)
        unit = found.f_frsize
        return (found.f_blocks - found.f_bfree) * unit, found.f_bavail * unit, max(0, found.f_bfree - found.f_bavail) * unit
    usage = psutil.disk_usage(mountpoint)  # pragma: no cover - Windows only
    return usage.used, usage.free, max(0, usage.total - usage.used - usage.free)  # pragma: no cover - Windows only


def _partitions() -> list[tuple[str, str, str, str]]:
    real: dict[str, str] = {}
    with contextlib.suppress(OSError):  # then the mounts' own options must do
        real = superblock_options(read_proc("self/mountinfo").decode(errors="replace")) if psutil.LINUX else {}
    parts = psutil.disk_partitions(all=True)
    return [(part.device, part.mountpoint, part.fstype, real.get(part.mountpoint, part.opts)) for part in parts]


def superblock_options(table: str) -> dict[str, str]:
    """Options of the filesystems themselves by mount point, from the text of ``mountinfo``.

    Those of the mounts do not tell what the host's are: a sandboxed service (systemd's ``ProtectSystem``) sees all of them read-only.
    """
    found = {}
    for line in table.splitlines():
        mount, separator, filesystem = line.partition(" - ")
        words, kinds = mount.split(" "), filesystem.split(" ")
        if separator and len(words) > _MOUNT_POINT and len(kinds) > _OPTIONS:
            found[re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), words[_MOUNT_POINT])] = kinds[_OPTIONS]
    return found


def _is_path(device: str) -> bool:
    """Whether the device's name tells one filesystem from another ("tmpfs" and "overlay" do not)."""
    return "/" in device or "\\" in device or ":" in device


def _describe(device: str, mountpoint: str, fstype: str, options: str) -> Mount:
    labels: dict[str, str] = {
        "system.device": device,
        "system.filesystem.mountpoint": mountpoint,
        "system.filesystem.type": fstype,
        "system.filesystem.mode": "ro" if "ro" in options.split(",") else "rw",
    }
    states = [{**labels, "system.filesystem.state": state} for state in _STATES]
    return Mount(mountpoint, _LOCAL_TYPES.fullmatch(fstype) is not None, labels, states)
