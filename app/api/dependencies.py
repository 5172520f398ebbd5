"""What routes depend on: the platform's services, and who is asking."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Query, Request

from app.audit.records import Actor
from app.auth.service import SESSION_COOKIE, Identity, Role
from app.errors import ForbiddenError, UnauthenticatedError
from app.platform import Platform

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def get_platform(request: Request) -> Platform:
    """The running platform."""
    platform: Platform = request.app.state.platform
    return platform


PlatformDependency = Annotated[Platform, Depends(get_platform)]


async def get_identity(request: Request, platform: PlatformDependency) -> Identity:
    """Who is asking, by API key (``Authorization: Bearer``) or browser session.

    A browser sends its cookie with whatever page makes it ask, so a session may change things only from our own origin.

    Raises:
        UnauthenticatedError: neither is there, or it is not valid.
        ForbiddenError: a session's changing request comes from another origin.
    """
    header = request.headers.get("authorization", "")
    scheme, _, key = header.partition(" ")
    if header:
        if scheme.lower() != "bearer" or not key.strip():
            raise UnauthenticatedError("the Authorization header must read: Bearer <API key>")
        identity = platform.auth.verify_key(key.strip())
    else:
        token = request.cookies.get(SESSION_COOKIE)
        session = await platform.auth.session(token) if token else None
        if session is None:
            raise UnauthenticatedError("send an API key: Authorization: Bearer <key>; create one with `incident-rca api-keys create`")
        if request.method not in _SAFE_METHODS and not same_origin(request):
            raise ForbiddenError("a browser session may change things only from the platform's own pages")
        identity = session
    request.state.actor = identity.name
    return identity


IdentityDependency = Annotated[Identity, Depends(get_identity)]


async def get_actor(request: Request, identity: IdentityDependency) -> Actor:
    """Who is asking, for the audit log."""
    return Actor(
        kind="api-key" if request.headers.get("authorization") else "session",
        id=identity.key_id,
        name=identity.name,
        client_address=request.client.host if request.client else "",
        user_agent=request.headers.get("user-agent", ""),
    )


ActorDependency = Annotated[Actor, Depends(get_actor)]


def require(role: Role) -> Callable[[Identity], Awaitable[None]]:
    """A dependency that lets only identities of at least this role pass."""

    async def check(identity: IdentityDependency) -> None:
        identity.require(role)

    return check


def same_origin(request: Request) -> bool:
    """Whether a browser says that one of our own pages made it ask."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is None or origin.split("://")[-1] == request.headers.get("host", "")


Cursor = Annotated[str | None, Query(description="The next_cursor of the page before.")]
Limit = Annotated[int, Query(ge=1, le=500, description="Items on a page.")]
