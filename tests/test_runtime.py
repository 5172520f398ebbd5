from __future__ import annotations

import errno
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.core import log
from connectors.core import runtime as runtime_module
from connectors.core.errors import ControlError, StateError
from connectors.core.files import Ballast
from connectors.core.health import Facts, health, reasons
from connectors.core.runtime import Runtime, next_round
from connectors.core.spool import Spool
from connectors.core.status import read_status
from connectors.core.telemetry import CollectorResult, Event
from tests.fake_platform import FakePlatform, problem
from tests.running_agent import CountingAgent, WatchingAgent

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.sockets


@pytest.fixture
def platform():
    made = FakePlatform()
    yield made
    made.down()


@pytest.fixture
def make(tmp_path):
    made = []

    def agent(url, kind=CountingAgent, token="agent_test_token", **config):
        config = {"state_dir": str(tmp_path / "state"), "collect_interval": 1, "heartbeat_interval": 5, "request_timeout": 2} | config
        made.append(kind(url, token, config))
        return made[-1]

    yield agent
    for each in made:
        if each._runtime is not None:
            each._runtime.close()


@contextmanager
def running(agent):
    stopping, codes = threading.Event(), []
    thread = threading.Thread(target=lambda: codes.append(agent.run(stopping)))
    thread.start()
    try:
        yield codes
    finally:
        stopping.set()
        thread.join(20)
    assert not thread.is_alive()


def spool_of(tmp_path):
    return Spool(tmp_path / "state" / "spool.db", 256 << 20, 1e9, time.time)


def counted(platform):
    return sorted(platform.values("test.count"))


# Enrolment, heartbeats.


def test_first_contact_takes_a_credential_and_proves_it(platform, make, tmp_path):
    agent = make(platform.url)
    assert agent.heartbeat()
    assert [bearer for bearer, _ in platform.messages] == ["agent_test_token", "credential-1"]
    assert platform.unproven == set()
    kept = json.loads((tmp_path / "state" / "credential").read_text())
    assert (kept["current"], kept["candidate"]) == ("credential-1", "")
    first = platform.messages[0][1]
    told = {a.key: a.value.string_value for a in first.agent_description.identifying_attributes}
    assert told["service.name"] == "incident-rca-agent"
    assert told["service.instance.id"] == agent.runtime.instance_id
    assert len(told["host.id"]) == 64
    rest = {a.key: a.value.string_value for a in first.agent_description.non_identifying_attributes}
    assert (rest["irca.agent.type"], rest["host.name"], rest["irca.machine.fingerprint"]) == ("counting", "test-host", told["host.id"])
    config = json.loads(first.effective_config.config_map.config_map["agent.json"].body)
    assert (config["collect_interval"], config["platform_url"]) == (1.0, platform.url)
    assert "agent_test_token" not in json.dumps(config)
    assert set(first.health.component_health_map) == {"collectors", "spool", "transport", "watch", "clock"}


def test_later_heartbeats_are_small_and_under_the_credential(platform, make):
    agent = make(platform.url)
    agent.heartbeat()
    assert agent.heartbeat()
    bearer, message = platform.messages[-1]
    assert bearer == "credential-1"
    assert not message.HasField("agent_description")
    assert [m.sequence_num for _, m in platform.messages] == [1, 2, 3]


def test_the_credential_outlives_the_process(platform, make):
    agent = make(platform.url)
    agent.heartbeat()
    instance = agent.runtime.instance_id
    agent.runtime.close()
    again = make(platform.url)
    assert again.heartbeat()
    assert platform.messages[-1][0] == "credential-1"
    assert again.runtime.instance_id == instance


def test_a_new_token_enrols_anew_under_the_same_identity(platform, make):
    agent = make(platform.url)
    agent.heartbeat()
    instance = agent.runtime.instance_id
    agent.runtime.close()
    platform.token = "agent_second_token"
    again = make(platform.url, token="agent_second_token")
    assert again.heartbeat()
    assert [bearer for bearer, _ in platform.messages[-2:]] == ["agent_second_token", "credential-2"]
    assert again.runtime.instance_id == instance


def test_a_process_that_died_before_the_proof_proves_the_candidate_at_its_next_start(platform, make, tmp_path):
    platform.interfere = lambda path, headers, body: problem(503, "overloaded") if "credential" in headers["authorization"] else None
    agent = make(platform.url)
    assert not agent.heartbeat()
    agent.runtime.close()
    assert json.loads((tmp_path / "state" / "credential").read_text())["candidate"] == "credential-1"
    platform.interfere = lambda *_: None
    again = make(platform.url)
    assert again.heartbeat()
    assert platform.messages[-1][0] == "credential-1"
    assert json.loads((tmp_path / "state" / "credential").read_text())["current"] == "credential-1"


def test_a_candidate_that_is_refused_is_dropped_for_what_worked_before(platform, make):
    agent = make(platform.url)
    agent.heartbeat()

    def offer(message, answer):
        answer.connection_settings.opamp.headers.headers.add(key="Authorization", value="Bearer never-valid")
        platform.answer_opamp = lambda *_: None

    platform.answer_opamp = offer
    assert agent.heartbeat()
    assert agent.runtime._management.bearer().reveal() == "credential-1"


def test_a_rotated_credential_is_proven_and_used_for_data(platform, make):
    agent = make(platform.url)
    agent.heartbeat()

    def offer(message, answer):
        platform.credentials["rotated"] = message.instance_uid
        answer.connection_settings.opamp.headers.headers.add(key="Authorization", value="Bearer rotated")

    platform.answer_opamp = offer
    assert agent.heartbeat()
    assert platform.messages[-1][0] == "rotated"
    platform.refused["credential-1"] = "token-revoked"
    assert agent.send_data(agent.collect_metrics()) == 1


@pytest.mark.parametrize("code", ["token-unknown", "token-revoked"])
def test_a_refused_credential_leads_back_to_the_token(platform, make, caplog, code):
    agent = make(platform.url)
    agent.heartbeat()
    platform.refused["credential-1"] = code
    with caplog.at_level(logging.INFO, "connectors"):
        assert agent.heartbeat()
    assert [bearer for bearer, _ in platform.messages[-2:]] == ["agent_test_token", "credential-2"]
    assert [r.facts["refusal"] for r in caplog.records if getattr(r, "action", "") == "enrolment.refused"] == [code]


def test_when_everything_is_refused_the_status_says_why_and_nothing_is_raised(platform, make):
    agent = make(platform.url)
    platform.refused["agent_test_token"] = "token-expired"
    assert not agent.heartbeat()
    status = agent.runtime.status()
    assert status.state == "degraded"
    assert "token-expired" in status.reasons["transport"]
    assert agent.send_data(agent.collect_metrics()) == 0
    assert agent.runtime.status().spool.batches == 1


def test_a_forbidden_instance_does_not_fall_back_to_its_token(platform, make):
    agent = make(platform.url)
    agent.heartbeat()
    platform.interfere = lambda *_: problem(403, "forbidden")
    before = len(platform.requests)
    assert not agent.heartbeat()
    assert len(platform.requests) == before + 1


def test_the_platform_may_give_another_identity(platform, make, tmp_path):
    agent = make(platform.url)

    def rename(message, answer):
        answer.agent_identification.new_instance_uid = b"n" * 16
        platform.answer_opamp = lambda *_: None

    platform.answer_opamp = rename
    assert agent.heartbeat()
    assert platform.messages[-1][1].instance_uid == b"n" * 16
    new = "6e6e6e6e-6e6e-6e6e-6e6e-6e6e6e6e6e6e"
    assert agent.runtime.instance_id == new
    assert json.loads((tmp_path / "state" / "identity.json").read_text())["instance_id"] == new
    assert {a.value.string_value for a in platform.messages[1][1].agent_description.identifying_attributes} >= {new}


def test_the_full_state_is_told_at_once_when_asked_for(platform, make):
    agent = make(platform.url)
    agent.heartbeat()

    def ask(message, answer):
        answer.flags = 1
        platform.answer_opamp = lambda *_: None

    platform.answer_opamp = ask
    before = len(platform.messages)
    assert agent.heartbeat()
    assert len(platform.messages) == before + 2
    assert platform.messages[-1][1].HasField("effective_config")


def test_an_unavailable_platform_is_a_failed_heartbeat(platform, make):
    agent = make(platform.url)

    def unavailable(message, answer):
        answer.error_response.type = 2
        answer.error_response.retry_info.retry_after_nanoseconds = 3_000_000_000

    platform.answer_opamp = unavailable
    error = agent.runtime._heartbeat()
    assert error.retry_after == 3.0
    assert "not available" in agent.runtime.status().reasons["transport"]


def test_an_answer_that_is_no_opamp_is_a_failed_heartbeat(platform, make):
    platform.interfere = lambda *_: (200, {}, b"\xff\xff")
    agent = make(platform.url)
    assert not agent.heartbeat()
    assert "not the platform" in agent.runtime.status().reasons["transport"]


def test_the_interval_follows_the_platform_and_an_offered_endpoint_is_not(platform, make, caplog):
    platform.heartbeat_interval = 77

    def elsewhere(message, answer):
        answer.connection_settings.opamp.destination_endpoint = "https://evil.example/v1/opamp"

    platform.answer_opamp = elsewhere
    agent = make(platform.url)
    with caplog.at_level(logging.WARNING, "connectors"):
        agent.heartbeat()
    assert agent.runtime.status().heartbeat_interval == 77.0
    assert any(getattr(r, "action", "") == "heartbeat.destination" for r in caplog.records)


@pytest.mark.parametrize("offset", [-7200.0, 7200.0])
def test_a_clock_that_is_off_by_hours_degrades_with_the_reason(platform, make, offset):
    platform.clock_offset = offset
    agent = make(platform.url)
    agent.heartbeat()
    assert f"about 120 min {'behind' if offset > 0 else 'ahead of'}" in agent.runtime.status().reasons["clock"]
    agent.heartbeat()
    assert "clock" in platform.messages[-1][1].health.last_error


def test_a_credential_that_cannot_be_kept_lasts_until_the_end(platform, make, tmp_path, caplog):
    agent = make(platform.url)
    assert agent.runtime
    (tmp_path / "state" / "credential").mkdir()
    with caplog.at_level(logging.ERROR, "connectors"):
        assert agent.heartbeat()
    assert any(getattr(r, "action", "") == "enrolment.keep" for r in caplog.records)
    assert agent.send_data(agent.collect_metrics()) == 1


# Data.


def test_what_is_collected_is_spooled_and_sent_with_who_sent_it(platform, make):
    agent = make(platform.url)
    assert agent.send_data(agent.collect_metrics()) == 1
    assert counted(platform) == [1.0, 2.0, 3.0]
    resource = dict(next(who for who, name, _, _ in platform.samples if name == "test.count"))
    assert resource["host.name"] == "test-host"
    assert resource["service.name"] == "incident-rca-agent"
    assert resource["service.instance.id"] == agent.runtime.instance_id
    assert {"irca.agent.spool.size", "irca.agent.items.produced", "process.cpu.time"} <= {name for _, name, _, _ in platform.samples}
    status = agent.runtime.status()
    assert status.spool.waiting == {"metrics": 0, "logs": 0}
    assert status.spool.produced["metrics"] == status.spool.sent["metrics"] == platform.samples_taken


def test_while_the_platform_is_away_data_waits_and_then_all_of_it_arrives(make, platform):
    agent = make(platform.url)
    agent.heartbeat()
    platform.down()
    for _ in range(5):
        assert agent.send_data(agent.collect_metrics()) == 0
    assert agent.runtime.status().spool.batches == 5
    assert "nothing listens" in agent.runtime.status().reasons["transport"]
    platform.up()
    assert agent.send_data(agent.collect_metrics()) == 6
    assert counted(platform) == [float(n) for n in range(1, 19)]


def test_what_the_platform_refuses_is_counted_and_told_as_a_gap(platform, make):
    agent = make(platform.url)
    agent.heartbeat()
    platform.rejected = 2
    assert agent.send_data(agent.collect_metrics()) == 1
    status = agent.runtime.status()
    assert status.spool.dropped == {"metrics": {"rejected": 2}}
    agent.send_data(agent.collect_metrics())
    (gap,) = platform.events_named("irca.agent.gap")
    assert (gap["irca.gap.signal"], gap["irca.gap.reason"], gap["irca.gap.items"]) == ("metrics", "rejected", 2)
    assert [p.value for p in platform_points(platform, "irca.agent.items.dropped")] == [2.0]


def platform_points(platform, name):
    from connectors.core.telemetry import Point

    return [Point(value) for value in platform.values(name)]


def test_a_batch_refused_for_good_does_not_hold_up_the_others(platform, make):
    agent = make(platform.url)
    agent.heartbeat()
    platform.interfere = lambda path, headers, body: problem(413, "body-too-large") if path == "/v1/metrics" else None
    assert agent.send_data(agent.collect_metrics()) == 0
    platform.interfere = lambda *_: None
    assert agent.send_data(agent.collect_metrics()) == 1
    assert counted(platform) == [4.0, 5.0, 6.0]
    assert len(platform.events_named("irca.agent.gap")) == 1


def test_gap_events_that_are_refused_are_kept_and_not_offered_all_the_time(platform, make):
    agent = make(platform.url)
    agent.heartbeat()
    platform.rejected = 1
    platform.interfere = lambda path, headers, body: problem(400, "malformed-body") if path == "/v1/logs" else None
    for _ in range(3):
        agent.send_data(agent.collect_metrics())
    assert sum(path == "/v1/logs" for path, _, _ in platform.requests) == 1
    assert len(agent.runtime._outbox.gaps()) == 1


def test_a_large_collection_travels_in_several_bounded_requests(platform, make, monkeypatch):
    monkeypatch.setattr(runtime_module, "MAX_PAYLOAD", 20_000)
    agent = make(platform.url)
    agent.per_round = 3000
    assert agent.send_data(agent.collect_metrics()) > 3
    assert counted(platform) == [float(n) for n in range(1, 3001)]


def test_events_of_a_collection_are_sent_once_under_their_ids(platform, make):
    agent = make(platform.url)
    event = Event("test.deploy", {"version": "2"}, resource={"service.name": "shop"})
    agent.events = [event]
    assert agent.send_data(agent.collect_metrics()) == 2
    assert platform.events[event.id]["version"] == "2"


def test_a_copied_state_directory_is_told_to_the_platform(platform, make, tmp_path):
    agent = make(platform.url)
    agent.heartbeat()
    old = agent.runtime.instance_id
    agent.runtime.close()
    copy = make(platform.url)
    copy.machine_id = lambda: "another machine"
    copy.send_data(copy.collect_metrics())
    (told,) = platform.events_named("irca.agent.identity.cloned")
    assert (told["irca.agent.identity.old_id"], told["irca.agent.identity.new_id"]) == (old, copy.runtime.instance_id)


def test_a_full_disk_degrades_and_delivery_goes_on_from_memory(platform, make, monkeypatch):
    agent = make(platform.url)
    agent.heartbeat()

    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Ballast, "lay", full)
    assert agent.send_data(agent.collect_metrics()) == 1
    assert "No space left" in agent.runtime.status().reasons["spool"]
    assert counted(platform) == [1.0, 2.0, 3.0]
    monkeypatch.undo()
    assert agent.send_data(agent.collect_metrics()) == 1
    assert agent.runtime.status().state == "healthy"
    status = agent.runtime.status().spool
    assert status.produced["metrics"] == status.sent["metrics"] == platform.samples_taken


def test_a_second_agent_on_one_state_directory_is_refused(platform, make):
    assert make(platform.url).runtime
    with pytest.raises(StateError, match="another agent"):
        make(platform.url).heartbeat()


def test_a_runtime_that_cannot_begin_leaves_the_directory_unlocked(make, tmp_path):
    with pytest.raises(Exception, match="ca_file"):
        make("https://localhost:1", ca_file=str(tmp_path / "missing.pem")).heartbeat()
    assert make("http://localhost:1").runtime


# The whole run.


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


def test_many_events_at_once_do_not_wait(platform, make, monkeypatch):
    monkeypatch.setattr(runtime_module, "_MAX_BUFFERED_EVENTS", 10)
    agent = make(platform.url)
    for n in range(25):
        agent.runtime._emit(Event("test.burst", {"n": n}))
    assert agent.runtime.status().spool.produced["logs"] == 20
    agent.runtime._flush_events()
    assert agent.runtime.status().spool.produced["logs"] == 25


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


# Pure parts.


@given(now=st.floats(0, 4e9), interval=st.floats(1, 3600), share=st.floats(0, 1))
def test_the_next_round_is_aligned_and_neither_too_soon_nor_too_late(now, interval, share):
    offset = share * min(1.0, interval / 10)
    due = next_round(now, interval, offset)
    assert now + interval / 2 - 1e-3 <= due <= now + interval * 1.5 + 1e-3
    turns = (due - offset) / interval
    assert abs(turns - round(turns)) < 1e-3


def test_health_is_a_function_of_facts_and_clock():
    fine = Facts(started_at=0.0, collect_interval=10.0, last_collection_at=100.0, collectors=(CollectorResult("cpu", 0.1),))
    assert health(fine, 110.0).healthy
    late = health(fine, 200.0)
    assert reasons(late) == {"collectors": "no data was collected for 3 intervals"}
    assert (late.status, late.healthy) == ("degraded", False)
    assert not health(Facts(0.0, 10.0), 100.0).healthy
    assert health(Facts(0.0, 10.0, clock_skew=59.0), 1.0).healthy


def test_a_status_is_judged_by_process_and_age(tmp_path, make):
    agent = make("http://localhost:1")
    agent.runtime._write_status()
    folder = tmp_path / "state"
    assert read_status(folder, time.time).state == "healthy"
    assert read_status(folder, lambda: time.time() + 1000).state == "stale"
    document = json.loads((folder / "status.json").read_text())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid in (gone.pid, 0):
        (folder / "status.json").write_text(json.dumps({**document, "pid": pid, "later_field": 1}))
        dead = read_status(folder, time.time)
        assert dead.state == "dead"
        assert "gone" in dead.reasons["process"]
    (folder / "status.json").write_text(json.dumps({**document, "pid": 1}))
    assert read_status(folder, time.time).state == "healthy"


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"spool": {}}', b"\xff"])
def test_a_status_that_cannot_be_read_is_a_clear_error(tmp_path, content):
    (tmp_path / "status.json").write_bytes(content)
    with pytest.raises(StateError, match="damaged"):
        read_status(tmp_path, time.time)


def test_where_no_agent_has_run_there_is_no_status(tmp_path):
    with pytest.raises(StateError, match="no agent has run"):
        read_status(tmp_path, time.time)
    (tmp_path / "status.json").mkdir()
    with pytest.raises(StateError, match="cannot be read"):
        read_status(tmp_path, time.time)


def test_a_status_that_cannot_be_written_is_no_reason_to_stop(make, tmp_path):
    agent = make("http://localhost:1")
    assert agent.runtime
    (tmp_path / "state" / "status.json").mkdir()
    agent.runtime._write_status()


# The log.


@pytest.fixture
def stream():
    yield (made := StringIO())
    log.configure("info", "text", sys.stderr)
    assert made is not None


def test_log_lines_are_single_and_carry_action_and_facts(stream):
    log.configure("debug", "text", stream)
    logger = logging.getLogger("connectors.test")
    log.entry(logger, logging.INFO, "test.action", "it happened", path="a b", number=1.5, empty="")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("failed\nbadly")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].endswith('Z info test.action it happened path="a b" number=1.5 empty=""')
    assert " error connectors.test failed\\nbadly exception=" in lines[1]


def test_log_lines_as_json_are_json(stream):
    log.configure("info", "json", stream)
    logger = logging.getLogger("connectors.test")
    log.entry(logger, logging.DEBUG, "test.hidden", "not shown")
    log.entry(logger, logging.WARNING, "test.action", "it\nhappened", path=Path("x"))
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("failed")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["level"], first["action"], first["message"], first["path"]) == ("warning", "test.action", "it\nhappened", "x")
    assert "ValueError: why" in second["exception"]
