"""What the API and the pages show of the fleet."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field

from app.events.views import EventView, Page


class Status(StrEnum):
    """Status of an instance, and of an agent (the worst of its instances that are not archived)."""

    PENDING = "pending"
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    OFFLINE = "offline"
    STOPPED = "stopped"
    ARCHIVED = "archived"


class InstanceSummary(BaseModel):
    """An instance in short, inside its agent."""

    id: str
    name: str = Field(description="Host, container or pod name; the id where none was told.")
    status: Status
    status_reason: str
    version: str
    last_seen_at: datetime | None


class InstanceView(InstanceSummary):
    """One running process of an agent."""

    agent_id: str
    agent_type: str
    environment_name: str
    status_since: datetime
    first_seen_at: datetime
    healthy: bool | None = Field(description="What the instance last said of itself; null before its first health report.")
    components: list[ComponentHealthView] = Field(description="Health of its parts (collectors, spool, transport).")
    resource: dict[str, Any] = Field(description="OTel resource attributes of what it runs on.")
    effective_config: dict[str, Any] = Field(description="The configuration it reports to be running with.")


class ComponentHealthView(BaseModel):
    """Health of one part of an instance."""

    name: str
    healthy: bool
    status: str
    last_error: str


class AgentView(BaseModel):
    """What one provisioning created."""

    id: str
    agent_type: str
    environment_name: str
    status: Status
    status_reason: str
    version: str = Field(description="Version of its instances; the oldest where they differ, empty before the first contact.")
    last_seen_at: datetime | None
    created_at: datetime
    labels: dict[str, str]
    config: dict[str, Any]
    instances: list[InstanceSummary]


__all__ = ["AgentView", "ComponentHealthView", "EventView", "InstanceSummary", "InstanceView", "Page", "Status"]

InstanceView.model_rebuild()
