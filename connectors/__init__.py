"""incident-rca connectors: agents that connect environments to the platform. Importing this package pulls in nothing heavy."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from connectors._version import __version__

if TYPE_CHECKING:
    from connectors.agent_factory import AgentFactory
    from connectors.core.agent_config import AgentConfig
    from connectors.core.base_agent import BaseAgent

__all__ = ["AgentConfig", "AgentFactory", "BaseAgent", "__version__"]

_WHERE = {
    "AgentConfig": "connectors.core.agent_config",
    "AgentFactory": "connectors.agent_factory",
    "BaseAgent": "connectors.core.base_agent",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
