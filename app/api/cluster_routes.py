"""Kubernetes clusters."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from app.api.dependencies import Cursor, IdentityDependency, Limit, PlatformDependency, require
from app.api.parameters import ClusterUid
from app.auth.service import Identity, Role
from app.events.views import Item, Page
from app.fleet.views import ClusterView
from app.platform import Platform, environment_aware
from app.telemetry.cluster_views import (
    ClusterFilter,
    ClusterSort,
    DegradedView,
    NamespaceView,
    NodeView,
    PodView,
    WorkloadKind,
    WorkloadView,
    listed,
)
from app.telemetry.clusters import Cluster, ClusterScope
from app.telemetry.containers import SortOrder, cut_page

router = APIRouter(prefix="/api/v1", tags=["clusters"], dependencies=[Depends(require(Role.VIEWER))])

Search = Annotated[str, Query(description="Looks in the name, and in namespace, node and workload where there are any.")]
Namespace = Annotated[str, Query(description="Only what is in this namespace.")]
Kind = Annotated[WorkloadKind | None, Query(description="Only workloads, or pods of workloads, of this kind.")]
ProblemsOnly = Annotated[bool, Query(description="Only what something is wrong with.")]
Sort = Annotated[ClusterSort, Query(description="problem: worst first. What an object does not have sorts last.")]
Order = Annotated[SortOrder | None, Query(description="By default the greatest first for numbers, else A to Z.")]


class ClusterPage(Page[Item]):
    """A list of a cluster's objects, and which parts of the cluster its agent cannot see."""

    degraded: list[DegradedView] = Field(description="What is missing in the list, or out of date, and why.")


@router.get("/clusters")
@environment_aware
async def list_clusters(
    platform: PlatformDependency, identity: IdentityDependency, cursor: Cursor = None, limit: Limit = 50
) -> Page[ClusterView]:
    """Kubernetes clusters that agents are connected to, problems first."""
    shown, next_cursor = cut_page(await platform.fleet.list_clusters(identity.sees), cursor, limit)
    return Page[ClusterView](items=shown, next_cursor=next_cursor)


@router.get("/clusters/{uid}")
@environment_aware
async def get_cluster(uid: ClusterUid, platform: PlatformDependency, identity: IdentityDependency) -> ClusterView:
    """One cluster, by the UID of its namespace kube-system."""
    return await platform.fleet.get_cluster(uid, identity.sees)


@router.get("/clusters/{uid}/nodes")
@environment_aware
async def list_nodes(  # noqa: PLR0913, PLR0917 - one argument for each filter
    uid: ClusterUid,
    platform: PlatformDependency,
    identity: IdentityDependency,
    cursor: Cursor = None,
    limit: Limit = 50,
    search: Search = "",
    problems_only: ProblemsOnly = False,
    sort: Sort = ClusterSort.PROBLEM,
    order: Order = None,
) -> ClusterPage[NodeView]:
    """Nodes with their conditions, allocatable resources and, where the node view is installed, usage, as of the newest sample."""
    found = await _read(platform, identity, uid)
    wanted = ClusterFilter(search.strip(), problems_only=problems_only, sort=sort, order=order)
    shown, next_cursor = cut_page(listed(found.nodes, wanted), cursor, limit)
    return ClusterPage[NodeView](items=shown, next_cursor=next_cursor, degraded=list(found.degraded))


@router.get("/clusters/{uid}/namespaces")
@environment_aware
async def list_namespaces(  # noqa: PLR0913, PLR0917 - one argument for each filter
    uid: ClusterUid,
    platform: PlatformDependency,
    identity: IdentityDependency,
    cursor: Cursor = None,
    limit: Limit = 50,
    search: Search = "",
    problems_only: ProblemsOnly = False,
    sort: Sort = ClusterSort.PROBLEM,
    order: Order = None,
) -> ClusterPage[NamespaceView]:
    """Namespaces with their quotas (hard and used) and what their pods come to, as of the newest sample."""
    found = await _read(platform, identity, uid, usage=True)
    wanted = ClusterFilter(search.strip(), problems_only=problems_only, sort=sort, order=order)
    shown, next_cursor = cut_page(listed(found.namespaces, wanted), cursor, limit)
    return ClusterPage[NamespaceView](items=shown, next_cursor=next_cursor, degraded=list(found.degraded))


@router.get("/clusters/{uid}/workloads")
@environment_aware
async def list_workloads(  # noqa: PLR0913, PLR0917 - one argument for each filter
    uid: ClusterUid,
    platform: PlatformDependency,
    identity: IdentityDependency,
    cursor: Cursor = None,
    limit: Limit = 50,
    search: Search = "",
    namespace: Namespace = "",
    kind: Kind = None,
    problems_only: ProblemsOnly = False,
    sort: Sort = ClusterSort.PROBLEM,
    order: Order = None,
) -> ClusterPage[WorkloadView]:
    """Deployments, stateful sets, daemon sets, jobs, cron jobs and pods without owner: what is wanted, what is there, restarts.

    The jobs of a cron job are part of it, and the replica sets of a deployment part of that.
    """
    found = await _read(platform, identity, uid)
    wanted = ClusterFilter(search.strip(), namespace, kind, problems_only, sort, order)
    shown, next_cursor = cut_page(listed(found.workloads, wanted), cursor, limit)
    return ClusterPage[WorkloadView](items=shown, next_cursor=next_cursor, degraded=list(found.degraded))


@router.get("/clusters/{uid}/pods")
@environment_aware
async def list_pods(  # noqa: PLR0913, PLR0917 - one argument for each filter
    uid: ClusterUid,
    platform: PlatformDependency,
    identity: IdentityDependency,
    cursor: Cursor = None,
    limit: Limit = 50,
    search: Search = "",
    namespace: Namespace = "",
    kind: Kind = None,
    workload: Annotated[str, Query(description="Only pods of the workload of this name; with kind and namespace it is exact.")] = "",
    problems_only: ProblemsOnly = False,
    sort: Sort = ClusterSort.PROBLEM,
    order: Order = None,
) -> ClusterPage[PodView]:
    """Pods with phase, reason, restarts and, where the node view is installed, usage; with their containers."""
    cluster = await platform.fleet.get_cluster(uid, identity.sees)
    owner = (kind, namespace, workload) if kind is not None and namespace and workload else None
    found = await platform.clusters.pods(ClusterScope.of(cluster), owner=owner, namespace=namespace)
    pods = [one for one in found.items if not workload or one.workload_name == workload]
    wanted = ClusterFilter(search.strip(), namespace, kind, problems_only, sort, order)
    shown, next_cursor = cut_page(listed(pods, wanted), cursor, limit)
    return ClusterPage[PodView](items=shown, next_cursor=next_cursor, degraded=list(found.degraded))


async def _read(platform: Platform, identity: Identity, uid: str, *, usage: bool = False) -> Cluster:
    return await platform.clusters.read(ClusterScope.of(await platform.fleet.get_cluster(uid, identity.sees)), usage=usage)
