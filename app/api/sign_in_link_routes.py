"""One-time sign-in links: made here, used up by the page that they lead to."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Body, Depends
from pydantic import BaseModel, Field

from app.api.dependencies import ActorDependency, IdentityDependency, PlatformDependency, require
from app.auth.service import LINK_LIFETIME, Role
from app.errors import ForbiddenError, InvalidRequestError
from app.logs import LINK_PATH
from app.platform import environment_aware

router = APIRouter(prefix="/api/v1/sign-in-links", tags=["sign-in-links"], dependencies=[Depends(require(Role.VIEWER))])


class LinkRequest(BaseModel):
    """A link to make."""

    model_config = {"extra": "forbid", "json_schema_extra": {"examples": [{}, {"api_key_id": "0b7bd0b1-3e0a-4a68-9c2f-2f0f4c2f6f6e"}]}}

    api_key_id: Annotated[
        str | None, Field(max_length=36, description="The key to sign in with; null for the one that asks. Another's takes an admin.")
    ] = None
    expires_in: Annotated[float, Field(ge=30, le=86_400, description="Seconds for which it can be used.")] = LINK_LIFETIME.total_seconds()


class LinkView(BaseModel):
    """A link that was just made."""

    url: str = Field(description="Where to sign in, once; shown this once.")
    api_key_id: str = Field(description="The key that it signs in with.")
    expires_at: datetime = Field(description="Until when it can be used.")


OptionalRequest = Annotated[
    LinkRequest | None,
    Body(
        openapi_examples={
            "own": {"summary": "For the key that asks.", "value": {}},
            "another's": {
                "summary": "For another key, valid for an hour.",
                "value": {"api_key_id": "0b7bd0b1-3e0a-4a68-9c2f-2f0f4c2f6f6e", "expires_in": 3600},
            },
        }
    ),
]


@router.post("", status_code=201, summary="Make a one-time sign-in link")
@environment_aware
async def create_link(
    platform: PlatformDependency, identity: IdentityDependency, actor: ActorDependency, body: OptionalRequest = None
) -> LinkView:
    """Make a link that signs one browser in, once, with the rights of an API key and no longer than it is valid.

    Any key makes one for itself. For another key's, or from a browser session, it takes an admin whose role holds everywhere.
    """
    wanted = body or LinkRequest()
    own = identity.key_id if identity.subject is None else None
    key_id = wanted.api_key_id or own
    if key_id is None:
        raise InvalidRequestError("users of the OpenID provider have no API key of their own: name one in api_key_id")
    if (key_id != own or actor.kind != "api-key") and not (identity.role is Role.ADMIN and identity.everywhere):
        # A session must not outlive itself, or its browser, by links that it makes.
        raise ForbiddenError(
            "a key makes sign-in links for itself; for another, or from a browser session, it takes an admin of everything"
        )
    token, expires = await platform.auth.create_link(key_id, actor, timedelta(seconds=wanted.expires_in))
    return LinkView(url=platform.settings.resolved_public_url() + LINK_PATH + token, api_key_id=key_id, expires_at=expires)
