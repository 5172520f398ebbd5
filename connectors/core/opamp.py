"""The agent's side of OpAMP over HTTP: which message to send next and what an answer means. Pure state, no input or output."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from connectors.core import wire
from connectors.core.secret import NO_SECRET, Secret
from connectors.core.telemetry import Attributes

CONFIG_FILE_NAME = "agent.json"
MIN_HEARTBEAT_INTERVAL = 1.0
MAX_HEARTBEAT_INTERVAL = 300.0
_REPORT_FULL_STATE = 1
_UNAVAILABLE = 2


class Capability(enum.IntFlag):
    """The protocol's capability bits that this agent may set."""

    REPORTS_STATUS = 0x1
    ACCEPTS_REMOTE_CONFIG = 0x2
    REPORTS_EFFECTIVE_CONFIG = 0x4
    ACCEPTS_OPAMP_CONNECTION_SETTINGS = 0x100
    REPORTS_HEALTH = 0x800
    REPORTS_REMOTE_CONFIG = 0x1000
    REPORTS_HEARTBEAT = 0x2000


CAPABILITIES = (
    Capability.REPORTS_STATUS
    | Capability.ACCEPTS_REMOTE_CONFIG
    | Capability.REPORTS_EFFECTIVE_CONFIG
    | Capability.ACCEPTS_OPAMP_CONNECTION_SETTINGS
    | Capability.REPORTS_HEALTH
    | Capability.REPORTS_REMOTE_CONFIG
    | Capability.REPORTS_HEARTBEAT
)


@dataclass(frozen=True, slots=True)
class Component:
    """Health of one part, with the parts inside it. ``reason`` is empty when it is healthy."""

    healthy: bool = True
    status: str = "ok"
    reason: str = ""
    components: Mapping[str, Component] = field(default_factory=dict)


class ConfigState(enum.IntEnum):
    """How remote configuration fares, as the protocol numbers it."""

    UNSET = 0
    APPLIED = 1
    APPLYING = 2
    FAILED = 3


@dataclass(frozen=True, slots=True)
class ConfigStatus:
    """The remote configuration that was last offered, by its hash, and how it fares; ``reason`` says why it failed."""

    hash: bytes = b""
    state: ConfigState = ConfigState.UNSET
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ConfigOffer:
    """Remote configuration as offered: its hash, and its files by name."""

    hash: bytes
    files: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Report:
    """All that the platform should know of this instance at one time."""

    identifying: Attributes
    non_identifying: Attributes
    effective_config: Mapping[str, Any]
    health: Component
    started_at: float
    remote_config: ConfigStatus = ConfigStatus()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the platform's answer asks of this instance; empty where it asks nothing."""

    credential: Secret = NO_SECRET
    new_uid: bytes = b""
    heartbeat_interval: float | None = None
    destination: str = ""
    failed: bool = False
    failure: str = ""
    retry_after: float | None = None
    remote_config: ConfigOffer | None = None


class OpampClient:
    """Builds the messages of one instance.

    A message carries only what changed since the last message that the platform is known to have read; all of it at first, after the
    platform asked for the full state, and after it gave a new identity.
    """

    def __init__(self, uid: bytes) -> None:
        self._uid = uid
        self._sequence = 0
        self._known: dict[str, bytes] = {}
        self._offered: dict[str, bytes] = {}

    def message(self, report: Report, now: float) -> bytes:
        """The next AgentToServer, serialised; ``now`` is Unix seconds. Follow it with :meth:`received` when it was answered."""
        self._offered = {
            "agent_description": wire.attributes(1, report.identifying) + wire.attributes(2, report.non_identifying),
            "health": _health(report.health, report.started_at, 0.0),
            "effective_config": _effective_config(report.effective_config),
        }
        if report.remote_config.state:
            self._offered["remote_config_status"] = _config_status(report.remote_config)
        changed = {name for name, content in self._offered.items() if self._known.get(name) != content}
        parts = [wire.data(1, self._uid), wire.integer(2, self._next())]
        if "agent_description" in changed:
            parts.append(wire.message(3, self._offered["agent_description"]))
        parts.append(wire.integer(4, CAPABILITIES))
        if "health" in changed:
            parts.append(wire.message(5, _health(report.health, report.started_at, now)))
        if "effective_config" in changed:
            parts.append(wire.message(6, self._offered["effective_config"]))
        if "remote_config_status" in changed:
            parts.append(wire.message(7, self._offered["remote_config_status"]))
        return b"".join(parts)

    def goodbye(self) -> bytes:
        """The last message: this instance stops."""
        return wire.data(1, self._uid) + wire.integer(2, self._next()) + wire.integer(4, CAPABILITIES) + wire.message(9, b"")

    def received(self, content: bytes) -> Answer:
        """Take the answer to the last :meth:`message`, a serialised ServerToAgent, into account and say what it asks for.

        Raises:
            WireError: it is no such message; nothing has changed.
        """
        blobs, numbers = wire.blobs(content), wire.numbers(content)
        failures = blobs.get(2)
        if failures:
            return self._failure(failures[-1])
        offer = _last(_last(blobs, 4), 2)
        interval = float(wire.numbers(offer).get(4, 0))
        answer = Answer(
            credential=_bearer(_last(offer, 2)),
            new_uid=self._new_uid(_last(_last(blobs, 8), 1)),
            heartbeat_interval=min(max(interval, MIN_HEARTBEAT_INTERVAL), MAX_HEARTBEAT_INTERVAL) if interval else None,
            destination=_last(offer, 1).decode(errors="replace"),
            remote_config=_config_offer(blobs[3][-1]) if 3 in blobs else None,  # noqa: PLR2004 - the field's number
        )
        self._known = dict(self._offered)
        if answer.new_uid:
            self._uid = answer.new_uid
        if answer.new_uid or numbers.get(6, 0) & _REPORT_FULL_STATE:
            self._known = {}
        return answer

    @property
    def owes_state(self) -> bool:
        """Whether the platform waits for the full state: better told at once than at the next heartbeat."""
        return not self._known

    def _new_uid(self, offered: bytes) -> bytes:
        return offered if len(offered) == len(self._uid) and offered != self._uid else b""

    def _failure(self, error: bytes) -> Answer:
        numbers = wire.numbers(error)
        reason = _last(error, 2).decode(errors="replace")
        nanoseconds = wire.numbers(_last(error, 3)).get(1)
        unavailable = numbers.get(1) == _UNAVAILABLE
        if not unavailable:
            self._known = {}  # whatever it could not read, it does not know
        kind = "is not available" if unavailable else "could not read the last message"
        return Answer(
            failed=True,
            failure=f"the platform {kind}: {reason or 'no reason given'}",
            retry_after=None if nanoseconds is None else nanoseconds / 1e9,
        )

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence


class Standing(enum.Enum):
    """What a bearer is to this instance."""

    TOKEN = "enrolment token"  # noqa: S105 - its name, not its value
    CURRENT = "credential"
    CANDIDATE = "new credential"
    COPIED = "credential of the machine that this one was copied from"


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Which secrets this instance holds, and how exchanges change that. Every change is a new value; the caller keeps it on disk.

    First contact shows the token; the answer offers a credential, which stays a candidate until an exchange under it succeeded. Then it
    is current, and the token is not shown again unless the platform refuses the credential. A machine whose disk was ``copied`` from an
    enrolled one shows the original's credential once, under its own identity, and is given one of its own.
    """

    token: Secret
    current: Secret = NO_SECRET
    candidate: Secret = NO_SECRET
    copied: Secret = NO_SECRET

    def attempts(self) -> list[tuple[Standing, Secret]]:
        """The secrets to try in an exchange, in order; the next is for when the one before was refused."""
        order = [
            (Standing.CANDIDATE, self.candidate),
            (Standing.CURRENT, self.current),
            (Standing.COPIED, self.copied),
            (Standing.TOKEN, self.token),
        ]
        return [(standing, secret) for standing, secret in order if secret]

    def offered(self, credential: Secret) -> Enrolment:
        """The platform offered a credential."""
        if not credential or credential in (self.current, self.candidate):
            return self
        return Enrolment(self.token, self.current, credential)

    def accepted(self, standing: Standing) -> Enrolment:
        """An exchange under that secret succeeded: a candidate becomes current, and a copy has done what it is good for."""
        if standing is Standing.COPIED:
            return replace(self, copied=NO_SECRET)
        return Enrolment(self.token, self.candidate) if standing is Standing.CANDIDATE else self

    def refused(self, standing: Standing) -> Enrolment:
        """The platform refused that secret. A candidate and a copy are dropped; the current one is kept, for it may be restored."""
        if standing is Standing.COPIED:
            return self.accepted(standing)
        return Enrolment(self.token, self.current) if standing is Standing.CANDIDATE else self


def _last(content: bytes | Mapping[int, list[bytes]], field: int) -> bytes:
    """The last value of a field of bytes; empty where there is none."""
    found = wire.blobs(content) if isinstance(content, bytes) else content
    return found.get(field, [b""])[-1]


def _bearer(headers: bytes) -> Secret:
    for header in wire.blobs(headers).get(1, []):
        key, value = (_last(header, field).decode(errors="replace") for field in (1, 2))
        scheme, _, secret = value.strip().partition(" ")
        secret = secret.strip()
        if key.lower() == "authorization" and scheme.lower() == "bearer" and secret and all("!" <= c <= "~" for c in secret):
            return Secret(secret)
    return NO_SECRET


def _effective_config(config: Mapping[str, Any]) -> bytes:
    file = wire.data(1, json.dumps(config, sort_keys=True, default=dict).encode()) + wire.text(2, "application/json")
    return wire.message(1, wire.message(1, wire.text(1, CONFIG_FILE_NAME) + wire.message(2, file)))


def _config_status(status: ConfigStatus) -> bytes:
    return wire.data(1, status.hash) + wire.integer(2, status.state) + wire.text(3, status.reason)


def _config_offer(content: bytes) -> ConfigOffer:
    entries = wire.blobs(_last(content, 1)).get(1, [])
    files = {_last(entry, 1).decode(errors="replace"): _last(_last(entry, 2), 1) for entry in entries}
    return ConfigOffer(_last(content, 2), files)


def _health(component: Component, started_at: float, now: float) -> bytes:
    """A ComponentHealth; ``now`` 0 leaves the time of the status out: what is compared must not change with the clock."""
    inner = [wire.text(1, name) + wire.message(2, _health(part, started_at, now)) for name, part in component.components.items()]
    return b"".join(
        (
            wire.boolean(1, component.healthy),
            wire.fixed64(2, int(started_at * 1e9)),
            wire.text(3, component.reason),
            wire.text(4, component.status),
            wire.fixed64(5, int(now * 1e9)),
            *(wire.message(6, each) for each in inner),
        )
    )
