from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from connectors.core.backoff import LAST_CEILING, RETRY_AFTER_LIMIT, Backoff, around, full_jitter

unit = st.floats(0, 1, exclude_max=True)


@given(attempt=st.integers(-5, 10_000), share=unit)
def test_pauses_stay_between_nothing_and_five_minutes(attempt, share):
    assert 0 <= full_jitter(attempt, lambda: share) <= LAST_CEILING


def test_the_ceiling_doubles_from_one_second_to_five_minutes():
    assert [full_jitter(n, lambda: 1.0) for n in range(10)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]


@given(attempt=st.integers(0, 20), share=unit, asked=st.floats(0, 1e9))
def test_retry_after_is_the_lower_bound_and_a_mistaken_one_is_shortened(attempt, share, asked):
    pause = full_jitter(attempt, lambda: share, retry_after=asked)
    assert min(asked, RETRY_AFTER_LIMIT) <= pause <= RETRY_AFTER_LIMIT + LAST_CEILING


def test_a_negative_retry_after_counts_as_none():
    assert full_jitter(0, lambda: 0.5, retry_after=-3) == 0.5


def test_success_begins_the_pauses_anew():
    backoff = Backoff(lambda: 1.0, last=8)
    assert [backoff.pause() for _ in range(5)] == [1, 2, 4, 8, 8]
    backoff.reset()
    assert backoff.pause(retry_after=10) == 11


@given(interval=st.floats(1, 300), share=unit)
def test_heartbeats_vary_by_a_tenth(interval, share):
    assert interval * 0.9 - 1e-9 <= around(interval, lambda: share) <= interval * 1.1 + 1e-9
