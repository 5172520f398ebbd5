"""Reboots, and the kernel that came up with them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import ClassVar, Final

from connectors.core.telemetry import Severity
from connectors.server.changes.model import Change, Memory, State, StateWatcher, before_and_after, read_file

_NANO: Final = 1_000_000_000
_STARTED: Final = 19
"""Where in ``/proc/1/stat``, behind the name, the start of the first process stands: ticks since the kernel came up."""


class BootWatcher(StateWatcher):
    """Tells that the host was booted, and that another kernel runs or was given other parameters.

    In a container that runs a system of its own the kernel stays; there the start of its first process tells.
    """

    name: ClassVar[str] = "boot"
    interval: ClassVar[float] = 300.0

    def __init__(self, root: str = "", release: str | None = None) -> None:
        self._root = root
        self._release = os.uname().release if release is None else release

    def _stamp(self) -> str:
        return f"{boot_id(self._root)} {self._release}"

    def _read(self) -> State:
        state = {"id": boot_id(self._root), "kernel": self._release, "at": str(self._booted())}
        with suppress(OSError):
            state["parameters"] = read_file(f"{self._root}/proc/cmdline", 4096).decode(errors="replace").strip()
        return state

    def _compare(self, before: State, after: State, memory: Memory) -> Iterable[Change]:  # noqa: ARG002 - nothing of it is needed
        attributes = before_and_after("irca.boot.id", before["id"], after["id"])
        attributes |= before_and_after("irca.kernel.release", before["kernel"], after["kernel"])
        if before["id"] != after["id"]:
            when = int(after["at"]) * _NANO
            yield Change("rebooted", "boot", "The host was rebooted", attributes, Severity.WARN, when)
        if before["kernel"] != after["kernel"]:
            body = f"The kernel is {after['kernel']} now, after {before['kernel']}"
            yield Change("kernel.changed", "kernel", body, before_and_after("irca.kernel.release", before["kernel"], after["kernel"]))
        if before.get("parameters") != after.get("parameters"):
            from connectors.server.changes.text import without_secrets  # noqa: PLC0415 - only another command line needs it

            parameters = [None if each is None else without_secrets(each) for each in (before.get("parameters"), after.get("parameters"))]
            body = "The kernel was booted with other parameters"
            yield Change("kernel.parameters_changed", "parameters", body, before_and_after("irca.kernel.parameters", *parameters))

    def _booted(self) -> int:
        """Unix time of the boot, in seconds."""
        stat = read_file(f"{self._root}/proc/stat", 1 << 20)
        at = stat.index(b"btime ") + 6
        first = boot_id(self._root).partition("/")[2]
        ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
        return int(stat[at : stat.index(b"\n", at)]) + (int(first) // ticks if first else 0)


def boot_id(root: str = "") -> str:
    """The kernel's id of this boot and, where it may be seen, the start of the first process (ticks since the kernel came up).

    Raises:
        OSError: the kernel does not tell.
    """
    boot = read_file(f"{root}/proc/sys/kernel/random/boot_id", 64).decode(errors="replace").strip()
    try:
        text = read_file(f"{root}/proc/1/stat", 1024).decode(errors="replace")
    except OSError:  # other users' processes may be hidden
        return boot
    return f"{boot}/{text.rpartition(')')[2].split()[_STARTED]}"
