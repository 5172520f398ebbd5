from __future__ import annotations

import pytest
from listed_store import series

from app.telemetry.promql.catalogue import Catalogue
from app.telemetry.promql.names import prometheus_label, prometheus_name
from app.telemetry.store import Matcher, MetricMetadata


@pytest.mark.parametrize(
    ("name", "unit", "kind", "expected"),
    [
        ("system.cpu.time", "s", "counter", "system_cpu_time_seconds_total"),
        ("system.memory.usage", "By", "updowncounter", "system_memory_usage_bytes"),
        ("system.memory.utilization", "1", "gauge", "system_memory_utilization_ratio"),
        ("things.done", "1", "counter", "things_done_total"),
        ("system.network.errors", "{error}", "counter", "system_network_errors_total"),
        ("system.uptime", "s", "gauge", "system_uptime_seconds"),
        ("disk.speed", "By/s", "gauge", "disk_speed_bytes_per_second"),
        ("packets", "{packet}/s", "gauge", "packets_per_second"),
        ("cpu.temperature", "Cel", "gauge", "cpu_temperature_celsius"),
        ("wait", "ms", "gauge", "wait_milliseconds"),
        ("wait.seconds", "s", "gauge", "wait_seconds"),
        ("seconds", "s", "gauge", "seconds"),
        ("requests_total", "", "counter", "requests_total"),
        ("requests.total", "s", "counter", "requests_seconds_total"),
        ("(lambda).executions(#)", "", "gauge", "_lambda_executions"),
        ("2xx", "", "gauge", "_2xx"),
        ("a..b", "", "gauge", "a_b"),
        ("load", "queue length", "gauge", "load_queue_length"),
        ("http.duration_bucket", "s", "histogram", "http_duration_seconds_bucket"),
        ("http.duration", "s", "summary", "http_duration_seconds"),
        ("ns:rule", "", "gauge", "ns:rule"),
        ("share", "%", "gauge", "share_percent"),
        ("odd", "/s", "gauge", "odd_per_second"),
        ("odd", "By/{x}", "gauge", "odd_bytes"),
    ],
)
def test_metric_names_follow_the_compatibility_rules(name, unit, kind, expected):
    assert prometheus_name(name, unit, kind) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("host.name", "host_name"),
        ("le", "le"),
        ("1st", "key_1st"),
        ("a..b", "a_b"),
        ("a__b", "a_b"),
        ("__meta__x", "__meta_x"),
        ("ünï", "_n_"),
        ("", "key_"),
    ],
)
def test_label_names_follow_the_compatibility_rules(name, expected):
    assert prometheus_label(name) == expected


def catalogue(*metrics, labels=("host.name", "state")):
    return Catalogue([MetricMetadata(*metric) for metric in metrics], labels)


TIME = ("system.cpu.time", "s", "counter")


def test_a_translated_name_and_label_are_asked_of_the_store_as_otel_names():
    selection = catalogue(TIME).resolve([Matcher("__name__", "=", "system_cpu_time_seconds_total"), Matcher("host_name", "=~", "a.*")])
    assert selection.matchers == (Matcher("__name__", "=", "system.cpu.time"), Matcher("host.name", "=~", "a.*"))
    assert not selection.stored_view


def test_an_otel_name_gives_the_stored_view_in_which_either_spelling_of_a_label_is_understood():
    for label in ("host.name", "host_name"):
        selection = catalogue(TIME).resolve([Matcher("__name__", "=", "system.cpu.time"), Matcher(label, "=", "a")])
        assert selection.stored_view
        assert selection.matchers[1] == Matcher("host.name", "=", "a")
        assert selection.labels({"__name__": "system.cpu.time", "host.name": "a", "empty": ""}) == (
            ("__name__", "system.cpu.time"),
            ("host.name", "a"),
        )


def test_a_name_that_is_both_translated_and_stored_means_the_translated_one():
    both = catalogue(("up", "", "gauge"), ("up.time", "", "gauge"), ("up_time", "s", "gauge"))
    assert not both.resolve([Matcher("__name__", "=", "up")]).stored_view
    selection = both.resolve([Matcher("__name__", "=", "up_time")])
    assert not selection.stored_view
    assert selection.matchers == (Matcher("__name__", "=", "up.time"),)


def test_a_regular_expression_on_the_name_looks_at_translated_names_first_and_at_otel_names_when_none_fits():
    known = catalogue(TIME, ("system.memory.usage", "By", "gauge"), ("other", "", "gauge"))
    selection = known.resolve([Matcher("__name__", "=~", "system_.*"), Matcher("__name__", "!=", "system_memory_usage_bytes")])
    assert selection.matchers == (Matcher("__name__", "=", "system.cpu.time"),)
    selection = known.resolve([Matcher("__name__", "=~", r"system\..*")])
    assert selection.stored_view
    assert selection.matchers == (Matcher("__name__", "=~", r"system\.cpu\.time|system\.memory\.usage"),)


def test_what_the_store_cannot_hold_is_not_asked_for():
    known = catalogue(TIME)
    assert known.resolve([Matcher("__name__", "=", "nothing")]) is None
    assert known.resolve([Matcher("nothing", "=", "x")]) is None
    assert known.resolve([Matcher("nothing", "!=", "x")]).matchers == ()


def test_metrics_whose_names_collide_are_selected_together_and_equal_series_are_merged_by_time():
    selection = catalogue(("a.b", "", "gauge"), ("a_b", "", "gauge")).resolve([Matcher("__name__", "=", "a_b")])
    assert selection.matchers == (Matcher("__name__", "=~", r"a\.b|a_b"),)
    found = selection.series([series("a_b", {}, [(1, 10), (2, 20)]), series("a.b", {}, [(2, 2), (3, 3)])])
    assert [(one.labels, one.times.tolist(), one.values.tolist()) for one in found] == [
        ((("__name__", "a_b"),), [1000, 2000, 3000], [10.0, 2.0, 3.0])
    ]


def test_attributes_whose_names_collide_are_joined_and_matched_joined():
    known = catalogue(TIME, labels=("a.b", "a_b", "c"))
    selection = known.resolve([Matcher("a_b", "=", "1;2"), Matcher("c", "=", "x")])
    assert selection.matchers == (Matcher("c", "=", "x"),)
    held = [series("system.cpu.time", {"a_b": "2", "a.b": b, "c": "x"}, [(1, 1)], unit="s", kind="counter") for b in ("1", "9", "")]
    found = selection.series(held)
    assert [dict(one.labels) for one in found] == [{"__name__": "system_cpu_time_seconds_total", "a_b": "1;2", "c": "x"}]


def test_a_series_of_another_unit_than_the_one_asked_for_by_name_is_left_out():
    selection = catalogue(("wait", "ms", "gauge")).resolve([Matcher("__name__", "=", "wait_milliseconds")])
    assert selection.series([series("wait", {}, [(1, 1)], unit="s")]) == []
    assert len(selection.series([series("wait", {}, [(1, 1)], unit="ms")])) == 1


def test_a_catalogue_says_when_it_does_not_know_what_is_asked():
    known = catalogue(TIME)
    assert known.knows([Matcher("__name__", "=", "system.cpu.time"), Matcher("host_name", "=", "")])
    assert not known.knows([Matcher("__name__", "=", "new")])
    assert not known.knows([Matcher("__name__", "=~", "sys.*")])
    assert not known.knows([Matcher("new", "=", "x")])
