"""The provisioning routes, under the path that earlier integrations import."""

from connectors.api.agent_routes import router

__all__ = ["router"]
