"""What the API and the pages show of webhooks."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field

from app.webhooks.filters import WebhookFilters
from app.webhooks.payloads import TemplateName


class DeliveryStatus(StrEnum):
    """How a delivery stands: to be tried (again), taken by the receiver, or given up."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


class WebhookView(BaseModel):
    """An endpoint, without its secret."""

    id: str
    name: str
    url: str = Field(description="Where deliveries go; of a Slack webhook only the beginning, for its path is a secret.")
    url_sha256: str = Field(description="SHA-256 of the whole URL, in hexadecimal: tells whether it is the one that somebody knows.")
    template: TemplateName
    filters: WebhookFilters
    enabled: bool = Field(description="Whether events are delivered to it at all.")
    circuit: str = Field(description="closed: deliveries go out; open: the endpoint is left alone; half-open: one is tried.")
    failures: int = Field(description="Failed tries in a row.")
    open_until: datetime | None = Field(description="Until when the endpoint is left alone.")
    previous_secret_expires_at: datetime | None = Field(description="Until when deliveries are signed with the secret before, too.")
    pending: int = Field(description="Deliveries that wait.")
    dead: int = Field(description="Deliveries that were given up.")
    version: int = Field(description="Goes up with each change; the ETag.")
    created_at: datetime
    updated_at: datetime


class NewWebhookView(WebhookView):
    """An endpoint that was just made, or whose secret was just changed."""

    secret: str = Field(description="What deliveries are signed with, shown this once.")


class AttemptView(BaseModel):
    """One try of a delivery."""

    time: datetime
    status_code: int | None = Field(description="The receiver's answer; null when there was none.")
    error: str = Field(description="Empty when the receiver took it.")
    latency_ms: float = Field(description="Milliseconds from the request to the answer, or to giving up.")
    request_headers: dict[str, str] = Field(description="Headers that were sent; of the signature only its version.")
    response_body: str = Field(description="The first 4 KiB of the answer.")


class DeliveryView(BaseModel):
    """An event on its way to an endpoint."""

    id: str
    endpoint_id: str
    event_id: str
    event_type: str
    status: DeliveryStatus
    attempts: int = Field(description="Tries so far.")
    replay: int = Field(description="How often the event has been replayed to this endpoint; 0 for its first delivery.")
    created_at: datetime
    next_attempt_at: datetime | None = Field(description="When it is tried (again); null when it is done.")
    finished_at: datetime | None = Field(description="When it was delivered or given up; null while it is pending.")
    last_status_code: int | None = None
    last_error: str = ""
    last_latency_ms: float | None = None


class DeliveryDetailView(DeliveryView):
    """A delivery with its message and every try."""

    message: dict[str, Any] = Field(description="The event as it is delivered, before the template shapes it.")
    tries: list[AttemptView] = Field(description="Every try, in the order in which they were made.")
