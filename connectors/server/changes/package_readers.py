"""What the package managers' databases hold: readers, each giving a version by ``manager name`` (with the architecture if told)."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

from connectors.server.changes.model import output_of

_LOG_END: Final = 262_144
_LATE: Final = 5.0
_NANO: Final = 1_000_000_000
_QUERY: Final = "%{NAME}.%{ARCH}\\t%|EPOCH?{%{EPOCH}:}:{}|%{VERSION}-%{RELEASE}\\n"
_UNINSTALL: Final = (
    r"SOFTWARE\Microsoft\Windows\CurrentVersion\Uninstall",
    r"SOFTWARE\WOW6432Node\Microsoft\Windows\CurrentVersion\Uninstall",
)


def read_dpkg(path: str) -> dict[str, str]:
    """The packages of dpkg's status file; none where there is no such file.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - as elsewhere here
            return parse_dpkg(file)
    except FileNotFoundError:
        return {}


def parse_dpkg(lines: Iterable[str]) -> dict[str, str]:
    """The packages of a status file that are there, if only in part. What only left its configuration behind is gone."""
    state = {}
    found: dict[str, str] = {}
    for line in lines:
        if line.startswith(("Package:", "Status:", "Version:", "Architecture:")):
            key, _, value = line.partition(":")
            found[key] = value.strip()
        elif not line.strip():
            state.update(_dpkg_entry(found))
            found = {}
    state.update(_dpkg_entry(found))
    return state


def dpkg_times(path: str, since: float) -> dict[str, int]:
    """When each package was last installed, upgraded or removed, by the end of dpkg's log: Unix nanoseconds by ``name:arch``."""
    try:
        size = os.stat(path).st_size  # noqa: PTH116 - as elsewhere here
        with open(path, "rb") as file:  # noqa: PTH123 - as above
            file.seek(max(0, size - _LOG_END))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return {}
    times = {}
    for line in lines:
        fields = line.split()
        if len(fields) < 4 or fields[2] not in ("install", "upgrade", "remove", "purge"):  # noqa: PLR2004 - date, time, action, package
            continue
        try:
            when = time.mktime(time.strptime(f"{fields[0]} {fields[1]}", "%Y-%m-%d %H:%M:%S"))
        except (ValueError, OverflowError):
            continue
        if when >= since - _LATE:
            times[fields[3]] = int(when) * _NANO
    return times


def read_apk(path: str) -> dict[str, str]:
    """The packages of apk's database; none where there is no such file.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - as above
            return parse_apk(file)
    except FileNotFoundError:
        return {}


def parse_apk(lines: Iterable[str]) -> dict[str, str]:
    """The packages of an apk database: paragraphs of lines such as ``P:name`` and ``V:version``."""
    state = {}
    name = version = ""
    for line in [*lines, ""]:
        if line.startswith("P:"):
            name = line[2:].strip()
        elif line.startswith("V:"):
            version = line[2:].strip()
        elif not line.strip():
            if name and version:
                state[f"apk {name}"] = version
            name = version = ""
    return state


def read_rpm(root: str = "") -> dict[str, str]:
    """The packages of the rpm database, as ``rpm`` tells them.

    Raises:
        CollectorError: rpm is not installed, fails or does not answer in time.
    """
    return parse_rpm(output_of(["rpm", *(["--root", root] if root else []), "-qa", "--queryformat", _QUERY], 30.0).decode(errors="replace"))


def parse_rpm(text: str) -> dict[str, str]:
    """The packages of rpm's answer. Of several versions at a time (kernels) each is a package of its own."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, tab, version = line.partition("\t")
        if tab and not name.startswith("gpg-pubkey."):
            found.setdefault(name, []).append(version.strip())
    state = {}
    for name, versions in found.items():
        for version in versions:
            state[f"rpm {name}" if len(versions) == 1 else f"rpm {name} {version}"] = version
    return state


def read_cellar(path: str) -> dict[str, str]:
    """The formulas (or casks) of a Homebrew cellar, each a directory with a directory for each version; none where there is no cellar."""
    state = {}
    for name in _listed(path):
        versions = [version for version in _listed(f"{path}/{name}") if version[0] != "."]
        if versions:
            state[f"brew {name}"] = ", ".join(sorted(versions))
    return state


def parse_msi(programs: Iterable[tuple[str, dict[str, str]]]) -> dict[str, str]:
    """The programs of Windows' list of what can be uninstalled: pairs of a key's name and its values. Updates and parts are left out."""
    state = {}
    for key, values in programs:
        name = values.get("DisplayName", "").strip()
        hidden = values.get("SystemComponent") == "1" or values.get("ParentKeyName") or re.fullmatch(r"KB\d+", key)
        if name and not hidden:
            state[f"msi {name}"] = values.get("DisplayVersion", "").strip() or "unknown"
    return state


def read_msi() -> dict[str, str]:  # pragma: no cover - Windows only
    """The programs that can be uninstalled."""
    return parse_msi(_uninstall_keys())


def msi_stamp() -> str:  # pragma: no cover - Windows only
    """What is another text whenever a program was installed or removed, or one of its values written."""
    marks: list[str] = []
    if sys.platform == "win32":
        import winreg  # noqa: PLC0415 - Windows only

        for path in _UNINSTALL:
            with suppress(OSError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as top:
                count, _, newest = winreg.QueryInfoKey(top)
                for number in range(count):
                    with winreg.OpenKey(top, winreg.EnumKey(top, number)) as each:
                        newest = max(newest, winreg.QueryInfoKey(each)[2])
                marks.append(f"{count}.{newest}")
    return " ".join(marks)


def _uninstall_keys() -> Iterator[tuple[str, dict[str, str]]]:  # pragma: no cover - Windows only
    if sys.platform == "win32":
        import winreg  # noqa: PLC0415 - Windows only

        for path in _UNINSTALL:
            with suppress(OSError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as top:
                for number in range(winreg.QueryInfoKey(top)[0]):
                    name = winreg.EnumKey(top, number)
                    with winreg.OpenKey(top, name) as each:
                        pairs = [winreg.EnumValue(each, index)[:2] for index in range(winreg.QueryInfoKey(each)[1])]
                        yield name, {key: str(value) for key, value in pairs}
    yield from ()


def _dpkg_entry(found: dict[str, str]) -> dict[str, str]:
    if "Package" not in found or "Version" not in found or found.get("Status", "").split()[-1:] in (["not-installed"], ["config-files"]):
        return {}
    return {f"dpkg {found['Package']}:{found.get('Architecture', 'all')}": found["Version"]}


def _listed(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))  # noqa: PTH208 - as elsewhere here
    except OSError:
        return []
