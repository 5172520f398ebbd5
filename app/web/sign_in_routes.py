"""Signing in with an API key, and out again.

The session's cookie is ``HttpOnly`` and ``SameSite=Lax``, so that no script reads it and no other site's form sends it; changing requests
must besides come from a page of ours by what the browser says of their origin.
"""

from __future__ import annotations

import urllib.parse
from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.auth.service import SESSION_COOKIE
from app.errors import BodyTooLargeError, ForbiddenError, UnauthenticatedError
from app.platform import Platform
from app.web.rendering import PageRoute, PlatformDependency, local_path, render

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_MAX_FORM_BYTES = 16_384


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
    _require_own_origin(request, platform)
    form = await _read_form(request)
    target = local_path(form.get("next"))
    try:
        token, expires = await platform.auth.open_session(form.get("api_key", "").strip())
    except UnauthenticatedError as exc:
        return render(request, "sign_in.html", 401, next=target, error=exc.reason)
    response = RedirectResponse(target, 303)
    lifetime = max(0, int((expires - datetime.now(UTC)).total_seconds()))
    response.set_cookie(SESSION_COOKIE, token, max_age=lifetime, httponly=True, samesite="lax", secure=_is_secure(request, platform))
    return response


@router.post("/sign-out")
async def sign_out(request: Request, platform: PlatformDependency) -> Response:
    """End the session, here and on the platform."""
    _require_own_origin(request, platform)
    if token := request.cookies.get(SESSION_COOKIE):
        await platform.auth.close_session(token)
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(SESSION_COOKIE, httponly=True, samesite="lax", secure=_is_secure(request, platform))
    return response


def _require_own_origin(request: Request, platform: Platform) -> None:
    """Refuse what a browser says another site made it send; a client that says neither is no browser and has no cookie to abuse."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    own = {request.headers.get("host", ""), urllib.parse.urlsplit(platform.settings.resolved_public_url()).netloc}
    from_own_page = site in ("same-origin", "none") if site is not None else origin is None or urllib.parse.urlsplit(origin).netloc in own
    if not from_own_page:
        raise ForbiddenError("this form was sent from another site; open the platform's own page and try again")


def _is_secure(request: Request, platform: Platform) -> bool:
    return request.url.scheme == "https" or platform.settings.resolved_public_url().startswith("https://")


async def _read_form(request: Request) -> dict[str, str]:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MAX_FORM_BYTES:
            raise BodyTooLargeError("the form is larger than any that the pages send")
    return dict(urllib.parse.parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=20))
