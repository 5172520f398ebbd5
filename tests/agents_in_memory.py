"""Agents and instances as the registry holds them, made by hand."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from platform_fixtures import START

from app.fleet.registry import Agent, Instance
from app.fleet.views import Status


def agent(environment: str, agent_type: str = "server", **labels: str) -> Agent:
    return Agent(str(uuid.uuid4()), agent_type, environment, {}, labels, datetime.fromtimestamp(START - 3600, UTC))


def with_instance(made: Agent, status: Status = Status.HEALTHY, silence: float = 5.0, version: str = "0.2.0", reason: str = "") -> Instance:
    name = f"{made.environment_name}-{len(made.instances) + 1}"
    heard = START - silence
    one = Instance(
        str(uuid.uuid4()), made, "f", name, version, status=status, status_reason=reason, last_seen=heard, heard=heard, interval=30.0
    )
    made.instances[one.id] = one
    return one


def everybody(_environment: str) -> bool:
    return True
