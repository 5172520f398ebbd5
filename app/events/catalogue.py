"""THE catalogue of events that the platform and its agents record: name, severity, what it means, which attributes it carries.

Names follow ``irca.<noun>.<what happened>``; docs/reference/events.md is generated from this table.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.events.records import EventRecord

INFO, WARN, ERROR = 9, 13, 17


@dataclass(frozen=True, slots=True)
class EventType:
    """One kind of event. ``source`` is who records it: the platform or an agent."""

    name: str
    severity: int
    meaning: str
    attributes: Mapping[str, str]
    source: str = "platform"


AGENT_PROVISIONED = EventType(
    "irca.agent.provisioned", INFO, "An agent was provisioned and its deployment command handed out.", {"irca.actor": "Who asked for it."}
)
INSTANCE_ENROLLED = EventType(
    "irca.instance.enrolled",
    INFO,
    "An instance made first contact and received its own credential.",
    {
        "irca.token.prefix": "Prefix of the enrolment token it used.",
        "irca.instance.replaced": "True when it took an earlier instance's place.",
    },
)
INSTANCE_STATUS_CHANGED = EventType(
    "irca.instance.status_changed",
    INFO,
    "An instance's status changed. Its severity is warn when the new status is degraded or offline.",
    {"irca.status.previous": "Status before.", "irca.status": "Status now.", "irca.status.reason": "Why."},
)
INSTANCE_MOVED = EventType(
    "irca.instance.moved",
    INFO,
    "An instance enrolled again with the token of another agent and belongs to that one now.",
    {"irca.agent.previous": "The agent it belonged to."},
)
INSTANCE_SPLIT = EventType(
    "irca.instance.split",
    WARN,
    "Two machines used one identity (a cloned disk); the second was given an identity of its own.",
    {"irca.instance.original": "The instance whose identity was shared."},
)
ENROLMENT_REFUSED = EventType(
    "irca.enrolment.refused",
    WARN,
    "A token or credential was refused at first contact.",
    {"irca.refusal": "Code of the reason.", "irca.token.prefix": "Prefix of the token, where it is known.", "client.address": "Who tried."},
)
TOKEN_REVOKED = EventType("irca.token.revoked", INFO, "An enrolment token was revoked.", {"irca.token.prefix": "Prefix of the token."})
CREDENTIAL_REVOKED = EventType("irca.credential.revoked", INFO, "An instance's credential was revoked.", {})
GAP = EventType(
    "irca.agent.gap",
    WARN,
    "An agent had to drop collected data: a stretch that is known to be missing.",
    {
        "irca.gap.signal": "metrics or logs; all where a damaged spool cannot tell.",
        "irca.gap.items": "Data points or events lost; 0 where it cannot be known.",
        "irca.gap.reason": "age, size, rejected, disk-full or corrupt.",
        "irca.gap.start_time_unix_nano": "Start of the stretch.",
        "irca.gap.end_time_unix_nano": "End of the stretch.",
    },
    source="agent",
)
IDENTITY_CLONED = EventType(
    "irca.agent.identity.cloned",
    WARN,
    "An agent found the identity of another machine on its disk and took a new one.",
    {"irca.agent.identity.old_id": "The identity that it found.", "irca.agent.identity.new_id": "The one that it took."},
    source="agent",
)
IDENTITY_QUARANTINED = EventType(
    "irca.agent.identity.quarantined",
    WARN,
    "An agent's identity file was damaged; it was set aside and a new identity taken.",
    {"irca.agent.identity.reason": "What was wrong with the file."},
    source="agent",
)

_CONTAINER = {"container.id": "Container.", "container.name": "Its name.", "container.image.name": "Its image."}
_NETWORK = {"irca.network.id": "Network.", "irca.network.name": "Its name.", "irca.network.driver": "Its driver."}
_VOLUME = {"irca.volume.name": "Volume.", "irca.volume.driver": "Its driver."}
_IMAGE = {
    "container.image.id": "Image, where the engine tells.",
    "container.image.name": "Its name.",
    "container.image.tags": "Its tag.",
    "container.image.repo_digests": "Its digest in a registry.",
}
_MISSING_BETWEEN = {"irca.gap.start_time_unix_nano": "Start of the stretch.", "irca.gap.end_time_unix_nano": "End of the stretch."}
_DIFFERENCES = {
    "irca.container.changed": "Parts that differ: image, command, env, mounts, limits and so on.",
    "irca.container.change.<part>.added": "Keys that are new, of env, labels, mounts, networks, capabilities, devices, ports and hosts.",
    "irca.container.change.<part>.removed": "Keys that are gone, of the same parts.",
    "irca.container.change.<part>.changed": "Keys whose values differ, of the same parts.",
    "irca.container.change.<part>.from": "Values before, of image, limits, restart_policy, user, privileged, ports and security.",
    "irca.container.change.<part>.to": "Values now, of the same parts.",
    "irca.container.change.hashes": "Hashes of values of env, command and entrypoint, under a key that never leaves the agent.",
}


def _docker(what: str, meaning: str, attributes: Mapping[str, str], severity: int = INFO) -> EventType:
    return EventType(f"irca.docker.{what}", severity, meaning, attributes, source="agent")


DOCKER_EVENTS = (
    _docker("container.create", "A container was made.", _CONTAINER),
    _docker("container.start", "A container started.", _CONTAINER),
    _docker(
        "container.die",
        "A container's process ended. Its severity is info for exit code 0, warn for another after a stop was asked for.",
        _CONTAINER
        | {
            "irca.container.exit_code": "Exit code; above 128, the signal that ended it is the rest.",
            "irca.container.oom_killed": "True when memory ran out in the seconds before.",
            "irca.container.stop_requested": "True when somebody had sent it a signal that ends programs.",
            "irca.container.restart_count": "How often the engine had restarted it by itself.",
            "irca.container.log.tail": "The last lines that it wrote, with the option death_logs.",
            "irca.container.log.reason": "Why there are no lines, or not all.",
        },
        ERROR,
    ),
    _docker("container.oom", "Memory ran out in a container and the kernel killed a process of it.", _CONTAINER, ERROR),
    _docker("container.kill", "A container was sent a signal.", _CONTAINER | {"irca.container.signal": "Signal, such as SIGTERM."}),
    _docker("container.stop", "A container was stopped on request.", _CONTAINER),
    _docker(
        "container.health_status",
        "A container's health changed. Its severity is warn when it is unhealthy.",
        _CONTAINER | {"irca.container.health.status": "healthy or unhealthy."},
    ),
    _docker("container.restart", "A container was restarted on request.", _CONTAINER),
    _docker("container.pause", "A container was paused.", _CONTAINER),
    _docker("container.unpause", "A paused container goes on.", _CONTAINER),
    _docker("container.rename", "A container was renamed.", _CONTAINER | {"irca.container.previous_name": "Name before."}),
    _docker("container.destroy", "A container was removed.", _CONTAINER),
    _docker("container.update", "A running container was given other limits or another restart policy.", _CONTAINER | _DIFFERENCES),
    _docker(
        "container.changed",
        "A container took the place of another of the same name, or of the same Compose project, service and number.",
        _CONTAINER | {"irca.container.previous_id": "The one before."} | _DIFFERENCES,
    ),
    _docker("network.connect", "A container was connected to a network.", _NETWORK | _CONTAINER),
    _docker("network.disconnect", "A container was disconnected from a network.", _NETWORK | _CONTAINER),
    _docker("network.create", "A network was made.", _NETWORK),
    _docker("network.destroy", "A network was removed.", _NETWORK),
    _docker("volume.create", "A volume was made, or asked for by a container that is being made.", _VOLUME),
    _docker(
        "volume.mount",
        "A volume was mounted in a container.",
        _VOLUME | _CONTAINER | {"irca.volume.destination": "Where.", "irca.volume.read_only": "Whether it may only be read."},
    ),
    _docker("volume.unmount", "A volume was unmounted from a container.", _VOLUME | _CONTAINER),
    _docker("volume.destroy", "A volume was removed.", _VOLUME),
    _docker("image.pull", "An image was pulled.", _IMAGE),
    _docker("image.tag", "An image was given a tag.", _IMAGE),
    _docker("image.untag", "An image lost a tag.", _IMAGE),
    _docker("image.delete", "An image was deleted.", _IMAGE),
    _docker("image.load", "An image was loaded from an archive.", _IMAGE),
    _docker("image.import", "An image was made of a file system's archive.", _IMAGE),
    _docker("image.build", "An image was built.", _IMAGE),
    _docker(
        "gap",
        "Events of a Docker engine may be missing: it was restarted, or more happened while nobody looked than it keeps.",
        {"irca.gap.signal": "logs.", "irca.gap.reason": "engine-restarted, engine-replaced or buffer-overflow."} | _MISSING_BETWEEN,
        WARN,
    ),
    _docker(
        "events.dropped",
        "An agent left out events of a Docker engine because too many came at a time.",
        {"irca.events.dropped": "How many.", "irca.events.dropped.kinds": "Which most, with their counts."} | _MISSING_BETWEEN,
        WARN,
    ),
)
"""What the docker agent type tells of its engine; the names are the engine's own."""

CATALOGUE: Mapping[str, EventType] = {
    t.name: t
    for t in (
        AGENT_PROVISIONED,
        INSTANCE_ENROLLED,
        INSTANCE_STATUS_CHANGED,
        INSTANCE_MOVED,
        INSTANCE_SPLIT,
        ENROLMENT_REFUSED,
        TOKEN_REVOKED,
        CREDENTIAL_REVOKED,
        GAP,
        IDENTITY_CLONED,
        IDENTITY_QUARANTINED,
        *DOCKER_EVENTS,
    )
}


def make_event(
    kind: EventType,
    *,
    time_unix_nano: int,
    body: str,
    attributes: Mapping[str, Any] | None = None,
    severity: int | None = None,
    about: Mapping[str, Any] | None = None,
) -> EventRecord:
    """A new event of ``kind``; ``about`` are the record's agent, instance and environment fields."""
    return EventRecord(
        id=uuid.uuid4().hex,
        name=kind.name,
        time_unix_nano=time_unix_nano,
        observed_time_unix_nano=time_unix_nano,
        severity=kind.severity if severity is None else severity,
        body=body,
        attributes=dict(attributes or {}),
        **(about or {}),
    )
