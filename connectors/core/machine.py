"""Which machine this is: what tells it from others, and what of it may change without its becoming another.

A machine's own id says nothing of copies, for they have it too: cloned disks, containers of one committed image. The host name tells
copies apart, but a host may be renamed. So a machine has *marks* as well: its name, its physical network cards, the container that it
is. It is the same one as before while its own id and one of its marks are: a renamed host keeps its cards, one with a new card keeps
its name, and a copy has none of the original's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MACHINE_ID_VARIABLE = "AGENT_MACHINE_ID"
"""Environment variable that names the machine where the operating system's own answer is wrong (containers, pods)."""
_MOST_CARDS = 16
_BY_RUNTIMES = frozenset({"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"})
"""What container runtimes mount from a folder that has the container's id for its name."""
_CONTAINER = re.compile(r"/(?:containers|overlay-containers|sandboxes)/([0-9a-f]{64})/")


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as it is now; everything in it is a SHA-256 in hexadecimal.

    ``fingerprint`` is what a new identity is tied to and the platform is told; ``former`` is what identities without marks were tied to
    (equal to it but in containers without a machine id); ``basis`` stands for the machine's own id, ``marks`` for what may change.
    """

    fingerprint: str
    former: str
    basis: str
    marks: frozenset[str] = frozenset()

    def is_one_with(self, basis: str, marks: frozenset[str]) -> bool:
        """Whether a machine that had this basis and these marks is this one."""
        return self.basis == basis and not self.marks.isdisjoint(marks)


def this_machine(named: str = "", environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Machine:
    """The machine that the process runs on; where ``environ`` or ``named`` names one (:func:`machine_fingerprint`), that and no marks."""
    former = machine_fingerprint(named, environ, platform)
    if _given(named, environ):
        return Machine(former, former, former)
    name, container = socket.gethostname(), _container_id() if platform == "linux" else ""
    own = _own_id(platform) or ("" if container else _network_address())
    fingerprint = former if own else _digest("container", container, name)
    marks = {_digest("name", name)} if name else set()
    if container:
        marks.add(_digest("container", container))
    else:
        marks |= {_digest("card", address) for address in _card_addresses(platform)}
    return Machine(fingerprint, former, _digest("basis", platform, own), frozenset(marks))


def machine_fingerprint(named: str = "", environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> str:
    """What tells this machine from others as long as it keeps its name: a SHA-256 in hexadecimal.

    It is taken over the first that is known of: ``AGENT_MACHINE_ID`` in ``environ``; ``named`` (an agent type's own answer); the operating
    system's machine identity (Linux: machine-id, or a network card's address; macOS: platform UUID; Windows: MachineGuid) together with
    the host name.
    """
    if given := _given(named, environ):
        return _digest("named", given)
    system = {"darwin": "darwin", "win32": "windows"}.get(platform, "linux")
    return _digest(system, _own_id(platform) or _network_address(), socket.gethostname())


def _given(named: str, environ: Mapping[str, str]) -> str:
    return environ.get(MACHINE_ID_VARIABLE, "").strip() or named.strip()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _own_id(platform: str) -> str:
    return {"darwin": _macos_platform_uuid, "win32": _windows_machine_guid}.get(platform, _linux_machine_id)()


def _linux_machine_id() -> str:
    for name in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = Path(name).read_text("ascii").strip()
            if re.fullmatch(r"[0-9a-f]{32}", text):
                return text
    return ""


def _container_id(mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The id of the container that this process is in, by what its runtime mounted there; empty outside of one."""
    with contextlib.suppress(OSError):
        for line in mounts.read_text("utf-8", "replace").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) > 5 and fields[4] in _BY_RUNTIMES and (found := _CONTAINER.search(fields[3])):  # noqa: PLR2004 - mountinfo's fields
                return found[1]
    return ""


def _card_addresses(platform: str, network: Path = Path("/sys/class/net")) -> Iterator[str]:
    """Addresses of physical network cards (virtual machines' count): interfaces that are made up have no device behind them."""
    if platform != "linux":
        yield from filter(None, [_network_address()])
        return
    with contextlib.suppress(OSError):
        for card in sorted(card for card in network.iterdir() if (card / "device").exists())[:_MOST_CARDS]:
            with contextlib.suppress(OSError):
                address = (card / "address").read_text("ascii", "replace").strip()
                if address.strip("0:"):
                    yield address


def _macos_platform_uuid() -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice"], capture_output=True, text=True, timeout=5, check=True
        )
        if found := re.search(r'"IOPlatformUUID" = "([^"]+)"', done.stdout):
            return found[1]
    return ""


def _windows_machine_guid() -> str:
    try:
        import winreg  # noqa: PLC0415 - only Windows has it
    except ImportError:
        return ""
    opened = winreg.OpenKey(  # type: ignore[attr-defined,unused-ignore]  # typeshed knows it on Windows only
        winreg.HKEY_LOCAL_MACHINE,  # type: ignore[attr-defined,unused-ignore]  # as above
        r"SOFTWARE\Microsoft\Cryptography",
    )
    with opened as key:  # pragma: no cover - cannot run here
        return str(winreg.QueryValueEx(key, "MachineGuid")[0])  # type: ignore[attr-defined,unused-ignore]  # as above


def _network_address() -> str:
    """The address of a real network card, or nothing: a random one would make a new machine of every start."""
    import uuid  # noqa: PLC0415 - only where the better answers are missing

    node = uuid.getnode()
    return "" if node >> 40 & 1 else f"{node:012x}"
