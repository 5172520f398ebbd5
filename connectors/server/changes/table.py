"""Every watcher of the server agent, in one table: what it sees, how late, at what cost, and which right it needs.

The reference is generated from it; the running agent has no use for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Described:
    """A watcher as documented. ``delay`` is the most seconds until a change is told; ``cost`` what it does when nothing has changed.

    ``right`` says what a user without root does not see, and what would let it; empty where root sees no more.
    """

    name: str
    meaning: str
    source: str
    delay: str
    cost: str
    events: tuple[str, ...]
    systems: str = "Linux"
    right: str = ""


_NOTIFIED = "4 s with inotify (a minute behind links and in directories that do not exist yet), else change_interval"
_POLLED = "change_interval (10 s), and 2 s"

TABLE: tuple[Described, ...] = (
    Described(
        "boot",
        "reboots, another kernel, other kernel parameters",
        "boot id, start of process 1, uname, /proc/cmdline",
        "at the start of the agent",
        "two reads every 5 minutes",
        ("rebooted", "kernel.changed", "kernel.parameters_changed"),
    ),
    Described(
        "clock",
        "steps of the clock of half a second or more, also while the agent was not running (in the same boot)",
        "CLOCK_REALTIME against CLOCK_BOOTTIME",
        _POLLED,
        "three clock reads every 10 s",
        ("clock.stepped",),
    ),
    Described(
        "kernel_log",
        (
            "OOM kills; machine checks, memory errors, hung tasks, lockups, I/O and filesystem errors, read-only remounts, kernel bugs, "
            "segfaults, failed allocations, full connection tracking, SYN floods, links going down, overheating; after the first of a kind "
            "and subject, the others of 5 minutes as a number"
        ),
        "/dev/kmsg, else systemd's journal (journalctl, only when the journal was written to), else the count in /proc/vmstat",
        "12 s from /dev/kmsg and by count, 42 s from the journal",
        "one read every 10 s",
        ("oom_kill", "kernel.alarm"),
        right="/dev/kmsg is root's, the journal its group's (systemd-journal); with neither, OOM kills have no names",
    ),
    Described(
        "units",
        (
            "systemd units that fail, recover, start, stop or are restarted (by systemd or by somebody); unit files, drop-ins and links "
            "that enable units, in /etc/systemd/system and /usr/local/lib/systemd/system"
        ),
        "systemctl show, when a link in /run/systemd/units came or went, and every 10 minutes",
        "17 s (units), as files (unit files)",
        "one stat every 10 s",
        (
            *("unit.failed", "unit.recovered", "unit.started", "unit.stopped", "unit.restarted"),
            *("unit_file.added", "unit_file.changed", "unit_file.removed"),
        ),
    ),
    Described(
        "packages",
        "packages installed, upgraded, downgraded and removed",
        "dpkg's status (with the times of dpkg.log), rpm, apk's database, Homebrew's cellars, Windows' list of programs",
        "4 s with inotify once the manager has written its database, else change_interval",
        "stat of each database every 10 s, every minute with inotify",
        ("package.installed", "package.upgraded", "package.downgraded", "package.removed"),
        "Linux, macOS, Windows",
    ),
    Described(
        "files",
        "configuration files: hash, mode, owner and a difference without what looks like a secret",
        "the files of watch_files",
        _NOTIFIED,
        "stat of each file and directory every 10 s, every minute with inotify",
        ("file.added", "file.changed", "file.removed"),
        "Linux, macOS",
        "of files that it may not read, a user sees that they changed and nothing of what",
    ),
    Described(
        "schedules",
        "crontabs, cron's directories and timer units",
        "/etc/crontab, /etc/cron.*, /var/spool/cron, *.timer in /etc/systemd/system",
        _NOTIFIED,
        "as files",
        ("schedule.added", "schedule.changed", "schedule.removed"),
        "Linux, macOS",
        "users' crontabs are in a directory that only root may list: without root, that one of them changed",
    ),
    Described(
        "users",
        "users, groups and their members, and who may become root; nothing that has to do with passwords",
        "/etc/passwd, /etc/group, sudoers, doas.conf, polkit's rules",
        _NOTIFIED,
        "as files",
        (
            *("user.added", "user.changed", "user.removed", "group.added", "group.changed", "group.removed"),
            *("sudoers.added", "sudoers.changed", "sudoers.removed"),
        ),
        right="sudoers are root's to read: without root, that they changed",
    ),
    Described(
        "ports",
        "TCP ports that are opened, closed or taken over by another program; UDP ports outside the range of clients",
        "netlink (sock_diag), else /proc/net",
        _POLLED,
        "four questions to the kernel every 10 s; descriptors of processes only when a port is new",
        ("port.opened", "port.closed", "port.changed"),
        right="programs of other users' sockets (the user itself is told): CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH, or root",
    ),
    Described(
        "sysctl",
        "kernel settings with other values; those that come and go with modules and interfaces are no news",
        "/proc/sys/{kernel,net,vm,fs}, a slice at a time",
        "3 minutes (18 times change_interval, where that is longer)",
        "every setting read once in 3 minutes",
        ("sysctl.changed",),
        right="settings that are root's to read are not seen",
    ),
    Described(
        "certificates",
        "certificates that end in 30, 7 or 1 days or have ended, each told once, from the first look on; certificates that were replaced",
        "the files of certificate_paths, PEM or DER",
        "a minute, 4 s with inotify for those that were replaced",
        "stat of each file and directory every minute",
        ("certificate.expiring", "certificate.replaced"),
        "Linux, macOS",
        "certificates in directories that only root may enter (/etc/letsencrypt/live, /etc/ssl/private) are not seen",
    ),
    Described(
        "disk_space",
        "local filesystems that are nearly full, in space or inodes, from the first look on; those that have recovered",
        "the mount table and statvfs",
        "32 s",
        "one read and one statvfs for each filesystem every 30 s",
        ("filesystem.nearly_full", "filesystem.recovered"),
    ),
)
"""In the order in which they are documented. Events lack the prefix ``irca.host.``."""

EVERY_WATCHER = ("changes.dropped", "changes.limited", "changes.gap")
"""Events about the watch itself."""

WATCHERS: Mapping[str, Described] = {described.name: described for described in TABLE}
"""The table by name."""

PREFIXED = frozenset(f"irca.host.{name}" for described in TABLE for name in described.events) | {
    f"irca.host.{name}" for name in EVERY_WATCHER
}
"""Every event name that the server agent's watchers record."""
