"""The list of agents: search, filters, order, pages; every view of it has a URL of its own."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from app.auth.service import Identity, Role
from app.errors import PlatformError, Problem
from app.fleet.listing import AgentFilter, Sort
from app.fleet.views import Status
from app.groups.bulk import Act
from app.platform import Platform, environment_aware
from app.web.forms import actor_of, submitted
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
ACTS = {
    Act.ARCHIVE: "Archive",
    Act.REVIVE: "Take out of the archive",
    Act.ADD_LABEL: "Add a label",
    Act.REMOVE_LABEL: "Remove a label",
    Act.REVOKE_CREDENTIALS: "Revoke credentials",
    Act.MAINTENANCE: "Start maintenance",
}
"""Acts on a selection, as the page offers them."""
FILTERS = ("status", "agent_type", "environment_name", "version", "label", "search")


@dataclass(frozen=True, slots=True)
class ViewDraft:
    """A view that could not be saved: the name that was given, and why not."""

    name: str = ""
    error: str = ""


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
    told = {
        "status": status,
        "agent_type": agent_type,
        "environment_name": environment_name,
        "version": version,
        "label": label,
        "search": search,
        "sort": sort,
        "order": order,
    }
    return await agents_page(request, platform, viewer, understood(told), cursor=cursor)


@router.post("/agents/views")
async def save_view(request: Request, platform: PlatformDependency, viewer: Viewer) -> Response:
    """Save the filters under a name, for everybody."""
    form = await submitted(request, platform, viewer, Role.OPERATOR)
    given = understood({name: form.text(name) for name in (*FILTERS, "sort", "order")})
    query = {name: value for name, value in given.items() if value}
    try:
        await platform.saved_views.save("agents", form.text("name"), query, actor_of(request, viewer))
    except PlatformError as exc:
        problem = Problem.of(exc)
        why = "; ".join(f"{one.field.partition('.')[0]} {one.message}" for one in problem.errors) or problem.detail
        draft = ViewDraft(form.text("name")[:100], why)
        return await agents_page(request, platform, viewer, given, draft=draft, http_status=problem.treatment.status)
    return RedirectResponse(f"/agents?{urllib.parse.urlencode(query)}", 303)


@router.post("/agents/views/{view_id}/delete")
async def delete_view(request: Request, platform: PlatformDependency, viewer: Viewer, view_id: str) -> Response:
    """Delete a saved view, for everybody."""
    await submitted(request, platform, viewer, Role.OPERATOR)
    await platform.saved_views.delete(view_id, actor_of(request, viewer), viewer)
    return RedirectResponse("/agents", 303)


async def agents_page(
    request: Request,
    platform: Platform,
    viewer: Identity,
    given: Mapping[str, str],
    *,
    cursor: str = "",
    draft: ViewDraft = ViewDraft(),
    http_status: int = 200,
) -> Response:
    """The list with these filters, as :func:`understood` gives them."""
    wanted = filter_of(given, viewer)
    by = next((s for s in Sort if s.value == given["sort"]), Sort.STATUS)
    descending = given["order"] == "desc"
    at_a_glance = await platform.fleet.overview(viewer.sees, 0)
    page = await platform.fleet.list_agents(
        cursor=cursor or None,
        limit=PAGE_SIZE,
        status=wanted.status,
        agent_type=wanted.agent_type,
        environment_name=wanted.environment_name,
        version=wanted.version,
        labels=wanted.labels,
        search=wanted.search,
        sort=by,
        descending=descending,
        sees=viewer.sees,
    )
    query = {name: value for name, value in given.items() if value}
    others = {name: value for name, value in query.items() if name != "status"}
    filtered = [name for name in FILTERS if given[name]]
    matching = at_a_glance.total
    if filtered == ["status"] and wanted.status is not None:
        matching = at_a_glance.statuses.get(wanted.status, 0)
    elif filtered:
        matching = platform.fleet.count_agents(wanted)
    may_act = viewer.role >= Role.OPERATOR
    return render(
        request,
        "agents.html",
        http_status,
        agents=page.items,
        next_query={**query, "cursor": page.next_cursor} if page.next_cursor else None,
        counts=[(s, at_a_glance.statuses.get(s, 0), {**others, "status": s.value}) for s in STATUS_ORDER],
        total=at_a_glance.total,
        matching=matching,
        all_query=others,
        filters=given,
        query=query,
        filtered=bool(filtered),
        cursor=cursor,
        columns=_columns(by, query, descending=descending),
        agent_types=AgentFactory.supported_types(),
        versions=[name for name, _ in at_a_glance.versions],
        environments=sorted(platform.fleet.environment_names(viewer.sees))[:ENVIRONMENTS_OFFERED],
        public_url=platform.settings.resolved_public_url(),
        may_connect=may_act,
        may_act=may_act,
        acts=ACTS,
        views=platform.saved_views.of_page("agents", viewer),
        may_save=may_act and viewer.everywhere,
        draft=draft,
    )


def understood(told: Mapping[str, str]) -> dict[str, str]:
    """The page's parameters as it heeds them: every one of them, empty where it was not given or says nothing."""
    given = {name: told.get(name, "").strip() for name in (*FILTERS, "sort", "order")}
    given["status"] = given["status"] if given["status"] in {s.value for s in STATUS_ORDER} else ""
    given["sort"] = given["sort"] if given["sort"] in {s.value for s in Sort} - {Sort.STATUS.value} else ""
    given["order"] = "desc" if given["order"] == "desc" else ""
    return given


def filter_of(given: Mapping[str, str], viewer: Identity) -> AgentFilter:
    """The filter that the page's parameters describe, of what ``viewer`` sees."""
    return AgentFilter(
        next((s for s in STATUS_ORDER if s.value == given["status"]), None),
        given["agent_type"] or None,
        given["environment_name"] or None,
        given["version"] or None,
        labels_of(given["label"]),
        given["search"] or None,
        viewer.sees,
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
