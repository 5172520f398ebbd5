"""Agents, instances, enrolment tokens and credentials."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field

from app.api.asgi import bearer
from app.api.dependencies import ActorDependency, Cursor, IdentityDependency, Limit, PlatformDependency, require
from app.auth.service import Role
from app.events.views import Page
from app.fleet.listing import Sort
from app.fleet.views import AgentView, InstanceView, Status
from app.platform import environment_aware

router = APIRouter(prefix="/api/v1", tags=["fleet"], dependencies=[Depends(require(Role.VIEWER))])
open_router = APIRouter(prefix="/api/v1/agent", tags=["agent"])
"""Routes that an agent asks with its own token or credential."""

WithReplaced = Annotated[bool, Query(description="Also the pods that are gone while another does their work (kubernetes).")]


class TokenView(BaseModel):
    """An enrolment token, without its text."""

    id: str
    prefix: str
    uses: int = Field(description="Machines (for kubernetes: clusters) that it has enrolled.")
    max_uses: int
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None


class NewTokenView(TokenView):
    """An enrolment token that was just made."""

    token: str = Field(description="Its text, shown this once.")


class TokenRotation(BaseModel):
    """How a token is replaced."""

    model_config = {"extra": "forbid"}

    overlap: Annotated[float, Field(ge=0, le=604_800)] = Field(3600.0, description="Seconds for which the token before stays valid.")


class WhoAmI(BaseModel):
    """Whose token or credential this is."""

    kind: str = Field(description="credential or enrolment.")
    agent_id: str
    agent_type: str
    environment_name: str
    instance_id: str | None


@router.get("/agents")
@environment_aware
async def list_agents(  # noqa: PLR0913, PLR0917 - one parameter for each filter; FastAPI passes them by name
    platform: PlatformDependency,
    identity: IdentityDependency,
    cursor: Cursor = None,
    limit: Limit = 50,
    status: Status | None = None,
    agent_type: str | None = None,
    environment_name: str | None = None,
    version: Annotated[str | None, Query(description="Version of the agent, as lists show it.")] = None,
    label: Annotated[list[str], Query(max_length=20, description="key=value, or key for any value; all must hold.")] = [],  # noqa: B006 - FastAPI copies it
    search: Annotated[str | None, Query(description="Looks in environment, type, labels and instance names.")] = None,
    sort: Sort = Sort.STATUS,
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
async def get_agent(agent_id: str, platform: PlatformDependency, with_replaced: WithReplaced = False) -> AgentView:
    """One agent."""
    return await platform.fleet.get_agent(agent_id, with_replaced=with_replaced)


@router.get("/agents/{agent_id}/tokens")
async def list_tokens(agent_id: str, platform: PlatformDependency) -> Page[TokenView]:
    """An agent's enrolment tokens, newest first, without their texts."""
    tokens = await platform.fleet.list_tokens(agent_id)
    return Page[TokenView](items=[TokenView.model_validate({**_columns(row), "uses": uses}) for row, uses in tokens])


@router.delete("/enrolment-tokens/{token_id}", status_code=204, dependencies=[Depends(require(Role.OPERATOR))])
async def revoke_token(token_id: str, platform: PlatformDependency, actor: ActorDependency) -> None:
    """Revoke an enrolment token, at once. Instances that it enrolled keep their own credentials."""
    await platform.fleet.enrolment.revoke_token(token_id, actor)


@router.post("/enrolment-tokens/{token_id}/rotate", status_code=201, dependencies=[Depends(require(Role.OPERATOR))])
async def rotate_token(token_id: str, body: TokenRotation, platform: PlatformDependency, actor: ActorDependency) -> NewTokenView:
    """Put a new token in the place of one, which expires after the overlap. The new one's text is in this answer only."""
    text, row = await platform.fleet.enrolment.rotate_token(token_id, body.overlap, actor)
    return NewTokenView.model_validate({**_columns(row), "uses": 0, "token": text})


@router.get("/instances")
@environment_aware
async def list_instances(
    platform: PlatformDependency,
    identity: IdentityDependency,
    cursor: Cursor = None,
    limit: Limit = 50,
    agent_id: str | None = None,
    status: Status | None = None,
    with_replaced: WithReplaced = False,
) -> Page[InstanceView]:
    """Instances, problems first."""
    return await platform.fleet.list_instances(
        cursor, limit, agent_id=agent_id, status=status, with_replaced=with_replaced, sees=identity.sees
    )


@router.get("/instances/{instance_id}")
async def get_instance(instance_id: str, platform: PlatformDependency) -> InstanceView:
    """One instance."""
    return await platform.fleet.get_instance(instance_id)


@router.delete("/instances/{instance_id}/credential", status_code=204, dependencies=[Depends(require(Role.OPERATOR))])
async def revoke_credential(instance_id: str, platform: PlatformDependency, actor: ActorDependency) -> None:
    """Revoke an instance's credential, at once."""
    await platform.fleet.revoke_credential(instance_id, actor)


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
