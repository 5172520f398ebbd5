"""What this host is, as OTel resource attributes, and where its agent keeps its state."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from connectors.core.telemetry import Attributes

_ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "amd64": "amd64",
    "i386": "x86",
    "i486": "x86",
    "i586": "x86",
    "i686": "x86",
    "aarch64": "arm64",
    "aarch64_be": "arm64",
    "arm64": "arm64",
    "ppc": "ppc32",
    "ppc64le": "ppc64",
}
_OS_TYPES: Final = {"linux": "linux", "darwin": "darwin", "win32": "windows", "cygwin": "windows"}
_MACHINE_ID_FILES: Final = ("etc/machine-id", "var/lib/dbus/machine-id", "sys/class/dmi/id/product_uuid", "etc/hostid")
_SHORTEST_ID: Final = 8
_PLATFORM: Final[str] = sys.platform  # read so, type checkers do not take the other systems for dead code


def host_resource(root: Path = Path("/")) -> Attributes:
    """The host's resource attributes: ``host.id host.name host.arch os.type os.name os.version os.description``.

    Those that cannot be found out are left out, but ``host.id``: without a machine id it is derived from the host's name.
    ``root`` is where the host's files are.
    """
    name, machine = _node()
    attributes = {
        "host.id": machine_id(root) or str(uuid.uuid5(uuid.NAMESPACE_DNS, name)),
        "host.name": name,
        "host.arch": architecture(machine),
        "os.type": _OS_TYPES.get(sys.platform, sys.platform),
        **_os_attributes(root),
    }
    return {key: value for key, value in attributes.items() if value}


def machine_id(root: Path = Path("/")) -> str:
    """The machine's own id: machine-id or hardware UUID, the registry's MachineGuid on Windows; empty where there is none."""
    if sys.platform == "win32":  # pragma: no cover - Windows only
        return _windows_machine_guid()
    for name in _MACHINE_ID_FILES:
        try:
            text = (root / name).read_text(encoding="ascii", errors="ignore").strip()
        except OSError:
            continue
        if len(text) >= _SHORTEST_ID and text.replace("-", "").isalnum() and text != "uninitialized":
            return text.lower()
    return _mac_host_uuid() if sys.platform == "darwin" else ""


def architecture(machine: str) -> str:
    """The ``host.arch`` value of what ``uname -m`` calls the machine."""
    machine = machine.lower()
    if machine.startswith("armv"):
        return "arm64" if machine.startswith("armv8") else "arm32"
    return _ARCHITECTURES.get(machine, machine)


def parse_os_release(text: str) -> dict[str, str]:
    """The variables of an os-release file; lines that are none are skipped."""
    values = {}
    for line in text.splitlines():
        key, separator, value = line.strip().partition("=")
        if not separator or key.startswith("#"):
            continue
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        values[key] = value.replace('\\"', '"').replace("\\$", "$").replace("\\`", "`").replace("\\\\", "\\")
    return values


def default_state_dir(platform: str, environ: Mapping[str, str], *, privileged: bool) -> str:
    """Where a server agent keeps its state: what systemd assigned, the system's place, or the user's when it is not privileged.

    ``platform`` is as :data:`sys.platform`.
    """
    if assigned := environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return assigned
    if platform == "win32":
        return environ.get("ProgramData", r"C:\ProgramData") + r"\incident-rca"
    home = environ.get("HOME") or str(Path.home())
    if platform == "darwin":
        return "/Library/Application Support/incident-rca" if privileged else f"{home}/Library/Application Support/incident-rca"
    if privileged:
        return "/var/lib/incident-rca"
    base = environ.get("XDG_STATE_HOME", "")
    return f"{base if base.startswith('/') else f'{home}/.local/state'}/incident-rca"  # a relative XDG path is to be ignored


def is_privileged() -> bool:
    """Whether this process runs as the superuser (on Windows: always taken to be so)."""
    return os.geteuid() == 0 if hasattr(os, "geteuid") else True


def _node() -> tuple[str, str]:
    if hasattr(os, "uname"):
        uname = os.uname()
        return uname.nodename, uname.machine
    import platform  # pragma: no cover - Windows only  # noqa: PLC0415 - POSIX has uname, and no use for it

    return platform.node(), platform.machine()  # pragma: no cover - Windows only


def _os_attributes(root: Path) -> dict[str, str]:
    if _PLATFORM == "linux":
        release = {}
        for name in ("etc/os-release", "usr/lib/os-release"):
            try:
                release = parse_os_release((root / name).read_text(encoding="utf-8", errors="replace"))
            except OSError:
                continue
            break
        return {
            "os.name": release.get("NAME", "Linux"),
            "os.version": release.get("VERSION_ID", ""),
            "os.description": f"{release.get('PRETTY_NAME', 'Linux')} (kernel {os.uname().release})",
        }
    return _other_os_attributes()  # pragma: no cover - macOS and Windows only


def _other_os_attributes() -> dict[str, str]:  # pragma: no cover - macOS and Windows only
    import platform  # noqa: PLC0415 - Linux has no use for it

    if sys.platform == "darwin":
        version = platform.mac_ver()[0]
        return {"os.name": "macOS", "os.version": version, "os.description": f"macOS {version} ({platform.platform()})"}
    return {"os.name": platform.system(), "os.version": platform.version(), "os.description": platform.platform()}


def _mac_host_uuid() -> str:  # pragma: no cover - macOS only
    """What ``gethostuuid`` says; asked through ctypes, for the command that tells it (ioreg) costs a process."""
    import ctypes  # noqa: PLC0415 - only macOS pays for it

    class Timespec(ctypes.Structure):
        _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))

    buffer = (ctypes.c_ubyte * 16)()
    try:
        failed = ctypes.CDLL(None).gethostuuid(buffer, ctypes.byref(Timespec(1, 0)))
    except (OSError, AttributeError):
        return ""
    return "" if failed else str(uuid.UUID(bytes=bytes(buffer)))


def _windows_machine_guid() -> str:  # pragma: no cover - Windows only
    if sys.platform == "win32":
        import winreg  # noqa: PLC0415 - Windows only

        access = winreg.KEY_READ | winreg.KEY_WOW64_64KEY
        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SOFTWARE\Microsoft\Cryptography", 0, access) as key:
                return str(winreg.QueryValueEx(key, "MachineGuid")[0]).lower()
        except OSError:
            return ""
    return ""
