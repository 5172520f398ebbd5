"""A round of the docker collectors: what the engine answers, as metrics, and what its failures do."""

from __future__ import annotations

import pytest
from docker_agents import agent
from docker_readings import FINE, by_container, outcome, values
from engine_stub import running_engine, statistics

from connectors.core.telemetry import encode_metrics
from connectors.docker.metrics import METRICS, TABLE


@pytest.fixture
def engine(monkeypatch):
    with running_engine() as stub:
        monkeypatch.setenv("DOCKER_HOST", stub.host)
        yield stub


def test_a_running_container_is_measured(engine):
    engine.add("web", labels={"com.docker.compose.project": "shop", "secret": "no"})

    collection = agent().collect_metrics()

    container = next(r for r in collection.resources if r.resource.get("container.name") == "web")
    assert next(iter(container.resource)) == "container.id"
    assert container.resource["container.image.name"] == "team/app"
    assert container.resource["container.image.tags"] == ["1.2"]
    assert container.resource["container.label.com.docker.compose.project"] == "shop"
    assert not [key for key in container.resource if "secret" in key]
    found = values(container.metrics)
    assert found["container.cpu.time"] == pytest.approx(0.031091038)
    assert found["container.memory.usage"] == 618_496
    assert found["container.memory.working_set"] == 418_496
    assert found["container.network.io|eth0|receive"] == 1042
    assert found["container.disk.io|8:0|read"] == 4096
    assert found["irca.container.process.count"] == 3
    assert found["irca.container.state|running"] == 1
    assert found["container.uptime"] > 0
    assert outcome(collection) == FINE
    assert encode_metrics(collection)


def test_the_engine_is_measured_and_the_host_is_the_resource(engine):
    engine.add("web")
    engine.add("job", Running=False, Status="exited")

    collection = agent().collect_metrics()

    found = by_container(collection)[None]
    assert found["irca.engine.container.count|running"] == 1
    assert found["irca.engine.container.count|stopped"] == 1
    assert found["irca.engine.image.count"] == 7
    assert found["irca.collector.success|docker.containers"] == 1
    [resource] = [r.resource for r in collection.resources if "container.id" not in r.resource]
    assert resource == agent().resource()
    assert resource["host.name"] == "box"
    assert resource["host.arch"] == "amd64"
    assert resource["irca.engine.id"] == "ENGINE"


def test_cpu_usage_comes_from_two_readings_of_our_own(engine):
    identity = engine.add("web")
    made = agent()

    first = by_container(made.collect_metrics())["web"]
    engine.statistics[identity] = statistics(used=31_091_038 + 5_000_000_000, read="2026-11-22T14:45:37.652138415Z")
    second = by_container(made.collect_metrics())["web"]

    assert "container.cpu.usage" not in first
    assert second["container.cpu.usage"] == pytest.approx(0.5)


def test_a_container_that_is_not_running_is_not_asked_for_statistics(engine):
    identity = engine.add("job", Running=False, Status="exited", ExitCode=137, FinishedAt="2026-11-22T14:50:00Z")

    found = by_container(agent().collect_metrics())["job"]

    assert found["irca.container.state|exited"] == 1
    assert found["irca.container.exit_code"] == 137
    assert "container.uptime" not in found
    assert not [r for r in engine.requests if r.startswith(f"GET /containers/{identity}/stats")]


def test_statistics_are_asked_for_in_one_shot_where_the_engine_can(engine):
    engine.add("web")
    agent().collect_metrics()
    assert any("one-shot=true" in r for r in engine.requests)

    engine.api_version = "1.40"
    engine.requests.clear()
    agent().collect_metrics()
    assert any("/stats" in r for r in engine.requests)
    assert not any("one-shot" in r for r in engine.requests)


@pytest.mark.parametrize("status", [404, 409])
def test_a_container_that_vanishes_meanwhile_is_no_failure(engine, status):
    engine.add("web")
    gone = engine.add("gone")
    engine.fail[f"/containers/{gone}/stats"] = status

    collection = agent().collect_metrics()

    assert by_container(collection).keys() == {"web", None}
    assert outcome(collection)["docker.containers"] == ""


def test_a_container_that_vanishes_while_it_is_read_is_no_failure(engine):
    engine.add("web")
    gone = engine.add("gone")
    engine.replies[f"/containers/{gone}/stats"] = (200, b"")

    collection = agent().collect_metrics()

    assert by_container(collection).keys() == {"web", None}
    assert outcome(collection)["docker.containers"] == ""


def test_one_container_that_cannot_be_asked_leaves_the_others_in(engine):
    engine.add("web")
    broken = engine.add("broken")
    engine.fail[f"/containers/{broken}/stats"] = 500

    collection = agent().collect_metrics()

    found = by_container(collection)
    assert "container.cpu.time" in found["web"]
    assert found["broken"]["irca.container.state|running"] == 1
    assert "container.cpu.time" not in found["broken"]
    assert outcome(collection)["docker.containers"].startswith("1 of 2 containers could not be measured in this round: ")
    assert found[None]["irca.engine.container.unmeasured"] == 1
    assert found[None]["irca.collector.success|docker.containers"] == 0


@pytest.mark.parametrize("question", ["stats", "json"])
def test_a_container_that_never_answers_does_not_hold_up_the_others(engine, question):
    engine.add("web")
    stuck = engine.add("stuck")
    engine.slow[f"/containers/{stuck}/{question}"] = 5

    collection = agent(collect_interval=1, engine_timeout=2).collect_metrics()

    found = by_container(collection)
    assert "container.cpu.time" in found["web"]
    assert found["stuck"]["irca.container.state|running"] == 1
    assert "container.cpu.time" not in found["stuck"]
    assert found[None]["irca.engine.container.unmeasured"] == 1
    assert "1 of 2 containers could not be measured" in outcome(collection)["docker.containers"]
    assert "did not answer in time" in outcome(collection)["docker.containers"]


def test_an_answer_that_makes_no_sense_is_a_failure_of_that_container(engine):
    engine.add("web")
    odd = engine.add("odd", Running=False)
    engine.containers[odd]["State"]["Running"] = True
    engine.statistics[odd] = statistics(memory_stats={"usage": "plenty"})

    collection = agent().collect_metrics()

    assert (
        "1 of 2 containers could not be measured in this round: the engine's answer makes no sense"
        in (outcome(collection)["docker.containers"])
    )
    assert by_container(collection)["odd"]["irca.container.state|running"] == 1


def test_an_engine_that_comes_back_is_used_again_in_the_next_round(engine):
    engine.add("web")
    made = agent(engine_timeout=1)
    assert "web" in by_container(made.collect_metrics())

    engine.fail["/containers/json"] = 503
    away = made.collect_metrics()
    assert "not available" in outcome(away)["docker.containers"]
    assert outcome(away)["docker.engine"] == ""
    del engine.fail["/containers/json"]
    engine.slow["/info"] = 3
    hanging = made.collect_metrics()
    assert "does not answer within 1 s" in outcome(hanging)["docker.engine"]
    engine.slow.clear()

    assert outcome(made.collect_metrics()) == FINE


def test_a_resource_that_was_unknown_at_first_is_found_later(engine):
    engine.fail["/info"] = 503
    made = agent()
    assert made.resource() == {"container.runtime.name": "docker"}

    engine.fail.clear()

    assert made.resource()["host.name"] == "box"


def test_no_container_at_all_is_no_failure(engine):
    assert outcome(agent().collect_metrics()) == FINE


def test_the_layout_of_a_round_is_that_of_the_round_before(engine):
    for name in ("web", "db", "cache"):
        engine.add(name, Health={"Status": "healthy"})
    made = agent()
    made.collect_metrics()

    def layout(collection):
        return [(dict(r.resource), [(m.name, [dict(p.attributes) for p in m.points]) for m in r.metrics]) for r in collection.resources]

    for used in (40_000_000, 50_000_000):
        for identity in engine.statistics:
            read = f"2026-11-22T14:46:{used // 1_000_000:02d}.652138415Z"
            engine.statistics[identity] = statistics(used=used, read=read)
        collection = made.collect_metrics()
        if used == 40_000_000:
            first = collection
    assert layout(first) == layout(collection)
    assert len(encode_metrics(first)) == len(encode_metrics(collection))


def test_every_metric_that_is_sent_is_in_the_table_and_as_it_says(engine):
    engine.add("web", Health={"Status": "healthy"})
    engine.add("job", Running=False, Status="exited", FinishedAt="2026-11-22T14:50:00Z")

    collection = agent(host_metrics=True).collect_metrics()

    for metric in [m for r in collection.resources for m in r.metrics if not m.name.startswith("irca.collector.")]:
        described = METRICS[metric.name]
        assert (metric.unit, metric.kind) == (described.unit, described.kind)
        for point in metric.points:
            assert set(point.attributes) <= set(described.attributes)
    assert len(METRICS) == len(TABLE)


def test_what_our_requests_cost_the_engine_is_told(engine):
    engine.add("web")
    gone = engine.add("gone")
    engine.fail[f"/containers/{gone}/stats"] = 500
    made = agent()
    made.collect_metrics()

    found = by_container(made.collect_metrics())[None]

    assert found["irca.engine.request.count|inspect"] == 2
    assert found["irca.engine.request.count|stats"] == 2
    assert found["irca.engine.request.failed|stats"] == 1
    assert found["irca.engine.request.count|list"] == 1
    assert found["irca.engine.request.duration|stats"] > 0
