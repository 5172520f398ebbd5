"""A bad network, simulated: heartbeats that are lost by chance, judged by the rules with a clock of their own."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from app.fleet.status import CALM, MOST_GOOD_BEATS, Facts, count_beat, count_setbacks, evaluate
from app.fleet.views import Status

ARCHIVE = 14 * 86_400.0
DAY = 86_400
INTERVAL = 30.0
SEEDS = range(5)


@dataclass
class Simulated:
    """An instance whose heartbeats arrive, or do not."""

    status: Status = Status.HEALTHY
    recovered: float | None = None
    heard: float = 0.0
    good_beats: int = MOST_GOOD_BEATS
    setbacks: int = 0
    changes: list[tuple[float, Status]] = field(default_factory=list)

    def arrives(self, now: float) -> None:
        self.good_beats = count_beat(self.good_beats, True, now - self.heard, INTERVAL, MOST_GOOD_BEATS)
        self.heard = now

    def judge(self, now: float) -> None:
        facts = Facts(self.heard, INTERVAL, True, "", self.good_beats, False, self.setbacks)
        verdict = evaluate(facts, now, self.status, ARCHIVE)
        if verdict.status is not self.status:
            calm = None if self.recovered is None else now - self.recovered
            self.setbacks = count_setbacks(self.setbacks, self.status, verdict.status, calm)
            if verdict.status is Status.HEALTHY:
                self.recovered = now
            self.status = verdict.status
            self.changes.append((now, verdict.status))

    def times(self, status: Status) -> int:
        return sum(1 for _, changed in self.changes if changed is status)


def simulate(loss: float, seed: int, seconds: int = DAY, until: int | None = None) -> Simulated:
    """A day of heartbeats every 30 s with the agents' jitter, of which each is lost with probability ``loss`` (before ``until``)."""
    chance, instance, due = random.Random(seed), Simulated(), 0.0
    for now in range(0, seconds, 5):
        while due <= now:
            if (until is not None and due >= until) or chance.random() >= loss:
                instance.arrives(due)
            due += INTERVAL * chance.uniform(0.9, 1.1)
        instance.judge(float(now))
    return instance


@pytest.mark.parametrize("seed", SEEDS)
def test_a_good_network_changes_nothing(seed):
    assert simulate(0.0, seed).changes == []


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("loss", "most"), [(0.05, 24), (0.1, 40), (0.3, 20), (0.5, 40), (0.8, 60)])
def test_however_many_heartbeats_are_lost_the_status_changes_few_times_a_day(loss, most, seed):
    assert len(simulate(loss, seed).changes) <= most


@pytest.mark.parametrize("seed", SEEDS)
def test_three_heartbeats_in_ten_lost_is_trouble_but_no_outage(seed):
    instance = simulate(0.3, seed)
    assert instance.times(Status.OFFLINE) <= 3
    assert instance.times(Status.HEALTHY) <= 8


@pytest.mark.parametrize("seed", SEEDS)
def test_when_the_network_is_good_again_the_status_is_well_within_the_hour_and_stays(seed):
    instance = simulate(0.3, seed, seconds=DAY + 7200, until=DAY)
    assert instance.status is Status.HEALTHY
    assert instance.changes[-1][0] <= DAY + 3600


def test_an_outage_of_a_steady_instance_is_told_as_fast_as_ever():
    instance = Simulated()
    for now in range(0, 3600, 2):
        if now % 30 == 0 and not 600 <= now < 1200:
            instance.arrives(float(now))
        instance.judge(float(now))
    assert [status for _, status in instance.changes] == [Status.DEGRADED, Status.OFFLINE, Status.DEGRADED, Status.HEALTHY]
    offline = instance.changes[1][0]
    assert 570 + 120 <= offline <= 570 + 124


def test_the_first_fall_is_no_setback():
    assert count_setbacks(0, Status.HEALTHY, Status.OFFLINE, None) == 0


def test_hours_of_calm_and_a_goodbye_end_the_run_of_setbacks():
    assert count_setbacks(3, Status.HEALTHY, Status.DEGRADED, 60.0) == 4
    assert count_setbacks(3, Status.HEALTHY, Status.DEGRADED, CALM) == 2
    assert count_setbacks(3, Status.HEALTHY, Status.OFFLINE, 10 * CALM) == 0
    assert count_setbacks(3, Status.DEGRADED, Status.HEALTHY, 60.0) == 3
    assert count_setbacks(3, Status.DEGRADED, Status.STOPPED, 60.0) == 0
