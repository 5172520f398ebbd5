"""The pages about Kubernetes clusters: which there are, one with its nodes, namespaces and workloads, and a page for each workload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.errors import NotFoundError, PlatformError
from app.events.views import EventView
from app.fleet.views import ClusterView
from app.platform import Platform, environment_aware
from app.telemetry.cluster_views import DegradedView, WorkloadKind, WorkloadView
from app.telemetry.clusters import Cluster, ClusterScope
from app.web.clusters import (
    KINDS,
    MANY_NAMESPACES,
    ClusterQuery,
    ClusterTab,
    Table,
    about_tab,
    cluster_table,
    concerns,
    images,
    pod_table,
    problems,
    summary,
    tabs,
)
from app.web.rendering import PageRoute, PlatformDependency, Viewer, render
from app.web.tables import Choice

router = APIRouter(route_class=PageRoute)

EVENTS_SHOWN = 30
EVENTS_LOOKED_AT, EVENTS_SCANNED = 100, 500
"""Newest events of an agent that are looked through for those of its cluster, and of one workload."""
CHANGES = "irca.kubernetes."


@dataclass(frozen=True, slots=True)
class Panel:
    """A cluster's tables, or why there are none."""

    cluster: Cluster = field(default_factory=Cluster)
    query: ClusterQuery = field(default_factory=lambda: ClusterQuery.of({}))
    table: Table | None = None
    tabs: Sequence[Choice] = ()
    degraded: Sequence[DegradedView] = ()
    error: str = ""


@router.get("/clusters")
@environment_aware
async def clusters(request: Request, platform: PlatformDependency, viewer: Viewer) -> Response:
    """Every cluster, problems first."""
    return render(request, "clusters.html", clusters=await platform.fleet.list_clusters(viewer.sees))


@router.get("/clusters/{uid}")
@environment_aware
async def cluster(request: Request, platform: PlatformDependency, viewer: Viewer, uid: str) -> Response:
    """One cluster: what is wrong, its workloads, nodes and namespaces, and what changed."""
    found = await platform.fleet.get_cluster(uid, viewer.sees)
    panel = await _panel(platform, found, request)
    changes = [event for event in await _changes(platform, found, EVENTS_LOOKED_AT) if event.name.startswith(CHANGES)]
    return render(
        request,
        "cluster.html",
        cluster=found,
        panel=panel,
        summary=summary(panel.cluster),
        problems=problems(panel.cluster),
        events=changes[:EVENTS_SHOWN],
        kinds=KINDS,
        namespaces=[one.name for one in panel.cluster.namespaces[:MANY_NAMESPACES]],
    )


@router.get("/clusters/{uid}/objects")
@environment_aware
async def objects(request: Request, platform: PlatformDependency, viewer: Viewer, uid: str) -> Response:
    """The tables alone, for the page's refresh; whoever else asks is sent to the cluster's page."""
    if request.headers.get("hx-request") != "true":
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"/clusters/{uid}{query}", 303)
    found = await platform.fleet.get_cluster(uid, viewer.sees)
    return render(request, "_cluster.html", cluster=found, panel=await _panel(platform, found, request), kinds=KINDS)


@router.get("/clusters/{uid}/workloads/{kind}/{namespace}/{name}")
@environment_aware
async def workload(
    request: Request, platform: PlatformDependency, viewer: Viewer, uid: str, kind: WorkloadKind, namespace: str, name: str
) -> Response:
    """One workload: its pods and their containers, its changes. One that is gone keeps its page as long as its changes are known."""
    found = await platform.fleet.get_cluster(uid, viewer.sees)
    scope = ClusterScope.of(found)
    row: WorkloadView | None = None
    table, degraded, error = None, list[DegradedView](), ""
    try:
        row = await platform.clusters.workload(scope, (kind, namespace, name))
        pods = await platform.clusters.pods(scope, owner=(kind, namespace, name))
        table = pod_table(ClusterQuery.of(request.query_params), pods.items)
        degraded = about_tab(ClusterTab.WORKLOADS, pods.degraded)
    except PlatformError as exc:
        error = exc.reason
    events = [event for event in await _changes(platform, found, EVENTS_SCANNED) if concerns(event, kind, namespace, name)]
    if row is None and not events and not error and not (table and table.total):
        raise NotFoundError(f"there is no {KINDS[kind][0]} {name} in {namespace} of this cluster")
    return render(
        request,
        "cluster_workload.html",
        cluster=found,
        kind=kind,
        kind_title=KINDS[kind][0],
        namespace=namespace,
        name=name,
        workload=row,
        table=table,
        degraded=degraded,
        error=error,
        images=images(events),
        events=events[:EVENTS_SHOWN],
    )


async def _panel(platform: Platform, found: ClusterView, request: Request) -> Panel:
    query = ClusterQuery.of(request.query_params)
    try:
        every = await platform.clusters.read(ClusterScope.of(found), usage=query.tab is ClusterTab.NAMESPACES)
    except PlatformError as exc:
        return Panel(query=query, error=exc.reason)
    return Panel(every, query, cluster_table(query, every), tabs(query, every), about_tab(query.tab, every.degraded))


async def _changes(platform: Platform, found: ClusterView, most: int) -> list[EventView]:
    """The newest events of the cluster's agents, newest first."""
    events: list[EventView] = []
    for agent_id in found.agent_ids:
        events += (await platform.events.list_events(limit=most, agent_id=agent_id)).items
    return sorted(events, key=lambda event: event.time, reverse=True)
