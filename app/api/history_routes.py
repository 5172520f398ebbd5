"""How instances and agents fared, and putting instances into the archive."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from app.api.dependencies import ActorDependency, PlatformDependency, require
from app.api.parameters import AgentId, InstanceId
from app.auth.service import Role
from app.fleet.timeline import AvailabilityView, HistoryView
from app.fleet.views import InstanceView

router = APIRouter(prefix="/api/v1", tags=["fleet"], dependencies=[Depends(require(Role.VIEWER))])
_operator = [Depends(require(Role.OPERATOR))]

Start = Annotated[
    datetime | None,
    Query(
        description="Inclusive, with its zone; a day before the end by default.",
        openapi_examples={"day": {"value": "2026-11-21T00:00:00Z"}},
    ),
]
End = Annotated[
    datetime | None,
    Query(description="Exclusive, with its zone; now by default.", openapi_examples={"day": {"value": "2026-11-22T00:00:00Z"}}),
]


@router.get("/instances/{instance_id}/history")
async def instance_history(instance_id: InstanceId, platform: PlatformDependency, start: Start = None, end: End = None) -> HistoryView:
    """How the status of an instance went over a range, with the reasons."""
    return (await platform.fleet.history.of_instance(instance_id, start, end))[0]


@router.get("/instances/{instance_id}/availability")
async def instance_availability(
    instance_id: InstanceId, platform: PlatformDependency, start: Start = None, end: End = None
) -> AvailabilityView:
    """How available an instance was over a range, maintenance left out."""
    return (await platform.fleet.history.of_instance(instance_id, start, end))[1]


@router.get("/agents/{agent_id}/history")
async def agent_history(agent_id: AgentId, platform: PlatformDependency, start: Start = None, end: End = None) -> HistoryView:
    """How the status of an agent, as it follows from its instances', went over a range."""
    return (await platform.fleet.history.of_agent(agent_id, start, end))[0]


@router.get("/agents/{agent_id}/availability")
async def agent_availability(agent_id: AgentId, platform: PlatformDependency, start: Start = None, end: End = None) -> AvailabilityView:
    """How available an agent was over a range, maintenance and replaced pods left out."""
    return (await platform.fleet.history.of_agent(agent_id, start, end))[1]


@router.post("/instances/{instance_id}/archive", dependencies=_operator)
async def archive_instance(instance_id: InstanceId, platform: PlatformDependency, actor: ActorDependency) -> InstanceView:
    """Archive an instance that is not heard any more. Its credential stays valid: when it is heard again it comes back."""
    return await platform.fleet.archive.put(instance_id, actor)


@router.post("/instances/{instance_id}/revive", dependencies=_operator)
async def revive_instance(instance_id: InstanceId, platform: PlatformDependency, actor: ActorDependency) -> InstanceView:
    """Take an instance out of the archive."""
    return await platform.fleet.archive.revive(instance_id, actor)
