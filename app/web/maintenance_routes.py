"""The page of maintenance windows: what is muted, what was, and the form for more."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from app.auth.service import Identity, Role
from app.errors import FieldError, InvalidRequestError, PlatformError, Problem
from app.fleet.maintenance import MaintenanceSelector, WindowSpec, WindowState
from app.platform import Platform, environment_aware
from app.web.forms import Form, actor_of, submitted
from app.web.rendering import PageRoute, PlatformDependency, Viewer, render

router = APIRouter(route_class=PageRoute, include_in_schema=False)

SHOWN = 50
DURATIONS = {
    "1800": "30 minutes",
    "3600": "1 hour",
    "7200": "2 hours",
    "14400": "4 hours",
    "28800": "8 hours",
    "86400": "1 day",
    "604800": "7 days",
}
"""Seconds that the form offers."""
LOOKS = {
    WindowState.ACTIVE: "degraded",
    WindowState.SCHEDULED: "pending",
    WindowState.ENDED: "stopped",
    WindowState.CANCELLED: "archived",
}


@dataclass(frozen=True, slots=True)
class _Draft:
    """What the form says, as text to be shown again."""

    reason: str = ""
    environments: str = ""
    agent_ids: str = ""
    labels: str = ""
    starts_at: str = ""
    duration: str = "7200"


@router.get("/maintenance")
@environment_aware
async def maintenance(
    request: Request, platform: PlatformDependency, viewer: Viewer, cursor: str = "", environment: str = "", agent: str = ""
) -> Response:
    """Every window, the latest first, and the form for one more; ``environment`` and ``agent`` fill it in."""
    return _page(request, platform, viewer, _Draft(environments=environment[:200], agent_ids=agent[:200]), cursor=cursor)


@router.post("/maintenance")
@environment_aware
async def create(request: Request, platform: PlatformDependency, viewer: Viewer) -> Response:
    """Make a window."""
    form = await submitted(request, platform, viewer, Role.OPERATOR)
    try:
        await platform.fleet.maintenance.create(_spec(form), actor_of(request, viewer), viewer)
    except PlatformError as exc:
        names = ("reason", "environments", "agent_ids", "labels", "starts_at", "duration")
        return _page(request, platform, viewer, _Draft(**{name: form.text(name) for name in names}), error=exc)
    return RedirectResponse("/maintenance", 303)


@router.post("/maintenance/{window_id}/end")
@environment_aware
async def end(request: Request, platform: PlatformDependency, viewer: Viewer, window_id: str) -> Response:
    """End a window now."""
    await submitted(request, platform, viewer, Role.OPERATOR)
    await platform.fleet.maintenance.end(window_id, actor_of(request, viewer), viewer)
    return RedirectResponse("/maintenance", 303)


def _page(
    request: Request, platform: Platform, viewer: Identity, draft: _Draft, *, cursor: str = "", error: PlatformError | None = None
) -> Response:
    page = platform.fleet.maintenance.list_windows(viewer, cursor or None, SHOWN)
    problem = Problem.of(error) if error else None
    return render(
        request,
        "maintenance.html",
        problem.treatment.status if problem else 200,
        windows=page.items,
        next_query={"cursor": page.next_cursor} if page.next_cursor else None,
        looks=LOOKS,
        may_act=viewer.role >= Role.OPERATOR,
        draft=draft,
        durations=DURATIONS,
        problem=problem,
        errors={e.field.partition(".")[0]: e.message for e in error.errors} if error else {},
    )


def _spec(form: Form) -> WindowSpec:
    labels: dict[str, str] = {}
    for word in form.words("labels"):
        key, mark, value = word.partition("=")
        if not (key.strip() and mark and value.strip()):
            raise InvalidRequestError("a label is not valid", errors=[FieldError("labels", f"{word!r} must look like team=shop")])
        labels[key.strip()] = value.strip()
    try:
        selector = MaintenanceSelector(environments=form.words("environments"), agent_ids=form.words("agent_ids"), labels=labels)
    except ValidationError as exc:
        errors = [FieldError(str(e["loc"][0]), str(e["msg"])) for e in exc.errors()]
        raise InvalidRequestError("the maintenance window is not usable", errors=errors) from exc
    seconds = form.text("duration")
    if not re.fullmatch(r"\d{1,9}", seconds):
        raise InvalidRequestError("the maintenance window is not usable", errors=[FieldError("duration", "must be one of those offered")])
    return WindowSpec(form.text("reason"), selector, float(seconds), _start(form.text("starts_at")))


def _start(text: str) -> datetime | None:
    """The time in the form, which is in UTC there; None where it is empty."""
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError as exc:
        raise InvalidRequestError(
            "the maintenance window is not usable", errors=[FieldError("starts_at", "must look like 2026-01-31T22:00")]
        ) from exc
