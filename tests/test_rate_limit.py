from __future__ import annotations

import pytest
from platform_fixtures import Clock

from app.auth.rate_limit import FailureLimit
from app.errors import TooManyRequestsError


def test_failures_beyond_the_burst_have_to_wait_and_are_told_how_long():
    clock = Clock()
    limit = FailureLimit(3, 10.0, clock)
    for _ in range(3):
        limit.check("a")
        limit.failed("a")
    with pytest.raises(TooManyRequestsError) as caught:
        limit.check("a")
    assert caught.value.retry_after == 10
    clock.advance(10)
    limit.check("a")
    limit.failed("a")
    with pytest.raises(TooManyRequestsError):
        limit.check("a")


def test_failures_are_forgiven_with_time_and_others_are_not_held_back():
    clock = Clock()
    limit = FailureLimit(2, 10.0, clock)
    limit.failed("a")
    limit.failed("a")
    limit.check("b")
    clock.advance(20)
    limit.failed("a")
    limit.check("a")


def test_who_never_fails_is_never_limited_and_memory_is_bounded():
    clock = Clock()
    limit = FailureLimit(1, 60.0, clock, most_keys=2)
    for _ in range(100):
        limit.check("good")
    for name in ("a", "b", "c"):
        limit.failed(name)
    limit.check("a")
    with pytest.raises(TooManyRequestsError):
        limit.check("c")
