"""The platform's services, wired together: what routes and pages reach through ``request.app.state.platform``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.audit.service import AuditService
    from app.auth.service import AuthService
    from app.background import Jobs
    from app.db.session import Database
    from app.events.service import EventService
    from app.events.stream import LiveStream
    from app.fleet.service import FleetService
    from app.settings import Settings
    from app.telemetry.containers import ContainerService
    from app.telemetry.store import MetricStore


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
    live: LiveStream
    jobs: Jobs
