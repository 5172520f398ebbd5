"""The platform's services, wired together: what routes and pages reach through ``request.app.state.platform``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from app.auth.service import Identity
from app.errors import ForbiddenError, NotFoundError

if TYPE_CHECKING:
    from app.audit.service import AuditService
    from app.auth.oidc import OidcProvider
    from app.auth.service import AuthService
    from app.background import Jobs
    from app.db.session import Database
    from app.events.service import EventService
    from app.events.stream import LiveStream
    from app.fleet.saved_views import SavedViews
    from app.fleet.service import FleetService
    from app.groups.bulk import BulkService
    from app.groups.service import GroupService
    from app.idempotency import IdempotencyStore
    from app.releases.service import PackageService
    from app.settings import Settings
    from app.telemetry.clusters import ClusterService
    from app.telemetry.containers import ContainerService
    from app.telemetry.hosts import HostService
    from app.telemetry.store import MetricStore
    from app.webhooks.service import WebhookService


@dataclass(slots=True)
class Platform:
    """One running platform. Built by ``app.main``; closed by it in reverse order."""

    settings: Settings
    database: Database
    auth: AuthService
    audit: AuditService
    events: EventService
    fleet: FleetService
    metrics: MetricStore
    containers: ContainerService
    hosts: HostService
    clusters: ClusterService
    webhooks: WebhookService
    groups: GroupService
    bulk: BulkService
    saved_views: SavedViews
    live: LiveStream
    jobs: Jobs
    packages: PackageService
    idempotency: IdempotencyStore
    oidc: OidcProvider | None = None

    def check_visible(self, identity: Identity, scope: Mapping[str, Any]) -> None:
        """Do nothing, or refuse a request of somebody whose role holds in some environments only.

        Whatever is below an agent or an instance (``agent_id``, ``instance_id`` in its path) is there or not there with it. Any other route
        must be marked :func:`environment_aware` and look for itself: what nobody thought of is refused.

        Args:
            identity: who asks.
            scope: the request's ASGI scope, routed.

        Raises:
            NotFoundError: the agent or instance is in no environment that may be seen.
            ForbiddenError: the route is for those whose role holds everywhere.
        """
        if identity.everywhere:
            return
        parameters: Mapping[str, str] = scope.get("path_params") or {}
        registry = self.fleet.registry
        if "agent_id" in parameters:
            agent = registry.agents.get(parameters["agent_id"])
            if agent is None or not identity.sees(agent.environment_name):
                raise NotFoundError(f"there is no agent {parameters['agent_id']}")
        elif "instance_id" in parameters:
            instance = registry.instances.get(parameters["instance_id"])
            if instance is None or not identity.sees(instance.agent.environment_name):
                raise NotFoundError(f"there is no instance {parameters['instance_id']}")
        elif not getattr(scope.get("endpoint"), _AWARE, False):
            raise ForbiddenError(f"the key {identity.name!r} is limited to some environments, and this is not of one")


_AWARE = "irca_environment_aware"
_Endpoint = TypeVar("_Endpoint", bound=Callable[..., Any])


def environment_aware(endpoint: _Endpoint) -> _Endpoint:
    """Mark a route's function: it shows and does only what the identity that asks may see."""
    setattr(endpoint, _AWARE, True)
    return endpoint
