from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from connectors import cli
from connectors.agent_factory import AgentFactory
from connectors.core.agent_config import AgentConfig
from connectors.core.base_agent import BaseAgent
from connectors.core.errors import StateError
from connectors.core.identity import CREDENTIAL_FILE, StateDirectory, token_digest
from connectors.core.preflight import Check, Outcome
from connectors.core.secret import Secret
from connectors.core.status import AgentStatus, SpoolStatus, write_status
from connectors.core.telemetry import Collection

URL = "http://platform.example.com:8000"


class RecordingAgent(BaseAgent):
    agent_type = "recording"
    made: ClassVar[list[RecordingAgent]] = []
    exit_code = 0
    failure: Exception | None = None
    checks: tuple[Check, ...] = ()

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def get_deployment_command(self) -> str:
        return ""

    def _gather_data(self) -> Collection:
        return Collection(0, [])

    def preflight(self) -> tuple[Check, ...]:
        return type(self).checks

    def run(self, stopping: threading.Event | None = None) -> int:
        type(self).made.append(self)
        if self.failure:
            raise self.failure
        return self.exit_code


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    AgentFactory.register("recording", RecordingAgent)
    RecordingAgent.made, RecordingAgent.exit_code, RecordingAgent.failure, RecordingAgent.checks = [], 0, None, ()
    monkeypatch.setenv("AGENT_TYPE", "recording")
    monkeypatch.setenv("PLATFORM_API_URL", URL)
    monkeypatch.setenv("STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(cli, "DEFAULT_CONFIG_FILE", str(tmp_path / "no-such.toml"))
    yield
    AgentFactory.unregister("recording")


def made() -> RecordingAgent:
    (agent,) = RecordingAgent.made
    return agent


def enrol(tmp_path: Path, url: str = URL) -> None:
    state = tmp_path / "state"
    state.mkdir()
    document = {"platform_url": url, "token_digest": "0" * 32, "current": "cred_text", "candidate": ""}
    (state / CREDENTIAL_FILE).write_text(json.dumps(document))


# run


def test_run_makes_the_agent_from_the_environment_and_returns_its_exit_code(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AGENT_TOKEN", " token-123\n")
    monkeypatch.setenv("LOG_LEVEL", "debug")
    RecordingAgent.exit_code = 1
    assert cli.main(["run"]) == 1
    assert (made().platform_url, made().agent_token, made().config.log_level) == (URL, "token-123", "debug")


def test_the_token_is_taken_out_of_the_environment_that_children_would_inherit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AGENT_TOKEN", "token-123")
    cli.main(["run"])
    assert "AGENT_TOKEN" not in os.environ


def test_arguments_come_before_environment_and_environment_before_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    file = tmp_path / "agent.toml"
    file.write_text('platform_url = "http://file:1"\nlog_level = "error"\ncollect_interval = 60\nstate_dir = "/file"\n')
    monkeypatch.setenv("AGENT_TOKEN", "token-123")
    monkeypatch.setenv("LOG_LEVEL", "warning")
    cli.main(["run", "--config-file", str(file), "--platform-url", "http://argument:2", "--state-dir", str(tmp_path / "argument")])
    agent = made()
    assert agent.platform_url == "http://argument:2"
    assert (agent.config.log_level, agent.config.collect_interval, agent.config.state_dir) == ("warning", 60.0, str(tmp_path / "argument"))


def test_the_file_alone_is_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for variable in ("AGENT_TYPE", "PLATFORM_API_URL"):
        monkeypatch.delenv(variable)
    (tmp_path / "token").write_text("token-from-file\n")
    file = tmp_path / "agent.toml"
    file.write_text(
        f'agent_type = "recording"\nplatform_url = "http://file:1"\ntoken_file = "{tmp_path / "token"}"\n[labels]\nteam = "web"\n'
    )
    monkeypatch.setenv("AGENT_CONFIG_FILE", str(file))
    assert cli.main(["run"]) == 0
    assert (made().platform_url, made().agent_token, made().config.labels) == ("http://file:1", "token-from-file", {"team": "web"})


def test_the_default_file_is_read_where_it_stands_unless_an_empty_variable_says_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    file = tmp_path / "default.toml"
    file.write_text('log_level = "error"\n')
    monkeypatch.setattr(cli, "DEFAULT_CONFIG_FILE", str(file))
    monkeypatch.setenv("AGENT_TOKEN", "token-123")
    cli.main(["run"])
    monkeypatch.setenv("AGENT_TOKEN", "token-123")
    monkeypatch.setenv("AGENT_CONFIG_FILE", "")
    cli.main(["run"])
    assert [agent.config.log_level for agent in RecordingAgent.made] == ["error", "info"]


@pytest.mark.parametrize("how", ["variable", "argument"])
def test_the_token_may_be_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str):
    path = tmp_path / "token"
    path.write_text("token-456\n")
    if how == "variable":
        monkeypatch.setenv("AGENT_TOKEN_FILE", str(path))
    assert cli.main(["run", *(["--token-file", str(path)] if how == "argument" else [])]) == 0
    assert made().agent_token == "token-456"


def test_no_token_and_no_credential_is_refused_by_the_variables_name(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["run"]) == 2
    assert "AGENT_TOKEN" in one_line(capsys)
    assert RecordingAgent.made == []


def test_with_a_credential_on_disk_the_token_may_be_gone(tmp_path: Path):
    enrol(tmp_path)
    assert cli.main(["run"]) == 0
    assert made().agent_token


def test_an_agent_without_a_token_works_with_the_credential_of_whatever_enrolment_it_has(tmp_path: Path):
    enrol(tmp_path)
    cli.main(["run"])
    with contextlib.closing(StateDirectory(tmp_path / "state", time.time)) as state:
        assert state.credential(URL, token_digest(made().agent_token)).current.reveal() == "cred_text"
        assert not state.credential(URL, token_digest("another-token")).current
        assert not state.credential("http://elsewhere", token_digest(made().agent_token)).current


def test_a_credential_for_another_platform_does_not_count(tmp_path: Path):
    enrol(tmp_path, "https://elsewhere.example.com")
    assert cli.main(["run"]) == 2


@pytest.mark.parametrize("content", ["", "[]", "{", '{"platform_url": 3}', '{"platform_url": "' + URL + '"}'])
def test_a_damaged_credential_counts_as_none(tmp_path: Path, content: str):
    enrol(tmp_path)
    (tmp_path / "state" / CREDENTIAL_FILE).write_text(content)
    assert cli.stored_credential(tmp_path / "state", URL) == Secret("")


def test_the_token_is_never_an_argument(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--token", "token-123"])
    assert stop.value.code == 2
    capsys.readouterr()
    for command in ("run", "check", "status", "version"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        assert "--token " not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["--type", "toaster"], {}, "unknown agent type 'toaster'; known types: docker, kubernetes, recording, server"),
        ([], {"PLATFORM_API_URL": ""}, "PLATFORM_API_URL"),
        ([], {"PLATFORM_API_URL": "ftp://x"}, "platform_url must look like"),
        ([], {"COLLECT_INTERVAL": "often"}, "collect_interval must be a number"),
        ([], {"AGENT_TOKEN": "two words"}, "agent_token"),
        (["--config-file", "/no/such/file.toml"], {}, "/no/such/file.toml cannot be read: No such file"),
        (["--token-file", "/no/such/token"], {"AGENT_TOKEN": ""}, "/no/such/token cannot be read: No such file"),
    ],
)
def test_wrong_configuration_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], variables: dict[str, str], words: str
):
    for name, value in {"AGENT_TOKEN": "token-123", **variables}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["run", *arguments]) == 2
    line = one_line(capsys)
    assert line.startswith("incident-rca-agent: ")
    assert words in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("log_level = ", "is not TOML"),
        ("agent_type = 3", "agent_type in the configuration file must be a string"),
        ("colour = 1", "unknown option 'colour'"),
    ],
)
def test_a_wrong_file_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str, words: str):
    (tmp_path / "agent.toml").write_text(content)
    assert cli.main(["run", "--config-file", str(tmp_path / "agent.toml")]) == 2
    assert words in one_line(capsys)


def test_a_token_file_that_is_no_text_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    assert cli.main(["run", "--token-file", str(tmp_path / "token")]) == 2
    assert "is not text" in one_line(capsys)


def test_a_fault_while_running_is_one_line_and_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("AGENT_TOKEN", "token-123")
    RecordingAgent.failure = StateError("the disk is gone")
    assert cli.main(["run"]) == 1
    assert one_line(capsys) == "incident-rca-agent: the disk is gone"


def test_ctrl_c_before_the_agent_listens_to_signals_is_an_orderly_stop(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AGENT_TOKEN", "token-123")
    monkeypatch.setattr(RecordingAgent, "failure", KeyboardInterrupt())
    assert cli.main(["run"]) == 0


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def test_running_loads_only_what_a_running_agent_needs():
    script = (
        "import sys, connectors.cli as cli\n"
        "from connectors.server.server_agent import ServerAgent\n"
        "ServerAgent.run = lambda self, stopping=None: (self.runtime.close(), 0)[1]\n"
        "assert cli.main(['run']) == 0\n"
        "heavy = ('pydantic', 'typer', 'rich', 'fastapi', 'httpx2', 'sqlalchemy', 'numpy', 'asyncio', 'urllib.request',"
        " 'connectors.core.preflight_checks', 'connectors.docker.docker_agent', 'connectors.kubernetes.k8s_agent')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    environment = {**os.environ, "AGENT_TYPE": "server", "AGENT_TOKEN": "token-123", "AGENT_CONFIG_FILE": ""}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


# check


class Platform:
    def __init__(self) -> None:
        self.tokens: list[str] = []
        platform = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer: dict[str, object] = {"status": "ok", "service": "incident-rca"}
                if self.path.endswith("/whoami"):
                    platform.tokens.append(self.headers["Authorization"])
                    answer = {"kind": "credential", "agent_type": "recording", "environment_name": "prod"}
                body = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    running = Platform()
    monkeypatch.setenv("PLATFORM_API_URL", running.url)
    yield running
    running.close()


@pytest.mark.sockets
def test_check_passes_and_prints_every_result(platform: Platform, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("AGENT_TOKEN", "token-123")
    assert cli.main(["check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["dns", "tcp", "http", "clock", "token", "permissions", "disk"]
    assert platform.tokens == ["Bearer token-123"]


@pytest.mark.sockets
def test_check_shows_the_credential_rather_than_the_token_once_there_is_one(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    enrol(tmp_path, platform.url)
    monkeypatch.setenv("AGENT_TOKEN", "token-123")
    assert cli.main(["check", "--json"]) == 0
    assert platform.tokens == ["Bearer cred_text"]


@pytest.mark.sockets
def test_check_runs_the_types_own_checks_and_a_failure_is_exit_code_3(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("AGENT_TOKEN", "token-123")
    RecordingAgent.checks = (Check("engine", lambda: (Outcome.FAIL, "no engine", "Start it.")),)
    assert cli.main(["check", "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert document["checks"][-1] == {"name": "engine", "outcome": "fail", "detail": "no engine", "advice": "Start it."}


@pytest.mark.sockets
def test_check_without_a_token_still_checks_the_rest(platform: Platform, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["check", "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert [c["name"] for c in document["checks"] if c["outcome"] == "fail"] == ["token"]
    assert platform.tokens == []


def test_check_keeps_to_ascii_where_the_terminal_knows_no_more():
    environment = {**os.environ, "AGENT_TYPE": "server", "PLATFORM_API_URL": "http://no-such-host.invalid", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "connectors.cli", "check"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 3
    assert done.stdout.startswith("FAIL dns")
    assert done.stderr == ""


# status


def status(**changes: object) -> AgentStatus:
    now = time.time()
    values = {
        "pid": os.getpid(),
        "version": "0.1.0",
        "agent_type": "recording",
        "instance_id": "0190",
        "platform_url": URL,
        "state": "healthy",
        "reasons": {},
        "started_at": now - 7300,
        "written_at": now,
        "enrolled": True,
        "last_collection_at": now - 3,
        "last_send_at": now - 130,
        "last_heartbeat_at": None,
        "heartbeat_interval": 30.0,
        "clock_skew": None,
        "spool": SpoolStatus(),
    }
    return AgentStatus(**{**values, **changes})


def write(tmp_path: Path, subject: AgentStatus) -> None:
    (tmp_path / "state").mkdir()
    write_status(tmp_path / "state", subject)


def test_a_healthy_agent_has_exit_code_0_and_says_how_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path, status())
    assert cli.main(["status"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    shown = {name.strip(): text.strip() for name, text in lines.items()}
    assert shown["State"] == "healthy"
    assert shown["Agent"] == f"recording, version 0.1.0, process {os.getpid()}, started 2 h ago"
    assert (shown["Collected"], shown["Sent"], shown["Heartbeat"], shown["Waiting"]) == ("3 s ago", "2 min ago", "never", "nothing")


def test_a_degraded_agent_has_exit_code_3_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    now = time.time()
    spool = SpoolStatus(5000, 7, now - 600, {"metrics": 1200, "logs": 0}, {}, {}, {"metrics": {"too old": 4}})
    write(tmp_path, status(state="degraded", reasons={"transport": "refused\x1b[2J"}, clock_skew=-90.0, spool=spool, enrolled=False))
    assert cli.main(["status"]) == 3
    text = capsys.readouterr().out
    for words in (
        "transport",
        "not enrolled yet",
        "1,200 metrics in 5,000 bytes",
        "collected 10 min ago",
        "metrics: 4 (too old)",
        "90 s behind",
    ):
        assert words in text
    assert "\x1b" not in text


def test_a_clock_that_is_ahead_is_told_so():
    assert cli.describe(status(clock_skew=7.0), time.time())[-1].endswith("7 s ahead of the platform's")


def test_status_as_json_is_the_status_file_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path, status(written_at=time.time() - 1000))
    assert cli.main(["status", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["state"] == "stale"


def test_where_no_agent_has_run_status_says_so(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["status"]) == 3
    assert "no agent has run" in one_line(capsys)
    assert cli.main(["status", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["state"] == "unknown"


# version and the program itself


def test_version_is_the_products(capsys: pytest.CaptureFixture[str]):
    from connectors import __version__

    assert cli.main(["version"]) == 0
    assert cli.main(["version", "--json"]) == 0
    text, _, document = capsys.readouterr().out.partition("\n")
    assert text == f"incident-rca-agent {__version__}"
    assert json.loads(document) == {"version": __version__}


def test_exit_codes_are_documented_in_the_help(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert "exit codes:" in text
    assert "AGENT_TOKEN" in text


def test_a_reader_that_goes_away_is_no_error():
    script = (
        "import sys, connectors.cli as c\n"
        "c._version = lambda *a: [print('x' * 100) for _ in range(10000)] and 0\n"
        "sys.exit(c.main(['version']))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


@pytest.mark.sockets
def test_a_real_agent_runs_until_sigterm_and_leaves_a_status_behind(tmp_path: Path, platform: Platform):
    environment = {
        **os.environ,
        "AGENT_TYPE": "server",
        "AGENT_TOKEN": "token-123",
        "PLATFORM_API_URL": platform.url,
        "COLLECT_INTERVAL": "1",
    }
    with subprocess.Popen([sys.executable, "-m", "connectors.cli", "run"], env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 20
        while not (tmp_path / "state" / "status.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=30)[1]
    assert process.returncode == 0, log
    assert "token-123" not in log
    assert json.loads((tmp_path / "state" / "status.json").read_text())["state"] == "stopped"


def test_options_of_the_type_reach_its_own_configuration_class(monkeypatch: pytest.MonkeyPatch):
    assert RecordingAgent.config_class is AgentConfig
    monkeypatch.setenv("AGENT_TOKEN", "token-123")
    monkeypatch.setenv("LABELS", "team=web,tier=1")
    cli.main(["run"])
    assert made().config.labels == {"team": "web", "tier": "1"}
