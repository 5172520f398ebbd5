"""systemd's units: those that fail, recover, start, stop or are restarted, and their files.

systemd keeps a link in ``/run/systemd/units`` for every unit that runs, made anew at each start: when that directory stands as it was, no
unit started or stopped, and nobody need be asked.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable
from typing import ClassVar, Final

from connectors.core.errors import CollectorError
from connectors.core.telemetry import AttributeValue, Severity
from connectors.server.changes.boot import boot_id
from connectors.server.changes.filesets import FileSet, FileWatcher, Kind
from connectors.server.changes.model import Change, Look, Memory, State, Watcher, bounded_state, mark, output_of
from connectors.server.host import is_privileged

RUN: Final = "/run/systemd/units"
ASKED_AT_LEAST: Final = 600.0
"""Seconds after which systemd is asked even though nothing seems to have changed."""
ASKED_AT_MOST: Final = 15.0
"""Seconds between two questions."""
_PROPERTIES: Final = ("Id", "ActiveState", "SubState", "Result", "NRestarts", "InvocationID", "ExecMainCode", "ExecMainStatus", "MainPID")
_KINDS: Final = ("service", "socket", "timer", "mount", "swap", "path")
_BOOT: Final = " boot"
"""What the boot is remembered under, among units."""
_ON_ITS_WAY: Final = frozenset({"activating", "deactivating", "reloading", "refreshing", "maintenance"})
_LASTING: Final = frozenset({"running", "listening", "waiting", "mounted", "active"})
"""What a unit is while it does its work; a service that runs once and ends (SubState exited or dead) is no news either way."""
_NOISE: Final = re.compile(
    r"(?:run-.*|var-lib-(?:docker|containerd|containers|kubelet|rancher)-.*|home-.*-\.cache.*|proc-.*|sys-.*|dev-.*|snap-.*)\.mount|run-r[0-9a-f]{8,}\.\w+"
    r"|session-\w+\.scope|user(?:-runtime-dir)?@\d+\.service|.*@\d+-\d+-.*\.service|systemd-(?:hostnamed|localed|timedated)\.service"
)
"""Units that come and go with containers, sessions, connections and questions."""
UNIT_FILES: Final = tuple(
    f"{base}/{pattern}"
    for base in ("/etc/systemd/system", "/usr/local/lib/systemd/system")
    for pattern in (
        *(f"*.{kind}" for kind in ("service", "socket", "mount", "automount", "swap", "path", "target", "slice")),
        *(
            "*.service.d/*.conf",
            "*.socket.d/*.conf",
            "*.mount.d/*.conf",
            "*.target.d/*.conf",
            "*.slice.d/*.conf",
            "*.wants/*",
            "*.requires/*",
        ),
    )
)


class UnitWatcher(Watcher):
    """Asks systemd how its units are when one started or stopped."""

    name: ClassVar[str] = "units"
    interval: ClassVar[float] = 2.0

    def __init__(self, root: str = "", ask: Callable[[], bytes] | None = None, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._run = f"{root}{RUN}"
        self._booted = f"{root}/run/systemd/system"
        self._ask = ask or _show
        self._monotonic = monotonic
        self._asked: float | None = None
        self._mark = ""

    def look(self, memory: Memory) -> Look | None:
        """As :meth:`Watcher.look`."""
        if not os.path.isdir(self._booted):  # noqa: PTH112 - a Path costs more than the call
            self.note = "systemd does not run here"
            return None
        found, now = mark(self._run), self._monotonic()
        if self._asked is not None:
            passed = now - self._asked
            if passed < ASKED_AT_MOST or (found == self._mark and passed < ASKED_AT_LEAST):
                return None
        self._asked = now
        try:
            answer = self._ask().decode(errors="replace")
        except CollectorError as exc:
            if "connect" not in exc.reason or is_privileged():
                raise
            # Without the system bus systemd answers nobody but root, and that is how such a host is.
            self.note, self._mark = f"systemd does not answer this user: {exc.reason}", found
            return None
        self.note = ""
        before, answered = memory.state(), parse_units(answer)
        settled = {name: unit for name, unit in answered.items() if json.loads(unit)["active"] not in _ON_ITS_WAY}
        # What is on its way to a state counts as what it was, and systemd is asked again soon.
        after = {name: before[name] for name in answered.keys() - settled.keys() if before and name in before} | settled
        after = {**bounded_state(after), _BOOT: boot_id(self._root)}
        self._mark = found if len(settled) == len(answered) else ""
        if before == after:
            return None
        changes = list(_compare(before, after)) if before is not None else []
        return Look(found, after, changes)


class UnitFileWatcher(FileWatcher):
    """Tells of unit files, drop-ins and links by which units are enabled, where administrators put them."""

    name: ClassVar[str] = "units.files"
    interval: ClassVar[float] = 2.0

    def __init__(self, root: str = "") -> None:
        super().__init__(FileSet(UNIT_FILES, ("*~", "*/.*.sw?", "*/.#*"), root), Kind("unit_file", "The unit file"))


def parse_units(text: str) -> dict[str, str]:
    """The units of ``systemctl show``'s answer, each as JSON of what is compared, by name."""
    state = {}
    for block in text.split("\n\n"):
        found = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        name = found.get("Id", "")
        if not name or _NOISE.fullmatch(name):
            continue
        unit = {
            "active": "restarting" if found.get("SubState") == "auto-restart" else found.get("ActiveState", ""),
            "sub": found.get("SubState", ""),
            "result": found.get("Result", ""),
            "restarts": found.get("NRestarts", "0"),
            "run": found.get("InvocationID", ""),
        }
        if unit["active"] == "failed":
            unit |= {"code": found.get("ExecMainCode", ""), "status": found.get("ExecMainStatus", "")}
        # What is loaded but does nothing need not be remembered: systemd forgets it at will.
        if unit["active"] != "inactive":
            state[name] = json.dumps(unit)
    return state


def _show() -> bytes:
    patterns = [f"*.{kind}" for kind in _KINDS]
    return output_of(["systemctl", "show", "--no-pager", f"--property={','.join(_PROPERTIES)}", *patterns])


def _compare(before: State, after: State) -> Iterable[Change]:
    rebooted = before.get(_BOOT) != after.get(_BOOT)
    for name in sorted(before.keys() | after.keys()):
        if name == _BOOT or before.get(name) == after.get(name):
            continue
        old, new = (json.loads(each[name]) if name in each else {"active": "inactive", "sub": "dead"} for each in (before, after))
        if rebooted:  # everything was started anew, and counting restarts began anew
            old["run"], old["restarts"] = new.get("run", ""), "0"
        if change := _transition(name, old, new):
            yield change


def _transition(name: str, old: dict[str, str], new: dict[str, str]) -> Change | None:
    """What became of a unit; None where it is on its way to something, or did what it does every day."""
    attributes: dict[str, AttributeValue] = {
        "irca.unit.name": name,
        "irca.unit.state.before": f"{old['active']} ({old['sub']})",
        "irca.unit.state.after": f"{new['active']} ({new['sub']})",
    }
    restarts = int(new.get("restarts") or 0) - int(old.get("restarts") or 0)
    lasting = [each["active"] == "active" and each["sub"] in _LASTING for each in (old, new)]
    again = bool(new.get("run")) and new.get("run") != old.get("run")
    if new["active"] == "failed":
        if old["active"] == "failed" and not again:
            return None
        attributes["irca.unit.restarts"] = max(0, restarts)
        attributes["irca.unit.result"] = new.get("result", "")
        if new.get("status", "0") not in ("", "0"):
            attributes["irca.unit.exit_status" if new.get("code") == "1" else "irca.unit.exit_signal"] = int(new["status"])
        why = new.get("result", "")
        return Change("unit.failed", f"{name} {new.get('run')}", f"{name} failed ({why})", attributes, Severity.ERROR)
    if restarts > 0 and (lasting[1] or new["active"] == "restarting"):
        attributes["irca.unit.restarts"] = restarts
        times = f" {restarts} times" if restarts > 1 else ""
        body = f"{name} ended and was restarted by systemd{times}"
        return Change("unit.restarted", f"{name} {new.get('run')}", body, attributes | {"irca.unit.automatic": True}, Severity.WARN)
    if old["active"] == "failed" and new["active"] != "restarting":
        return Change("unit.recovered", f"{name} {new.get('run')}", f"{name} is no longer failed", attributes)
    if lasting == [True, True] and again and name.endswith(".service"):
        return Change("unit.restarted", f"{name} {new.get('run')}", f"{name} was restarted", attributes | {"irca.unit.automatic": False})
    if lasting == [False, True]:
        return Change("unit.started", f"{name} {new.get('run')}", f"{name} was started", attributes)
    if lasting == [True, False] and new["active"] == "inactive":
        return Change("unit.stopped", f"{name} {old.get('run')}", f"{name} was stopped", attributes)
    return None
