"""API keys."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Depends
from pydantic import BaseModel, Field

from app.api.dependencies import ActorDependency, PlatformDependency, require
from app.api.parameters import KeyId
from app.auth.service import KEY_OVERLAP, Role
from app.db.models import ApiKeyRow
from app.events.views import Page

router = APIRouter(prefix="/api/v1/api-keys", tags=["api-keys"], dependencies=[Depends(require(Role.ADMIN))])


class KeyRequest(BaseModel):
    """A key to create."""

    model_config = {
        "extra": "forbid",
        "json_schema_extra": {
            "examples": [{"name": "deploy pipeline", "role": "operator", "environments": ["prod-*"], "expires_in": 7_776_000}]
        },
    }

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
    role: str = Field(description="viewer, operator or admin.")
    environments: list[str] = Field(description="Names of the environments in which the role holds, with * for any characters.")
    prefix: str = Field(description="First characters, to recognise it by.")
    created_at: datetime
    expires_at: datetime | None = Field(description="Null for no end.")
    last_used_at: datetime | None = Field(description="About when it was last used; null for never.")
    revoked_at: datetime | None = Field(description="Null unless it was revoked.")


class NewKeyView(KeyView):
    """A key that was just made."""

    key: str = Field(description="Its text, shown this once.")


class KeyRotation(BaseModel):
    """How a key is replaced."""

    model_config = {"extra": "forbid", "json_schema_extra": {"examples": [{"overlap": 3600}]}}

    overlap: Annotated[float, Field(ge=0, le=2_592_000)] = Field(
        KEY_OVERLAP.total_seconds(), description="Seconds for which the key before stays valid."
    )


OptionalRotation = Annotated[
    KeyRotation | None,
    Body(openapi_examples={"an hour": {"summary": "Both keys are valid for an hour.", "value": {"overlap": 3600}}}),
]


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


@router.get("/{key_id}")
async def get_key(key_id: KeyId, platform: PlatformDependency) -> KeyView:
    """One key, without its text."""
    return _view(platform.auth.get_key(key_id))


@router.post("/{key_id}/rotate", status_code=201)
async def rotate_key(key_id: KeyId, platform: PlatformDependency, actor: ActorDependency, body: OptionalRotation = None) -> NewKeyView:
    """Put a new key of the same name, role and environments in the place of one, which ends after the overlap.

    The new one's text is in this answer only. It lasts as long as the one before was meant to.
    """
    overlap = KEY_OVERLAP if body is None else timedelta(seconds=body.overlap)
    row, text = await platform.auth.rotate_key(key_id, overlap, actor)
    return NewKeyView(**_view(row).model_dump(), key=text)


@router.delete("/{key_id}", status_code=204)
async def revoke_key(key_id: KeyId, platform: PlatformDependency, actor: ActorDependency) -> None:
    """Revoke a key and end its browser sessions, at once."""
    await platform.auth.revoke_key(key_id, actor)


def _view(row: ApiKeyRow) -> KeyView:
    return KeyView.model_validate(row, from_attributes=True)
