"""The list of agents: search, filters, order, pages; every view of it has a URL of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.auth.service import Role
from app.fleet.listing import Sort
from app.fleet.views import Status
from app.platform import environment_aware
from app.web.rendering import PageRoute, PlatformDependency, Viewer, render
from connectors.agent_factory import AgentFactory

router = APIRouter(route_class=PageRoute, include_in_schema=False)

PAGE_SIZE = 50
ENVIRONMENTS_OFFERED = 200
STATUS_ORDER = (Status.OFFLINE, Status.DEGRADED, Status.PENDING, Status.HEALTHY, Status.STOPPED, Status.ARCHIVED)
"""Statuses as the pages list them: problems first."""
COLUMNS = (
    # order, title, class, whether the interesting end is the high one
    (Sort.STATUS, "Status", "", False),
    (Sort.ENVIRONMENT, "Environment", "", False),
    (Sort.TYPE, "Type", "wide", False),
    (None, "Instances", "wide", False),
    (Sort.VERSION, "Version", "wide", False),
    (Sort.LAST_SEEN, "Last seen", "right", True),
)
FILTERS = ("status", "agent_type", "environment_name", "version", "label", "search")


@router.get("/agents")
@environment_aware
async def agents(  # noqa: PLR0913, PLR0917 - one parameter for each filter; FastAPI passes them by name
    request: Request,
    platform: PlatformDependency,
    viewer: Viewer,
    status: str = "",
    agent_type: str = "",
    environment_name: str = "",
    version: str = "",
    label: str = "",
    search: str = "",
    sort: str = "",
    order: str = "",
    cursor: Annotated[str, Query(max_length=2000)] = "",
) -> Response:
    """Every agent, problems first unless ordered otherwise. A status or an order that there is not, is not heeded."""
    wanted = next((s for s in STATUS_ORDER if s.value == status), None)
    by = next((s for s in Sort if s.value == sort), Sort.STATUS)
    descending = order == "desc"
    given = {
        "status": wanted.value if wanted else "",
        "agent_type": agent_type.strip(),
        "environment_name": environment_name.strip(),
        "version": version.strip(),
        "label": label.strip(),
        "search": search.strip(),
        "sort": by.value if by is not Sort.STATUS else "",
        "order": "desc" if descending else "",
    }
    at_a_glance = await platform.fleet.overview(viewer.sees, 0)
    page = await platform.fleet.list_agents(
        cursor=cursor or None,
        limit=PAGE_SIZE,
        status=wanted,
        agent_type=given["agent_type"] or None,
        environment_name=given["environment_name"] or None,
        version=given["version"] or None,
        labels=labels_of(given["label"]),
        search=given["search"] or None,
        sort=by,
        descending=descending,
        sees=viewer.sees,
    )
    query = {name: value for name, value in given.items() if value}
    others = {name: value for name, value in query.items() if name != "status"}
    return render(
        request,
        "agents.html",
        agents=page.items,
        next_query={**query, "cursor": page.next_cursor} if page.next_cursor else None,
        counts=[(s, at_a_glance.statuses.get(s, 0), {**others, "status": s.value}) for s in STATUS_ORDER],
        total=at_a_glance.total,
        all_query=others,
        filters=given,
        query=query,
        filtered=any(given[name] for name in FILTERS),
        cursor=cursor,
        columns=_columns(by, query, descending=descending),
        agent_types=AgentFactory.supported_types(),
        versions=[name for name, _ in at_a_glance.versions],
        environments=sorted(platform.fleet.environment_names(viewer.sees))[:ENVIRONMENTS_OFFERED],
        public_url=platform.settings.resolved_public_url(),
        may_connect=viewer.role >= Role.OPERATOR,
    )


def labels_of(text: str) -> tuple[str, ...]:
    """The labels that a filter's text names: ``key=value`` or ``key``, separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _columns(by: Sort, query: Mapping[str, str], *, descending: bool) -> list[dict[str, object]]:
    """The table's head: each column that can be ordered by with the query that does, or that turns the order round."""
    columns: list[dict[str, object]] = []
    others = {name: value for name, value in query.items() if name not in ("sort", "order")}
    for sort, title, css, high_first in COLUMNS:
        turned = not descending if sort is by else high_first
        link = {**others, **({"sort": sort.value} if sort and sort is not Sort.STATUS else {}), **({"order": "desc"} if turned else {})}
        sorted_now = ("descending" if descending else "ascending") if sort is by else ""
        columns.append({"title": title, "css": css, "query": link if sort else None, "sorted": sorted_now})
    return columns
