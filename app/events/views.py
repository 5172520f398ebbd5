"""What the API and the pages show of events, and the envelope of every list."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, Field

Item = TypeVar("Item")


class EventView(BaseModel):
    """One event of the timeline."""

    id: str
    name: str = Field(description="Type of the event: an OTel event name such as irca.instance.status_changed.")
    time: datetime = Field(description="When it happened, by the clock of whoever observed it.")
    severity: str = Field(description="info, warn, error or fatal.")
    body: str = Field(description="What happened, in a sentence for people.")
    attributes: dict[str, Any] = Field(description="What is particular to this type of event.")
    resource: dict[str, Any] = Field(description="OTel resource attributes of what it happened to.")
    agent_id: str | None = Field(description="Null where it belongs to none.")
    instance_id: str | None = Field(description="Null where it belongs to none.")
    agent_type: str | None = Field(description="Null where it belongs to none.")
    environment_name: str | None = Field(description="Null where it belongs to none.")


class Page(BaseModel, Generic[Item]):
    """The envelope of every list: items and the cursor of the next page (null at the end)."""

    items: list[Item]
    next_cursor: str | None = Field(None, description="What to ask for the next page with, as cursor; null at the end.")
