"""Whatever a body holds, it is answered 200 or 400."""

from __future__ import annotations

import asyncio
import json

from hypothesis import given, settings
from hypothesis import strategies as st
from otlp_platform import JSON, PROTOBUF, Platform, T, metrics

from connectors.core.telemetry import Event, encode_events

VALID = metrics(points=["x", "y", "z"])
VALID_LOGS = encode_events([Event("e", {"a": 1}, time_unix_nano=T)], T)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["/v1/metrics", "/v1/logs"]),
    st.sampled_from([PROTOBUF, JSON]),
    st.sampled_from(["credential", "enrolment"]),
    st.one_of(st.binary(max_size=120), st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))),
)
def test_arbitrary_bytes_are_answered_200_or_400(path, content_type, token, body):
    answer = asyncio.run(Platform().post(body, path, content_type=content_type, token=token))
    assert answer.status in {200, 400}


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([("/v1/metrics", VALID), ("/v1/logs", VALID_LOGS)]),
    st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4),
)
def test_damaged_requests_are_answered_200_or_400(valid, changes):
    path, body = valid
    damaged = bytearray(body)
    for at, byte in changes:
        damaged[at % len(body)] = byte

    async def both():
        platform = Platform()
        await platform.post(body, path)
        return await platform.post(bytes(damaged), path)

    assert asyncio.run(both()).status in {200, 400}


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(
            st.sampled_from(
                [
                    "resourceMetrics",
                    "scopeMetrics",
                    "metrics",
                    "gauge",
                    "sum",
                    "dataPoints",
                    "attributes",
                    "value",
                    "key",
                    "timeUnixNano",
                    "asInt",
                    "resourceLogs",
                    "scopeLogs",
                    "logRecords",
                    "traceId",
                    "spanId",
                    "body",
                    "stringValue",
                    "exemplars",
                    "name",
                    "resource",
                ]
            ),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["/v1/metrics", "/v1/logs"]), JSON_VALUES)
def test_arbitrary_json_is_answered_200_or_400(path, document):
    answer = asyncio.run(Platform().post(json.dumps(document).encode(), path, content_type=JSON))
    assert answer.status in {200, 400}
