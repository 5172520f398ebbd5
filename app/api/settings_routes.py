"""The platform's settings in effect, what it stores and how its jobs fare. Read-only: settings come from the environment."""

from __future__ import annotations

import time

from fastapi import APIRouter, Depends

from app.api.dependencies import PlatformDependency, require
from app.auth.service import Role
from app.installation import InstallationView, installation

router = APIRouter(prefix="/api/v1", tags=["settings"], dependencies=[Depends(require(Role.ADMIN))])


@router.get("/settings")
async def get_settings(platform: PlatformDependency) -> InstallationView:
    """Settings in effect (secrets only as set or not set), storage, retention and background jobs."""
    return await installation(platform, time.time())
