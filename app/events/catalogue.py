"""THE catalogue of events that the platform and its agents record: name, severity, what it means, which attributes it carries.

Names follow ``irca.<noun>.<what happened>``; docs/reference/events.md is generated from this table. What each agent type records of
what it watches stands in a module of its own beside this one.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from app.events.docker_events import DOCKER_EVENTS
from app.events.event_type import ERROR, INFO, WARN, EventType
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
    "An instance's status changed. Its severity is warn when the new status is degraded or offline, unless another pod does its work.",
    {
        "irca.status.previous": "Status before.",
        "irca.status": "Status now.",
        "irca.status.reason": "Why.",
        "irca.instance.replaced": "True of a pod that is gone, or about to be, while another pod of its agent does its work.",
    },
)
INSTANCE_WENT_QUIET = EventType(
    "irca.instance.went_quiet",
    ERROR,
    "An instance fell silent without a goodbye and counts as offline. Not told of pods that were replaced. Told in maintenance it is "
    "muted, and told again, aloud, when the window ends and it is still quiet.",
    {
        "irca.silence.start_time_unix_nano": "When it was last heard.",
        "irca.silence.seconds": "How long that was ago.",
        "irca.maintenance.ended": "True when it is told again because it has stayed quiet beyond a maintenance window.",
    },
)
INSTANCE_BACK = EventType(
    "irca.instance.back",
    INFO,
    "An instance that went quiet is heard again and has proved to stay.",
    {
        "irca.silence.start_time_unix_nano": "When it had last been heard.",
        "irca.silence.seconds": "How long it was silent.",
    },
)
INSTANCE_ARCHIVED = EventType(
    "irca.instance.archived", INFO, "Somebody archived an instance that is not heard any more.", {"irca.actor": "Who."}
)
INSTANCE_REVIVED = EventType("irca.instance.revived", INFO, "Somebody took an instance out of the archive.", {"irca.actor": "Who."})
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
    {
        "irca.refusal": "Code of the reason.",
        "irca.token.prefix": "Prefix of the token, where it is known.",
        "client.address": "Who tried.",
        "host.name": "What the one that tried calls itself, where it told.",
    },
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
CUSTOM_METRICS_OVER_LIMIT = EventType(
    "irca.agent.custom_metrics.over_limit",
    WARN,
    "Custom metrics of an agent are over one of its limits; what is beyond it is lost. Told once, until the source is below it again.",
    {
        "irca.custom.source": "The source: the name of a command or an endpoint, or otlp.",
        "irca.custom.limit": "series or bytes.",
        "irca.custom.limit.allowed": "The limit: custom_max_series, or custom_max_bytes in a minute.",
        "irca.custom.lost": "Series or bytes that were lost when it was noticed.",
    },
    source="agent",
)

_WEBHOOK = {"irca.webhook.id": "The endpoint.", "irca.webhook.name": "Its name."}
WEBHOOK_CIRCUIT_OPENED = EventType(
    "irca.webhook.circuit_opened",
    WARN,
    "A webhook's receiver failed several times in a row and is left alone for a while; its deliveries wait.",
    _WEBHOOK | {"irca.webhook.error": "What went wrong last."},
)
WEBHOOK_CIRCUIT_CLOSED = EventType("irca.webhook.circuit_closed", INFO, "A webhook's receiver takes deliveries again.", _WEBHOOK)
WEBHOOK_DISABLED = EventType(
    "irca.webhook.disabled", WARN, "A webhook was disabled because its receiver answered that it is gone (410).", _WEBHOOK
)

_CONFIG_CHANGE = {
    "irca.config.scope": "group or agent.",
    "irca.config.scope_id": "Id of the group or agent.",
    "irca.config.revision": "The revision that this made.",
    "irca.config.keys": "Options that changed.",
    "irca.actor": "Who did it.",
}
_CONFIG_AT = {"irca.config.hash": "SHA-256 of the configuration, in hexadecimal.", "irca.config.keys": "Options that it sets."}
_CONFIG_REASON = {"irca.config.reason": "Why."}
CONFIG_CHANGED = EventType("irca.config.changed", INFO, "The configuration of a group or agent was changed.", _CONFIG_CHANGE)
CONFIG_REVERTED = EventType(
    "irca.config.reverted",
    INFO,
    "The configuration of a group or agent was set back to an earlier revision.",
    _CONFIG_CHANGE | {"irca.config.reverted_to": "The revision whose content it has again."},
)
CONFIG_APPLIED = EventType(
    "irca.config.applied", INFO, "An instance runs with the configuration that it was offered, and has collected with it.", _CONFIG_AT
)
CONFIG_FAILED = EventType(
    "irca.config.failed",
    WARN,
    "An instance could not work with the configuration that it was offered and is back on its last good one.",
    _CONFIG_AT | _CONFIG_REASON,
)
CONFIG_DRIFTED = EventType(
    "irca.config.drifted",
    WARN,
    "An instance reports other values than those of the configuration that it applied.",
    _CONFIG_AT | _CONFIG_REASON,
)

CATALOGUE: Mapping[str, EventType] = {
    t.name: t
    for t in (
        AGENT_PROVISIONED,
        INSTANCE_ENROLLED,
        INSTANCE_STATUS_CHANGED,
        INSTANCE_WENT_QUIET,
        INSTANCE_BACK,
        INSTANCE_ARCHIVED,
        INSTANCE_REVIVED,
        INSTANCE_MOVED,
        INSTANCE_SPLIT,
        ENROLMENT_REFUSED,
        TOKEN_REVOKED,
        CREDENTIAL_REVOKED,
        GAP,
        IDENTITY_CLONED,
        IDENTITY_QUARANTINED,
        CUSTOM_METRICS_OVER_LIMIT,
        WEBHOOK_CIRCUIT_OPENED,
        WEBHOOK_CIRCUIT_CLOSED,
        WEBHOOK_DISABLED,
        CONFIG_CHANGED,
        CONFIG_REVERTED,
        CONFIG_APPLIED,
        CONFIG_FAILED,
        CONFIG_DRIFTED,
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
