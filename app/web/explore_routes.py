"""The metrics explorer: any series that arrives, over any time, beside what happened meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response

from app.auth.service import Identity
from app.errors import NotFoundError, PlatformError, QueryTooLargeError
from app.events.views import EventView
from app.fleet.views import AgentView
from app.platform import Platform, environment_aware
from app.telemetry.promql.engine import QueryEngine, Result
from app.telemetry.promql.model import Allowance
from app.telemetry.store import NAME, Matcher
from app.web.explore import (
    AGGREGATES,
    MOST_METRICS,
    NO_EVENTS,
    ONE_LINE,
    PREVIOUS,
    SEVERITIES,
    SPANS,
    Asked,
    Metric,
    Plan,
    Scope,
    Span,
    aggregate_of,
    expression,
    grouping,
    plan,
)
from app.web.explore_chart import (
    HEIGHT,
    WIDTH,
    Drawing,
    Line,
    Track,
    drawing,
    marks,
    text_of,
    ticks_of_time,
    top,
    tracks,
    unit_of,
    with_figures,
)
from app.web.explore_metrics import describe, grouped
from app.web.rendering import PageRoute, PlatformDependency, Viewer, render

router = APIRouter(route_class=PageRoute, include_in_schema=False)

MAX_SAMPLES = 10_000_000
"""Samples that one panel may read."""
EVENTS_SHOWN = 100
PLACES_OFFERED = 60
"""Agents among which the form lets choose; with a search it finds the others."""
_LOOK_BACK = (86_400, 604_800, 2_592_000)
"""How far back, in seconds, the last sample before an empty range is looked for."""


@dataclass(frozen=True, slots=True)
class Place:
    """A scope as it is offered and shown: its name, and the names of the instances in it by their ids."""

    scope: Scope
    name: str
    names: Mapping[str, str]
    agent_type: str = ""


@dataclass(slots=True)
class Panel:
    """One metric as drawn. ``error`` says why it is not; ``last`` is when its last sample before an empty range was."""

    metric: Metric
    by: tuple[str, ...]
    aggregate: str
    promql: str
    api_url: str
    without_url: str
    error: str = ""
    lines: Sequence[Line] = ()
    others: int = 0
    drawing: Drawing | None = None
    data: str = ""
    last: datetime | None = None
    last_url: str = ""


@dataclass(slots=True)
class _Found:
    place: Place | None = None
    other: Place | None = None
    known: Mapping[str, Metric] = field(default_factory=dict)
    names: Sequence[str] = ()
    attributes: Sequence[str] = ()
    panels: list[Panel] = field(default_factory=list)
    events: Sequence[EventView] = ()
    more_events: bool = False
    error: str = ""


@router.get("/explore")
@environment_aware
async def explore(request: Request, platform: PlatformDependency, viewer: Viewer) -> Response:
    """Metrics over a range as charts and tables, with the events of that range; the whole state is the URL."""
    now = time.time()
    asked = Asked.read(request.query_params.multi_items())
    planned = plan(asked, now)
    agents = (await platform.fleet.list_agents(limit=PLACES_OFFERED, search=asked.find or None, sees=viewer.sees)).items
    found = _Found()
    found.place = await _place(platform, viewer, asked.scope, planned.errors, "scope")
    if asked.compare and asked.compare != PREVIOUS:
        found.other = await _place(platform, viewer, asked.compare, planned.errors, "compare")
        if found.place and found.other and {found.place.scope.kind, found.other.scope.kind} != {"instance"}:
            planned.errors["compare"] = "only an instance can be compared with another instance"
            found.other = None
    if found.place is not None:
        await _read(request, platform, planned, found, everywhere=viewer.everywhere)
        if asked.severity != NO_EVENTS:
            await _read_events(platform, viewer, planned, found)
    span = planned.span
    standing = marks(found.events, span)
    return render(
        request,
        "explore.html",
        asked=asked,
        planned=planned,
        errors=planned.errors,
        found=found,
        groups=grouped(found.names, found.known),
        choices=_choices(agents),
        may_find_more=len(agents) == PLACES_OFFERED or bool(asked.find),
        ranges=[(one.title, replace(asked, range=one.name, start="", end="").url, one.name) for one in SPANS.values()],
        aggregates=AGGREGATES,
        most_metrics=MOST_METRICS,
        start=datetime.fromtimestamp(span.start, UTC),
        end=datetime.fromtimestamp(span.end, UTC),
        earlier=asked.over(span.start - span.seconds, span.start).url,
        later=asked.over(span.end, span.end + span.seconds).url if span.end + span.step < now else "",
        wider=asked.over(span.start - span.seconds // 2, min(int(now), span.end + span.seconds // 2)).url,
        times=[datetime.fromtimestamp(one, UTC) for one in ticks_of_time(span)],
        marks=standing,
        marks_json=json.dumps([asdict(one) for one in standing]),
        link=lambda **changes: replace(asked, **changes).url,
        hidden=lambda *names: [pair for pair in asked.pairs() if pair[0] in names],
        width=WIDTH,
        height=HEIGHT,
    )


async def _place(platform: Platform, viewer: Identity, text: str, errors: dict[str, str], name: str) -> Place | None:
    """The scope that ``text`` names, if it is there for this viewer; else an error of the field."""
    if not text:
        return None
    scope = Scope.read(text)
    try:
        if scope is None:
            errors[name] = "must be an instance, an agent or an environment of the list"
        elif scope.kind == "instance":
            instance = await platform.fleet.get_instance(scope.id)
            if viewer.sees(instance.environment_name):
                return Place(scope, instance.name, {instance.id: instance.name}, instance.agent_type)
        elif scope.kind == "agent":
            agent = await platform.fleet.get_agent(scope.id, with_replaced=True)
            if viewer.sees(agent.environment_name):
                names = {one.id: one.name for one in agent.instances}
                return Place(scope, f"{agent.environment_name}, all instances", names, agent.agent_type)
        elif scope.id in platform.fleet.environment_names(viewer.sees):
            page = await platform.fleet.list_agents(limit=500, environment_name=scope.id, sees=viewer.sees)
            return Place(scope, f"environment {scope.id}", {one.id: one.name for agent in page.items for one in agent.instances})
    except NotFoundError:
        pass
    errors.setdefault(name, f"there is no {scope.kind} {scope.id}" if scope else f"there is no place {text}")
    return None


async def _read(request: Request, platform: Platform, planned: Plan, found: _Found, *, everywhere: bool) -> None:
    """What can be chosen, and the panels: two reads of the store, and for each panel two more, or three where it is compared."""
    assert found.place is not None, "there is nothing to read without a place"  # noqa: S101 - told to the type checker
    scope, span = found.place.scope, planned.span
    window = (span.start * 1000, span.end * 1000)
    asked = planned.asked
    try:
        found.known = describe(await platform.metrics.metadata())
        found.names = await platform.metrics.label_values(NAME, [scope.matcher], *window)
        chosen = [name for name in asked.metrics if name in found.known][:MOST_METRICS]
        held = {name: await _attributes(platform, scope, name, window) for name in chosen}
    except PlatformError as exc:
        found.error = exc.reason
        return
    unknown = [name for name in asked.metrics if name not in found.known]
    if unknown:
        planned.errors["metric"] = f"there is no metric {', '.join(unknown)}"
    found.attributes = sorted({attribute for attributes in held.values() for attribute in attributes})
    _set_aside_foreign(planned, found.attributes)
    engine = _engine(request, platform)
    allowance = Allowance(platform.settings.query_timeout, min(MAX_SAMPLES, platform.settings.query_max_samples))
    for name in chosen:
        panel = _panel(found.known[name], scope, planned, held[name], everywhere=everywhere)
        found.panels.append(panel)
        await _fill(panel, platform, engine, allowance, planned, found)


def _set_aside_foreign(planned: Plan, attributes: Sequence[str]) -> None:
    """Make attributes that no series here has errors of their fields, and leave their conditions out."""
    if not attributes:
        return  # in an empty range nothing has any
    asked = {"where": [name for name, _, _ in planned.where], "by": [name for name in planned.asked.by if name != ONE_LINE]}
    for field_name, wanted in asked.items():
        if foreign := [name for name in wanted if name not in attributes]:
            planned.errors.setdefault(field_name, f"no series here has the attribute {', '.join(foreign)}")
    planned.where = tuple(condition for condition in planned.where if condition[0] in attributes)


async def _attributes(platform: Platform, scope: Scope, name: str, window: tuple[int, int]) -> list[str]:
    """The attributes that the metric's series in the range have; those that the platform sets for the whole place are none of them."""
    held = await platform.metrics.label_names([scope.matcher, Matcher(NAME, "=", name)], *window)
    platforms = {NAME, "agent_type", "environment", *(("instance", "agent") if scope.kind == "instance" else ())}
    return [one for one in held if one not in platforms]


def _panel(metric: Metric, scope: Scope, planned: Plan, attributes: Sequence[str], *, everywhere: bool) -> Panel:
    by = grouping(metric, planned.asked, scope, attributes)
    promql, span = expression(metric, scope, planned, by), planned.span
    query = urllib.parse.urlencode({"query": promql, "start": span.start, "end": span.end, "step": span.step})
    without = replace(planned.asked, metrics=tuple(one for one in planned.asked.metrics if one != metric.name))
    api_url = f"/prometheus/api/v1/query_range?{query}" if everywhere else ""  # that API is for those who see everything
    return Panel(metric, by, aggregate_of(metric, planned.asked), promql, api_url, without.url)


async def _fill(panel: Panel, platform: Platform, engine: QueryEngine, allowance: Allowance, planned: Plan, found: _Found) -> None:
    """Read the panel's lines; why there are none becomes its error, and that of the field which can help."""
    place, metric, span = found.place, panel.metric, planned.span
    assert place is not None, "a panel has a place"  # noqa: S101 - told to the type checker

    def ask(promql: str, shift: int, names: Mapping[str, str]) -> asyncio.Future[list[Track]]:
        then: Callable[[Result], list[Track]] = lambda result: tracks(result, panel.by, metric, names)  # noqa: E731 - typed for the engine
        start, end = (span.start - shift) * 1000, (span.end - shift) * 1000
        return asyncio.ensure_future(engine.range(promql, start, end, span.step * 1000, allowance, then))

    try:
        shown, panel.others = top(await ask(panel.promql, 0, place.names))
        compared = None
        if planned.asked.compare == PREVIOUS:
            compared = await ask(panel.promql, span.seconds, place.names)
        elif found.other is not None:
            compared = await ask(expression(metric, found.other.scope, planned, panel.by), 0, found.other.names)
    except QueryTooLargeError:
        panel.error = f"That would read more than {allowance.max_samples:,} samples."
        planned.errors.setdefault("range", "too many samples: choose a shorter range, or fewer series with a filter")
        return
    except PlatformError as exc:
        panel.error = exc.reason
        return
    if not shown:
        await _find_last(panel, platform, planned, place.scope)
        return
    panel.lines = with_figures(shown, compared, text_of(metric))
    panel.drawing = drawing(panel.lines, metric)
    panel.data = _data(panel, span)


async def _find_last(panel: Panel, platform: Platform, planned: Plan, scope: Scope) -> None:
    """When the metric last had a sample before the empty range's end, looking further and further back."""
    matchers = [scope.matcher, Matcher(NAME, "=", panel.metric.name), *(Matcher(*condition) for condition in planned.where)]
    end = planned.span.end
    for back in _LOOK_BACK:
        try:
            series = await platform.metrics.select(matchers, (end - back) * 1000, end * 1000, max_samples=MAX_SAMPLES)
        except PlatformError:
            return  # it is a hint; that there is nothing in the range is told anyway
        newest = max((int(one.times[-1]) for one in series if len(one.times)), default=None)
        if newest is not None:
            at = newest // 1000
            panel.last = datetime.fromtimestamp(at, UTC)
            panel.last_url = planned.asked.over(at - planned.span.seconds * 9 // 10, at + max(60, planned.span.seconds // 10)).url
            return


async def _read_events(platform: Platform, viewer: Identity, planned: Plan, found: _Found) -> None:
    scope, span = found.place.scope if found.place else None, planned.span
    if scope is None:
        return
    page = await platform.events.list_events(
        limit=EVENTS_SHOWN,
        instance_id=scope.id if scope.kind == "instance" else None,
        agent_id=scope.id if scope.kind == "agent" else None,
        environment_name=scope.id if scope.kind == "environment" else None,
        environment_names=None if viewer.everywhere else platform.fleet.environment_names(viewer.sees),
        min_severity=SEVERITIES.get(planned.asked.severity),
        start=datetime.fromtimestamp(span.start, UTC),
        end=datetime.fromtimestamp(span.end + span.step, UTC),
    )
    found.events, found.more_events = page.items, page.next_cursor is not None


def _engine(request: Request, platform: Platform) -> QueryEngine:
    """The engine of the Prometheus API, made by whoever is asked first."""
    engine: QueryEngine | None = getattr(request.app.state, "query_engine", None)
    if engine is None or engine.store is not platform.metrics:
        engine = request.app.state.query_engine = QueryEngine(platform.metrics)
    return engine


def _choices(agents: Sequence[AgentView]) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the form offers: for each agent its environment, itself, and its instances."""
    offered = []
    for agent in agents:
        options = [(str(Scope("instance", one.id)), one.name) for one in agent.instances[:50]]
        if len(options) != 1:
            options.insert(0, (str(Scope("agent", agent.id)), "all its instances"))
        options.append((str(Scope("environment", agent.environment_name)), f"environment {agent.environment_name}"))
        offered.append((f"{agent.environment_name} · {agent.agent_type}", options))
    return offered


def _data(panel: Panel, span: Span) -> str:
    """What the browser draws, as JSON."""
    unit, suffix = unit_of(panel.metric)
    lines = [
        {"label": line.label, "values": [_short(v) for v in line.values], "before": line.before and [_short(v) for v in line.before]}
        for line in panel.lines
    ]
    return json.dumps({"start": span.start, "end": span.end, "step": span.step, "unit": unit, "suffix": suffix, "lines": lines})


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
