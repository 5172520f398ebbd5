"""Containers of an instance."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from app.api.dependencies import Cursor, Limit, PlatformDependency, require
from app.api.parameters import InContainerState, InstanceId
from app.auth.service import Role
from app.events.views import Page
from app.telemetry.containers import ContainerFilter, ContainerSort, ContainerView, SortOrder, listed, page_of

router = APIRouter(prefix="/api/v1", tags=["containers"], dependencies=[Depends(require(Role.VIEWER))])


@router.get("/instances/{instance_id}/containers")
async def list_containers(  # noqa: PLR0913, PLR0917 - one argument for each filter
    instance_id: InstanceId,
    platform: PlatformDependency,
    cursor: Cursor = None,
    limit: Limit = 50,
    state: InContainerState = None,
    search: Annotated[str, Query(description="Looks in name, image name and the beginning of the id.")] = "",
    problems_only: Annotated[bool, Query(description="Only containers with something wrong.")] = False,
    sort: Annotated[ContainerSort, Query(description="problem: worst first.")] = ContainerSort.PROBLEM,
    order: Annotated[SortOrder | None, Query(description="By default the greatest first for numbers, else A to Z.")] = None,
) -> Page[ContainerView]:
    """The containers that the instance reports, running and stopped, as of its newest sample; problems first.

    A container that was removed leaves the list three collection intervals after its last sample. One that an instance reported
    before it fell silent stays: see ``sampled_at``.
    """
    instance = await platform.fleet.get_instance(instance_id)
    found = await platform.containers.read(
        instance.id, last_seen_at=instance.last_seen_at, interval=instance.effective_config.get("collect_interval")
    )
    wanted = ContainerFilter(state, search.strip(), problems_only, sort, order)
    return page_of(listed(found.items, wanted), cursor, limit)
