"""The whole run: it begins, outlasts what fails, and ends."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.core import runtime as runtime_module
from connectors.core.errors import ControlError, StateError
from connectors.core.runtime import Runtime, next_round
from connectors.core.status import read_status
from tests.fake_platform import FakePlatform
from tests.running_agent import WatchingAgent
from tests.runtime_agents import counted, made_agents, running, spool_of

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.sockets


@pytest.fixture
def platform():
    made = FakePlatform()
    yield made
    made.down()


@pytest.fixture
def make(tmp_path):
    with made_agents(tmp_path) as agent:
        yield agent


def test_a_second_agent_on_one_state_directory_is_refused(platform, make):
    assert make(platform.url).runtime
    with pytest.raises(StateError, match="another agent"):
        make(platform.url).heartbeat()


def test_a_runtime_that_cannot_begin_leaves_the_directory_unlocked(make, tmp_path):
    with pytest.raises(Exception, match="ca_file"):
        make("https://localhost:1", ca_file=str(tmp_path / "missing.pem")).heartbeat()
    assert make("http://localhost:1").runtime


def test_a_run_enrols_collects_sends_beats_and_says_goodbye(platform, make, tmp_path):
    agent = make(platform.url)
    with running(agent) as codes:
        platform.wait(lambda: len(platform.values("test.count")) >= 6)
        status = read_status(tmp_path / "state", time.time)
        assert (status.pid, status.state, status.enrolled, status.agent_type) == (os.getpid(), "healthy", True, "counting")
    assert codes == [0]
    assert platform.messages[-1][1].HasField("agent_disconnect")
    final = read_status(tmp_path / "state", time.time)
    assert final.state == "stopped"
    assert final.spool.batches == 0
    values = counted(platform)
    assert values == [float(n) for n in range(1, len(values) + 1)]
    assert final.spool.sent["metrics"] == platform.samples_taken


def test_a_change_of_health_is_told_at_once(platform, make):
    platform.heartbeat_interval = 300
    agent = make(platform.url)
    with running(agent):
        platform.wait(lambda: bool(platform.values("test.count")))
        agent.failing = "no sensor"
        platform.wait(lambda: platform.messages[-1][1].health.last_error == "collectors: counter: no sensor")
        inner = platform.messages[-1][1].health.component_health_map["collectors"].component_health_map["counter"]
        assert (inner.healthy, inner.last_error) == (False, "no sensor")
        agent.failing = ""
        platform.wait(lambda: platform.messages[-1][1].health.healthy)


def test_a_type_that_cannot_gather_at_all_is_degraded_not_dead(platform, make):
    agent = make(platform.url)
    agent.broken = True
    with running(agent) as codes:
        platform.wait(lambda: "everything is broken" in platform.messages[-1][1].health.last_error if platform.messages else False)
        agent.broken = False
        platform.wait(lambda: bool(platform.values("test.count")))
    assert codes == [0]


def test_the_platform_may_go_and_come_back_and_nothing_is_lost(platform, make, tmp_path):
    agent = make(platform.url, heartbeat_interval=5)
    platform.heartbeat_interval = 1
    with running(agent):
        platform.wait(lambda: bool(platform.values("test.count")))
        platform.down()
        time.sleep(2.5)
        platform.up()
        platform.wait(lambda: len(platform.values("test.count")) >= 12, timeout=30)
    values = counted(platform)
    assert values == [float(n) for n in range(1, len(values) + 1)]
    assert read_status(tmp_path / "state", time.time).spool.batches == 0


def test_a_credential_revoked_in_mid_run_is_replaced_and_nothing_is_lost(platform, make):
    platform.heartbeat_interval = 300
    agent = make(platform.url)
    with running(agent):
        platform.wait(lambda: bool(platform.values("test.count")))
        platform.refused["credential-1"] = "token-revoked"
        platform.wait(lambda: "credential-2" in platform.credentials)
        seen = len(platform.values("test.count"))
        platform.wait(lambda: len(platform.values("test.count")) > seen + 3)
    values = counted(platform)
    assert values == [float(n) for n in range(1, len(values) + 1)]


def test_watched_events_arrive_within_seconds_and_the_last_ones_too(platform, make):
    agent = make(platform.url, WatchingAgent)
    with running(agent):
        platform.wait(lambda: bool(platform.events_named("test.change")))
    assert len(platform.events_named("test.last")) == 1
    assert set(platform.event_copies.values()) == {1}


def test_a_watch_that_fails_degrades_the_agent_until_it_runs_again(platform, make):
    WatchingAgent.failures = 2
    agent = make(platform.url, WatchingAgent)
    agent._runtime = Runtime(agent, time.time, random=lambda: 0.9)  # long enough pauses for a heartbeat to fall into one
    with running(agent) as codes:
        platform.wait(lambda: any("watch: the engine went away" in m.health.last_error for _, m in platform.messages))
        platform.wait(lambda: bool(platform.events_named("test.change")))
        platform.wait(lambda: platform.messages[-1][1].health.healthy or not platform.messages[-1][1].HasField("health"))
    assert codes == [0]


def test_a_loop_that_dies_for_good_ends_the_run_with_the_reason(platform, make, tmp_path):
    class Doomed(WatchingAgent):
        def watch(self, emit, stopping):
            raise ControlError("this can never work")

    agent = make(platform.url, Doomed)
    assert agent.run(threading.Event()) == 1
    assert read_status(tmp_path / "state", time.time).reasons["watch"] == "this can never work"


def test_a_slow_platform_does_not_hold_up_the_end(platform, make, monkeypatch):
    monkeypatch.setattr(runtime_module, "_JOIN_WITHIN", 0.3)
    monkeypatch.setattr(runtime_module, "STOP_WITHIN", 2.0)
    agent = make(platform.url, request_timeout=30)
    release = threading.Event()
    with running(agent):
        platform.wait(lambda: bool(platform.values("test.count")))
        platform.interfere = lambda *_: release.wait(30) and None
        before = len(platform.requests)
        platform.wait(lambda: len(platform.requests) > before)
        begun = time.monotonic()
    assert time.monotonic() - begun < 10
    release.set()


def start(platform, tmp_path, kind="counting", **environ):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.running_agent", platform.url, str(tmp_path / "state"), kind],
        cwd=ROOT,
        env={**os.environ, **environ},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_in_order(platform, tmp_path, number):
    process = start(platform, tmp_path, "watching")
    platform.wait(lambda: bool(platform.values("test.count")) and bool(platform.events_named("test.change")), timeout=30)
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert platform.messages[-1][1].HasField("agent_disconnect")
    assert len(platform.events_named("test.last")) == 1
    assert "agent.stop told to stop" in errors
    assert "agent_test_token" not in errors
    assert "credential-1" not in errors
    assert read_status(tmp_path / "state", time.time).state == "stopped"


def test_kill_minus_nine_in_mid_send_leaves_an_exact_ledger(platform, tmp_path):
    rng = random.Random(7)
    last_instance = set()
    for _ in range(20):
        process = start(platform, tmp_path, FAST="1")
        before = len(platform.requests)
        platform.wait(lambda before=before: len(platform.requests) > before + rng.randrange(3, 12), timeout=30)
        process.kill()
        process.communicate(timeout=20)
        last_instance.add(platform.messages[-1][1].instance_uid)
    assert len(last_instance) == 1
    platform.wait(lambda: True)
    time.sleep(0.2)
    spool = spool_of(tmp_path)
    ledger = spool.statistics().ledger
    waiting = {b.seq: b for b in spool.peek(limit=10_000, max_bytes=1 << 30)}
    assert ledger.produced["metrics"] == ledger.sent["metrics"] + sum(b.items for b in waiting.values())
    assert not +ledger.dropped
    # The platform has all that was acknowledged, and may have what is still spooled: then it has it once, by series and time.
    with platform.lock:
        stored = len(platform.samples)
    assert ledger.sent["metrics"] <= stored <= ledger.produced["metrics"]
    for batch in waiting.values():
        with platform.lock:
            platform._metrics(_parse(batch.payload))
        spool.acknowledge(batch.seq)
    assert len(platform.samples) == ledger.produced["metrics"]
    spool.close()


def _parse(payload):
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    return ExportMetricsServiceRequest.FromString(payload)


@given(now=st.floats(0, 4e9), interval=st.floats(1, 3600), share=st.floats(0, 1))
def test_the_next_round_is_aligned_and_neither_too_soon_nor_too_late(now, interval, share):
    offset = share * min(1.0, interval / 10)
    due = next_round(now, interval, offset)
    assert now + interval / 2 - 1e-3 <= due <= now + interval * 1.5 + 1e-3
    turns = (due - offset) / interval
    assert abs(turns - round(turns)) < 1e-3
