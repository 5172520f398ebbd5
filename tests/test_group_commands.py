from __future__ import annotations

import json

import pytest
from opamp_client import CAPABILITIES, OpampAgent
from served_platform import ADMIN_KEY, provision, serve

from app import cli

pytestmark = pytest.mark.sockets


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("platform") / "data") as made:
        yield made


@pytest.fixture
def run(served, monkeypatch, capsys):
    monkeypatch.setenv("IRCA_URL", served.url)
    monkeypatch.setenv("IRCA_API_KEY", ADMIN_KEY)
    monkeypatch.setenv("NO_COLOR", "1")

    def command(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = cli.main(list(arguments))
        out, err = capsys.readouterr()
        return code, out + err

    return command


def enrol(served) -> str:
    """The id of a new instance of an agent in the environment desks."""
    import urllib.request

    token, agent = provision(served, "linux"), OpampAgent(capabilities=CAPABILITIES | 0x1002)
    request = urllib.request.Request(
        f"{served.url}/v1/opamp",
        agent.beat(full=True, healthy=True),
        {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {token}"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        agent.read(answer.read())
    return str(agent.uid)


def test_groups_and_configurations_are_managed_from_the_command_line(served, run, tmp_path):
    instance = enrol(served)
    assert run("groups", "list") == (0, "No groups. `incident-rca groups create` makes one.\n")
    assert "selects 1 instances" in run("groups", "create", "desks", "-l", "environment=desks", "--priority", "3")[1]
    assert run("groups", "create", "desks")[0] == 1
    code, said = run("groups", "create", "x", "-l", "a b")
    assert (code, "is not a condition" in said) == (2, True)
    assert run("config", "diff", "-g", "desks", "-s", "collect_interval=30") == (1, "+ collect_interval = 30\n")
    assert run("config", "show", "-g", "desks")[1] == "Nothing is set.\n"
    code, said = run("config", "apply", "-g", "desks", "-s", "collect_interval=30", "-s", "custom_commands=a,b", "-m", "why")
    assert (code, "Revision 1 goes to 1 instances" in said) == (0, True)
    assert run("config", "diff", "-g", "desks", "-s", "collect_interval=30") == (0, "Nothing changes.\n")
    assert json.loads(run("config", "show", "-g", "desks", "--json")[1])["config"] == {
        "collect_interval": 30,
        "custom_commands": ["a", "b"],
    }
    assert "custom_commands" in run("config", "show", "-g", "desks")[1]
    file = tmp_path / "new.toml"
    file.write_text('log_level = "debug"\ncollect_interval = 30\n')
    said = run("config", "apply", "-g", "desks", "-f", str(file), "-u", "collect_interval")[1]
    assert '- collect_interval = 30\n- custom_commands = ["a", "b"]\n+ log_level = "debug"\n' in said
    assert "why" in run("config", "history", "-g", "desks")[1]
    assert len(json.loads(run("config", "history", "-g", "desks", "--json")[1])["items"]) == 2
    assert "revision 3 now" in run("config", "revert", "1", "-g", "desks")[1]
    assert "config.collect_interval" in run("config", "apply", "-a", "desks", "-s", "collect_interval=0")[1]
    assert run("config", "apply", "-a", "desks", "-s", "log_level=debug")[0] == 0
    explained = json.loads(run("config", "explain", instance, "--json")[1])
    assert explained["config"] == {"collect_interval": 30, "custom_commands": ["a", "b"], "log_level": "debug"}
    assert "group desks revision 3" in run("config", "explain", instance)[1].replace("\n", " ") or explained["groups"][0]["revision"] == 3
    for scope in (("-g", "desks"), ("-a", "desks")):
        assert "pending" in run("config", "status", *scope)[1]
        assert json.loads(run("config", "status", *scope, "--json")[1])["items"][0]["status"] == "pending"
    shown = json.loads(run("groups", "show", "desks", "--json")[1])
    assert [m["instance_id"] for m in shown["members"]] == [instance]
    assert "environment=desks" in run("groups", "show", shown["id"])[1]
    assert "'tables' selects 0" in run("groups", "update", "desks", "--name", "tables", "-l", "team=db")[1]
    assert json.loads(run("groups", "list", "--search", "tables", "--json")[1])["items"][0]["priority"] == 3
    assert "Deleted tables" in run("groups", "delete", "tables")[1]
    assert run("groups", "show", "tables")[0] == 1


def test_labels_are_set_and_removed(served, run):
    assert "team=web" in run("agents", "label", json.loads(run("agents", "list", "--json")[1])["items"][0]["id"], "team=web", "a=b")[1]
    agent = json.loads(run("agents", "list", "--json")[1])["items"][0]["id"]
    assert run("agents", "label", agent, "team-", "a-") == (0, "no labels\n")
    assert run("agents", "label", agent, "nothing")[0] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["config", "show"],
        ["config", "show", "-g", "a", "-a", "b"],
        ["config", "apply", "-a", "desks"],
        ["config", "apply", "-a", "desks", "-f", "/nowhere/at/all.json"],
    ],
)
def test_wrong_usage_is_said_in_one_line(served, run, arguments):
    provisioned = run("agents", "list", "-e", "desks", "--json")[1]
    assert len(json.loads(provisioned)["items"]) == 1
    assert run(*arguments)[0] == 2


def test_a_file_that_holds_no_options_is_refused(served, run, tmp_path):
    for text in ("[1]", "{"):
        file = tmp_path / "file.json"
        file.write_text(text)
        assert run("config", "apply", "-a", "desks", "-f", str(file))[0] == 2
