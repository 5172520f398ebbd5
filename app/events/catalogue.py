"""THE catalogue of events that the platform and its agents record: name, severity, what it means, which attributes it carries.

Names follow ``irca.<noun>.<what happened>``; docs/reference/events.md is generated from this table. What each agent type records of
what it watches stands in a module of its own beside this one.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from app.events.docker_events import DOCKER_EVENTS
from app.events.event_type import INFO, WARN, EventType
from app.events.kubernetes_events import KUBERNETES_EVENTS
from app.events.records import EventRecord
from app.events.server_events import SERVER_EVENTS

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
        *KUBERNETES_EVENTS,
        *SERVER_EVENTS,
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
