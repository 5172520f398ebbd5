"""systemd's units: what became of each, and when systemd is asked at all."""

from __future__ import annotations

import os
import time

import pytest
from watched_host import Host, Remembered, names

from connectors.core.errors import CollectorError
from connectors.core.telemetry import Severity
from connectors.server.changes import units
from connectors.server.changes.model import output_of
from connectors.server.changes.units import ASKED_AT_LEAST, ASKED_AT_MOST, UnitWatcher, parse_units


def unit(name, active="active", sub="running", run="r1", restarts=0, result="success", code=0, status=0):
    return (
        f"Id={name}\nActiveState={active}\nSubState={sub}\nResult={result}\nNRestarts={restarts}\nInvocationID={run}\n"
        f"ExecMainCode={code}\nExecMainStatus={status}\nMainPID=1\n"
    )


class Systemd:
    """A systemd that answers what it is told to, in the order in which it is asked."""

    def __init__(self, root):
        self.host = Host(root)
        self.host.write("/proc/sys/kernel/random/boot_id", "boot-1\n")
        self.host.write("/run/systemd/units/invocation:x", "")
        (self.host.path / "run/systemd/system").mkdir(parents=True)
        self.now = 1_000.0
        self.units = []
        self.asked = 0
        self.memory = Remembered()
        self.watch = self.make()

    def make(self):
        return UnitWatcher(self.host.root, self._answer, lambda: self.now)

    def _answer(self):
        self.asked += 1
        return "\n".join(self.units).encode()

    def look(self, *units, touched=True, passed=ASKED_AT_MOST):
        self.units = list(units)
        self.now += passed
        if touched:
            at = time.time_ns() + int(self.now * 1e9)
            os.utime(self.host.path / "run/systemd/units", ns=(at, at))
        return self.memory.take(self.watch.look(self.memory))


@pytest.fixture
def systemd(tmp_path):
    return Systemd(tmp_path)


def test_a_unit_that_fails_and_recovers(systemd):
    assert systemd.look(unit("a.service"), unit("b.service", "failed", "failed", "")) == []
    failed, *rest = systemd.look(
        unit("a.service", "failed", "failed", "r2", 3, "exit-code", 1, 7), unit("b.service", "failed", "failed", "")
    )
    assert rest == []
    assert failed.name == "unit.failed"
    assert failed.severity is Severity.ERROR
    assert failed.attributes["irca.unit.exit_status"] == 7
    assert failed.attributes["irca.unit.result"] == "exit-code"
    assert failed.attributes["irca.unit.state.before"] == "active (running)"
    assert failed.attributes["irca.unit.restarts"] == 3
    again = systemd.look(unit("a.service", "failed", "failed", "r3", 3, "signal", 2, 9), unit("b.service", "failed", "failed", ""))
    assert [c.attributes["irca.unit.exit_signal"] for c in again] == [9]
    assert names(systemd.look(unit("a.service", run="r4"))) == ["unit.recovered", "unit.recovered"]


def test_starts_stops_and_restarts_of_services_that_last(systemd):
    systemd.look(unit("a.service"), unit("b.service"), unit("c.service"), unit("s.socket", sub="listening"))
    told = systemd.look(
        unit("a.service", run="r9"), unit("b.service", run="r8", restarts=2), unit("d.service"), unit("s.socket", sub="listening")
    )
    assert {c.attributes["irca.unit.name"]: (c.name, c.severity, c.attributes.get("irca.unit.automatic")) for c in told} == {
        "a.service": ("unit.restarted", Severity.INFO, False),
        "b.service": ("unit.restarted", Severity.WARN, True),
        "c.service": ("unit.stopped", Severity.INFO, None),
        "d.service": ("unit.started", Severity.INFO, None),
    }


def test_what_runs_once_and_ends_is_no_news(systemd):
    systemd.look(unit("a.service"))
    assert systemd.look(unit("a.service"), unit("daily.service", "activating", "start", "r5")) == []
    assert systemd.look(unit("a.service"), unit("daily.service", sub="exited", run="r5")) == []
    assert systemd.look(unit("a.service"), unit("daily.service", "inactive", "dead", "")) == []


def test_a_unit_on_its_way_is_told_once_when_it_arrives(systemd):
    systemd.look(unit("a.service"))
    assert systemd.look(unit("a.service", "deactivating", "stop-sigterm")) == []
    stopped = systemd.look(unit("a.service", "inactive", "dead"), touched=False)  # asked again, for it had not arrived
    assert names(stopped) == ["unit.stopped"]
    assert systemd.look(unit("a.service", "activating", "start", "r2")) == []
    assert names(systemd.look(unit("a.service", run="r2"))) == ["unit.started"]


def test_a_unit_that_systemd_restarts_for_ever_is_told_while_it_waits(systemd):
    systemd.look(unit("a.service"))
    assert names(systemd.look(unit("a.service", "activating", "auto-restart", "r2", 0, "exit-code"))) == []
    told = systemd.look(unit("a.service", "activating", "auto-restart", "r3", 4, "exit-code"))
    assert [(c.name, c.attributes["irca.unit.restarts"]) for c in told] == [("unit.restarted", 4)]


def test_after_a_reboot_everything_was_started_anew_and_only_what_differs_is_told(systemd):
    systemd.look(unit("a.service"), unit("b.service"), unit("c.service", restarts=5))
    systemd.host.write("/proc/sys/kernel/random/boot_id", "boot-2\n")
    systemd.watch = systemd.make()
    told = systemd.look(unit("a.service", run="n1"), unit("b.service", "failed", "failed", "n2", 0, "timeout"), unit("c.service", run="n3"))
    assert names(told) == ["unit.failed"]


def test_units_of_containers_and_sessions_are_left_out():
    noise = [
        "run-docker-netns-1.mount",
        "var-lib-docker-overlay2-x.mount",
        "user@1000.service",
        "run-r0123456789ab.service",
        "proc-x.mount",
    ]
    assert parse_units("\n".join(unit(name) for name in noise) + "\nnonsense\n\n") == {}


def test_systemd_is_asked_only_when_a_unit_came_or_went_or_after_long(systemd):
    systemd.look(unit("a.service"))
    for _ in range(5):
        systemd.look(unit("a.service"), touched=False)
    assert systemd.asked == 1
    systemd.look(unit("a.service"))
    systemd.look(unit("a.service"), passed=1)
    assert systemd.asked == 2  # not again so soon
    systemd.look(unit("a.service"), touched=False)
    assert systemd.asked == 3  # but what came meanwhile is not forgotten
    systemd.look(unit("a.service"), touched=False, passed=ASKED_AT_LEAST)
    assert systemd.asked == 4


def test_a_host_without_systemd_is_a_note(tmp_path):
    watch = UnitWatcher(str(tmp_path), lambda: pytest.fail("nobody is to be asked"))
    assert watch.look(Remembered()) is None
    assert watch.note == "systemd does not run here"


@pytest.mark.parametrize(("root", "reason"), [(False, ""), (True, "Failed to connect"), (False, "timeout")])
def test_without_the_system_bus_systemd_answers_nobody_but_root(systemd, monkeypatch, root, reason):
    said = reason or "systemctl ended with exit code 1: Failed to list units: Transport endpoint is not connected"

    def refuse():
        raise CollectorError(said)

    monkeypatch.setattr(units, "is_privileged", lambda: root)
    systemd.watch._ask = refuse
    if reason:
        with pytest.raises(CollectorError, match=reason):
            systemd.look()
    else:
        assert systemd.look() == []
        assert "does not answer this user" in systemd.watch.note


def test_a_program_that_is_missing_fails_or_hangs_is_a_failure_with_a_reason():
    assert output_of(["sh", "-c", "printf $LC_ALL"]) == b"C"
    with pytest.raises(CollectorError, match="no-such-program is not installed"):
        output_of(["no-such-program"])
    with pytest.raises(CollectorError, match="exit code 3: last words"):
        output_of(["sh", "-c", "echo first >&2; echo last words >&2; exit 3"])
    with pytest.raises(CollectorError, match="did not answer"):
        output_of(["sleep", "60"], timeout=0.1)
    with pytest.raises(CollectorError, match="cannot be run"):
        output_of(["/"])
