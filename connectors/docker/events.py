"""The engine's events, and the events of ours that they become: pure functions.

An engine event has a type (``container``, ``network``, ``volume``, ``image``), an action (``die``, ``connect`` …), the actor that it
happened to, and attributes; for containers these hold all of its labels, so that nothing but what is named here is taken from them.
"""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from connectors.core.telemetry import Attributes, AttributeValue, Event, Severity
from connectors.docker.stats import split_image

PREFIX = "irca.docker"
CHANGED = f"{PREFIX}.container.changed"
GAP = f"{PREFIX}.gap"
DROPPED = f"{PREFIX}.events.dropped"

ACTIONS: Mapping[str, frozenset[str]] = {
    "container": frozenset(
        ["create", "start", "die", "oom", "kill", "stop", "health_status", "restart", "pause", "unpause", "rename", "destroy", "update"],
    ),
    "network": frozenset(["connect", "disconnect", "create", "destroy"]),
    "volume": frozenset(["create", "mount", "unmount", "destroy"]),
    "image": frozenset(["pull", "tag", "untag", "delete", "load", "import", "build"]),
}
"""What is recorded, by type. All else is left out: ``exec_*`` (a health check makes three at each run), ``top``, ``attach`` and such."""

NAMES = frozenset(f"{PREFIX}.{kind}.{action}" for kind, actions in ACTIONS.items() for action in actions) | {CHANGED, GAP, DROPPED}
"""Every event name that the docker agent type records."""

VITAL = frozenset({"die", "oom", "health_status", "create", "start", "destroy"})
"""Actions on containers that a storm of others must not crowd out."""

_HEALTH_SEVERITY = {"unhealthy": Severity.WARN}
_LONGEST = 512
_DONE = {
    "create": "was created",
    "start": "started",
    "oom": "ran out of memory: the kernel killed a process in it",
    "stop": "was stopped",
    "restart": "was restarted",
    "pause": "was paused",
    "unpause": "goes on",
    "destroy": "was removed",
    "update": "was given other limits or another restart policy",
    "connect": "was connected to",
    "disconnect": "was disconnected from",
    "mount": "was mounted",
    "unmount": "was unmounted",
    "pull": "was pulled",
    "tag": "was tagged",
    "untag": "lost a tag",
    "delete": "was deleted",
    "load": "was loaded",
    "import": "was imported",
    "build": "was built",
}


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """One event as the engine tells it. ``detail`` is what follows a colon in the action: ``unhealthy`` in ``health_status: unhealthy``."""

    type: str
    action: str
    actor: str
    time_unix_nano: int
    attributes: Mapping[str, str] = field(default_factory=dict)
    detail: str = ""

    @property
    def is_recorded(self) -> bool:
        """Whether it becomes an event of ours."""
        return self.action in ACTIONS.get(self.type, ())

    @property
    def kind(self) -> str:
        """Type and action: ``container.die``."""
        return f"{self.type}.{self.action}"

    @property
    def is_vital(self) -> bool:
        """Whether a storm of others must not crowd it out."""
        return self.type == "container" and self.action in VITAL

    @property
    def container_id(self) -> str:
        """The container that it is about; empty when it is about none."""
        return self.actor if self.type == "container" else self.attributes.get("container", "")


@dataclass(frozen=True, slots=True)
class Death:
    """What is known about a container's death beyond the engine's event."""

    oom_killed: bool = False
    stop_requested: bool = False
    restart_count: int | None = None
    log_tail: str = ""
    log_reason: str = ""


def parse(line: bytes) -> EngineEvent | None:
    """One line of the engine's stream; None for what is no event (an empty line, damaged or foreign JSON)."""
    try:
        document = json.loads(line)
        actor = document.get("Actor") or {}
        action, _, detail = str(document["Action"]).partition(":")
        attributes = {str(key): str(value) for key, value in (actor.get("Attributes") or {}).items()}
        when = int(document.get("timeNano") or int(document["time"]) * 1_000_000_000)
        return EngineEvent(str(document["Type"]), action.strip(), str(actor.get("ID") or ""), when, attributes, detail.strip())
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def event_id(engine: str, *parts: object) -> str:
    """An id of 32 hexadecimal digits that is the same whenever the same thing is told again: a replay is stored once."""
    text = json.dumps([engine, *map(str, parts)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def identity(engine: str, event: EngineEvent) -> str:
    """The id of an engine event. A detail is part of it: two of them may bear the same time."""
    return event_id(engine, event.time_unix_nano, event.type, event.action, event.actor, event.detail, event.container_id)


def to_event(
    engine: str,
    seen: EngineEvent,
    resource: Attributes,
    *,
    death: Death | None = None,
    extra: Attributes | None = None,
) -> Event:
    """The event of ours. ``resource`` is the container's (empty for what concerns none); ``extra`` are further attributes.

    A death that nobody asked for and that left a non-zero exit code, and an OOM kill, are errors; one that was asked for, and ill health,
    are warnings.
    """
    attributes: dict[str, AttributeValue] = {
        key: resource[key] for key in ("container.id", "container.name", "container.image.name") if key in resource
    }
    if seen.type == "container":
        attributes.update(_of_container(seen))
        if death:
            attributes.update(_of_death(death))
    else:
        attributes.update(_OF_TYPE[seen.type](seen))
    attributes.update(extra or {})
    return Event(
        name=f"{PREFIX}.{seen.type}.{seen.action}",
        attributes=attributes,
        severity=_severity(seen, death),
        body=_body(seen, attributes),
        resource=resource,
        time_unix_nano=seen.time_unix_nano,
        id=identity(engine, seen),
    )


def gap_event(engine: str, start: int, end: int, reason: str) -> Event:
    """The record of a stretch (Unix nanoseconds) whose events nobody can know any more.

    ``reason`` is ``engine-restarted``, ``engine-replaced`` or ``buffer-overflow``.
    """
    why = {
        "engine-restarted": "the engine was restarted and forgot its events",
        "engine-replaced": "another engine answers now",
        "buffer-overflow": "more happened than the engine keeps (256 events)",
    }
    return Event(
        name=GAP,
        attributes={
            "irca.gap.signal": "logs",
            "irca.gap.reason": reason,
            "irca.gap.start_time_unix_nano": start,
            "irca.gap.end_time_unix_nano": end,
        },
        severity=Severity.WARN,
        body=f"Events of the Docker engine between {_clock(start)} and {_clock(end)} may be missing: {why.get(reason, reason)}",
        time_unix_nano=end,
        id=event_id(engine, "gap", start, reason),
    )


def dropped_event(engine: str, counts: Mapping[str, int], start: int, end: int) -> Event:
    """The record of a storm: how many events were left out between ``start`` and ``end`` (Unix nanoseconds), and which most."""
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:10]
    total = sum(counts.values())
    return Event(
        name=DROPPED,
        attributes={
            "irca.events.dropped": total,
            "irca.events.dropped.kinds": [f"{kind}: {count}" for kind, count in most],
            "irca.gap.start_time_unix_nano": start,
            "irca.gap.end_time_unix_nano": end,
        },
        severity=Severity.WARN,
        body=f"{total} events of the Docker engine were left out: too many at a time",
        time_unix_nano=end,
        id=event_id(engine, "dropped", start, end, total),
    )


def signal_name(number: str) -> str:
    """``SIGKILL`` for ``9``; what has no name here (real-time signals) keeps its number."""
    try:
        return signal.Signals(int(number)).name
    except ValueError:
        return number[:_LONGEST]


def image_attributes(reference: str) -> dict[str, AttributeValue]:
    """An image's reference or bare id as OTel attributes."""
    if reference.startswith("sha256:"):
        return {"container.image.id": reference}
    image = split_image(reference)
    found: dict[str, AttributeValue] = {}
    if image.name:
        found["container.image.name"] = image.name
    if image.tag:
        found["container.image.tags"] = [image.tag]
    if image.digest:
        found["container.image.repo_digests"] = [f"{image.name}@{image.digest}"]
    return found


class RateLimit:
    """How many events a second go through: all up to half of ``limit``, only vital ones from there to ``limit``. The rest is counted.

    Times are Unix nanoseconds of whoever calls. Memory is bounded: counts are by kind, and the kinds are few.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._second = -1
        self._passed = 0
        self._counts: dict[str, int] = {}
        self._since = 0

    def admits(self, event: EngineEvent, now: int) -> bool:
        """Whether ``event`` goes through; if not, it is counted."""
        second = now // 1_000_000_000
        if second != self._second:
            self._second, self._passed = second, 0
        if self._passed < (self._limit if event.is_vital else self._limit // 2):
            self._passed += 1
            return True
        self.count(event.kind, 1, now)
        return False

    def count(self, kind: str, number: int, now: int) -> None:
        """Enter events that were left out."""
        if not self._counts:
            self._since = now
        self._counts[kind] = self._counts.get(kind, 0) + number

    def settle(self, now: int) -> tuple[Mapping[str, int], int] | None:
        """What was left out and since when, once the second in which it happened is over; None while there is nothing to tell."""
        if not self._counts or now // 1_000_000_000 == self._since // 1_000_000_000:
            return None
        counts, self._counts = self._counts, {}
        return counts, self._since


def _of_container(seen: EngineEvent) -> Iterator[tuple[str, AttributeValue]]:
    told = seen.attributes
    if seen.action == "die":
        yield "irca.container.exit_code", _number(told.get("exitCode"))
    if seen.action == "kill" and told.get("signal"):
        yield "irca.container.signal", signal_name(told["signal"])
    if seen.action == "health_status":
        yield "irca.container.health.status", seen.detail[:_LONGEST]
    if seen.action == "rename" and told.get("oldName"):
        yield "irca.container.previous_name", told["oldName"].lstrip("/")[:_LONGEST]


def _of_death(death: Death) -> Iterator[tuple[str, AttributeValue]]:
    yield "irca.container.oom_killed", death.oom_killed
    yield "irca.container.stop_requested", death.stop_requested
    if death.restart_count is not None:
        yield "irca.container.restart_count", death.restart_count
    if death.log_tail:
        yield "irca.container.log.tail", death.log_tail
    if death.log_reason:
        yield "irca.container.log.reason", death.log_reason


def _of_network(seen: EngineEvent) -> Iterator[tuple[str, AttributeValue]]:
    yield "irca.network.id", seen.actor[:_LONGEST]
    yield "irca.network.name", seen.attributes.get("name", "")[:_LONGEST]
    yield "irca.network.driver", seen.attributes.get("type", "")[:_LONGEST]


def _of_volume(seen: EngineEvent) -> Iterator[tuple[str, AttributeValue]]:
    yield "irca.volume.name", seen.actor[:_LONGEST]
    yield "irca.volume.driver", seen.attributes.get("driver", "")[:_LONGEST]
    if seen.action == "mount":
        yield "irca.volume.destination", seen.attributes.get("destination", "")[:_LONGEST]
        yield "irca.volume.read_only", seen.attributes.get("read/write") == "false"


def _of_image(seen: EngineEvent) -> Iterator[tuple[str, AttributeValue]]:
    # A pull's actor is the reference, everybody else's is the image's id; the name is one or the other.
    for reference in (seen.actor, seen.attributes.get("name", "")):
        yield from image_attributes(reference[:_LONGEST]).items()


_OF_TYPE = {"network": _of_network, "volume": _of_volume, "image": _of_image}


def _severity(seen: EngineEvent, death: Death | None) -> Severity:
    if seen.type != "container":
        return Severity.INFO
    if seen.action == "oom":
        return Severity.ERROR
    if seen.action == "health_status":
        return _HEALTH_SEVERITY.get(seen.detail, Severity.INFO)
    if seen.action != "die":
        return Severity.INFO
    told = death or Death()
    if told.oom_killed:
        return Severity.ERROR
    if _number(seen.attributes.get("exitCode")) == 0:
        return Severity.INFO
    return Severity.WARN if told.stop_requested else Severity.ERROR


def _body(seen: EngineEvent, attributes: Mapping[str, Any]) -> str:
    """One sentence for a person."""
    container = str(attributes.get("container.name") or str(attributes.get("container.id", ""))[:12])
    done = _DONE.get(seen.action, seen.action)
    if seen.type == "network":
        network = attributes["irca.network.name"] or seen.actor[:12]
        return f"{container} {done} the network {network}" if container else f"The network {network} {done}"
    if seen.type == "volume":
        return f"The volume {seen.actor[:64]} {done}{f' in {container}' if container else ''}"
    if seen.type == "image":
        return f"The image {(seen.attributes.get('name') or seen.actor)[:_LONGEST]} {done}"
    if seen.action == "die":
        why = ": out of memory" if attributes.get("irca.container.oom_killed") else ""
        return f"{container} ended with exit code {attributes['irca.container.exit_code']}{why}"
    if seen.action == "kill":
        return f"{container} was sent {attributes.get('irca.container.signal', 'a signal')}"
    if seen.action == "health_status":
        return f"{container} is {seen.detail}"
    if seen.action == "rename":
        return f"{attributes.get('irca.container.previous_name', 'A container')} was renamed to {container}"
    return f"{container} {done}"


def _number(text: str | None) -> int:
    try:
        return int(text or 0)
    except ValueError:
        return -1


def _clock(unix_nano: int) -> str:
    return datetime.fromtimestamp(unix_nano / 1e9, UTC).isoformat(timespec="seconds")


def bounded(values: Sequence[str], most: int) -> list[str]:
    """At most ``most`` of ``values``, none longer than an attribute should be."""
    return [value[:_LONGEST] for value in values[:most]]
