"""Enrolment tokens: lists, one with what it enrolled, revocation and rotation."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Query
from pydantic import BaseModel, Field

from app.api.dependencies import ActorDependency, Cursor, IdentityDependency, Limit, PlatformDependency, require
from app.api.parameters import AgentId, InTokenState, OfAgent, OfAgentType, OfEnvironment, TokenId
from app.auth.service import Role
from app.events.views import Page
from app.fleet.tokens import TokenDetailView, TokenFilter, TokenView
from app.platform import environment_aware

router = APIRouter(prefix="/api/v1", tags=["enrolment-tokens"], dependencies=[Depends(require(Role.VIEWER))])
_operator = [Depends(require(Role.OPERATOR))]

DEFAULT_OVERLAP = 3600.0


class NewTokenView(TokenView):
    """An enrolment token that was just made."""

    token: str = Field(description="Its text, shown this once.")


class TokenRotation(BaseModel):
    """How a token is replaced."""

    model_config = {"extra": "forbid", "json_schema_extra": {"examples": [{"overlap": 3600}]}}

    overlap: Annotated[float, Field(ge=0, le=604_800)] = Field(
        DEFAULT_OVERLAP, description="Seconds for which the token before stays valid."
    )


OptionalRotation = Annotated[
    TokenRotation | None,
    Body(openapi_examples={"an hour": {"summary": "Both tokens enrol for an hour.", "value": {"overlap": 3600}}}),
]


@router.get("/enrolment-tokens")
@environment_aware
async def list_tokens(  # noqa: PLR0913, PLR0917 - one parameter for each filter; FastAPI passes them by name
    platform: PlatformDependency,
    identity: IdentityDependency,
    cursor: Cursor = None,
    limit: Limit = 50,
    agent_id: OfAgent = None,
    environment_name: OfEnvironment = None,
    agent_type: OfAgentType = None,
    state: InTokenState = None,
    search: Annotated[str, Query(max_length=200, description="Looks in prefix, environment and ids.")] = "",
) -> Page[TokenView]:
    """Enrolment tokens of all agents, newest first, without their texts."""
    wanted = TokenFilter(agent_id, environment_name, agent_type, state, search.strip())
    return await platform.fleet.tokens.list_tokens(wanted, cursor, limit, viewer=identity)


@router.get("/agents/{agent_id}/tokens")
async def list_agent_tokens(agent_id: AgentId, platform: PlatformDependency, cursor: Cursor = None, limit: Limit = 50) -> Page[TokenView]:
    """An agent's enrolment tokens, newest first, without their texts."""
    return await platform.fleet.tokens.of_agent(agent_id, cursor, limit)


@router.get("/enrolment-tokens/{token_id}")
@environment_aware
async def get_token(token_id: TokenId, platform: PlatformDependency, identity: IdentityDependency) -> TokenDetailView:
    """One enrolment token, with the machines and instances that came by it."""
    return await platform.fleet.tokens.get_token(token_id, viewer=identity)


@router.delete("/enrolment-tokens/{token_id}", status_code=204, dependencies=_operator)
@environment_aware
async def revoke_token(
    token_id: TokenId,
    platform: PlatformDependency,
    identity: IdentityDependency,
    actor: ActorDependency,
    revoke_instances: Annotated[
        bool, Query(description="Also revoke the credentials of the instances that came by it; they are refused from then on.")
    ] = False,
) -> None:
    """Revoke an enrolment token, at once. Instances that it enrolled keep their own credentials unless these are revoked, too."""
    await platform.fleet.tokens.require(token_id, identity)
    await platform.fleet.enrolment.revoke_token(token_id, actor, revoke_instances=revoke_instances)


@router.post("/enrolment-tokens/{token_id}/rotate", status_code=201, dependencies=_operator)
@environment_aware
async def rotate_token(
    token_id: TokenId,
    platform: PlatformDependency,
    identity: IdentityDependency,
    actor: ActorDependency,
    body: OptionalRotation = None,
) -> NewTokenView:
    """Put a new token in the place of one, which expires after the overlap. The new one's text is in this answer only."""
    await platform.fleet.tokens.require(token_id, identity)
    overlap = DEFAULT_OVERLAP if body is None else body.overlap
    text, row = await platform.fleet.enrolment.rotate_token(token_id, overlap, actor)
    made = await platform.fleet.tokens.get_token(row.id)
    return NewTokenView(**made.model_dump(include=set(TokenView.model_fields)), token=text)
