"""What is collected arrives, once, whatever the platform answers."""

from __future__ import annotations

import errno

import pytest

from connectors.core import runtime as runtime_module
from connectors.core.files import Ballast
from connectors.core.telemetry import Event
from tests.fake_platform import FakePlatform, problem
from tests.runtime_agents import counted, made_agents

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
