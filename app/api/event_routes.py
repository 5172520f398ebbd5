"""The timeline."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query

from app.api.dependencies import Cursor, IdentityDependency, Limit, PlatformDependency, require
from app.api.parameters import EventId, OfAgent, OfEnvironment, OfEventName, OfInstance
from app.auth.service import Role
from app.errors import NotFoundError
from app.events.views import EventView, Page
from app.platform import environment_aware

router = APIRouter(prefix="/api/v1", tags=["events"], dependencies=[Depends(require(Role.VIEWER))])

_SEVERITIES = {"info": 9, "warn": 13, "error": 17, "fatal": 21}


@router.get("/events")
@environment_aware
async def list_events(  # noqa: PLR0913, PLR0917 - one argument for each filter
    platform: PlatformDependency,
    identity: IdentityDependency,
    cursor: Cursor = None,
    limit: Limit = 50,
    agent_id: OfAgent = None,
    instance_id: OfInstance = None,
    name: OfEventName = None,
    environment_name: OfEnvironment = None,
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
        environment_names=None if identity.everywhere else platform.fleet.environment_names(identity.sees),
        container_id=container_id,
        min_severity=_SEVERITIES[severity] if severity else None,
        start=start,
        end=end,
    )


@router.get("/events/{event_id}")
@environment_aware
async def get_event(event_id: EventId, platform: PlatformDependency, identity: IdentityDependency) -> EventView:
    """One event."""
    event = await platform.events.get_event(event_id)
    if not identity.everywhere and not (event.environment_name and identity.sees(event.environment_name)):
        raise NotFoundError(f"there is no event {event_id}")
    return event
