"""The docker collectors: what the engine answers, as metrics, and what its failures do."""

from __future__ import annotations

import sys
import threading

import pytest
from engine_stub import STARTED, running_engine, statistics

from connectors.agent_factory import AgentFactory
from connectors.core.telemetry import Kind, encode_metrics
from connectors.docker import stats
from connectors.docker.host import HostCollector, cpu_metrics, load_metrics, memory_metrics

CGROUP_V2_MEMORY = {
    "usage": 50_000_000,
    "stats": {"anon": 30_000_000, "inactive_file": 8_000_000, "file": 15_000_000, "pgfault": 900, "pgmajfault": 3},
    "limit": 67_108_864,
}


@pytest.fixture
def engine(monkeypatch):
    with running_engine() as stub:
        monkeypatch.setenv("DOCKER_HOST", stub.host)
        yield stub


def agent(**config):
    return AgentFactory.create_agent("docker", "http://localhost:8000", "token-123", config)


def inspection(memory_limit=0, **state):
    described = {"Status": "running", "Running": True, "StartedAt": STARTED, "FinishedAt": "0001-01-01T00:00:00Z"} | state
    return {"State": described, "RestartCount": 4, "HostConfig": {"Memory": memory_limit}}


def values(metrics):
    """Every value by metric name, or by name and attribute values where it has attributes."""
    return {"|".join([metric.name, *map(str, point.attributes.values())]): point.value for metric in metrics for point in metric.points}


def by_container(collection):
    return {r.resource.get("container.name"): values(r.metrics) for r in collection.resources}


def outcome(collection):
    return {result.name: result.reason for result in collection.collectors}


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
    assert outcome(collection) == {"docker.engine": "", "docker.containers": ""}
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
    assert any("one-shot=True" in r for r in engine.requests)

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


def test_one_container_that_cannot_be_asked_leaves_the_others_in(engine):
    engine.add("web")
    broken = engine.add("broken")
    engine.fail[f"/containers/{broken}/stats"] = 500

    collection = agent().collect_metrics()

    assert by_container(collection).keys() == {"web", None}
    assert outcome(collection)["docker.containers"].startswith("1 of 2 containers are missing from this round: ")
    assert by_container(collection)[None]["irca.collector.success|docker.containers"] == 0


def test_a_slow_container_is_left_out_of_the_round(engine):
    engine.add("web")
    slow = engine.add("slow")
    engine.slow[f"/containers/{slow}/stats"] = 2.5

    collection = agent(collect_interval=1, engine_timeout=2).collect_metrics()

    assert by_container(collection).keys() == {"web", None}
    assert "did not answer for all of them within 1 s" in outcome(collection)["docker.containers"]
    for thread in threading.enumerate():
        if thread.name.startswith("irca-docker-stats"):
            thread.join(10)


def test_an_answer_that_makes_no_sense_is_a_failure_of_that_container(engine):
    engine.add("web")
    odd = engine.add("odd", Running=False)
    del engine.containers[odd]["RestartCount"]
    engine.containers[odd]["State"]["Running"] = True
    engine.statistics[odd] = None

    assert "1 of 2 containers are missing from this round: " in outcome(agent().collect_metrics())["docker.containers"]


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

    assert outcome(made.collect_metrics()) == {"docker.engine": "", "docker.containers": ""}


def test_a_resource_that_was_unknown_at_first_is_found_later(engine):
    engine.fail["/info"] = 503
    made = agent()
    assert made.resource() == {"container.runtime.name": "docker"}

    engine.fail.clear()

    assert made.resource()["host.name"] == "box"


def test_no_container_at_all_is_no_failure(engine):
    assert outcome(agent().collect_metrics()) == {"docker.engine": "", "docker.containers": ""}


def test_memory_is_read_by_the_rules_of_cgroup_v2_too():
    found = values(stats.usage_metrics(inspection(67_108_864), statistics(memory_stats=CGROUP_V2_MEMORY), None))

    assert found["container.memory.usage"] == 50_000_000
    assert found["container.memory.working_set"] == 42_000_000
    assert found["container.memory.rss"] == 30_000_000
    assert found["irca.container.memory.limit"] == 67_108_864
    assert found["container.memory.available"] == 25_108_864
    assert found["container.paging.faults|major"] == 3
    assert found["container.paging.faults|minor"] == 897


def test_without_a_limit_of_its_own_a_container_has_no_available_memory():
    found = values(stats.usage_metrics(inspection(), statistics(), None))

    assert "container.memory.available" not in found
    assert "irca.container.memory.limit" not in found


def test_page_cache_beyond_usage_makes_no_negative_working_set():
    assert stats.working_set({"usage": 10, "stats": {"inactive_file": 20}}) == 0
    assert stats.working_set({"usage": 10}) == 10


def test_what_the_engine_leaves_out_is_left_out():
    empty = {"read": "0001-01-01T00:00:00Z", "cpu_stats": None, "memory_stats": {}, "networks": None, "blkio_stats": None, "pids_stats": {}}

    assert stats.usage_metrics(inspection(), empty, None) == []
    nulls = statistics(blkio_stats={"io_service_bytes_recursive": None}, memory_stats={"usage": 5})
    assert values(stats.usage_metrics(inspection(), nulls, None))["container.memory.working_set"] == 5


def test_counters_begin_when_the_container_began():
    metrics = stats.usage_metrics(inspection(), statistics(), None)

    counters = [m for m in metrics if m.kind is Kind.COUNTER]
    assert {m.name for m in counters} == {"container.cpu.time", "container.paging.faults", "container.network.io", "container.disk.io"}
    assert {m.start_time_unix_nano for m in counters} == {1_795_358_724_907_458_000}


@pytest.mark.parametrize(
    ("previous", "expected"),
    [
        (None, None),
        (stats.CpuSample(0, 1_000), 2.0),
        (stats.CpuSample(500, 1_000), 1.5),
        (stats.CpuSample(2_001, 1_000), None),
        (stats.CpuSample(0, 2_000), None),
        (stats.CpuSample(0, 3_000), None),
    ],
)
def test_two_readings_that_cannot_be_compared_give_no_usage(previous, expected):
    assert stats.cpu_usage(previous, stats.CpuSample(2_000, 2_000)) == expected


def test_block_io_is_read_from_both_cgroup_versions():
    entries = [{"major": 8, "minor": 16, "op": "read", "value": 10}, {"major": 8, "minor": 16, "op": "read", "value": 5}, {"op": "sync"}]

    found = values(stats.usage_metrics(inspection(), statistics(blkio_stats={"io_service_bytes_recursive": entries}), None))

    assert {k: v for k, v in found.items() if k.startswith("container.disk")} == {"container.disk.io|8:16|read": 15}


def test_health_is_told_for_containers_that_check_it():
    found = values(stats.state_metrics(inspection(Health={"Status": "unhealthy"}), 0))
    assert [found[f"irca.container.health.status|{s}"] for s in ("starting", "healthy", "unhealthy")] == [0, 0, 1]

    without = values(stats.state_metrics(inspection(Health={"Status": "none"}), 0))
    assert not [key for key in without if "health" in key]
    assert without["irca.container.restart.count"] == 4


def test_every_state_has_a_point_so_that_no_series_falls_silent():
    for state in stats.STATES:
        found = values(stats.state_metrics(inspection(Status=state), 0))
        states = {key: value for key, value in found.items() if key.startswith("irca.container.state|")}
        assert len(states) == len(stats.STATES)
        assert [key for key, value in states.items() if value] == [f"irca.container.state|{state}"]


def test_uptime_is_never_negative_when_the_clocks_differ():
    assert values(stats.state_metrics(inspection(), 0))["container.uptime"] == 0


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("redis", ("redis", "", "")),
        ("redis:7", ("redis", "7", "")),
        ("registry:5000/team/app", ("registry:5000/team/app", "", "")),
        ("registry:5000/team/app:1.2@sha256:00ff", ("registry:5000/team/app", "1.2", "sha256:00ff")),
        ("app@sha256:00ff", ("app", "", "sha256:00ff")),
        ("sha256:00ff", ("", "", "")),
        ("", ("", "", "")),
    ],
)
def test_an_image_reference_is_taken_apart(reference, expected):
    image = stats.split_image(reference)

    assert (image.name, image.tag, image.digest) == expected


def test_a_container_is_named_by_its_own_name_and_not_by_a_link():
    summary = {"Id": "1", "Names": ["/web/db", "/db"], "Image": "app@sha256:00ff", "Labels": None}

    resource = stats.container_resource(summary, ["team"])

    assert resource["container.name"] == "db"
    assert resource["container.image.repo_digests"] == ["app@sha256:00ff"]
    assert "container.image.tags" not in resource
    assert "container.name" not in stats.container_resource({"Id": "1"}, [])


@pytest.mark.parametrize(("text", "expected"), [("", 0), ("0001-01-01T00:00:00Z", 0), ("1970-01-01T00:00:01.5Z", 1_500_000_000)])
def test_the_engines_times_are_unix_nanoseconds(text, expected):
    assert stats.unix_nano(text) == expected


def test_host_metrics_are_opt_in(engine, tmp_path):
    assert "docker.host" not in outcome(agent().collect_metrics())

    reason = outcome(agent(host_metrics=True).collect_metrics())["docker.host"]
    assert reason == "" or "mount it read-only" in reason


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_the_host_is_measured_from_its_own_proc():
    [gathered] = HostCollector(lambda: {"host.name": "box"}, "/proc").collect()

    found = values(gathered.metrics)
    assert gathered.resource == {"host.name": "box"}
    assert found["system.cpu.time|0|user"] > 0
    assert found["system.memory.limit"] == pytest.approx(sum(v for k, v in found.items() if k.startswith("system.memory.usage|")))
    assert found["irca.system.load.1m"] >= 0


def test_a_proc_that_is_not_as_expected_degrades_the_collector(engine, tmp_path, monkeypatch):
    for name in ("stat", "meminfo", "loadavg"):
        (tmp_path / name).write_text("nonsense\n")

    with pytest.raises(Exception, match="is not as expected"):
        list(HostCollector(dict, str(tmp_path)).collect())
    with pytest.raises(Exception, match="mount it read-only"):
        list(HostCollector(dict, str(tmp_path / "none")).collect())


def test_the_files_of_proc_are_read_as_linux_writes_them():
    stat = "cpu  10 0 0 0\ncpu0 100 50 25 1000 5 1 2 3 0 0\nbtime 1700000000\nintr 5\n"
    meminfo = (
        "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 400 kB\nBuffers: 50 kB\nCached: 300 kB\nSReclaimable: 50 kB\n"
        "SwapTotal: 10 kB\nSwapFree: 4 kB\nHugePages_Total: 0\n\n"
    )

    found = values([*cpu_metrics(stat, 100), *memory_metrics(meminfo), *load_metrics("0.5 0.4 0.3 1/200 999\n")])

    assert found["system.cpu.time|0|user"] == 1
    assert found["system.cpu.time|0|interrupt"] == pytest.approx(0.03)
    assert found["system.memory.usage|used"] == 500 * 1024
    assert found["system.memory.usage|cached"] == 350 * 1024
    assert found["system.paging.usage|used"] == 6 * 1024
    assert found["irca.system.load.15m"] == 0.3
    assert next(cpu_metrics(stat, 100)).start_time_unix_nano == 1_700_000_000_000_000_000
