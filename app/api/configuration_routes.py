"""Configurations of groups and agents: change, history, revert; why an instance has the values that it has; agents' labels."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, Field

from app.api.dependencies import ActorDependency, Cursor, IdentityDependency, Limit, PlatformDependency, require, version_of
from app.api.group_routes import IfMatch, everywhere
from app.api.parameters import AgentId, GroupId, InConfigStatus, InstanceId
from app.auth.service import Role
from app.errors import FieldError, InvalidRequestError, NotFoundError
from app.events.views import Page
from app.fleet.views import AgentView
from app.groups.service import Scope
from app.groups.views import (
    BulkView,
    ConfigurationChangeView,
    ConfigurationView,
    InstanceConfigurationView,
    MemberView,
    RevisionView,
)
from app.platform import environment_aware

router = APIRouter(prefix="/api/v1", tags=["configuration"], dependencies=[Depends(require(Role.VIEWER))])
_operator = [Depends(require(Role.OPERATOR))]
_everywhere = [Depends(everywhere)]
_group_operator = [*_operator, *_everywhere]

_View = TypeVar("_View", bound=ConfigurationView)

DryRun = Annotated[bool, Query(description="Only say what would change.")]


class ConfigurationRequest(BaseModel):
    """What a configuration is to become, whole: an option that is left out is not set any more."""

    model_config = {
        "extra": "forbid",
        "json_schema_extra": {
            "examples": [{"config": {"collect_interval": 30, "log_level": "warning"}, "comment": "Less often at night."}]
        },
    }

    config: dict[str, Any] = Field(description="Options by name, as the agent type's config_schema has them.")
    comment: Annotated[str, Field(max_length=1000)] = Field("", description="Why; kept in the history and the audit log.")


class RevertRequest(BaseModel):
    """Where to go back to."""

    model_config = {"extra": "forbid", "json_schema_extra": {"examples": [{"revision": 3}]}}

    revision: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        description="The revision whose content is wanted again; 0 for no configuration."
    )


class AgentChangeRequest(BaseModel):
    """What changes of an agent."""

    model_config = {"extra": "forbid", "json_schema_extra": {"examples": [{"labels": {"team": "web", "canary": None}}]}}

    labels: dict[str, str | None] = Field(description="Labels to set; null removes one. Others stay.")


class BulkRequest(BaseModel):
    """An act on several agents: on all of them, or on none."""

    model_config = {
        "extra": "forbid",
        "json_schema_extra": {
            "examples": [{"agent_ids": ["0b8b6a3e-6a1b-4c35-9d0e-2f6f5f1f8a11"], "action": "label", "labels": {"team": "web"}}]
        },
    }

    agent_ids: Annotated[list[str], Field(min_length=1, max_length=1000)]
    action: Literal["label", "revoke-credentials"]
    labels: dict[str, str | None] = Field({}, description="For label: labels to set; null removes one.")


@router.get("/groups/{group_id}/configuration", dependencies=_everywhere)
async def get_group_configuration(group_id: GroupId, platform: PlatformDependency, response: Response) -> ConfigurationView:
    """The current configuration of a group; the ETag is for changing it."""
    return _tagged(response, await platform.groups.configuration(Scope("group", group_id)))


@router.put("/groups/{group_id}/configuration", dependencies=_group_operator)
async def put_group_configuration(
    group_id: GroupId,
    body: ConfigurationRequest,
    platform: PlatformDependency,
    actor: ActorDependency,
    response: Response,
    if_match: IfMatch = None,
    dry_run: DryRun = False,
) -> ConfigurationChangeView:
    """Change the configuration of a group. It goes to a tenth of its instances first, and to the rest once one has proven it."""
    return await _put(Scope("group", group_id), body, platform, actor, response, if_match, dry_run=dry_run)


@router.get("/groups/{group_id}/configuration/revisions", dependencies=_everywhere)
async def list_group_revisions(
    group_id: GroupId, platform: PlatformDependency, cursor: Cursor = None, limit: Limit = 50
) -> Page[RevisionView]:
    """The history of a group's configuration, newest first."""
    return await platform.groups.history(Scope("group", group_id), cursor, limit)


@router.post("/groups/{group_id}/configuration/revert", dependencies=_group_operator)
async def revert_group_configuration(
    group_id: GroupId,
    body: RevertRequest,
    platform: PlatformDependency,
    actor: ActorDependency,
    response: Response,
    if_match: IfMatch = None,
) -> ConfigurationChangeView:
    """Give a group an earlier configuration again; that makes a new revision."""
    scope = Scope("group", group_id)
    return _tagged(response, await platform.groups.revert(scope, body.revision, actor, expected=version_of(if_match)))


@router.get("/agents/{agent_id}/configuration")
async def get_agent_configuration(agent_id: AgentId, platform: PlatformDependency, response: Response) -> ConfigurationView:
    """The agent's own configuration, which wins over that of its groups; the ETag is for changing it."""
    return _tagged(response, await platform.groups.configuration(Scope("agent", agent_id)))


@router.put("/agents/{agent_id}/configuration", dependencies=_operator)
async def put_agent_configuration(
    agent_id: AgentId,
    body: ConfigurationRequest,
    platform: PlatformDependency,
    actor: ActorDependency,
    response: Response,
    if_match: IfMatch = None,
    dry_run: DryRun = False,
) -> ConfigurationChangeView:
    """Change an agent's own configuration."""
    return await _put(Scope("agent", agent_id), body, platform, actor, response, if_match, dry_run=dry_run)


@router.get("/agents/{agent_id}/configuration/revisions")
async def list_agent_revisions(
    agent_id: AgentId, platform: PlatformDependency, cursor: Cursor = None, limit: Limit = 50
) -> Page[RevisionView]:
    """The history of an agent's own configuration, newest first."""
    return await platform.groups.history(Scope("agent", agent_id), cursor, limit)


@router.get("/agents/{agent_id}/configuration/instances")
async def list_agent_members(
    agent_id: AgentId, platform: PlatformDependency, cursor: Cursor = None, limit: Limit = 50, status: InConfigStatus = None
) -> Page[MemberView]:
    """The instances of an agent, and how the configuration that is meant for each fares there."""
    return await platform.groups.list_members(Scope("agent", agent_id), cursor, limit, status=status)


@router.post("/agents/{agent_id}/configuration/revert", dependencies=_operator)
async def revert_agent_configuration(
    agent_id: AgentId,
    body: RevertRequest,
    platform: PlatformDependency,
    actor: ActorDependency,
    response: Response,
    if_match: IfMatch = None,
) -> ConfigurationChangeView:
    """Give an agent an earlier configuration of its own again; that makes a new revision."""
    scope = Scope("agent", agent_id)
    return _tagged(response, await platform.groups.revert(scope, body.revision, actor, expected=version_of(if_match)))


@router.get("/instances/{instance_id}/configuration")
async def explain_configuration(instance_id: InstanceId, platform: PlatformDependency) -> InstanceConfigurationView:
    """Every option of an instance with its value, who says so and what that overrides; and how what is meant for it fares."""
    return await platform.groups.explain(instance_id)


@router.patch("/agents/{agent_id}", dependencies=_operator)
async def change_agent(agent_id: AgentId, body: AgentChangeRequest, platform: PlatformDependency, actor: ActorDependency) -> AgentView:
    """Change an agent's labels."""
    return await platform.groups.labels.set_labels(agent_id, body.labels, actor)


@router.post("/agents/bulk", dependencies=_operator)
@environment_aware
async def act_on_agents(body: BulkRequest, platform: PlatformDependency, identity: IdentityDependency, actor: ActorDependency) -> BulkView:
    """Act on several agents: set and remove labels, or revoke the credentials of their instances."""
    for agent_id in body.agent_ids:
        agent = platform.fleet.registry.agents.get(agent_id)
        if agent is None or not identity.sees(agent.environment_name):
            raise NotFoundError(f"there is no agent {agent_id}")
    if body.action == "revoke-credentials":
        return await platform.groups.labels.revoke_agents(body.agent_ids, actor)
    if not body.labels:
        raise InvalidRequestError("the request is not valid", errors=[FieldError("labels", "must name the labels to set or remove")])
    return await platform.groups.labels.label_agents(body.agent_ids, body.labels, actor)


async def _put(
    scope: Scope,
    body: ConfigurationRequest,
    platform: PlatformDependency,
    actor: ActorDependency,
    response: Response,
    if_match: str | None,
    *,
    dry_run: bool,
) -> ConfigurationChangeView:
    revision = version_of(if_match)
    made = await platform.groups.configure(scope, body.config, actor, comment=body.comment.strip(), revision=revision, dry_run=dry_run)
    return _tagged(response, made)


def _tagged(response: Response, view: _View) -> _View:
    response.headers["ETag"] = f'"{view.revision}"'
    return view
