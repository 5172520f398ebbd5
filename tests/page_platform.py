"""A platform for the tests of the pages: real keys, sessions, events and live stream over SQLite; a fleet and metrics made up."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles

from app.api import cluster_routes, container_routes, event_routes, host_routes, live_routes
from app.audit.service import AuditService
from app.auth.service import AuthService
from app.db.session import Database
from app.errors import NotFoundError, PlatformError, Problem, StorageError
from app.events.records import EventRecord
from app.events.service import EventService
from app.events.stream import LiveStream
from app.events.views import Page
from app.fleet.funnel import FunnelView, ToldStep, funnel
from app.fleet.listing import AgentFilter
from app.fleet.saved_views import SavedViews
from app.fleet.views import (
    AgentView,
    ClusterView,
    CollectorReason,
    ComponentHealthView,
    FleetOverview,
    InstanceSummary,
    InstanceView,
    QuietInstance,
    Status,
)
from app.settings import Settings
from app.telemetry.clusters import ClusterService
from app.telemetry.containers import ContainerService
from app.telemetry.hosts import HostService
from app.telemetry.matching import compile_matchers
from app.telemetry.promql.engine import QueryEngine
from app.telemetry.promql.model import Allowance
from app.telemetry.store import MetricMetadata, SeriesData
from app.web import routes
from tests.page_clusters import UID, MadeCluster, cluster_changes, shop_cluster
from tests.page_containers import Made, container_id, sixty
from tests.page_history import FakeHistory

KEY = "irca_a-key-for-the-pages-tests"
MIB = 1024**2
AGENTS = (
    # environment, type, status, reason, minutes since last seen, instances
    ("payments-eu", "server", "offline", "No heartbeat for 14 min; the last one came from 10.4.2.17", 14, ("pay-db-1",)),
    (
        "prod-cluster",
        "kubernetes",
        "degraded",
        "Collector kubernetes.nodes failed: nodes is forbidden",
        0.2,
        ("node-a", "node-b", "node-c"),
    ),
    ("staging-docker", "docker", "degraded", "The spool dropped 1 204 data points (size)", 0.4, ("staging-1",)),
    ("edge-berlin", "server", "pending", "Waiting for first contact", None, ()),
    ("checkout", "server", "healthy", "", 0.1, ("checkout-1",)),
    ("ci-runners", "docker", "healthy", "", 0.3, ("runner-1", "runner-2")),
    ("data-platform", "kubernetes", "healthy", "", 0.1, ("worker-7",)),
    ("prod-web", "server", "healthy", "", 0.1, ("web-1",)),
    ("search", "server", "healthy", "", 0.2, ("search-1",)),
    ("batch-nights", "server", "stopped", "Said goodbye: stopped by systemd", 412, ("batch-1",)),
)


def identifier(name: str) -> str:
    """A fixed UUID for a name."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, name))


def make_agents(now: datetime, count: int | None = None) -> list[AgentView]:
    rows = AGENTS if count is None else [(f"env-{n:03}", "server", "healthy", "", 0.1, (f"host-{n:03}",)) for n in range(count)]
    agents = []
    for environment, kind, status, reason, minutes, names in rows:
        seen = None if minutes is None else now - timedelta(minutes=minutes)
        instances = [
            InstanceSummary(
                id=identifier(name),
                name=name,
                status=Status(status) if place == 0 else Status.HEALTHY,
                status_reason=reason if place == 0 else "",
                version="0.1.0",
                last_seen_at=seen,
            )
            for place, name in enumerate(names)
        ]
        agents.append(
            AgentView(
                id=identifier(f"agent {environment}"),
                agent_type=kind,
                environment_name=environment,
                status=Status(status),
                status_reason=reason,
                version="0.1.0" if names else "",
                last_seen_at=seen,
                created_at=now - timedelta(days=9, hours=3),
                labels={"team": "payments", "region": "eu-west-1"} if environment == "payments-eu" else {},
                config={"log_level": "info", "collect_interval": 10},
                instances=instances,
            )
        )
    return agents


class FakeFleet:
    """A fleet that is a list."""

    def __init__(self, agents: list[AgentView]) -> None:
        self.agents = agents
        self.calls: list[dict[str, Any]] = []
        self.history = FakeHistory()
        self.told: list[ToldStep] = []
        """Steps of every agent's deployment."""
        self.collectors = ""
        """What the pod that leads says of its collectors that fail."""

    async def list_agents(self, cursor: str | None = None, limit: int = 50, **filters: Any) -> Page[AgentView]:
        del filters["sees"]
        self.calls.append({"cursor": cursor, "limit": limit, **filters})
        found = [
            a
            for a in self.agents
            if all(filters.get(k) in (None, getattr(a, k)) for k in ("status", "agent_type", "environment_name"))
            and (not filters.get("search") or filters["search"].lower() in a.environment_name)
        ]
        start = int(cursor or 0)
        return Page[AgentView](items=found[start : start + limit], next_cursor=str(start + limit) if len(found) > start + limit else None)

    async def get_agent(self, agent_id: str, *, with_replaced: bool = False) -> AgentView:
        for agent in self.agents:
            if agent.id == agent_id:
                return agent
        raise NotFoundError(f"there is no agent {agent_id}")

    async def get_instance(self, instance_id: str) -> InstanceView:
        for agent in self.agents:
            for one in agent.instances:
                if one.id == instance_id:
                    return self._full(agent, one)
        raise NotFoundError(f"there is no instance {instance_id}")

    async def list_clusters(self, sees: Callable[[str], bool] = lambda _: True) -> list[ClusterView]:
        agents = [a for a in self.agents if a.environment_name == "prod-cluster" and sees(a.environment_name)]
        return [
            ClusterView(
                uid=UID,
                name=a.environment_name,
                agent_ids=[a.id],
                environments=[a.environment_name],
                status=a.status,
                status_reason=a.status_reason,
                pods=len(a.instances),
                last_seen_at=a.last_seen_at,
                collect_interval=10.0,
                instance_ids=[],
                collectors=[CollectorReason(instance_id=a.instances[0].id, last_error=self.collectors)],
            )
            for a in agents
        ]

    async def get_cluster(self, uid: str, sees: Callable[[str], bool] = lambda _: True) -> ClusterView:
        for one in await self.list_clusters(sees):
            if one.uid == uid:
                return one
        raise NotFoundError(f"there is no cluster {uid}")

    async def deployment(self, agent_id: str) -> FunnelView:
        agent = await self.get_agent(agent_id)
        return funnel(agent_id, agent.agent_type, agent.created_at, self.told)

    async def overview(self, _sees: Any, most: int = 10) -> FleetOverview:
        problems = [a for a in self.agents if a.status in (Status.OFFLINE, Status.DEGRADED)]
        awaited = [a for a in self.agents if not a.instances]
        quiet = [
            QuietInstance(**a.instances[0].model_dump(), agent_id=a.id, environment_name=a.environment_name, agent_type=a.agent_type)
            for a in problems
            if a.status is Status.OFFLINE and a.instances
        ]
        return FleetOverview(
            total=len(self.agents),
            statuses={s: sum(a.status is s for a in self.agents) for s in Status},
            versions=[("0.1.0", sum(a.version == "0.1.0" for a in self.agents))] if self.agents else [],
            problems=problems[:most],
            quiet=quiet[:most],
            quiet_total=len(quiet),
            awaited=awaited[:most],
            awaited_total=len(awaited),
        )

    def count_agents(self, wanted: AgentFilter) -> int:
        return sum(wanted.status in (None, a.status) for a in self.agents)

    def environment_names(self, _sees: Any) -> set[str]:
        return {a.environment_name for a in self.agents}

    def _full(self, agent: AgentView, one: InstanceSummary) -> InstanceView:
        good = one.status is Status.HEALTHY
        parts = [
            ("cpu", True, ""),
            ("filesystem", good, "" if good else "/mnt/backup: Permission denied"),
            ("spool", True, ""),
            ("transport", True, ""),
        ]
        return InstanceView(
            **one.model_dump(),
            agent_id=agent.id,
            agent_type=agent.agent_type,
            environment_name=agent.environment_name,
            status_since=agent.created_at + timedelta(days=2),
            first_seen_at=agent.created_at + timedelta(minutes=2),
            healthy=good,
            components=[
                ComponentHealthView(name=name, healthy=ok, status="OK" if ok else "failed", last_error=error) for name, ok, error in parts
            ],
            resource={
                "host.name": one.name,
                "os.name": "Debian GNU/Linux",
                "os.version": "12",
                "host.arch": "amd64",
                "host.id": "8f1c0a52d2e84a3f",
                "cloud.region": "eu-west-1",
            },
            effective_config={
                "collect_interval": 10,
                "log_level": "info",
                "filesystem_exclude_mounts": ["/proc", "/sys"],
                "spool_max_bytes": 268435456,
            },
        )


class FakeMetrics:
    """The part of a metric store that pages read: a server, and a Docker host with ``containers``, both sampled every ten seconds."""

    def __init__(self) -> None:
        self.broken = False
        self.selects = 0
        self.containers: list[Made] = sixty()
        self.docker_host = identifier("staging-1")
        self.cluster: MadeCluster = shop_cluster(identifier("agent prod-cluster"), identifier("node-a"))
        self.shapes: list[tuple[str, str, str, dict[str, str], float]] = [
            ("system.cpu.utilization", "1", "gauge", {"cpu.mode": "user"}, 0.31),
            ("system.cpu.utilization", "1", "gauge", {"cpu.mode": "system"}, 0.08),
            ("system.cpu.utilization", "1", "gauge", {"cpu.mode": "idle"}, 0.61),
            ("system.memory.usage", "By", "updowncounter", {"system.memory.state": "used"}, 3100 * MIB),
            ("system.memory.usage", "By", "updowncounter", {"system.memory.state": "cached"}, 2400 * MIB),
            ("system.memory.usage", "By", "updowncounter", {"system.memory.state": "free"}, 2500 * MIB),
            ("system.network.io", "By", "counter", {"network.interface.name": "eth0", "network.io.direction": "receive"}, 2 * MIB),
            ("system.network.io", "By", "counter", {"network.interface.name": "lo", "network.io.direction": "receive"}, 90 * MIB),
            ("system.filesystem.utilization", "1", "gauge", {"system.filesystem.mountpoint": "/"}, 0.62),
            ("irca.system.load.1m", "{thread}", "gauge", {}, 1.25),
        ]

    async def select(self, matchers: Sequence[Any], start_ms: int, end_ms: int, *, max_samples: int | None = None) -> list[SeriesData]:
        self.selects += 1
        if self.broken:
            raise StorageError("the disk is full")
        wanted = compile_matchers(matchers)
        if any(m.name == "agent" for m in matchers):
            found = self.cluster.series(start_ms, min(end_ms, int(time.time() * 1000)))
            return [one for one in found if len(one.times) and all(m.accepts(one.labels.get(m.name, "")) for m in wanted)]
        [instance] = [m.value for m in matchers if m.name == "instance"]
        return [one for one in self._held(instance, start_ms, end_ms) if all(m.accepts(one.labels.get(m.name, "")) for m in wanted)]

    async def series(self, matchers: Sequence[Any], start_ms: int, end_ms: int) -> list[dict[str, str]]:
        return [dict(one.labels) for one in await self.select(matchers, start_ms, end_ms)]

    async def metadata(self) -> list[MetricMetadata]:
        return sorted({MetricMetadata(s.labels["__name__"], s.unit, s.kind) for s in self._everything()}, key=lambda one: one.name)

    async def label_names(self, matchers: Sequence[Any], start_ms: int, end_ms: int) -> list[str]:
        return sorted({name for one in self._everything() for name in one.labels})

    def _everything(self) -> Iterator[SeriesData]:
        """A few samples of every series that was ever there: a catalogue outlives what it names."""
        end = int(time.time() * 1000)
        yield from self._held("a server", end - 60_000, end)
        for made in sixty():
            yield from made.series(self.docker_host, end - 60_000, end)
        yield from shop_cluster(identifier("agent prod-cluster"), identifier("node-a")).series(end - 60_000, end)

    def _held(self, instance: str, start_ms: int, end_ms: int) -> Iterator[SeriesData]:
        if instance == self.docker_host:
            end_ms = min(end_ms, int(time.time() * 1000))
            for made in self.containers:
                yield from made.series(instance, start_ms, end_ms)
            return
        times = np.arange(start_ms // 10_000 * 10_000 + 10_000, end_ms + 1, 10_000, dtype=np.int64)
        for name, unit, kind, labels, level in self.shapes:
            values = np.arange(len(times)) * 10.0 * level if kind == "counter" else np.full(len(times), level)
            own = {"__name__": name, "instance": instance, "agent": "a", "host.name": "web-1", **labels}
            yield SeriesData(own, unit, kind, times, values)  # type: ignore[arg-type]  # a plain str in the table above


class FakePrometheus:
    """Answers ``query_range`` with waves that look like a host, from ``since`` on; keeps what was asked."""

    LINES: ClassVar[dict[str, tuple[str, dict[str, float]]]] = {
        "system_cpu": ("cpu_mode", {"user": 0.3, "system": 0.08, "steal": 0.01}),
        "system_memory": ("system_memory_state", {"used": 3100 * MIB, "cached": 2400 * MIB, "buffers": 180 * MIB, "free": 2500 * MIB}),
        "load_1m": ("", {"": 1.2}),
        "load_5m": ("", {"": 0.9}),
        "load_15m": ("", {"": 0.7}),
        "network_io": ("network_io_direction", {"receive": 2.2 * MIB, "transmit": 0.7 * MIB}),
        "disk_io": ("disk_io_direction", {"read": 0.2 * MIB, "write": 4.1 * MIB}),
        "container_cpu": ("container_name", {"": 0.4}),
        "container_memory": ("", {"": 300 * MIB}),
        "process_count": ("", {"": 12}),
        "restart_count": ("", {"": 3}),
        "filesystem": ("system_filesystem_mountpoint", {"/": 0.62, "/var/lib/data": 0.81, "/boot": 0.22}),
    }

    def __init__(self) -> None:
        self.since = 0.0
        self.failing = False
        self.asked: list[dict[str, str]] = []

    def answer(self, query: dict[str, str]) -> tuple[int, dict[str, Any]]:
        self.asked.append(query)
        if self.failing:
            return 503, {"status": "error", "errorType": "unavailable", "error": "the metric store is busy"}
        start, end, step = (float(query[k]) for k in ("start", "end", "step"))
        label, lines = next((found for part, found in self.LINES.items() if part in query["query"]), ("", {}))
        times = [start + step * n for n in range(int((end - start) / step) + 1)]
        result = [
            {
                "metric": {label: name} if label else {},
                "values": [[t, str(level if "filesystem" in query["query"] else _wave(t, level, place))] for t in times if t >= self.since],
            }
            for place, (name, level) in enumerate(lines.items())
        ]
        return 200, {"status": "success", "data": {"resultType": "matrix", "result": [r for r in result if r["values"]]}}


def _wave(time_s: float, level: float, phase: int) -> float:
    return level * (1 + 0.22 * math.sin(time_s / 140 + phase) + 0.06 * math.sin(time_s / 17 + 3 * phase) + 0.04 * math.sin(time_s * 7.3))


class PagePlatform:
    """What ``app.platform.Platform`` is to the pages, and handles for the tests."""

    def __init__(self, directory: Path, agents: list[AgentView] | None = None) -> None:
        now = datetime.now(UTC)
        self.settings = Settings(data_dir=directory, public_url="http://localhost:8000")
        self.database = Database(self.settings.resolved_database_url())
        self.live = LiveStream()
        self.events = EventService(self.database, self.live)
        self.auth = AuthService(self.database, time.time)
        self.oidc = None
        self.fleet = FakeFleet(make_agents(now) if agents is None else agents)
        self.metrics = FakeMetrics()
        self.containers = ContainerService(QueryEngine(self.metrics), self.events, allowance=Allowance(30.0, 1_000_000), clock=time.time)
        self.hosts = HostService(QueryEngine(self.metrics), allowance=Allowance(30.0, 1_000_000), clock=time.time)
        self.clusters = ClusterService(self.metrics, max_samples=50_000_000, clock=time.time)
        self.prometheus = FakePrometheus()
        self.saved_views = SavedViews(self.database, AuditService(self.database, time.time), time.time)

    def check_visible(self, _identity: Any, _scope: Any) -> None:
        """Everybody sees everything here."""

    async def open(self) -> None:
        await self.database.open()
        await self.auth.load()
        await self.auth.ensure_first_key(KEY)
        web, agent = identifier("web-1"), identifier("agent prod-web")
        told = (
            (3, 13, "irca.instance.status_changed", "web-1 is degraded: Collector filesystem failed."),
            (41, 9, "irca.instance.status_changed", "web-1 is healthy."),
            (44, 9, "irca.instance.enrolled", "web-1 made first contact."),
        )
        await self.events.record(
            [
                EventRecord(
                    identifier(f"event {minutes}"),
                    name,
                    int((time.time() - minutes * 60) * 1e9),
                    severity,
                    body,
                    agent_id=agent,
                    instance_id=web,
                )
                for minutes, severity, name, body in told
            ]
        )

        docker, environment = identifier("staging-1"), identifier("agent staging-docker")
        changes = (
            # minutes ago, severity, name, container, body
            (1, 17, "irca.docker.container.die", "shop-payments-1", "shop-payments-1 died with exit code 1."),
            (2, 13, "irca.docker.container.health_status", "shop-search-indexer-1", "shop-search-indexer-1 became unhealthy."),
            (6, 9, "irca.docker.container.start", "shop-mailer-1", "shop-mailer-1 started."),
            (14, 17, "irca.docker.container.oom", "nightly-report-28311", "nightly-report-28311 ran out of memory."),
            (
                55,
                9,
                "irca.docker.container.create",
                "shop-checkout-1",
                "shop-checkout-1 created from registry.example.com/shop/checkout:2.4.1.",
            ),
        )
        await self.events.record(
            [
                EventRecord(
                    identifier(f"change {minutes}"),
                    name,
                    int((time.time() - minutes * 60) * 1e9),
                    severity,
                    body,
                    resource={
                        "container.id": container_id(container),
                        "container.name": container,
                        "container.image.name": "registry.example.com/shop/checkout",
                        "container.image.tags": ["2.4.1"],
                        "container.image.repo_digests": ["registry.example.com/shop/checkout@sha256:" + "5f" * 32],
                        "container.label.com.docker.compose.project": "shop",
                        "container.label.com.docker.compose.service": container.removeprefix("shop-").removesuffix("-1"),
                        "container.label.team": "payments",
                    },
                    agent_id=environment,
                    instance_id=docker,
                    agent_type="docker",
                )
                for minutes, severity, name, container, body in changes
            ]
        )

        await self.events.record(cluster_changes(identifier("agent prod-cluster"), identifier("node-a")))

    async def close(self) -> None:
        await self.database.close()


def make_app(platform: PagePlatform) -> FastAPI:
    """The pages, the live stream and the made-up queries as an application; services open and close with its lifespan."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await platform.open()
        app.state.platform = platform
        yield
        await platform.close()

    app = FastAPI(lifespan=lifespan)
    app.include_router(live_routes.router)
    app.include_router(container_routes.router)
    app.include_router(host_routes.router)
    app.include_router(cluster_routes.router)
    app.include_router(event_routes.router)
    app.include_router(routes.router)
    app.mount("/static", StaticFiles(directory=routes.static_directory()))

    @app.get("/prometheus/api/v1/query_range")
    async def query_range(request: Request) -> JSONResponse:
        status, body = platform.prometheus.answer(dict(request.query_params))
        return JSONResponse(body, status)

    @app.exception_handler(PlatformError)
    async def problem(_request: Request, exc: PlatformError) -> JSONResponse:
        found = Problem.of(exc)
        return JSONResponse(found.body(), found.treatment.status, found.headers())

    return app


__all__ = ["KEY", "PagePlatform", "identifier", "make_agents", "make_app"]
