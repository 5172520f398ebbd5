"""The AgentStore port: where provisioning keeps the agents it makes."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class ProvisionedAgent:
    """What a store made: the agent's id, its enrolment token's text (shown once) and when that expires."""

    agent_id: str
    token: str
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """How a new enrolment token may be used: seconds until it expires (None: as the store has it), and machines that it enrols."""

    lifetime: float | None = None
    max_uses: int = 1


DEFAULT_TERMS = TokenTerms()


class AgentStore(Protocol):
    """Keeps provisioned agents. ``tests/contract/test_agent_stores.py`` says what every store does."""

    async def create_agent(
        self, agent_type: str, environment_name: str, config: Mapping[str, Any], actor: object, token: TokenTerms = DEFAULT_TERMS
    ) -> ProvisionedAgent:
        """A new agent of these; two calls make two agents with different tokens. ``actor`` is who asks; as text, a name."""
        ...


@dataclass(slots=True)
class MemoryAgentStore:
    """A store for a router that stands alone: everything is gone when the process ends."""

    agents: dict[str, tuple[str, str, dict[str, Any]]] = field(default_factory=dict)

    async def create_agent(
        self,
        agent_type: str,
        environment_name: str,
        config: Mapping[str, Any],
        actor: object,  # noqa: ARG002 - a lone router knows no actors
        token: TokenTerms = DEFAULT_TERMS,  # noqa: ARG002 - nor does it enrol anybody
    ) -> ProvisionedAgent:
        """A new agent, whose token never expires by itself."""
        agent_id = str(uuid.uuid4())
        self.agents[agent_id] = (agent_type, environment_name, dict(config))
        return ProvisionedAgent(agent_id, f"agent_{environment_name}_{secrets.token_urlsafe(24)}")
