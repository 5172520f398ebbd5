"""The part of an instance's page that shows its host."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.errors import PlatformError
from app.events.views import EventView
from app.fleet.views import InstanceView
from app.platform import Platform
from app.web.hosts import HostPanel, change_rows, make_panel
from app.web.rendering import PageRoute, PlatformDependency, Viewer, render

router = APIRouter(route_class=PageRoute)

EVENTS_READ = 200
"""Newest events among which a host's changes are looked for."""


@router.get("/instances/{instance_id}/host")
async def host(request: Request, platform: PlatformDependency, _viewer: Viewer, instance_id: str) -> Response:
    """The host alone, for the page's refresh; whoever else asks is sent to the instance's page."""
    if request.headers.get("hx-request") != "true":
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"/instances/{instance_id}{query}#host", 303)
    found = await platform.fleet.get_instance(instance_id)
    return render(request, "_host.html", instance=found, panel=await host_panel(platform, found))


async def host_panel(platform: Platform, instance: InstanceView) -> HostPanel:
    """What is to be shown of the host that ``instance`` measures; why there is nothing, where the metrics cannot be read."""
    page = await platform.events.list_events(limit=EVENTS_READ, instance_id=instance.id)
    events: list[EventView] = page.items
    try:
        found = await platform.hosts.read(
            instance.id, last_seen_at=instance.last_seen_at, interval=instance.effective_config.get("collect_interval")
        )
    except PlatformError as exc:
        return HostPanel(None, change_rows(events), exc.reason)
    return make_panel(found, events)
