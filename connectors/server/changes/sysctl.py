"""Kernel settings (sysctl), read a slice at a time."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from typing import ClassVar, Final

from connectors.server.changes.model import Change, Look, Memory, Watcher, before_and_after, read_file

TOPS: Final = ("kernel", "net", "vm", "fs")
PASS: Final = 180.0
"""Seconds in which every setting is read once."""
_MOST: Final = 5_000
_LONGEST: Final = 512
_LEFT_OUT: Final = re.compile(
    # What the kernel moves by itself, what acts when it is touched, and what is secret.
    r"kernel/(?:random(?:/.*)?|ns_last_pid|pty/nr|sched_domain(?:/.*)?|perf_event_max_sample_rate|keys(?:/.*)?|usermodehelper(?:/.*)?|hung_task_detect_count)"
    r"|fs/(?:dentry-state|file-nr|inode-nr|inode-state|aio-nr|quota(?:/.*)?|binfmt_misc(?:/.*)?|xfs/stats_clear|inotify/.*_nr)"
    r"|net/(?:.*/)?(?:stable_secret|tcp_fastopen_key|nf_conntrack_count|flush|tcp_available_congestion_control|stats|ip_vs.*_stats)"
    r"|net/(?:ipv4|ipv6)/neigh/.*|net/(?:rds|netfilter/nf_log)/.*|vm/(?:stat_refresh|compact_memory)"
)
_INTERFACE: Final = re.compile(r"net/ipv[46]/conf/([^/]+)")


class SysctlWatcher(Watcher):
    """Tells of settings whose values differ. Those that come and go with modules and interfaces are no news.

    ``excluded`` are patterns of interfaces whose settings are not read.
    """

    name: ClassVar[str] = "sysctl"
    interval: ClassVar[float] = 10.0

    def __init__(self, excluded: Sequence[str] = (), root: str = "") -> None:
        self._base = f"{root}/proc/sys"
        self._excluded = [re.compile(pattern) for pattern in excluded]
        self._todo: list[str] = []
        self._per_look = 0

    def look(self, memory: Memory) -> Look | None:
        """Read the next slice. As :meth:`Watcher.look`."""
        known: dict[str, str] = json.loads(memory.stamp) if memory.stamp else {}
        first = not known
        if not self._todo:
            self._todo = self._directories()
            self._per_look = -(-len(self._todo) // max(1, int(PASS / self.interval)))
        # The first look takes them all: half of a picture is none to compare with.
        taken = self._todo if first else self._todo[: self._per_look]
        self._todo = self._todo[len(taken) :]
        values = {directory: self._values(directory) for directory in taken}
        marks = {
            directory: hashlib.blake2b(repr(found).encode(), digest_size=8).hexdigest() for directory, found in values.items() if found
        }
        differing = [directory for directory, found in marks.items() if known.get(directory) != found]
        if not differing:
            return None
        before = memory.state()
        state = dict(before or {})
        changes = []
        for directory in differing:
            for key, value in values[directory].items():
                if before is not None and key in before and before[key] != value:
                    attributes = {"irca.sysctl.name": key, **before_and_after("irca.sysctl.value", before[key], value)}
                    changes.append(Change("sysctl.changed", key, f"{key} is {value} now, after {before[key]}", attributes))
                state[key] = value
        if len(state) > _MOST:
            state = {key: state[key] for key in sorted(state)[:_MOST]}
        return Look(json.dumps(known | marks), state, changes)

    def _directories(self) -> list[str]:
        found = []
        for top in TOPS:
            for directory, below, _ in os.walk(f"{self._base}/{top}"):
                below[:] = sorted(name for name in below if not self._is_left_out(f"{directory}/{name}"))
                found.append(directory)
        return found

    def _values(self, directory: str) -> dict[str, str]:
        values = {}
        try:
            with os.scandir(directory) as entries:
                names = sorted(entry.name for entry in entries if entry.is_file() and not self._is_left_out(entry.path))
        except OSError:
            return {}
        for name in names:
            path = f"{directory}/{name}"
            try:
                content = read_file(path, _LONGEST)
            except OSError:  # for writing only, or for root only
                continue
            values[path[len(self._base) + 1 :].replace(".", "\0").replace("/", ".").replace("\0", "/")] = " ".join(
                content.decode(errors="replace").split()
            )
        return values

    def _is_left_out(self, path: str) -> bool:
        name = path[len(self._base) + 1 :]
        if _LEFT_OUT.fullmatch(name):
            return True
        interface = _INTERFACE.match(name)
        return interface is not None and interface[1] not in ("all", "default") and any(p.fullmatch(interface[1]) for p in self._excluded)
