"""What the API and the pages show of events, and the envelope of every list."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, Field

Item = TypeVar("Item")


class EventView(BaseModel):
    """One event of the timeline."""

    id: str
    name: str
    time: datetime
    severity: str = Field(description="info, warn, error or fatal.")
    body: str
    attributes: dict[str, Any]
    resource: dict[str, Any]
    agent_id: str | None
    instance_id: str | None
    agent_type: str | None
    environment_name: str | None


class Page(BaseModel, Generic[Item]):
    """The envelope of every list: items and the cursor of the next page (null at the end)."""

    items: list[Item]
    next_cursor: str | None = None
