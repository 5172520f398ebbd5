"""Sixty made-up containers of a Docker host, as the series that its agent would send."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from app.telemetry.store import NAME, SeriesData

MIB = 1024**2
STATES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
HEALTH = ("starting", "healthy", "unhealthy")
INTERVAL_MS = 10_000
SERVICES = (
    # compose service, image, CPUs, MiB used, MiB allowed
    ("api-gateway", "registry.example.com/platform/api-gateway", 0.62, 410, 512),
    ("checkout", "registry.example.com/shop/checkout", 0.34, 290, 512),
    ("inventory", "registry.example.com/shop/inventory", 0.12, 180, 256),
    ("search-indexer", "registry.example.com/search/indexer", 1.84, 1490, 2048),
    ("postgres", "postgres", 0.21, 940, 0),
    ("redis", "redis", 0.04, 88, 128),
    ("nginx", "nginx", 0.02, 24, 0),
    ("kafka", "bitnami/kafka", 0.71, 1830, 2048),
    ("mailer", "registry.example.com/platform/mailer", 0.01, 61, 128),
    ("thumbnails-and-media-transcoding-worker", "registry.example.com/media/transcoding-worker", 2.6, 720, 1024),
)


def container_id(name: str) -> str:
    """A fixed 64-digit id for a name."""
    return hashlib.sha256(name.encode()).hexdigest()


@dataclass
class Made:
    """One made-up container; ``until_ms`` is when its agent last reported it. ``looping`` restarts every five minutes."""

    name: str
    image: str = "nginx"
    state: str = "running"
    health: str = ""
    exit_code: int = 0
    cpu: float = 0.1
    memory: float = 50.0
    limit: float = 0.0
    restarts: int = 0
    looping: bool = False
    until_ms: float = math.inf
    since_ms: float = -math.inf

    def series(self, instance: str, start_ms: int, end_ms: int) -> Iterator[SeriesData]:
        first = -(-max(start_ms, self.since_ms) // INTERVAL_MS) * INTERVAL_MS
        times = np.arange(first, min(end_ms, self.until_ms) + 1, INTERVAL_MS, dtype=np.int64)
        if not len(times):
            return
        labels = {
            "instance": instance,
            "agent": "a",
            "agent_type": "docker",
            "container.id": container_id(self.name),
            "container.name": self.name,
            "container.image.name": self.image,
            "container.runtime.name": "docker",
        }

        def one(name, unit, kind, values, **more):
            point = {key.replace("__", "."): value for key, value in more.items()}
            return SeriesData({NAME: name, **labels, **point}, unit, kind, times, np.broadcast_to(np.float64(values), times.shape).copy())

        for state in STATES:
            yield one("irca.container.state", "{container}", "updowncounter", float(state == self.state), irca__container__state=state)
        if self.health:
            for health in HEALTH:
                more = {"irca.container.health.status": health}
                yield one("irca.container.health.status", "{container}", "updowncounter", float(health == self.health), **more)
        restarts = self.restarts + (times // 300_000 - 5_000_000 if self.looping else 0)
        yield one("irca.container.restart.count", "{restart}", "updowncounter", restarts % 1000)
        if self.state == "exited":
            yield one("irca.container.exit_code", "1", "gauge", self.exit_code)
            return
        if self.state in ("running", "paused"):
            yield from self._use(one, times)

    def _use(self, one, times) -> Iterator[SeriesData]:
        phase = int(container_id(self.name)[:4], 16)
        wave = 1 + 0.3 * np.sin(times / 90_000 + phase) + 0.2 * np.sin(times / 23_000 + 2 * phase) + 0.1 * np.sin(times * phase / 7_000)
        seconds = times / 1000
        yield one("container.uptime", "s", "gauge", (seconds % 300 if self.looping else seconds - 1_700_000_000 + phase * 10))
        yield one("container.cpu.usage", "{cpu}", "gauge", 0.0 if self.state == "paused" else self.cpu * wave)
        yield one("container.cpu.time", "s", "counter", seconds * self.cpu)
        yield one("container.memory.usage", "By", "updowncounter", self.memory * MIB * 1.2)
        yield one("container.memory.working_set", "By", "updowncounter", np.round(self.memory * MIB * (0.98 + 0.02 * wave)))
        if self.limit:
            yield one("irca.container.memory.limit", "By", "updowncounter", self.limit * MIB)
        yield one("irca.container.process.count", "{process}", "updowncounter", 12)
        for direction, share in (("receive", 40_000), ("transmit", 15_000)):
            more = {"network.interface.name": "eth0", "network.io.direction": direction}
            yield one("container.network.io", "By", "counter", seconds * share * self.cpu, **more)
        for direction, share in (("read", 9_000), ("write", 70_000)):
            more = {"system.device": "8:0", "disk.io.direction": direction}
            yield one("container.disk.io", "By", "counter", seconds * share * self.cpu, **more)


def sixty() -> list[Made]:
    """Sixty containers, eight of them in some trouble."""
    made = []
    for number in range(52):
        service, image, cpu, memory, limit = SERVICES[number % len(SERVICES)]
        stack = ("shop", "shop-canary", "staging", "load-test", "demo", "nightly")[number // len(SERVICES)]
        health = "healthy" if number % 3 == 0 else ""
        made.append(Made(f"{stack}-{service}-1", image, "running", health, 0, cpu, memory, limit, number % 7 == 3))
    made[3].health, made[17].health = "unhealthy", "unhealthy"
    made[21].health = "starting"
    made[8].looping, made[28].looping = True, True
    made[40].state = "paused"
    return [
        *made,
        Made("shop-payments-1", "registry.example.com/shop/payments", "restarting", restarts=41, looping=True),
        Made("nightly-report-28311", "registry.example.com/batch/report", "exited", exit_code=137),
        Made("nightly-report-28312", "registry.example.com/batch/report", "exited", exit_code=1),
        Made("migrate-2026-11-20", "registry.example.com/shop/migrate", "exited"),
        Made("migrate-2026-11-21", "registry.example.com/shop/migrate", "exited"),
        Made("seed-data", "postgres", "created"),
        Made("old-proxy", "haproxy", "dead"),
        Made("incident-rca-agent", "incident-rca/agent", "running", "healthy", 0, 0.01, 38, 256),
    ]


__all__ = ["Made", "container_id", "sixty"]
