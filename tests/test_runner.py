from __future__ import annotations

import logging
import threading

from connectors.core.errors import CollectorError, StateError
from connectors.core.runner import Failure, Runner


def supervised(loop, random=lambda: 0.0):
    stopping, changes = threading.Event(), []
    runner = Runner(stopping, random, lambda name, reason: changes.append((name, reason)))
    runner.add("watch", loop)
    return runner, stopping, changes


def test_a_loop_runs_under_its_name_until_told_to_stop():
    names = []

    def loop(stopping):
        names.append(threading.current_thread().name)
        stopping.wait()

    runner, stopping, changes = supervised(loop)
    runner.start()
    stopping.set()
    assert runner.join(5) == []
    assert (names, changes, runner.failure) == (["irca-watch"], [], None)


def test_a_retryable_failure_restarts_the_loop_and_both_are_told():
    runs = []

    def loop(stopping):
        runs.append(1)
        if len(runs) < 3:
            raise CollectorError("the engine went away")
        stopping.set()

    runner, _, changes = supervised(loop)
    runner.start()
    assert runner.join(5) == []
    assert changes == [("watch", "the engine went away"), ("watch", ""), ("watch", "the engine went away"), ("watch", "")]
    assert runner.failure is None


def test_a_loop_that_ends_early_is_restarted():
    runs = []

    def loop(stopping):
        runs.append(1)
        if len(runs) == 2:
            stopping.set()

    runner, _, changes = supervised(loop)
    runner.start()
    runner.join(5)
    assert changes[0] == ("watch", "it ended without being told to")
    assert len(runs) == 2


def test_any_other_failure_stops_the_agent_with_its_reason(caplog):
    def loop(_stopping):
        raise KeyError("surprise")

    runner, stopping, _ = supervised(loop)
    with caplog.at_level(logging.CRITICAL, "connectors"):
        runner.start()
        assert stopping.wait(5)
        runner.join(5)
    assert runner.failure == Failure("watch", "KeyError: 'surprise'")
    assert caplog.records[0].exc_info
    assert caplog.records[0].facts["loop"] == "watch"


def test_a_final_error_of_our_own_stops_the_agent_too():
    def loop(_stopping):
        raise StateError("the disk is gone")

    runner, stopping, _ = supervised(loop)
    runner.start()
    assert stopping.wait(5)
    runner.join(5)
    assert runner.failure == Failure("watch", "the disk is gone")


def test_the_first_death_is_the_one_that_is_told():
    gate = threading.Event()
    stopping = threading.Event()
    runner = Runner(stopping, lambda: 0.0)

    def first(_stopping):
        raise RuntimeError("first")

    def second(inner):
        inner.wait()
        gate.wait(5)
        raise RuntimeError("second")

    runner.add("a", first)
    runner.add("b", second)
    runner.start()
    stopping.wait(5)
    gate.set()
    runner.join(5)
    assert runner.failure == Failure("a", "RuntimeError: first")


def test_a_loop_that_does_not_end_in_time_is_named():
    gate = threading.Event()
    runner, stopping, _ = supervised(lambda _stopping: gate.wait(10))
    runner.start()
    stopping.set()
    assert runner.join(0.05) == ["watch"]
    gate.set()
    assert runner.join(5) == []


def test_a_loop_that_ran_well_for_long_begins_its_pauses_anew(monkeypatch):
    from connectors.core import runner as module

    monkeypatch.setattr(module, "SETTLED_AFTER", -1.0)
    runs, draws = [], []

    def loop(stopping):
        runs.append(1)
        if len(runs) == 5:
            stopping.set()
        raise CollectorError("again")

    runner, _, _ = supervised(loop, lambda: draws.append(1) or 0.001)
    runner.start()
    assert runner.join(5) == []
    assert len(draws) >= 4
