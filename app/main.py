"""The composition root: settings in, application out."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp

from app.api import (
    artefact_routes,
    audit_routes,
    bulk_routes,
    chart_routes,
    cluster_routes,
    configuration_routes,
    container_routes,
    deployment_routes,
    event_routes,
    fleet_routes,
    group_routes,
    health_routes,
    history_routes,
    host_routes,
    idempotency,
    key_routes,
    live_routes,
    maintenance_routes,
    package_routes,
    problem_answers,
    prometheus_routes,
    saved_view_routes,
    session_routes,
    settings_routes,
    sign_in_link_routes,
    tap_routes,
    token_routes,
    webhook_routes,
)
from app.api.agent_routes import router as agent_router
from app.api.asgi import BodyLimits, Receive, Scope, Send
from app.api.dependencies import may_provision, require
from app.api.opamp_endpoint import OpampEndpoint
from app.api.otlp_endpoint import OtlpEndpoint
from app.api.security import SecurityHeaders
from app.audit.service import AuditService
from app.auth.oidc import OidcProvider
from app.auth.service import AuthService, Role
from app.background import Jobs
from app.db.session import Database
from app.errors import InvalidRequestError, MethodNotAllowedError, NotFoundError, PlatformError, Problem, StartupError
from app.events.service import EventService
from app.events.stream import LiveStream
from app.fleet.saved_views import SavedViews
from app.fleet.service import FleetService
from app.groups.bulk import BulkService
from app.groups.service import GroupService
from app.idempotency import IdempotencyStore
from app.logs import loggable
from app.platform import Platform, environment_aware
from app.releases.repository import PackageRepository
from app.releases.service import PackageService
from app.settings import Settings
from app.telemetry.clusters import ClusterScope, ClusterService
from app.telemetry.containers import ContainerService
from app.telemetry.embedded.store import EmbeddedMetricStore
from app.telemetry.hosts import HostService
from app.telemetry.otlp_limits import OtlpLimits
from app.telemetry.promql.engine import QueryEngine
from app.telemetry.promql.model import Allowance
from app.web import access_routes as access_pages
from app.web import audit_routes as audit_pages
from app.web import event_routes as event_pages
from app.web import explore_routes as explore_pages
from app.web import group_routes as group_pages
from app.web import routes as web_routes
from app.web import settings_routes as settings_pages
from app.web import token_routes as token_pages
from app.web import webhook_routes as webhook_pages
from app.webhooks.dispatcher import Dispatcher
from app.webhooks.guard import parse_networks
from app.webhooks.sender import WebhookSender
from app.webhooks.service import WebhookService
from app.webhooks.signing import SecretBox
from connectors._version import __version__
from connectors.api import agent_routes
from connectors.core.errors import ConnectorError

_log = logging.getLogger(__name__)


def create_app(settings: Settings | None = None, clock: Callable[[], float] = time.time) -> FastAPI:
    """The platform as an ASGI application; its services start and stop with the application's lifespan.

    After start-up ``app.state.platform`` holds the services and ``app.state.first_run_key`` the text of a generated admin API key
    (None unless this start made one).
    """
    settings = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_platform(settings, clock) as (platform, first_run_key):
            app.state.platform = platform
            app.state.first_run_key = first_run_key
            app.state.agent_store = platform.fleet
            app.state.agent_platform_url = settings.resolved_public_url()
            opamp = OpampEndpoint(platform.fleet.exchange.answer, limits, refuse=platform.fleet.enrolment.refuse)
            otlp = _otlp_endpoint(platform, limits, clock)
            app.state.endpoints = {"opamp": opamp, "otlp": otlp}
            app.state.hot_paths = {"/v1/opamp": opamp, "/v1/metrics": otlp, "/v1/logs": otlp}
            yield

    app = _Application(title="incident-rca", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    limits = BodyLimits(settings.max_body_bytes, settings.max_decompressed_bytes)
    app.tls = settings.resolved_public_url().startswith("https://")
    viewer, operator = [Depends(require(Role.VIEWER))], [Depends(require(Role.OPERATOR))]
    for endpoint in (agent_routes.provision, agent_routes.types):
        environment_aware(endpoint)
    idempotency.creates(agent_routes.provision)
    idempotency.creates(webhook_routes.rotate_secret)
    app.include_router(agent_router, dependencies=[*operator, Depends(may_provision)])
    for router in (
        artefact_routes.router,
        chart_routes.router,
        package_routes.router,
        tap_routes.router,
        fleet_routes.open_router,
        fleet_routes.router,
        token_routes.router,
        cluster_routes.router,
        container_routes.router,
        deployment_routes.open_router,
        deployment_routes.router,
        host_routes.router,
        event_routes.router,
        key_routes.router,
        session_routes.router,
        sign_in_link_routes.router,
    ):
        app.include_router(router)
    app.include_router(live_routes.router, dependencies=viewer)
    app.include_router(prometheus_routes.router, dependencies=viewer)
    for router in (
        history_routes.router,
        maintenance_routes.router,
        bulk_routes.router,
        saved_view_routes.router,
        settings_routes.router,
        audit_routes.router,
        webhook_routes.router,
        group_routes.router,
        configuration_routes.router,
        health_routes.router,
        web_routes.router,
        webhook_pages.router,
        access_pages.router,
        token_pages.router,
        group_pages.router,
        audit_pages.router,
        explore_pages.router,
        event_pages.router,
        settings_pages.router,
    ):
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=web_routes.static_directory()), name="static")
    creating = tuple(idempotency.creating_routes(app.routes))
    app.creating = creating
    app.add_middleware(idempotency.Idempotency, routes=creating, limits=limits)
    for kind in (PlatformError, ConnectorError, RequestValidationError, StarletteHTTPException, Exception):
        app.add_exception_handler(kind, _problem_response)
    return app


@asynccontextmanager
async def open_platform(settings: Settings, clock: Callable[[], float] = time.time) -> AsyncIterator[tuple[Platform, str | None]]:
    """The platform's services, started; closed in reverse order when the block ends.

    Yields:
        The platform, and the text of the first admin API key if this start generated one.

    Raises:
        StartupError: the data directory, the database or the metric store cannot be used; the reason says which and why.
    """
    async with AsyncExitStack() as stack:
        stack.callback(os.close, _claim_directory(settings.data_dir))
        database = Database(settings.resolved_database_url())
        stack.push_async_callback(database.close)
        await database.open()
        live = LiveStream()
        events = EventService(database, live)
        auth = AuthService(database, clock)
        await auth.load()
        first_run_key = await auth.ensure_first_key(settings.admin_api_key.get_secret_value())
        oidc = OidcProvider(settings, clock) if settings.oidc_issuer else None
        if oidc is None:
            await auth.end_user_sessions()
        fleet = FleetService(database, events, live, settings, clock)
        await fleet.load()
        metrics = EmbeddedMetricStore(
            settings.data_dir / "metrics",
            retention=settings.metrics_retention,
            rollup_retention=settings.metrics_rollup_retention,
            disk_budget=settings.metrics_disk_budget,
            clock=clock,
        )
        await metrics.open()
        stack.push_async_callback(metrics.close)
        allowance = Allowance(settings.query_timeout, settings.query_max_samples)
        containers = ContainerService(QueryEngine(metrics), events, allowance=allowance, clock=clock)
        hosts = HostService(QueryEngine(metrics), allowance=allowance, clock=clock)
        clusters = ClusterService(metrics, max_samples=settings.query_max_samples, clock=clock)
        jobs = Jobs(clock)
        audit = AuditService(database, clock)
        packages = _package_service(settings, clock)
        box = SecretBox.open(settings.data_dir)
        webhooks = WebhookService(database, events, audit, box, clock)
        await webhooks.load()
        groups = GroupService(database, events, audit, fleet, clock)
        await groups.load()
        webhooks.groups_of = groups.delivery.groups_of
        sender = WebhookSender(parse_networks(settings.webhook_allowed_networks))
        stack.push_async_callback(sender.close)
        dispatcher = Dispatcher(database, webhooks, sender, public_url=settings.resolved_public_url(), clock=clock, random=random.random)
        platform = Platform(
            settings=settings,
            database=database,
            auth=auth,
            oidc=oidc,
            audit=audit,
            events=events,
            fleet=fleet,
            metrics=metrics,
            containers=containers,
            hosts=hosts,
            clusters=clusters,
            live=live,
            jobs=jobs,
            packages=packages,
            webhooks=webhooks,
            groups=groups,
            bulk=BulkService(fleet, groups.labels),
            saved_views=await SavedViews.opened(database, audit, clock),
            idempotency=IdempotencyStore(database, box.derived("idempotency", "the answer to a repeated request"), clock),
        )
        _add_jobs(platform, dispatcher, clock)
        stack.push_async_callback(_finish, platform)
        yield platform, first_run_key


def _add_jobs(platform: Platform, dispatcher: Dispatcher, clock: Callable[[], float]) -> None:
    """Give the platform the work that it does by itself, each at its interval in seconds."""
    jobs, settings, fleet, events, auth = platform.jobs, platform.settings, platform.fleet, platform.events, platform.auth
    jobs.add("deployment-flush", 1.0, fleet.deployments.flush)
    jobs.add("heartbeat-flush", settings.heartbeat_flush_interval, fleet.flush)
    jobs.add("status-sweep", settings.status_sweep_interval, fleet.sweep)
    jobs.add("cluster-nodes", 30.0, lambda: _tell_nodes(fleet, platform.clusters))
    jobs.add("metric-maintenance", 60.0, lambda: platform.metrics.maintain(int(clock() * 1000)))
    jobs.add("key-use-flush", 30.0, auth.flush)
    jobs.add("event-retention", 3600.0, lambda: events.drop_older(int((clock() - settings.events_retention) * 1e9)))
    jobs.add("configuration-flush", 1.0, platform.groups.delivery.flush)
    jobs.add("maintenance-retention", 3600.0, lambda: fleet.maintenance.drop_older(settings.events_retention))
    jobs.add("webhook-delivery", 0.5, dispatcher.run)
    jobs.add("audit-retention", 3600.0, lambda: platform.audit.drop_older(settings.audit_retention))
    jobs.add("idempotency-retention", 3600.0, platform.idempotency.drop_older)
    jobs.add("webhook-maintenance", 600.0, lambda: platform.webhooks.maintain(settings.webhook_log_retention))


async def _tell_nodes(fleet: FleetService, clusters: ClusterService) -> None:
    """Tell the fleet which nodes its clusters have, so that the pod of a node that was removed is not missed."""
    nodes: dict[str, set[str]] = {}
    for found in await fleet.list_clusters():
        names = await clusters.node_names(ClusterScope.of(found)) if found.pods else []
        for agent_id in found.agent_ids if names else ():
            nodes.setdefault(agent_id, set()).update(names)
    for agent_id, names_of_agent in nodes.items():
        fleet.know_nodes(agent_id, names_of_agent)


async def _finish(platform: Platform) -> None:
    await platform.jobs.stop()
    for last in (platform.fleet.flush, platform.groups.delivery.flush, platform.auth.flush):
        try:
            await last()
        except PlatformError as exc:
            _log.warning("a last write at shutdown failed: %s", exc.reason, extra={"action": "shutdown_write_failed"})


def _package_service(settings: Settings, clock: Callable[[], float]) -> PackageService:
    repository = PackageRepository(
        settings.data_dir, trusted_directory=settings.package_keys, self_built=settings.packages_self_built, clock=clock
    )
    return PackageService(repository, clock)


def _otlp_endpoint(platform: Platform, limits: BodyLimits, clock: Callable[[], float]) -> OtlpEndpoint:
    return OtlpEndpoint(
        authenticate=platform.fleet.principal,
        resolve_instance=platform.fleet.resolve_instance,
        metrics=platform.metrics,
        record_events=platform.events.record,
        live=platform.live,
        limits=limits,
        items=OtlpLimits(metrics_retention=platform.settings.metrics_retention, events_retention=platform.settings.events_retention),
        clock=clock,
        awaited=platform.fleet.deployments.awaited,
        refuse=platform.fleet.enrolment.refuse,
    )


def _claim_directory(directory: Path) -> int:
    """Make the data directory and lock it against a second platform; the lock's file descriptor."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o750)
        descriptor = os.open(directory / "platform.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise StartupError(f"the data directory {directory} cannot be used: {exc.strerror}; set IRCA_DATA_DIR to one that can") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        raise StartupError(f"another platform is running on the data directory {directory}") from exc
    return descriptor


class _Application(FastAPI):
    """FastAPI that hands ``/v1/*`` to their plain ASGI endpoints before its own machinery, which costs more than they do, sees them."""

    tls = False
    """Whether browsers reach the platform by HTTPS."""
    creating: Sequence[APIRoute] = ()
    """The operations that take an idempotency key."""

    def openapi(self) -> dict[str, Any]:
        """The framework's document, with what no route says of itself."""
        document = super().openapi()
        idempotency.document(document, self.creating)
        problem_answers.document(document)
        return document

    def build_middleware_stack(self) -> ASGIApp:
        """The framework's own, with the security headers around it: also around what answers when a route failed."""
        return SecurityHeaders(super().build_middleware_stack(), tls=self.tls)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoints: Mapping[str, Any] = getattr(self.state, "hot_paths", {})
        endpoint = endpoints.get(scope.get("path", "")) if scope["type"] == "http" else None
        if endpoint is not None:
            await endpoint(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


async def _problem_response(request: Request, exc: Exception) -> Response:
    """Any error as problem+json, logged at the level that the errors table gives it."""
    if isinstance(exc, RequestValidationError):
        exc = InvalidRequestError.of_fields(exc.errors())
    elif isinstance(exc, StarletteHTTPException):
        exc = {404: NotFoundError("there is nothing at this path"), 405: MethodNotAllowedError(headers=dict(exc.headers or {}))}.get(
            exc.status_code, InvalidRequestError(str(exc.detail))
        )
    problem = Problem.of(exc)
    _log.log(
        problem.treatment.log_level,
        "%s %s: %s",
        request.method,
        loggable(request.url.path),
        problem.detail,
        exc_info=exc if problem.code == "internal-error" else None,
        extra={"action": "request_refused", "code": problem.code},
    )
    body = json.dumps(problem.body())  # in ASCII: what was sent is quoted in it, even half a character
    return Response(body, problem.treatment.status, problem.headers(), "application/problem+json")
