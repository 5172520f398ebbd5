"""``up``: what it decides before it acts; tests/e2e/test_make_up.py runs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from app.commands import companion, server
from app.commands.output import CommandError
from app.errors import StartupError
from app.settings import Settings


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
