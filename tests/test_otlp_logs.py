from __future__ import annotations

import json
import math

import pytest
from attribute_values import any_value
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from app.auth.principal import Principal
from app.errors import MalformedBodyError
from app.telemetry.otlp_limits import OtlpLimits
from app.telemetry.otlp_logs import decode_logs, parse_logs
from connectors.core.telemetry import Event, Severity, encode_events

PRINCIPAL = Principal("credential", "agent-1", "server", "prod", "instance-1")
LIMITS = OtlpLimits()
NOW = 1_800_000_000.0
T = int(NOW) * 10**9


def request(*records, resource=()):
    whole = ExportLogsServiceRequest()
    one = whole.resource_logs.add()
    one.resource.attributes.extend(resource)
    one.scope_logs.add().log_records.extend(records)
    return whole


def decode(message, limits=LIMITS, principal=PRINCIPAL, now=NOW):
    return decode_logs(message, [principal] * len(message.resource_logs), limits, limits.event_times(now))


def event_of(record, **options):
    (event,) = decode(request(record), **options).events
    return event


def attribute(key, value):
    return KeyValue(key=key, value=value if isinstance(value, AnyValue) else any_value(value))


def test_an_agents_event_arrives_as_it_was_sent():
    sent = Event("container.restarted", {"count": 3, "image": "web:1"}, Severity.WARN, "web restarted", {"host.name": "a"}, T)
    (event,) = decode(parse_logs(encode_events([sent], T + 5), is_json=False), now=NOW + 1).events
    assert event.id == sent.id
    assert event.name == "container.restarted"
    assert (event.time_unix_nano, event.observed_time_unix_nano, event.severity) == (T, T + 5, 13)
    assert event.body == "web restarted"
    assert event.attributes == {"count": 3, "image": "web:1"}
    assert event.resource == {"host.name": "a"}
    assert (event.agent_id, event.instance_id, event.agent_type, event.environment_name) == ("agent-1", "instance-1", "server", "prod")


def test_a_record_without_id_gets_the_same_one_each_time_it_is_sent():
    record = LogRecord(time_unix_nano=T, body=any_value("x"), attributes=[attribute("a", 1), attribute("b", 2)])
    again = LogRecord(time_unix_nano=T, body=any_value("x"), attributes=[attribute("b", 2), attribute("a", 1)], observed_time_unix_nano=T)
    assert event_of(record).id == event_of(again, now=NOW + 60).id


@pytest.mark.parametrize(
    "other",
    [
        LogRecord(time_unix_nano=T + 1, body=any_value("x")),
        LogRecord(time_unix_nano=T, body=any_value("y")),
        LogRecord(time_unix_nano=T, body=any_value("x"), event_name="n"),
        LogRecord(time_unix_nano=T, body=any_value("x"), attributes=[attribute("a", 1)]),
    ],
)
def test_records_that_say_something_else_get_another_id(other):
    assert event_of(other).id != event_of(LogRecord(time_unix_nano=T, body=any_value("x"))).id


def test_the_same_record_of_another_instance_gets_another_id():
    record = LogRecord(time_unix_nano=T)
    other = Principal("credential", "agent-1", "server", "prod", "instance-2")
    assert event_of(record).id != event_of(record, principal=other).id


@pytest.mark.parametrize("given_id", ["x" * 65, "with space", "", 7])
def test_an_id_that_cannot_be_kept_is_replaced_by_one_that_depends_on_it(given_id):
    record = LogRecord(time_unix_nano=T, attributes=[attribute("irca.event.id", given_id)])
    assert event_of(record).id == event_of(record).id != given_id
    assert len(event_of(record).id) == 32


def test_the_name_is_the_event_name_or_the_attribute_or_log():
    assert event_of(LogRecord(event_name="a", attributes=[attribute("event.name", "b")])).name == "a"
    assert event_of(LogRecord(attributes=[attribute("event.name", "b")])).name == "b"
    assert event_of(LogRecord(attributes=[attribute("event.name", 7)])).name == "log"
    assert event_of(LogRecord()).name == "log"
    assert len(event_of(LogRecord(event_name="n" * 300)).name) == 200


def test_the_time_falls_back_to_the_observed_one_and_then_to_now():
    assert event_of(LogRecord(observed_time_unix_nano=T - 5)).time_unix_nano == T - 5
    bare = event_of(LogRecord())
    assert (bare.time_unix_nano, bare.observed_time_unix_nano) == (T, T)
    assert event_of(LogRecord(time_unix_nano=T, observed_time_unix_nano=2**64 - 1)).observed_time_unix_nano == T


@pytest.mark.parametrize(("number", "kept"), [(0, 9), (1, 1), (17, 17), (24, 24), (99, 24), (-3, 9)])
def test_severity_is_an_otel_number(number, kept):
    assert event_of(LogRecord(severity_number=number)).severity == kept


def test_a_structured_body_becomes_json_text():
    nested = AnyValue(kvlist_value=KeyValueList(values=[attribute("é", 1), attribute("list", ["a"])]))
    assert json.loads(event_of(LogRecord(body=nested)).body) == {"é": 1, "list": ["a"]}
    assert event_of(LogRecord(body=any_value(5))).body == "5"
    assert event_of(LogRecord()).body == ""


def test_attributes_are_fit_for_json_and_for_the_database():
    record = LogRecord(
        attributes=[attribute("nan", math.nan), attribute("inf", math.inf), attribute("n\x00l", "a\x00b"), KeyValue(key="none")]
    )
    event = event_of(record)
    assert event.attributes == {"nan": "NaN", "inf": "Infinity", "n\ufffdl": "a\ufffdb", "none": None}
    json.dumps(event.attributes, allow_nan=False)


def test_trace_and_span_ids_are_kept_as_attributes():
    event = event_of(LogRecord(trace_id=bytes(range(16)), span_id=bytes(8)))
    assert event.attributes == {"trace_id": "000102030405060708090a0b0c0d0e0f", "span_id": "0" * 16}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (LogRecord(time_unix_nano=T + 2 * 86_400 * 10**9, event_name="e"), "future"),
        (LogRecord(time_unix_nano=2**64 - 1), "future"),
        (LogRecord(time_unix_nano=5), "older than the retention"),
        (LogRecord(body=any_value("x" * 70_000)), "larger than 65536 bytes"),
    ],
)
def test_a_bad_record_is_rejected_and_its_neighbours_are_recorded(record, reason):
    decoded = decode(request(LogRecord(event_name="a"), record, LogRecord(event_name="b")))
    assert [event.name for event in decoded.events] == ["a", "b"]
    assert decoded.rejections.count == 1
    assert reason in decoded.rejections.message()


def test_records_beyond_the_limit_of_one_request_are_rejected():
    decoded = decode(request(*(LogRecord(event_name=str(i)) for i in range(5))), OtlpLimits(max_records=3))
    assert (len(decoded.events), decoded.rejections.count) == (3, 2)


def test_otlp_json_logs_carry_hexadecimal_ids():
    record = {
        "timeUnixNano": str(T),
        "severityNumber": 13,
        "eventName": "e",
        "body": {"stringValue": "b"},
        "traceId": "5B8EFFF798038103D269B633813FC60C",
        "spanId": "",
        "attributes": [{"key": "traceId", "value": {"stringValue": "left alone"}}],
    }
    body = json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}).encode()
    (event,) = decode(parse_logs(body, is_json=True)).events
    assert event.attributes == {"traceId": "left alone", "trace_id": "5b8efff798038103d269b633813fc60c"}
    assert (event.name, event.body, event.severity) == ("e", "b", 13)


@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_are_events_or_malformed(body, is_json):
    try:
        parsed = parse_logs(body, is_json=is_json)
    except MalformedBodyError:
        return
    decode(parsed)
