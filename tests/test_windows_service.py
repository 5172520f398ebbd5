from __future__ import annotations

import json
import sys
import threading

import pytest

from connectors import cli
from connectors.core.errors import ConfigError, ControlError
from connectors.server import windows_service
from connectors.server.windows_service import LOG_FILE, SETTINGS_FILE, EventLevel, ServiceReport, ServiceState, read_settings, serve

STOP, INTERROGATE, SHUTDOWN, PAUSE = 1, 4, 5, 2


class Scm:
    """Stands in for the service control manager; says ``controls`` to the service once it runs."""

    def __init__(self, *controls, error=0):
        self.controls = controls
        self.error = error
        self.reports = []
        self.answers = []
        self.events = []

    def dispatch(self, name, main):
        self.name = name
        if not self.error:
            thread = threading.Thread(target=main)
            thread.start()
            thread.join(30)
            assert not thread.is_alive()
        return self.error

    def listen(self, name, handler):
        assert name == self.name
        self.handler = handler

    def report(self, status):
        self.reports.append(status)
        if status.state is ServiceState.RUNNING:
            controls, self.controls = self.controls, ()
            threading.Thread(target=lambda: self.answers.extend(self.handler(code) for code in controls)).start()

    def log(self, name, level, text):
        self.events.append((level, text))

    @property
    def states(self):
        return [report.state.name for report in self.reports]


class Agent:
    def __init__(self, code=0, error=None):
        self.code, self.error = code, error

    def run(self, stopping):
        if self.error:
            raise self.error
        if not self.code:
            assert stopping.wait(30)
        sys.stderr.write("a line of the log\n")
        return self.code


@pytest.fixture
def directory(tmp_path):
    (tmp_path / SETTINGS_FILE).write_text(json.dumps({"IRCA_TEST_SETTING": "ü"}), encoding="utf-8-sig")
    return tmp_path


@pytest.fixture(autouse=True)
def no_settings_left(monkeypatch):
    monkeypatch.setenv("IRCA_TEST_SETTING", "")


@pytest.mark.parametrize("control", [STOP, SHUTDOWN])
def test_the_service_runs_until_it_is_told_to_stop(directory, control):
    scm = Scm(INTERROGATE, PAUSE, control)
    assert serve("a", directory, Agent, scm) == 0
    assert scm.states == ["START_PENDING", "RUNNING", "RUNNING", "STOP_PENDING", "STOPPED"]
    assert scm.answers == [0, 120, 0]
    assert scm.reports[-1] == ServiceReport(ServiceState.STOPPED)
    assert scm.events == [(EventLevel.INFORMATION, "The agent has started."), (EventLevel.INFORMATION, "The agent has stopped.")]
    assert (directory / LOG_FILE).read_text() == "a line of the log\n"


def test_the_settings_are_in_the_environment_before_the_agent_is_made(directory):
    seen = []

    def make():
        import os

        seen.append(os.environ["IRCA_TEST_SETTING"])
        return Agent(1)

    serve("a", directory, make, Scm())
    assert seen == ["ü"]


@pytest.mark.parametrize(
    ("agent", "code", "text"),
    [
        (Agent(1), 1, "A part of the agent failed for good"),
        (Agent(error=ConfigError("no token")), 2, "no token"),
        (Agent(error=ControlError("no way")), 1, "no way"),
        (Agent(error=ZeroDivisionError("oh")), 1, "ZeroDivisionError: oh"),
    ],
)
def test_an_agent_that_fails_tells_the_event_log_and_ends_so_that_it_is_restarted(directory, agent, code, text):
    scm = Scm()
    assert serve("a", directory, lambda: agent, scm) == code
    assert scm.reports[-1] == ServiceReport(ServiceState.STOPPED, exit_code=code)
    assert scm.reports[-1].fields() == (1, 0, 1066, code, 0)
    level, said = scm.events[-1]
    assert level is EventLevel.ERROR
    assert text in said
    assert text in (directory / LOG_FILE).read_text()


def test_a_service_that_is_stopped_while_it_starts_does_not_say_that_it_runs(directory):
    scm = Scm()

    def make():
        assert scm.handler(STOP) == 0
        return Agent()

    assert serve("a", directory, make, scm) == 0
    assert scm.states == ["START_PENDING", "STOP_PENDING", "STOPPED"]
    scm.handler(STOP)
    assert scm.states[-1] == "STOPPED"


@pytest.mark.parametrize(("error", "reason"), [(1063, "sc start a"), (5, "error 5")])
def test_a_program_that_windows_did_not_start_as_a_service_says_so(directory, error, reason):
    with pytest.raises(ControlError, match=reason):
        serve("a", directory, Agent, Scm(error=error))


def test_settings_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / SETTINGS_FILE
    for content, reason in ((None, "cannot be read"), ("{", "are not JSON"), ("[]", "object of texts"), ('{"a": 1}', "object of texts")):
        if content is not None:
            path.write_text(content)
        with pytest.raises(ConfigError, match=reason):
            read_settings(path)


def test_a_log_that_has_grown_is_put_aside_and_one_that_cannot_be_opened_does_not_matter(directory, monkeypatch):
    monkeypatch.setattr(windows_service, "LARGEST_LOG", 10)
    log = directory / LOG_FILE
    serve("a", directory, lambda: Agent(1), Scm())
    serve("a", directory, lambda: Agent(1), Scm())
    assert log.with_name("agent.log.1").exists()
    log.unlink()
    log.mkdir()
    assert serve("a", directory, lambda: Agent(1), Scm()) == 1


def test_the_command_that_windows_starts_runs_the_agent_of_the_settings(directory, monkeypatch):
    (directory / SETTINGS_FILE).write_text(json.dumps({"STATE_DIR": str(directory / "state"), "PLATFORM_API_URL": "", "AGENT_TOKEN": "t"}))
    for name in ("STATE_DIR", "PLATFORM_API_URL", "AGENT_TOKEN"):
        monkeypatch.setenv(name, "")
    scm = Scm()
    monkeypatch.setattr(windows_service, "_windows", lambda: scm)
    assert cli.main(["service", "a", str(directory)]) == 2
    assert "where is the platform" in scm.events[-1][1]


@pytest.mark.skipif(sys.platform == "win32", reason="this is Windows")
def test_elsewhere_there_are_no_services_of_windows(tmp_path, capsys):
    assert cli.main(["service", "a", str(tmp_path)]) == 1
    assert "only on Windows" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "service" not in capsys.readouterr().out
