"""Users, groups and who may become root. Nothing that has to do with passwords is read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import ClassVar, Final

from connectors.core.telemetry import AttributeValue, Severity
from connectors.server.changes.filesets import FileSet, FileWatcher, Kind
from connectors.server.changes.model import Change, Memory, State, StateWatcher, before_and_after, differences, mark, read_file

_LARGEST: Final = 4 * 1024 * 1024
_PASSWD_FIELDS: Final = 7
_GROUP_FIELDS: Final = 4
_MOST_MEMBERS: Final = 100
_PARTS: Final = {
    "id": "irca.id",
    "group": "irca.user.gid",
    "home": "irca.user.home",
    "shell": "irca.user.shell",
    "members": "irca.group.members",
}


class UserWatcher(StateWatcher):
    """Tells of entries of ``/etc/passwd`` and ``/etc/group`` that come, go or change."""

    name: ClassVar[str] = "users"
    interval: ClassVar[float] = 2.0

    def __init__(self, root: str = "") -> None:
        self._passwd, self._group, self._directory = f"{root}/etc/passwd", f"{root}/etc/group", f"{root}/etc"

    def directories(self) -> Iterable[str]:
        """As :meth:`Watcher.directories`."""
        return (self._directory,)

    def _stamp(self) -> str:
        return f"{mark(self._passwd)} {mark(self._group)}"

    def _read(self) -> State:
        return parse_accounts(
            read_file(self._passwd, _LARGEST).decode(errors="replace"), read_file(self._group, _LARGEST).decode(errors="replace")
        )

    def _compare(self, before: State, after: State, memory: Memory) -> Iterable[Change]:  # noqa: ARG002 - nothing of it is needed
        for key, old, new in differences(before, after):
            yield _account_change(key, json.loads(old) if old else {}, json.loads(new) if new else {})


class SudoersWatcher(FileWatcher):
    """Tells of the files that say who may become root."""

    name: ClassVar[str] = "users.sudoers"
    interval: ClassVar[float] = 2.0

    def __init__(self, root: str = "") -> None:
        patterns = ("/etc/sudoers", "/etc/sudoers.d/*", "/usr/local/etc/sudoers", "/etc/doas.conf", "/etc/polkit-1/rules.d/*")
        super().__init__(FileSet(patterns, ("*~", "*.dpkg-*", "*/.*.sw?"), root), Kind("sudoers", "The file of privileges"))


def parse_accounts(passwd: str, group: str) -> dict[str, str]:
    """Users and groups of the texts, each as JSON under ``user NAME`` or ``group NAME``; lines that are none are skipped.

    What people are called and what stands in the password's place is left out.
    """
    state = {}
    for line in passwd.splitlines():
        fields = line.split(":")
        if len(fields) == _PASSWD_FIELDS and fields[0] and fields[0][0] not in "#+-":
            state[f"user {fields[0]}"] = json.dumps({"id": fields[2], "group": fields[3], "home": fields[5], "shell": fields[6]})
    for line in group.splitlines():
        fields = line.split(":")
        if len(fields) == _GROUP_FIELDS and fields[0] and fields[0][0] not in "#+-":
            members = sorted(filter(None, fields[3].split(",")))
            state[f"group {fields[0]}"] = json.dumps({"id": fields[2], "members": members[:_MOST_MEMBERS]})
    return state


def _account_change(key: str, old: dict[str, AttributeValue], new: dict[str, AttributeValue]) -> Change:
    kind, _, name = key.partition(" ")
    identifier = "user.id" if kind == "user" else "irca.group.id"
    attributes: dict[str, AttributeValue] = {"user.name" if kind == "user" else "irca.group.name": name}
    for part, attribute in _PARTS.items():
        before, after = old.get(part), new.get(part)
        if part == "id":
            attribute = identifier  # noqa: PLW2901 - the same part has another name for users and groups
        if before is not None and after is not None and before == after and part == "id":
            attributes[attribute] = after
        elif before != after:
            attributes |= before_and_after(attribute, before, after)
    state, what = ("added", "was added") if not old else ("removed", "was removed") if not new else ("changed", "was changed")
    # Another user of the superuser's number is what an intruder leaves behind.
    root = kind == "user" and new.get("id") == "0" and old.get("id") != "0"
    return Change(f"{kind}.{state}", key, f"The {kind} {name} {what}", attributes, Severity.WARN if root else Severity.INFO)
