"""The pages of events: all that happened to an instance, and one event with everything that it carries."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, Request, Response

from app.errors import InvalidRequestError, NotFoundError
from app.events.catalogue import CATALOGUE
from app.platform import environment_aware
from app.web.explore import SPANS, Asked, Scope, around
from app.web.rendering import PageRoute, PlatformDependency, Viewer, render

router = APIRouter(route_class=PageRoute, include_in_schema=False)

EVENTS_ON_A_PAGE = 50
SEVERITIES = {"warn": 13, "error": 17}
RANGES = {name: SPANS[name] for name in ("1h", "24h", "7d", "30d")}


@dataclass(frozen=True, slots=True)
class _Filters:
    """What the list is filtered by, as the URL has it."""

    name: str = ""
    severity: str = ""
    range: str = ""


@router.get("/instances/{instance_id}/events")
async def instance_events(
    request: Request,
    platform: PlatformDependency,
    _viewer: Viewer,
    instance_id: str,
    name: str = "",
    severity: str = "",
    range: str = "",  # noqa: A002 - the parameter's name in the URL
    cursor: str = "",
) -> Response:
    """What happened to an instance in all its life, newest first, by type, severity and time."""
    found = await platform.fleet.get_instance(instance_id)
    filters = _Filters(name.strip(), severity if severity in SEVERITIES else "", range if range in RANGES else "")
    since = datetime.now(UTC) - timedelta(seconds=RANGES[filters.range].seconds) if filters.range else None
    problem = ""
    try:
        page = await platform.events.list_events(
            cursor or None,
            EVENTS_ON_A_PAGE,
            instance_id=instance_id,
            name=filters.name or None,
            min_severity=SEVERITIES.get(filters.severity),
            start=since,
        )
    except InvalidRequestError as exc:
        problem = exc.reason
        page = await platform.events.list_events(limit=EVENTS_ON_A_PAGE, instance_id=instance_id)
    given = {key: value for key, value in asdict(filters).items() if value}
    return render(
        request,
        "instance_events.html",
        instance=found,
        events=page.items,
        filters=filters,
        filtered=bool(given),
        next_query={**given, "cursor": page.next_cursor} if page.next_cursor else None,
        older=bool(cursor),
        names=sorted(CATALOGUE),
        ranges=RANGES.values(),
        problem=problem,
    )


@router.get("/events/{event_id:path}")
@environment_aware
async def event(request: Request, platform: PlatformDependency, viewer: Viewer, event_id: str) -> Response:
    """One event with its attributes, its resource, and the way to the metrics around it."""
    found = await platform.events.get_event(event_id)
    if not viewer.sees(found.environment_name):
        raise NotFoundError(f"there is no event {event_id}")
    scope = Scope("instance", found.instance_id) if found.instance_id else Scope("agent", found.agent_id) if found.agent_id else None
    start, end = around(found.time)
    described = CATALOGUE.get(found.name)
    return render(
        request,
        "event.html",
        event=found,
        meaning=described.meaning if described else "",
        meanings=described.attributes if described else {},
        around=Asked(scope=str(scope), start=start, end=end).url if scope else "",
    )
