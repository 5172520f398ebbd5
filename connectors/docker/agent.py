"""Former home of ``DockerAgent``, which lives in :mod:`connectors.docker.docker_agent` now. Using this one warns; it goes in 1.0.0."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from connectors.docker.docker_agent import DockerAgent

__all__ = ["DockerAgent"]

REMOVED_IN = "1.0.0"


def __getattr__(name: str) -> Any:
    if name != "DockerAgent":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"connectors.docker.agent.DockerAgent is deprecated and will be removed in {REMOVED_IN}: "
        "import it from connectors.docker.docker_agent, or ask AgentFactory for the type 'docker'",
        DeprecationWarning,
        stacklevel=2,
    )
    from connectors.docker.docker_agent import DockerAgent as current  # noqa: PLC0415, N813 - imported by whoever asks, not by this module

    return current
