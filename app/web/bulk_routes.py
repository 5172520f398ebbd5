"""Acts on a selection of agents: what will happen is shown first, and done when somebody has confirmed it."""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.auth.service import Identity, Role
from app.errors import FieldError, InvalidRequestError, PlatformError, Problem
from app.groups.bulk import Act, BulkResult, Outcome, Plan, Selection, Work
from app.platform import environment_aware
from app.web.agents_routes import ACTS, FILTERS, filter_of, understood
from app.web.forms import Form, actor_of, submitted
from app.web.maintenance_routes import DURATIONS
from app.web.rendering import PageRoute, PlatformDependency, Viewer, render

router = APIRouter(route_class=PageRoute, include_in_schema=False)

TARGETS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the form says: the act, whom it is meant for, and the list that it was sent from."""

    work: Work
    selection: Selection
    agent_ids: list[str]
    every: bool
    query: dict[str, str]

    @property
    def back(self) -> str:
        """The list that it was sent from."""
        return "/agents" + (f"?{urllib.parse.urlencode(self.query)}" if self.query else "")


@router.post("/agents/bulk")
@environment_aware
async def act(request: Request, platform: PlatformDependency, viewer: Viewer) -> Response:
    """Show what an act would do; with ``confirmed`` do it, if it would still do what was shown."""
    form = await submitted(request, platform, viewer, Role.OPERATOR)
    asked = _asked(form, viewer)
    planned = platform.bulk.plan(asked.work, asked.selection, viewer)
    confirmed = form.text("confirmed")
    if not confirmed:
        return _confirmation(request, asked, planned, form)
    if confirmed != planned.mark:
        return _confirmation(request, asked, planned, form, note="What is selected has changed meanwhile. Look again before you confirm.")
    try:
        result = await platform.bulk.perform(asked.work, asked.selection, actor_of(request, viewer), viewer)
    except PlatformError as exc:
        return _confirmation(request, asked, planned, form, error=exc)
    if result.maintenance_window_id and not result.refused:
        return RedirectResponse("/maintenance", 303)
    return _page(request, asked, result=result)


def _asked(form: Form, viewer: Identity) -> _Asked:
    chosen = next((one for one in Act if one.value == form.text("act")), None)
    if chosen is None:
        raise InvalidRequestError("there is no such act", errors=[FieldError("act", "must be one of those offered")])
    given = understood({name: form.text(name) for name in (*FILTERS, "sort", "order")})
    every, agent_ids = form.flag("all"), form.every("agent")
    if not every and not agent_ids:
        raise InvalidRequestError("nothing is selected: tick agents in the list, and choose the act again")
    selection = Selection(matching=filter_of(given, viewer)) if every else Selection(agent_ids=agent_ids)
    seconds = form.text("duration")
    duration = float(seconds) if re.fullmatch(r"\d{1,9}", seconds) else 0.0
    work = Work(chosen, form.text("bulk_label"), form.text("reason"), duration)
    return _Asked(work, selection, agent_ids, every, {name: value for name, value in given.items() if value})


def _confirmation(
    request: Request, asked: _Asked, planned: Plan, form: Form, *, note: str = "", error: PlatformError | None = None
) -> Response:
    problem = Problem.of(error) if error else None
    status = problem.treatment.status if problem else 409 if note else 200
    draft = {"reason": form.text("reason"), "duration": form.text("duration", "7200")}
    return _page(request, asked, planned=planned, note=note, problem=problem, draft=draft, status=status)


def _page(
    request: Request,
    asked: _Asked,
    *,
    planned: Plan | None = None,
    result: BulkResult | None = None,
    note: str = "",
    problem: Problem | None = None,
    draft: dict[str, str] | None = None,
    status: int = 200,
) -> Response:
    items = planned.items if planned else result.items if result else ()
    told = planned.result(dry_run=True) if planned else result
    return render(
        request,
        "agents_bulk.html",
        status,
        asked=asked,
        act=asked.work.act,
        title=ACTS[asked.work.act],
        noun="instance" if asked.work.act.of_instances else "agent",
        told=told,
        mark=planned.mark if planned else "",
        confirming=planned is not None,
        lists=[(outcome, [i for i in items if i.outcome is outcome][:TARGETS_SHOWN]) for outcome in (Outcome.DONE, Outcome.REFUSED)],
        unchanged=[i for i in items if i.outcome is Outcome.UNCHANGED][:TARGETS_SHOWN],
        durations=DURATIONS,
        draft=draft or {},
        note=note,
        problem=problem,
    )
