"""The watch of an engine: every change once, across cuts, restarts, silence and storms."""

from __future__ import annotations

import threading
import time

import pytest
from event_engine import running_event_engine
from waiting import eventually
from watched_engine import SECOND, watching

from connectors.core.telemetry import Severity
from connectors.docker import event_stream
from connectors.docker.events import RateLimit


@pytest.fixture
def engine():
    with running_event_engine() as made:
        yield made


def test_a_cut_stream_ends_the_watch_and_it_goes_on_without_a_gap(engine, tmp_path):
    web = engine.add("web", number=1)
    with watching(engine, tmp_path) as first:
        engine.say("container", "pause", web, name="web")
        first.wait("container.pause")
        engine.cut()
        error = first.ended()
    engine.say("container", "unpause", web, name="web")

    with watching(engine, tmp_path, again=first.watch) as second:
        engine.say("container", "stop", web, name="web")
        second.wait("container.stop")

    assert (error.retryable, "ended the stream" in error.reason) == (True, True)
    assert second.names() == ["container.unpause", "container.stop"]


def test_an_agent_that_was_away_catches_up_and_tells_nothing_twice(engine, tmp_path):
    web = engine.add("web", number=1)
    engine.say("container", "start", web, name="web")
    with watching(engine, tmp_path) as first:
        engine.say("container", "pause", web, name="web")
        first.wait("container.pause")
    engine.say("container", "unpause", web, name="web")

    with watching(engine, tmp_path) as second:
        second.wait("container.unpause")

    assert first.names() == ["container.pause"]
    assert second.names() == ["container.unpause"]


def test_a_restarted_engine_leaves_a_gap_that_is_told_once(engine, tmp_path):
    web = engine.add("web", number=1)
    with watching(engine, tmp_path) as first:
        when = engine.say("container", "pause", web, name="web")
        first.wait("container.pause")
        engine.restart()
        first.ended()
    start = engine.say("container", "start", web, name="web")

    with watching(engine, tmp_path, again=first.watch) as second:
        second.wait("container.start")
    with watching(engine, tmp_path) as third:
        pass

    assert second.names() == ["gap", "container.start"]
    gap = second.told[0]
    assert gap.severity is Severity.WARN
    assert gap.attributes == {
        "irca.gap.signal": "logs",
        "irca.gap.reason": "engine-restarted",
        "irca.gap.start_time_unix_nano": when,
        "irca.gap.end_time_unix_nano": start,
    }
    assert "gap" not in third.names()


def test_a_restarted_engine_that_has_nothing_to_say_leaves_one_gap_too(engine, tmp_path):
    engine.say("network", "create", "n0", name="before")
    with watching(engine, tmp_path):
        pass
    engine.restart()

    with watching(engine, tmp_path) as second:
        second.wait("gap")
    with watching(engine, tmp_path) as third:
        pass

    assert (second.names(), third.names()) == (["gap"], [])


def test_more_than_the_engine_keeps_leaves_a_gap_with_its_reason(engine, tmp_path):
    with watching(engine, tmp_path) as first:
        engine.say("network", "create", "n0", name="before")
        first.wait("network.create")
    for number in range(300):
        engine.say("network", "create", f"n{number + 1}", name="after")

    with watching(engine, tmp_path) as second:
        second.wait("network.create", 256)

    assert second.told[0].attributes["irca.gap.reason"] == "buffer-overflow"
    assert second.names().count("network.create") == 256
    assert "events.dropped" not in second.names()


def test_another_engine_in_its_place_is_a_gap(engine, tmp_path):
    with watching(engine, tmp_path):
        pass
    engine.identity = "OTHER"

    with watching(engine, tmp_path) as second:
        [gap] = second.wait("gap")

    assert gap.attributes["irca.gap.reason"] == "engine-replaced"


def test_noise_moves_the_mark_so_that_it_makes_no_gap(engine, tmp_path):
    web = engine.add("web", number=1)
    engine.say("container", "start", web, name="web")
    with watching(engine, tmp_path) as first:
        for _ in range(300):
            last = engine.say("container", "exec_die", web, name="web")
        eventually(lambda: first.watch._last[0] == last)

    with watching(engine, tmp_path) as second:
        engine.say("container", "pause", web, name="web")
        second.wait("container.pause")

    assert second.names() == ["container.pause"]


def test_an_engine_that_hangs_ends_the_watch_in_time(engine, tmp_path):
    with watching(engine, tmp_path, quiet=0.2, timeout=0.3) as watch:
        engine.hang.add("/info")
        error = watch.ended()

    assert "does not answer within 0.3 s" in error.reason
    assert error.retryable


def test_a_stream_that_is_stuck_is_noticed(engine, tmp_path):
    with watching(engine, tmp_path, quiet=0.3) as watch:
        engine.deaf = True
        engine.say("network", "create", "n1", at=time.time_ns() - 6 * SECOND + 10**8, name="x")
        watch.watch._last = (0, "")
        error = watch.ended()

    assert "stuck" in error.reason


def test_silence_alone_is_no_failure(engine, tmp_path):
    engine.say("network", "create", "n0", name="x", at=time.time_ns() - 60 * SECOND)
    with watching(engine, tmp_path, quiet=0.1) as watch:
        asked = engine.requests.count("/events")
        eventually(lambda: engine.requests.count("/events") > asked + 2)
        assert watch.thread.is_alive()


@pytest.mark.parametrize("path", ["/info", "/events", "/containers/json"])
def test_a_refusal_can_be_tried_again(engine, tmp_path, path):
    engine.fail[path] = (403, "Forbidden")

    with watching(engine, tmp_path) as watch:
        error = watch.ended()

    assert (error.retryable, "refused this: Forbidden" in error.reason) == (True, True)


def test_it_stops_at_once_while_the_engine_is_silent(engine, tmp_path):
    with watching(engine, tmp_path) as watch:
        begun = time.monotonic()
        watch.stop()

    assert watch.error is None
    assert time.monotonic() - begun < 5  # not the day that the engine may be silent
    assert not [t for t in threading.enumerate() if t.name == "irca-docker-events"]


# Storms.


def test_a_storm_is_bounded_and_its_rest_counted(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(event_stream, "MAX_WAITING", 50)
    web = engine.add("web", number=1)
    with watching(engine, tmp_path) as watch:
        watch.watch._limit = RateLimit(40)
        for burst in range(10):
            for number in range(100):
                engine.say("network", "create", f"n{burst}-{number}", name="x")
            time.sleep(0.02)
        engine.say("container", "destroy", web, name="web")
        watch.wait("container.destroy")
        watch.wait("events.dropped")
        time.sleep(1.2)

    counted = sum(e.attributes["irca.events.dropped"] for e in watch.told if e.name.endswith("dropped"))
    told = watch.names().count("network.create")
    assert told + counted == 1000
    assert told < 200
    assert watch.names().count("container.destroy") == 1
