"""An event as the platform keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MUTED = "irca.muted"
"""Attribute of an event that happened in a maintenance window: it is on record, and nobody is told. Only the platform sets it."""


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One event: what happened (``name``), when, to what (``resource``), and who told (agent and instance; None for the platform).

    ``id`` is unique for ever; a record whose id is known already is dropped silently (delivery is at least once). ``time_unix_nano``
    is when it happened, ``observed_time_unix_nano`` when it was noticed. ``severity`` is an OTel severity number (9 info, 13 warn,
    17 error).
    """

    id: str
    name: str
    time_unix_nano: int
    severity: int = 9
    body: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    resource: Mapping[str, Any] = field(default_factory=dict)
    observed_time_unix_nano: int = 0
    agent_id: str | None = None
    instance_id: str | None = None
    agent_type: str | None = None
    environment_name: str | None = None
