from __future__ import annotations

import json
import urllib.request

import pytest
from opamp_client import OpampAgent
from served_platform import ADMIN_KEY, provision, serve
from waiting import eventually

from app import cli
from app.commands.history import length

pytestmark = pytest.mark.sockets


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("platform") / "data") as made:
        yield made


def beat(served, agent: OpampAgent, token: str, **how) -> None:
    request = urllib.request.Request(
        f"{served.url}/v1/opamp", agent.beat(**how), {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        agent.read(answer.read())


@pytest.fixture(scope="module")
def instance(served) -> str:
    """The id of an instance in the environment desks."""
    agent = OpampAgent()
    beat(served, agent, provision(served, "linux"), full=True, healthy=True)
    return str(agent.uid)


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

    return command


def document(run, *arguments: str):
    code, out, _ = run(*arguments, "--json")
    assert code == 0
    return json.loads(out)


def test_instances_are_listed_and_shown(run, instance):
    for filters in ((), ("--agent", "desks"), ("--with-replaced",), ("--limit", "1")):
        assert [one["id"] for one in document(run, "instances", "list", *filters)["items"]] == [instance]
    assert instance in run("instances", "list")[1]
    assert run("instances", "list", "--status", "archived")[1] == "No instances.\n"
    assert document(run, "instances", "show", instance)["environment_name"] == "desks"
    shown = run("instances", "show", instance)[1]
    assert "Environment    desks" in shown
    assert "PART" in shown or "It has not told of its parts." in shown
    assert run("instances", "show", "nobody")[0] == 1


def test_history_and_availability_are_shown_of_instances_and_agents(run, instance):
    for command in (("instances", "history", instance), ("agents", "history", "desks")):
        found = document(run, *command, "--since", "1h")
        assert found["history"]["stretches"]
        assert "available" in found["availability"]
        code, out, err = run(*command)
        assert (code, "SINCE" in out, err.startswith("Available: ")) == (0, True, True)
    assert run("instances", "history", instance, "--since", "soon")[0] == 2


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59, "59 s"), (3660, "1 h 1 min"), (90_061, "1 d 1 h")])
def test_a_length_of_time_is_told_in_its_greatest_units(seconds: float, text: str):
    assert length(seconds) == text


def test_an_instance_is_archived_once_it_is_gone_and_revived(run, served, instance):
    assert "is heard and would come back at once" in run("instances", "archive", instance)[2]
    assert "is not archived" in run("instances", "revive", instance)[2]
    token = document(run, "provision", "-t", "server", "-e", "leaving")["agent_token"]
    gone = OpampAgent(fingerprint="machine-2", host="web-2")
    beat(served, gone, token, full=True, healthy=True)
    beat(served, gone, token, goodbye=True)
    eventually(lambda: document(run, "instances", "show", str(gone.uid))["status"] == "stopped")
    assert run("instances", "archive", str(gone.uid)) == (0, "", "Archived web-2.\n")
    assert run("instances", "revive", str(gone.uid)) == (0, "", "web-2 is stopped.\n")


def test_the_credential_of_an_instance_is_revoked(run, instance):
    assert run("instances", "revoke", instance)[2] == f"Revoked the credential of {instance}.\n"
    assert run("instances", "revoke", "nobody")[0] == 1


def test_events_are_listed_filtered_and_shown(run, instance):
    found = document(run, "events", "list")["items"]
    assert found
    assert document(run, "events", "list", "--agent", "desks", "--instance", instance, "-e", "desks", "--since", "1h")["items"]
    assert run("events", "list", "--name", "irca.nothing")[1] == "No events.\n"
    assert found[0]["id"] in run("events", "list")[1]
    assert run("events", "list", "--severity", "loud")[0] == 1
    (event,) = [one for one in found if one["attributes"]][:1]
    assert document(run, "events", "show", event["id"]) == event
    shown = run("events", "show", event["id"])[1]
    assert f"Event          {event['name']}\n" in shown
    assert next(iter(event["attributes"])) in shown


def test_the_audit_log_is_exported_line_by_line(run, instance):
    assert run("groups", "create", "audited")[0] == 0
    code, out, _ = run("audit", "export", "--action", "group.create", "--since", "1h")
    assert code == 0
    assert [json.loads(line)["target_name"] for line in out.splitlines()] == ["audited"]
    assert document(run, "audit", "list", "--since", "1h")["items"]


def test_a_webhook_is_made_shown_changed_and_deleted_by_its_name(run):
    assert run("groups", "create", "told")[0] == 0
    made = document(run, "webhooks", "create", "--name", "hook", "--receiver", "https://a.example.com/x", "--group", "told")
    assert len(made["filters"]["groups"]) == 1
    assert document(run, "webhooks", "show", made["id"])["name"] == "hook"
    assert "Severity       from 9" in run("webhooks", "show", "hook")[1]
    code, _, err = run("webhooks", "update", "hook", "--severity", "error", "--event-type", "irca.instance.*", "--disable")
    assert (code, err) == (0, "Webhook 'hook' is at version 2.\n")
    shown = document(run, "webhooks", "show", "hook")
    assert (shown["enabled"], shown["filters"]["min_severity"], shown["filters"]["groups"]) == (False, 17, made["filters"]["groups"])
    assert shown["filters"]["event_types"] == ["irca.instance.*"]
    assert run("webhooks", "update", "hook", "--name", "bell", "--receiver", "https://b.example.com/", "--enable")[0] == 0
    assert run("webhooks", "update", "bell", "--severity", "loud")[0] == 2
    delivery = run("webhooks", "test", "bell")[2].split()[2]
    assert json.loads(run("webhooks", "delivery", delivery, "--json")[1])["event_type"] == "irca.webhook.test"
    assert '"type": "irca.webhook.test"' in run("webhooks", "delivery", delivery)[1]
    assert delivery in run("webhooks", "deliveries", "bell")[1]
    assert run("webhooks", "replay", "bell", "--delivery", delivery)[0] == 0
    assert run("webhooks", "rotate", "bell")[1].startswith("whsec_")
    assert run("webhooks", "delete", "bell")[2] == "Deleted bell.\n"
    assert "there is no webhook 'bell'" in run("webhooks", "show", "bell")[2]


def test_the_url_of_a_slack_webhook_has_to_be_given_again(run):
    where = "https://hooks.slack.example.com/services/T/B/verysecret"
    assert run("webhooks", "create", "--name", "chat", "--receiver", where, "--template", "slack")[0] == 0
    code, _, err = run("webhooks", "update", "chat", "--disable")
    assert (code, "give it again with --receiver" in err) == (2, True)
    assert run("webhooks", "update", "chat", "--disable", "--receiver", where)[0] == 0
    assert "verysecret" not in run("webhooks", "show", "chat")[1]


def test_provisioning_prints_other_ways_and_sets_the_tokens_terms(run, served):
    code, out, err = run("provision", "-t", "docker", "-e", "terms", "--token-ttl", "2h", "--max-uses", "3")
    assert code == 0
    assert out.startswith("docker run")
    made = document(run, "provision", "-t", "docker", "-e", "terms-json")
    assert made["alternatives"]
    for other in made["alternatives"]:
        assert f"{other['title']}:\n" in err
    (agent,) = document(run, "agents", "list", "-e", "terms")["items"]
    request = urllib.request.Request(f"{served.url}/api/v1/agents/{agent['id']}/tokens", headers={"Authorization": f"Bearer {ADMIN_KEY}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        (token,) = json.load(answer)["items"]
    assert token["max_uses"] == 3
    assert run("provision", "-t", "docker", "-e", "terms", "--token-ttl", "1s")[0] == 1
