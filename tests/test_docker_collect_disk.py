"""The engine's account of its disk use, which is slow and asked for seldom."""

from __future__ import annotations

import threading

import pytest
from docker_agents import agent
from docker_readings import by_container, outcome, values
from engine_stub import running_engine

from connectors.docker.disk import DiskCollector, disk_metrics
from connectors.docker.engine import Engine


@pytest.fixture
def engine(monkeypatch):
    with running_engine() as stub:
        monkeypatch.setenv("DOCKER_HOST", stub.host)
        yield stub


DISK = {
    "LayersSize": 1000,
    "Containers": [{"SizeRw": 5}, {}],
    "Volumes": [{"UsageData": {"Size": 70}}, {"UsageData": {"Size": -1}}, {}],
    "BuildCache": [{"Size": 9}, {"Size": 4, "Shared": True}],
}


def test_disk_use_is_told_by_content():
    assert values(disk_metrics(DISK)) == {
        "irca.engine.disk.usage|images": 1000,
        "irca.engine.disk.usage|containers": 5,
        "irca.engine.disk.usage|volumes": 70,
        "irca.engine.disk.usage|build_cache": 9,
        "irca.engine.volume.count": 3,
    }
    assert values(disk_metrics({"Containers": None, "Volumes": None, "BuildCache": None}))["irca.engine.volume.count"] == 0


def test_disk_use_is_asked_for_seldom_and_told_in_every_round(engine):
    engine.disk = DISK
    made = agent()

    rounds = [by_container(made.collect_metrics())[None] for _ in range(3)]

    assert [found["irca.engine.volume.count"] for found in rounds] == [3, 3, 3]
    assert len([r for r in engine.requests if "/system/df" in r]) == 1
    assert "docker.disk" not in outcome(agent(disk_usage_interval=0).collect_metrics())


def test_a_slow_account_of_disk_use_is_told_later(engine):
    engine.slow["/system/df"] = 1.5
    made = agent()

    first = made.collect_metrics()
    for thread in threading.enumerate():
        if thread.name == "irca-docker-disk":
            thread.join(10)
    second = made.collect_metrics()

    assert outcome(first)["docker.disk"] == ""
    assert "irca.engine.volume.count" not in by_container(first)[None]
    assert "irca.engine.volume.count" in by_container(second)[None]


def test_disk_use_that_is_refused_says_what_to_do_and_recovers(engine):
    engine.fail["/system/df"] = 403
    made = agent()
    assert "set disk_usage_interval to 0" in outcome(made.collect_metrics())["docker.disk"]
    engine.fail.clear()

    assert outcome(made.collect_metrics())["docker.disk"] == ""


def test_disk_use_that_somebody_else_asks_for_too_is_asked_for_again_and_is_a_failure_only_in_the_end(engine):
    now = [0.0]
    asked = Engine({}, host=engine.host)
    collector = DiskCollector(asked, dict, interval=1000, monotonic=lambda: now[0])
    engine.replies["/system/df"] = (500, {"message": "a disk usage operation is already running"})
    assert not list(collector.collect())
    now[0] = 299
    assert not list(collector.collect())
    now[0] = 301
    with pytest.raises(Exception, match="already running"):
        list(collector.collect())
    engine.replies.clear()
    assert list(collector.collect())

    engine.replies["/system/df"] = (500, {"message": "a disk usage operation is already running"})
    now[0] = 1302
    assert list(collector.collect()), "what is known is told while the engine is busy"
    requests = len(engine.requests)
    now[0] = 1303
    assert list(collector.collect())
    assert len(engine.requests) > requests, "the question is repeated in the next round"
    asked.close()


def test_disk_use_that_makes_no_sense_is_a_failure_that_says_so(engine):
    asked = Engine({}, host=engine.host)
    engine.replies["/system/df"] = (200, {"Containers": 5})
    with pytest.raises(Exception, match="makes no sense"):
        list(DiskCollector(asked, dict, interval=10).collect())
    asked.close()
