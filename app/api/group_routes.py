"""Groups: who they select, and how the configuration fares at their members."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from pydantic import BaseModel, Field

from app.api.dependencies import ActorDependency, Cursor, IdentityDependency, Limit, PlatformDependency, require, version_of
from app.api.parameters import GroupId, InConfigStatus
from app.auth.service import Role
from app.errors import ForbiddenError
from app.events.views import Page
from app.groups.selectors import Selector
from app.groups.service import GroupSpec, Scope
from app.groups.validation import check_config, types_of
from app.groups.views import GroupView, MemberView, PreviewView


async def everywhere(identity: IdentityDependency) -> None:
    """Refuse a key that is limited to some environments: a group may reach into all of them."""
    if not identity.everywhere:
        raise ForbiddenError("groups reach into every environment, and this key is limited to some")


router = APIRouter(prefix="/api/v1", tags=["groups"], dependencies=[Depends(require(Role.VIEWER)), Depends(everywhere)])
_operator = [Depends(require(Role.OPERATOR))]

IfMatch = Annotated[str | None, Header(alias="If-Match", description="The ETag that the change was made from; a newer one refuses it.")]


class GroupRequest(BaseModel):
    """A group to create, or what one is to become."""

    model_config = {
        "extra": "forbid",
        "json_schema_extra": {
            "examples": [
                {
                    "name": "web-tier",
                    "selector": {
                        "matchLabels": {"team": "web"},
                        "matchExpressions": [{"key": "environment", "operator": "In", "values": ["prod"]}],
                    },
                    "priority": 10,
                }
            ]
        },
    }

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$")]
    description: Annotated[str, Field(max_length=1000)] = ""
    selector: Selector = Field(default_factory=lambda: Selector(), description="Whom it selects; without conditions, everybody.")  # noqa: PLW0108 - mypy cannot see the class as a factory
    priority: Annotated[int, Field(ge=-1000, le=1000)] = Field(
        0, description="Where several groups set an option, the one of the highest priority wins; of equal ones the first by name."
    )

    def spec(self) -> GroupSpec:
        """The same for the service."""
        return GroupSpec(self.name.strip(), self.selector, self.description.strip(), self.priority)


class PreviewRequest(BaseModel):
    """A selector to try, and a configuration to check."""

    model_config = {
        "extra": "forbid",
        "json_schema_extra": {"examples": [{"selector": {"matchLabels": {"team": "web"}}, "config": {"collect_interval": 30}}]},
    }

    selector: Selector
    config: dict[str, Any] = Field({}, description="Options that must be valid for the types that the selector can match.")


@router.get("/groups")
async def list_groups(
    platform: PlatformDependency,
    cursor: Cursor = None,
    limit: Limit = 50,
    search: Annotated[str | None, Query(description="Looks in names, descriptions and selectors.")] = None,
) -> Page[GroupView]:
    """Groups, by name."""
    return await platform.groups.list_groups(cursor, limit, search=search)


@router.post("/groups", status_code=201, dependencies=_operator)
async def create_group(body: GroupRequest, platform: PlatformDependency, actor: ActorDependency, response: Response) -> GroupView:
    """Create a group. It configures nothing before it is given a configuration."""
    return _tagged(response, await platform.groups.create_group(body.spec(), actor))


@router.post("/groups/preview")
async def preview(body: PreviewRequest, platform: PlatformDependency) -> PreviewView:
    """Whom a selector selects now, and whether a configuration is valid for them; changes nothing."""
    check_config(body.config, types_of(body.selector))
    return await platform.groups.preview(body.selector)


@router.get("/groups/{group_id}")
async def get_group(group_id: GroupId, platform: PlatformDependency, response: Response) -> GroupView:
    """One group; the ETag is for changing it."""
    return _tagged(response, await platform.groups.get_group(group_id))


@router.put("/groups/{group_id}", dependencies=_operator)
async def update_group(
    group_id: GroupId,
    body: GroupRequest,
    platform: PlatformDependency,
    actor: ActorDependency,
    response: Response,
    if_match: IfMatch = None,
) -> GroupView:
    """Change a group: its name, whom it selects, its priority."""
    return _tagged(response, await platform.groups.update_group(group_id, body.spec(), actor, version_of(if_match)))


@router.delete("/groups/{group_id}", status_code=204, dependencies=_operator)
async def delete_group(group_id: GroupId, platform: PlatformDependency, actor: ActorDependency, if_match: IfMatch = None) -> None:
    """Delete a group. Its members give up what it configured."""
    await platform.groups.delete_group(group_id, actor, version_of(if_match))


@router.get("/groups/{group_id}/instances")
async def list_members(
    group_id: GroupId, platform: PlatformDependency, cursor: Cursor = None, limit: Limit = 50, status: InConfigStatus = None
) -> Page[MemberView]:
    """The instances of a group, and how the configuration that is meant for each fares there."""
    return await platform.groups.list_members(Scope("group", group_id), cursor, limit, status=status)


def _tagged(response: Response, view: GroupView) -> GroupView:
    response.headers["ETag"] = f'"{view.version}"'
    return view
