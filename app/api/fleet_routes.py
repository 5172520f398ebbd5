"""Agents, instances and credentials."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from app.api.dependencies import ActorDependency, Cursor, IdentityDependency, Limit, PlatformDependency, PrincipalDependency, require
from app.api.parameters import AgentId, InstanceId, InStatus, OfAgent, OfAgentType, OfEnvironment
from app.auth.service import Role
from app.events.views import Page
from app.fleet.listing import Sort
from app.fleet.views import AgentView, InstanceView
from app.platform import environment_aware

router = APIRouter(prefix="/api/v1", tags=["fleet"], dependencies=[Depends(require(Role.VIEWER))])
open_router = APIRouter(prefix="/api/v1/agent", tags=["agent"])
"""Routes that an agent asks with its own token or credential."""

WithReplaced = Annotated[bool, Query(description="Also the pods that are gone while another does their work (kubernetes).")]


class WhoAmI(BaseModel):
    """Whose token or credential this is."""

    kind: str = Field(description="credential or enrolment.")
    agent_id: str
    agent_type: str
    environment_name: str
    instance_id: str | None = Field(description="Null for an enrolment token.")


@router.get("/agents")
@environment_aware
async def list_agents(  # noqa: PLR0913, PLR0917 - one parameter for each filter; FastAPI passes them by name
    platform: PlatformDependency,
    identity: IdentityDependency,
    cursor: Cursor = None,
    limit: Limit = 50,
    status: InStatus = None,
    agent_type: OfAgentType = None,
    environment_name: OfEnvironment = None,
    version: Annotated[str | None, Query(description="Version of the agent, as lists show it.")] = None,
    label: Annotated[list[str], Query(max_length=20, description="key=value, or key for any value; all must hold.")] = [],  # noqa: B006 - FastAPI copies it
    search: Annotated[str | None, Query(description="Looks in environment, type, labels and instance names.")] = None,
    sort: Annotated[Sort, Query(description="What the list is ordered by; equal ones by environment, type and id.")] = Sort.STATUS,
    order: Annotated[Literal["asc", "desc"], Query(description="By status asc lists problems first.")] = "asc",
) -> Page[AgentView]:
    """Agents, problems first unless ordered otherwise."""
    return await platform.fleet.list_agents(
        cursor,
        limit,
        status=status,
        agent_type=agent_type,
        environment_name=environment_name,
        version=version,
        labels=label,
        search=search,
        sort=sort,
        descending=order == "desc",
        sees=identity.sees,
    )


@router.get("/agents/{agent_id}")
async def get_agent(agent_id: AgentId, platform: PlatformDependency, with_replaced: WithReplaced = False) -> AgentView:
    """One agent."""
    return await platform.fleet.get_agent(agent_id, with_replaced=with_replaced)


@router.get("/instances")
@environment_aware
async def list_instances(
    platform: PlatformDependency,
    identity: IdentityDependency,
    cursor: Cursor = None,
    limit: Limit = 50,
    agent_id: OfAgent = None,
    status: InStatus = None,
    with_replaced: WithReplaced = False,
) -> Page[InstanceView]:
    """Instances, problems first."""
    return await platform.fleet.list_instances(
        cursor, limit, agent_id=agent_id, status=status, with_replaced=with_replaced, sees=identity.sees
    )


@router.get("/instances/{instance_id}")
async def get_instance(instance_id: InstanceId, platform: PlatformDependency) -> InstanceView:
    """One instance."""
    return await platform.fleet.get_instance(instance_id)


@router.delete("/instances/{instance_id}/credential", status_code=204, dependencies=[Depends(require(Role.OPERATOR))])
async def revoke_credential(instance_id: InstanceId, platform: PlatformDependency, actor: ActorDependency) -> None:
    """Revoke an instance's credential, at once."""
    await platform.fleet.revoke_credential(instance_id, actor)


@open_router.get("/whoami")
async def who_am_i(principal: PrincipalDependency) -> WhoAmI:
    """Whose enrolment token or credential the request carries; enrols nothing and uses nothing up. Preflight asks this."""
    return WhoAmI(
        kind=principal.kind,
        agent_id=principal.agent_id,
        agent_type=principal.agent_type,
        environment_name=principal.environment_name,
        instance_id=principal.instance_id,
    )
