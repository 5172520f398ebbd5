from __future__ import annotations

import json
import math

import numpy as np
import pytest
from attribute_values import any_value
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb
from otlp_requests import CUMULATIVE, DELTA, PLATFORM, T, attributes, decode, gauge, number, request, series

from app.errors import MalformedBodyError
from app.telemetry.otlp_layout import row_ranges
from app.telemetry.otlp_limits import OtlpLimits
from app.telemetry.otlp_metrics import STALE, parse_metrics
from connectors.core.telemetry import Collection, Kind, Metric, Point, ResourceMetrics, encode_metrics


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
