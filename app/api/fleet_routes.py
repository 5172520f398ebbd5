"""Agents, instances, enrolment tokens and credentials."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field

from app.api.asgi import bearer
from app.api.dependencies import Cursor, Limit, PlatformDependency, require
from app.auth.service import Role
from app.events.views import Page
from app.fleet.views import AgentView, InstanceView, Status

router = APIRouter(prefix="/api/v1", tags=["fleet"], dependencies=[Depends(require(Role.VIEWER))])
open_router = APIRouter(prefix="/api/v1/agent", tags=["agent"])
"""Routes that an agent asks with its own token or credential."""


class TokenView(BaseModel):
    """An enrolment token, without its text."""

    id: str
    prefix: str
    uses: int = Field(description="Machines (for kubernetes: clusters) that it has enrolled.")
    max_uses: int
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None


class WhoAmI(BaseModel):
    """Whose token or credential this is."""

    kind: str = Field(description="credential or enrolment.")
    agent_id: str
    agent_type: str
    environment_name: str
    instance_id: str | None


@router.get("/agents")
async def list_agents(
    platform: PlatformDependency,
    cursor: Cursor = None,
    limit: Limit = 50,
    status: Status | None = None,
    agent_type: str | None = None,
    environment_name: str | None = None,
    search: Annotated[str | None, Query(description="Looks in environment, type, labels and instance names.")] = None,
) -> Page[AgentView]:
    """Agents, problems first."""
    return await platform.fleet.list_agents(
        cursor, limit, status=status, agent_type=agent_type, environment_name=environment_name, search=search
    )


@router.get("/agents/{agent_id}")
async def get_agent(agent_id: str, platform: PlatformDependency) -> AgentView:
    """One agent."""
    return await platform.fleet.get_agent(agent_id)


@router.get("/agents/{agent_id}/tokens")
async def list_tokens(agent_id: str, platform: PlatformDependency) -> Page[TokenView]:
    """An agent's enrolment tokens, newest first, without their texts."""
    tokens = await platform.fleet.list_tokens(agent_id)
    return Page[TokenView](items=[TokenView.model_validate({**_columns(row), "uses": uses}) for row, uses in tokens])


@router.delete("/enrolment-tokens/{token_id}", status_code=204, dependencies=[Depends(require(Role.OPERATOR))])
async def revoke_token(token_id: str, platform: PlatformDependency) -> None:
    """Revoke an enrolment token, at once. Instances that it enrolled keep their own credentials."""
    await platform.fleet.enrolment.revoke_token(token_id)


@router.get("/instances")
async def list_instances(
    platform: PlatformDependency, cursor: Cursor = None, limit: Limit = 50, agent_id: str | None = None, status: Status | None = None
) -> Page[InstanceView]:
    """Instances, problems first."""
    return await platform.fleet.list_instances(cursor, limit, agent_id=agent_id, status=status)


@router.get("/instances/{instance_id}")
async def get_instance(instance_id: str, platform: PlatformDependency) -> InstanceView:
    """One instance."""
    return await platform.fleet.get_instance(instance_id)


@router.delete("/instances/{instance_id}/credential", status_code=204, dependencies=[Depends(require(Role.OPERATOR))])
async def revoke_credential(instance_id: str, platform: PlatformDependency) -> None:
    """Revoke an instance's credential, at once."""
    await platform.fleet.revoke_credential(instance_id)


@open_router.get("/whoami")
async def who_am_i(request: Request, platform: PlatformDependency) -> WhoAmI:
    """Whose enrolment token or credential the request carries; enrols nothing and uses nothing up. Preflight asks this."""
    principal = await platform.fleet.principal(bearer(request.scope))
    return WhoAmI(
        kind=principal.kind,
        agent_id=principal.agent_id,
        agent_type=principal.agent_type,
        environment_name=principal.environment_name,
        instance_id=principal.instance_id,
    )


def _columns(row: object) -> dict[str, object]:
    return {name: getattr(row, name) for name in ("id", "prefix", "max_uses", "created_at", "expires_at", "revoked_at")}
