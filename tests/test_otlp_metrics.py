from __future__ import annotations

import json
import math

import numpy as np
import pytest
from attribute_values import any_value
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

from app.auth.principal import Principal
from app.errors import MalformedBodyError
from app.telemetry.otlp_layout import LayoutCache, Template, find_spans, row_ranges
from app.telemetry.otlp_limits import OtlpLimits
from app.telemetry.otlp_metrics import STALE, decode_metrics, parse_metrics
from connectors.core.telemetry import Collection, Kind, Metric, Point, ResourceMetrics, encode_metrics

PRINCIPAL = Principal("credential", "agent-1", "server", "prod", "instance-1")
LIMITS = OtlpLimits()
NOW = 1_800_000_000.0
BOUNDS = LIMITS.metric_times(NOW)
T = int(NOW) * 10**9
PLATFORM = {"agent": "agent-1", "agent_type": "server", "environment": "prod", "instance": "instance-1"}
CUMULATIVE, DELTA = pb.AGGREGATION_TEMPORALITY_CUMULATIVE, pb.AGGREGATION_TEMPORALITY_DELTA


def attributes(**values):
    return [KeyValue(key=key, value=any_value(value)) for key, value in values.items()]


def request(*metrics, resource=()):
    whole = ExportMetricsServiceRequest()
    one = whole.resource_metrics.add()
    one.resource.attributes.extend(resource)
    one.scope_metrics.add().metrics.extend(metrics)
    return whole


def gauge(*points, name="m", unit="1"):
    return pb.Metric(name=name, unit=unit, gauge=pb.Gauge(data_points=points))


def number(value=1.0, time=T, **labels):
    kind = {"as_int": value} if isinstance(value, int) else {"as_double": value}
    return pb.NumberDataPoint(time_unix_nano=time, attributes=attributes(**labels), **kind)


def decode(message, limits=LIMITS, principal=PRINCIPAL):
    return decode_metrics(message, [principal] * len(message.resource_metrics), limits, limits.metric_times(NOW))


def series(decoded):
    """Values by labels without those that the platform sets."""
    return {
        tuple((k, v) for k, v in key.labels if k not in PLATFORM): value
        for key, value in zip(decoded.keys, decoded.values.tolist(), strict=True)
    }


def test_a_gauge_point_becomes_a_sample_with_name_attributes_and_the_platforms_labels():
    decoded = decode(request(gauge(number(2.5, direction="read", slot=3), name="system.disk.io", unit="By")))
    (key,) = decoded.keys
    assert dict(key.labels) == {"__name__": "system.disk.io", "direction": "read", "slot": "3", **PLATFORM}
    assert (key.unit, key.kind) == ("By", "gauge")
    assert decoded.times_ms.tolist() == [T // 10**6]
    assert decoded.values.tolist() == [2.5]
    assert decoded.points == (1,)
    assert decoded.rejections.message() == ""


def test_the_order_of_attributes_does_not_matter_to_identity():
    one = decode(request(gauge(number(a="1", b="2"))))
    other = decode(request(gauge(number(b="2", a="1"))))
    assert one.keys == other.keys


@pytest.mark.parametrize(("monotonic", "kind"), [(True, "counter"), (False, "updowncounter")])
def test_a_cumulative_sum_keeps_whether_it_only_grows(monotonic, kind):
    total = pb.Sum(data_points=[number(7)], aggregation_temporality=CUMULATIVE, is_monotonic=monotonic)
    decoded = decode(request(pb.Metric(name="m", sum=total)))
    assert decoded.keys[0].kind == kind
    assert decoded.values.tolist() == [7.0]


def test_attribute_values_become_text():
    point = number()
    point.attributes.extend(attributes(s="x", t=True, f=False, i=-3, d=0.5, nan=math.nan, inf=-math.inf, empty=""))
    nested = KeyValueList(values=attributes(k="v"))
    point.attributes.append(KeyValue(key="a", value=AnyValue(array_value=ArrayValue(values=[any_value(1), any_value("é")]))))
    point.attributes.append(KeyValue(key="kv", value=AnyValue(kvlist_value=nested)))
    point.attributes.append(KeyValue(key="raw", value=AnyValue(bytes_value=b"\x00\x01")))
    point.attributes.append(KeyValue(key="nothing"))
    point.attributes.extend(attributes(**{"": "no name", "__name__": "claimed"}))
    labels = dict(decode(request(gauge(point))).keys[0].labels)
    assert {k: v for k, v in labels.items() if k not in PLATFORM} == {
        "__name__": "m",
        "s": "x",
        "t": "true",
        "f": "false",
        "i": "-3",
        "d": "0.5",
        "nan": "NaN",
        "inf": "-Infinity",
        "a": '[1,"é"]',
        "kv": '{"k":"v"}',
        "raw": "AAE=",
    }


def test_resource_attributes_become_labels_unless_they_only_describe():
    told = {
        "host.name": "web-1",
        "service.name": "shop",
        "os.type": "linux",
        "os.version": "12",
        "os.description": "Debian",
        "process.pid": 7,
        "telemetry.sdk.version": "1",
        "service.version": "2",
        "service.instance.id": "x",
        "host.cpu.model.name": "c",
        "host.ip": ["10.0.0.1"],
        "k8s.pod.label.app": "shop",
        "k8s.pod.name": "shop-1",
    }
    labels = dict(decode(request(gauge(number()), resource=attributes(**told))).keys[0].labels)
    assert labels == {
        "__name__": "m",
        "host.name": "web-1",
        "service.name": "shop",
        "os.type": "linux",
        "k8s.pod.name": "shop-1",
        **PLATFORM,
    }


def test_a_points_attribute_wins_over_the_resources_and_the_platforms_over_both():
    claimed = attributes(zone="resource", instance="forged", agent="forged")
    labels = dict(decode(request(gauge(number(zone="point", environment="forged")), resource=claimed)).keys[0].labels)
    assert labels == {"__name__": "m", "zone": "point", **PLATFORM}


def test_a_histogram_becomes_cumulative_buckets_count_and_sum():
    point = pb.HistogramDataPoint(
        time_unix_nano=T, count=6, sum=9.5, bucket_counts=[1, 2, 3], explicit_bounds=[0.5, 10], attributes=attributes(a="b")
    )
    whole = pb.Histogram(data_points=[point], aggregation_temporality=CUMULATIVE)
    decoded = decode(request(pb.Metric(name="h", unit="s", histogram=whole)))
    a = ("a", "b")
    assert series(decoded) == {
        (("__name__", "h_count"), a): 6,
        (("__name__", "h_sum"), a): 9.5,
        (("__name__", "h_bucket"), a, ("le", "0.5")): 1,
        (("__name__", "h_bucket"), a, ("le", "10.0")): 3,
        (("__name__", "h_bucket"), a, ("le", "+Inf")): 6,
    }
    assert {key.kind for key in decoded.keys} == {"histogram"}
    assert decoded.points == (1,)


def test_a_histogram_without_buckets_or_sum_keeps_its_count():
    whole = pb.Histogram(data_points=[pb.HistogramDataPoint(time_unix_nano=T, count=6)], aggregation_temporality=CUMULATIVE)
    assert series(decode(request(pb.Metric(name="h", histogram=whole)))) == {
        (("__name__", "h_count"),): 6,
        (("__name__", "h_bucket"), ("le", "+Inf")): 6,
    }


@pytest.mark.parametrize(
    ("counts", "bounds"), [([1, 2], [1, 2]), ([1], [1]), ([], [1]), ([1, 1, 1], [2, 1]), ([1, 1, 1], [1, 1]), ([1, 1], [math.inf])]
)
def test_a_histogram_whose_buckets_make_no_sense_is_rejected(counts, bounds):
    point = pb.HistogramDataPoint(time_unix_nano=T, bucket_counts=counts, explicit_bounds=bounds)
    whole = pb.Histogram(data_points=[point], aggregation_temporality=CUMULATIVE)
    decoded = decode(request(pb.Metric(name="h", histogram=whole), gauge(number())))
    assert decoded.rejections.count == 1
    assert len(decoded.keys) == 1


def test_a_summary_becomes_quantiles_count_and_sum():
    quantiles = [pb.SummaryDataPoint.ValueAtQuantile(quantile=q, value=v) for q, v in ((0.5, 1), (0.99, 4))]
    point = pb.SummaryDataPoint(time_unix_nano=T, count=3, sum=6, quantile_values=quantiles)
    assert series(decode(request(pb.Metric(name="s", summary=pb.Summary(data_points=[point]))))) == {
        (("__name__", "s_count"),): 3,
        (("__name__", "s_sum"),): 6,
        (("__name__", "s"), ("quantile", "0.5")): 1,
        (("__name__", "s"), ("quantile", "0.99")): 4,
    }


def test_of_an_exponential_histogram_count_and_sum_are_kept_and_the_sender_is_told():
    point = pb.ExponentialHistogramDataPoint(time_unix_nano=T, count=3, sum=6, scale=2)
    whole = pb.ExponentialHistogram(data_points=[point], aggregation_temporality=CUMULATIVE)
    decoded = decode(request(pb.Metric(name="e", exponential_histogram=whole)))
    assert series(decoded) == {(("__name__", "e_count"),): 3, (("__name__", "e_sum"),): 6}
    assert decoded.rejections.count == 0
    assert "exponential" in decoded.rejections.message()


def test_delta_temporality_is_rejected_point_by_point():
    metrics = [
        pb.Metric(name="a", sum=pb.Sum(data_points=[number(), number()], aggregation_temporality=DELTA)),
        pb.Metric(name="b", histogram=pb.Histogram(data_points=[pb.HistogramDataPoint(time_unix_nano=T)], aggregation_temporality=DELTA)),
        pb.Metric(
            name="c",
            exponential_histogram=pb.ExponentialHistogram(
                data_points=[pb.ExponentialHistogramDataPoint(time_unix_nano=T)], aggregation_temporality=DELTA
            ),
        ),
        pb.Metric(name="empty", sum=pb.Sum()),
        pb.Metric(name="no data at all"),
    ]
    decoded = decode(request(*metrics))
    assert decoded.keys == []
    assert decoded.rejections.count == 4
    assert decoded.rejections.message() == "4 rejected: delta or unspecified aggregation temporality; export cumulative values (first: 'a')"


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        (number(time=0), "no time"),
        (number(time=T + 25 * 3600 * 10**9), "more than 24 h in the future"),
        (number(time=2**64 - 1), "more than 24 h in the future"),
        (number(time=T - 31 * 86_400 * 10**9), "older than the retention"),
        (number(time=1), "older than the retention"),
        (pb.NumberDataPoint(time_unix_nano=T), "no value"),
        (number(long="x" * 1025), "longer than 1024 bytes"),
        (number(long="é" * 513), "longer than 1024 bytes"),
        (number(**{"n" * 1025: "x"}), "longer than 1024 bytes"),
        (number(**{f"a{i}": "x" for i in range(60)}), "more than 64 labels"),
    ],
)
def test_a_bad_point_is_rejected_and_its_neighbours_are_stored(point, reason):
    decoded = decode(request(gauge(number(1.0, at="1"), point, number(2.0, at="2"), name="cpu")))
    assert decoded.values.tolist() == [1.0, 2.0]
    assert decoded.points == (2,)
    assert decoded.rejections.count == 1
    assert reason in decoded.rejections.message()
    assert "cpu" in decoded.rejections.message()


def test_labels_up_to_the_limits_are_taken():
    point = number(long="x" * 1024, **{f"a{i}": "x" for i in range(58)})
    assert decode(request(gauge(point))).points == (1,)


def test_a_metric_without_name_is_rejected():
    decoded = decode(request(gauge(number(), number(), name="")))
    assert (decoded.points, decoded.rejections.count) == ((0,), 2)


def test_points_beyond_the_limit_of_one_request_are_rejected():
    decoded = decode(request(gauge(*(number(float(i), i=i) for i in range(5)))), OtlpLimits(max_samples=3))
    assert decoded.values.tolist() == [0, 1, 2]
    assert decoded.rejections.count == 2


def test_the_message_to_the_sender_stays_short():
    metrics = [gauge(number(time=0), name="n" * 5_000)]
    assert len(decode(request(*metrics)).rejections.message()) < 300


def test_a_point_without_recorded_value_stores_the_staleness_marker():
    flags = pb.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
    histogram = pb.HistogramDataPoint(time_unix_nano=T, flags=flags)
    decoded = decode(
        request(
            gauge(pb.NumberDataPoint(time_unix_nano=T, flags=flags)),
            pb.Metric(name="h", histogram=pb.Histogram(data_points=[histogram], aggregation_temporality=CUMULATIVE)),
            pb.Metric(name="s", summary=pb.Summary(data_points=[pb.SummaryDataPoint(time_unix_nano=T, flags=flags)])),
        )
    )
    assert decoded.points == (3,)
    assert set(decoded.values.view(np.uint64).tolist()) == {0x7FF0000000000002}
    assert math.isnan(STALE)


def test_nan_is_a_value_like_any_other():
    decoded = decode(request(gauge(number(math.nan))))
    assert decoded.points == (1,)
    assert math.isnan(decoded.values[0])


def test_of_two_values_for_one_series_and_time_the_first_counts():
    decoded = decode(request(gauge(number(1.0), number(2.0), number(3.0, time=T + 10**6))))
    assert decoded.values.tolist() == [1.0, 3.0]
    assert decoded.rejections.count == 0
    assert decoded.points == (3,)


def test_a_malformed_body_is_refused():
    with pytest.raises(MalformedBodyError):
        parse_metrics(b"\xff\xff", is_json=False)


def test_otlp_json_is_read_as_the_specification_writes_it():
    document = {
        "resourceMetrics": [
            {
                "resource": {"attributes": [{"key": "host.name", "value": {"stringValue": "web-1"}}]},
                "scopeMetrics": [
                    {
                        "metrics": [
                            {
                                "name": "m",
                                "sum": {
                                    "aggregationTemporality": 2,
                                    "isMonotonic": True,
                                    "dataPoints": [
                                        {
                                            "asInt": "7",
                                            "timeUnixNano": str(T),
                                            "exemplars": [{"traceId": "5b8efff798038103d269b633813fc60c", "spanId": "EEE19B7EC3C1B174"}],
                                        },
                                        {"asDouble": 2, "timeUnixNano": T, "attributes": [{"key": "i", "value": {"intValue": "3"}}]},
                                    ],
                                },
                                "somethingNew": 1,
                            }
                        ]
                    }
                ],
            }
        ]
    }
    parsed = parse_metrics(json.dumps(document).encode(), is_json=True)
    exemplar = parsed.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[0].exemplars[0]
    assert exemplar.trace_id.hex() == "5b8efff798038103d269b633813fc60c"
    assert exemplar.span_id.hex() == "eee19b7ec3c1b174"
    assert decode(parsed).values.tolist() == [7.0, 2.0]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"\xff",
        b'{"resourceMetrics": 7}',
        b'{"resourceMetrics": [7]}',
        b'{"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": 5}]}]}]}',
        b'{"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": "\\ud800"}]}]}]}',
        b'{"a":' * 20_000,
        b"1" * 5_000,
        b'{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"gauge":{"dataPoints":[{"exemplars":[{"traceId":"zz"}]}]}}]}]}]}',
        b'{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"gauge":{"dataPoints":[{"exemplars":[{"traceId":"00"}]}]}}]}]}]}',
        b'{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"gauge":{"dataPoints":[{"exemplars":[{"spanId":5}]}]}}]}]}]}',
    ],
)
def test_json_that_is_no_request_is_malformed(body):
    with pytest.raises(MalformedBodyError):
        parse_metrics(body, is_json=True)


def test_our_agents_collection_is_one_row():
    metrics = [Metric(f"m{i}", "1", Kind.COUNTER, [Point(1.0, {"p": p}) for p in "ab"], T - 10**9) for i in range(3)]
    parsed = parse_metrics(encode_metrics(Collection(T, [ResourceMetrics({"host.name": "a"}, metrics)] * 2)), is_json=False)
    decoded = decode(parsed)
    assert row_ranges(decoded.times_ms, decoded.boundaries) == [(0, 6)]


@pytest.mark.parametrize(
    ("times", "ranges"),
    [
        ([], []),
        ([1, 1, 1, 1, 1, 1], [(0, 6)]),
        ([1, 1, 1, 1, 2, 2], [(0, 4), (4, 6)]),
        ([1, 1, 3, 3, 2, 2], [(0, 2), (2, 4), (4, 6)]),
        ([1, 1, 3, 4, 2, 2], [(0, 2), (2, 3), (3, 4), (4, 6)]),
    ],
)
def test_rows_are_divided_by_the_requests_structure_only_as_far_as_needed(times, ranges):
    boundaries = ((0, 4), (0, 4), (0, 2, 4, 4)) if times else ((), (), ())
    assert row_ranges(np.array(times, np.int64), boundaries) == ranges


# The layout cache: what it recognises it must read exactly as the full decoding does.

NAMES = st.sampled_from(["m", "system.cpu.time", "é", "x", "y"])
TIMES = st.sampled_from([T, T, T, T + 500_000, T + 10**7, T - 10**9, 0, 2**64 - 1])
VALID_TIMES = st.sampled_from([T, T, T, T + 500_000, T + 10**7, T - 10**9])
DOUBLES = st.floats(width=64)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
FEW_ATTRIBUTES = st.dictionaries(
    st.sampled_from(["a", "b", "le"]), st.one_of(st.text(max_size=3), st.integers(0, 9), st.booleans(), DOUBLES), max_size=2
)


@st.composite
def number_points(draw, *, plain):
    time = draw(VALID_TIMES if plain else TIMES)
    point = pb.NumberDataPoint(time_unix_nano=time, attributes=attributes(**draw(FEW_ATTRIBUTES)))
    if draw(st.booleans()):
        point.start_time_unix_nano = draw(st.integers(1, T))
    which = draw(st.sampled_from(["double", "int"] if plain else ["double", "double", "int", "none"]))
    if which == "double":
        point.as_double = draw(DOUBLES)
    elif which == "int":
        point.as_int = draw(INTEGERS)
    rare = 9 if plain else draw(st.integers(0, 9))
    if rare == 0:
        point.flags = 1
    elif rare == 1:
        point.exemplars.add(as_double=1.0, time_unix_nano=T)
    return point


@st.composite
def metrics_messages(draw, *, plain):
    points = draw(st.lists(number_points(plain=plain), min_size=int(plain), max_size=4))
    kind = draw(st.sampled_from(["gauge", "sum"] if plain else ["gauge", "gauge", "sum", "sum", "delta", "histogram"]))
    metric = pb.Metric(name=draw(NAMES), unit=draw(st.sampled_from(["", "By"])))
    if kind == "gauge":
        metric.gauge.data_points.extend(points)
    elif kind == "histogram":
        metric.histogram.aggregation_temporality = CUMULATIVE
        metric.histogram.data_points.add(time_unix_nano=T, count=1)
    else:
        metric.sum.aggregation_temporality = DELTA if kind == "delta" else CUMULATIVE
        metric.sum.is_monotonic = draw(st.booleans())
        metric.sum.data_points.extend(points)
    return metric


@st.composite
def requests(draw, *, plain=False):
    whole = ExportMetricsServiceRequest()
    for _ in range(draw(st.integers(1, 2))):
        one = whole.resource_metrics.add()
        one.resource.attributes.extend(
            attributes(**draw(st.dictionaries(st.sampled_from(["host.name", "a"]), st.text(max_size=3), max_size=2)))
        )
        for _ in range(draw(st.integers(int(plain), 2))):
            one.scope_metrics.add().metrics.extend(draw(st.lists(metrics_messages(plain=plain), min_size=int(plain), max_size=3)))
    return whole


def samples_in_full(body):
    decoded = decode(parse_metrics(body, is_json=False))
    bits = decoded.values.view(np.uint64).tolist()
    return [(key.labels, time, value) for key, time, value in zip(decoded.keys, decoded.times_ms.tolist(), bits, strict=True)]


def template_of(body):
    """The template of ``body``, and the series of its schemas: a schema's id is its place in them."""
    decoded = decode(parse_metrics(body, is_json=False))
    template = Template.of(body, decoded)
    schemas = []
    if template is not None:
        for start, stop in [*row_ranges(decoded.times_ms, decoded.boundaries), (0, len(decoded.keys))]:
            template.schemas[start, stop] = len(schemas)
            schemas.append([key.labels for key in decoded.keys[start:stop]])
    return template, schemas


def samples_recognised(template, schemas, body):
    rows = template.rows(body, BOUNDS)
    if rows is None:
        return None
    found = []
    for row in rows:
        bits = np.ascontiguousarray(row.values).view(np.uint64).tolist()
        found.extend((labels, row.time_ms, value) for labels, value in zip(schemas[row.schema_id], bits, strict=True))
    return found


@settings(max_examples=120, deadline=None)
@given(requests(plain=True), st.data())
def test_what_is_recognised_by_layout_is_read_exactly_as_in_full(first, data):
    body = first.SerializeToString()
    template, schemas = template_of(body)
    assume(template is not None)
    one_time = data.draw(st.one_of(st.none(), st.just(T + 10**9)))
    for one in first.resource_metrics:
        for scope in one.scope_metrics:
            for metric in scope.metrics:
                for point in (metric.gauge if metric.HasField("gauge") else metric.sum).data_points:
                    point.time_unix_nano = one_time or data.draw(TIMES.filter(bool))
                    if point.start_time_unix_nano:
                        point.start_time_unix_nano = data.draw(st.integers(1, T))
                    if point.HasField("as_int"):
                        point.as_int = data.draw(INTEGERS)
                    else:
                        point.as_double = data.draw(DOUBLES)
    again = first.SerializeToString()
    assert len(again) == len(body)
    recognised = samples_recognised(template, schemas, again)
    in_full = samples_in_full(again)
    if recognised is not None:
        assert recognised == in_full
    elif one_time:
        assert len({labels for labels, _, _ in in_full}) < template.count  # only a series that comes twice keeps it from being recognised


@settings(max_examples=120, deadline=None)
@given(requests(plain=True), st.data())
def test_a_body_that_was_changed_anywhere_is_recognised_rightly_or_not_at_all(first, data):
    body = first.SerializeToString()
    template, schemas = template_of(body)
    assume(template is not None)
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    recognised = samples_recognised(template, schemas, bytes(changed))
    if recognised is not None:
        assert recognised == samples_in_full(bytes(changed))


@settings(max_examples=120, deadline=None)
@given(requests())
def test_every_plain_request_makes_a_template_unless_it_has_exemplars(message):
    body = message.SerializeToString()
    decoded = decode(parse_metrics(body, is_json=False))
    exemplars = any(
        point.exemplars
        for r in message.resource_metrics
        for s in r.scope_metrics
        for m in s.metrics
        for point in [*m.gauge.data_points, *m.sum.data_points]
    )
    assert (Template.of(body, decoded) is not None) == (decoded.plain and bool(decoded.keys) and not exemplars)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80))
def test_looking_for_spans_in_arbitrary_bytes_finds_some_or_none(data):
    spans = find_spans(data)
    assert spans is None or len(spans.times) == len(spans.values)


def wire(metric_fields: bytes) -> bytes:
    """A request with one metric of these raw fields."""

    def nested(tag: int, inner: bytes) -> bytes:
        assert len(inner) < 128
        return bytes([tag, len(inner)]) + inner

    return nested(0x0A, nested(0x12, nested(0x12, metric_fields)))


NAME_FIELD = b"\x0a\x01m"
POINT = number(1.0).SerializeToString()
POINT_FIELD = bytes([0x0A, len(POINT)]) + POINT


@pytest.mark.parametrize(
    "fields",
    [
        NAME_FIELD + bytes([0x2A, len(POINT_FIELD)]) + POINT_FIELD + bytes([0x2A, len(POINT_FIELD)]) + POINT_FIELD,
        NAME_FIELD + bytes([0x2A, len(POINT_FIELD) + 9, 0x0A, len(POINT) + 9]) + POINT + b"\x21" + bytes(8),
        NAME_FIELD + bytes([0x2A, len(POINT_FIELD)]) + POINT_FIELD + b"\x98\x06\x01",
        NAME_FIELD + bytes([0x2A, len(POINT_FIELD) + 2, 0x0A, len(POINT)]) + POINT + b"\x20\x01",
    ],
    ids=["two gauges that protobuf merges", "a value twice", "an unknown field", "a gauge with an unknown field"],
)
def test_an_ambiguous_wire_form_makes_no_template(fields):
    body = wire(fields)
    decode(parse_metrics(body, is_json=False))
    assert find_spans(body) is None


def test_a_series_at_two_times_in_one_request_is_recognised_as_long_as_the_times_differ():
    def both(one, other):
        whole = request(gauge(number(1.0, time=one)))
        whole.MergeFrom(request(gauge(number(2.0, time=other))))
        return whole.SerializeToString()

    template, schemas = template_of(both(T, T + 10**10))
    assert samples_recognised(template, schemas, both(T + 2 * 10**10, T + 3 * 10**10)) == samples_in_full(
        both(T + 2 * 10**10, T + 3 * 10**10)
    )
    assert template.rows(both(T, T), BOUNDS) is None


def test_a_time_that_is_not_taken_is_left_to_the_full_decoding():
    template, _ = template_of(request(gauge(number(), number(a="b"))).SerializeToString())
    ancient = T - 40 * 86_400 * 10**9
    for times in ((ancient, ancient), (T, ancient), (T, T + 3 * 86_400 * 10**9)):
        message = request(gauge(number(time=times[0]), number(time=times[1], a="b")))
        assert template.rows(message.SerializeToString(), BOUNDS) is None


def test_a_division_into_rows_that_was_never_stored_is_left_to_the_full_decoding():
    template, _ = template_of(request(gauge(number(), number(a="b"))).SerializeToString())
    assert template.rows(request(gauge(number(), number(time=T + 10**9, a="b"))).SerializeToString(), BOUNDS) is None


def sized_template(tag: str, points: int = 3):
    template, _ = template_of(request(gauge(*(number(float(i), i=i) for i in range(points)), name=tag)).SerializeToString())
    return template


def test_the_cache_keeps_within_its_bytes_and_drops_what_was_unused_longest():
    size = sized_template("a").size
    cache = LayoutCache(max_bytes=int(size * 2.5))
    principals = [Principal("credential", "a", "server", "prod", f"i{n}") for n in range(3)]
    length = len(sized_template("a").masked)
    cache.add(principals[0], sized_template("a"))
    cache.add(principals[1], sized_template("a"))
    assert cache.candidates(principals[0], length)
    cache.add(principals[2], sized_template("a"))
    assert [bool(cache.candidates(p, length)) for p in principals] == [True, False, True]
    assert cache.size <= size * 2.5


def test_one_principal_cannot_take_more_than_its_share_of_the_cache():
    cache = LayoutCache(max_bytes_per_principal=sized_template("aaaaaaaa").size * 2)
    templates = [sized_template("a" * n) for n in range(1, 8)]
    for template in templates:
        cache.add(PRINCIPAL, template)
    kept = [bool(cache.candidates(PRINCIPAL, len(t.masked))) for t in templates]
    assert kept == [False] * 5 + [True] * 2
    assert cache.size <= sized_template("aaaaaaaa").size * 2


def test_layouts_of_the_same_length_stand_beside_each_other_and_the_newest_few_are_kept():
    cache = LayoutCache()
    templates = [sized_template(tag) for tag in "abcdef"]
    for template in templates:
        cache.add(PRINCIPAL, template)
    assert [t.masked for t in cache.candidates(PRINCIPAL, len(templates[0].masked))] == [t.masked for t in reversed(templates[2:])]


def test_a_layout_that_is_added_again_joins_what_is_known_of_its_rows():
    cache = LayoutCache()
    one, other = sized_template("a"), sized_template("a")
    one.schemas, other.schemas = {(0, 3): 1}, {(0, 1): 2, (1, 3): 3}
    cache.add(PRINCIPAL, one)
    cache.add(PRINCIPAL, other)
    (kept,) = cache.candidates(PRINCIPAL, len(one.masked))
    assert kept.schemas == {(0, 3): 1, (0, 1): 2, (1, 3): 3}
