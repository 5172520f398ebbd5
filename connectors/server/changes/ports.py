"""Listening ports: opened, closed, or taken over by another program."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import ClassVar, Final

from connectors.core.telemetry import AttributeValue
from connectors.server.changes.model import Change, Memory, State, StateWatcher, before_and_after, differences, read_file
from connectors.server.changes.port_tables import Listener, listeners

_MOST_PROCESSES: Final = 20_000
_EPHEMERAL: Final = (32768, 60999)


class PortWatcher(StateWatcher):
    """Compares the sockets that wait for connections, TCP and UDP.

    UDP ports from the range that the kernel hands out to clients are left out, for a client's port looks like a server's.
    """

    name: ClassVar[str] = "ports"
    interval: ClassVar[float] = 2.0

    def __init__(self, root: str = "") -> None:
        self._root = root
        self._proc = f"{root}/proc"
        self._ephemeral: tuple[int, int] | None = None
        self._listeners: list[Listener] = []
        self._owners: dict[str, str] = {}

    def _stamp(self) -> str:
        self._listeners = listeners(self._proc, ask=not self._root)
        return hashlib.blake2b(repr(self._listeners).encode(), digest_size=12).hexdigest()

    def _read(self) -> State:
        if self._ephemeral is None:
            self._ephemeral = self._range()
        low, high = self._ephemeral
        found: dict[str, tuple[str, str]] = {}
        for each in self._listeners:
            if each.transport != "udp" or not low <= each.port <= high:
                found.setdefault(f"{each.transport} {each.address} {each.port}", (each.uid, each.inode))
        self._name({inode for _, inode in found.values()})
        return {key: json.dumps({"uid": uid, **self._owner(inode)}) for key, (uid, inode) in found.items()}

    def _compare(self, before: State, after: State, memory: Memory) -> Iterable[Change]:  # noqa: ARG002 - nothing of it is needed
        for key, old, new in differences(before, after):
            was, now = (json.loads(each) if each else {} for each in (old, new))
            programs = [each.get("program") for each in (was, now)]
            # A program that is only named on one side is the same one, seen by a user who may see less or more.
            if was and now and was["uid"] == now["uid"] and (None in programs or programs[0] == programs[1]):
                continue
            yield _change(key, was, now)

    def _owner(self, inode: str) -> dict[str, str]:
        pid, _, program = self._owners.get(inode, "").partition(" ")
        return {"pid": pid, "program": program} if program else {}

    def _name(self, inodes: set[str]) -> None:
        """Find out which programs hold the sockets, looking only for those that are new."""
        self._owners = {inode: owner for inode, owner in self._owners.items() if inode in inodes}
        wanted = {f"socket:[{inode}]": inode for inode in inodes - self._owners.keys() if inode != "0"}
        hidden = False
        for pid, own in _processes(self._proc) if wanted else ():
            held, readable = _held(f"{self._proc}/{pid}/fd", wanted)
            hidden = hidden or not readable
            for link in held:
                inode = wanted[link]
                # The first process is the one that opened it in systemd's stead; whoever serves comes later.
                self._owners[inode] = f"{pid} {own}"
        unknown = inodes - self._owners.keys() - {"0"}
        self.note = "the programs behind other users' ports are not visible to this user" if hidden and unknown else ""

    def _range(self) -> tuple[int, int]:
        try:
            low, high = read_file(f"{self._proc}/sys/net/ipv4/ip_local_port_range", 64).split()
            return int(low), int(high)
        except (OSError, ValueError):
            return _EPHEMERAL


def _processes(proc: str) -> Iterator[tuple[str, str]]:
    """Number and name of each process, in order."""
    try:
        pids = sorted((name for name in os.listdir(proc) if name.isdecimal()), key=int)  # noqa: PTH208 - a Path costs more than the call
    except OSError:
        return
    for pid in pids[:_MOST_PROCESSES]:
        try:
            yield pid, read_file(f"{proc}/{pid}/comm", 64).decode(errors="replace").strip()
        except OSError:
            continue


def _held(directory: str, wanted: dict[str, str]) -> tuple[list[str], bool]:
    """Which of the wanted links a process holds, and whether this user may know."""
    found = []
    try:
        for name in os.listdir(directory):  # noqa: PTH208 - as above
            try:
                link = os.readlink(f"{directory}/{name}")  # noqa: PTH115 - as above
            except OSError:
                continue
            if link in wanted:
                found.append(link)
    except PermissionError:
        return [], False
    except OSError:
        return [], True
    return found, True


def _change(key: str, was: dict[str, str], now: dict[str, str]) -> Change:
    transport, host, port = key.split()
    attributes: dict[str, AttributeValue] = {"network.transport": transport, "network.local.address": host, "network.local.port": int(port)}
    about = now or was
    attributes["user.id"] = about["uid"]
    where = f"{transport} port {port} at {host}"
    if not was or not now:
        if program := about.get("program"):
            attributes |= {"process.executable.name": program, "process.pid": int(about["pid"])}
        by = f" by {program}" if program else ""
        return Change("port.opened" if now else "port.closed", key, f"{where} was {'opened' if now else 'closed'}{by}", attributes)
    attributes |= before_and_after("process.executable.name", was.get("program"), now.get("program"))
    attributes |= before_and_after("user.id", was["uid"], now["uid"])
    body = f"{where} is held by {now.get('program') or 'another user'} now, after {was.get('program') or 'another'}"
    return Change("port.changed", key, body, attributes)
