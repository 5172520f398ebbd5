"""What the API and the pages show of the audit log."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field


class AuditEntry(BaseModel):
    """One act: who did what to what, from where, and what that changed."""

    id: str
    time: datetime
    actor_kind: str = Field(description="api-key, session, user, agent, system or anonymous.")
    actor_id: str = Field(description="Id of the API key or agent, or subject of the user.")
    actor_name: str
    action: str = Field(description="Noun and verb: agent.provision, token.revoke, webhook.update …")
    target_kind: str = Field(description="What was acted upon: agent, token, webhook …")
    target_id: str
    target_name: str
    environment_name: str | None = Field(description="Environment of the target; null where it belongs to none.")
    before: dict[str, Any] | None = Field(description="What the act changed, as it was; secrets replaced.")
    after: dict[str, Any] | None = Field(description="The same as it is now.")
    outcome: Literal["done", "refused"]
    reason: str = Field(description="Why it was refused, or what the actor gave as a reason.")
    client_address: str = Field(description="Address that the request came from; empty for acts of the platform itself.")
    user_agent: str = Field(description="User-Agent header of the request; empty where there was none.")
