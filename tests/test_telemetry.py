from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2

from connectors.core import wire
from connectors.core.collector import describe_failure, run_collectors
from connectors.core.errors import CollectorError
from connectors.core.ledger import SIGNALS, Ledger, SpoolStatistics
from connectors.core.own_metrics import own_metrics, with_own_metrics
from connectors.core.telemetry import (
    EVENT_ID,
    Collection,
    Event,
    Kind,
    Metric,
    Point,
    ResourceMetrics,
    Severity,
    encode_events,
    encode_metrics,
    event_payloads,
    metric_payloads,
)

words = st.text(max_size=12)
values = st.one_of(words, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.lists(words, max_size=3))
attributes = st.dictionaries(words, values, max_size=4)
points = st.lists(st.builds(Point, st.floats(allow_nan=False), attributes), max_size=4)
metrics = st.lists(st.builds(Metric, words, words, st.sampled_from(Kind), points, st.integers(0, 2**63)), max_size=4)
collections = st.builds(Collection, st.integers(0, 2**63), st.lists(st.builds(ResourceMetrics, attributes, metrics), max_size=3))
events = st.lists(
    st.builds(Event, words, attributes, st.sampled_from(Severity), words, attributes, st.integers(0, 2**63), words), max_size=4
)


def plain(value):
    kind = value.WhichOneof("value")
    return [plain(v) for v in value.array_value.values] if kind == "array_value" else getattr(value, kind)


def flat(request):
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                yield {a.key: plain(a.value) for a in resource.resource.attributes}, metric


@given(collections)
def test_metrics_are_written_as_the_generated_messages_would_write_them(collection):
    written = encode_metrics(collection)
    request = ExportMetricsServiceRequest.FromString(written)
    assert request.SerializeToString() == written
    told = [(r.resource, m) for r in collection.resources for m in r.metrics]
    read = list(flat(request))
    assert len(read) == len(told)
    for (resource, metric), (got_resource, got) in zip(told, read, strict=True):
        assert {k: list(v) if isinstance(v, list) else v for k, v in resource.items()} == got_resource
        assert (got.name, got.unit) == (metric.name, metric.unit)
        data = got.gauge if metric.kind is Kind.GAUGE else got.sum
        if metric.kind is not Kind.GAUGE:
            assert data.aggregation_temporality == metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
            assert data.is_monotonic == (metric.kind is Kind.COUNTER)
        assert [(p.as_double, {a.key: plain(a.value) for a in p.attributes}) for p in data.data_points] == [
            (p.value, dict(p.attributes)) for p in metric.points
        ]
        assert {(p.time_unix_nano, p.start_time_unix_nano) for p in data.data_points} <= {
            (collection.time_unix_nano, metric.start_time_unix_nano)
        }


@given(events, st.integers(0, 2**63))
def test_events_are_written_as_the_generated_messages_would_write_them(given_events, observed):
    written = encode_events(given_events, observed)
    request = ExportLogsServiceRequest.FromString(written)
    assert request.SerializeToString() == written
    records = [
        (r, {a.key: plain(a.value) for a in x.resource.attributes})
        for x in request.resource_logs
        for s in x.scope_logs
        for r in s.log_records
    ]
    assert len(records) == len(given_events)
    for event in given_events:
        assert any(
            (r.event_name, r.body.string_value, r.severity_number, r.severity_text, r.time_unix_nano, r.observed_time_unix_nano)
            == (event.name, event.body, int(event.severity), event.severity.name, event.time_unix_nano, observed)
            and {a.key: plain(a.value) for a in r.attributes} == {EVENT_ID: event.id, **event.attributes}
            and resource == dict(event.resource)
            for r, resource in records
        )


@given(values)
def test_any_value_is_byte_for_byte_that_of_the_generated_message(value):
    written = wire.any_value(value)
    assert AnyValue.FromString(written).SerializeToString() == written
    assert plain(AnyValue.FromString(written)) == value


def test_two_rounds_of_one_shape_have_one_layout():
    def round_(at, value):
        return encode_metrics(Collection(at, [ResourceMetrics({"a": "b"}, [Metric("m", "1", Kind.GAUGE, [Point(value, {"x": "y"})])])]))

    first, second = round_(2**60, 0.0), round_(2**60 + 10**10, 123456.789)
    assert len(first) == len(second)
    assert sum(a != b for a, b in zip(first, second, strict=True)) <= 16


def test_not_a_number_and_infinities_travel():
    collection = Collection(1, [ResourceMetrics({}, [Metric("m", "1", Kind.GAUGE, [Point(math.nan), Point(math.inf)])])])
    ((_, metric),) = flat(ExportMetricsServiceRequest.FromString(encode_metrics(collection)))
    got = [p.as_double for p in metric.gauge.data_points]
    assert math.isnan(got[0])
    assert got[1] == math.inf


def test_a_file_name_that_is_no_unicode_loses_nothing_else():
    collection = Collection(1, [ResourceMetrics({"path": "caf\udce9"}, [Metric("m", "1", Kind.GAUGE, [Point(1.0)])])])
    ((resource, metric),) = flat(ExportMetricsServiceRequest.FromString(encode_metrics(collection)))
    assert (resource["path"], metric.name) == ("caf?", "m")


@given(collections, st.integers(1, 400))
def test_split_requests_hold_every_point_once_and_keep_the_bound(collection, limit):
    parts = list(metric_payloads(collection, limit))
    assert sum(count for _, count in parts) == collection.point_count
    names = []
    for payload, count in parts:
        assert len(payload) <= limit or count == 1
        request = ExportMetricsServiceRequest.FromString(payload)
        got = [(m.name, p.as_double) for _, m in flat(request) for p in (m.gauge if m.HasField("gauge") else m.sum).data_points]
        assert len(got) == count
        names += got
    assert names == [(m.name, p.value) for r in collection.resources for m in r.metrics for p in m.points]


@given(events, st.integers(1, 400))
def test_split_events_hold_every_event_once(given_events, limit):
    parts = list(event_payloads(given_events, 5, limit))
    assert sum(count for _, count in parts) == len(given_events)
    assert all(len(payload) <= limit or count == 1 for payload, count in parts)


def test_event_ids_differ():
    assert len({Event("x").id for _ in range(100)}) == 100


@given(st.integers(0, 2**64 - 1))
def test_numbers_of_the_wire_are_read_back(number):
    assert wire.numbers(wire.tag(1, wire.VARINT) + wire.varint(number)) == {1: number}
    assert wire.numbers(wire.tag(3, wire.FIXED64) + number.to_bytes(8, "little") + wire.tag(4, wire.FIXED32) + b"\1\0\0\0") == {
        3: number,
        4: 1,
    }


@given(st.binary(max_size=60))
def test_reading_any_bytes_gives_fields_or_a_wire_error(content):
    with contextlib.suppress(wire.WireError):
        list(wire.fields(content))


@pytest.mark.parametrize("content", [b"\x08", b"\x0a\x05ab", b"\x0b", b"\x00\x01", b"\x08" + b"\xff" * 11, b"\x09\x01"])
def test_broken_messages_are_wire_errors(content):
    with pytest.raises(wire.WireError):
        list(wire.fields(content))


# Collectors.


class Fixed:
    def __init__(self, name, gathered):
        self.name = name
        self.gathered = gathered

    def collect(self):
        if isinstance(self.gathered, Exception):
            raise self.gathered
        return self.gathered


def test_a_collector_that_fails_never_takes_the_others_along():
    fine = ResourceMetrics({"host.name": "h"}, [Metric("m", "1", Kind.GAUGE, [Point(1.0)])])
    result = run_collectors(
        [Fixed("good", [fine]), Fixed("bad", OSError(13, "Permission denied")), Fixed("ours", CollectorError("no sensor"))],
        {"host.name": "h"},
    )
    assert [(c.name, c.ok, c.reason) for c in result.collectors] == [
        ("good", True, ""),
        ("bad", False, "PermissionError: [Errno 13] Permission denied"),
        ("ours", False, "no sensor"),
    ]
    (merged,) = result.resources
    assert [m.name for m in merged.metrics] == ["m", "irca.collector.duration", "irca.collector.success"]
    assert [p.value for p in merged.metrics[2].points] == [1.0, 0.0, 0.0]


def test_without_collectors_there_is_nothing_to_report():
    assert run_collectors([], {}).point_count == 0


def test_a_failure_is_one_bounded_line():
    assert describe_failure(ValueError("a\n  b")) == "ValueError: a b"
    assert describe_failure(ValueError()) == "ValueError"
    assert len(describe_failure(ValueError("x" * 9999))) == 500


# Own metrics.


def test_the_agents_own_books_travel_with_what_it_collects():
    ledger = Ledger()
    ledger.produced["metrics"] += 10
    ledger.sent["metrics"] += 6
    ledger.dropped["metrics", "age"] += 1
    own = own_metrics(SpoolStatistics(4096, 2, 1.0, ledger, 100.0), 200.0)
    found = {m.name: m for m in own}
    assert [p.value for p in found["irca.agent.spool.size"].points] == [4096.0]
    assert [(p.attributes["irca.signal"], p.value) for p in found["irca.agent.spool.items"].points] == list(
        zip(SIGNALS, [3.0, 0.0], strict=True)
    )
    assert found["irca.agent.items.produced"].start_time_unix_nano == 100 * 10**9
    assert found["irca.agent.items.dropped"].points[0].attributes == {"irca.signal": "metrics", "irca.drop.reason": "age"}
    assert found["process.memory.usage"].points[0].value > 1_000_000


def test_only_the_agents_own_resource_names_the_instance():
    host, container = {"host.name": "h"}, {"container.id": "c"}
    metric = Metric("m", "1", Kind.GAUGE, [Point(1.0)])
    collection = Collection(1, [ResourceMetrics(container, [metric]), ResourceMetrics(dict(host), [metric])])
    mine, other = with_own_metrics(collection, host, {**host, "service.instance.id": "i"}, [metric]).resources
    assert (mine.resource["service.instance.id"], len(mine.metrics)) == ("i", 2)
    assert (other.resource, len(other.metrics)) == (container, 1)
