"""The layout cache: what it recognises it must read exactly as the full decoding does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb
from otlp_requests import BOUNDS, CUMULATIVE, DELTA, PRINCIPAL, T, attributes, decode, gauge, number, request

from app.auth.principal import Principal
from app.telemetry.otlp_layout import LayoutCache, Template, find_spans, row_ranges
from app.telemetry.otlp_metrics import parse_metrics

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
