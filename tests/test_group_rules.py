from __future__ import annotations

import pytest
from pydantic import ValidationError

from app.errors import InvalidRequestError
from app.groups.canary import PATIENCE, Cohorts, places
from app.groups.precedence import Desired, Layer, Source, config_hash, desire, difference, drifted, explain
from app.groups.selectors import Selector, check_labels, labels_of, parse
from app.groups.standing import ConfigStatus, Reported, Standing, after_report, is_due, status_of
from app.groups.validation import check_config, remote_options, schema_of, types_of
from connectors.agent_factory import AgentFactory

ACCEPTS, ACCEPTS_AND_REPORTS = 0x2, 0x1002
OPTIONS = AgentFactory.agent_class("docker").config_class.options()


def wanted(config: dict) -> Desired:
    return Desired(config, config_hash(config))


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("", {}, True),
        ("team=web", {"team": "web"}, True),
        ("team==web, tier != back", {"team": "web"}, True),
        ("team=web", {"team": "db"}, False),
        ("environment in (prod, staging)", {"environment": "prod"}, True),
        ("environment in (prod,staging),!canary", {"environment": "prod", "canary": ""}, False),
        ("environment notin (prod)", {}, True),
        ("environment notin (prod)", {"environment": "prod"}, False),
        ("canary", {"canary": ""}, True),
        ("canary\n!old", {"canary": "yes", "old": "1"}, False),
    ],
)
def test_a_selector_is_written_and_means_what_it_does_in_kubernetes(text, labels, expected):
    selector = parse(text)
    assert selector.matches(labels) is expected
    assert parse(str(selector)) == selector
    assert Selector.model_validate(selector.document()) == selector


@pytest.mark.parametrize("text", ["team=web,team=db", "=x", "a in b", "a in ()", "-a=b", "a=b=c", "a in (x"])
def test_a_selector_that_cannot_be_read_is_refused_with_the_part_that_cannot(text):
    with pytest.raises(InvalidRequestError) as refused:
        parse(text)
    assert refused.value.errors[0].field == "selector"


def test_an_expression_must_have_the_values_that_its_operator_needs():
    for expression in ({"key": "a", "operator": "In"}, {"key": "a", "operator": "Exists", "values": ["b"]}):
        with pytest.raises(ValidationError):
            Selector.model_validate({"matchExpressions": [expression]})


def test_what_an_instance_says_of_itself_wins_over_labels_of_that_name():
    labels = labels_of("prod", "server", {"team": "web", "environment": "fake"}, {"host.name": "web-1", "os.type": "", "other": "x"})
    assert labels == {"team": "web", "host.name": "web-1", "environment": "prod", "agent_type": "server"}


def test_labels_that_selectors_could_not_name_are_refused():
    with pytest.raises(InvalidRequestError) as refused:
        check_labels({"ok": "x", "agent_type": "docker", "-bad": "x", "long": "y" * 300, "line": "a\nb"})
    assert [e.field for e in refused.value.errors] == ["labels.agent_type", "labels.-bad", "labels.long", "labels.line"]
    with pytest.raises(InvalidRequestError, match="not valid"):
        check_labels({f"k{n}": "" for n in range(65)})


def test_the_group_of_the_highest_priority_wins_and_the_agents_own_configuration_over_all():
    low = ("g1", Layer(Source("group", "all", "g1", 3), {"log_level": "warning", "collect_interval": 60}))
    high = ("g2", Layer(Source("group", "web", "g2", 1), {"collect_interval": 30, "host_metrics": True}))
    own = Layer(Source("agent", "prod", "a1", 2), {"log_level": "debug"})
    desired = desire("docker", "a1", [low, high], own, remote_options("docker"))
    assert desired.config == {"log_level": "debug", "collect_interval": 30, "host_metrics": True}
    assert desired.groups == ("g1", "g2")
    assert len(desired.cohorts) == 2
    other = desire("server", "a2", [low, high], None, remote_options("server"))
    assert "host_metrics" not in other.config
    assert len(other.cohorts) == 1


def test_every_value_is_explained_by_its_source_and_what_it_overrides():
    layers = [
        Layer(Source("group", "all", "g1", 3), {"collect_interval": 60}),
        Layer(Source("group", "web", "g2", 1), {"collect_interval": 30}),
    ]
    reported = {"collect_interval": 30.0, "log_level": "info", "request_timeout": 20.0}
    found = {e.option.name: e for e in explain(OPTIONS, {"collect_interval": 15, "image": "x"}, layers, reported)}
    one = found["collect_interval"]
    assert (one.value, one.source.name, one.wanted) == (30.0, "web", None)
    assert [(g.source.kind, g.value) for g in one.overridden] == [("group", 60), ("provisioned", 15), ("default", 10.0)]
    assert found["log_level"].source.kind == "default"
    assert (found["request_timeout"].source.kind, found["request_timeout"].note) == ("local", "set where the agent runs")
    assert "image" not in found


def test_a_value_that_is_not_there_yet_is_explained_by_what_holds_meanwhile():
    layers = [Layer(Source("agent", "prod", "a1", 2), {"collect_interval": 30, "log_level": "debug"})]
    reported = {"collect_interval": 10.0, "log_level": "info", "locked_options": ["log_level"]}
    found = {e.option.name: e for e in explain(OPTIONS, {}, layers, reported, "pending: goes out soon")}
    one = found["collect_interval"]
    assert (one.value, one.source.kind, one.wanted.value, one.note) == (10.0, "default", 30, "pending: goes out soon")
    assert found["log_level"].note == "locked where the agent runs"
    drift = {e.option.name: e for e in explain(OPTIONS, {}, layers, reported)}["collect_interval"]
    assert (drift.source.kind, drift.note[:7]) == ("local", "drifted")
    unheard = {e.option.name: e for e in explain(OPTIONS, {}, layers, {})}["collect_interval"]
    assert (unheard.value, unheard.source.kind) == (30, "agent")


def test_drift_is_seen_by_value_and_what_the_host_locks_is_none():
    assert drifted({"collect_interval": 30}, {"collect_interval": 30.0}) == []
    assert drifted({"label_allow_list": ["a"]}, {"label_allow_list": ["a"], "other": 1}) == []
    assert drifted({"a": 1, "b": 2}, {"a": 2, "b": 3, "locked_options": ["b"]}) == ["a"]


def test_a_difference_names_what_is_added_removed_and_changed():
    changes = difference({"a": 1, "b": 2, "c": 3}, {"b": 2, "c": 4, "d": 5})
    assert [(c.key, c.kind, c.before, c.after) for c in changes] == [
        ("a", "removed", 1, None),
        ("c", "changed", 3, 4),
        ("d", "added", None, 5),
    ]


def test_options_are_checked_against_every_type_that_the_selector_can_match():
    assert types_of(parse("agent_type in (docker, server), team=web")) == ("docker", "server")
    assert set(types_of(parse(""))) >= {"docker", "kubernetes", "server"}
    check_config({"host_metrics": True, "collect_interval": 30}, ("docker", "server"))
    config = {"collect_interval": 0, "image": "x", "nonsense": 1, "labels": {"a": "b"}, "state_dir": "/x", "log_level": "loud"}
    with pytest.raises(InvalidRequestError) as refused:
        check_config(config, ("docker", "server"))
    told = {e.field: e.message for e in refused.value.errors}
    assert sorted(told) == [f"config.{key}" for key in sorted(config)]
    assert "known options" in told["config.nonsense"]
    assert told["config.image"] == told["config.state_dir"] == "can only be set where the agent is deployed"
    with pytest.raises(InvalidRequestError):
        check_config({"host_metrics": True}, ("server",))


def test_the_schema_holds_what_can_be_set_remotely_and_nothing_else():
    schema = schema_of(("docker", "server"))
    assert schema["collect_interval"]["minimum"] == 1
    assert schema["collect_interval"]["unit"] == "s"
    assert not schema.keys() & {"image", "labels", "state_dir", "ca_file"}
    assert schema_of(("unheard-of",)) == {}


def test_a_tenth_and_at_least_one_goes_first_and_all_follow_once_one_has_proven_it():
    assert [places(members, 0, 0) for members in (1, 9, 10, 25, 1000)] == [1, 1, 1, 2, 100]
    assert places(25, 0, 2) == places(25, 0, 5) == 0
    assert places(25, 1, 25) == 25


def test_a_cohort_waits_for_proof_stays_put_after_a_failure_and_passes_over_the_silent():
    cohorts = Cohorts()
    for name in "abc":
        cohorts.join(name, [b"x"])
    cohorts.note("a", [b"x"], "offered", "", 100.0)
    assert [cohorts.has_place(name, [b"x"], 101.0) for name in "abc"] == [True, False, False]
    assert cohorts.has_place("b", [b"x"], 101.0 + PATIENCE)
    cohorts.note("a", [b"x"], "failed", "too slow", 100.0)
    assert not cohorts.has_place("b", [b"x"], 1e9)
    assert cohorts.failures([b"x", b"unknown"]) == {"a": "too slow"}
    cohorts.note("a", [b"x"], "applied", "", 100.0)
    assert cohorts.has_place("b", [b"x"], 101.0)
    assert cohorts.failures([b"x"]) == {}
    cohorts.join("a", [b"y"], [b"x"])
    assert not cohorts.has_place("b", [b"x"], 101.0) or cohorts.has_place("c", [b"x"], 101.0)
    for name in "bc":
        cohorts.join(name, [], [b"x"])
    assert cohorts.has_place("b", [b"x"], 101.0)


def test_a_configuration_is_offered_until_the_instance_says_that_it_has_it():
    desired = wanted({"a": 1})
    offered = Standing(desired.hash, desired.config, ConfigStatus.OFFERED)
    assert not is_due(None, desired, 0, None)
    assert is_due(None, desired, ACCEPTS_AND_REPORTS, None)
    assert not is_due(offered, desired, ACCEPTS_AND_REPORTS, None)
    assert is_due(offered, desired, ACCEPTS_AND_REPORTS, Reported())
    assert is_due(offered, desired, ACCEPTS_AND_REPORTS, Reported(b"older", 1))
    assert not is_due(offered, desired, ACCEPTS_AND_REPORTS, Reported(desired.hash, 3, "no"))
    assert not is_due(offered, desired, ACCEPTS, None)
    nothing = wanted({})
    assert not is_due(None, nothing, ACCEPTS_AND_REPORTS, Reported())
    assert not is_due(None, nothing, ACCEPTS_AND_REPORTS, None)
    assert is_due(offered, nothing, ACCEPTS_AND_REPORTS, Reported(desired.hash, 1))


def test_applied_needs_both_the_instances_word_and_its_effective_configuration():
    desired = wanted({"a": 1})
    assert after_report(None, desired, Reported(desired.hash, 1), {"a": 1}, 5.0).status is ConfigStatus.APPLIED
    drift = after_report(None, desired, Reported(desired.hash, 1), {"a": 2}, 5.0)
    assert (drift.status, drift.reason) == (ConfigStatus.DRIFTED, "the instance reports another value of a")
    failed = after_report(None, desired, Reported(desired.hash, 3), {}, 5.0)
    assert (failed.status, failed.reason) == (ConfigStatus.FAILED, "no reason given")
    assert after_report(failed, desired, Reported(b"other", 1), {"a": 1}, 6.0) is failed
    applied = after_report(failed, desired, Reported(desired.hash, 1), {"a": 1}, 6.0)
    assert after_report(applied, desired, Reported(desired.hash, 1), {"a": 1}, 9.0) is applied


def test_the_status_tells_what_is_meant_and_not_only_what_was_offered():
    desired, nothing = wanted({"a": 1}), wanted({})
    applied = Standing(desired.hash, desired.config, ConfigStatus.APPLIED)
    assert status_of(None, nothing, 0x2) is ConfigStatus.NONE
    assert status_of(None, desired, 0x1) is ConfigStatus.UNSUPPORTED
    assert status_of(None, nothing, 0x1) is ConfigStatus.NONE
    assert status_of(None, desired, None) is ConfigStatus.PENDING
    assert status_of(applied, desired, 0x2) is ConfigStatus.APPLIED
    assert status_of(applied, wanted({"a": 2}), 0x2) is ConfigStatus.PENDING
    assert status_of(applied, nothing, 0x2) is ConfigStatus.PENDING
    gone = after_report(applied, nothing, Reported(), {}, 7.0)
    assert status_of(gone, nothing, 0x2) is ConfigStatus.NONE
