from __future__ import annotations

import contextlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from connectors.core.custom.readings import json_metrics, prometheus_metrics
from connectors.core.errors import CollectorError
from connectors.core.telemetry import Kind


def values(metrics):
    return {(m.name, *sorted(p.attributes.items())): p.value for m in metrics for p in m.points}


def kinds(metrics):
    return {m.name: m.kind for m in metrics}


def test_an_exposition_of_every_type_is_read():
    text = """
# HELP http_requests_total Requests.
# TYPE http_requests_total counter
http_requests_total{method="post",code="200"} 1027 1395066363000
http_requests_total{method="get", code="200", } 3

# a comment
# TYPE depth gauge
depth -1.5e3
# TYPE rpc histogram
rpc_bucket{le="0.1"} 2
rpc_bucket{le="+Inf"} 3
rpc_sum 0.4
rpc_count 3
# TYPE size summary
size{quantile="0.5"} 2
size{quantile="0.9"} NaN
size_sum 17
size_count 4
untyped_thing 0x1F
"""
    metrics = prometheus_metrics(text)
    assert values(metrics)["http_requests_total", ("code", "200"), ("method", "post")] == 1027.0
    assert values(metrics)["depth",] == -1500.0
    assert values(metrics)["untyped_thing",] == 31.0
    assert ("size", ("quantile", "0.9")) not in values(metrics), "what is no number is left out"
    assert kinds(metrics) == {
        "http_requests_total": Kind.COUNTER,
        "depth": Kind.GAUGE,
        "rpc_bucket": Kind.COUNTER,
        "rpc_sum": Kind.COUNTER,
        "rpc_count": Kind.COUNTER,
        "size": Kind.GAUGE,
        "size_sum": Kind.COUNTER,
        "size_count": Kind.COUNTER,
        "untyped_thing": Kind.GAUGE,
    }


def test_escapes_in_labels_are_undone():
    (metric,) = prometheus_metrics('a{path="C:\\\\x\\n\\"quoted\\",}{"} 1')
    assert metric.points[0].attributes == {"path": 'C:\\x\n"quoted",}{'}


@pytest.mark.parametrize(
    "line",
    [
        "a",
        "a b",
        "a 1 2 3",
        "a 1 x",
        "1a 1",
        "{} 1",
        "a{b} 1",
        'a{b="x} 1',
        'a{b="x" c="y"} 1',
        'a{b="x",,} 1',
        'a{b="x",b="y"} 1',
        'a{1="x"} 1',
        'a{b="x"',
        "a 1_0",
        "a 0b1",
        "a nanana",
        "a\u00a01",
        "# TYPE a",
        "# TYPE a unknown",
        "# TYPE 1a gauge",
        "# TYPE a gauge\n# TYPE a gauge",
        "a 1\na 2",
        'a{b="1",c="2"} 1\na{c="2",b="1"} 1',
        "<html><body>404</body></html>",
    ],
)
def test_what_is_malformed_is_an_error_and_not_a_guess(line):
    with pytest.raises(CollectorError, match="line "):
        prometheus_metrics(line)


def test_labels_that_are_not_wanted_go_and_series_that_they_told_apart_are_an_error():
    text = '# TYPE rpc histogram\nrpc_bucket{le="1",pod="x"} 2\nrpc_bucket{le="2",pod="x"} 2'
    assert values(prometheus_metrics(text, ["zone"])) == {("rpc_bucket", ("le", "1")): 2.0, ("rpc_bucket", ("le", "2")): 2.0}
    with pytest.raises(CollectorError, match="line 2: the series a with the same labels came before"):
        prometheus_metrics('a{pod="x",zone="z"} 1\na{pod="y",zone="z"} 1', ["zone"])


names = st.from_regex(r"\A[a-z_][a-z0-9_]{0,8}\Z").filter(lambda name: not name.startswith("__"))
label_values = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(
    st.lists(
        st.tuples(st.dictionaries(st.sampled_from(["a", "b"]), label_values, min_size=2), st.floats(allow_nan=False, allow_infinity=False)),
        max_size=5,
        unique_by=lambda pair: (pair[0]["a"], pair[0]["b"]),
    )
)
def test_what_the_official_client_writes_is_read_as_its_own_parser_reads_it(samples):
    registry = CollectorRegistry()
    gauge = Gauge("test_gauge", "A gauge\nof two lines", ["a", "b"], registry=registry)
    for labels, value in samples:
        gauge.labels(**labels).set(value)
    Counter("test_events", "Counted", registry=registry).inc(3)
    Histogram("test_span", "Spans", registry=registry).observe(0.2)
    Summary("test_size", "Sizes", registry=registry).observe(5)
    text = generate_latest(registry).decode()
    theirs = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if math.isfinite(sample.value)
    }
    assert values(prometheus_metrics(text)) == theirs


@given(st.text(max_size=60))
def test_no_text_does_worse_than_being_refused(text):
    for read in (prometheus_metrics, json_metrics):
        with contextlib.suppress(CollectorError):
            read(text)


def test_json_readings_have_name_value_unit_kind_and_attributes():
    metrics = json_metrics(
        json.dumps(
            [
                {"name": "disk.latency", "value": 0.25, "unit": "s", "attributes": {"disk": "sda", "ssd": True, "n": 1}},
                {"name": "disk.latency", "value": 1, "unit": "s", "attributes": {"disk": "sdb"}},
                {"name": "jobs", "value": 3, "kind": "counter"},
            ]
        )
    )
    assert kinds(metrics) == {"disk.latency": Kind.GAUGE, "jobs": Kind.COUNTER}
    assert [point.value for point in metrics[0].points] == [0.25, 1.0]
    assert metrics[0].unit == "s"


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({}, "not a JSON array"),
        ([1], "entry 0: must be an object"),
        ([{"name": "a", "value": 1, "x": 2}], "entry 0: must be an object with"),
        ([{"name": "a"}], "value must be a finite number"),
        ([{"name": "a", "value": True}], "value must be a finite number"),
        ([{"name": "a", "value": float("nan")}], "value must be a finite number"),
        ([{"name": "a", "value": 10**400}], "value must be a finite number"),
        ([{"name": "a", "value": "1"}], "value must be a finite number"),
        ([{"name": "1a", "value": 1}], "name must be"),
        ([{"value": 1}], "name must be"),
        ([{"name": "a", "value": 1, "unit": 2}], "unit must be a string"),
        ([{"name": "a", "value": 1, "kind": "histogram"}], "kind one of gauge, counter, updowncounter"),
        ([{"name": "a", "value": 1, "kind": []}], "kind one of"),
        ([{"name": "a", "value": 1, "attributes": {"b": None}}], "attributes must be"),
        ([{"name": "a", "value": 1, "attributes": []}], "attributes must be"),
        ([{"name": "a", "value": 1}, {"name": "a", "value": 2}], "entry 1: the series a with the same attributes came before"),
    ],
)
def test_json_of_another_form_is_refused(document, reason):
    with pytest.raises(CollectorError, match=reason):
        json_metrics(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_what_is_no_json_is_refused(text):
    with pytest.raises(CollectorError, match="not JSON"):
        json_metrics(text)
