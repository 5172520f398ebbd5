"""Saved views: a page's filters under a name, for everybody."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from app.api.dependencies import ActorDependency, IdentityDependency, PlatformDependency, require
from app.api.parameters import ViewId
from app.auth.service import Role
from app.events.views import Page
from app.fleet.saved_views import SavedView
from app.platform import environment_aware

router = APIRouter(prefix="/api/v1/saved-views", tags=["saved views"], dependencies=[Depends(require(Role.VIEWER))])
_operator = [Depends(require(Role.OPERATOR))]


class SavedViewRequest(BaseModel):
    """A view to save."""

    model_config = {
        "extra": "forbid",
        "json_schema_extra": {
            "examples": [{"page": "agents", "name": "Unwell in production", "query": {"label": "tier=prod", "status": "offline"}}]
        },
    }

    page: Annotated[str, Field(max_length=64, description="The page it is of, such as agents.")]
    name: Annotated[str, Field(max_length=100, description="What it is called; once a page.")]
    query: Annotated[dict[str, str], Field(max_length=20, description="The page's parameters.")]


@router.get("")
@environment_aware
async def list_saved_views(
    platform: PlatformDependency,
    identity: IdentityDependency,
    page: Annotated[str | None, Query(description="Only views of this page.")] = None,
) -> Page[SavedView]:
    """Saved views, by page and name; all of them in one answer."""
    return Page[SavedView](items=platform.saved_views.of_page(page, identity))


@router.post("", status_code=201, dependencies=_operator)
async def save_view(body: SavedViewRequest, platform: PlatformDependency, actor: ActorDependency) -> SavedView:
    """Save a page's filters under a name, for everybody."""
    return await platform.saved_views.save(body.page, body.name, body.query, actor)


@router.delete("/{view_id}", status_code=204, dependencies=_operator)
async def delete_view(view_id: ViewId, platform: PlatformDependency, identity: IdentityDependency, actor: ActorDependency) -> None:
    """Delete a saved view, for everybody."""
    await platform.saved_views.delete(view_id, actor, identity)
