"""Docker agents as the factory makes them."""

from __future__ import annotations

from connectors.agent_factory import AgentFactory


def agent(**config):
    return AgentFactory.create_agent("docker", "http://localhost:8000", "token-123", config)
