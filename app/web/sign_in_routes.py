"""Signing in with an API key, by a one-time link or through the OpenID provider, and out again.

The session's cookie is ``HttpOnly`` and ``SameSite=Lax``, so that no script reads it and no other site's form sends it; changing requests
must besides come from a page of ours by what the browser says of their origin.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.auth.cookies import cookie_name, is_secure, session_token
from app.auth.oidc import CALLBACK_PATH, PENDING_LIFETIME, OidcProvider, refused_by_guess
from app.auth.oidc_roles import display_name, identity_of
from app.auth.service import SESSION_LIFETIME, Identity, Role
from app.errors import PlatformError, Problem, TooManyRequestsError, UnauthenticatedError
from app.logs import LINK_PATH
from app.platform import Platform
from app.web.forms import read_form, require_own_origin
from app.web.rendering import PageRoute, PlatformDependency, local_path, render

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_MAX_FORM_BYTES = 16_384  # of somebody whom nobody knows yet
_PENDING_COOKIE = "irca_oidc"
_LINK_HEADERS = {"Referrer-Policy": "strict-origin"}
"""Of a link's page: its address is a secret, so not even our own files may learn it. With no-referrer the form would have no origin."""


@router.get("/sign-in")
async def show_sign_in(
    request: Request,
    platform: PlatformDependency,
    next: str = "/",  # noqa: A002 - the parameter's name in the URL
    signed_out: str = "",
) -> Response:
    """The form; whoever is signed in already goes straight on. ``signed_out=provider`` offers to sign out there too."""
    token = session_token(request)
    if token and await platform.auth.session(token):
        return RedirectResponse(local_path(next), 303)
    farewell = await platform.oidc.end_session_url("/sign-in") if platform.oidc and signed_out == "provider" else ""
    return _page(request, platform, target=local_path(next), signed_out=signed_out == "provider", farewell=farewell)


@router.post("/sign-in")
async def sign_in(request: Request, platform: PlatformDependency) -> Response:
    """Open a session for the holder of the key and go to the page that was wanted."""
    require_own_origin(request, platform)
    form = await read_form(request, _MAX_FORM_BYTES)
    target = local_path(form.text("next"))
    try:
        opened = await platform.auth.open_session(form.text("api_key"), *_client(request))
    except (UnauthenticatedError, TooManyRequestsError) as exc:
        return _page(request, platform, exc, target=target, key_error=exc.reason)
    return _signed_in(request, opened, target)


@router.get(LINK_PATH + "{token}")
async def show_link(request: Request, platform: PlatformDependency, token: str) -> Response:
    """Whom a one-time link would sign in, and a button: what merely looks at links, such as a scanner of mail, does not use it up."""
    try:
        identity, expires = await platform.auth.look_at_link(token, _client(request)[0])
    except (UnauthenticatedError, TooManyRequestsError) as exc:
        return _link_page(request, exc)
    return _link_page(request, identity=identity, expires=expires)


@router.post(LINK_PATH + "{token}")
async def use_link(request: Request, platform: PlatformDependency, token: str) -> Response:
    """Use the link up: a session with the rights of the key that it was made for."""
    require_own_origin(request, platform)
    try:
        opened = await platform.auth.open_session_by_link(token, *_client(request))
    except (UnauthenticatedError, TooManyRequestsError) as exc:
        return _link_page(request, exc)
    response = _signed_in(request, opened, "/")
    response.headers.update(_LINK_HEADERS)
    return response


@router.get("/sign-in/oidc")
async def begin_oidc(request: Request, platform: PlatformDependency, next: str = "/") -> Response:  # noqa: A002 - as above
    """Send the browser to the OpenID provider."""
    target = local_path(next)
    if platform.oidc is None:
        return RedirectResponse("/sign-in", 303)
    try:
        url, sealed = await platform.oidc.begin(target)
    except PlatformError as exc:
        await platform.auth.refuse_sign_in(exc, *_client(request), counted=False)
        return _page(request, platform, exc, target=target)
    response = RedirectResponse(url, 303)
    name, secure = cookie_name(request, _PENDING_COOKIE), is_secure(request)
    response.set_cookie(name, sealed, max_age=PENDING_LIFETIME, httponly=True, samesite="lax", secure=secure)
    return response


@router.get(CALLBACK_PATH)
async def finish_oidc(request: Request, platform: PlatformDependency) -> Response:
    """Take who comes back from the OpenID provider: a session with the role that their claims give them."""
    if platform.oidc is None:
        return RedirectResponse("/sign-in", 303)
    name = cookie_name(request, _PENDING_COOKIE)
    response = await _finish(request, platform, platform.oidc, request.cookies.get(name, ""))
    response.delete_cookie(name, httponly=True, samesite="lax", secure=is_secure(request))
    return response


@router.post("/sign-out")
async def sign_out(request: Request, platform: PlatformDependency) -> Response:
    """End the session, here and on the platform; a user of the OpenID provider is offered to end the provider's too."""
    require_own_origin(request, platform)
    target = "/sign-in"
    if token := session_token(request):
        identity = await platform.auth.session(token)
        await platform.auth.close_session(token, *_client(request))
        if identity is not None and identity.subject is not None:
            target = "/sign-in?signed_out=provider"
    response = RedirectResponse(target, 303)
    response.delete_cookie(cookie_name(request), httponly=True, samesite="lax", secure=is_secure(request))
    return response


async def _finish(request: Request, platform: Platform, oidc: OidcProvider, sealed: str) -> Response:
    client, target = _client(request), "/"
    claims: Mapping[str, Any] | None = None
    try:
        platform.auth.may_try(client[0])
        pending = oidc.pending(sealed, request.query_params.get("state", ""))
        target = pending.target
        claims = await oidc.finish(pending, request.query_params)
        user = identity_of(claims, platform.settings)
    except TooManyRequestsError as exc:
        return _page(request, platform, exc, target=target)
    except PlatformError as exc:
        who = Identity("", display_name(claims), Role.VIEWER, subject=str(claims["sub"])).actor(*client) if claims else None
        await platform.auth.refuse_sign_in(exc, *client, who, counted=claims is None and refused_by_guess(exc))
        return _page(request, platform, exc, target=target)
    opened = await platform.auth.open_user_session(user, timedelta(seconds=platform.settings.oidc_session_lifetime), *client)
    return _signed_in(request, opened, local_path(target))


def _page(
    request: Request,
    platform: Platform,
    exc: PlatformError | None = None,
    *,
    target: str = "/",
    key_error: str = "",
    signed_out: bool = False,
    farewell: str = "",
) -> Response:
    """The sign-in page; with ``exc``, why signing in failed: at the key's field (``key_error``) or, of another way, above all."""
    oidc = platform.oidc
    lifetimes = [("an API key", _span(SESSION_LIFETIME.total_seconds()))]
    if oidc is not None:
        lifetimes.append((oidc.name, _span(platform.settings.oidc_session_lifetime)))
    return _answer(
        request,
        "sign_in.html",
        exc,
        next=target,
        key_error=key_error,
        error="" if exc is None or key_error else exc.reason,
        provider=oidc.name if oidc else "",
        signed_out=signed_out,
        farewell=farewell,
        lifetimes=lifetimes,
    )


def _link_page(
    request: Request, exc: PlatformError | None = None, *, identity: Identity | None = None, expires: datetime | None = None
) -> Response:
    page = _answer(request, "sign_in_link.html", exc, identity=identity, expires=expires, error=exc.reason if exc else "")
    page.headers.update(_LINK_HEADERS)
    return page


def _answer(request: Request, template: str, exc: PlatformError | None, **context: Any) -> Response:
    if exc is None:
        return render(request, template, **context)
    page = render(request, template, Problem.of(exc).treatment.status, **context)
    if exc.retry_after is not None:
        page.headers["Retry-After"] = str(max(1, round(exc.retry_after)))
    return page


def _signed_in(request: Request, opened: tuple[str, datetime], target: str) -> Response:
    token, expires = opened
    response = RedirectResponse(target, 303)
    lifetime = max(0, int((expires - datetime.now(UTC)).total_seconds()))
    response.set_cookie(cookie_name(request), token, max_age=lifetime, httponly=True, samesite="lax", secure=is_secure(request))
    return response


def _client(request: Request) -> tuple[str, str]:
    """The other end of the connection, and what the browser says it is."""
    return request.client.host if request.client else "", request.headers.get("user-agent", "")


def _span(seconds: float) -> str:
    """A duration in words."""
    for unit, size in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= size and seconds % size == 0:
            count = int(seconds // size)
            return f"{count} {unit}" + ("s" if count != 1 else "")
    return f"{round(seconds / 60)} minutes"
