"""``provision``, ``types`` and ``agents``."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest
from command_process import COMMAND, Served, run_json

from app import cli
from app.commands import fleet
from app.commands.output import CommandError


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    running = Served(tmp_path_factory.mktemp("platform") / "data")
    yield running
    assert running.stop()[0] == 0


@pytest.fixture
def signed_in(served: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    monkeypatch.setenv("IRCA_URL", served.url)
    monkeypatch.setenv("IRCA_API_KEY", served.key)
    return served


@pytest.mark.sockets
def test_provision_prints_the_command_alone_on_standard_output_and_exactly_as_it_is(signed_in: Served, capsys: pytest.CaptureFixture[str]):
    assert (
        cli.main(["provision", "--type", "docker", "--environment", "docker-prod", "--config", "log_level=debug", "-c", "labels.team=web"])
        == 0
    )
    captured = capsys.readouterr()
    assert captured.out.startswith("docker run -d --name incident-rca-agent")
    assert "-e LOG_LEVEL=debug" in captured.out
    assert "team=web" in captured.out
    assert f"PLATFORM_API_URL={signed_in.url}" in captured.out
    assert re.search(r"agent_docker-prod_\S+", captured.out)
    assert captured.err.startswith("1. ")


@pytest.mark.sockets
def test_provision_as_json_is_the_apis_answer(signed_in: Served, capsys: pytest.CaptureFixture[str]):
    answer = run_json(
        capsys, "provision", "--type", "kubernetes", "--environment", "k8s", "--config", "namespace=123", "--config", "replicas=2"
    )
    assert {"agent_type", "environment_name", "deployment_command", "instructions", "agent_token"} <= answer.keys()
    assert "helm upgrade --install" in answer["deployment_command"]


@pytest.mark.sockets
def test_a_refused_provisioning_names_each_field(signed_in: Served, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["provision", "--type", "docker", "--environment", "x", "--config", "colour=red"]) == 1
    err = capsys.readouterr().err
    assert "invalid-config" in err
    assert "colour" in err
    assert cli.main(["provision", "--type", "toaster", "--environment", "x"]) == 1
    assert "known types: docker, kubernetes, server" in capsys.readouterr().err


@pytest.mark.sockets
def test_types_are_listed_with_what_they_connect(signed_in: Served, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["types"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "TYPE"
    assert [line.split()[0] for line in lines[1:]] == ["docker", "kubernetes", "server"]
    assert {t["name"] for t in run_json(capsys, "types")["types"]} == {"docker", "kubernetes", "server"}


SCHEMA = {
    "properties": {
        "namespace": {"type": "string"},
        "replicas": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "level": {"enum": ["1", "2"]},
        "labels": {"type": "object"},
        "fast": {"type": "boolean"},
    }
}


@pytest.mark.parametrize(
    ("pairs", "config"),
    [
        (["namespace=123"], {"namespace": "123"}),
        (["replicas=2"], {"replicas": 2}),
        (["replicas=two"], {"replicas": "two"}),
        (["fast=true"], {"fast": True}),
        (["tags=a, b"], {"tags": ["a", "b"]}),
        (['tags=["a,b"]'], {"tags": ["a,b"]}),
        (["maybe=7"], {"maybe": "7"}),
        (["level=1"], {"level": "1"}),
        (["labels.team=web", "labels.url=a=b"], {"labels": {"team": "web", "url": "a=b"}}),
        (['labels={"team": "web"}'], {"labels": {"team": "web"}}),
        (["unknown.key=1"], {"unknown.key": 1}),
        (["namespace="], {"namespace": ""}),
    ],
)
def test_config_texts_become_what_the_schema_wants(pairs: list[str], config: dict[str, object]):
    assert fleet.parse_config(pairs, SCHEMA) == config


@pytest.mark.parametrize("pairs", [["namespace"], ["=x"], ["labels=x", "labels.team=web"]])
def test_config_that_is_not_key_value_is_wrong_usage(pairs: list[str]):
    with pytest.raises(CommandError) as caught:
        fleet.parse_config(pairs, SCHEMA)
    assert caught.value.exit_code == 2


# agents


@pytest.mark.sockets
def test_agents_are_listed_shown_and_filtered(signed_in: Served, capsys: pytest.CaptureFixture[str]):
    made = [run_json(capsys, "provision", "--type", "server", "--environment", name)["agent_id"] for name in ("list-a", "list-b", "list-b")]
    everything = run_json(capsys, "agents", "list")["items"]
    assert set(made) <= {agent["id"] for agent in everything}
    assert [a["id"] for a in run_json(capsys, "agents", "list", "--environment", "list-a")["items"]] == made[:1]
    assert len(run_json(capsys, "agents", "list", "--type", "server", "--limit", "2")["items"]) == 2
    assert cli.main(["agents", "list", "--environment", "list-a", "--status", "pending"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == "ENVIRONMENT"
    assert row.split()[:5] == ["list-a", "server", "pending", "-", "never"]
    assert row.endswith(made[0])
    for name in (made[0], "list-a"):
        assert cli.main(["agents", "show", name]) == 0
        assert f"Id             {made[0]}" in capsys.readouterr().out
    assert run_json(capsys, "agents", "show", "list-a")["id"] == made[0]
    assert cli.main(["agents", "show", "list-b"]) == 1
    err = capsys.readouterr().err
    assert all(agent in err for agent in made[1:])
    assert cli.main(["agents", "show", "no-such"]) == 1
    assert "no agent with the id or environment 'no-such'" in capsys.readouterr().err
    assert cli.main(["agents", "list", "--environment", "no-such"]) == 0
    assert capsys.readouterr().out == "No agents. `incident-rca provision` connects the first environment.\n"
    assert cli.main(["agents", "show", "0190f0e0-0000-7000-8000-000000000000"]) == 1
    assert "not-found" in capsys.readouterr().err


@pytest.mark.sockets
def test_watch_tells_changes_line_by_line_where_there_is_no_terminal(signed_in: Served, capsys: pytest.CaptureFixture[str]):
    run_json(capsys, "provision", "--type", "server", "--environment", "watched")
    variables = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [*COMMAND, "agents", "watch", "--environment", "watched", "--interval", "0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables) as process:
        assert process.stdout.readline().startswith("watched (server) pending")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "", "")


class Scripted:
    """A client whose list is another one at each look, and then an interruption."""

    def __init__(self, *pages: list[dict[str, object]]) -> None:
        self._pages = list(pages)

    def items(self, path: str, filters: object) -> list[dict[str, object]]:
        if not self._pages:
            raise KeyboardInterrupt
        return self._pages.pop(0)


def agent(**changes: object) -> dict[str, object]:
    values = {"id": "1", "agent_type": "server", "environment_name": "prod", "status": "healthy", "status_reason": "", "version": "1"}
    return {**values, "last_seen_at": None, "instances": [], **changes}


@pytest.mark.parametrize("as_json", [False, True])
def test_watch_tells_of_every_change_once_and_of_what_is_gone(capsys: pytest.CaptureFixture[str], as_json: bool):
    worse = agent(status="degraded", status_reason="no\x1b heartbeat")
    with pytest.raises(KeyboardInterrupt):
        fleet._watch_changes(Scripted([agent()], [agent()], [worse], []), {}, 0, as_json=as_json)
    lines = capsys.readouterr().out.splitlines()
    if as_json:
        assert [json.loads(line)["status"] for line in lines] == ["healthy", "degraded", None]
    else:
        assert lines == ["prod (server) healthy", "prod (server) degraded: no  heartbeat", "1 is gone"]


def test_watch_shows_a_live_table_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    client = contextlib.nullcontext(Scripted([agent()], [agent(status="offline")]))
    monkeypatch.setattr(fleet, "connect", lambda url: client)
    fleet.watch_agents(interval=0.01)
    assert "healthy" in capsys.readouterr().out
