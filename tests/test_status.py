from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.fleet.status import Facts, Verdict, count_beat, evaluate, late_after, offline_after, severity, worst
from app.fleet.views import Status

ARCHIVE = 14 * 86_400.0
NOW = 1_000_000.0


def judge(previous: Status = Status.HEALTHY, **facts) -> Verdict:
    return evaluate(Facts(**{"last_heard": NOW, "interval": 30.0, "healthy": True, "good_beats": 2, **facts}), NOW, previous, ARCHIVE)


def test_an_instance_never_heard_is_pending():
    assert judge(last_heard=None).status is Status.PENDING


def test_an_instance_heard_in_time_is_healthy():
    assert judge(last_heard=NOW - 60) == Verdict(Status.HEALTHY)


def test_two_missed_heartbeats_degrade():
    assert judge(last_heard=NOW - late_after(30) - 0.1) == Verdict(Status.DEGRADED, "missed two heartbeats")


@pytest.mark.parametrize(("interval", "expected"), [(10.0, 90.0), (30.0, 120.0), (300.0, 1200.0)])
def test_offline_comes_after_four_intervals_but_never_before_ninety_seconds(interval, expected):
    assert offline_after(interval) == expected
    assert judge(interval=interval, last_heard=NOW - expected - 1).status is Status.OFFLINE
    assert judge(interval=interval, last_heard=NOW - expected + 1).status is not Status.OFFLINE


def test_an_unhealthy_report_degrades_with_the_agents_own_reason():
    assert judge(healthy=False, last_error="collector disk: gone") == Verdict(Status.DEGRADED, "collector disk: gone")


def test_a_goodbye_means_stopped_and_not_offline_however_long_ago():
    assert judge(said_goodbye=True, last_heard=NOW - 86_400).status is Status.STOPPED


def test_two_weeks_of_silence_archive_even_a_stopped_instance():
    assert judge(said_goodbye=True, last_heard=NOW - ARCHIVE).status is Status.ARCHIVED


@pytest.mark.parametrize("previous", [Status.DEGRADED, Status.OFFLINE])
def test_recovery_needs_two_good_heartbeats(previous):
    assert judge(previous, good_beats=1) == Verdict(Status.DEGRADED, "recovering: 1 of 2 good heartbeats")
    assert judge(previous, good_beats=2).status is Status.HEALTHY


@pytest.mark.parametrize("previous", [Status.PENDING, Status.STOPPED, Status.ARCHIVED, Status.HEALTHY])
def test_first_contact_and_return_in_good_order_are_healthy_at_once(previous):
    assert judge(previous, good_beats=1).status is Status.HEALTHY


def test_a_clock_that_runs_backwards_is_no_silence():
    assert judge(last_heard=NOW + 3600).status is Status.HEALTHY


def test_a_late_or_unhealthy_heartbeat_breaks_the_run_of_good_ones():
    assert count_beat(1, True, 30, 30) == 2
    assert count_beat(2, True, 30, 30) == 2
    assert count_beat(2, False, 30, 30) == 0
    assert count_beat(2, True, late_after(30) + 1, 30) == 1


def test_an_agent_is_as_well_as_its_worst_instance_that_is_not_archived():
    assert worst([]) is Status.PENDING
    assert worst([Status.HEALTHY, Status.ARCHIVED, Status.DEGRADED]) is Status.DEGRADED
    assert worst([Status.STOPPED, Status.HEALTHY]) is Status.HEALTHY
    assert worst([Status.ARCHIVED]) is Status.ARCHIVED
    assert max(Status, key=severity) is Status.OFFLINE


@given(st.floats(0, 1e7), st.sampled_from(list(Status)), st.booleans(), st.integers(0, 2))
def test_silence_is_never_read_as_health(silence, previous, healthy, good_beats):
    facts = Facts(NOW - silence, 30.0, healthy, "", good_beats)
    if silence > late_after(30.0):
        assert evaluate(facts, NOW, previous, ARCHIVE).status is not Status.HEALTHY


def test_a_bad_network_that_loses_every_other_heartbeat_does_not_make_the_status_flap():
    chance = random.Random(7)
    status, last, good, lost, changes = Status.HEALTHY, 0.0, 2, False, 0
    for second in range(4 * 3600):
        if second % 30 == 0:
            lost = not lost and chance.random() < 0.5  # never two in a row
            if not lost:
                good = count_beat(good, True, second - last, 30.0)
                last = float(second)
        verdict = evaluate(Facts(last, 30.0, True, "", good), float(second), status, ARCHIVE)
        changes += verdict.status is not status
        status = verdict.status
    assert changes == 0


def test_an_outage_is_two_transitions_down_and_one_recovery_up():
    status, last, good, seen = Status.HEALTHY, 0.0, 2, []
    for second in range(3600):
        if second % 30 == 0 and not 600 <= second < 1200:
            good = count_beat(good, True, second - last, 30.0)
            last = float(second)
        verdict = evaluate(Facts(last, 30.0, True, "", good), float(second), status, ARCHIVE)
        if verdict.status is not status:
            seen.append(verdict.status)
        status = verdict.status
    assert seen == [Status.DEGRADED, Status.OFFLINE, Status.DEGRADED, Status.HEALTHY]
