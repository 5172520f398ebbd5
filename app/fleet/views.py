"""What the API and the pages show of the fleet."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field

from app.events.views import EventView, Page


class Status(StrEnum):
    """Status of an instance, and of an agent (the worst of its instances that are not archived; for kubernetes as of its living pods)."""

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
    status_reason: str = Field(description="Why the status is what it is, in a few words; may be empty.")
    version: str = Field(description="Version of the agent that it runs.")
    last_seen_at: datetime | None = Field(description="When it was last heard; null before the first time.")
    replaced: bool = Field(False, description="A pod that is gone while another does its work. Such pods are listed on demand only.")


class InstanceView(InstanceSummary):
    """One running process of an agent."""

    agent_id: str
    agent_type: str
    environment_name: str
    status_since: datetime = Field(description="When it came to have its status.")
    first_seen_at: datetime = Field(description="When it was heard first.")
    maintenance_until: datetime | None = Field(None, description="Until when its events are muted; null outside maintenance windows.")
    healthy: bool | None = Field(description="What the instance last said of itself; null before its first health report.")
    components: list[ComponentHealthView] = Field(description="Health of its parts (collectors, spool, transport).")
    resource: dict[str, Any] = Field(description="OTel resource attributes of what it runs on.")
    effective_config: dict[str, Any] = Field(description="The configuration it reports to be running with.")


class ComponentHealthView(BaseModel):
    """Health of one part of an instance."""

    name: str
    healthy: bool
    status: str = Field(description="The component's state, in its own words.")
    last_error: str = Field(description="What went wrong last; empty when nothing did.")


class AgentView(BaseModel):
    """What one provisioning created."""

    id: str
    agent_type: str
    environment_name: str
    status: Status
    status_reason: str = Field(description="Why the status is what it is, in a few words; may be empty.")
    version: str = Field(description="Version of its instances; the oldest where they differ, empty before the first contact.")
    last_seen_at: datetime | None = Field(description="When any of its instances was last heard; null before the first time.")
    created_at: datetime
    maintenance_until: datetime | None = Field(None, description="Until when its events are muted; null outside maintenance windows.")
    labels: dict[str, str] = Field(description="What selectors of groups and maintenance windows, and filters of lists, look at.")
    config: dict[str, Any] = Field(description="Options that it was provisioned with.")
    instances: list[InstanceSummary]
    replaced_pods: int = Field(0, description="Pods that are gone and were replaced (kubernetes); left out of the instances by default.")


class QuietInstance(InstanceSummary):
    """An instance that nothing was heard of for too long."""

    agent_id: str
    environment_name: str
    agent_type: str


class FleetOverview(BaseModel):
    """The fleet at a glance."""

    total: int = Field(description="Agents.")
    statuses: dict[Status, int]
    versions: list[tuple[str, int]] = Field(description="Agents of each version, newest version first.")
    problems: list[AgentView] = Field(description="Degraded and offline agents, worst first; the first few.")
    quiet: list[QuietInstance] = Field(description="Instances gone quiet, the latest first; the first few.")
    quiet_total: int
    awaited: list[AgentView] = Field(description="Agents that no instance has made contact for, the newest first; the first few.")
    awaited_total: int


class CollectorReason(BaseModel):
    """What one of an agent's pods says of its collectors that fail."""

    instance_id: str
    last_error: str


class ClusterView(BaseModel):
    """A Kubernetes cluster that the fleet's pods run in."""

    uid: str = Field(description="UID of the namespace kube-system.")
    name: str = Field(description="Environment of the agent that has been in it longest.")
    agent_ids: list[str] = Field(description="Agents whose pods run in it.")
    environments: list[str] = Field(description="Environments of these agents.")
    status: Status
    status_reason: str = Field(description="Why the status is what it is, in a few words; may be empty.")
    pods: int = Field(description="Living pods of its agents.")
    last_seen_at: datetime | None = Field(description="When any of the pods was last heard; null before the first time.")
    collect_interval: float = Field(description="Seconds between collections.")
    instance_ids: list[str] = Field(exclude=True, description="The pods in it, where an agent has pods in several clusters.")
    collectors: list[CollectorReason] = Field(exclude=True)


__all__ = [
    "AgentView",
    "ClusterView",
    "CollectorReason",
    "ComponentHealthView",
    "EventView",
    "FleetOverview",
    "InstanceSummary",
    "InstanceView",
    "Page",
    "QuietInstance",
    "Status",
]

InstanceView.model_rebuild()
