"""Samples and events of a made-up server, for the tests of the explorer; written into a running platform."""

from __future__ import annotations

import math
import time
import urllib.request
import uuid

import numpy as np
from opamp_client import OpampAgent

from app.events.records import EventRecord
from app.telemetry.store import Row, SeriesKey

GIB = 1024**3
STEP = 10


def opamp_beat(url: str, token: str, host: str) -> OpampAgent:
    """An agent on ``host`` that has made contact with the platform at ``url``."""
    agent = OpampAgent(host=host, fingerprint=f"machine of {host}")
    headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {token}"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{url}/v1/opamp", agent.beat(full=True, healthy=True), headers), timeout=10
    ) as answer:
        agent.read(answer.read())
    return agent


def server_series(instance: str, agent: str, environment: str, host: str, devices: int = 2) -> list[tuple[SeriesKey, float]]:
    """Series of a server with what their values swing around (counters: grow by a second)."""
    shapes = [
        ("system.cpu.utilization", "1", "gauge", {"cpu.mode": mode}, level)
        for mode, level in (("user", 0.3), ("system", 0.08), ("idle", 0.6))
    ]
    shapes += [
        ("system.memory.usage", "By", "updowncounter", {"system.memory.state": state}, size * GIB)
        for state, size in (("used", 5), ("free", 3))
    ]
    shapes += [
        ("system.disk.io", "By", "counter", {"system.device": f"sd{n}", "disk.io.direction": way}, 1e6 * (n + 1))
        for n in range(devices)
        for way in ("read", "write")
    ]
    shapes += [("queue.depth", "{job}", "gauge", {}, 12.0), ("irca.agent.spool.size", "By", "gauge", {}, 4096.0)]
    own = {"instance": instance, "agent": agent, "agent_type": "server", "environment": environment, "host.name": host}
    return [
        (SeriesKey(tuple(sorted({**own, **labels, "__name__": name}.items())), unit, kind), level)
        for name, unit, kind, labels, level in shapes
    ]


async def write_samples(platform, series: list[tuple[SeriesKey, float]], start: float, end: float) -> None:
    """A sample of each series every ten seconds between two times."""
    schema = await platform.metrics.register([key for key, _ in series])
    rows = []
    for second in range(int(start) // STEP * STEP, int(end) + 1, STEP):
        values = [
            level * (second % 1_000_000) if key.kind == "counter" else level * (1 + 0.2 * math.sin(second / 300 + place))
            for place, (key, level) in enumerate(series)
        ]
        rows.append(Row(schema.id, second * 1000, np.array(values)))
    await platform.metrics.append(rows)


async def write_events(platform, instance: str, agent: str, environment: str, events: list[tuple[float, int, str, str]]) -> None:
    """Events (minutes ago, severity number, name, what happened)."""
    about = {"instance_id": instance, "agent_id": agent, "agent_type": "server", "environment_name": environment}
    await platform.events.record(
        [
            EventRecord(
                uuid.uuid4().hex, name, int((time.time() - minutes * 60) * 1e9), severity, body, {"irca.package.name": "openssl"}, **about
            )
            for minutes, severity, name, body in events
        ]
    )


EVENTS = [
    (5.0, 13, "irca.instance.status_changed", "web-1 is degraded: Collector disk failed."),
    (20.0, 9, "irca.host.package.upgraded", "openssl was upgraded from 3.0.14 to 3.0.15."),
    (20.2, 9, "irca.host.package.upgraded", "libssl3 was upgraded from 3.0.14 to 3.0.15."),
    (40.0, 17, "irca.host.unit.failed", "nightly-backup.service failed with exit code <1>."),
    (300.0, 9, "irca.host.package.installed", "htop was installed."),
]
