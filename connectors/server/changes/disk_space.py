"""Disks that are nearly full, in bytes or in inodes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import ClassVar, Final

from connectors.core.telemetry import AttributeValue, Severity
from connectors.server.changes.model import Change, Look, Memory, Watcher, read_file
from connectors.server.config import ServerConfig

HYSTERESIS: Final = 0.05
"""How far below the threshold a filesystem must fall before it counts as recovered."""
CRITICAL: Final = 0.98
_LOCAL: Final = frozenset(
    ["bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "ntfs3", "overlay", "reiserfs", "tmpfs", "vfat", "xfs", "zfs"]
)
"""Filesystems of this machine: looking at them cannot hang on a server that is gone."""
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")
_LARGEST: Final = 4 * 1024 * 1024


class DiskSpaceWatcher(Watcher):
    """Tells of filesystems that pass the threshold, and of those that have recovered. It says so from the first look on."""

    name: ClassVar[str] = "disk_space"
    interval: ClassVar[float] = 30.0

    def __init__(self, config: ServerConfig, root: str = "") -> None:
        self._threshold = config.disk_space_threshold
        self._types = [re.compile(pattern) for pattern in config.filesystem_exclude_types]
        self._places = [re.compile(pattern) for pattern in config.filesystem_exclude_mounts]
        self._table_path = f"{root}/proc/self/mounts"
        self._root = root
        self._table = b""
        self._mounts: dict[str, tuple[str, str]] = {}

    def look(self, memory: Memory) -> Look | None:
        """As :meth:`Watcher.look`."""
        table = read_file(self._table_path, _LARGEST)
        if table != self._table:
            self._mounts = {place: (device, kind) for device, place, kind in self._watched(table.decode(errors="surrogateescape"))}
            self._table = table
        known: dict[str, list[str]] = json.loads(memory.stamp) if memory.stamp else {}
        levels: dict[str, list[str]] = {}
        changes: list[Change] = []
        for place, (device, kind) in self._mounts.items():
            before = known.get(place, [])
            try:
                shares = _shares(self._root + place)
            except OSError:  # unmounted just now, or not to be looked at by this user
                levels[place] = before
                continue
            now = [what for what, (share, _) in shares.items() if _is_full(share, self._threshold, before, what)]
            now += [
                f"{what}!" for what in now if shares[what][0] >= CRITICAL or (f"{what}!" in before and shares[what][0] >= CRITICAL - 0.01)
            ]
            levels[place] = now
            labels = {"system.filesystem.mountpoint": place, "system.device": device, "system.filesystem.type": kind}
            for what, (share, free) in shares.items():
                if (what in now and what not in before) or (f"{what}!" in now and f"{what}!" not in before):
                    changes.append(_full(what, share, free, labels, self._threshold))
                elif what in before and what not in now:
                    changes.append(_recovered(what, share, free, labels))
        levels = {place: each for place, each in sorted(levels.items()) if each}
        if memory.stamp is not None and levels == known:
            return None
        return Look(json.dumps(levels), {}, changes)

    def _watched(self, table: str) -> Iterator[tuple[str, str, str]]:
        """Device, mount point and type of what is watched. What is mounted twice is looked at where it was mounted first."""
        seen: dict[str, str] = {}
        for line in table.splitlines():
            fields = [_ESCAPE.sub(lambda match: chr(int(match[1], 8)), field) for field in line.split(" ")]
            if len(fields) < 4:  # noqa: PLR2004 - device, place, type and options
                continue
            device, place, kind, options = fields[:4]
            if kind not in _LOCAL or "ro" in options.split(","):
                continue
            if any(p.fullmatch(place) for p in self._places) or (place != "/" and any(p.fullmatch(kind) for p in self._types)):
                continue
            if device.startswith("/") and seen.setdefault(device, place) != place:
                continue
            yield device, place, kind


def _shares(path: str) -> dict[str, tuple[float, int]]:
    """Of space and inodes, the share in use (as ``df`` counts it) and how much is free."""
    found = os.statvfs(path)
    shares = {}
    if used_or_free := found.f_blocks - found.f_bfree + found.f_bavail:
        shares["space"] = (1 - found.f_bavail / used_or_free, found.f_bavail * found.f_frsize)
    if found.f_files and found.f_ffree <= found.f_files:
        shares["inodes"] = (1 - found.f_ffree / found.f_files, found.f_ffree)
    return shares


def _is_full(share: float, threshold: float, before: list[str], what: str) -> bool:
    return share >= threshold or (what in before and share > threshold - HYSTERESIS)


def _full(what: str, share: float, free: int, labels: dict[str, str], threshold: float) -> Change:
    place = labels["system.filesystem.mountpoint"]
    attributes: dict[str, AttributeValue] = {**labels, **_measures(what, share, free), "irca.filesystem.threshold": threshold}
    left = f"{free / 2**20:.0f} MiB" if what == "space" else f"{free} inodes"
    body = f"{place} is nearly full: {share:.1%} of its {what} in use, {left} left"
    return Change(
        "filesystem.nearly_full",
        f"{place} {what} {'critical' if share >= CRITICAL else ''}",
        body,
        attributes,
        Severity.ERROR if share >= CRITICAL else Severity.WARN,
    )


def _recovered(what: str, share: float, free: int, labels: dict[str, str]) -> Change:
    place = labels["system.filesystem.mountpoint"]
    body = f"{place} has room again: {share:.1%} of its {what} in use"
    return Change("filesystem.recovered", f"{place} {what}", body, {**labels, **_measures(what, share, free)})


def _measures(what: str, share: float, free: int) -> dict[str, AttributeValue]:
    return {"irca.filesystem.resource": what, "irca.filesystem.utilization": round(share, 4), "irca.filesystem.free": free}
