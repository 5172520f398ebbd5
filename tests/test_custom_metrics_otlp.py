from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest, ExportMetricsServiceResponse

from connectors.core.agent_config import AgentConfig
from connectors.core.custom import otlp_receiver
from connectors.core.custom.assemble import make_sources
from connectors.core.custom.intake import Intake, Limits
from connectors.core.custom.otlp_payload import only_series, records_of, series_of, with_event_ids, with_resource
from connectors.core.custom.otlp_receiver import OtlpReceiver
from connectors.core.errors import ConfigError
from connectors.core.wire import WireError
from tests.configured_agent import APPLIED, ConfigurationDesk, TrialAgent, options, running
from tests.fake_platform import FakePlatform

sockets = pytest.mark.sockets


def metrics_request(*series: str, service="shop") -> ExportMetricsServiceRequest:
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add(schema_url="https://example.com/1")
    resource.resource.attributes.add(key="service.name").value.string_value = service
    scope = resource.scope_metrics.add()
    scope.scope.name = "their-library"
    metric = scope.metrics.add(name="orders", unit="{order}")
    metric.sum.aggregation_temporality = 2
    metric.sum.is_monotonic = True
    for each in series:
        point = metric.sum.data_points.add(as_double=2.5, time_unix_nano=10**18)
        point.attributes.add(key="kind").value.string_value = each
    span = scope.metrics.add(name="latency")
    histogram = span.histogram.data_points.add(count=1, time_unix_nano=10**18, bucket_counts=[0, 1], explicit_bounds=[0.5])
    histogram.attributes.add(key="kind").value.string_value = "all"
    return request


def logs_request(identifier: str = "") -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    record = (
        request.resource_logs.add().scope_logs.add().log_records.add(time_unix_nano=10**18, severity_number=9, event_name="shop.opened")
    )
    record.body.string_value = "hello"
    record.attributes.add(key="kind").value.string_value = "a"
    if identifier:
        record.attributes.add(key="irca.event.id").value.string_value = identifier
    return request


def attributes(pairs):
    return {pair.key: pair.value.string_value for pair in pairs}


# Payloads


def test_series_are_told_by_resource_name_and_attributes():
    first = metrics_request("a", "b").SerializeToString()
    assert len(set(series_of(first))) == 3
    assert series_of(first) == series_of(first)
    assert not set(series_of(first)) & set(series_of(metrics_request("a", service="other").SerializeToString()))


def test_points_of_series_that_are_not_allowed_go_and_nothing_else_changes():
    request = metrics_request("a", "b")
    series = series_of(request.SerializeToString())
    kept = ExportMetricsServiceRequest.FromString(only_series(request.SerializeToString(), frozenset({series[0], series[2]})))
    del request.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[1]
    assert kept == request
    everything = metrics_request("a", "b")
    assert ExportMetricsServiceRequest.FromString(only_series(everything.SerializeToString(), frozenset(series))) == everything


def test_a_resource_gets_what_it_lacks_and_keeps_what_it_has():
    content = with_resource(metrics_request("a").SerializeToString(), {"host.name": "h", "service.name": "agent"})
    marked = ExportMetricsServiceRequest.FromString(content)
    assert attributes(marked.resource_metrics[0].resource.attributes) == {"service.name": "shop", "host.name": "h"}
    assert marked.resource_metrics[0].scope_metrics == metrics_request("a").resource_metrics[0].scope_metrics
    assert marked.resource_metrics[0].schema_url == "https://example.com/1"


def test_records_get_an_id_unless_they_have_one():
    marked = ExportLogsServiceRequest.FromString(with_event_ids(logs_request().SerializeToString()))
    record = marked.resource_logs[0].scope_logs[0].log_records[0]
    assert len(attributes(record.attributes)["irca.event.id"]) == 32
    assert (record.body.string_value, record.severity_number) == ("hello", 9)
    own = logs_request("mine").SerializeToString()
    assert with_event_ids(own) == own
    assert records_of(own) == 1


@given(st.binary(max_size=60))
def test_no_bytes_do_worse_than_being_refused(content):
    for read in (series_of, records_of, with_event_ids, lambda c: with_resource(c, {}), lambda c: only_series(c, frozenset())):
        with contextlib.suppress(WireError):
            read(content)


# The receiver


class Bench:
    def __init__(self, series=100, size=1_000_000):
        self.payloads, self.events, self.results, self.now = [], [], [], 0.0
        self.intake = Intake(
            Limits(series, size),
            lambda *payload: self.payloads.append(payload),
            self.events.append,
            self.results.append,
            lambda: {"host.name": "h", "service.instance.id": "i"},
            lambda: self.now,
        )
        self.receiver = OtlpReceiver("127.0.0.1:0")
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.receiver.run, args=(self.intake, self.stopping))
        self.thread.start()
        while not self.receiver.port:
            self.stopping.wait(0.01)

    def close(self):
        self.stopping.set()
        self.thread.join(10)

    def post(self, body, path="/v1/metrics", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.receiver.port, timeout=10)
        try:
            given = {"Content-Type": "application/x-protobuf"} | {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("POST", path, body if isinstance(body, bytes) else body.SerializeToString(), given)
            response = connection.getresponse()
            return response.status, response.read(), response.headers
        finally:
            connection.close()


@pytest.fixture
def bench():
    made = []

    def make(**limits):
        made.append(Bench(**limits))
        return made[-1]

    yield make
    for each in made:
        each.close()


@sockets
def test_metrics_and_logs_are_passed_on_with_where_they_are_from(bench):
    desk = bench()
    assert desk.post(metrics_request("a", "b"))[:2] == (200, b"")
    assert desk.post(gzip.compress(logs_request().SerializeToString()), "/v1/logs", Content_Encoding="gzip")[0] == 200
    (signal, payload, items), (log_signal, log_payload, log_items) = desk.payloads
    assert (signal, items, log_signal, log_items) == ("metrics", 3, "logs", 1)
    resource = attributes(ExportMetricsServiceRequest.FromString(payload).resource_metrics[0].resource.attributes)
    assert resource == {"service.name": "shop", "host.name": "h", "irca.custom.source": "otlp"}
    record = ExportLogsServiceRequest.FromString(log_payload).resource_logs[0].scope_logs[0].log_records[0]
    assert "irca.event.id" in attributes(record.attributes)
    assert desk.post(b"")[0] == 200
    assert len(desk.payloads) == 2


@sockets
@pytest.mark.parametrize(
    ("status", "request_of"),
    [
        (400, {"body": b"\xff\xff"}),
        (400, {"body": b"not gzip", "Content_Encoding": "gzip"}),
        (400, {"body": gzip.compress(b"x" * 100)[:-9], "Content_Encoding": "gzip"}),
        (415, {"body": b"{}", "Content_Type": "application/json"}),
        (415, {"body": b"", "Content_Type": "text/plain"}),
        (415, {"body": b"", "Content_Encoding": "br"}),
        (404, {"body": b"", "path": "/v1/traces"}),
        (411, {"body": b"", "Content_Length": "x"}),
        (413, {"body": b"", "Content_Length": "99999999999999999999"}),
        (413, {"body": b"", "Content_Length": "1000000"}),
        (413, {"body": gzip.compress(bytes(10_000_000)), "Content_Encoding": "gzip"}),
        (403, {"body": b"", "Host": "evil.example.com"}),
        (403, {"body": b"", "Host": "evil.example.com:4318"}),
        (403, {"body": b"", "Host": "10.0.0.1"}),
        (200, {"body": b"", "Host": "localhost:4318"}),
        (200, {"body": b"", "Host": "[::1]:4318"}),
        (200, {"body": b"", "Host": "[::1]"}),
    ],
)
def test_each_kind_of_request_has_its_answer(bench, status, request_of):
    desk = bench()
    request_of = dict(request_of)
    assert desk.post(request_of.pop("body"), **request_of)[0] == status
    assert desk.payloads == []


@sockets
def test_series_over_the_limit_are_refused_in_part_and_told(bench):
    desk = bench(series=2)
    status, body, _ = desk.post(metrics_request("a", "b", "c"))
    partial = ExportMetricsServiceResponse.FromString(body).partial_success
    assert (status, partial.rejected_data_points) == (200, 2)
    assert "over the limit of 2 (custom_max_series)" in partial.error_message
    assert desk.payloads[0][2] == 2
    assert [event.name for event in desk.events] == ["irca.agent.custom_metrics.over_limit"]
    assert desk.post(metrics_request("a"))[0] == 200
    assert not desk.results[-1].ok


@sockets
def test_bytes_over_the_limit_are_to_be_sent_later(bench):
    desk = bench(size=1024)
    while (answer := desk.post(metrics_request("a")))[0] == 200:
        assert len(desk.payloads) < 20
    assert (answer[0], answer[2]["Retry-After"]) == (429, "30")
    desk.now = 60.0
    assert desk.post(metrics_request("a"))[0] == 200


@sockets
def test_idle_connections_do_not_keep_others_out_for_long(bench, monkeypatch):
    monkeypatch.setattr(otlp_receiver._Handler, "timeout", 0.5)
    desk = bench()
    idle = [socket.create_connection(("127.0.0.1", desk.receiver.port)) for _ in range(40)]
    for _ in range(40):
        try:
            if desk.post(metrics_request("a"))[0] == 200:
                break
        except OSError:
            desk.stopping.wait(0.2)
    assert desk.payloads
    for each in idle:
        each.close()


@sockets
def test_an_address_that_is_taken_is_told_and_tried_again(monkeypatch):
    monkeypatch.setattr(otlp_receiver, "_PATIENCE", 0.1)
    results, stopping = [], threading.Event()
    intake = Intake(Limits(1, 1024), lambda *_: None, lambda _: None, results.append, dict)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        receiver = OtlpReceiver(f"127.0.0.1:{taken.getsockname()[1]}")
        thread = threading.Thread(target=receiver.run, args=(intake, stopping))
        thread.start()
        while not results:
            stopping.wait(0.01)
        assert "cannot be listened on: Address already in use" in results[0].reason
    while not results[-1].ok:
        stopping.wait(0.01)
    stopping.set()
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize("address", ["0.0.0.0:4318", "10.0.0.1:4318", ":4318", "localhost:4318", "127.0.0.1", "[::]:4318"])
def test_only_loopback_can_be_listened_on(address):
    with pytest.raises(ConfigError, match="custom_otlp_endpoint must match"):
        AgentConfig.from_mapping({"custom_otlp_endpoint": address})


def test_a_port_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="a port up to 65535"):
        make_sources(AgentConfig(custom_otlp_endpoint="127.0.0.1:65536"))


# In a running agent


@sockets
def test_an_agent_told_to_receives_and_passes_on(tmp_path, free_port):
    platform = FakePlatform()
    desk = ConfigurationDesk(platform)
    try:
        with running(TrialAgent(platform.url, "agent_test_token", options(tmp_path / "state"))):
            desk.push(b"h1", {"custom_otlp_endpoint": f"127.0.0.1:{free_port}"})
            desk.wait(b"h1", APPLIED)
            request = metrics_request("a")
            del request.resource_metrics[0].scope_metrics[0].metrics[1]
            connection = http.client.HTTPConnection("127.0.0.1", free_port, timeout=10)
            for path, body in (("/v1/metrics", request), ("/v1/logs", logs_request())):
                connection.request("POST", path, body.SerializeToString(), {"Content-Type": "application/x-protobuf"})
                answer = connection.getresponse()
                assert (answer.status, answer.read()) == (200, b"")
            connection.close()
            platform.wait(lambda: platform.values("orders") == [2.5] and len(platform.events_named("shop.opened")) == 1)
            assert json.dumps(desk.effective["custom_otlp_endpoint"]) == f'"127.0.0.1:{free_port}"'
    finally:
        platform.down()
