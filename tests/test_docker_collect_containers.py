"""What is told of a container, from what the engine says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from docker_agents import agent
from docker_readings import FINE, inspection, outcome, values
from engine_stub import STARTED, running_engine, statistics

from connectors.core.telemetry import Kind
from connectors.docker import stats

FIXTURES = Path(__file__).parent / "fixtures" / "docker"
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
