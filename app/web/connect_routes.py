"""The Connect pages: choose a type, name the environment and its options, paste the command, watch it arrive."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from app.auth.service import Identity, Role
from app.errors import FieldError, NotFoundError
from app.fleet.views import Status
from app.platform import Platform, environment_aware
from app.web.connect import LIFETIMES, OptionField, option_fields, read_config
from app.web.forms import Form, actor_of, submitted
from app.web.rendering import PageRoute, PlatformDependency, Viewer, render
from connectors.agent_factory import AgentFactory
from connectors.api.agent_routes import ENVIRONMENT_NAME, AgentType, ProvisionRequest, deploy, describe
from connectors.core.errors import ConnectorError

router = APIRouter(route_class=PageRoute, include_in_schema=False)

ENVIRONMENTS_OFFERED = 200
TITLES = {"docker": "Docker host", "kubernetes": "Kubernetes cluster", "server": "Server"}
"""What people call a type; others go by their names."""


@router.get("/connect")
@environment_aware
async def choose_type(request: Request, viewer: Viewer) -> Response:
    """The types of agents."""
    viewer.require(Role.OPERATOR)
    return render(request, "connect.html", types=[describe(name) for name in AgentFactory.supported_types()], titles=TITLES)


@router.get("/connect/agents/{agent_id}")
async def progress(request: Request, platform: PlatformDependency, viewer: Viewer, agent_id: str) -> Response:
    """How far the deployment of an agent has come, until its metrics arrive."""
    shown = await _progress(platform, agent_id)
    return render(request, "connect_progress.html", may_connect=viewer.role >= Role.OPERATOR, **shown)


@router.get("/connect/{agent_type}")
@environment_aware
async def show_form(request: Request, platform: PlatformDependency, viewer: Viewer, agent_type: str) -> Response:
    """The form for a new agent of a type."""
    viewer.require(Role.OPERATOR)
    return _form_page(request, platform, viewer, _described(agent_type), None, [])


@router.post("/connect/{agent_type}")
@environment_aware
async def connect(request: Request, platform: PlatformDependency, viewer: Viewer, agent_type: str) -> Response:
    """Provision an agent and show its command, this once."""
    form = await submitted(request, platform, viewer, Role.OPERATOR)
    described = _described(agent_type)
    config, errors = read_config(agent_type, option_fields(agent_type), form)
    errors = [*_own_errors(form, viewer), *errors]
    if errors:
        return _form_page(request, platform, viewer, described, form, errors)
    try:
        body = ProvisionRequest(
            agent_type=agent_type,
            environment_name=form.text("environment_name"),
            config=config,
            token_ttl=LIFETIMES[form.text("token_ttl")][1],
            token_max_uses=int(form.text("token_max_uses", "1")),
        )
        made = await deploy(body, platform.fleet, platform.settings.resolved_public_url(), actor_of(request, viewer))
    except ValidationError as exc:
        errors = [FieldError(str(e["loc"][0]), str(e["msg"])) for e in exc.errors()]
        return _form_page(request, platform, viewer, described, form, errors)
    except ConnectorError as exc:
        return _form_page(request, platform, viewer, described, form, [FieldError(exc.field or "", exc.reason)])
    agent = AgentFactory.create_agent(agent_type, platform.settings.resolved_public_url(), made.agent_token, config)
    in_foreground = getattr(agent, "get_run_command", None)
    return render(
        request,
        "connect_command.html",
        201,
        made=made,
        title=TITLES.get(agent_type, agent_type),
        run_command=in_foreground() if in_foreground else "",
        steps=_steps(made.instructions),
        uses=body.token_max_uses,
        **await _progress(platform, made.agent_id),
    )


async def _progress(platform: Platform, agent_id: str) -> dict[str, Any]:
    """What the region that follows a deployment shows."""
    agent = await platform.fleet.get_agent(agent_id)
    arrived = next((one for one in agent.instances if one.status is Status.HEALTHY), next(iter(agent.instances), None))
    return {"agent": agent, "instance": arrived, "funnel": await platform.fleet.deployment(agent_id)}


def _described(agent_type: str) -> AgentType:
    if agent_type not in AgentFactory.supported_types():
        raise NotFoundError(f"there is no agent type {agent_type[:40]!r}")
    AgentFactory.agent_class(agent_type)  # says so where it is not installed
    return describe(agent_type)


def _own_errors(form: Form, viewer: Identity) -> list[FieldError]:
    """What is wrong with the fields that every type has."""
    name, errors = form.text("environment_name"), []
    if not ENVIRONMENT_NAME.fullmatch(name):
        rule = "must be 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit"
        errors.append(FieldError("environment_name", rule))
    elif not viewer.sees(name):
        errors.append(FieldError("environment_name", f"must be one that your key is for: {', '.join(viewer.environments)}"))
    if form.text("token_ttl") not in LIFETIMES:
        errors.append(FieldError("token_ttl", "must be one of the offered lifetimes"))
    if not form.text("token_max_uses", "1").isdecimal():
        errors.append(FieldError("token_max_uses", "must be a whole number"))
    return errors


def _form_page(
    request: Request, platform: Platform, viewer: Identity, described: AgentType, form: Form | None, errors: list[FieldError]
) -> Response:
    fields = option_fields(described.name)
    messages: dict[str, str] = {}
    for error in errors:
        messages.setdefault(error.field, error.message)
    known = {"environment_name", "token_ttl", "token_max_uses", *(field.field for field in fields)}
    return render(
        request,
        "connect_form.html",
        422 if errors else 200,
        type=described,
        title=TITLES.get(described.name, described.name),
        form=form,
        fields=[field for field in fields if not field.advanced],
        advanced=[field for field in fields if field.advanced],
        advanced_open=_any_refused(fields, messages),
        errors=messages,
        other_errors=[message for field, message in messages.items() if field not in known],
        lifetimes=LIFETIMES,
        environments=sorted(platform.fleet.environment_names(viewer.sees))[:ENVIRONMENTS_OFFERED],
        machines="clusters" if described.name == "kubernetes" else "machines",
    )


def _any_refused(fields: list[OptionField], messages: dict[str, str]) -> bool:
    return any(field.advanced and field.field in messages for field in fields)


def _steps(instructions: str) -> list[str]:
    """The instructions' numbered lines, without their numbers; a line without one belongs to the step before."""
    steps: list[str] = []
    for line in filter(None, map(str.strip, instructions.splitlines())):
        number, dot, text = line.partition(". ")
        if dot and number.isdecimal():
            steps.append(text)
        elif steps:
            steps[-1] += f" {line}"
        else:
            steps.append(line)
    return steps
