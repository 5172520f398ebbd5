"""The pages of an agent and of an instance, and the router of all pages, whose others are in modules of their own."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from app.auth.service import Role
from app.errors import PlatformError
from app.events.views import EventView
from app.fleet.views import InstanceView
from app.platform import Platform
from app.telemetry.store import SeriesData
from app.web import (
    about_routes,
    agents_routes,
    bulk_routes,
    cluster_routes,
    connect_routes,
    container_routes,
    history_routes,
    host_routes,
    maintenance_routes,
    overview_routes,
    sign_in_routes,
    theme_routes,
)
from app.web.charts import DEFAULT_RANGE, RANGES
from app.web.container_routes import container_panel
from app.web.history import history_panel
from app.web.host_routes import host_panel
from app.web.latest import CONTAINER_ID, chart_panels, charts_for, latest_rows, read_latest
from app.web.rendering import PageRoute, PlatformDependency, Viewer, render, static_directory

__all__ = ["router", "static_directory"]

router = APIRouter(include_in_schema=False)
_pages = APIRouter(route_class=PageRoute)

EVENTS_SHOWN = 20

HOST_FACTS = {
    "host.name": "Host",
    "os.description": "Operating system",
    "os.name": "OS name",
    "os.version": "OS version",
    "os.type": "OS type",
    "host.arch": "Architecture",
    "host.id": "Host id",
    "k8s.cluster.name": "Cluster",
    "k8s.cluster.uid": "Cluster id",
    "k8s.node.name": "Node",
    "k8s.namespace.name": "Namespace",
    "k8s.pod.name": "Pod",
    "container.runtime.name": "Container runtime",
    "service.version": "Agent version",
}
"""Resource attributes that have a name for people, in the order in which they are shown; all others follow under their own."""


@_pages.get("/agents/{agent_id}")
async def agent(request: Request, platform: PlatformDependency, viewer: Viewer, agent_id: str, replaced: str = "") -> Response:
    """One agent: its instances (with ``replaced`` pods that were replaced, too), configuration and recent events; its clusters."""
    found = await platform.fleet.get_agent(agent_id, with_replaced=replaced == "1")
    clusters = await platform.fleet.list_clusters(viewer.sees) if found.agent_type == "kubernetes" else []
    events = await _recent_events(platform, agent_id=agent_id)
    order = {status: place for place, status in enumerate(agents_routes.STATUS_ORDER)}
    instances = sorted(found.instances, key=lambda i: (order[i.status], i.name))
    return render(
        request,
        "agent.html",
        agent=found,
        instances=instances,
        events=events,
        clusters=[one for one in clusters if found.id in one.agent_ids],
        with_replaced=replaced == "1",
        funnel=await platform.fleet.deployment(agent_id),
    )


@_pages.get("/instances/{instance_id}")
async def instance(
    request: Request,
    platform: PlatformDependency,
    viewer: Viewer,
    instance_id: str,
    range: str = "",  # noqa: A002 - the parameter's name in the URL
    history: str = "",
) -> Response:
    """One instance: its status, charts, components, host, configuration and recent events."""
    found = await platform.fleet.get_instance(instance_id)
    events = await _recent_events(platform, instance_id=instance_id)
    series, metrics_error = await _latest(platform, found)
    chosen = RANGES.get(range, DEFAULT_RANGE)
    rows, left_out = latest_rows([s for s in series if CONTAINER_ID not in s.labels], found.resource)
    return render(
        request,
        "instance.html",
        instance=found,
        containers=await container_panel(platform, found, request) if found.agent_type == "docker" else None,
        panel=await host_panel(platform, found) if found.agent_type == "server" else None,
        facts=_facts(found.resource),
        events=events,
        ranges=RANGES.values(),
        chosen=chosen,
        charts=chart_panels(charts_for(found.agent_type, series), series, instance_id, chosen),
        latest=rows,
        latest_left_out=left_out,
        metrics_error=metrics_error,
        history=await history_panel(platform, found, history),
        may_act=viewer.role >= Role.OPERATOR,
    )


async def _recent_events(platform: Platform, *, agent_id: str | None = None, instance_id: str | None = None) -> list[EventView]:
    page = await platform.events.list_events(limit=EVENTS_SHOWN, agent_id=agent_id, instance_id=instance_id)
    return page.items


async def _latest(platform: Platform, instance: InstanceView) -> tuple[list[SeriesData], str]:
    """The latest series, or why there are none: a metric store in trouble must not hide the rest of the page."""
    try:
        return await read_latest(platform.metrics, instance.id, int(time.time() * 1000), instance.agent_type), ""
    except PlatformError as exc:
        return [], exc.reason


def _facts(resource: dict[str, object]) -> list[tuple[str, object]]:
    named = [(title, resource[key]) for key, title in HOST_FACTS.items() if resource.get(key) not in (None, "")]
    return named + [(key, value) for key, value in sorted(resource.items()) if key not in HOST_FACTS]


router.include_router(sign_in_routes.router)
router.include_router(theme_routes.router)
router.include_router(overview_routes.router)
router.include_router(agents_routes.router)
router.include_router(bulk_routes.router)
router.include_router(connect_routes.router)
router.include_router(about_routes.router)
router.include_router(_pages)
router.include_router(container_routes.router)
router.include_router(history_routes.router)
router.include_router(maintenance_routes.router)
router.include_router(host_routes.router)
router.include_router(cluster_routes.router)
