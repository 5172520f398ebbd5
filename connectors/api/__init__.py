"""Provisioning routes for any FastAPI application: ``from connectors.api import router``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from connectors.api.agent_routes import router

__all__ = ["router"]


def __getattr__(name: str) -> Any:
    if name == "router":
        from connectors.api.agent_routes import router as loaded  # noqa: PLC0415 - importing the package must not import FastAPI

        return loaded
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
