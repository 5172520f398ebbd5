"""The docker collectors: what the engine answers, as metrics, and what its failures do."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import docker.errors
import pytest
from engine_stub import STARTED, running_engine, statistics

from connectors.agent_factory import AgentFactory
from connectors.core.telemetry import Kind, encode_metrics
from connectors.docker import engine as engines
from connectors.docker import stats
from connectors.docker.disk import DiskCollector, disk_metrics
from connectors.docker.engine import Engine
from connectors.docker.fanout import Fanout
from connectors.docker.host import HostCollector, cpu_metrics, load_metrics, memory_metrics, process_metrics
from connectors.docker.metrics import METRICS, TABLE

FIXTURES = Path(__file__).parent / "fixtures" / "docker"
FINE = {"docker.engine": "", "docker.containers": "", "docker.disk": ""}

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
    assert {m.name for m in counters} >= {"container.cpu.time", "container.paging.faults", "container.network.io", "container.disk.io"}
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


def recorded(version):
    return json.loads((FIXTURES / f"cgroup_v{version}.json").read_text())


def test_the_recorded_container_of_cgroup_v1_is_read_as_its_cgroup_files_say():
    record = recorded(1)
    files = record["cgroup"]

    found = values(stats.usage_metrics(record["inspection"], record["statistics"], None))

    assert found["container.memory.usage"] == pytest.approx(files["memory.usage_in_bytes"], rel=0.05)
    working = files["memory.usage_in_bytes"] - files["memory.stat"]["total_inactive_file"]
    assert found["container.memory.working_set"] == pytest.approx(working, rel=0.05)
    assert found["container.memory.rss"] == pytest.approx(files["memory.stat"]["total_rss"], rel=0.05)
    assert found["container.cpu.time"] == pytest.approx(files["cpuacct.usage"] / 1e9, rel=0.05)
    assert found["irca.container.process.count"] == files["pids.current"]
    assert found["container.memory.available"] == 96 * 1024**2 - found["container.memory.working_set"]
    assert found["irca.container.cpu.limit"] == 0.5
    assert found["irca.container.process.limit"] == 40
    assert found["irca.container.cpu.throttling.time"] > 0
    faults = found["container.paging.faults|major"] + found["container.paging.faults|minor"]
    assert faults == pytest.approx(files["memory.stat"]["total_pgfault"], rel=0.05)
    modes = found["irca.container.cpu.mode.time|user"] + found["irca.container.cpu.mode.time|kernel"]
    assert modes == pytest.approx(found["container.cpu.time"], rel=0.1)


def test_the_same_container_on_cgroup_v2_gives_the_same_metrics():
    record = recorded(2)
    files = record["cgroup"]

    found = values(stats.usage_metrics(record["inspection"], record["statistics"], None))

    assert found["container.memory.usage"] == files["memory.current"]
    assert found["container.memory.working_set"] == files["memory.current"] - files["memory.stat"]["inactive_file"]
    assert found["container.memory.rss"] == files["memory.stat"]["anon"]
    assert found["container.cpu.time"] == files["cpu.stat"]["usage_usec"] / 1e6
    assert found["irca.container.cpu.mode.time|user"] == files["cpu.stat"]["user_usec"] / 1e6
    assert found["container.disk.io|254:0|write"] == 12_001_280
    assert "irca.container.disk.operations|254:0|write" not in found
    names = {key.partition("|")[0] for key in found}
    before = {key.partition("|")[0] for key in values(stats.usage_metrics(recorded(1)["inspection"], recorded(1)["statistics"], None))}
    assert names == before | {"container.disk.io"}


def test_a_recorded_container_is_named_with_its_image_and_compose_service():
    record = recorded(2)

    resource = stats.container_resource(record["summary"], ["team"], reference="irca/python:3.11-host", image=record["image"])

    assert resource["container.name"] == "record-web"
    assert resource["container.image.name"] == "irca/python"
    assert resource["container.image.tags"] == ["3.11-host"]
    assert resource["container.image.repo_digests"] == ["irca/python@sha256:" + "5" * 64]
    assert resource["container.image.id"] == record["image"]["Id"]
    assert resource["container.label.com.docker.compose.project"] == "shop"
    assert resource["container.label.com.docker.compose.service"] == "web"
    assert resource["container.label.team"] == "ops"
    assert "container.label.team" not in stats.container_resource(record["summary"], [])


def test_a_container_keeps_its_image_name_when_the_tag_moves_to_another_image(engine, monkeypatch):
    identity = engine.add("web")
    made = agent()
    [before] = [r.resource for r in made.collect_metrics().resources if r.resource.get("container.name") == "web"]

    import engine_stub

    plain = engine_stub.summary
    monkeypatch.setattr(engine_stub, "summary", lambda container: plain(container) | {"Image": "sha256:" + "b" * 64})
    [after] = [r.resource for r in made.collect_metrics().resources if r.resource.get("container.name") == "web"]
    engine.fail[f"/containers/{identity}/json"] = 500
    [unanswered] = [r.resource for r in made.collect_metrics().resources if r.resource.get("container.name") == "web"]

    assert before == after == unanswered
    assert after["container.image.name"] == "team/app"


def test_tags_and_digests_come_from_the_list_of_images_which_is_kept_for_a_while(engine):
    engine.images = [
        {"Id": "sha256:" + "b" * 64, "RepoTags": ["team/app:1.2", "team/app:latest", "other:1"], "RepoDigests": ["team/app@sha256:00ff"]}
    ]
    engine.add("web")
    made = agent()

    made.collect_metrics()
    [resource] = [r.resource for r in made.collect_metrics().resources if r.resource.get("container.name") == "web"]

    assert resource["container.image.tags"] == ["1.2", "latest"]
    assert resource["container.image.repo_digests"] == ["team/app@sha256:00ff"]
    assert len([r for r in engine.requests if "/images/json" in r]) == 1


def test_a_proxy_that_hides_the_images_is_no_failure(engine):
    engine.fail["/images/json"] = 403
    engine.add("web")

    assert outcome(agent().collect_metrics()) == FINE


def test_usage_is_not_computed_across_a_restart():
    before = stats.CpuSample(1, stats.unix_nano(STARTED) - 1)

    assert "container.cpu.usage" not in values(stats.usage_metrics(inspection(), statistics(), before))


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


def test_the_engine_and_the_version_spoken_with_it_are_told(engine):
    collection = agent().collect_metrics()

    [info] = [m for r in collection.resources for m in r.metrics if m.name == "irca.engine.info"]
    assert info.points[0].attributes == {"irca.engine.version": "20.10.24", "irca.engine.api_version": "1.41"}


@pytest.mark.parametrize(
    ("newest", "oldest", "agreed"),
    [("1.41", "1.12", "1.41"), ("1.24", "", "1.24"), ("1.99", "1.24", "1.45"), ("1.99", "1.60", "1.60")],
)
def test_the_api_version_is_one_that_both_know(newest, oldest, agreed):
    assert engines.agree(newest, oldest) == agreed


def test_an_engine_that_is_too_old_is_told_to_be_updated(engine):
    with pytest.raises(docker.errors.DockerException, match="update the engine"):
        engines.agree("1.20", "")

    engine.api_version = "1.20"

    assert "it speaks API 1.20" in outcome(agent().collect_metrics())["docker.engine"]


def test_an_engine_that_no_longer_speaks_the_agreed_version_is_asked_anew(engine):
    engine.add("web")
    made = agent()
    made.collect_metrics()
    engine.replies["/containers/json"] = (400, {"message": "client version 1.41 is too new. Maximum supported API version is 1.40"})
    assert "no longer speaks the API version" in outcome(made.collect_metrics())["docker.containers"]
    engine.replies.clear()
    engine.api_version = "1.40"

    collection = made.collect_metrics()

    assert outcome(collection) == FINE
    assert made._engine.speaks("1.40")
    assert not made._engine.speaks("1.41")


def test_an_engine_that_hangs_is_waited_for_once_in_a_round(engine):
    engine.add("web")
    made = agent(engine_timeout=1, disk_usage_interval=0)
    made.resource()
    engine.slow |= {"/info": 3, "/containers/json": 3}

    reasons = outcome(made.collect_metrics())

    assert all("does not answer within 1 s" in reason for reason in reasons.values())
    assert len(reasons) == 2
    assert not [r for r in engine.requests if r.startswith("GET /containers/json")]


def test_a_connection_that_breaks_in_the_middle_fails_that_container_alone(engine):
    engine.add("web")
    cut = engine.add("cut")
    engine.replies[f"/containers/{cut}/stats"] = (200, "this is no JSON object")
    nonsense = engine.add("nonsense")
    engine.replies[f"/containers/{nonsense}/json"] = (200, b"{")

    found = by_container(agent().collect_metrics())

    assert "container.cpu.time" in found["web"]
    assert found["nonsense"]["irca.container.state|running"] == 1
    assert found[None]["irca.engine.container.unmeasured"] == 1


def test_an_engine_that_goes_away_in_the_middle_fails_every_answer(tmp_path):
    with running_engine() as stub:
        stub.add("web")
        engine = Engine({}, host=stub.host, timeout=1)
        path = engine.path("/containers/x/json")
    with Fanout(engine, width=2) as fanout:
        answers = fanout.ask("inspect", {"a": path, "b": path, "c": path}, patience=1, deadline=time.monotonic() + 5)
    engine.close()

    assert list(answers) == ["a", "b", "c"]
    assert all("the socket does not exist" in answer.failure.reason for answer in answers.values())
    assert engine.costs()["inspect"].failed == 3


def test_more_containers_than_connections_are_all_asked(engine):
    for number in range(9):
        engine.add(f"web-{number}")

    found = by_container(agent(stats_workers=2).collect_metrics())

    assert len([name for name in found if name and "container.cpu.time" in found[name]]) == 9


def test_after_the_deadline_nothing_more_is_asked(engine):
    engine.add("web")
    asked = Engine({}, host=engine.host)
    path = asked.path("/info")
    with Fanout(asked, width=1) as fanout:
        answers = fanout.ask("info", {"a": path, "b": path}, patience=5, deadline=time.monotonic() - 1)
    asked.close()

    assert all("did not answer in time" in answer.failure.reason for answer in answers.values())
    assert not [r for r in engine.requests if "/info" in r]


@pytest.mark.parametrize(
    ("host", "address", "port"), [("tcp://box:1234", "box", 1234), ("tcp://box", "box", 2375), ("http://box:80", "box", 80)]
)
def test_an_engine_on_the_network_is_asked_over_tcp(host, address, port):
    connection = Engine({}, host=host).connection()

    assert (connection.host, connection.port) == (address, port)


def test_tls_uses_the_certificates_of_the_docker_command(tmp_path):
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    certificate = authority.issue_cert("agent")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    environ = {"DOCKER_HOST": "tcp://box:2376", "DOCKER_CERT_PATH": str(tmp_path)}

    verified = Engine({**environ, "DOCKER_TLS_VERIFY": "1"}).connection()
    unverified = Engine({**environ, "DOCKER_TLS_VERIFY": ""}).connection()

    assert (verified.host, verified.port) == ("box", 2376)
    assert verified._context.check_hostname
    assert not unverified._context.check_hostname


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


def test_disk_use_that_somebody_else_asks_for_too_is_no_failure_once_it_is_known(engine):
    now = [0.0]
    asked = Engine({}, host=engine.host)
    collector = DiskCollector(asked, dict, interval=10, monotonic=lambda: now[0])
    engine.replies["/system/df"] = (500, {"message": "a disk usage operation is already running"})
    with pytest.raises(Exception, match="already running"):
        list(collector.collect())
    engine.replies.clear()
    assert list(collector.collect())
    engine.replies["/system/df"] = (500, {"message": "a disk usage operation is already running"})
    now[0] = 11
    assert list(collector.collect())
    engine.replies["/system/df"] = (200, {"Containers": 5})
    now[0] = 22
    with pytest.raises(Exception, match="makes no sense"):
        list(collector.collect())
    asked.close()


def test_the_engines_own_processes_are_measured_by_name():
    fields = "S 1 1 1 0 -1 0 0 0 0 0 {user} {system} 0 0 20 0 9 0 100 999 {pages} 0"
    processes = [
        ("dockerd", "7 (dockerd) " + fields.format(user=150, system=50, pages=10)),
        ("dockerd", "8 (docker) d) " + fields.format(user=100, system=0, pages=1)),
        ("containerd", "9 (containerd) " + fields.format(user=1, system=0, pages=2)),
    ]

    found = values(process_metrics(processes, 100, 4096))

    assert found["irca.engine.process.cpu.time|dockerd"] == 3
    assert found["irca.engine.process.memory.usage|dockerd"] == 11 * 4096
    assert found["irca.engine.process.cpu.time|containerd"] == 0.01
    assert list(process_metrics([], 100, 4096)) == []


def test_the_engines_processes_are_found_in_the_hosts_proc(tmp_path):
    for name in ("stat", "meminfo", "loadavg"):
        (tmp_path / name).write_text(Path("/proc", name).read_text())
    for pid, name in (("10", "dockerd"), ("11", "bash")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "comm").write_text(f"{name}\n")
        (tmp_path / pid / "stat").write_text(f"{pid} ({name}) S 1 1 1 0 -1 0 0 0 0 0 200 100 0 0 20 0 9 0 100 999 5 0")
    (tmp_path / "12").mkdir()

    [gathered] = HostCollector(dict, str(tmp_path)).collect()

    found = values(gathered.metrics)
    assert {key for key in found if key.startswith("irca.engine.process.cpu")} == {"irca.engine.process.cpu.time|dockerd"}
