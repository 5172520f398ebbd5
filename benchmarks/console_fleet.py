"""The fleet that the console's benchmark looks at: 10,000 instances, 100 groups, 1,000,000 events, written straight into the tables.

Everything follows from one seed and the time ``now``, so that two runs look at the same fleet.
"""

from __future__ import annotations

import json
import random
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import create_engine, event, insert
from sqlalchemy.engine import Engine

from app.db import models
from app.events import catalogue
from app.telemetry.store import MetricStore, Row, SeriesData, SeriesKey
from tests.page_clusters import UID, synthetic_cluster
from tests.page_containers import sixty

DAYS = 90
DAY = 86_400.0
STATUSES = (("healthy", 90), ("degraded", 4), ("offline", 3), ("stopped", 2), ("archived", 1))
REASONS = {
    "degraded": "Collector system.filesystem failed: permission denied",
    "offline": "no heartbeat since 2 min or more",
    "stopped": "stopped in good order",
    "archived": "silent for 15 d",
}
REGIONS = ("eu-west-1", "eu-central-1", "us-east-1", "us-west-2", "ap-south-1")
TEAMS = tuple(f"team-{number:02}" for number in range(20))
VERSIONS = ("0.1.0", "0.1.1", "0.2.0", "0.2.1", "0.3.0")
EVENTS = (
    # name, severity, how many of a thousand
    (catalogue.INSTANCE_STATUS_CHANGED.name, 9, 250),
    (catalogue.INSTANCE_STATUS_CHANGED.name, 13, 100),
    (catalogue.INSTANCE_WENT_QUIET.name, 13, 30),
    (catalogue.INSTANCE_BACK.name, 9, 30),
    (catalogue.GAP.name, 13, 10),
    (catalogue.CONFIG_APPLIED.name, 9, 30),
    (catalogue.ENROLMENT_REFUSED.name, 13, 1),
    ("irca.docker.container.start", 9, 150),
    ("irca.docker.container.die", 13, 99),
    ("irca.server.package.upgraded", 9, 150),
    ("irca.server.unit.failed", 17, 30),
    ("irca.server.unit.restarted", 9, 120),
)


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is of everything."""

    servers: int = 8_000
    docker_hosts: int = 1_000
    clusters: int = 10
    pods_of_cluster: int = 100
    groups: int = 100
    events: int = 1_000_000
    webhooks: int = 8
    deliveries: int = 50_000
    audit: int = 100_000
    cluster_pods: int = 5_000
    """Pods of the one cluster whose pages are measured, as its agent reports them."""

    @property
    def instances(self) -> int:
        """Instances altogether."""
        return self.servers + self.docker_hosts + self.clusters * self.pods_of_cluster


SMALL = Size(200, 40, 2, 10, 10, 20_000, 3, 1_000, 2_000, 200)
"""For trying the benchmark out."""


@dataclass
class Fleet:
    """Names of what was made, for the pages to ask for."""

    server: str = ""
    server_agent: str = ""
    docker: str = ""
    docker_agent: str = ""
    cluster_agent: str = ""
    cluster_leader: str = ""
    group: str = ""
    webhook: str = ""
    delivery: str = ""
    dead_delivery: str = ""
    event: str = ""
    environment: str = ""
    token: str = ""
    agents: list[tuple[str, str, str]] = field(default_factory=list)
    """Id, type and environment of every agent."""
    instances: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Id of every instance, and its agent's."""


class Maker:
    """Writes a fleet of a size into a migrated SQLite database."""

    def __init__(self, database: Path, size: Size, now: float, seed: int = 1) -> None:
        self._path = database
        self._size = size
        self._now = now
        self._random = random.Random(seed)
        self.fleet = Fleet()

    def write(self) -> Fleet:
        """Write everything; what there is to ask for."""
        engine = create_engine(f"sqlite:///{self._path}")
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
        self._agents(engine)
        self._groups(engine)
        self._webhooks(engine)
        self._audit(engine)
        self._maintenance(engine)
        engine.dispose()
        self._events()
        return self.fleet

    def _id(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def _at(self, seconds_ago: float) -> datetime:
        return datetime.fromtimestamp(self._now - seconds_ago, UTC)

    def _agents(self, engine: Engine) -> None:
        size, made, fleet = self._size, self._random, self.fleet
        kinds = ["server"] * size.servers + ["docker"] * size.docker_hosts
        made.shuffle(kinds)
        agents: list[dict[str, Any]] = []
        tokens: list[dict[str, Any]] = []
        instances: list[dict[str, Any]] = []
        for number, kind in enumerate([*kinds, *["kubernetes"] * size.clusters]):
            environment = f"cluster-{number}" if kind == "kubernetes" else f"{('prod', 'staging', 'dev')[number % 3]}-{number % 400:03}"
            agent = self._id()
            labels = {"team": TEAMS[number % 20], "region": REGIONS[number % 5], "tier": ("web", "db", "batch", "edge")[number % 4]}
            agents.append(
                {
                    "id": agent,
                    "agent_type": kind,
                    "environment_name": environment,
                    "config": {"collect_interval": 10},
                    "labels": labels,
                    "created_at": self._at(made.uniform(1, 80) * DAY),
                }
            )
            tokens.append(self._token(agent, environment))
            fleet.agents.append((agent, kind, environment))
            for place in range(size.pods_of_cluster if kind == "kubernetes" else 1):
                instances.append(self._instance(agent, kind, f"{environment}-{number}-{place}", place))
                fleet.instances.append((instances[-1]["id"], agent, kind, environment))
        with engine.begin() as connection:
            connection.execute(insert(models.AgentRow), agents)
            connection.execute(insert(models.EnrolmentTokenRow), tokens)
            connection.execute(insert(models.InstanceRow), instances)
        found = {kind: (one, agent) for one, agent, kind, _ in reversed(fleet.instances)}
        fleet.server, fleet.server_agent = found["server"]
        fleet.docker, fleet.docker_agent = found["docker"]
        fleet.cluster_leader, fleet.cluster_agent = found["kubernetes"]
        fleet.environment, fleet.token = fleet.agents[0][2], tokens[0]["id"]

    def _token(self, agent: str, environment: str) -> dict[str, Any]:
        digest = self._random.randbytes(32)
        about = {"id": self._id(), "agent_id": agent, "prefix": f"agent_{environment}_{digest[:4].hex()}", "token_hash": digest}
        return {**about, "max_uses": 1, "created_at": self._at(DAY), "expires_at": self._at(-30 * DAY), "revoked_at": None}

    def _instance(self, agent: str, kind: str, name: str, place: int) -> dict[str, Any]:
        made = self._random
        status = made.choices([s for s, _ in STATUSES], [weight for _, weight in STATUSES])[0]
        if kind == "kubernetes":
            status = "healthy" if place < 60 else "archived"
        version = VERSIONS[-1] if made.random() < 0.7 else made.choice(VERSIONS)
        resource = {"host.name": name, "host.arch": "amd64", "os.type": "linux", "cloud.region": made.choice(REGIONS)}
        config: dict[str, Any] = {"collect_interval": 10, "log_level": "info", "spool_max_bytes": 268_435_456}
        if kind == "kubernetes":
            cluster = UID if not any(k == "kubernetes" and a != agent for a, k, _ in self.fleet.agents) else agent
            resource |= {"k8s.cluster.uid": cluster, "k8s.node.name": f"worker-{place}", "k8s.pod.name": name}
            config |= {"view": "cluster" if place < 2 else "node"}
        silence = {"healthy": 5.0, "degraded": 8.0, "offline": 7200.0, "stopped": 3 * DAY, "archived": 20 * DAY}[status]
        return {
            "id": self._id(),
            "agent_id": agent,
            "fingerprint": made.randbytes(16).hex(),
            "name": name,
            "version": version,
            "resource": resource | {"service.version": version},
            "effective_config": config,
            "components": [{"name": part, "healthy": True, "status": "OK", "last_error": ""} for part in ("collectors", "spool")],
            "healthy": status != "degraded",
            "last_error": REASONS["degraded"] if status == "degraded" else "",
            "status": status,
            "status_reason": REASONS.get(status, ""),
            "status_since": self._at(silence + made.uniform(0, 5 * DAY)),
            "first_seen_at": self._at(made.uniform(30, 80) * DAY),
            "last_seen_at": self._at(silence),
            "good_beats": 2,
            "said_goodbye": status == "stopped",
            "credential_hash": made.randbytes(32),
            "candidate_hash": None,
            "quiet_since": None,
            "revived_at": None,
            "token_id": None,
        }

    def _groups(self, engine: Engine) -> None:
        groups: list[dict[str, Any]] = []
        revisions: list[dict[str, Any]] = []
        for number in range(self._size.groups):
            selector = _selector(number, [agent[2] for agent in self.fleet.agents])
            group = {"id": self._id(), "name": f"group-{number:03}", "description": "Made for the benchmark.", "selector": selector}
            times = {"created_at": self._at(40 * DAY), "updated_at": self._at(2 * DAY)}
            groups.append({**group, "priority": number % 10, "version": 3, **times})
            for revision in range(1, 11):
                config = {"collect_interval": 10 + (number + revision) % 20, "log_level": ("info", "debug")[number % 2]}
                scope = {"scope_kind": "group", "scope_id": group["id"], "revision": revision, "config": config}
                revisions.append({**scope, "comment": "", "actor": "sre", "created_at": self._at((11 - revision) * DAY)})
        with engine.begin() as connection:
            connection.execute(insert(models.GroupRow), groups)
            connection.execute(insert(models.ConfigRevisionRow), revisions)
        self.fleet.group = groups[0]["id"]

    def _webhooks(self, engine: Engine) -> None:
        made, fleet, size = self._random, self.fleet, self._size
        hooks: list[dict[str, Any]] = []
        for number in range(size.webhooks):
            about = {
                "id": self._id(),
                "name": f"receiver-{number}",
                "url": f"https://receiver-{number}.example.com/hook",
                "template": "standard",
            }
            secret = {"secret": b"-", "previous_secret": None, "previous_secret_expires_at": None}
            state = {"enabled": False, "failures": 0, "open_until": None, "version": 1}  # nothing may be delivered from here
            filters = {"event_types": ["irca.instance.*"], "min_severity": 13}
            hooks.append({**about, **secret, **state, "filters": filters, "created_at": self._at(50 * DAY), "updated_at": self._at(DAY)})
        deliveries: list[dict[str, Any]] = []
        attempts: list[dict[str, Any]] = []
        for sequence in range(size.deliveries):
            status = made.choices(("delivered", "dead", "pending"), (96, 3, 1))[0]
            at = self._at((size.deliveries - sequence) * 28 * DAY / size.deliveries)
            instance, agent, kind, environment = made.choice(fleet.instances)
            data = {"id": self._id(), "severity": 13, "body": f"{environment} is degraded.", "attributes": {}, "resource": {}}
            data |= {"agent_id": agent, "instance_id": instance, "agent_type": kind, "environment_name": environment}
            message = {"type": "irca.instance.status_changed", "timestamp": at.isoformat(), "data": data}
            about = {"id": self._id(), "endpoint_id": hooks[sequence % len(hooks)]["id"], "event_id": data["id"], "replay": 0}
            times = {"created_at": at, "next_attempt_at": at, "finished_at": None if status == "pending" else at}
            tries = {"delivered": 1, "dead": 5, "pending": 2}[status]
            queue = {"ordering_key": instance, "sequence": sequence, "message": message, "status": status, "attempts": tries}
            deliveries.append({**about, **queue, **times})
            for number in range(tries):
                code = 204 if status == "delivered" else 503
                sent = {"request_headers": {"webhook-id": data["id"]}, "response_body": "", "error": "" if code < 300 else "HTTP 503"}
                told = {"id": self._id(), "delivery_id": about["id"], "time": at + timedelta(minutes=number), "latency_ms": 41.5}
                attempts.append({**told, "status_code": code, **sent})
        with engine.begin() as connection:
            connection.execute(insert(models.WebhookEndpointRow), hooks)
            connection.execute(insert(models.WebhookDeliveryRow), deliveries)
            connection.execute(insert(models.WebhookAttemptRow), attempts)
        fleet.webhook, fleet.delivery = hooks[0]["id"], deliveries[0]["id"]
        fleet.dead_delivery = next(one["id"] for one in deliveries if one["status"] == "dead")

    def _audit(self, engine: Engine) -> None:
        made, count = self._random, self._size.audit
        acts = ("agent.provision", "group.configure", "token.revoke", "webhook.update", "session.open", "instance.archive")
        rows = []
        for number in range(count):
            agent, _, environment = made.choice(self.fleet.agents)
            who = f"person-{number % 40}"
            row = {"id": self._id(), "time": self._at((count - number) * 300 * DAY / count), "actor_kind": "api-key", "actor_id": who}
            act = {"actor_name": who, "action": acts[number % len(acts)], "target_kind": "agent", "target_id": agent}
            state = {"target_name": environment, "environment_name": environment, "before": {"version": 1}, "after": {"version": 2}}
            told = {"outcome": "refused" if number % 50 == 0 else "done", "reason": "", "client_address": "10.0.0.1", "user_agent": "curl"}
            rows.append({**row, **act, **state, **told})
        with engine.begin() as connection:
            connection.execute(insert(models.AuditRow), rows)

    def _maintenance(self, engine: Engine) -> None:
        rows = []
        for number in range(200):
            starts = -3600.0 if number < 5 else (200 - number) * DAY / 3
            selector = {"environments": [f"dev-{number:03}"], "agent_ids": [], "labels": {}}
            about = {"id": self._id(), "reason": "Upgrade of the database.", "selector": selector, "created_by": "sre"}
            times = {"starts_at": self._at(starts), "ends_at": self._at(starts - 7200), "created_at": self._at(max(starts, 0) + 60)}
            rows.append({**about, **times})
        with engine.begin() as connection:
            connection.execute(insert(models.MaintenanceWindowRow), rows)

    def _events(self) -> None:
        """The events, by the plainest means there is: they are by far the most."""
        connection = sqlite3.connect(self._path)
        connection.execute("PRAGMA synchronous=OFF")
        columns = [column.name for column in models.EventRow.__table__.columns]
        statement = f"INSERT INTO events ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        indexes = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'events' AND sql IS NOT NULL"
        ).fetchall()
        with connection:
            for name, _ in indexes:  # made anew over all rows in far less time than kept while they are written
                connection.execute(f"DROP INDEX {name}")
            for rows in _slices(self._event_rows(columns), 20_000):
                connection.executemany(statement, rows)
            for _, sql in indexes:
                connection.execute(sql)
        connection.close()

    def _event_rows(self, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        made, count = self._random, self._size.events
        kinds = made.choices(EVENTS, [weight for *_, weight in EVENTS], k=count)
        for number, (name, severity, _) in enumerate(kinds):
            time = int((self._now - (count - number) * DAYS * DAY / count) * 1e9)
            instance, agent, kind, environment = self.fleet.instances[int(made.random() ** 2 * len(self.fleet.instances))]
            attributes, resource = _told(name, environment, number)
            row = {
                "id": f"{made.getrandbits(128):032x}",
                "name": name,
                "time_unix_nano": time,
                "observed_time_unix_nano": time,
                "severity": severity,
                "body": f"{environment}: {name.rpartition('.')[2]} number {number}.",
                "attributes": json.dumps(attributes),
                "resource": json.dumps(resource),
                "agent_id": agent,
                "instance_id": instance,
                "agent_type": kind,
                "environment_name": environment,
            }
            self.fleet.event = row["id"]
            yield tuple(row[column] for column in columns)


async def write_metrics(store: MetricStore, fleet: Fleet, now: float, pods: int) -> int:
    """Samples of ten servers, a Docker host with sixty containers, and a cluster of this many pods; how many series."""
    end = int(now) * 1000
    servers = [instance for instance, _, kind, _ in fleet.instances if kind == "server"][:10]
    count = 0
    for instance in servers:
        count += await _store(store, list(_server(instance, end - 3_600_000, end)))
    docker = [one for made in sixty() for one in made.series(fleet.docker, end - 600_000, end)]
    count += await _store(store, docker)
    cluster = synthetic_cluster(fleet.cluster_agent, fleet.cluster_leader, pods)
    for start, until in ((end - 930_000, end - 890_000), (end - 60_000, end)):
        count += await _store(store, list(cluster.series(start, until)))
    return count


async def _store(store: MetricStore, series: Sequence[SeriesData]) -> int:
    by_times: dict[bytes, list[SeriesData]] = {}
    for one in series:
        by_times.setdefault(one.times.tobytes(), []).append(one)
    for alike in by_times.values():
        for part in _slices(alike, 2000):
            schema = await store.register([SeriesKey(tuple(sorted(one.labels.items())), one.unit, one.kind) for one in part])
            values = _columns(part)
            await store.append([Row(schema.id, int(time), values[place]) for place, time in enumerate(part[0].times)])
    return len(series)


def _columns(series: Sequence[SeriesData]) -> Any:
    return np.column_stack([one.values for one in series]).astype(np.float64)


def _server(instance: str, start: int, end: int) -> Iterator[SeriesData]:
    times = np.arange(start // 10_000 * 10_000, end + 1, 10_000, dtype=np.int64)
    shapes: list[tuple[str, str, Any, dict[str, str], float]] = [
        *(("system.cpu.utilization", "1", "gauge", {"cpu.mode": mode}, 0.3) for mode in ("user", "system", "idle", "iowait")),
        *(("system.memory.usage", "By", "updowncounter", {"system.memory.state": state}, 3e9) for state in ("used", "cached", "free")),
        *(
            ("system.network.io", "By", "counter", {"network.interface.name": f"eth{n}", "network.io.direction": "receive"}, 2e6)
            for n in range(4)
        ),
        *(("system.filesystem.utilization", "1", "gauge", {"system.filesystem.mountpoint": f"/data/{n}"}, 0.5) for n in range(6)),
        *((f"irca.system.load.{n}m", "{thread}", "gauge", {}, 1.0) for n in (1, 5, 15)),
        ("system.uptime", "s", "gauge", {}, 1e6),
    ]
    for name, unit, kind, labels, level in shapes:
        values = np.arange(len(times)) * 10.0 * level if kind == "counter" else np.full(len(times), level)
        yield SeriesData({"__name__": name, "instance": instance, "agent_type": "server", **labels}, unit, kind, times, values)


def _selector(number: int, environments: Sequence[str]) -> dict[str, Any]:
    """Selectors of the kinds that people write: by environment, by labels, by what is not, by host."""
    labels: dict[str, str] = {}
    expressions: list[dict[str, Any]] = []
    if number % 5 == 0:
        labels = {"team": TEAMS[number % 20], "agent_type": "server"}
    elif number % 5 == 1:
        expressions = [
            {
                "key": "environment",
                "operator": "In",
                "values": [environments[(number * 7 + place) % len(environments)] for place in range(12)],
            }
        ]
    elif number % 5 == 2:
        labels = {"region": REGIONS[number % 5], "tier": "db"}
    elif number % 5 == 3:
        expressions = [{"key": "service.version", "operator": "NotIn", "values": [VERSIONS[-1]]}]
        labels = {"team": TEAMS[number % 20]}
    else:
        expressions = [{"key": "cloud.region", "operator": "Exists", "values": []}, {"key": "tier", "operator": "In", "values": ["edge"]}]
        labels = {"environment": environments[number % len(environments)]}
    return {"matchLabels": labels, "matchExpressions": expressions}


def _told(name: str, environment: str, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    if name == catalogue.INSTANCE_STATUS_CHANGED.name:
        return {"irca.status": "healthy", "irca.status.previous": "degraded", "irca.status.reason": ""}, {}
    if name.startswith("irca.docker"):
        container = {"container.id": f"{number % 5000:064x}", "container.name": f"service-{number % 5000}"}
        return {"exit_code": 1}, {**container, "container.image.name": "registry.example.com/shop/checkout", "host.name": environment}
    return {"irca.note": "made for the benchmark"}, {"host.name": environment, "os.type": "linux"}


def _slices(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    waiting = iter(items)
    while part := list(islice(waiting, size)):
        yield part


__all__ = ["SMALL", "Fleet", "Maker", "Size", "write_metrics"]
