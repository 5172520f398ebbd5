"""The OTLP endpoint on fakes of what stands behind it, and requests for it."""

from __future__ import annotations

import json

from google.rpc.status_pb2 import Status

from app.api.asgi import BodyLimits
from app.api.otlp_endpoint import OtlpEndpoint
from app.auth.principal import Principal
from app.errors import TokenExpiredError, TokenUnknownError, TooManyRequestsError
from app.events.stream import LiveStream
from app.telemetry.otlp_limits import OtlpLimits
from app.telemetry.store import Schema
from connectors.core.telemetry import Collection, Kind, Metric, Point, ResourceMetrics, encode_metrics

PROTOBUF, JSON = "application/x-protobuf", "application/json"
CREDENTIAL = Principal("credential", "agent-1", "server", "prod", "instance-1")
ENROLMENT = Principal("enrolment", "agent-2", "server", "prod")
NOW = 1_800_000_000.0
T = int(NOW) * 10**9


class Store:
    """The part of the metric store port that ingest uses, in memory."""

    def __init__(self):
        self.schemas = []
        self.samples = {}
        self.appends = 0
        self.failure = None

    async def register(self, series):
        if tuple(series) not in self.schemas:
            self.schemas.append(tuple(series))
        return Schema(self.schemas.index(tuple(series)), len(series))

    async def append(self, rows):
        if self.failure is not None:
            raise self.failure
        self.appends += 1
        for row in rows:
            series = self.schemas[row.schema_id]
            assert len(series) == len(row.values)
            for key, value in zip(series, row.values.tolist(), strict=True):
                self.samples.setdefault((key.labels, row.time_ms), value)


class Platform:
    """An endpoint on fakes of what stands behind it."""

    def __init__(self, **limits):
        self.store = Store()
        self.events = {}
        self.live = LiveStream()
        self.resolved = []
        self.instances = {}
        self.refusals = {
            "expired": TokenExpiredError(),
            "busy": TooManyRequestsError(retry_after=7),
            "broken": RuntimeError("secret detail"),
        }
        self.endpoint = OtlpEndpoint(
            authenticate=self.authenticate,
            resolve_instance=self.resolve,
            metrics=self.store,
            record_events=self.record,
            live=self.live,
            limits=BodyLimits(max_body_bytes=200_000, max_decompressed_bytes=400_000),
            clock=lambda: NOW,
            items=OtlpLimits(**limits),
        )

    async def authenticate(self, token):
        if token in self.refusals:
            raise self.refusals[token]
        if token not in {"credential", "enrolment"}:
            raise TokenUnknownError
        return CREDENTIAL if token == "credential" else ENROLMENT

    async def resolve(self, principal, attributes):
        self.resolved.append(dict(attributes))
        name = attributes.get("host.name", "")
        return Principal(
            principal.kind, principal.agent_id, principal.agent_type, principal.environment_name, self.instances.get(name, f"i-{name}")
        )

    async def record(self, events):
        new = [event for event in events if event.id not in self.events]
        self.events.update((event.id, event) for event in new)
        return len(new)

    async def post(self, body, path="/v1/metrics", *, method="POST", token="credential", content_type=PROTOBUF, encoding=None):
        headers = [(b"content-type", content_type.encode())] if content_type else []
        if token:
            headers.append((b"authorization", f"Bearer {token}".encode()))
        if encoding:
            headers.append((b"content-encoding", encoding.encode()))
        sent = []

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        await self.endpoint({"type": "http", "method": method, "path": path, "headers": headers}, receive, send)
        start, end = sent
        return Answer(start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, end["body"])


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def problem(self):
        """The google.rpc.Status of a failure, in whichever encoding."""
        if self.headers["content-type"] == JSON:
            document = json.loads(self.body)
            return document["code"], document["message"]
        status = Status.FromString(self.body)
        return status.code, status.message


def metrics(value=1.0, at=T, name="m", hosts=("a",), points=("x", "y")):
    return encode_metrics(
        Collection(
            at,
            [
                ResourceMetrics({"host.name": host}, [Metric(name, "1", Kind.GAUGE, [Point(value, {"p": p}) for p in points])])
                for host in hosts
            ],
        )
    )


def values(store):
    return sorted(store.samples.values())
