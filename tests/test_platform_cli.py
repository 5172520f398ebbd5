from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from app import cli
from app.commands import client as http
from app.commands import companion, connection, fleet, keys, output, server, setup
from app.commands.output import CommandError
from app.errors import StartupError
from app.settings import Settings

COMMAND = [sys.executable, "-m", "app.cli"]


def environment(data_dir: Path, **variables: str) -> dict[str, str]:
    return {**os.environ, "IRCA_DATA_DIR": str(data_dir), "IRCA_PORT": "0", "NO_COLOR": "1", **variables}


class Served:
    """``incident-rca serve`` in a process of its own."""

    def __init__(self, data_dir: Path, *arguments: str, **variables: str) -> None:
        self.data_dir = data_dir
        self.process = subprocess.Popen(
            [*COMMAND, "serve", *arguments],
            env=environment(data_dir, **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if "Sign in with an API key" in line or line.startswith("  irca_"):
                break
        else:
            raise AssertionError(self.process.communicate()[1])
        self.url = re.search(r"https?://\S+", self.lines[0])[0]
        self.key = self.lines[-1].strip() if self.lines[-1].startswith("  ") else ""

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


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


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> object:
    assert cli.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# The command itself.


def test_help_names_every_command_and_loads_nothing_heavy():
    script = (
        "import sys, app.cli\n"
        "assert app.cli.main(['--help']) == 0\n"
        "heavy = ('fastapi', 'sqlalchemy', 'uvicorn', 'pydantic', 'httpx2', 'numpy', 'structlog')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip() == "[]"
    for command in ("up", "serve", "provision", "types", "agents", "api-keys", "--install-completion"):
        assert command in done.stdout


def test_version_is_the_products(capsys: pytest.CaptureFixture[str]):
    from connectors import __version__

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"incident-rca {__version__}\n"


def test_wrong_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["serv"]) == 2
    assert "No such command" in capsys.readouterr().err


def test_without_the_platforms_packages_one_line_says_what_to_install(tmp_path: Path):
    (tmp_path / "typer.py").write_text("raise ImportError('no typer here')\n")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import app.cli"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "incident-rca: the platform is not installed here: pip install 'incident-rca[platform]'\n"


def test_ctrl_c_is_no_error(monkeypatch: pytest.MonkeyPatch):
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    assert cli.main([]) == 0


# serve


@pytest.mark.sockets
def test_the_first_key_is_shown_once_and_both_signals_stop_in_order(tmp_path: Path):
    first = Served(tmp_path / "data")
    assert first.lines[0] == f"incident-rca is ready at {first.url}"
    assert first.key.startswith("irca_")
    assert "shown only now" in first.lines[1]
    assert first.stop(signal.SIGTERM)[:2] == (0, "The platform has stopped.\n")
    second = Served(tmp_path / "data")
    assert second.key == ""
    assert "api-keys create" in second.lines[1]
    code, out, err = second.stop(signal.SIGINT)
    assert (code, out) == (0, "The platform has stopped.\n")
    assert "Traceback" not in err


@pytest.mark.sockets
def test_a_port_in_use_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--data-dir", str(tmp_path), "--port", str(port)]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"incident-rca: 127.0.0.1:{port} is in use"
    assert "IRCA_PORT" in lines[1]


@pytest.mark.sockets
@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid"])
def test_an_address_that_is_not_this_machines_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], host: str):
    assert cli.main(["serve", "--data-dir", str(tmp_path), "--host", host, "--port", "0"]) == 3
    assert f"cannot listen on {host}:0" in capsys.readouterr().err


def test_no_permission_for_the_port_says_which_ports_need_none():
    error = setup._explain_bind(PermissionError(13, "Permission denied"), "0.0.0.0:80")
    assert (error.exit_code, error.message) == (3, "no permission to listen on 0.0.0.0:80")
    assert "1023" in error.hint


def test_a_data_directory_that_cannot_be_written_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "data").write_text("a file")
    assert cli.main(["serve", "--data-dir", str(tmp_path / "data")]) == 3
    assert "data directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"IRCA_PORT": "eighty"}, "IRCA_PORT: "),
        ({"IRCA_PORT": "70000"}, "IRCA_PORT: "),
        ({"IRCA_LOG_LEVEL": "loud"}, "IRCA_LOG_LEVEL: "),
        ({"IRCA_TLS_CERTIFICATE": "cert.pem"}, "belong together"),
    ],
)
def test_a_bad_setting_is_named_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, variables: dict[str, str], words: str
):
    for name, value in {"IRCA_DATA_DIR": str(tmp_path), **variables}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["serve"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("variables", "prepare", "words"),
    [
        ({}, lambda data: (data / "state.db").write_bytes(b"not a database" * 100), "the platform cannot start"),
        ({"IRCA_ADMIN_API_KEY": "short"}, lambda data: None, "IRCA_ADMIN_API_KEY must have at least 20 characters"),
        (
            {"IRCA_TLS_CERTIFICATE": "/no/cert", "IRCA_TLS_KEY": "/no/key"},
            lambda data: None,
            "IRCA_TLS_CERTIFICATE and IRCA_TLS_KEY cannot be used",
        ),
    ],
)
def test_what_fails_while_starting_is_one_line_without_a_traceback(tmp_path: Path, variables: dict[str, str], prepare: object, words: str):
    prepare(tmp_path)
    done = subprocess.run(
        [*COMMAND, "serve"],
        env=environment(tmp_path, IRCA_LOG_LEVEL="error", **variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.sockets
def test_a_second_platform_on_the_same_directory_is_refused(served: Served):
    done = subprocess.run([*COMMAND, "serve"], env=environment(served.data_dir), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "another platform is running" in done.stderr


@pytest.mark.sockets
def test_tls_by_settings_serves_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    for number, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(str(tmp_path / "cert.pem"), append=bool(number))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    running = Served(tmp_path / "data", IRCA_TLS_CERTIFICATE=str(tmp_path / "cert.pem"), IRCA_TLS_KEY=str(tmp_path / "key.pem"))
    try:
        assert running.url.startswith("https://localhost:")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        monkeypatch.setenv("IRCA_API_KEY", running.key)
        assert cli.main(["types", "--url", running.url]) == 0
        assert "server" in capsys.readouterr().out
    finally:
        running.stop()


# up: what it decides before it acts; tests/e2e/test_make_up.py runs it


@pytest.mark.parametrize(
    ("values", "url"),
    [
        ({}, "http://127.0.0.1:81"),
        ({"host": "0.0.0.0"}, "http://127.0.0.1:81"),
        ({"host": "::"}, "http://[::1]:81"),
        ({"host": "192.0.2.1"}, "http://192.0.2.1:81"),
        ({"host": "0.0.0.0", "public_url": "https://p.example.com"}, "http://127.0.0.1:81"),
        ({"tls_certificate": "c", "tls_key": "k"}, "https://localhost:81"),
        ({"tls_certificate": "c", "tls_key": "k", "public_url": "https://p.example.com"}, "https://p.example.com"),
    ],
)
def test_this_machines_agent_takes_the_shortest_way_that_its_certificate_allows(values: dict[str, str], url: str):
    assert companion.local_url(Settings(**values), 81) == url


def test_the_agents_environment_has_the_token_and_none_of_the_platforms_secrets():
    environ = {"IRCA_ADMIN_API_KEY": "k", "IRCA_API_KEY": "k", "AGENT_TOKEN_FILE": "f", "PATH": "/bin", "NO_PROXY": "example.com"}
    made = companion.agent_environment(environ, "http://127.0.0.1:81", Path("/state"), "agent_token")
    assert made == {
        "PATH": "/bin",
        "NO_PROXY": "example.com,localhost,127.0.0.1,::1",
        "no_proxy": "example.com,localhost,127.0.0.1,::1",
        "PLATFORM_API_URL": "http://127.0.0.1:81",
        "STATE_DIR": "/state",
        "AGENT_CONFIG_FILE": "",
        "AGENT_TOKEN": "agent_token",
    }


def test_the_agent_is_the_installed_command_or_else_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert companion.agent_command() == [str(tmp_path / "python"), "-m", "connectors.cli", "run", "--type", "server"]
    (tmp_path / "incident-rca-agent").touch()
    assert companion.agent_command() == [str(tmp_path / "incident-rca-agent"), "run", "--type", "server"]


def test_a_log_that_has_grown_large_is_kept_aside_and_begun_anew(tmp_path: Path):
    path = tmp_path / "logs" / "agent.log"
    for text in ("first\n", "second\n", "third\n"):
        with server.open_log(path, largest=8) as log:
            log.write(text)
    assert path.read_text() == "third\n"
    assert (tmp_path / "logs" / "agent.log.1").read_text() == "first\nsecond\n"
    assert companion.last_lines(path) == ["third"]
    assert companion.last_lines(tmp_path / "none") == []


def test_a_log_that_cannot_be_written_keeps_the_platform_from_starting(tmp_path: Path):
    (tmp_path / "logs").write_text("")
    with pytest.raises(CommandError, match="cannot be written"):
        server.open_log(tmp_path / "logs" / "agent.log")


def test_an_agents_process_is_told_from_others_by_its_command_line():
    assert companion.is_agent(companion.agent_command())
    assert companion.is_agent(["/venv/bin/python", "/venv/bin/incident-rca-agent", "run"])
    assert companion.is_agent(["python3", "-m", "connectors.cli", "run"])
    assert not companion.is_agent(["python3", "-m", "pytest", "--cov=connectors.cli", "incident-rca-agent"])
    assert not companion.is_agent([])


def test_a_lock_file_of_another_program_stops_nothing(tmp_path: Path):
    (tmp_path / "agent.lock").write_text(str(os.getpid()))
    companion.stop_leftover(tmp_path)
    (tmp_path / "agent.lock").write_text("nonsense")
    companion.stop_leftover(tmp_path)


def test_a_failure_that_is_not_ours_is_told_with_its_type():
    assert server.explain(ValueError("two\nlines")).message == "the platform cannot start: ValueError: two lines"
    stopped = server.explain(StartupError("no"), "did not stop in order")
    assert (stopped.message, stopped.exit_code) == ("the platform did not stop in order: no", 1)


# provision and types


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


# api-keys


@pytest.mark.sockets
def test_keys_are_made_listed_and_revoked(signed_in: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    made = run_json(capsys, "api-keys", "create", "--name", "ci", "--role", "viewer", "--expires-in", "90d")
    assert cli.main(["api-keys", "list"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if made["id"] in line]
    assert row.split()[:2] == ["ci", "viewer"]
    assert made["key"] not in row
    monkeypatch.setenv("IRCA_API_KEY", made["key"])
    assert cli.main(["agents", "list"]) == 0
    capsys.readouterr()
    assert cli.main(["provision", "--type", "server", "--environment", "x"]) == 1
    assert "Use a key with that role" in capsys.readouterr().err
    monkeypatch.setenv("IRCA_API_KEY", signed_in.key)
    assert cli.main(["api-keys", "revoke", made["id"]]) == 0
    assert capsys.readouterr().err == f"Revoked {made['id']}.\n"
    (row,) = [k for k in run_json(capsys, "api-keys", "list")["items"] if k["id"] == made["id"]]
    assert row["revoked_at"]
    monkeypatch.setenv("IRCA_API_KEY", made["key"])
    assert cli.main(["agents", "list"]) == 1
    assert "token-revoked" in capsys.readouterr().err


@pytest.mark.sockets
def test_a_keys_text_alone_goes_to_standard_output(signed_in: Served, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["api-keys", "create", "--name", "me"]) == 0
    captured = capsys.readouterr()
    assert re.fullmatch(r"irca_\S+\n", captured.out)
    assert "shown only now" in captured.err


@pytest.mark.sockets
def test_whoever_is_locked_out_makes_a_key_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("IRCA_DATA_DIR", str(tmp_path / "data"))
    made = run_json(capsys, "api-keys", "create", "--name", "rescue", "--role", "admin", "--expires-in", "1h", "--offline")
    assert cli.main(["api-keys", "create", "--name", "another", "--offline"]) == 0
    assert "after its next start" in capsys.readouterr().err
    assert cli.main(["api-keys", "create", "--name", "x", "--role", "king", "--offline"]) == 1
    assert "must be one of viewer, operator, admin" in capsys.readouterr().err
    running = Served(tmp_path / "data")
    try:
        monkeypatch.setenv("IRCA_API_KEY", made["key"])
        assert cli.main(["api-keys", "list", "--url", running.url]) == 0
        assert "rescue" in capsys.readouterr().out
    finally:
        running.stop()


@pytest.mark.parametrize(
    ("text", "seconds"), [("90d", 7_776_000.0), ("12h", 43_200.0), ("30m", 1800.0), ("2w", 1_209_600.0), ("60", 60.0), ("5s", 5.0)]
)
def test_durations_are_read(text: str, seconds: float):
    assert keys.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0d", "-1h", "soon", "1y", "1.5h"])
def test_what_is_no_duration_is_wrong_usage(text: str):
    with pytest.raises(CommandError) as caught:
        keys.parse_duration(text)
    assert caught.value.exit_code == 2


# Where the platform is, and what its refusals mean.


@pytest.mark.parametrize(
    ("option", "environ", "url"),
    [
        (None, {}, "http://localhost:8000"),
        (None, {"IRCA_PORT": "9000"}, "http://localhost:9000"),
        (None, {"IRCA_PUBLIC_URL": "https://p.example.com/"}, "https://p.example.com"),
        (None, {"IRCA_URL": "https://u.example.com", "IRCA_PUBLIC_URL": "https://p.example.com"}, "https://u.example.com"),
        ("https://o.example.com/base/", {"IRCA_URL": "https://u.example.com"}, "https://o.example.com/base"),
    ],
)
def test_the_platforms_url_is_found_by_precedence(option: str | None, environ: dict[str, str], url: str):
    assert connection.platform_url(option, environ) == url


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://x:port"])
def test_what_is_no_url_is_wrong_usage(url: str):
    with pytest.raises(CommandError) as caught:
        connection.platform_url(url, {})
    assert caught.value.exit_code == 2


def test_the_local_key_is_shown_to_this_machine_alone(tmp_path: Path):
    (tmp_path / connection.LOCAL_KEY_FILE).write_text("irca_local\n")
    environ = {"IRCA_DATA_DIR": str(tmp_path)}
    assert [
        connection.find_key(url, environ) for url in ("http://localhost:8000", "http://127.0.0.1:1", "http://[::1]:1", "http://a.localhost")
    ] == ["irca_local"] * 4
    assert connection.find_key("https://platform.example.com", environ) == ""
    assert connection.find_key("http://localhost:8000", {**environ, "IRCA_API_KEY": "irca_mine"}) == "irca_mine"
    assert connection.find_key("http://localhost:8000", {"IRCA_DATA_DIR": str(tmp_path / "none")}) == ""


@pytest.mark.sockets
def test_without_a_platform_the_error_says_how_to_start_one(capsys: pytest.CaptureFixture[str], free_port: int):
    assert cli.main(["agents", "list", "--url", f"http://127.0.0.1:{free_port}"]) == 1
    err = capsys.readouterr().err
    assert f"nothing answers at http://127.0.0.1:{free_port}" in err
    assert "incident-rca up" in err


@pytest.mark.sockets
@pytest.mark.parametrize("key", ["", "irca_wrong"])
def test_without_a_valid_key_the_error_says_how_to_get_one(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, key: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IRCA_API_KEY", key)
    assert cli.main(["agents", "list", "--url", served.url]) == 1
    err = capsys.readouterr().err
    assert "unauthenticated" in err
    assert "IRCA_API_KEY" in err


class Stranger:
    """A server that is no platform."""

    def __init__(self, status: int, body: bytes, pause: float = 0) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                time.sleep(pause)
                with contextlib.suppress(OSError):
                    if status == 0:
                        self.wfile.write(b"SSH-2.0\r\n")
                        return
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"<html>", "is not an incident-rca platform"),
        (404, b"nothing here", "answers 404, but not as an incident-rca platform"),
        (500, b"[]", "answers 500"),
        (0, b"", "no answer from"),
    ],
)
def test_another_server_is_not_taken_for_the_platform(status: int, body: bytes, words: str, capsys: pytest.CaptureFixture[str]):
    with contextlib.closing(Stranger(status, body)) as stranger:
        assert cli.main(["agents", "list", "--url", stranger.url]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.sockets
def test_a_platform_that_does_not_answer_in_time_is_told_so():
    with (
        contextlib.closing(Stranger(200, b"{}", pause=0.5)) as slow,
        http.PlatformClient(slow.url, "", timeout=0.1) as client,
        pytest.raises(CommandError, match="did not answer in time"),
    ):
        client.get("/api/v1/agents")


@pytest.mark.sockets
def test_this_machine_is_reached_past_any_proxy(signed_in: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert cli.main(["types"]) == 0


def test_a_refusal_shows_its_fields_and_no_terminal_controls(capsys: pytest.CaptureFixture[str]):
    problem = {
        "code": "invalid-config",
        "detail": "no\x1b[2J good",
        "errors": [{"field": "config.replicas", "message": "must be at least 1"}],
    }
    output.report(http.explain(422, problem, "http://x"))
    assert capsys.readouterr().err == "incident-rca: no [2J good (invalid-config)\n  config.replicas: must be at least 1\n"


# Output.


@pytest.mark.parametrize(
    ("time_then", "text"),
    [
        (None, "never"),
        ("2026-01-01T11:59:50Z", "10 s ago"),
        ("2026-01-01T11:50:00Z", "10 min ago"),
        ("2025-12-01T12:00:00+00:00", "31 days ago"),
    ],
)
def test_times_are_told_as_distances(time_then: str | None, text: str):
    assert output.ago(time_then, datetime(2026, 1, 1, 12, tzinfo=UTC)) == text


def test_tables_are_not_wrapped_in_a_pipe(capsys: pytest.CaptureFixture[str]):
    output.print_table(("A", "B"), [("x" * 300, "[red]markup[/red]"), (None, 3)], empty="")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["x" * 300, "[red]markup[/red]"]
    assert len(lines) == 3
