"""The pages about containers: the table beside an instance's changes, and a page for each container."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.errors import NotFoundError, PlatformError
from app.events.views import EventView
from app.fleet.views import InstanceView
from app.platform import Platform
from app.telemetry.containers import Containers
from app.telemetry.store import SeriesData
from app.web.charts import DEFAULT_RANGE, RANGES, container_charts
from app.web.containers import Table, TableQuery, facts, make_row, make_table, select_page
from app.web.latest import chart_panels, latest_rows, read_latest
from app.web.rendering import PageRoute, PlatformDependency, Viewer, render

router = APIRouter(route_class=PageRoute)

EVENTS_SHOWN = 30


@dataclass(frozen=True, slots=True)
class Panel:
    """The table of an instance's containers, or why there is none."""

    table: Table | None
    error: str = ""


@router.get("/instances/{instance_id}/containers")
async def containers(request: Request, platform: PlatformDependency, _viewer: Viewer, instance_id: str) -> Response:
    """The table alone, for the page's refresh; whoever else asks is sent to the instance's page."""
    if request.headers.get("hx-request") != "true":
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"/instances/{instance_id}{query}#containers", 303)
    found = await platform.fleet.get_instance(instance_id)
    panel = await container_panel(platform, found, request)
    return render(request, "_containers.html", instance=found, containers=panel)


@router.get("/instances/{instance_id}/containers/{container_id}")
async def container(
    request: Request,
    platform: PlatformDependency,
    _viewer: Viewer,
    instance_id: str,
    container_id: str,
    range: str = "",  # noqa: A002 - the parameter's name in the URL
) -> Response:
    """One container: state, charts, changes, facts. One that is gone keeps its page as long as metrics or events know it."""
    found = await platform.fleet.get_instance(instance_id)
    now_ms = int(time.time() * 1000)
    one, known, metrics_error = None, {}, ""
    try:
        every = await _read(platform, found, container_id)
        one = next((c for c in every.items if c.id == container_id), None)
        known = {} if one else await platform.containers.describe(instance_id, container_id)
        series = await read_latest(platform.metrics, instance_id, now_ms, container_id=container_id)
    except PlatformError as exc:
        series, metrics_error = [], exc.reason
    name = one.name if one else known.get("container_name")
    page = await platform.events.list_events(
        limit=EVENTS_SHOWN, instance_id=instance_id, container_id=container_id, container_name=name or None
    )
    name = name or _named_by_events(container_id, page.items)
    if not name and not metrics_error:
        raise NotFoundError(f"there is no container {container_id} at this instance")
    chosen = RANGES.get(range, DEFAULT_RANGE)
    rows, left_out = latest_rows(series, {**found.resource, **_identity(series)})
    return render(
        request,
        "container.html",
        instance=found,
        container_id=container_id,
        name=name or container_id[:12],
        row=make_row(one, ()) if one else None,
        facts=facts(container_id, one.image_name if one else known.get("container_image_name", ""), page.items),
        described=any(e.resource.get("container.id") == container_id for e in page.items),
        events=page.items,
        ranges=RANGES.values(),
        chosen=chosen,
        charts=chart_panels(container_charts(container_id), series, instance_id, chosen),
        latest=rows,
        latest_left_out=left_out,
        metrics_error=metrics_error,
    )


async def container_panel(platform: Platform, instance: InstanceView, request: Request) -> Panel:
    """The table that the request's URL asks for. A cursor that is none of ours means the first page."""
    query = TableQuery.of(request.query_params)
    try:
        every = await _read(platform, instance)
        try:
            shown, next_cursor, found = select_page(query, every)
        except PlatformError:
            query = replace(query, cursor="")
            shown, next_cursor, found = select_page(query, every)
        history = await platform.containers.cpu_history(instance.id, shown, every.newest)
    except PlatformError as exc:
        return Panel(None, exc.reason)
    return Panel(make_table(query, every, shown, next_cursor, found, history))


async def _read(platform: Platform, instance: InstanceView, container_id: str | None = None) -> Containers:
    return await platform.containers.read(
        instance.id,
        last_seen_at=instance.last_seen_at,
        interval=instance.effective_config.get("collect_interval"),
        container_id=container_id,
    )


def _named_by_events(container_id: str, events: Sequence[EventView]) -> str:
    for event in events:
        for attributes in (event.resource, event.attributes):
            if attributes.get("container.id") == container_id:
                return str(attributes.get("container.name") or container_id[:12])
    return ""


def _identity(series: Sequence[SeriesData]) -> dict[str, object]:
    return {key: value for one in series[:1] for key, value in one.labels.items() if key.startswith("container.")}
