"""Provisioning over HTTP: ``POST /api/v1/agent/provision`` and ``GET /api/v1/agent/types``.

The router works alone in any FastAPI application. There it keeps what it provisions in memory and is open to whoever can reach it:
the host application guards it (``include_router(router, dependencies=[…])``) and may hand in, on ``app.state``, an ``agent_store``
that keeps agents and an ``agent_platform_url`` that printed commands carry (by default the URL under which the request arrived).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from connectors.agent_factory import AgentFactory
from connectors.api.agent_store import AgentStore, MemoryAgentStore, TokenTerms
from connectors.core.agent_config import AgentConfig
from connectors.core.errors import ConfigError, ConnectorError, MissingExtraError, UnknownAgentTypeError

ENVIRONMENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""1 to 63 letters, digits, dots, underscores and dashes, beginning with a letter or digit."""


class ProvisionRequest(BaseModel):
    """What to provision. Checked in :func:`provision`, so that every refusal names its field in one voice."""

    model_config = {
        "extra": "forbid",
        "json_schema_extra": {
            "examples": [
                {"agent_type": "kubernetes", "environment_name": "prod-cluster", "config": {"namespace": "monitoring", "replicas": 2}},
                {"agent_type": "server", "environment_name": "prod", "token_ttl": 604_800, "token_max_uses": 25},
            ]
        },
    }

    agent_type: str = Field(description="One of the types that GET /api/v1/agent/types lists.", examples=["kubernetes"])
    environment_name: str = Field(description="Name of the environment: letters, digits, '.', '_', '-'.", examples=["prod-cluster"])
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="Options of the type, by its config_schema.",
        examples=[{"namespace": "monitoring", "replicas": 2}],
    )
    token_ttl: Annotated[float | None, Field(ge=60, le=5 * 365 * 86_400)] = Field(
        default=None, description="Seconds until the enrolment token expires; by default as the platform is set."
    )
    token_max_uses: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=1, description="Machines (for kubernetes: clusters) that the token may enrol. The same one again is free."
    )


class Alternative(BaseModel):
    """Another way to deploy the agent."""

    title: str
    content: str = Field(description="A command or a file to paste; it may hold the token.")


class ProvisionResponse(BaseModel):
    """The agent that was provisioned, and how to deploy it."""

    agent_type: str
    environment_name: str
    deployment_command: str = Field(description="Paste this where the agent shall run.")
    instructions: str = Field(description="Numbered steps for a person.")
    agent_token: str = Field(description="The enrolment token, shown this once: agent_<environment>_<random>.")
    agent_id: str = Field(description="Its id, which does not change.")
    uninstall_command: str = Field(description="Removes the agent and all it left; needs no token.")
    expires_at: datetime | None = Field(default=None, description="When the enrolment token expires; null for never.")
    alternatives: list[Alternative] = Field(default_factory=list, description="Other ways to deploy the agent, if the type has any.")


class AgentType(BaseModel):
    """A type of agent."""

    name: str = Field(description="What provisioning takes as agent_type.")
    description: str
    runs_on: list[str] = Field(description="What it runs on, for people, such as Docker Engine 20.10 or newer.")
    config_schema: dict[str, Any] = Field(description="JSON Schema of the config that provisioning takes.")
    available: bool = Field(description="Whether this platform has the packages that the type needs.")
    reason: str = Field(default="", description="Why it is not available.")


class AgentTypes(BaseModel):
    """All types of agent."""

    types: list[AgentType]


def get_agent_store(request: Request) -> AgentStore:
    """The application's store; a lone router's own memory where the application has none."""
    state = request.app.state
    if not hasattr(state, "agent_store"):
        state.agent_store = MemoryAgentStore()
    store: AgentStore = state.agent_store
    return store


def get_platform_url(request: Request) -> str:
    """The URL that printed commands carry."""
    return str(getattr(request.app.state, "agent_platform_url", "") or request.base_url).rstrip("/")


router = APIRouter(prefix="/api/v1/agent", tags=["agent"])


@router.post(
    "/provision", response_model=ProvisionResponse, responses={422: {"description": "Unknown type, option or bad name (problem+json)."}}
)
async def provision(
    body: ProvisionRequest,
    request: Request,
    store: Annotated[AgentStore, Depends(get_agent_store)],
    platform_url: Annotated[str, Depends(get_platform_url)],
) -> ProvisionResponse | JSONResponse:
    """Create an agent and hand out the command that deploys it."""
    try:
        return await deploy(body, store, platform_url, getattr(request.state, "actor", "anonymous"))
    except ConnectorError as exc:
        return refusal(exc)


async def deploy(body: ProvisionRequest, store: AgentStore, platform_url: str, actor: object) -> ProvisionResponse:
    """Create the agent that ``body`` asks for, in the name of ``actor``, and plan how it is deployed.

    Raises:
        ConnectorError: nothing was created; ``field`` names what was refused (``environment_name``, ``config.<option>``).
    """
    agent_class = AgentFactory.agent_class(body.agent_type)
    if not ENVIRONMENT_NAME.fullmatch(body.environment_name):
        raise ConfigError(
            "environment_name must be 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit",
            field="environment_name",
        )
    config = _validated(agent_class.config_class, body.config)
    # Planned once with a stand-in token: a command that cannot be planned must not leave an agent behind.
    agent_class(platform_url, "agent_planned", config)
    terms = TokenTerms(body.token_ttl, body.token_max_uses)
    asked = (terms,) if terms != TokenTerms() else ()  # a store that knows of no terms serves whoever asks for none
    provisioned = await store.create_agent(body.agent_type, body.environment_name, body.config, actor, *asked)
    agent = agent_class(platform_url, provisioned.token, config)
    return ProvisionResponse(
        agent_type=body.agent_type,
        environment_name=body.environment_name,
        deployment_command=agent.get_deployment_command(),
        instructions=agent.get_instructions(),
        agent_token=provisioned.token,
        agent_id=provisioned.agent_id,
        uninstall_command=agent.get_uninstall_command(),
        expires_at=provisioned.expires_at,
        alternatives=[Alternative(title=title, content=content) for title, content in agent.get_alternatives()],
    )


@router.get("/types")
async def types() -> AgentTypes:
    """All types of agent, where they run, and the JSON Schema of their config."""
    return AgentTypes(types=[describe(name) for name in AgentFactory.supported_types()])


def refusal(exc: ConnectorError) -> JSONResponse:
    """A 422 (501 for a missing extra) in the platform's one shape of errors, so that a lone router speaks it too."""
    status = 501 if isinstance(exc, MissingExtraError) else 422
    title = {UnknownAgentTypeError: "Unknown agent type", MissingExtraError: "Agent type not installed"}.get(
        type(exc), "Invalid configuration"
    )
    document: dict[str, Any] = {
        "type": f"urn:incident-rca:error:{exc.code}",
        "title": title,
        "status": status,
        "code": exc.code,
        "detail": exc.reason,
        "retryable": exc.retryable,
    }
    if exc.field:
        document["errors"] = [{"field": exc.field, "message": exc.reason}]
    return JSONResponse(document, status, media_type="application/problem+json")


def _validated(config_class: type[AgentConfig], config: Mapping[str, Any]) -> AgentConfig:
    """The configuration, or a ConfigError whose field is ``config.<key>``."""
    try:
        TypeAdapter(config_class).validate_python(dict(config))
        return config_class.from_mapping(config)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "unexpected_keyword_argument":
            known = ", ".join(config_class.options())
            raise ConfigError(f"config.{key} is not an option of this type; known options: {known}", field=f"config.{key}") from exc
        raise ConfigError(f"config.{key}: {first['msg']}", field=f"config.{key}") from exc
    except ConfigError as exc:
        raise ConfigError(f"config.{exc.reason}", field=f"config.{exc.field}") from exc


def describe(name: str) -> AgentType:
    """The type of that name, or why it is not available."""
    try:
        agent_class = AgentFactory.agent_class(name)
    except MissingExtraError as exc:
        return AgentType(name=name, description="", runs_on=[], config_schema={}, available=False, reason=exc.reason)
    return AgentType(
        name=name,
        description=agent_class.description,
        runs_on=list(agent_class.runs_on),
        config_schema=TypeAdapter(agent_class.config_class).json_schema(),
        available=True,
    )
