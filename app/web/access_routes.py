"""The Access pages: API keys, and who is signed in. Enrolment tokens are in token_routes.py."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.auth.cookies import session_token
from app.auth.identity import digest
from app.auth.service import Identity, Role
from app.db.models import ApiKeyRow
from app.errors import FieldError, ForbiddenError, InvalidRequestError, PlatformError, Problem
from app.platform import Platform
from app.web.forms import Form, actor_of, submitted
from app.web.rendering import PageRoute, PlatformDependency, Viewer, render

router = APIRouter(route_class=PageRoute, include_in_schema=False)

ROLES = (
    (Role.VIEWER, "Reads everything: agents, metrics, events, groups, webhooks."),
    (Role.OPERATOR, "Also connects environments, changes groups and configuration, mutes, archives, revokes tokens, replays deliveries."),
    (Role.ADMIN, "Also makes keys and webhooks, ends sessions, reads the audit log and the settings."),
)
"""What each role may do, in a sentence; each may do all that the ones above it may."""
LIFETIMES: Mapping[str, tuple[str, timedelta | None]] = {
    "": ("never", None),
    "1d": ("in 1 day", timedelta(days=1)),
    "7d": ("in 7 days", timedelta(days=7)),
    "30d": ("in 30 days", timedelta(days=30)),
    "90d": ("in 90 days", timedelta(days=90)),
    "365d": ("in 1 year", timedelta(days=365)),
}
"""When a new key may end, as the form offers it."""
OVERLAPS: Mapping[str, tuple[str, timedelta]] = {
    "1h": ("for 1 hour", timedelta(hours=1)),
    "1d": ("for 1 day", timedelta(days=1)),
    "7d": ("for 7 days", timedelta(days=7)),
    "0": ("no longer", timedelta(0)),
}
"""How long a key, or a token, stays valid beside its successor, as the forms offer it."""
KINDS = {"key": "API key", "link": "one-time link", "oidc": "OpenID provider"}
"""How somebody signed in, for people."""
_LONGEST_NAME, _MOST_ENVIRONMENTS, _LONGEST_ENVIRONMENT = 200, 100, 63

KeyState = Literal["active", "expired", "revoked"]


@router.get("/access")
async def access(request: Request, platform: PlatformDependency, viewer: Viewer) -> Response:
    """Every API key, the valid ones first; who is signed in; what the roles are."""
    _admins_of_everything(viewer)
    now = datetime.now(UTC)
    keys = sorted(((key, state_of(key, now)) for key in platform.auth.list_keys()), key=lambda pair: pair[1] != "active")
    return render(
        request,
        "access.html",
        keys=keys,
        sessions=await platform.auth.list_sessions(),
        own_session=_own_session(request),
        kinds=KINDS,
        roles=ROLES,
    )


@router.get("/access/keys/new")
async def new_key(request: Request, viewer: Viewer) -> Response:
    """The form for a new key."""
    _admins_of_everything(viewer)
    return _form_page(request, Form({}), None)


@router.post("/access/keys/new")
async def create_key(request: Request, platform: PlatformDependency, viewer: Viewer) -> Response:
    """Make a key and show its text, this once."""
    form = await _submitted(request, platform, viewer)
    try:
        name, role, environments, lifetime = _spec(form)
        key, text = await platform.auth.create_key(name, role, lifetime, environments=environments, actor=actor_of(request, viewer))
    except PlatformError as exc:
        return _form_page(request, form, exc)
    return render(request, "access_key_text.html", 201, key=key, text=text, before=None)


@router.get("/access/keys/{key_id}")
async def key(request: Request, platform: PlatformDependency, viewer: Viewer, key_id: str) -> Response:
    """One key: what it may do, who is signed in with it, and how to replace or end it."""
    _admins_of_everything(viewer)
    return await _key_page(request, platform, viewer, key_id)


@router.post("/access/keys/{key_id}/rotate")
async def rotate_key(request: Request, platform: PlatformDependency, viewer: Viewer, key_id: str) -> Response:
    """Put a new key in the place of one and show its text, this once."""
    form = await _submitted(request, platform, viewer)
    overlap = OVERLAPS.get(form.text("overlap"), OVERLAPS["1h"])[1]
    try:
        made, text = await platform.auth.rotate_key(key_id, overlap, actor_of(request, viewer))
    except PlatformError as exc:
        return await _key_page(request, platform, viewer, key_id, exc)
    return render(request, "access_key_text.html", 201, key=made, text=text, before=platform.auth.get_key(key_id))


@router.post("/access/keys/{key_id}/revoke")
async def revoke_key(request: Request, platform: PlatformDependency, viewer: Viewer, key_id: str) -> Response:
    """Revoke a key; where that may not be, say why."""
    await _submitted(request, platform, viewer)
    try:
        await platform.auth.revoke_key(key_id, actor_of(request, viewer))
    except PlatformError as exc:
        return await _key_page(request, platform, viewer, key_id, exc)
    return RedirectResponse("/access", 303)


@router.post("/access/sessions/{session_id}/end")
async def end_session(request: Request, platform: PlatformDependency, viewer: Viewer, session_id: str) -> Response:
    """End somebody's browser session."""
    await _submitted(request, platform, viewer)
    await platform.auth.end_session(session_id, actor_of(request, viewer))
    return RedirectResponse("/access", 303)


def state_of(row: ApiKeyRow, now: datetime) -> KeyState:
    """Whether a key is valid, and if not, why."""
    if row.revoked_at is not None:
        return "revoked"
    return "expired" if row.expires_at is not None and row.expires_at <= now else "active"


async def _key_page(request: Request, platform: Platform, viewer: Identity, key_id: str, error: PlatformError | None = None) -> Response:
    found = platform.auth.get_key(key_id)
    problem = Problem.of(error) if error else None
    return render(
        request,
        "access_key.html",
        problem.treatment.status if problem else 200,
        key=found,
        state=state_of(found, datetime.now(UTC)),
        sessions=[one for one in await platform.auth.list_sessions() if one.key_id == key_id],
        own=viewer.key_id == key_id,
        overlaps=OVERLAPS,
        problem=problem,
    )


def _form_page(request: Request, form: Form, error: PlatformError | None) -> Response:
    problem = Problem.of(error) if error else None
    return render(
        request,
        "access_key_form.html",
        problem.treatment.status if problem else 200,
        form=form,
        roles=ROLES,
        lifetimes=LIFETIMES,
        problem=problem,
        errors={e.field: e.message for e in error.errors} if error else {},
    )


def _spec(form: Form) -> tuple[str, Role, list[str], timedelta | None]:
    """Name, role, environments and life of the key that a form asks for.

    Raises:
        InvalidRequestError: with every field that is wrong.
    """
    errors: list[FieldError] = []
    name, role, environments = form.text("name"), form.text("role"), form.words("environments")
    if not 1 <= len(name) <= _LONGEST_NAME:
        errors.append(FieldError("name", f"must have 1 to {_LONGEST_NAME} characters"))
    if role.upper() not in Role.__members__:
        errors.append(FieldError("role", "must be one of those offered"))
    if not 1 <= len(environments) <= _MOST_ENVIRONMENTS or any(len(one) > _LONGEST_ENVIRONMENT for one in environments):
        wanted = f"must be 1 to {_MOST_ENVIRONMENTS} names of at most {_LONGEST_ENVIRONMENT} characters, one a line; * for all"
        errors.append(FieldError("environments", wanted))
    if form.text("expires") not in LIFETIMES:
        errors.append(FieldError("expires", "must be one of those offered"))
    if errors:
        raise InvalidRequestError("the key was not made", errors=errors)
    return name, Role.named(role), environments, LIFETIMES[form.text("expires")][1]


async def _submitted(request: Request, platform: Platform, viewer: Identity) -> Form:
    _admins_of_everything(viewer)
    return await submitted(request, platform, viewer, Role.ADMIN)


def _admins_of_everything(viewer: Identity) -> None:
    viewer.require(Role.ADMIN)
    if not viewer.everywhere:
        raise ForbiddenError("keys and sessions reach into every environment, and this key is limited to some")


def _own_session(request: Request) -> str:
    """The id under which lists show the session of the browser that asks."""
    return digest(session_token(request)).hex()
