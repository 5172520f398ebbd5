"""Who this instance is, kept on disk: its identity, its credential, and the lock that keeps a second agent out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from connectors.core import log
from connectors.core.errors import StateError
from connectors.core.files import move_aside, write_atomically
from connectors.core.secret import NO_SECRET, Secret
from connectors.core.telemetry import Event, Severity

_LOG = logging.getLogger(__name__)
MACHINE_ID_VARIABLE = "AGENT_MACHINE_ID"
"""Environment variable that names the machine where the operating system's own answer is wrong (containers, pods)."""
CLONED_EVENT = "irca.agent.identity.cloned"
QUARANTINED_EVENT = "irca.agent.identity.quarantined"
IDENTITY_FILE = "identity.json"
CREDENTIAL_FILE = "credential"
LOCK_FILE = "agent.lock"
NO_TOKEN = "enrolled"  # noqa: S105 - stands in for a secret and is none
"""Stands in for the token of an agent that has its credential already and is started without: any enrolment with its platform will do."""


@dataclass(frozen=True, slots=True)
class Identity:
    """This instance: ``instance_id`` is a UUID in text form, ``fingerprint`` tells the machine (64 hexadecimal digits)."""

    instance_id: str
    fingerprint: str
    created_at: float

    @property
    def uid(self) -> bytes:
        """The 16 bytes of the UUID, as OpAMP carries them."""
        return bytes.fromhex(self.instance_id.replace("-", ""))


@dataclass(frozen=True, slots=True)
class Credential:
    """What this instance shows to the platform: ``current`` is proven, ``candidate`` was offered and is still to be proven.

    ``platform_url`` and ``token_digest`` say which platform and which enrolment token it came from: it is never shown to another
    platform, and a new token (the environment was provisioned again) leads to a new enrolment.
    """

    platform_url: str
    token_digest: str
    current: Secret = NO_SECRET
    candidate: Secret = NO_SECRET


def uuid7(now: float, entropy: Callable[[int], bytes] = os.urandom) -> str:
    """A UUID of version 7: ordered by ``now`` (Unix seconds), otherwise random."""
    value = int(now * 1000) % (1 << 48) << 80 | int.from_bytes(entropy(10), "big")
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    return uuid_text(value.to_bytes(16, "big"))


def uuid_text(uid: bytes) -> str:
    """The text form of a UUID's 16 bytes."""
    digits = uid.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def machine_fingerprint(named: str = "", environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> str:
    """What tells this machine from others: a SHA-256 in hexadecimal.

    It is taken over the first that is known of: ``AGENT_MACHINE_ID`` in ``environ``; ``named`` (an agent type's own answer); the operating
    system's machine identity (Linux: machine-id, or a network card's address; macOS: platform UUID; Windows: MachineGuid) together with
    the host name.
    """
    given = environ.get(MACHINE_ID_VARIABLE, "").strip() or named.strip()
    if given:
        return _digest("named", given)
    if platform == "darwin":
        return _digest("darwin", _macos_platform_uuid() or _network_address(), socket.gethostname())
    if platform == "win32":
        return _digest("windows", _windows_machine_guid() or _network_address(), socket.gethostname())
    return _digest("linux", _linux_machine_id() or _network_address(), socket.gethostname())


def token_digest(token: str) -> str:
    """A short digest by which a token is recognised again without keeping it; empty for :data:`NO_TOKEN`."""
    return "" if token == NO_TOKEN else _digest("token", token)[:32]


class StateDirectory:
    """The agent's state directory, locked for this process.

    Raises:
        StateError: it cannot be made or written, or another agent uses it.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self.path = path
        self._clock = clock
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as exc:
            raise StateError(f"the state directory {path} cannot be made: {exc.strerror or exc}") from exc
        self._lock = _lock(path / LOCK_FILE)

    def identity(self, fingerprint: str) -> tuple[Identity, list[Event]]:
        """The identity on disk, or a new one where there is none, it is damaged, or it was copied from another machine.

        Returns:
            The identity and the events that tell about a change of it.

        Raises:
            StateError: a new identity cannot be written.
        """
        path, events = self.path / IDENTITY_FILE, []
        try:
            known: Identity | None = _read_identity(path)
        except FileNotFoundError:
            known = None
        except OSError as exc:
            raise StateError(f"the identity {path} cannot be read: {exc.strerror or exc}") from exc
        except (ValueError, KeyError, TypeError) as exc:
            known = None
            events.append(self._quarantined(path, exc))
        if known is not None and known.fingerprint == fingerprint:
            return known, events
        now = self._clock()
        fresh = Identity(uuid7(now), fingerprint, now)
        self._write(path, {"instance_id": fresh.instance_id, "fingerprint": fresh.fingerprint, "created_at": fresh.created_at})
        if known is not None:
            self.forget_credential()  # it belongs to the machine that this one was copied from
            log.entry(
                _LOG,
                logging.WARNING,
                "identity.cloned",
                "this state directory was copied from another machine; took a new identity",
                old_id=known.instance_id,
                new_id=fresh.instance_id,
            )
            events.append(
                Event(
                    CLONED_EVENT,
                    {"irca.agent.identity.old_id": known.instance_id, "irca.agent.identity.new_id": fresh.instance_id},
                    Severity.WARN,
                    "The state directory was copied from another machine; this instance took a new identity.",
                )
            )
        return fresh, events

    def adopt(self, identity: Identity, uid: bytes) -> Identity:
        """The identity under the new UUID that the platform gave.

        Raises:
            StateError: it cannot be written.
        """
        adopted = replace(identity, instance_id=uuid_text(uid))
        document = {"instance_id": adopted.instance_id, "fingerprint": adopted.fingerprint, "created_at": adopted.created_at}
        self._write(self.path / IDENTITY_FILE, document)
        return adopted

    def credential(self, platform_url: str, digest: str) -> Credential:
        """The credential for this platform and enrolment token (an empty digest: any); empty where there is none.

        Others' right to read it is taken away.

        Raises:
            StateError: the file is there and cannot be read.
        """
        path, empty = self.path / CREDENTIAL_FILE, Credential(platform_url, digest)
        try:
            if os.name != "nt" and path.stat().st_mode & 0o077:
                path.chmod(0o600)
                log.entry(_LOG, logging.WARNING, "identity.credential-mode", "others could read the credential; took that away", path=path)
            document = json.loads(path.read_bytes())
            found = Credential(
                str(document["platform_url"]),
                str(document["token_digest"]),
                Secret(str(document.get("current", ""))),
                Secret(str(document.get("candidate", ""))),
            )
        except FileNotFoundError:
            return empty
        except OSError as exc:
            raise StateError(f"the credential {path} cannot be read: {exc.strerror or exc}") from exc
        except (ValueError, KeyError, TypeError, AttributeError):
            log.entry(_LOG, logging.WARNING, "identity.credential-damaged", "the credential is damaged; enrolling again", path=path)
            return empty
        if found.platform_url != platform_url or (digest and found.token_digest != digest):
            log.entry(_LOG, logging.INFO, "identity.credential-foreign", "the credential is of another enrolment; enrolling anew")
            return empty
        return found

    def keep_credential(self, credential: Credential) -> None:
        """Write the credential, readable for this user only; durable on return.

        Raises:
            StateError: it cannot be written.
        """
        self._write(
            self.path / CREDENTIAL_FILE,
            {
                "platform_url": credential.platform_url,
                "token_digest": credential.token_digest,
                "current": credential.current.reveal(),
                "candidate": credential.candidate.reveal(),
            },
        )

    def forget_credential(self) -> None:
        """Remove the credential from the disk, if there is one.

        Raises:
            StateError: it is there and cannot be removed.
        """
        try:
            (self.path / CREDENTIAL_FILE).unlink(missing_ok=True)
        except OSError as exc:
            raise StateError(f"the credential in {self.path} cannot be removed: {exc.strerror or exc}") from exc

    def close(self) -> None:
        """Let the next agent in."""
        self._lock.close()

    def _write(self, path: Path, document: Mapping[str, Any]) -> None:
        try:
            write_atomically(path, json.dumps(document, indent=1).encode() + b"\n", mode=0o600)
        except OSError as exc:
            raise StateError(f"{path} cannot be written: {exc.strerror or exc}") from exc

    def _quarantined(self, path: Path, exc: Exception) -> Event:
        try:
            aside = move_aside(path, self._clock())
        except OSError as failure:
            raise StateError(f"the damaged identity {path} cannot be moved aside: {failure.strerror or failure}") from failure
        log.entry(_LOG, logging.ERROR, "identity.quarantined", "the identity was damaged; took a new one", path=aside, reason=str(exc))
        return Event(
            QUARANTINED_EVENT,
            {"irca.agent.identity.reason": str(exc) or type(exc).__name__},
            Severity.WARN,
            "The identity file was damaged; this instance took a new identity.",
        )


def _read_identity(path: Path) -> Identity:
    document = json.loads(path.read_bytes())
    instance_id, fingerprint = document["instance_id"], document["fingerprint"]
    if not (isinstance(instance_id, str) and re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", instance_id)):
        raise ValueError("instance_id is not a UUID")
    if not (isinstance(fingerprint, str) and re.fullmatch(r"[0-9a-f]{64}", fingerprint)):
        raise ValueError("fingerprint is not a SHA-256 digest")
    return Identity(instance_id, fingerprint, float(document["created_at"]))


def _lock(path: Path) -> IO[bytes]:
    """The open, locked file; closing it (or the end of the process) unlocks it."""
    try:
        file = path.open("a+b")
    except OSError as exc:
        raise StateError(f"the state directory {path.parent} cannot be written: {exc.strerror or exc}") from exc
    try:
        _lock_file(file)
    except OSError as exc:
        file.seek(0)
        holder = file.read(32).decode(errors="replace").strip()
        file.close()
        raise StateError(
            f"another agent{f' (process {holder})' if holder else ''} is running on the state directory {path.parent}; stop it"
            " first, or give this one a state_dir of its own"
        ) from exc
    with contextlib.suppress(OSError):  # on a full disk the lock holds without telling whose it is
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
    return file


if sys.platform == "win32":  # pragma: no cover - cannot run here

    def _lock_file(file: IO[bytes]) -> None:
        import msvcrt  # noqa: PLC0415 - only this system has it

        file.seek(1024)  # beyond the process id, which others may read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:

    def _lock_file(file: IO[bytes]) -> None:
        import fcntl  # noqa: PLC0415 - the other branch's system has none

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _linux_machine_id() -> str:
    for name in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = Path(name).read_text("ascii").strip()
            if re.fullmatch(r"[0-9a-f]{32}", text):
                return text
    return ""


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
