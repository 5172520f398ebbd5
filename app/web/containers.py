"""How containers read on a page: rows with their sparklines, the links that sort and filter, a container's facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.events.views import EventView
from app.telemetry.containers import (
    ContainerFilter,
    Containers,
    ContainerSort,
    ContainerState,
    ContainerView,
    History,
    SortOrder,
    default_order,
    listed,
    page_of,
)
from app.web.formats import duration, exact, format_value
from app.web.tables import Choice, Heading, following, one_of, problem_choices

PAGE_SIZE = 100
SPARK_WIDTH, SPARK_HEIGHT = 72, 18
"""Size of a sparkline in pixels."""

COLUMNS = (
    (ContainerSort.STATE, "State", ""),
    (ContainerSort.NAME, "Name", ""),
    (ContainerSort.HEALTH, "Health", "wide"),
    (ContainerSort.CPU, "CPU, in cores", "right"),
    (ContainerSort.MEMORY, "Memory", "wide right"),
    (ContainerSort.RESTARTS, "Restarts", "wide right"),
    (ContainerSort.UPTIME, "Uptime", "wide right"),
    (ContainerSort.IMAGE, "Image", "wide"),
)
"""The table's columns: what each sorts by, its title, its classes."""

FACTS: Mapping[str, str] = {
    "container.image.name": "Image",
    "container.image.tags": "Image tags",
    "container.image.repo_digests": "Image digest",
    "container.image.id": "Image id",
    "container.label.com.docker.compose.project": "Compose project",
    "container.label.com.docker.compose.service": "Compose service",
    "container.runtime.name": "Runtime",
}
"""Resource attributes of a container that have a name for people, in the order in which they are shown."""

_LOOKS = {"running": "healthy", "paused": "pending", "restarting": "degraded", "dead": "offline", "": "pending"}
_HEALTH_LOOKS = {"healthy": "healthy", "starting": "pending", "unhealthy": "degraded"}
_LEAST_PEAK = 0.1  # CPUs at the top of a sparkline at least: an idle container's noise is drawn as a flat line


@dataclass(frozen=True, slots=True)
class Row:
    """A container as the table shows it. ``look`` and ``health_look`` name a status' colour and shape."""

    container: ContainerView
    look: str
    health_look: str
    cpu: str
    spark: str
    memory: str
    memory_share: str
    uptime: str


@dataclass(frozen=True, slots=True)
class Table:
    """What the template draws. ``silent`` says that the newest sample is older than the instance's last word should leave it."""

    rows: Sequence[Row]
    total: int
    found: int
    headings: Sequence[Heading]
    choices: Sequence[Choice]
    filters: Mapping[str, str]
    first_query: Mapping[str, str] | None
    next_query: Mapping[str, str] | None
    containers: Containers


@dataclass(frozen=True, slots=True)
class TableQuery:
    """What the URL asks of the table; whatever it does not understand is no filter. ``kept`` are the page's other parameters."""

    wanted: ContainerFilter
    cursor: str
    kept: Mapping[str, str]

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> TableQuery:
        """The query that the URL's parameters are."""
        wanted = ContainerFilter(
            state=one_of(ContainerState, parameters.get("state")),
            search=parameters.get("search", "").strip(),
            problems_only=parameters.get("problems") == "1",
            sort=one_of(ContainerSort, parameters.get("sort")) or ContainerSort.PROBLEM,
            order=one_of(SortOrder, parameters.get("order")),
        )
        return cls(wanted, parameters.get("cursor", ""), {k: v for k, v in parameters.items() if k == "range" and v})

    def parameters(self, **changed: str) -> dict[str, str]:
        """The parameters of this query from its first page on, with some changed; those without value are left out."""
        wanted = self.wanted
        own = {
            "search": wanted.search,
            "state": wanted.state.value if wanted.state else "",
            "problems": "1" if wanted.problems_only else "",
            "sort": "" if wanted.sort is ContainerSort.PROBLEM else wanted.sort.value,
            "order": wanted.order.value if wanted.order else "",
        }
        return {k: v for k, v in {**own, **self.kept, **changed}.items() if v}


def select_page(query: TableQuery, containers: Containers) -> tuple[list[ContainerView], str | None, int]:
    """The containers of the page that is asked for, the cursor of the next one, and how many there are on all pages.

    Raises:
        InvalidRequestError: the cursor is not one of ours.
    """
    found = listed(containers.items, query.wanted)
    page = page_of(found, query.cursor or None, PAGE_SIZE)
    return page.items, page.next_cursor, len(found)


def make_table(
    query: TableQuery, containers: Containers, shown: Sequence[ContainerView], next_cursor: str | None, found: int, history: History
) -> Table:
    """The table of the containers ``shown``."""
    return Table(
        rows=[make_row(one, history.get(one.id, ())) for one in shown],
        total=len(containers.items),
        found=found,
        headings=[_heading(query, sort, title, classes) for sort, title, classes in COLUMNS],
        choices=_choices(query, containers.items),
        filters=query.parameters(),
        first_query=query.parameters() if query.cursor else None,
        next_query=query.parameters(cursor=next_cursor) if next_cursor else None,
        containers=containers,
    )


def make_row(one: ContainerView, history: Sequence[float | None]) -> Row:
    """One container; its sparkline is empty where there is nothing to draw."""
    used, limit = one.memory_working_set, one.memory_limit
    look = _LOOKS.get(one.state, "stopped")
    if one.problem:
        look = "offline" if one.state in ("exited", "dead") else "degraded"
    return Row(
        container=one,
        look=look,
        health_look=_HEALTH_LOOKS.get(one.health or "", ""),
        cpu="" if one.cpu_usage is None else format_value(one.cpu_usage, "number"),
        spark=spark_path(history),
        memory="" if used is None else format_value(used, "bytes"),
        memory_share=f"{format_value(used / limit, 'ratio')} of {format_value(limit, 'bytes')}" if used is not None and limit else "",
        uptime="" if one.uptime_seconds is None else duration(one.uptime_seconds),
    )


def spark_path(values: Sequence[float | None], width: int = SPARK_WIDTH, height: int = SPARK_HEIGHT) -> str:
    """The path of a sparkline through ``values``, in a box of ``width`` by ``height``; it breaks where a value is missing."""
    known = [value for value in values if value is not None]
    if len(known) < 2:  # noqa: PLR2004 - a line needs two points
        return ""
    top, step = max(_LEAST_PEAK, *known), width / (len(values) - 1)
    parts, pen = [], "M"
    for place, value in enumerate(values):
        if value is None:
            pen = "M"
            continue
        parts.append(f"{pen}{place * step:.1f} {height - 1 - max(0.0, value) / top * (height - 2):.1f}")
        pen = "L"
    return "".join(parts)


def facts(container_id: str, image: str, events: Sequence[EventView]) -> list[tuple[str, Any]]:
    """What describes a container, as its newest event that does so has it: image, tags, digests, labels; when it was created."""
    resource: Mapping[str, Any] = next((e.resource for e in events if e.resource.get("container.id") == container_id), {})
    known = {"container.image.name": image, **resource}
    named = [(title, known[key]) for key, title in FACTS.items() if known.get(key) not in (None, "", [])]
    labels = [
        (key.removeprefix("container.label."), value)
        for key, value in sorted(known.items())
        if key.startswith("container.label.") and key not in FACTS
    ]
    created = [
        ("Created", exact(event.time)) for event in events if event.name.endswith(".container.create") and _subject(event) == container_id
    ]
    return [*named, *labels, *created[:1], ("Container id", container_id)]


def _subject(event: EventView) -> object:
    return event.resource.get("container.id") or event.attributes.get("container.id")


def _heading(query: TableQuery, sort: ContainerSort, title: str, classes: str) -> Heading:
    usual = default_order(sort)
    order, word = following(query.wanted.sort is sort, query.wanted.order or usual, usual)
    return Heading(title, classes, query.parameters(sort=sort.value, order=order.value), word)


def _choices(query: TableQuery, containers: Sequence[ContainerView]) -> list[Choice]:
    wanted = query.wanted
    troubled = sum(bool(one.problem) for one in containers)
    choices = problem_choices(
        len(containers),
        troubled,
        (query.parameters(state="", problems=""), wanted.state is None and not wanted.problems_only),
        (query.parameters(state="", problems="1"), wanted.problems_only),
    )
    for state in ContainerState:
        count = sum(one.state == state.value for one in containers)
        if count or wanted.state is state:
            look = _LOOKS.get(state.value, "stopped")
            choices.append(Choice(state.value, count, look, query.parameters(state=state.value, problems=""), wanted.state is state))
    return choices
