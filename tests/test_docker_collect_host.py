"""The host's own metrics and the engine's processes, from the host's proc."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from docker_agents import agent
from docker_readings import outcome, values
from engine_stub import running_engine

from connectors.docker.host import HostCollector, cpu_metrics, load_metrics, memory_metrics, process_metrics


@pytest.fixture
def engine(monkeypatch):
    with running_engine() as stub:
        monkeypatch.setenv("DOCKER_HOST", stub.host)
        yield stub


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
