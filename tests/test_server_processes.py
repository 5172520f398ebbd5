from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from connectors.core.collector import run_collectors
from connectors.core.errors import CollectorError
from connectors.core.telemetry import Kind
from connectors.server import processes
from connectors.server.collect import make_collectors
from connectors.server.config import COLLECTORS, ServerConfig
from connectors.server.metrics import METRICS, TABLE
from connectors.server.processes import LONGEST_COMMAND_LINE, FileDescriptorCollector, Process, TopProcessCollector, every_process

pytestmark = pytest.mark.skipif(not psutil.LINUX, reason="reads /proc to compare")

HOST = {"host.id": "h1"}
CPUS = psutil.cpu_count() or 1


def gathered(collector):
    return {metric.name: metric for resource in collector.collect() for metric in resource.metrics}


class Machine:
    """Processes that are made up; time stands still unless it is moved."""

    def __init__(self, *made):
        self.processes = list(made)
        self.now = 50.0

    def collector(self, count, **options):
        return TopProcessCollector(HOST, count, look=lambda: self.processes, monotonic=lambda: self.now, **options)

    def later(self, seconds, *made):
        self.now += seconds
        self.processes = list(made)


def busy(metric):
    return {p.attributes["process.executable.name"]: round(p.value * CPUS, 6) for p in metric.points}


def test_open_files_of_the_host_and_of_the_agent_are_reported(tmp_path, monkeypatch):
    (tmp_path / "sys/fs").mkdir(parents=True)
    (tmp_path / "sys/fs/file-nr").write_text("1984\t24\t9223372036854775807\n")
    (tmp_path / "self/fd").mkdir(parents=True)
    for number in range(8):
        (tmp_path / "self/fd" / str(number)).write_text("")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    found = {name: metric.points[0].value for name, metric in gathered(FileDescriptorCollector(HOST)).items()}
    assert found == {
        "irca.host.file_descriptor.count": 1960,
        "irca.host.file_descriptor.limit": float(2**63 - 1),
        "process.unix.file_descriptor.count": 7,
    }


def test_the_agents_own_open_files_are_counted_as_the_system_counts_them():
    found = gathered(FileDescriptorCollector(HOST))["process.unix.file_descriptor.count"].points[0].value
    with Path(os.devnull).open("rb"):
        assert gathered(FileDescriptorCollector(HOST))["process.unix.file_descriptor.count"].points[0].value == found + 1


def test_a_system_that_hides_its_open_files_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    with pytest.raises(CollectorError, match=r"file-nr cannot be read"):
        gathered(FileDescriptorCollector(HOST))


def test_the_first_round_knows_memory_and_the_second_cpu_time_too():
    machine = Machine(Process(1, 0, "init", 5.0, 10), Process(7, 3, "db", 100.0, 900))
    collector = machine.collector(1)
    first = gathered(collector)
    assert list(first) == ["process.memory.usage"]
    assert [(p.value, p.attributes) for p in first["process.memory.usage"].points] == [
        (900.0, {"process.pid": 7, "process.executable.name": "db"})
    ]
    machine.later(10, Process(1, 0, "init", 9.0, 10), Process(7, 3, "db", 101.0, 900))
    second = gathered(collector)
    assert (second["process.cpu.utilization"].unit, second["process.cpu.utilization"].kind) == ("1", Kind.GAUGE)
    assert busy(second["process.cpu.utilization"]) == {"init": 0.4, "db": 0.1}
    assert len(second["process.memory.usage"].points) == 2, "the one with the most memory and the busiest one"


def test_no_more_than_asked_for_are_reported():
    machine = Machine(*(Process(n, 0, f"p{n}", 0.0, n) for n in range(1, 101)))
    collector = machine.collector(3)
    assert len(gathered(collector)["process.memory.usage"].points) == 3
    machine.later(10, *(Process(n, 0, f"p{n}", 10.0 / n, n) for n in range(1, 101)))
    found = gathered(collector)
    assert busy(found["process.cpu.utilization"]).keys() == {"p1", "p2", "p3", "p98", "p99", "p100"}
    assert len(found["process.memory.usage"].points) == 6


def test_a_process_id_that_is_used_again_is_another_process():
    machine = Machine(Process(7, 3, "old", 100.0, 900))
    collector = machine.collector(1)
    gathered(collector)
    machine.later(10, Process(7, 44, "new", 5.0, 900))
    found = gathered(collector)
    assert "process.cpu.utilization" not in found
    assert found["process.memory.usage"].points[0].attributes["process.executable.name"] == "new"


def test_a_clock_that_stands_still_and_times_that_step_back_give_no_shares_below_zero():
    machine = Machine(Process(7, 3, "db", 100.0, 900))
    collector = machine.collector(1)
    gathered(collector)
    assert "process.cpu.utilization" not in gathered(collector)
    machine.later(10, Process(7, 3, "db", 99.0, 900))
    assert busy(gathered(collector)["process.cpu.utilization"]) == {"db": 0.0}


def test_a_system_that_lists_nothing_reports_nothing():
    assert gathered(Machine().collector(3)) == {}


def test_the_processes_of_this_host_are_read_as_psutil_reads_them():
    ours = {one.pid: one for one in every_process()}
    me = psutil.Process()
    assert ours[me.pid].name == me.name()
    assert ours[me.pid].memory == pytest.approx(me.memory_info().rss, rel=0.2)
    assert ours[me.pid].cpu_time == pytest.approx(sum(me.cpu_times()[:2]), abs=0.5)
    portable = {one.pid: one for one in processes._portable()}
    assert portable[me.pid].memory == pytest.approx(ours[me.pid].memory, rel=0.2)
    assert len(portable) == pytest.approx(len(ours), abs=20)


def test_a_name_with_parentheses_and_spaces_is_read_whole(tmp_path, monkeypatch):
    (tmp_path / "7").mkdir()
    (tmp_path / "stat").write_text("")
    numbers = " ".join(str(n) for n in range(4, 30))
    (tmp_path / "7/stat").write_text(f"7 (a) b (c) S {numbers}\n")
    (tmp_path / "8").mkdir()
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    [one] = list(every_process())
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    assert one == Process(7, 22.0, "a) b (c", (14 + 15) / ticks, 24 * page), "the one that ended meanwhile is left out"


@pytest.fixture
def child():
    secret = "--password=hunter2"
    program = "import sys; sys.stdin.read()"
    started = subprocess.Popen([sys.executable, "-c", program, secret, "--name", "x" * 500], stdin=subprocess.PIPE)
    yield started
    started.communicate()


def test_arguments_are_told_only_when_asked_for_and_then_shortened_and_without_secrets(child):
    def attributes(**options):
        collector = TopProcessCollector(HOST, 50, look=lambda: [one for one in every_process() if one.pid == child.pid], **options)
        [point] = gathered(collector)["process.memory.usage"].points
        return point.attributes

    assert "process.command_line" not in attributes()
    line = attributes(arguments=True)["process.command_line"]
    assert line.startswith("python")
    assert "hunter2" not in line
    assert "--password=[redacted]" in line
    assert len(line) == LONGEST_COMMAND_LINE
    assert line.endswith("…")


def test_kernel_threads_and_processes_that_are_gone_have_no_command_line():
    collector = Machine(Process(2**22 + 1, 0, "kthread", 0.0, 5)).collector(1, arguments=True)
    assert "process.command_line" not in gathered(collector)["process.memory.usage"].points[0].attributes


def test_top_processes_are_looked_at_only_when_asked_for():
    assert "top_processes" not in [c.name for c in make_collectors(ServerConfig(), HOST)]
    collectors = make_collectors(ServerConfig(collectors=("uptime",), top_processes=5), HOST)
    assert [c.name for c in collectors] == ["uptime", "top_processes"]


def test_the_redaction_is_loaded_only_for_arguments():
    program = (
        "import json, sys; from connectors.server.collect import make_collectors; from connectors.server.config import ServerConfig;"
        "from connectors.core.collector import run_collectors;"
        "run_collectors(make_collectors(ServerConfig(top_processes=5), {}), {});"
        "print(json.dumps([m for m in sys.modules if m in ('connectors.core.redaction', 'connectors.server.metrics')]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == []


def test_what_the_collectors_send_is_what_the_table_says():
    collectors = make_collectors(ServerConfig(top_processes=3, top_process_arguments=True, systemd_units=(".*",)), HOST)
    sent = {}
    for _ in range(2):
        for collector in collectors:
            sent |= {metric.name: (collector.name, metric) for resource in _kept(collector) for metric in resource.metrics}
    for name, (collector, metric) in sent.items():
        described = METRICS[name]
        assert (metric.unit, metric.kind, collector) == (described.unit, described.kind, described.collector), name
        assert {key for point in metric.points for key in point.attributes} <= set(described.attributes), name
    assert len(METRICS) == len(TABLE)
    assert {described.collector for described in TABLE} == {*COLLECTORS, "top_processes"}
    assert len(sent) > 20


def _kept(collector):
    found = []
    try:
        for item in collector.collect():
            found.append(item)
    except CollectorError:
        pass
    return found


def test_everything_together_runs_on_this_host():
    collection = run_collectors(make_collectors(ServerConfig(top_processes=3), HOST), HOST)
    assert {result.name for result in collection.collectors} == {*COLLECTORS, "top_processes"}
