"""How far a deployment command has come: installers tell, people and pages ask."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.api.asgi import BodyLimits, read_body
from app.api.dependencies import PlatformDependency, PrincipalDependency, require
from app.api.parameters import AgentId
from app.auth.service import Role
from app.errors import FieldError, InvalidRequestError
from app.fleet.funnel import DeploymentStep, FunnelView

router = APIRouter(prefix="/api/v1", tags=["fleet"], dependencies=[Depends(require(Role.VIEWER))])
open_router = APIRouter(prefix="/api/v1/agent", tags=["agent"])
"""Routes that an installer asks with the agent's token or credential."""

BODY_LIMITS = BodyLimits(max_body_bytes=16_384, max_decompressed_bytes=16_384)


class Progress(BaseModel):
    """What an installer tells. Longer texts are shortened, not refused: they come from a script in trouble."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"step": "installed", "host": "web-01"},
                {"step": "failed", "host": "web-02", "check": "preflight tools", "reason": "tar is not installed"},
            ]
        },
    )

    step: Literal["downloaded", "installed", "failed"]
    host: Annotated[str, Field(max_length=4096, description="Name of the host.")] = ""
    check: Annotated[str, Field(max_length=4096, description="Of a failure: the preflight item or step that failed.")] = ""
    reason: Annotated[str, Field(max_length=16_384, description="Of a failure: what went wrong.")] = ""


_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": Progress.model_json_schema()}}}}


@open_router.post("/progress", status_code=204, openapi_extra=_BODY)
async def tell_progress(request: Request, platform: PlatformDependency, principal: PrincipalDependency) -> None:
    """Tell how far the installation of an agent is, or why it failed; with its enrolment token or credential."""
    body = await read_body(request.scope, request.receive, BODY_LIMITS)
    try:
        told = Progress.model_validate_json(body)
    except ValidationError as exc:
        errors = [FieldError(".".join(map(str, e["loc"])) or "body", str(e["msg"])) for e in exc.errors()]
        raise InvalidRequestError("the request is not valid", errors=errors) from exc
    failed = told.step == "failed"
    await platform.fleet.deployments.tell(
        principal.agent_id,
        DeploymentStep(told.step),
        host=told.host,
        check=told.check if failed else "",
        reason=told.reason if failed else "",
        client=request.client.host if request.client else "",
    )


@router.get("/agents/{agent_id}/deployment")
async def get_deployment(agent_id: AgentId, platform: PlatformDependency) -> FunnelView:
    """How far the agent's deployment command has come: issued, downloaded, installed, enrolled, first metric; and why it stopped."""
    return await platform.fleet.deployment(agent_id)
