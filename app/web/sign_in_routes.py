"""Signing in with an API key, and out again.

The session's cookie is ``HttpOnly`` and ``SameSite=Lax``, so that no script reads it and no other site's form sends it; changing requests
must besides come from a page of ours by what the browser says of their origin.
"""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.auth.service import SESSION_COOKIE
from app.errors import TooManyRequestsError, UnauthenticatedError
from app.platform import Platform
from app.web.forms import read_form, require_own_origin
from app.web.rendering import PageRoute, PlatformDependency, local_path, render

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_MAX_FORM_BYTES = 16_384  # of somebody whom nobody knows yet


@router.get("/sign-in")
async def show_sign_in(request: Request, platform: PlatformDependency, next: str = "/") -> Response:  # noqa: A002 - the parameter's name in the URL
    """The form; whoever is signed in already goes straight on."""
    token = request.cookies.get(SESSION_COOKIE)
    if token and await platform.auth.session(token):
        return RedirectResponse(local_path(next), 303)
    return render(request, "sign_in.html", next=local_path(next), error="")


@router.post("/sign-in")
async def sign_in(request: Request, platform: PlatformDependency) -> Response:
    """Open a session for the holder of the key and go to the page that was wanted."""
    require_own_origin(request, platform)
    form = await read_form(request, _MAX_FORM_BYTES)
    target = local_path(form.text("next"))
    try:
        address = request.client.host if request.client else ""
        token, expires = await platform.auth.open_session(form.text("api_key"), address, request.headers.get("user-agent", ""))
    except UnauthenticatedError as exc:
        return render(request, "sign_in.html", 401, next=target, error=exc.reason)
    except TooManyRequestsError as exc:
        page = render(request, "sign_in.html", 429, next=target, error=exc.reason)
        page.headers["Retry-After"] = str(int(exc.retry_after or 1))
        return page
    response = RedirectResponse(target, 303)
    lifetime = max(0, int((expires - datetime.now(UTC)).total_seconds()))
    response.set_cookie(SESSION_COOKIE, token, max_age=lifetime, httponly=True, samesite="lax", secure=_is_secure(request, platform))
    return response


@router.post("/sign-out")
async def sign_out(request: Request, platform: PlatformDependency) -> Response:
    """End the session, here and on the platform."""
    require_own_origin(request, platform)
    if token := request.cookies.get(SESSION_COOKIE):
        await platform.auth.close_session(token)
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(SESSION_COOKIE, httponly=True, samesite="lax", secure=_is_secure(request, platform))
    return response


def _is_secure(request: Request, platform: Platform) -> bool:
    return request.url.scheme == "https" or platform.settings.resolved_public_url().startswith("https://")
