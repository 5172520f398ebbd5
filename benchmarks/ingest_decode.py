"""CPU time of taking OTLP metrics: decoding alone, and the endpoint's whole work without a server and without a store.

Run ``python benchmarks/ingest_decode.py [seconds]``. Figures are CPU microseconds for each data point, which is CPU-seconds for each
million samples.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from app.api.asgi import BodyLimits
from app.api.otlp_endpoint import OtlpEndpoint
from app.auth.principal import Principal
from app.events.stream import LiveStream
from app.telemetry.otlp_layout import Template, row_ranges
from app.telemetry.otlp_limits import OtlpLimits
from app.telemetry.otlp_metrics import decode_metrics, parse_metrics
from app.telemetry.store import Row, Schema, SeriesKey
from connectors.core.telemetry import Collection, Kind, Metric, Point, ResourceMetrics, encode_metrics

PRINCIPAL = Principal("credential", "agent-1", "server", "prod", "instance-1")
RESOURCE = {"host.id": "f3d2", "host.name": "web-1", "host.arch": "amd64", "os.type": "linux", "os.version": "12", "service.name": "agent"}


class NullStore:
    """Takes rows and forgets them: what is measured is everything before the store."""

    def __init__(self) -> None:
        self.samples = 0

    async def register(self, series: Sequence[SeriesKey]) -> Schema:
        return Schema(1, len(series))

    async def append(self, rows: Sequence[Row]) -> None:
        self.samples += sum(len(row.values) for row in rows)


def body(points: int, time_unix_nano: int, offset: float) -> bytes:
    """One collection: counters and gauges of ten points each with three attributes."""
    metrics = [
        Metric(
            f"system.disk.operations.{m}",
            "{operation}",
            Kind.COUNTER if m % 2 else Kind.GAUGE,
            [Point(offset + m * 10 + p, {"system.device": f"sda{p}", "disk.io.direction": "read", "host.slot": p}) for p in range(10)],
            start_time_unix_nano=time_unix_nano - 10**12 if m % 2 else 0,
        )
        for m in range(points // 10)
    ]
    return encode_metrics(Collection(time_unix_nano, [ResourceMetrics(RESOURCE, metrics)]))


def cpu_per_point(work: Callable[[bytes], Any], bodies: list[bytes], points: int, seconds: float) -> float:
    rounds, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        for each in bodies:
            work(each)
        rounds += len(bodies)
    return (time.process_time() - began) / rounds / points * 1e6


async def authenticate(_: str) -> Principal:
    return PRINCIPAL


async def resolve(principal: Principal, _: Any) -> Principal:
    return principal


async def record(events: Sequence[Any]) -> int:
    return len(events)


async def send(message: Any) -> None:
    assert message.get("status", 200) == 200


async def endpoint_per_point(bodies: list[bytes], points: int, seconds: float) -> float:
    endpoint = OtlpEndpoint(
        authenticate=authenticate,
        resolve_instance=resolve,
        metrics=NullStore(),  # type: ignore[arg-type]  # ingest writes only
        record_events=record,
        live=LiveStream(),
        limits=BodyLimits(),
        clock=time.time,
    )
    headers = [(b"authorization", b"Bearer x"), (b"content-type", b"application/x-protobuf"), (b"host", b"localhost")]

    async def post(each: bytes) -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": each, "more_body": False}

        await endpoint({"type": "http", "method": "POST", "path": "/v1/metrics", "headers": headers}, receive, send)

    await post(bodies[0])
    rounds, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        for each in bodies:
            await post(each)
        rounds += len(bodies)
    return (time.process_time() - began) / rounds / points * 1e6


def measure(points: int, seconds: float) -> None:
    limits = OtlpLimits()
    now = time.time_ns()
    bodies = [body(points, now + n * 10**10, n * 0.25) for n in range(5)]
    bounds = limits.metric_times(time.time())

    def in_full(each: bytes) -> Any:
        return decode_metrics(parse_metrics(each, is_json=False), [PRINCIPAL], limits, bounds)

    decoded = in_full(bodies[0])
    template = Template.of(bodies[0], decoded)
    assert template is not None
    template.schemas = dict.fromkeys(row_ranges(decoded.times_ms, decoded.boundaries), 1)
    assert template.rows(bodies[1], bounds) is not None
    figures = (
        cpu_per_point(in_full, bodies, points, seconds),
        cpu_per_point(lambda each: Template.of(each, decoded), bodies[:1], points, seconds),
        cpu_per_point(lambda each: template.rows(each, bounds), bodies, points, seconds),
        asyncio.run(endpoint_per_point(bodies, points, seconds)),
    )
    print(f"{points:>7} {len(bodies[0]):>8} {figures[0]:>9.2f} {figures[1]:>9.2f} {figures[2]:>10.3f} {figures[3]:>9.3f}")


def main(seconds: float) -> None:
    print(f"{'points':>7} {'bytes':>8} {'in full':>9} {'template':>9} {'recognise':>10} {'endpoint':>9}   CPU us a point")
    for points in (100, 1000):
        measure(points, seconds)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
