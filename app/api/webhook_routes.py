"""Webhooks: endpoints, their deliveries, tests and replays."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, Field

from app.api.dependencies import ActorDependency, Cursor, IdentityDependency, IfMatch, Limit, PlatformDependency, require, version_of
from app.api.parameters import DeliveryId, InDeliveryStatus, OfWebhook, WebhookId
from app.auth.service import Role
from app.errors import FieldError, ForbiddenError, InvalidRequestError
from app.events.views import Page
from app.webhooks.filters import WebhookFilters
from app.webhooks.payloads import TemplateName
from app.webhooks.service import EndpointSpec
from app.webhooks.views import DeliveryDetailView, DeliveryView, NewWebhookView, WebhookView


async def everywhere(identity: IdentityDependency) -> None:
    """Refuse a key that is limited to some environments: a webhook may tell of all of them."""
    if not identity.everywhere:
        raise ForbiddenError("webhooks tell of every environment, and this key is limited to some")


router = APIRouter(prefix="/api/v1", tags=["webhooks"], dependencies=[Depends(require(Role.VIEWER)), Depends(everywhere)])
_admin = [Depends(require(Role.ADMIN))]
_operator = [Depends(require(Role.OPERATOR))]


class WebhookRequest(BaseModel):
    """An endpoint to create, or what one is to become."""

    model_config = {
        "extra": "forbid",
        "json_schema_extra": {
            "examples": [
                {
                    "name": "on-call",
                    "url": "https://receiver.example.com/incident-rca",
                    "filters": {"event_types": ["irca.instance.*"], "environments": ["prod-*"], "min_severity": 13},
                }
            ]
        },
    }

    name: Annotated[str, Field(min_length=1, max_length=100)]
    url: Annotated[str, Field(min_length=1, max_length=2000, description="Where to POST, http or https.")]
    template: TemplateName = Field("standard", description="Shape of the body: Standard Webhooks, Slack's, or PagerDuty's Events v2.")
    filters: WebhookFilters = Field(default_factory=lambda: WebhookFilters())  # noqa: PLW0108 - mypy cannot see the class as a factory
    enabled: bool = True
    routing_key: Annotated[str, Field(max_length=200, description="PagerDuty's integration key; other templates have none.")] = ""

    def spec(self) -> EndpointSpec:
        """The same for the service."""
        return EndpointSpec(self.name.strip(), self.url.strip(), self.template, self.filters, self.enabled, self.routing_key.strip())


class RotationRequest(BaseModel):
    """How a secret is changed."""

    model_config = {"extra": "forbid", "json_schema_extra": {"examples": [{"overlap": 3600}]}}

    overlap: Annotated[float, Field(ge=0, le=604_800)] = Field(86_400.0, description="Seconds for which the secret before stays valid.")


class ReplayRequest(BaseModel):
    """What is delivered again: one delivery, or every dead one."""

    model_config = {
        "extra": "forbid",
        "json_schema_extra": {
            "examples": [{"delivery_id": "6b0f7a52-5d0c-4f3e-8a70-93c8b1d6f2ce"}, {"since": "2026-11-21T22:00:00Z"}],
        },
    }

    delivery_id: str | None = Field(None, description="The one delivery to repeat; null for every dead one.")
    since: datetime | None = Field(None, description="Of the dead ones, those made since then; null for all.")


class Replayed(BaseModel):
    """What a replay did."""

    deliveries: int = Field(description="Deliveries put into the outbox.")


@router.post("/webhooks", status_code=201, dependencies=_admin)
async def create_webhook(body: WebhookRequest, platform: PlatformDependency, actor: ActorDependency) -> NewWebhookView:
    """Create an endpoint. Its secret is in this answer only."""
    return await platform.webhooks.create(body.spec(), actor)


@router.get("/webhooks")
async def list_webhooks(platform: PlatformDependency) -> Page[WebhookView]:
    """Every endpoint, by name."""
    return Page[WebhookView](items=await platform.webhooks.list_endpoints())


@router.get("/webhooks/{webhook_id}")
async def get_webhook(webhook_id: WebhookId, platform: PlatformDependency, response: Response) -> WebhookView:
    """One endpoint; the ETag is for changing it."""
    return _tagged(response, await platform.webhooks.get(webhook_id))


@router.put("/webhooks/{webhook_id}", dependencies=_admin)
async def update_webhook(
    webhook_id: WebhookId,
    body: WebhookRequest,
    platform: PlatformDependency,
    actor: ActorDependency,
    response: Response,
    if_match: IfMatch = None,
) -> WebhookView:
    """Change an endpoint. Enabling one closes its circuit."""
    return _tagged(response, await platform.webhooks.update(webhook_id, body.spec(), actor, version_of(if_match)))


@router.delete("/webhooks/{webhook_id}", status_code=204, dependencies=_admin)
async def delete_webhook(webhook_id: WebhookId, platform: PlatformDependency, actor: ActorDependency, if_match: IfMatch = None) -> None:
    """Delete an endpoint with its deliveries."""
    await platform.webhooks.delete(webhook_id, actor, version_of(if_match))


@router.post("/webhooks/{webhook_id}/secret", dependencies=_admin)
async def rotate_secret(
    webhook_id: WebhookId, body: RotationRequest, platform: PlatformDependency, actor: ActorDependency
) -> NewWebhookView:
    """Change the secret; during the overlap deliveries are signed with both. The new one is in this answer only."""
    return await platform.webhooks.rotate(webhook_id, body.overlap, actor)


@router.post("/webhooks/{webhook_id}/test", status_code=202, dependencies=_operator)
async def send_test(webhook_id: WebhookId, platform: PlatformDependency, actor: ActorDependency) -> DeliveryView:
    """Send a test event, whatever the filters; look the delivery up to see what came of it."""
    return await platform.webhooks.test(webhook_id, actor)


@router.post("/webhooks/{webhook_id}/replay", status_code=202, dependencies=_operator)
async def replay(webhook_id: WebhookId, body: ReplayRequest, platform: PlatformDependency, actor: ActorDependency) -> Replayed:
    """Deliver again, with the same ``webhook-id``: one delivery, or every dead one (10,000 at most)."""
    if body.since is not None and body.since.tzinfo is None:
        raise InvalidRequestError("the request is not valid", errors=[FieldError("since", "must carry its time zone")])
    count = await platform.webhooks.replay(webhook_id, actor, delivery_id=body.delivery_id, since=body.since)
    return Replayed(deliveries=count)


@router.get("/webhook-deliveries")
async def list_deliveries(
    platform: PlatformDependency,
    cursor: Cursor = None,
    limit: Limit = 50,
    webhook_id: OfWebhook = None,
    status: InDeliveryStatus = None,
    event_id: Annotated[str | None, Query(description="Deliveries of this event.")] = None,
) -> Page[DeliveryView]:
    """The delivery log, newest first."""
    return await platform.webhooks.list_deliveries(cursor, limit, endpoint_id=webhook_id, status=status, event_id=event_id)


@router.get("/webhook-deliveries/{delivery_id}")
async def get_delivery(delivery_id: DeliveryId, platform: PlatformDependency) -> DeliveryDetailView:
    """One delivery: its message, and request, answer and latency of every try."""
    return await platform.webhooks.get_delivery(delivery_id)


def _tagged(response: Response, view: WebhookView) -> WebhookView:
    response.headers["ETag"] = f'"{view.version}"'
    return view
