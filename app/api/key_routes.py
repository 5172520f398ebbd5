"""API keys."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from app.api.dependencies import ActorDependency, PlatformDependency, require
from app.auth.service import Role
from app.db.models import ApiKeyRow
from app.events.views import Page

router = APIRouter(prefix="/api/v1/api-keys", tags=["api-keys"], dependencies=[Depends(require(Role.ADMIN))])


class KeyRequest(BaseModel):
    """A key to create."""

    model_config = {"extra": "forbid"}

    name: Annotated[str, Field(min_length=1, max_length=200, description="Who or what will use it.")]
    role: Literal["viewer", "operator", "admin"] = "viewer"
    environments: Annotated[list[Annotated[str, Field(min_length=1, max_length=63)]], Field(min_length=1, max_length=100)] = Field(
        ["*"], description="Names of the environments in which the role holds, with * for any characters."
    )
    expires_in: Annotated[float | None, Field(gt=0, le=10 * 365 * 86_400, description="Life in seconds; null for no end.")] = None


class KeyView(BaseModel):
    """A key, without its text."""

    id: str
    name: str
    role: str
    environments: list[str]
    prefix: str = Field(description="First characters, to recognise it by.")
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


class NewKeyView(KeyView):
    """A key that was just made."""

    key: str = Field(description="Its text, shown this once.")


@router.post("", status_code=201)
async def create_key(body: KeyRequest, platform: PlatformDependency, actor: ActorDependency) -> NewKeyView:
    """Create a key."""
    lifetime = timedelta(seconds=body.expires_in) if body.expires_in else None
    row, text = await platform.auth.create_key(body.name, Role.named(body.role), lifetime, environments=body.environments, actor=actor)
    return NewKeyView(**_view(row).model_dump(), key=text)


@router.get("")
async def list_keys(platform: PlatformDependency) -> Page[KeyView]:
    """All keys, oldest first, without their texts."""
    return Page[KeyView](items=[_view(row) for row in platform.auth.list_keys()])


@router.delete("/{key_id}", status_code=204)
async def revoke_key(key_id: str, platform: PlatformDependency, actor: ActorDependency) -> None:
    """Revoke a key and end its browser sessions, at once."""
    await platform.auth.revoke_key(key_id, actor)


def _view(row: ApiKeyRow) -> KeyView:
    return KeyView.model_validate(row, from_attributes=True)
