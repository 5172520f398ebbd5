"""Who this instance is, kept on disk: its identity, its credential, and the lock that keeps a second agent out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO, Any

from connectors.core import log
from connectors.core.errors import StateError
from connectors.core.files import move_aside, write_atomically
from connectors.core.machine import Machine
from connectors.core.secret import NO_SECRET, Secret
from connectors.core.telemetry import Event, Severity

_LOG = logging.getLogger(__name__)
CLONED_EVENT = "irca.agent.identity.cloned"
QUARANTINED_EVENT = "irca.agent.identity.quarantined"
IDENTITY_FILE = "identity.json"
CREDENTIAL_FILE = "credential"
LOCK_FILE = "agent.lock"
NO_TOKEN = "enrolled"  # noqa: S105 - stands in for a secret and is none
"""Stands in for the token of an agent that has its credential already and is started without: any enrolment with its platform will do."""


@dataclass(frozen=True, slots=True)
class Identity:
    """This instance: ``instance_id`` is a UUID in text form, ``fingerprint`` tells the machine (64 hexadecimal digits) and stays with it.

    ``basis`` and ``marks`` are what the machine was last known by (:class:`~connectors.core.machine.Machine`).
    """

    instance_id: str
    fingerprint: str
    created_at: float
    basis: str = ""
    marks: frozenset[str] = frozenset()

    @property
    def uid(self) -> bytes:
        """The 16 bytes of the UUID, as OpAMP carries them."""
        return bytes.fromhex(self.instance_id.replace("-", ""))


@dataclass(frozen=True, slots=True)
class Credential:
    """What this instance shows to the platform: ``current`` is proven, ``candidate`` was offered and is still to be proven.

    ``platform_url`` and ``token_digest`` say which platform and which enrolment token it came from: it is never shown to another
    platform, and a new token (the environment was provisioned again) leads to a new enrolment. ``copied`` is that of the machine which
    this one was copied from: good for asking for one of its own, and nothing else.
    """

    platform_url: str
    token_digest: str
    current: Secret = NO_SECRET
    candidate: Secret = NO_SECRET
    copied: Secret = NO_SECRET


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

    def identity(self, machine: Machine) -> tuple[Identity, list[Event]]:
        """The identity on disk, or a new one where there is none, it is damaged, or it was copied from another machine.

        One that was written before there were marks is the machine's if its fingerprint is.

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
        if known is not None and _is_of(known, machine):
            current = replace(known, basis=machine.basis, marks=machine.marks)
            if current != known:
                with contextlib.suppress(StateError):  # what is on disk still does; a full disk is the spool's to report
                    self._write_identity(current)
            return current, events
        now = self._clock()
        fresh = Identity(uuid7(now), machine.fingerprint, now, machine.basis, machine.marks)
        self._write_identity(fresh)
        if known is not None:
            self._disown_credential()
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
        self._write_identity(adopted)
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
                Secret(str(document.get("copied", ""))),
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
                **({"copied": credential.copied.reveal()} if credential.copied else {}),
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

    def _disown_credential(self) -> None:
        """Keep the credential on disk as that of the machine which this one was copied from; forget it where it cannot be read."""
        try:
            document = json.loads((self.path / CREDENTIAL_FILE).read_bytes())
            secret = Secret(str(document.get("current") or document.get("copied") or ""))
            copied = Credential(str(document["platform_url"]), str(document["token_digest"]), copied=secret)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self.forget_credential()
        else:
            self.keep_credential(copied)

    def close(self) -> None:
        """Let the next agent in."""
        self._lock.close()

    def _write_identity(self, identity: Identity) -> None:
        document = {each.name: getattr(identity, each.name) for each in fields(identity)}
        self._write(self.path / IDENTITY_FILE, document | {"marks": sorted(identity.marks)})

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
    marks = frozenset(str(mark) for mark in document.get("marks", ()))
    return Identity(instance_id, fingerprint, float(document["created_at"]), str(document.get("basis", "")), marks)


def _is_of(known: Identity, machine: Machine) -> bool:
    """Whether the identity belongs to the machine."""
    if known.fingerprint in (machine.fingerprint, machine.former):
        return True
    return machine.is_one_with(known.basis, known.marks)


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
