"""The pages of enrolment tokens: all of them, one with what it enrolled, and who was refused lately."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from app.auth.service import Identity, Role
from app.errors import NotFoundError, PlatformError, Problem
from app.fleet.tokens import TokenFilter, TokenState
from app.platform import Platform, environment_aware
from app.web.access_routes import OVERLAPS
from app.web.forms import actor_of, submitted
from app.web.rendering import PageRoute, PlatformDependency, Viewer, render
from connectors.agent_factory import AgentFactory

router = APIRouter(route_class=PageRoute, include_in_schema=False)

TOKENS_SHOWN = 50
REFUSED_SHOWN = 20
ENVIRONMENTS_OFFERED = 200
LOOKS = {
    TokenState.ACTIVE: "healthy",
    TokenState.EXPIRED: "stopped",
    TokenState.REVOKED: "offline",
    TokenState.USED_UP: "archived",
}
"""The glyph of a state."""
REFUSALS = {
    "token-unknown": "unknown token or credential",
    "token-expired": "expired token",
    "token-used-up": "token used up",
    "token-revoked": "revoked token",
    "cluster-unknown": "cluster not known yet",
}
"""Why somebody was refused, for people."""


@router.get("/access/tokens")
@environment_aware
async def tokens(  # noqa: PLR0913, PLR0917 - one parameter for each filter; FastAPI passes them by name
    request: Request,
    platform: PlatformDependency,
    viewer: Viewer,
    environment_name: str = "",
    agent_type: str = "",
    state: str = "",
    search: Annotated[str, Query(max_length=200)] = "",
    agent_id: str = "",
    cursor: Annotated[str, Query(max_length=2000)] = "",
) -> Response:
    """Every token of the environments that may be seen, newest first, and whoever was refused lately. A state that is none is no filter."""
    viewer.require(Role.OPERATOR)
    agent = platform.fleet.registry.agents.get(agent_id) if agent_id else None
    if agent_id and (agent is None or not viewer.sees(agent.environment_name)):
        raise NotFoundError(f"there is no agent {agent_id}")
    wanted = next((s for s in TokenState if s.value == state), None)
    given = {
        "search": search.strip(),
        "environment_name": environment_name.strip(),
        "agent_type": agent_type.strip(),
        "state": wanted.value if wanted else "",
        "agent_id": agent_id,
    }
    chosen = TokenFilter(agent_id or None, given["environment_name"] or None, given["agent_type"] or None, wanted, given["search"])
    page = await platform.fleet.tokens.list_tokens(chosen, cursor or None, TOKENS_SHOWN, viewer=viewer)
    query = {name: value for name, value in given.items() if value}
    return render(
        request,
        "access_tokens.html",
        tokens=page.items,
        refused=await platform.fleet.tokens.refusals(viewer=viewer, agent_id=agent_id or None, limit=REFUSED_SHOWN),
        agents=platform.fleet.registry.agents,
        agent=agent,
        given=given,
        filtered=bool(query),
        next_query={**query, "cursor": page.next_cursor} if page.next_cursor else None,
        looks=LOOKS,
        states=[s.value for s in TokenState],
        reasons=REFUSALS,
        agent_types=AgentFactory.supported_types(),
        environments=sorted(platform.fleet.environment_names(viewer.sees))[:ENVIRONMENTS_OFFERED],
        may_see_keys=viewer.role >= Role.ADMIN and viewer.everywhere,
    )


@router.get("/access/tokens/{token_id}")
@environment_aware
async def token(request: Request, platform: PlatformDependency, viewer: Viewer, token_id: str) -> Response:
    """One token: what it enrolled, and how to replace or end it."""
    viewer.require(Role.OPERATOR)
    return await _token_page(request, platform, viewer, token_id)


@router.post("/access/tokens/{token_id}/rotate")
@environment_aware
async def rotate(request: Request, platform: PlatformDependency, viewer: Viewer, token_id: str) -> Response:
    """Put a new token in the place of one and show its text, this once."""
    form = await submitted(request, platform, viewer, Role.OPERATOR)
    await platform.fleet.tokens.require(token_id, viewer)
    overlap = OVERLAPS.get(form.text("overlap"), OVERLAPS["1h"])[1]
    try:
        text, row = await platform.fleet.enrolment.rotate_token(token_id, overlap.total_seconds(), actor_of(request, viewer))
    except PlatformError as exc:
        return await _token_page(request, platform, viewer, token_id, exc)
    made = await platform.fleet.tokens.get_token(row.id)
    before = await platform.fleet.tokens.get_token(token_id)
    return render(request, "access_token_text.html", 201, token=made, before=before, text=text)


@router.post("/access/tokens/{token_id}/revoke")
@environment_aware
async def revoke(request: Request, platform: PlatformDependency, viewer: Viewer, token_id: str) -> Response:
    """Revoke a token, and if the box is ticked the credentials of the instances that came by it."""
    form = await submitted(request, platform, viewer, Role.OPERATOR)
    await platform.fleet.tokens.require(token_id, viewer)
    instances = form.flag("revoke_instances")
    await platform.fleet.enrolment.revoke_token(token_id, actor_of(request, viewer), revoke_instances=instances)
    return RedirectResponse(f"/access/tokens/{token_id}", 303)


async def _token_page(
    request: Request, platform: Platform, viewer: Identity, token_id: str, error: PlatformError | None = None
) -> Response:
    found = await platform.fleet.tokens.get_token(token_id, viewer=viewer)
    problem = Problem.of(error) if error else None
    return render(
        request,
        "access_token.html",
        problem.treatment.status if problem else 200,
        token=found,
        look=LOOKS[found.state],
        machines="clusters" if found.agent_type == "kubernetes" else "machines",
        overlaps=OVERLAPS,
        problem=problem,
    )
