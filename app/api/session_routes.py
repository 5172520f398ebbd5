"""Browser sessions: who is signed in, and ending that."""

from __future__ import annotations

from datetime import datetime

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from app.api.dependencies import ActorDependency, PlatformDependency, require
from app.api.parameters import SessionId
from app.auth.service import Role, SessionKind
from app.events.views import Page

router = APIRouter(prefix="/api/v1/sessions", tags=["sessions"], dependencies=[Depends(require(Role.ADMIN))])


class BrowserSessionView(BaseModel):
    """A browser session that is valid now."""

    id: str
    kind: SessionKind = Field(description="How they signed in: key, link (a one-time link of a key) or oidc.")
    key_id: str | None = Field(description="The API key that the session is of; null for a user of the OpenID provider.")
    subject: str | None = Field(description="The user's subject at the OpenID provider; null for a key.")
    name: str = Field(description="Name of the key or of the user.")
    role: str = Field(description="viewer, operator or admin.")
    environments: list[str] = Field(description="Names of the environments in which the role holds, with * for any characters.")
    created_at: datetime
    expires_at: datetime
    client_address: str = Field(description="Address that the browser signed in from.")
    user_agent: str = Field(description="What the browser calls itself.")


@router.get("")
async def list_sessions(platform: PlatformDependency) -> Page[BrowserSessionView]:
    """The browser sessions that are valid now, newest first."""
    sessions = await platform.auth.list_sessions()
    return Page[BrowserSessionView](items=[BrowserSessionView.model_validate(one, from_attributes=True) for one in sessions])


@router.delete("/{session_id}", status_code=204)
async def end_session(session_id: SessionId, platform: PlatformDependency, actor: ActorDependency) -> None:
    """End a browser session, at once."""
    await platform.auth.end_session(session_id, actor)
