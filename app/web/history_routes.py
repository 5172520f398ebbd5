"""What is done with an instance on its page: putting it into the archive and taking it out."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.auth.service import Role
from app.web.forms import actor_of, submitted
from app.web.rendering import PageRoute, PlatformDependency, Viewer

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.post("/instances/{instance_id}/archive")
async def archive(request: Request, platform: PlatformDependency, viewer: Viewer, instance_id: str) -> Response:
    """Archive an instance that is not heard any more."""
    await submitted(request, platform, viewer, Role.OPERATOR)
    await platform.fleet.archive.put(instance_id, actor_of(request, viewer))
    return RedirectResponse(f"/instances/{instance_id}", 303)


@router.post("/instances/{instance_id}/revive")
async def revive(request: Request, platform: PlatformDependency, viewer: Viewer, instance_id: str) -> Response:
    """Take an instance out of the archive."""
    await submitted(request, platform, viewer, Role.OPERATOR)
    await platform.fleet.archive.revive(instance_id, actor_of(request, viewer))
    return RedirectResponse(f"/instances/{instance_id}", 303)
