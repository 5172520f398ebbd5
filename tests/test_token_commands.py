from __future__ import annotations

import json
import urllib.request

import pytest
from opamp_client import OpampAgent
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

    def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return command


def enrol(served, token: str) -> str:
    """The name of the host that enrolled with the token."""
    agent = OpampAgent(host="web-1")
    headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {token}"}
    with urllib.request.urlopen(urllib.request.Request(f"{served.url}/v1/opamp", agent.beat(full=True), headers), timeout=10) as answer:
        agent.read(answer.read())
    return agent.host


def test_tokens_are_listed_shown_rotated_and_revoked_from_the_command_line(served, run):
    text = provision(served, "linux")
    host = enrol(served, text)
    code, out, _ = run("tokens", "list", "--state", "used-up", "--json")
    assert code == 0
    token = next(t for t in json.loads(out)["items"] if text.startswith(t["prefix"]))
    code, out, _ = run("tokens", "list", "--agent", token["agent_id"])
    assert token["id"] in out
    assert "1 of 1" in out
    code, out, _ = run("tokens", "show", token["id"])
    assert (code, host in out, text in out) == (0, True, False)
    code, out, _ = run("tokens", "show", token["id"], "--json")
    assert json.loads(out)["credential_count"] == 1
    code, out, err = run("tokens", "rotate", token["id"], "--overlap", "10m")
    assert (code, out.startswith("agent_"), "shown only now" in err) == (0, True, True)
    code, out, _ = run("tokens", "rotate", token["id"], "--overlap", "0", "--json")
    assert json.loads(out)["token"].startswith("agent_")
    code, _, err = run("tokens", "revoke", token["id"])
    assert (code, "--instances takes them, too" in err) == (0, True)
    code, _, err = run("tokens", "revoke", token["id"], "--instances")
    assert (code, "1 instances lost" in err) == (0, True)
    code, _, err = run("tokens", "revoke", token["id"], "--instances")
    assert (code, "lost" in err) == (0, False)
    assert run("tokens", "rotate", token["id"])[0] == 1
    assert "No tokens." in run("tokens", "list", "--search", "nothing-like-it")[1]


def test_wrong_usage_is_said_before_anything_is_asked(run):
    code, _, err = run("tokens", "list", "--state", "odd")
    assert (code, "must be one of active, expired, revoked, used-up" in err) == (2, True)
    assert run("tokens", "show", "no/such")[0] == 1
    assert run("api-keys", "create", "--name", "x", "--environments", " , ")[0] == 2


def test_keys_are_limited_and_rotated_from_the_command_line(run, tmp_path, monkeypatch):
    code, out, _ = run("api-keys", "create", "--name", "team", "--environments", "team-*, staging", "--json")
    made = json.loads(out)
    assert (code, made["environments"]) == (0, ["team-*", "staging"])
    assert "team-*, staging" in run("api-keys", "list")[1]
    code, out, err = run("api-keys", "rotate", made["id"])
    assert (code, out.startswith("irca_"), "shown only now" in err) == (0, True, True)
    code, out, _ = run("api-keys", "rotate", made["id"], "--overlap", "0", "--json")
    assert json.loads(out)["environments"] == ["team-*", "staging"]
    code, _, err = run("api-keys", "rotate", made["id"])
    assert (code, "no longer valid" in err) == (1, True)
    monkeypatch.setenv("IRCA_DATA_DIR", str(tmp_path / "data"))
    code, out, _ = run("api-keys", "create", "--name", "rescue", "--environments", "team-*", "--offline", "--json")
    assert (code, json.loads(out)["name"]) == (0, "rescue")
