"""A small platform for the agent's own tests: it enrols, takes OTLP, counts every event id and data point once, and can misbehave."""

from __future__ import annotations

import gzip
import itertools
import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest, ExportMetricsServiceResponse

from connectors.core import opamp_pb2 as pb

Answer = tuple[int, dict[str, str], bytes]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        """A client that went away is part of the tests."""


class FakePlatform:
    def __init__(self, token: str = "agent_test_token", context: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.token = token
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)
        self.credentials: dict[str, bytes] = {}
        self.refused: dict[str, str] = {}
        self.unproven: set[str] = set()
        self.messages: list[tuple[str, pb.AgentToServer]] = []
        self.requests: list[tuple[str, dict[str, str], int]] = []
        self.samples: dict[tuple, float] = {}
        self.samples_taken = 0
        self.events: dict[str, dict[str, object]] = {}
        self.event_copies: Counter[str] = Counter()
        self.interfere: Callable[[str, dict[str, str], bytes], Answer | None] = lambda path, headers, body: None
        self.answer_opamp: Callable[[pb.AgentToServer, pb.ServerToAgent], None] = lambda message, answer: None
        self.heartbeat_interval = 30
        self.rejected = 0
        self.clock_offset = 0.0
        self.changed = threading.Condition(self.lock)
        self.context = context
        self._serve(port)

    def _serve(self, port: int) -> None:
        platform = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30
            disable_nagle_algorithm = True

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status, extra, content = platform.handle(self.path, headers, body)
                self.send_response_only(status)
                self.send_header("Date", formatdate(time.time() + platform.clock_offset, usegmt=True))
                self.send_header("Content-Length", str(len(content)))
                for name, value in extra.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        self.server = _Server(("127.0.0.1", port), Handler)
        if self.context:
            self.server.socket = self.context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"{'https' if self.context else 'http'}://localhost:{self.port}"

    def down(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def up(self) -> None:
        self._serve(self.port)

    def wait(self, condition: Callable[[], bool], timeout: float = 60) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, timeout), "the agent did not do what was awaited in time"

    def handle(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        with self.changed:
            self.requests.append((path, headers, len(body)))
            interference = self.interfere
            self.changed.notify_all()
        if (answer := interference(path, headers, body)) is not None:
            with self.changed:
                self.changed.notify_all()
            return answer
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        with self.changed:
            try:
                return self._handle(path, headers.get("authorization", "").removeprefix("Bearer "), body)
            finally:
                self.changed.notify_all()

    def _handle(self, path: str, bearer: str, body: bytes) -> Answer:
        if bearer in self.refused:
            return problem(401, self.refused[bearer])
        if bearer != self.token and bearer not in self.credentials:
            return problem(401, "token-unknown")
        if path == "/v1/opamp":
            return self._opamp(bearer, pb.AgentToServer.FromString(body))
        if bearer == self.token:
            return problem(401, "token-unknown")
        if path == "/v1/metrics":
            return self._metrics(ExportMetricsServiceRequest.FromString(body))
        if path == "/v1/logs":
            return self._logs(ExportLogsServiceRequest.FromString(body))
        return problem(404, "not-found")

    def _opamp(self, bearer: str, message: pb.AgentToServer) -> Answer:
        self.messages.append((bearer, message))
        answer = pb.ServerToAgent(instance_uid=message.instance_uid)
        if bearer == self.token:
            credential = f"credential-{next(self.numbers)}"
            self.credentials[credential] = message.instance_uid
            self.unproven.add(credential)
            answer.connection_settings.opamp.headers.headers.add(key="Authorization", value=f"Bearer {credential}")
        self.unproven.discard(bearer)
        answer.connection_settings.opamp.heartbeat_interval_seconds = self.heartbeat_interval
        self.answer_opamp(message, answer)
        return 200, {"Content-Type": "application/x-protobuf"}, answer.SerializeToString()

    def _metrics(self, request: ExportMetricsServiceRequest) -> Answer:
        for resource in request.resource_metrics:
            who = tuple(sorted((a.key, a.value.string_value) for a in resource.resource.attributes))
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in (metric.gauge if metric.HasField("gauge") else metric.sum).data_points:
                        labels = tuple(sorted((a.key, str(a.value)) for a in point.attributes))
                        self.samples[who, metric.name, labels, point.time_unix_nano] = point.as_double
                        self.samples_taken += 1
        response = ExportMetricsServiceResponse()
        if self.rejected:
            response.partial_success.rejected_data_points = self.rejected
            response.partial_success.error_message = "some points are bad"
            self.rejected = 0
        return 200, {"Content-Type": "application/x-protobuf"}, response.SerializeToString()

    def _logs(self, request: ExportLogsServiceRequest) -> Answer:
        for resource in request.resource_logs:
            for scope in resource.scope_logs:
                for record in scope.log_records:
                    attributes = {a.key: a.value.string_value or a.value.int_value for a in record.attributes}
                    identifier = str(attributes["irca.event.id"])
                    self.events[identifier] = {"name": record.event_name, **attributes}
                    self.event_copies[identifier] += 1
        response = ExportLogsServiceResponse()
        if self.rejected:
            response.partial_success.rejected_log_records = self.rejected
            self.rejected = 0
        return 200, {"Content-Type": "application/x-protobuf"}, response.SerializeToString()

    def values(self, name: str) -> list[float]:
        return [value for (_who, metric, _labels, _at), value in sorted(self.samples.items(), key=lambda e: e[0][3]) if metric == name]

    def events_named(self, name: str) -> list[dict[str, object]]:
        return [event for event in self.events.values() if event["name"] == name]


def problem(status: int, code: str, **headers: str) -> Answer:
    body = json.dumps({"code": code, "detail": f"it is {code}", "status": status}).encode()
    return status, {"Content-Type": "application/problem+json", **{k.replace("_", "-"): v for k, v in headers.items()}}, body
