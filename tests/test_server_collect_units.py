from __future__ import annotations

import subprocess

import psutil
import pytest

from connectors.core.collector import run_collectors
from connectors.core.errors import CollectorError, ConfigError
from connectors.core.telemetry import Kind
from connectors.server.config import ServerConfig
from connectors.server.units_collector import ASKED_EVERY, MOST_UNITS, STATES, Unit, UnitsCollector, list_units, parse_units

HOST = {"host.id": "h1"}
LISTING = """\
-.mount                    loaded    active     mounted   Root Mount
cron.service               loaded    active     running   Regular background program processing daemon
● backup.service           loaded    failed     failed    Nightly backup
nginx.service              loaded    active     running   A web server
fsck@dev-sda1.service      loaded    inactive   dead      File System Check
plymouth.service           not-found inactive   dead      plymouth.service
report.timer               loaded    activating waiting   Every hour

"""


class Systemd:
    """Answers what it is given to say, and counts how often it was asked."""

    def __init__(self, said=LISTING):
        self.said = said
        self.asked = 0
        self.now = 1000.0

    def __call__(self):
        self.asked += 1
        if isinstance(self.said, Exception):
            raise self.said
        return self.said

    def collector(self, *watched):
        return UnitsCollector(HOST, watched, ask=self, monotonic=lambda: self.now)


def gathered(collector):
    return {metric.name: metric for resource in collector.collect() for metric in resource.metrics}


def states(metric):
    """The state that each unit is said to be in."""
    return {p.attributes["irca.systemd.unit.name"]: p.attributes["irca.systemd.unit.active_state"] for p in metric.points if p.value == 1.0}


def test_units_are_counted_by_state_without_those_that_are_only_mentioned():
    metric = gathered(Systemd().collector())["irca.systemd.unit.count"]
    assert (metric.unit, metric.kind) == ("{unit}", Kind.UPDOWNCOUNTER)
    counts = {p.attributes["irca.systemd.unit.active_state"]: p.value for p in metric.points}
    assert counts == {"active": 3, "activating": 1, "deactivating": 0, "failed": 1, "inactive": 1, "reloading": 0}


def test_only_failed_units_are_reported_one_by_one_unless_others_are_asked_for():
    assert states(gathered(Systemd().collector())["irca.systemd.unit.state"]) == {"backup.service": "failed"}
    found = states(gathered(Systemd().collector(r"nginx\.service", r"cron.*"))["irca.systemd.unit.state"])
    assert found == {"backup.service": "failed", "nginx.service": "active", "cron.service": "active"}


def test_a_unit_has_a_point_for_every_state_so_that_no_series_falls_silent():
    points = gathered(Systemd().collector())["irca.systemd.unit.state"].points
    assert [p.attributes["irca.systemd.unit.active_state"] for p in points] == list(STATES)
    assert sum(p.value for p in points) == 1.0


def test_a_unit_that_recovers_is_told_as_recovered():
    systemd = Systemd()
    collector = systemd.collector()
    gathered(collector)
    systemd.said, systemd.now = LISTING.replace("● backup.service           loaded    failed ", "backup.service loaded active "), 1100.0
    assert states(gathered(collector)["irca.systemd.unit.state"]) == {"backup.service": "active"}
    systemd.said, systemd.now = "cron.service loaded active running Cron\n", 1200.0
    assert "irca.systemd.unit.state" not in gathered(collector), "systemd knows it no longer"


def test_systemd_is_asked_once_a_minute_and_the_rounds_between_tell_the_same():
    systemd = Systemd()
    collector = systemd.collector()
    first = gathered(collector)
    for _ in range(5):
        systemd.now += ASKED_EVERY / 6
        assert gathered(collector) == first
    assert systemd.asked == 1
    systemd.now += ASKED_EVERY / 6
    gathered(collector)
    assert systemd.asked == 2


def test_a_host_without_systemd_has_no_units_and_nothing_wrong(tmp_path):
    assert list_units(tmp_path / "missing") == ""
    assert gathered(Systemd("").collector()) == {}


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (subprocess.TimeoutExpired("systemctl", 5), "did not list its units within 5 s"),
        (FileNotFoundError(2, "No such file or directory"), "cannot be listed: No such file"),
        (
            subprocess.CalledProcessError(1, "systemctl", stderr="Failed to connect to bus:\n No such file"),
            "to the agent: Failed to connect",
        ),
        (subprocess.CalledProcessError(4, "systemctl", stderr=""), "exit code 4"),
    ],
)
def test_a_systemd_that_does_not_answer_is_a_reason_until_it_does_and_old_states_are_not_told_meanwhile(failure, reason):
    systemd = Systemd()
    collector = systemd.collector()
    gathered(collector)
    systemd.said, systemd.now = failure, 1100.0
    for _ in range(2):
        with pytest.raises(CollectorError, match=reason):
            gathered(collector)
    assert run_collectors([collector], HOST).collectors[0].reason
    assert systemd.asked == 2
    systemd.said, systemd.now = LISTING, 1200.0
    assert gathered(collector)


def test_a_host_on_which_everything_fails_reports_a_bounded_number_of_units():
    text = "".join(f"job-{n:04}.service loaded failed failed Job\n" for n in range(3 * MOST_UNITS))
    metric = gathered(Systemd(text).collector(".*"))["irca.systemd.unit.state"]
    assert len(states(metric)) == MOST_UNITS
    assert gathered(Systemd(text).collector())["irca.systemd.unit.count"].points[3].value == 3 * MOST_UNITS


def test_failed_units_come_before_recovered_ones_where_not_all_fit():
    systemd = Systemd("".join(f"old-{n:03}.service loaded failed failed x\n" for n in range(MOST_UNITS)))
    collector = systemd.collector()
    gathered(collector)
    systemd.said = systemd.said.replace("failed failed", "active running") + "zz.service loaded failed failed x\n"
    systemd.now += ASKED_EVERY
    assert states(gathered(collector)["irca.systemd.unit.state"])["zz.service"] == "failed"


def test_lines_that_are_no_units_are_skipped():
    assert parse_units("\nshort line\n● a.service loaded failed failed\n") == [Unit("a.service", "loaded", "failed")]


def test_the_command_is_run_as_documented(tmp_path, monkeypatch):
    program = tmp_path / "systemctl"
    program.write_text('#!/bin/sh\necho "$LC_ALL $*"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert list_units(tmp_path) == "C list-units --all --plain --full --no-legend --no-pager\n"


def test_choices_must_be_regular_expressions():
    with pytest.raises(ConfigError, match="systemd_units must hold regular expressions"):
        ServerConfig.from_mapping({"systemd_units": ["("]})


@pytest.mark.skipif(not psutil.LINUX, reason="systemd is Linux's")
def test_this_host_whatever_it_is_lists_its_units_or_none():
    try:
        parse_units(list_units())
    except (OSError, subprocess.SubprocessError):
        pytest.skip("systemd runs this host and does not answer")
