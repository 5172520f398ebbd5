"""What the tests wait with."""

from __future__ import annotations

import pytest
import waiting
from waiting import eventually


class Clock:
    """Time that passes by sleeping; ``stalls`` are seconds that the machine stands still, one for each sleep."""

    def __init__(self, *stalls: float) -> None:
        self.now = 0.0
        self.stalls = list(stalls)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + (self.stalls.pop(0) if self.stalls else 0.0)


def test_what_is_so_already_is_given_without_a_pause(monkeypatch):
    monkeypatch.setattr(waiting, "time", clock := Clock())

    assert eventually(lambda: "so") == "so"
    assert clock.now == 0.0


def test_what_never_comes_about_fails_in_time_and_says_why(monkeypatch):
    monkeypatch.setattr(waiting, "time", clock := Clock())

    with pytest.raises(AssertionError, match="not so within 5 s: there is nothing"):
        eventually(lambda: None, 5, lambda: "there is nothing")
    assert 5 <= clock.now < 6


def test_time_in_which_the_machine_stood_still_does_not_count(monkeypatch):
    monkeypatch.setattr(waiting, "time", clock := Clock(0.0, 60.0))

    assert eventually(lambda: clock.now > 63, 5)


def test_a_machine_that_is_only_slow_gets_no_more_time(monkeypatch):
    monkeypatch.setattr(waiting, "time", Clock(*[0.9] * 100))

    with pytest.raises(AssertionError, match="not so within 5 s"):
        eventually(lambda: None, 5)
