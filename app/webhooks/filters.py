"""Which events an endpoint is told: a pure function of its filters and the event."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import BaseModel, Field

from app.events.records import MUTED, EventRecord

Pattern = Annotated[str, Field(min_length=1, max_length=200)]


class WebhookFilters(BaseModel):
    """An event must pass each of them; an empty list lets everything pass."""

    model_config = {"extra": "forbid", "frozen": True}

    event_types: Annotated[list[Pattern], Field(max_length=100)] = Field(
        [], description="Names of event types; * stands for any characters: irca.instance.*"
    )
    environments: Annotated[list[Pattern], Field(max_length=100)] = Field(
        [], description="Names of environments, with * as above. Given, events that belong to no environment do not pass."
    )
    groups: Annotated[list[Pattern], Field(max_length=100)] = Field(
        [], description="Ids of groups. Given, only events of their members pass."
    )
    min_severity: Annotated[int, Field(ge=1, le=24)] = Field(9, description="Least OTel severity number: 9 info, 13 warn, 17 error.")


def wants(filters: WebhookFilters, record: EventRecord, groups: Collection[str] = ()) -> bool:
    """Whether an endpoint with these filters is told of ``record``, whose instance is a member of ``groups``."""
    if record.attributes.get(MUTED) is True or record.severity < filters.min_severity:
        return False
    if filters.event_types and not _any(filters.event_types, record.name):
        return False
    if filters.environments and not (record.environment_name and _any(filters.environments, record.environment_name)):
        return False
    return not filters.groups or any(group in groups for group in filters.groups)


def ordering_key(record: EventRecord) -> str:
    """What an endpoint is told about in order: the event's instance, else its agent, else the platform."""
    return record.instance_id or record.agent_id or "platform"


def message_of(record: EventRecord) -> Mapping[str, Any]:
    """The event as it is delivered, as the Standard Webhooks specification has payloads: ``type``, ``timestamp`` and ``data``."""
    return {
        "type": record.name,
        "timestamp": rfc3339(record.time_unix_nano),
        "data": {
            "id": record.id,
            "severity": record.severity,
            "body": record.body,
            "attributes": dict(record.attributes),
            "resource": dict(record.resource),
            "agent_id": record.agent_id,
            "instance_id": record.instance_id,
            "agent_type": record.agent_type,
            "environment_name": record.environment_name,
        },
    }


def rfc3339(time_unix_nano: int) -> str:
    """A time in RFC 3339's form, in UTC, to the microsecond."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_unix_nano // 1000)).isoformat().replace("+00:00", "Z")


def _any(patterns: Collection[str], name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
