from __future__ import annotations

import hashlib
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from app.commands.fleet_file import Reference, load, read_reference, schema
from app.commands.fleet_plan import Actual, ActualAgent, ActualGroup, ActualWebhook, plan
from app.commands.fleet_state import as_yaml, export_document
from app.commands.output import CommandError
from app.groups.selectors import Selector, parse

HEAD = "apiVersion: incident-rca/v1\n"
WEB = "groups:\n  - {name: web, selector: team=web, priority: 3, config: {collect_interval: 30}}\n"
STALE = "11111111-2222-4333-8444-555555555555"
SLACK = "https://hooks.slack.example.com/services/T0/B0/secret"


def read(*texts: str, environ: dict[str, str] | None = None, directory: Path = Path()):
    named = [(f"{number}.yaml" if number else "fleet.yaml", text, directory) for number, text in enumerate(texts)]
    return load(named, lambda ref, at: read_reference(ref, at, environ or {}))


def refused(*texts: str, **kwargs) -> list[str]:
    with pytest.raises(CommandError, match="the fleet file is not valid") as caught:
        read(*texts, **kwargs)
    return caught.value.hint.splitlines()


def group(name: str = "web", selector: str = "team=web", priority: int = 3, config=None, revision: int = 1) -> ActualGroup:
    return ActualGroup(f"id-{name}", name, "", parse(selector), priority, 7, revision, config)


def webhook(name: str = "on-call", url: str = "https://a.example.com/x", template: str = "standard", **filters) -> ActualWebhook:
    shown = "https://hooks.slack.example.com/…" if template == "slack" else url
    values = {"event_types": [], "environments": [], "groups": [], "min_severity": 9, **filters}
    return ActualWebhook(f"id-{name}", name, shown, hashlib.sha256(url.encode()).hexdigest(), template, values, True, 4)


def agent(labels=None, config=None) -> ActualAgent:
    return ActualAgent("id-agent", "prod", "server", labels or {}, 5, config or {})


def told(changes) -> list[str]:
    return [f"{change.act} {change}" for change in changes]


# What a file may say.


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("groups: []\n", "fleet.yaml:1: apiVersion: is missing"),
        ("apiVersion: incident-rca/v2\n", "fleet.yaml:1: apiVersion: Input should be 'incident-rca/v1'"),
        (HEAD + "grops: []\n", "fleet.yaml:2: grops: is not a field of a fleet file"),
        (HEAD + "groups:\n  - name: a\n    selector: a b\n", "fleet.yaml:4: groups[0].selector: 'a b' is not a condition"),
        (HEAD + "groups:\n  - name: a\n", "fleet.yaml:3: groups[0].selector: is missing"),
        (HEAD + "groups:\n  - name: a\n    selector: ''\n    priority: '3'\n", "fleet.yaml:5: groups[0].priority: Input should be a valid"),
        (HEAD + "groups:\n  - name: a\n    selector: {matchLables: {}}\n", "fleet.yaml:4: groups[0].selector.matchLables: is not a field"),
        (HEAD + "groups:\n  - name: a\n    selector: ''\n    config: {x: 2026-01-01}\n", "fleet.yaml:5: groups[0].config.x: "),
        (HEAD + "agents:\n  - labels: {}\n", "fleet.yaml:3: agents[0]: must name either environment (and type) or id"),
        (HEAD + "agents:\n  - {id: x, type: server}\n", "fleet.yaml:3: agents[0]: type belongs to environment"),
        (HEAD + "agents:\n  - id: x\n    labels: {environment: a}\n", "fleet.yaml:4: agents[0].labels: environment is what the instance"),
        (HEAD + "webhooks:\n  - name: a\n", "fleet.yaml:3: webhooks[0]: must have either url or url_from"),
        (HEAD + "webhooks:\n  - name: a\n    url: ftp://x\n", "fleet.yaml:4: webhooks[0].url: must look like https://"),
        (
            HEAD + "webhooks:\n  - {name: a, url: 'https://x.example.com', template: pagerduty}\n",
            "fleet.yaml:3: webhooks[0]: routing_key_from is needed",
        ),
        (
            HEAD + "webhooks:\n  - name: a\n    url: https://x.example.com\n    filters:\n      min_severity: loud\n",
            "fleet.yaml:6: webhooks[0].filters.min_severity: must be one of info, warn, error, fatal",
        ),
        (
            HEAD + "webhooks:\n  - name: a\n    url_from: {env: A, file: b}\n",
            "fleet.yaml:4: webhooks[0].url_from: must name either env or file",
        ),
        (HEAD + "groups:\n  - name: a\n    name: b\n", "fleet.yaml:4: name stands here a second time"),
        (HEAD + "on: 1\n", "fleet.yaml:2: the key 'on' is not text: put it in quotes"),
        (HEAD + "groups: [\n", "fleet.yaml:3: expected the node content"),
        (HEAD + "groups: &a [*a]\n", "fleet.yaml:2: nested too deeply"),
        (HEAD + "groups:\n  - &a {<<: *a, name: x}\n", "fleet.yaml"),
        (HEAD + "groups: \x01\n", "fleet.yaml: unacceptable character"),
        ("- 1\n", "fleet.yaml:1: the document: Input should be a valid dictionary"),
    ],
)
def test_what_is_refused_is_named_with_file_line_and_field(text: str, line: str):
    assert refused(text)[0].startswith(line)


def test_every_problem_of_all_files_is_told_at_once():
    lines = refused(HEAD + "groups:\n  - name: a\n", HEAD + "---\n" + HEAD + "x: 1\ny: 2\n")
    assert [line.split(" ")[0] for line in lines] == ["fleet.yaml:3:", "1.yaml:4:", "1.yaml:5:"]


def test_documents_and_files_add_up_and_a_name_stands_once():
    found = read(HEAD + WEB + "---\n" + HEAD + "groups:\n  - {name: db, selector: team=db}\n---\n", HEAD + "webhooks: []\n")
    assert [one.value.name for one in found.groups] == ["web", "db"]
    assert (found.webhooks, found.agents) == ((), None)
    assert refused(HEAD + WEB, HEAD + WEB) == ["1.yaml:3: groups[0]: the group web stands at fleet.yaml:3 already"]


def test_nothing_at_all_is_refused():
    with pytest.raises(CommandError, match="nothing in what was given"):
        read("# only a comment\n")


def test_a_selector_is_written_as_kubectl_or_as_kubernetes_does():
    text = "groups:\n  - {name: a, selector: 'team=web, tier in (a,b)'}\n  - {name: b, selector: {matchLabels: {team: web}}}\n"
    found = read(HEAD + text)
    assert [str(one.value.selector) for one in found.groups] == ["team=web, tier in (a,b)", "team=web"]


def test_anchors_may_be_used():
    text = "groups:\n  - &a {name: a, selector: ''}\n  - {<<: *a, name: b}\n"
    assert [one.value.name for one in read(HEAD + text).groups] == ["a", "b"]


def test_the_schema_takes_what_the_reader_takes():
    text = HEAD + WEB + "webhooks:\n  - {name: a, url: 'https://x.example.com', filters: {min_severity: warn}}\nagents: [{id: x}]\n"
    read(text)
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(yaml.safe_load(text), schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"apiVersion": "incident-rca/v1", "groups": [{"name": "a"}]}, schema())


def test_the_example_of_the_documentation_is_valid():
    page = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "fleet-file.md"
    (text,) = re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    found = load([("fleet-file.md", text, Path())], lambda *_: "https://a.example.com/b")
    assert [len(listed) for listed in (found.groups, found.agents, found.webhooks)] == [1, 1, 3]
    jsonschema.validate(yaml.safe_load(text), schema())


# Secrets that do not stand in the file.

SLACK_ENTRY = HEAD + "webhooks:\n  - name: chat\n    url_from: {env: SLACK_URL}\n    template: slack\n"


def test_a_secret_comes_from_a_variable_or_a_file_beside_the_fleet_file(tmp_path: Path):
    (tmp_path / "key").write_text("abc\n")
    text = HEAD + "webhooks:\n  - {name: p, url: 'https://p.example.com', template: pagerduty, routing_key_from: {file: key}}\n"
    assert read(text, directory=tmp_path).secrets == {("p", "routing_key"): "abc"}
    assert read(SLACK_ENTRY, environ={"SLACK_URL": SLACK}).secrets == {("chat", "url"): SLACK}
    assert read(SLACK_ENTRY).secrets == {("chat", "url"): None}
    assert SLACK not in repr(read(SLACK_ENTRY, environ={"SLACK_URL": SLACK}))
    assert str(Reference(file="key")) == "file key"


def test_a_secret_that_cannot_be_read_or_is_no_url_is_refused(tmp_path: Path):
    text = HEAD + "webhooks:\n  - name: p\n    url_from: {file: gone}\n"
    assert "fleet.yaml:4: webhooks[0].url_from: file gone cannot be read: No such file" in refused(text, directory=tmp_path)[0]
    assert "the URL in $SLACK_URL must look like" in refused(SLACK_ENTRY, environ={"SLACK_URL": "nonsense"})[0]


def test_a_secret_that_is_not_set_is_needed_only_to_make_or_change_the_webhook():
    nothing = read(SLACK_ENTRY)
    assert plan(nothing, Actual(webhooks={"chat": webhook("chat", SLACK, "slack")})) == []
    for actual in (Actual(), Actual(webhooks={"chat": webhook("chat", SLACK, "slack", min_severity=17)})):
        with pytest.raises(CommandError) as caught:
            plan(nothing, actual)
        assert caught.value.hint == "fleet.yaml:4: webhooks[0].url_from: $SLACK_URL is needed and not set"


def test_a_url_that_is_not_set_stays_where_the_platform_shows_it():
    wanted = read(HEAD + "webhooks:\n  - {name: a, url_from: {env: GONE}, enabled: false}\n")
    (change,) = plan(wanted, Actual(webhooks={"a": webhook("a")}))
    assert change.body["url"] == "https://a.example.com/x"


def test_another_secret_url_is_noticed_and_not_shown():
    wanted = read(SLACK_ENTRY, environ={"SLACK_URL": SLACK + "2"})
    (change,) = plan(wanted, Actual(webhooks={"chat": webhook("chat", SLACK, "slack")}))
    (difference,) = change.differences
    assert (difference.before, difference.after) == ("https://hooks.slack.example.com/…", "from $SLACK_URL")
    assert change.body["url"] == SLACK + "2"
    assert SLACK not in repr(change)


def test_a_routing_key_is_kept_while_the_template_is_pagerduty():
    text = (
        HEAD + "webhooks:\n  - {name: p, url: 'https://p.example.com', template: pagerduty, enabled: false, routing_key_from: {env: K}}\n"
    )
    (change,) = plan(read(text), Actual(webhooks={"p": webhook("p", "https://p.example.com", "pagerduty")}))
    assert (change.body["routing_key"], change.body["url"]) == ("", "https://p.example.com")
    with pytest.raises(CommandError):
        plan(read(text), Actual(webhooks={"p": webhook("p", "https://p.example.com")}))


# Planning.


def test_what_is_as_wanted_needs_no_change():
    assert plan(read(HEAD + WEB), Actual(groups={"web": group(config={"collect_interval": 30})})) == []


def test_groups_come_first_then_labels_and_configurations_then_webhooks_and_deletions_last():
    text = (
        "webhooks:\n  - {name: on-call, url: 'https://a.example.com/x', filters: {groups: [web]}}\n"
        "agents:\n  - {environment: prod, labels: {team: web}, config: {log_level: debug}}\n"
    )
    actual = Actual(groups={"old": group("old")}, agents={"prod": agent()}, webhooks={"older": webhook("older")})
    changes = plan(read(HEAD + text + WEB), actual, prune=True)
    assert told(changes) == [
        "create group web",
        "create labels of agent prod",
        "create configuration of group web",
        "create configuration of agent prod",
        "create webhook on-call",
        "delete webhook older",
        "delete group old",
    ]
    assert [change.version for change in changes] == [None, None, 0, 5, None, 4, 7]


def test_without_prune_nothing_is_deleted_and_prune_keeps_lists_that_no_file_has():
    actual = Actual(groups={"old": group("old")}, webhooks={"older": webhook("older")})
    assert plan(read(HEAD + "groups: []\n"), actual) == []
    assert told(plan(read(HEAD + "groups: []\n"), actual, prune=True)) == ["delete group old"]


def test_only_named_labels_change_and_null_removes_one():
    text = HEAD + "agents:\n  - {environment: prod, labels: {team: web, tier: null, gone: null, same: x}}\n"
    (change,) = plan(read(text), Actual(agents={"prod": agent({"team": "db", "tier": "1", "same": "x", "other": "y"})}))
    assert change.body == {"labels": {"team": "web", "tier": None}}
    assert [(d.field, d.kind) for d in change.differences] == [("team", "changed"), ("tier", "removed")]


def test_a_configuration_that_is_left_out_is_not_touched_and_an_empty_one_empties_it():
    actual = Actual(agents={"prod": agent(config={"log_level": "debug"})}, groups={"web": group(config={"a": 1})})
    assert plan(read(HEAD + "agents: [{environment: prod}]\ngroups: [{name: web, selector: team=web, priority: 3}]\n"), actual) == []
    (change,) = plan(read(HEAD + "agents: [{environment: prod, config: {}}]\n"), actual)
    assert (change.body, change.version, change.act) == ({"config": {}}, 5, "update")


def test_what_goes_of_a_configuration_goes_before_its_group_selects_others():
    text = "groups:\n  - {name: web, selector: agent_type=server, priority: 3, config: {kept: 1, new: 2}}\n"
    changes = plan(read(HEAD + text), Actual(groups={"web": group(config={"kept": 1, "old": 3})}))
    assert told(changes) == ["update configuration of group web", "update group web", "update configuration of group web"]
    assert [(change.body.get("config"), change.version) for change in changes] == [({"kept": 1}, 1), (None, 7), ({"kept": 1, "new": 2}, 2)]


def test_a_selector_that_only_reads_differently_is_still_changed():
    requirement = {"key": "a", "operator": "In", "values": ["b,c"]}
    text = "groups:\n  - {name: web, selector: {matchExpressions: [{key: a, operator: In, values: [b, c]}]}, priority: 3}\n"
    current = ActualGroup("i", "web", "", Selector(match_expressions=[requirement]), 3, 1, 0)
    (change,) = plan(read(HEAD + text), Actual(groups={"web": current}))
    assert change.differences[0].field == "selector"


def test_a_webhook_names_groups_that_are_there_or_will_be():
    text = HEAD + f"webhooks:\n  - name: on-call\n    url: https://a.example.com/x\n    filters:\n      groups: [web, {STALE}]\n"
    (change,) = plan(read(text), Actual(groups={"web": group()}, webhooks={"on-call": webhook(groups=["id-web"])}))
    assert [(d.field, d.before, d.after) for d in change.differences] == [("filters.groups", ["web"], ["web", STALE])]
    for wanted, prune in ((read(text), False), (read(text + "groups: []\n"), True)):
        with pytest.raises(CommandError) as caught:
            plan(wanted, Actual(groups={"web": group()} if prune else {}), prune=prune)
        assert caught.value.hint == "fleet.yaml:6: webhooks[0].filters.groups[0]: there is no group 'web'"


# Export.


def test_an_exported_file_says_what_there_is_without_secrets():
    odd = Selector(match_expressions=[{"key": "a", "operator": "In", "values": ["b,c"]}])
    groups = {"web": group(config={"a": 1}), "odd": ActualGroup("o", "odd", "what", odd, 0, 1, 0, {})}
    hooks = [webhook("chat 1", SLACK, "slack", groups=["id-web", STALE]), webhook("chat.1", SLACK, "slack", min_severity=10)]
    hooks += [webhook("p", "https://p.example.com", "pagerduty")]
    agents = {"prod": agent({"team": "web"}), "a (server)": agent(config={"x": 1}), "id-agent": agent({"b": "c"}), "bare": agent()}
    document = export_document(Actual(groups, agents, {one.name: one for one in hooks}))
    assert document["groups"][0]["selector"] == odd.document()
    assert document["groups"][1] == {"name": "web", "selector": "team=web", "priority": 3, "config": {"a": 1}}
    assert document["agents"] == [
        {"environment": "prod", "labels": {"team": "web"}, "config": {}},
        {"environment": "prod", "type": "server", "config": {"x": 1}},
        {"id": "id-agent", "labels": {"b": "c"}, "config": {}},
    ]
    chat, second, paged = document["webhooks"]
    assert chat["url_from"] == {"env": "IRCA_WEBHOOK_CHAT_1_URL"}
    assert chat["filters"] == {"groups": ["web", STALE], "min_severity": "info"}
    assert (second["url_from"], second["filters"]) == ({"env": "IRCA_WEBHOOK_CHAT_1_2_URL"}, {"min_severity": 10})
    assert paged["routing_key_from"] == {"env": "IRCA_WEBHOOK_P_ROUTING_KEY"}
    assert "secret" not in as_yaml(document)
