from __future__ import annotations

import io
import json
import stat
import sys
from pathlib import Path

import pytest
import yaml
from served_platform import ADMIN_KEY, provision, serve

from app import cli
from app.commands import apply, fleet_apply

pytestmark = pytest.mark.sockets

HEAD = "apiVersion: incident-rca/v1\n"
FLEET = """\
apiVersion: incident-rca/v1
groups:
  - name: web
    description: What serves the shop.
    selector: team=web, environment in (desks)
    priority: 3
    config: {collect_interval: 30}
agents:
  - environment: desks
    labels: {team: web}
    config:
      log_level: debug
webhooks:
  - name: on-call
    url: https://receiver.example.com/x
    filters: {groups: [web], min_severity: warn}
  - name: chat
    url_from: {env: SLACK_URL}
    template: slack
  - name: pager
    url: https://events.example.com/v2/enqueue
    template: pagerduty
    routing_key_from: {file: routing-key}
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("platform") / "data") as made:
        provision(made, "linux")
        yield made


@pytest.fixture
def run(served, monkeypatch, capsys):
    monkeypatch.setenv("IRCA_URL", served.url)
    monkeypatch.setenv("IRCA_API_KEY", ADMIN_KEY)
    monkeypatch.setenv("NO_COLOR", "1")

    def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    yield command
    monkeypatch.undo()
    monkeypatch.setenv("IRCA_URL", served.url)
    monkeypatch.setenv("IRCA_API_KEY", ADMIN_KEY)
    empty = "apiVersion: incident-rca/v1\ngroups: []\nagents: [{environment: desks, config: {}, labels: {team: null}}]\nwebhooks: []\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(empty))
    assert cli.main(["apply", "-f", "-", "--prune", "--yes"]) == 0


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SLACK_URL", "https://hooks.slack.example.com/services/T/B/verysecret")
    (tmp_path / "routing-key").write_text("R" * 32 + "\n")
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)
    return file


def items(run, *arguments: str) -> list[dict]:
    code, out, _ = run(*arguments, "--json")
    assert code == 0
    return json.loads(out)["items"]


def test_a_dry_run_shows_every_field_changes_nothing_and_exits_with_2(run, fleet):
    code, out, err = run("apply", "-f", str(fleet), "--dry-run")
    assert (code, err) == (2, "7 changes would be made.\n")
    assert "+ group web\n" in out
    assert '    + selector = "team=web, environment in (desks)"\n' in out
    assert "    + collect_interval = 30\n" in out
    assert '    + filters.groups = ["web"]\n' in out
    assert '    + url = "from $SLACK_URL"\n' in out
    assert "verysecret" not in out
    assert items(run, "groups", "list") == items(run, "webhooks", "list") == []


def test_applying_makes_it_so_and_applying_again_changes_nothing(run, fleet):
    code, out, err = run("apply", "-f", str(fleet), "-m", "the shop")
    assert (code, "7 changes made" in err) == (0, True)
    assert "\non-call: whsec_" in out
    assert "\npager:" not in out
    (group,) = items(run, "groups", "list")
    assert (group["description"], group["priority"], group["options"]) == ("What serves the shop.", 3, ["collect_interval"])
    assert "the shop" in run("config", "history", "-g", "web")[1]
    assert items(run, "agents", "list")[0]["labels"] == {"team": "web"}
    assert json.loads(run("config", "show", "-a", "desks", "--json")[1])["config"] == {"log_level": "debug"}
    hooks = {one["name"]: one for one in items(run, "webhooks", "list")}
    assert hooks["on-call"]["filters"]["groups"] == [group["id"]]
    assert hooks["pager"]["template"] == "pagerduty"
    assert run("apply", "-f", str(fleet)) == (0, "", "Nothing to change.\n")
    assert run("apply", "-f", str(fleet), "--dry-run")[0] == 0


def test_a_change_is_shown_with_what_was_and_what_will_be(run, fleet, monkeypatch):
    assert run("apply", "-f", str(fleet))[0] == 0
    monkeypatch.delenv("SLACK_URL")
    fleet.write_text(FLEET.replace("collect_interval: 30", "collect_interval: 15").replace("priority: 3", "priority: 4"))
    code, out, _ = run("apply", "-f", str(fleet))
    assert code == 0
    assert out == ("~ group web\n    ~ priority = 3 → 4\n~ configuration of group web\n    ~ collect_interval = 30 → 15\n")


def test_what_export_writes_changes_nothing_when_it_is_applied(run, fleet, tmp_path):
    assert run("apply", "-f", str(fleet))[0] == 0
    written = tmp_path / "exported.yaml"
    assert run("export", "-o", str(written))[0] == 0
    assert run("apply", "-f", str(written), "--prune", "--dry-run") == (0, "", "Nothing to change.\n")
    code, out, _ = run("export")
    assert (code, out) == (0, written.read_text())
    assert json.loads(run("export", "--json")[1]) == yaml.safe_load(out)
    assert "verysecret" not in out
    assert run("export", "-o", str(tmp_path / "no" / "where"))[0] == 2


def test_the_platform_checks_configurations_before_anything_changes(run, fleet):
    fleet.write_text(FLEET.replace("log_level: debug", "log_level: loud").replace("collect_interval: 30", "collect_interval: 0"))
    code, _, err = run("apply", "-f", str(fleet))
    assert code == 1
    assert f"{fleet}:3: group web: the configuration is not valid" in err
    assert f"{fleet}:7: config.collect_interval: " in err
    fleet.write_text(FLEET.replace("log_level: debug", "log_level: loud"))
    code, _, err = run("apply", "-f", str(fleet), "--dry-run")
    assert (code, f"{fleet}:12: config.log_level: " in err) == (1, True)
    assert items(run, "groups", "list") == []


def test_a_selector_that_the_standing_configuration_does_not_fit_is_refused_with_its_line(run, fleet):
    assert run("apply", "-f", str(fleet))[0] == 0
    text = HEAD + "groups:\n  - {name: web, selector: agent_type=kubernetes, config: {cpu_per_core: false}}\n"
    fleet.write_text(text)
    assert "config.cpu_per_core" in run("apply", "-f", str(fleet))[2]
    assert run("config", "apply", "-g", "web", "-s", "cpu_per_core=false")[0] == 0
    fleet.write_text(HEAD + "groups:\n  - {name: web, selector: agent_type=kubernetes}\n")
    code, _, err = run("apply", "-f", str(fleet), "--dry-run")
    assert (code, f"{fleet}:3: config.cpu_per_core" in err) == (1, True)
    fleet.write_text(HEAD + "groups:\n  - {name: web, selector: agent_type=kubernetes, config: {collect_interval: 30}}\n")
    assert run("apply", "-f", str(fleet))[0] == 0, "what does not fit goes first"


def test_a_new_group_without_configuration_and_a_group_that_only_moves(run, fleet):
    fleet.write_text(HEAD + "groups:\n  - {name: bare, selector: ''}\n")
    assert run("apply", "-f", str(fleet))[0] == 0
    fleet.write_text(HEAD + "groups:\n  - {name: bare, selector: '', priority: 1}\n")
    assert run("apply", "-f", str(fleet))[:2] == (0, "~ group bare\n    ~ priority = 0 → 1\n")


def test_somebody_elses_change_in_between_is_not_overwritten_and_the_rest_is_told(run, fleet, monkeypatch):
    assert run("apply", "-f", str(fleet))[0] == 0
    fleet.write_text(FLEET.replace("collect_interval: 30", "collect_interval: 15").replace("priority: 3", "priority: 4"))
    checked = fleet_apply.check

    def meanwhile(client, *arguments):
        checked(client, *arguments)
        (group,) = client.items("/api/v1/groups")
        client.put(f"/api/v1/groups/{group['id']}/configuration", {"config": {"log_level": "info"}})

    monkeypatch.setattr(fleet_apply, "check", meanwhile)
    code, out, err = run("apply", "-f", str(fleet), "--json")
    assert code == 1
    assert "configuration of group web: it is at 2 by now, and the change was made from 1" in err
    assert "done: group web\n" in err
    assert "failed: configuration of group web\n" in err
    states = [(one["kind"], one["state"]) for one in json.loads(out)["changes"]]
    assert states == [("group", "done"), ("configuration", "failed")]
    monkeypatch.setattr(fleet_apply, "check", checked)
    assert run("apply", "-f", str(fleet))[0] == 0


def test_it_stops_at_the_first_failure_and_names_what_is_left(run, fleet, monkeypatch):
    monkeypatch.setattr(fleet_apply, "check", lambda *_: None)
    fleet.write_text(FLEET.replace("collect_interval: 30", "collect_interval: 0"))
    code, _, err = run("apply", "-f", str(fleet))
    assert code == 1
    assert [line.strip() for line in err.splitlines() if "one: " in line] == [
        "done: group web",
        "done: labels of agent desks",
        "not done: configuration of agent desks",
        "not done: webhook on-call",
        "not done: webhook chat",
        "not done: webhook pager",
    ]


def test_prune_deletes_only_when_asked_twice(run, fleet, monkeypatch):
    assert run("groups", "create", "by-hand")[0] == 0
    fleet.write_text(HEAD + "groups: []\n")
    assert run("apply", "-f", str(fleet)) == (0, "", "Nothing to change.\n")
    assert run("apply", "-f", str(fleet), "--prune", "--dry-run")[:2] == (2, "- group by-hand\n")
    code, _, err = run("apply", "-f", str(fleet), "--prune")
    assert (code, "add --yes" in err) == (2, True)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    answers = iter([False, True])
    monkeypatch.setattr(apply.typer, "confirm", lambda *_, **__: next(answers))
    assert run("apply", "-f", str(fleet), "--prune")[2] == "incident-rca: nothing was changed\n"
    assert run("apply", "-f", str(fleet), "--prune")[0] == 0
    assert items(run, "groups", "list") == []


@pytest.mark.parametrize(
    ("kind", "body"), [("group", {"name": "by-hand"}), ("webhook", {"name": "by-hand", "url": "https://a.example.com/"})]
)
def test_what_somebody_changed_meanwhile_is_not_deleted(run, fleet, monkeypatch, kind: str, body: dict):
    more = ("--receiver", body["url"], "--name") if kind == "webhook" else ()
    assert run(f"{kind}s", "create", *more, "by-hand")[0] == 0
    fleet.write_text(HEAD + f"{kind}s: []\n")
    checked = fleet_apply.check

    def meanwhile(client, *arguments):
        checked(client, *arguments)
        (one,) = client.items(f"/api/v1/{kind}s")
        client.put(f"/api/v1/{kind}s/{one['id']}", body)

    monkeypatch.setattr(fleet_apply, "check", meanwhile)
    said = run("apply", "-f", str(fleet), "--prune", "--yes")[2]
    assert f"deletion of {kind} by-hand: " in said
    assert "precondition-failed" in said
    assert len(items(run, f"{kind}s", "list")) == 1


def test_secrets_go_into_a_new_file_of_their_owners_alone(run, fleet, tmp_path):
    where = tmp_path / "secrets.json"
    code, out, _ = run("apply", "-f", str(fleet), "--secrets", str(where), "--json")
    assert code == 0
    assert json.loads(out)["secrets"] == {}
    assert stat.S_IMODE(where.stat().st_mode) == 0o600
    assert json.loads(where.read_text())["on-call"].startswith("whsec_")
    fleet.write_text(FLEET.replace("priority: 3", "priority: 9"))
    code, _, err = run("apply", "-f", str(fleet), "--secrets", str(where))
    assert (code, "cannot be made for the secrets: File exists" in err) == (2, True)
    assert run("apply", "-f", str(fleet), "--secrets", str(tmp_path / "none.json"))[0] == 0
    assert not (tmp_path / "none.json").exists()


def test_a_dry_run_as_json_is_for_programs(run, fleet):
    code, out, _ = run("apply", "-f", str(fleet), "--dry-run", "--json")
    document = json.loads(out)
    assert (code, document["dry_run"], document["error"]) == (2, True, None)
    first = document["changes"][0]
    assert (first["act"], first["kind"], first["name"], first["state"]) == ("create", "group", "web", "planned")
    assert {"field": "priority", "kind": "added", "before": None, "after": 3} in first["fields"]
    labels = document["changes"][1]
    assert (labels["owner"], labels["where"]) == ("agent", f"{fleet}:10")


def test_an_agent_must_be_there_and_be_the_only_one_of_its_name(run, served, fleet):
    fleet.write_text(HEAD + "agents:\n  - environment: nowhere\n  - id: 11111111-2222-4333-8444-555555555555\n")
    code, _, err = run("apply", "-f", str(fleet))
    assert code == 1
    assert f"{fleet}:3: agents[0]: there is no agent nowhere: `incident-rca provision` makes one" in err
    assert f"{fleet}:4: agents[1]: there is no agent 11111111-2222-4333-8444-555555555555" in err
    (agent,) = items(run, "agents", "list", "-e", "desks")
    fleet.write_text(HEAD + f"agents:\n  - environment: desks\n  - id: {agent['id']}\n")
    assert f"{fleet}:4: agents[1]: this agent stands at {fleet}:3 already" in run("apply", "-f", str(fleet))[2]
    assert run("provision", "-t", "docker", "-e", "pair")[0] == run("provision", "-t", "server", "-e", "pair")[0] == 0
    fleet.write_text(HEAD + "agents:\n  - {environment: pair, labels: {a: b}}\n")
    assert "agents[0]: pair has 2 agents; name one by type or id" in run("apply", "-f", str(fleet))[2]
    fleet.write_text(HEAD + "agents:\n  - {environment: pair, type: docker, labels: {a: b}}\n")
    assert run("apply", "-f", str(fleet))[0] == 0
    assert "type: docker" in run("export")[1]


def test_the_file_may_come_from_standard_input_and_must_be_readable(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(HEAD + "groups: [{name: a}]\n"))
    assert "standard input:2: groups[0].selector: is missing" in run("apply", "-f", "-")[2]
    assert run("apply")[0] == 2
    assert "cannot be read: No such file" in run("apply", "-f", str(tmp_path / "gone"))[2]
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "is not text in UTF-8" in run("apply", "-f", str(tmp_path / "binary"))[2]


def test_the_schema_is_printed_without_a_platform(run, monkeypatch):
    monkeypatch.setenv("IRCA_URL", "http://127.0.0.1:9")
    code, out, _ = run("apply", "--schema")
    assert code == 0
    assert json.loads(out)["title"] == "incident-rca fleet file"


def test_without_the_role_it_takes_the_refusal_says_so(run, fleet, monkeypatch):
    key = run("api-keys", "create", "--name", "looks", "--role", "viewer")[1].strip()
    monkeypatch.setenv("IRCA_API_KEY", key)
    code, _, err = run("apply", "-f", str(fleet))
    monkeypatch.setenv("IRCA_API_KEY", ADMIN_KEY)
    assert (code, "forbidden" in err) == (1, True)
    assert items(run, "groups", "list") == []
