"""The switch between light and dark: a cookie, so that a page comes in the right colours before any script runs."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.web.forms import read_form, require_own_origin
from app.web.rendering import THEME_COOKIE, THEMES, PageRoute, PlatformDependency, local_path

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_KEPT = 365 * 86_400  # seconds
_MAX_FORM_BYTES = 4096  # of somebody whom nobody knows yet


@router.post("/theme")
async def choose_theme(request: Request, platform: PlatformDependency) -> Response:
    """Keep what is to be looked at, for whoever asks, signed in or not; anything but light and dark leaves it to the browser."""
    require_own_origin(request, platform)
    form = await read_form(request, _MAX_FORM_BYTES)
    response = RedirectResponse(local_path(form.text("next")), 303)
    if (chosen := form.text("theme")) in THEMES:
        secure = request.url.scheme == "https"
        response.set_cookie(THEME_COOKIE, chosen, max_age=_KEPT, httponly=True, samesite="lax", secure=secure)
    else:
        response.delete_cookie(THEME_COOKIE, httponly=True, samesite="lax")
    return response
