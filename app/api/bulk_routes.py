"""One act on many agents or instances."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from app.api.dependencies import ActorDependency, IdentityDependency, PlatformDependency, require
from app.auth.service import Role
from app.fleet.listing import AgentFilter
from app.fleet.maintenance import LONGEST
from app.fleet.views import Status
from app.groups.bulk import Act, BulkResult, Selection, Work
from app.platform import environment_aware

router = APIRouter(prefix="/api/v1", tags=["fleet"], dependencies=[Depends(require(Role.OPERATOR))])

Id = Annotated[str, Field(min_length=1, max_length=100)]
Text = Annotated[str | None, Field(max_length=500)]


class BulkFilter(BaseModel):
    """Agents, as the list of agents filters them; one without any part means every agent."""

    model_config = {"extra": "forbid"}

    status: Status | None = None
    agent_type: Text = None
    environment_name: Text = None
    version: Text = None
    label: Annotated[list[str], Field(max_length=20, description="key=value, or key for any value; all must hold.")] = []
    search: Text = Field(None, description="Looks in environment, type, labels and instance names.")


class BulkActRequest(BaseModel):
    """An act, and whom it is meant for: agent_ids, instance_ids or a filter of agents, one of the three."""

    model_config = {
        "extra": "forbid",
        "json_schema_extra": {
            "examples": [
                {"act": "archive", "filter": {"status": "offline", "label": ["team=web"]}, "dry_run": True},
                {"act": "add-label", "agent_ids": ["0b8b6a3e-6a1b-4c35-9d0e-2f6f5f1f8a11"], "label": "tier=front"},
                {"act": "maintenance", "filter": {"environment_name": "prod"}, "reason": "kernel updates", "duration": 7200},
            ]
        },
    }

    act: Act
    agent_ids: Annotated[list[Id], Field(max_length=1000)] = []
    instance_ids: Annotated[list[Id], Field(max_length=1000, description="For acts on instances only.")] = []
    filter: BulkFilter | None = None
    label: Annotated[str, Field(max_length=400, description="For add-label team=web, for remove-label team or team=web.")] = ""
    reason: Annotated[str, Field(max_length=500, description="For maintenance: why.")] = ""
    duration: Annotated[float, Field(ge=0, le=LONGEST, description="For maintenance: seconds that it lasts from now.")] = 0.0
    dry_run: Annotated[bool, Field(description="Only say what would be done.")] = False


@router.post("/instances/bulk")
@environment_aware
async def act_on_many(
    body: BulkActRequest, platform: PlatformDependency, identity: IdentityDependency, actor: ActorDependency
) -> BulkResult:
    """Archive, revive or label many, revoke their credentials, or mute them: those for which it can be done; each refusal is told.

    What is done is done in one transaction. Acts on instances reach every instance of the agents that are selected.
    """
    work = Work(body.act, body.label, body.reason, body.duration)
    matching = None
    if body.filter is not None:
        chosen = body.filter
        matching = AgentFilter(
            chosen.status, chosen.agent_type, chosen.environment_name, chosen.version, tuple(chosen.label), chosen.search, identity.sees
        )
    selection = Selection(body.agent_ids, body.instance_ids, matching)
    if body.dry_run:
        return platform.bulk.plan(work, selection, identity).result(dry_run=True)
    return await platform.bulk.perform(work, selection, actor, identity)
