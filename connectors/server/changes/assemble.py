"""The watchers that a configuration asks for and this system has, and the watch that runs them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from connectors.core.telemetry import Attributes
from connectors.server.changes.model import Watcher
from connectors.server.changes.watch import ChangeWatch, Notifier
from connectors.server.config import ServerConfig

SYSTEMS: Final[dict[str, tuple[str, ...]]] = {
    "packages": ("linux", "darwin", "win32"),
    "files": ("linux", "darwin"),
    "schedules": ("linux", "darwin"),
    "users": ("linux",),
    "certificates": ("linux", "darwin"),
    "boot": ("linux",),
    "clock": ("linux",),
    "kernel_log": ("linux",),
    "units": ("linux",),
    "ports": ("linux",),
    "sysctl": ("linux",),
    "disk_space": ("linux",),
}
"""Systems, as :data:`sys.platform` names them, on which each watcher of the option ``change_watchers`` has something to look at."""


def make_watchers(config: ServerConfig, *, system: str = sys.platform, root: str = "") -> list[Watcher]:
    """The watchers that ``config`` selects, in the order of its list. ``root`` is where the host's files are."""
    excluded = config.network_exclude_interfaces
    makers: dict[str, Sequence[tuple[str, str, tuple[Any, ...]]]] = {
        "boot": [("boot", "BootWatcher", ())],
        "clock": [("clock", "ClockWatcher", ())],
        "kernel_log": [("kernel_log", "KernelLogWatcher", ())],
        "units": [("units", "UnitWatcher", ()), ("units", "UnitFileWatcher", ())],
        "packages": [("packages", "PackageWatcher", ())],
        "files": [("files", "ConfigFileWatcher", (config.watch_files, config.watch_files_exclude))],
        "schedules": [("schedules", "ScheduleWatcher", ())],
        "users": [("users", "UserWatcher", ()), ("users", "SudoersWatcher", ())],
        "ports": [("ports", "PortWatcher", ())],
        "sysctl": [("sysctl", "SysctlWatcher", (excluded,))],
        "certificates": [("certificates", "CertificateWatcher", (config.certificate_paths, config.certificate_thresholds))],
        "disk_space": [("disk_space", "DiskSpaceWatcher", (config,))],
    }
    watchers = []
    for name in config.change_watchers:
        if system not in SYSTEMS[name]:
            continue
        for module, kind, arguments in makers[name]:
            # Imported by name: what is switched off must not stay in the memory of every host.
            made: Callable[..., Watcher] = getattr(import_module(f"connectors.server.changes.{module}"), kind)
            watchers.append(made(*arguments, root=root))
    return watchers


def make_watch(config: ServerConfig, resource: Attributes, state_dir: Path, *, system: str = sys.platform) -> ChangeWatch:
    """The watch of this host."""
    notify = notifier if config.change_notify and system == "linux" else _none
    return ChangeWatch(make_watchers(config, system=system), resource, state_dir, interval=config.change_interval, notify=notify)


def notifier() -> Notifier | None:
    """What tells of directories in which something happens; None where the kernel or this user's rights do not allow it."""
    try:
        from connectors.server.changes.inotify import Inotify  # noqa: PLC0415 - a system without inotify lacks what it needs

        return Inotify()
    except (ImportError, AttributeError, OSError):
        return None


def _none() -> Notifier | None:
    return None
