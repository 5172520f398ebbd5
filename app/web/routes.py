"""The pages: the fleet, an agent, an instance; containers, signing in and out in modules of their own."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from app.errors import PlatformError
from app.events.views import EventView
from app.fleet.views import InstanceView, Status
from app.platform import Platform
from app.telemetry.store import SeriesData
from app.web import container_routes, sign_in_routes
from app.web.charts import DEFAULT_RANGE, RANGES
from app.web.container_routes import container_panel
from app.web.latest import CONTAINER_ID, chart_panels, charts_for, latest_rows, read_latest
from app.web.rendering import PageRoute, PlatformDependency, Viewer, render, static_directory
from connectors.agent_factory import AgentFactory

__all__ = ["router", "static_directory"]

router = APIRouter(include_in_schema=False)
_pages = APIRouter(route_class=PageRoute)

PAGE_SIZE = 50
EVENTS_SHOWN = 20
STATUS_ORDER = (Status.OFFLINE, Status.DEGRADED, Status.PENDING, Status.HEALTHY, Status.STOPPED, Status.ARCHIVED)
"""Statuses as the pages list them: problems first."""

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


@_pages.get("/")
async def fleet(
    request: Request,
    platform: PlatformDependency,
    _viewer: Viewer,
    status: str = "",
    agent_type: str = "",
    environment_name: str = "",
    search: str = "",
    cursor: str = "",
) -> Response:
    """Every agent, problems first. An unknown status in the URL is no filter."""
    wanted = next((s for s in STATUS_ORDER if s.value == status), None)
    agent_type, environment_name, search = agent_type.strip(), environment_name.strip(), search.strip()
    counts = await platform.fleet.status_counts()
    page = await platform.fleet.list_agents(
        cursor=cursor or None,
        limit=PAGE_SIZE,
        status=wanted,
        agent_type=agent_type or None,
        environment_name=environment_name or None,
        search=search or None,
    )
    given = {"status": wanted.value if wanted else "", "agent_type": agent_type, "environment_name": environment_name, "search": search}
    filters = {name: value for name, value in given.items() if value}
    return render(
        request,
        "fleet.html",
        agents=page.items,
        next_query={**filters, "cursor": page.next_cursor} if page.next_cursor else None,
        counts=[(s, counts.get(s, 0), {**{k: v for k, v in filters.items() if k != "status"}, "status": s.value}) for s in STATUS_ORDER],
        total=sum(counts.values()),
        all_query={k: v for k, v in filters.items() if k != "status"},
        filters=given,
        filtered=bool(filters),
        cursor=cursor,
        agent_types=AgentFactory.supported_types(),
        public_url=platform.settings.resolved_public_url(),
    )


@_pages.get("/agents/{agent_id}")
async def agent(request: Request, platform: PlatformDependency, _viewer: Viewer, agent_id: str) -> Response:
    """One agent: its instances, configuration and recent events."""
    found = await platform.fleet.get_agent(agent_id)
    events = await _recent_events(platform, agent_id=agent_id)
    order = {status: place for place, status in enumerate(STATUS_ORDER)}
    instances = sorted(found.instances, key=lambda i: (order[i.status], i.name))
    return render(request, "agent.html", agent=found, instances=instances, events=events)


@_pages.get("/instances/{instance_id}")
async def instance(request: Request, platform: PlatformDependency, _viewer: Viewer, instance_id: str, range: str = "") -> Response:  # noqa: A002 - the parameter's name in the URL
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
        facts=_facts(found.resource),
        events=events,
        ranges=RANGES.values(),
        chosen=chosen,
        charts=chart_panels(charts_for(found.agent_type, series), series, instance_id, chosen),
        latest=rows,
        latest_left_out=left_out,
        metrics_error=metrics_error,
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
router.include_router(_pages)
router.include_router(container_routes.router)
