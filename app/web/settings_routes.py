"""The Settings page: what is in effect, what is stored, how the background jobs fare. To be read, not changed."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from app.auth.service import Role
from app.installation import SettingView, installation
from app.web.formats import duration, format_value
from app.web.rendering import PageRoute, PlatformDependency, Viewer, render

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/settings")
async def settings(request: Request, platform: PlatformDependency, viewer: Viewer) -> Response:
    """Everything that the platform is set to, for administrators of all environments."""
    viewer.require(Role.ADMIN)
    found = await installation(platform, time.time())
    budget = found.storage.metric_store_budget
    return render(
        request,
        "settings.html",
        found=found,
        storage=found.storage,
        words=_in_words,
        size=lambda count: format_value(float(count), "bytes"),
        number=lambda count: format_value(float(count), "number"),
        duration=duration,
        used=min(1.0, found.storage.metric_store_bytes / budget),
        failing=[job for job in found.jobs if job.failure],
        settings=platform.settings,
    )


def _in_words(setting: SettingView) -> str:
    """A duration or size as people say it; empty where the value says it."""
    if setting.kind == "seconds" and float(setting.value) >= 60:  # noqa: PLR2004 - below that seconds say it
        return duration(float(setting.value))
    if setting.kind == "bytes":
        return format_value(float(setting.value), "bytes")
    return ""
