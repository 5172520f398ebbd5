"""Maintenance windows: times in which events of some instances are on record and nobody is told."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from app.api.dependencies import ActorDependency, Cursor, IdentityDependency, Limit, PlatformDependency, require
from app.api.parameters import WindowId
from app.auth.service import Role
from app.events.views import Page
from app.fleet.maintenance import LONGEST, MaintenanceSelector, MaintenanceView, WindowSpec, WindowState
from app.platform import environment_aware

router = APIRouter(prefix="/api/v1/maintenance-windows", tags=["maintenance"], dependencies=[Depends(require(Role.VIEWER))])
_operator = [Depends(require(Role.OPERATOR))]


class MaintenanceRequest(BaseModel):
    """A window to make."""

    model_config = {
        "extra": "forbid",
        "json_schema_extra": {
            "examples": [
                {"reason": "kernel updates", "selector": {"environments": ["prod-*"], "labels": {"team": "shop"}}, "duration": 7200}
            ]
        },
    }

    reason: Annotated[str, Field(min_length=1, max_length=500, description="Why; others see it beside the mark.")]
    selector: MaintenanceSelector
    duration: Annotated[float, Field(gt=0, le=LONGEST, description="Seconds that it lasts.")]
    starts_at: datetime | None = Field(None, description="When it begins, with its zone; now by default.")


@router.get("")
@environment_aware
async def list_windows(
    platform: PlatformDependency,
    identity: IdentityDependency,
    cursor: Cursor = None,
    limit: Limit = 50,
    state: Annotated[WindowState | None, Query(description="Only windows in this state.")] = None,
) -> Page[MaintenanceView]:
    """Maintenance windows, the latest first."""
    return platform.fleet.maintenance.list_windows(identity, cursor, limit, state=state)


@router.post("", status_code=201, dependencies=_operator)
@environment_aware
async def create_window(
    body: MaintenanceRequest, platform: PlatformDependency, identity: IdentityDependency, actor: ActorDependency
) -> MaintenanceView:
    """Make a window: while it lasts, events of the instances that it selects are marked ``irca.muted`` and no webhook is told."""
    spec = WindowSpec(body.reason, body.selector, body.duration, body.starts_at)
    return await platform.fleet.maintenance.create(spec, actor, identity)


@router.get("/{window_id}")
@environment_aware
async def get_window(window_id: WindowId, platform: PlatformDependency, identity: IdentityDependency) -> MaintenanceView:
    """One window."""
    return platform.fleet.maintenance.get(window_id, identity)


@router.post("/{window_id}/end", dependencies=_operator)
@environment_aware
async def end_window(
    window_id: WindowId, platform: PlatformDependency, identity: IdentityDependency, actor: ActorDependency
) -> MaintenanceView:
    """End a window now; one that has not begun is cancelled."""
    return await platform.fleet.maintenance.end(window_id, actor, identity)
