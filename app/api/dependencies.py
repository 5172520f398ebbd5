"""What routes depend on: the platform's services, and who is asking."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Header, Query, Request

from app.api.asgi import bearer, client_address
from app.audit.records import Actor, ActorKind
from app.auth.cookies import session_token
from app.auth.principal import Principal
from app.auth.service import Identity, Role
from app.errors import FieldError, ForbiddenError, InvalidRequestError, UnauthenticatedError
from app.platform import Platform

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def get_platform(request: Request) -> Platform:
    """The running platform."""
    platform: Platform = request.app.state.platform
    return platform


PlatformDependency = Annotated[Platform, Depends(get_platform)]


async def get_identity(request: Request, platform: PlatformDependency) -> Identity:
    """Who is asking, by API key (``Authorization: Bearer``) or browser session.

    Raises:
        UnauthenticatedError: neither is there, or it is not valid.
        ForbiddenError: a session's changing request comes from another origin, or the key is limited to environments and this is not
            of one.
        NotFoundError: it is about an agent or instance in an environment that the key does not see.
    """
    identity = await identify(request, platform)
    platform.check_visible(identity, request.scope)
    return identity


async def identify(request: Request, platform: Platform) -> Identity:
    """Who is asking, wherever the request goes to; as an actor also in ``request.state``.

    A browser sends its cookie with whatever page makes it ask, so a session may change things only from our own origin.

    Raises:
        UnauthenticatedError: neither key nor session is there, or it is not valid.
        ForbiddenError: a session's changing request comes from another origin.
    """
    header = request.headers.get("authorization", "")
    scheme, _, key = header.partition(" ")
    if header:
        if scheme.lower() != "bearer" or not key.strip():
            raise UnauthenticatedError("the Authorization header must read: Bearer <API key>")
        identity = platform.auth.verify_key(key.strip())
    else:
        token = session_token(request)
        session = await platform.auth.session(token) if token else None
        if session is None:
            raise UnauthenticatedError("send an API key: Authorization: Bearer <key>; create one with `incident-rca api-keys create`")
        if request.method not in _SAFE_METHODS and not same_origin(request):
            raise ForbiddenError("a browser session may change things only from the platform's own pages")
        identity = session
    request.state.actor = _actor(request, identity)
    return identity


IdentityDependency = Annotated[Identity, Depends(get_identity)]


async def get_actor(request: Request, _identity: IdentityDependency) -> Actor:
    """Who is asking, for the audit log."""
    actor: Actor = request.state.actor
    return actor


ActorDependency = Annotated[Actor, Depends(get_actor)]


async def get_principal(request: Request, platform: PlatformDependency) -> Principal:
    """Whose enrolment token or credential the request carries.

    Raises:
        UnauthenticatedError: none, or one that is not valid.
        TooManyRequestsError: likewise, and too much was refused from this address.
    """
    client = client_address(request.scope)
    try:
        text = bearer(request.scope)
    except UnauthenticatedError as exc:
        await platform.fleet.enrolment.refuse(exc, "", client)
        raise
    return await platform.fleet.principal(text, client)


PrincipalDependency = Annotated[Principal, Depends(get_principal)]


async def may_provision(request: Request, identity: IdentityDependency) -> None:
    """Refuse to provision an environment that the key is not for."""
    if identity.everywhere or request.method != "POST":
        return
    try:
        body = await request.json()
    except ValueError:
        return  # the route says what is wrong with it
    name = body.get("environment_name") if isinstance(body, dict) else None
    if isinstance(name, str) and not identity.sees(name):
        raise ForbiddenError(
            f"the key {identity.name!r} is limited to environments {', '.join(identity.environments)}; {name!r} is none of them"
        )


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
_DIGITS = 18  # of a number that fits into 64 bits
IfMatch = Annotated[str | None, Header(alias="If-Match", description="The ETag that the change was made from; a newer one refuses it.")]
Limit = Annotated[int, Query(ge=1, le=500, description="Items on a page.")]


def version_of(if_match: str | None) -> int | None:
    """The version that an ``If-Match`` header names; None where there is none, or any will do (``*``).

    Raises:
        InvalidRequestError: it is not an ETag of ours.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    text = if_match.strip().removeprefix("W/").strip('"')
    if not text.isdecimal() or len(text) > _DIGITS:
        raise InvalidRequestError(
            "the If-Match header is not an ETag of this resource", errors=[FieldError("If-Match", 'must look like "3"')]
        )
    return int(text)


def _actor(request: Request, identity: Identity) -> Actor:
    kind: ActorKind = "api-key" if request.headers.get("authorization") else "session"
    address = request.client.host if request.client else ""
    return identity.actor(address, request.headers.get("user-agent", ""), kind=kind)
