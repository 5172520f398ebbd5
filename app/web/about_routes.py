"""The About page."""

from __future__ import annotations

import asyncio
import platform as machine

from fastapi import APIRouter, Request, Response

from app.platform import environment_aware
from app.web.about import browser_libraries, python_libraries
from app.web.rendering import PageRoute, PlatformDependency, Viewer, render, static_directory

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/about")
@environment_aware
async def about(request: Request, platform: PlatformDependency, viewer: Viewer) -> Response:
    """The version, what the platform is made of, and where its interfaces are."""
    return render(
        request,
        "about.html",
        python_version=machine.python_version(),
        database=platform.settings.resolved_database_url().partition("+")[0].partition(":")[0],
        public_url=platform.settings.resolved_public_url(),
        browser=await asyncio.to_thread(browser_libraries, static_directory()),
        libraries=await asyncio.to_thread(python_libraries),
        who=viewer,
    )
