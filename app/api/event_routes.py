"""The timeline."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query

from app.api.dependencies import Cursor, Limit, PlatformDependency, require
from app.auth.service import Role
from app.events.views import EventView, Page

router = APIRouter(prefix="/api/v1", tags=["events"], dependencies=[Depends(require(Role.VIEWER))])

_SEVERITIES = {"info": 9, "warn": 13, "error": 17, "fatal": 21}


@router.get("/events")
async def list_events(  # noqa: PLR0913, PLR0917 - one argument for each filter
    platform: PlatformDependency,
    cursor: Cursor = None,
    limit: Limit = 50,
    agent_id: str | None = None,
    instance_id: str | None = None,
    name: str | None = None,
    environment_name: str | None = None,
    container_id: Annotated[
        str | None,
        Query(description="Only events whose resource or attributes name this container. A page may then be short and have a next one."),
    ] = None,
    severity: Annotated[Literal["info", "warn", "error", "fatal"] | None, Query(description="Least severity.")] = None,
    start: Annotated[datetime | None, Query(description="Inclusive, with its zone.")] = None,
    end: Annotated[datetime | None, Query(description="Exclusive, with its zone.")] = None,
) -> Page[EventView]:
    """Events, newest first."""
    return await platform.events.list_events(
        cursor,
        limit,
        agent_id=agent_id,
        instance_id=instance_id,
        name=name,
        environment_name=environment_name,
        container_id=container_id,
        min_severity=_SEVERITIES[severity] if severity else None,
        start=start,
        end=end,
    )


@router.get("/events/{event_id}")
async def get_event(event_id: str, platform: PlatformDependency) -> EventView:
    """One event."""
    return await platform.events.get_event(event_id)
