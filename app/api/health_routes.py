"""Liveness, readiness, and the platform's own metrics."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.api.dependencies import PlatformDependency, require
from app.api.statistics import platform_registry
from app.auth.service import Role
from app.errors import PlatformError
from connectors._version import __version__

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether the process answers. Preflight knows the platform by this document."""
    return {"status": "ok", "service": "incident-rca", "version": __version__}


@router.get("/readyz", responses={503: {"description": "Not ready; the checks say why."}})
async def readyz(platform: PlatformDependency) -> JSONResponse:
    """Whether it can do its work: database, metric store and background jobs, each with its reason when not."""
    checks: dict[str, str] = {}
    for name, check in (("database", platform.database.ping), ("metrics", platform.metrics.statistics)):
        try:
            await check()
            checks[name] = "ok"
        except PlatformError as exc:
            checks[name] = exc.reason
    checks |= {f"job {name}": reason for name, reason in platform.jobs.failures().items()}
    ready = all(v == "ok" for v in checks.values())
    return JSONResponse({"status": "ready" if ready else "not ready", "checks": checks}, 200 if ready else 503)


@router.get(
    "/metrics",
    dependencies=[Depends(require(Role.VIEWER))],
    response_class=PlainTextResponse,
    responses={200: {"description": "Prometheus' text format."}},
)
async def metrics(request: Request, platform: PlatformDependency) -> Response:
    """The platform about itself, in the Prometheus text format."""
    statistics = await platform.metrics.statistics()
    registry = platform_registry(platform, statistics, request.app.state.endpoints)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
