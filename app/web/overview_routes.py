"""The overview: what is unwell and since when, what happened, who has gone quiet."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.auth.service import Role
from app.events import catalogue
from app.events.event_type import WARN
from app.events.views import EventView
from app.platform import environment_aware
from app.web.agents_routes import STATUS_ORDER
from app.web.rendering import PageRoute, PlatformDependency, Viewer, render
from connectors.agent_factory import AgentFactory

router = APIRouter(route_class=PageRoute, include_in_schema=False)

SHOWN = 10
"""Entries of each list."""
GAPS_WITHIN = timedelta(days=1)
RANGES = {"1d": ("24 h", timedelta(days=1)), "7d": ("7 d", timedelta(days=7)), "30d": ("30 d", timedelta(days=30))}
"""How far back the list of events looks, by the value of ``range`` in the URL: its title and its length."""
DEFAULT_RANGE = "7d"
FORMER_FILTERS = frozenset({"status", "agent_type", "environment_name", "search", "cursor"})
"""Filters of the list of agents from when it was at ``/``: links with them lead to where it is now."""


@router.get("/")
@environment_aware
async def overview(
    request: Request,
    platform: PlatformDependency,
    viewer: Viewer,
    range: str = "",  # noqa: A002 - the parameter's name in the URL
    events: str = "",
) -> Response:
    """The fleet at a glance, problems first. ``range`` says how far back events go, ``events=all`` shows those of every severity."""
    if FORMER_FILTERS.intersection(request.query_params):
        return RedirectResponse(f"/agents?{request.url.query}", 307)
    fleet = await platform.fleet.overview(viewer.sees, SHOWN)
    visible = None if viewer.everywhere else platform.fleet.environment_names(viewer.sees)
    now = datetime.now(UTC)
    chosen = range if range in RANGES else DEFAULT_RANGE
    everything = events == "all"
    least = None if everything else WARN
    gaps = await platform.events.list_events(limit=SHOWN, name=catalogue.GAP.name, environment_names=visible, start=now - GAPS_WITHIN)
    # Gaps have a list of their own, so as many more are asked for as may be among the others.
    recent = await platform.events.list_events(
        limit=2 * SHOWN, min_severity=least, environment_names=visible, start=now - RANGES[chosen][1]
    )
    return render(
        request,
        "overview.html",
        fleet=fleet,
        statuses=[(status, fleet.statuses.get(status, 0)) for status in STATUS_ORDER],
        unwell=sum(fleet.statuses.get(status, 0) for status in STATUS_ORDER[:2]),
        gaps=gaps.items,
        more_gaps=gaps.next_cursor is not None,
        recent=_without_gaps(recent.items)[:SHOWN],
        ranges=[(name, title, _query(name, everything=everything)) for name, (title, _) in RANGES.items()],
        chosen=chosen,
        kinds=[(title, every, _query(chosen, everything=every)) for title, every in (("Warnings and errors", False), ("Everything", True))],
        everything=everything,
        may_connect=viewer.role >= Role.OPERATOR,
        agent_types=AgentFactory.supported_types(),
        public_url=platform.settings.resolved_public_url(),
    )


def _query(chosen: str, *, everything: bool) -> dict[str, str]:
    """The parameters of the page with this choice of events; what is so by default is left out."""
    return ({"range": chosen} if chosen != DEFAULT_RANGE else {}) | ({"events": "all"} if everything else {})


def _without_gaps(events: list[EventView]) -> list[EventView]:
    return [event for event in events if event.name != catalogue.GAP.name]
