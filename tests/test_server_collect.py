"""The server's collectors on a small /proc."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from small_proc import HOST, MEMINFO, NET_DEV, NOTHING, STAT, boot, metrics, values, write_small_proc

from connectors.core.collector import run_collectors
from connectors.core.errors import CollectorError
from connectors.server.collect import (
    CpuCollector,
    DiskCollector,
    LoadCollector,
    MemoryCollector,
    NetworkCollector,
    PagingCollector,
    ProcessCollector,
    UptimeCollector,
)
from connectors.server.config import ServerConfig
from connectors.server.host_collector import BootTime, Exclusion

pytestmark = pytest.mark.skipif(not psutil.LINUX, reason="reads /proc to compare")


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """A small /proc of a host with two CPUs, read in place of the real one."""
    root = write_small_proc(tmp_path / "proc")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(root))
    return root


def test_cpu_time_counts_each_mode_and_interrupts_once(proc):
    found = values(CpuCollector(HOST, boot()))
    hertz = os.sysconf("SC_CLK_TCK")
    assert found["system.cpu.time", "interrupt", 1] == 12 / hertz
    assert found["system.cpu.time", "steal", 0] == 1 / hertz
    assert sum(1 for key in found if key[0] == "system.cpu.time") == 14
    assert not any(key[0] == "system.cpu.utilization" for key in found)


def test_cpu_time_can_be_summed_over_cores(proc):
    found = values(CpuCollector(HOST, boot(), per_core=False))
    assert found["system.cpu.time", "idle"] == 3000 / os.sysconf("SC_CLK_TCK")
    assert found["system.cpu.logical.count",] == 2


def test_cpu_utilisation_is_the_share_of_each_mode_between_two_rounds(proc):
    collector = CpuCollector(HOST, boot())
    values(collector)
    (proc / "stat").write_text(STAT.replace("cpu0 100 10 50 1000", "cpu0 130 10 60 1060"))
    found = {key[1]: value for key, value in values(collector).items() if key[0] == "system.cpu.utilization"}
    assert found == pytest.approx({"user": 0.3, "system": 0.1, "nice": 0, "idle": 0.6, "iowait": 0, "interrupt": 0, "steal": 0})
    assert sum(found.values()) == pytest.approx(1)


def test_a_round_in_which_no_time_passed_repeats_the_shares(proc):
    collector = CpuCollector(HOST, boot())
    values(collector)
    (proc / "stat").write_text(STAT.replace("cpu0 100", "cpu0 150"))
    second = values(collector)
    assert values(collector) == second


def test_a_mode_that_steps_back_counts_as_nothing(proc):
    collector = CpuCollector(HOST, boot())
    values(collector)
    (proc / "stat").write_text(STAT.replace("cpu0 100 10 50 1000 20", "cpu0 110 10 50 1000 19"))
    found = values(collector)
    assert found["system.cpu.utilization", "iowait"] == 0
    assert found["system.cpu.utilization", "user"] == 1


def test_a_cpu_that_appears_is_not_taken_for_time_that_passed(proc):
    collector = CpuCollector(HOST, boot())
    values(collector)
    (proc / "stat").write_text(STAT.replace("intr", "cpu2 900 9 9 9 9 9 9 9 0 0\nintr"))
    found = values(collector)
    assert found["system.cpu.logical.count",] == 3
    assert not any(key[0] == "system.cpu.utilization" for key in found)
    (proc / "stat").write_text(STAT.replace("intr", "cpu2 910 9 9 9 9 9 9 9 0 0\nintr"))
    assert values(collector)["system.cpu.utilization", "user"] == 1


def test_memory_and_paging_are_counted_in_bytes(proc):
    memory, paging = values(MemoryCollector(HOST)), values(PagingCollector(HOST, boot()))
    assert memory["system.memory.usage", "used"] == 400 * 1024
    assert memory["system.memory.usage", "cached"] == 310 * 1024
    assert memory["system.memory.utilization", "free"] == 0.2
    assert paging["system.paging.usage", "used"] == 100 * 1024
    assert paging["system.paging.utilization", "free"] == 0.75
    assert paging["system.paging.faults", "major"] == 40
    assert paging["system.paging.faults", "minor"] == 960
    assert (paging["system.paging.operations", "in"], paging["system.paging.operations", "out"]) == (11, 22)


def test_a_host_without_swap_reports_none_and_no_share_of_it(proc):
    (proc / "meminfo").write_text(MEMINFO.replace("400 kB", "0 kB").replace("300 kB\n", "0 kB\n"))
    found = values(PagingCollector(HOST, boot()))
    assert found["system.paging.usage", "used"] == found["system.paging.usage", "free"] == 0
    assert not any(key[0] == "system.paging.utilization" for key in found)


def test_what_paging_could_read_stands_when_the_rest_is_hidden(proc):
    (proc / "vmstat").unlink()
    collection = run_collectors([PagingCollector(HOST, boot()), UptimeCollector(HOST)], HOST)
    paging, uptime = collection.collectors
    assert paging.reason == f"{proc}/vmstat cannot be read: No such file or directory"
    assert uptime.ok
    names = [metric.name for item in collection.resources for metric in item.metrics]
    assert names[:3] == ["system.paging.usage", "system.paging.utilization", "system.uptime"]


def test_partitions_loop_devices_and_idle_disks_are_left_out(proc):
    collector = DiskCollector(HOST, boot(), Exclusion(ServerConfig().disk_exclude_devices))
    found = values(collector)
    assert {key[1] for key in found} == {"sda", "nvme0n1"}
    assert found["system.disk.io", "sda", "read"] == 2000 * 512
    assert found["system.disk.operations", "sda", "write"] == 50
    assert found["system.disk.io_time", "nvme0n1"] == 0.25


def test_a_host_without_disks_is_no_failure(proc):
    (proc / "diskstats").write_text("")
    assert values(DiskCollector(HOST, boot(), NOTHING)) == {}


def test_loopback_and_the_interfaces_of_containers_are_left_out(proc):
    collector = NetworkCollector(HOST, boot(), Exclusion(ServerConfig().network_exclude_interfaces))
    found = values(collector)
    assert found == {
        ("system.network.io", "eth0", "receive"): 1000,
        ("system.network.io", "eth0", "transmit"): 2000,
        ("system.network.errors", "eth0", "receive"): 3,
        ("system.network.errors", "eth0", "transmit"): 5,
        ("system.network.packet.dropped", "eth0", "receive"): 4,
        ("system.network.packet.dropped", "eth0", "transmit"): 6,
        ("system.network.connection.count", "tcp", "established"): 17,
        ("system.network.connection.count", "tcp", "time_wait"): 6,
        ("system.network.connection.count", "udp"): 5,
    }


def test_an_interface_that_comes_and_goes_changes_the_points(proc):
    collector = NetworkCollector(HOST, boot(), NOTHING)
    assert ("system.network.io", "veth12a", "receive") in values(collector)
    (proc / "net/dev").write_text(NET_DEV.replace("veth12a", "veth34b"))
    after = values(collector)
    assert ("system.network.io", "veth34b", "receive") in after
    assert ("system.network.io", "veth12a", "receive") not in after


def test_connections_are_still_reported_when_every_interface_is_excluded(proc):
    found = metrics(NetworkCollector(HOST, boot(), Exclusion([".*"])))
    assert list(found) == ["system.network.connection.count"]


def test_a_kernel_without_ipv6_counts_ipv4(proc):
    (proc / "net/sockstat6").unlink()
    assert values(NetworkCollector(HOST, boot(), NOTHING))["system.network.connection.count", "udp"] == 3


def test_processes_are_the_numbers_in_proc(proc):
    assert values(ProcessCollector(HOST))["system.process.count",] == 2


def test_hidden_processes_are_a_reason_not_a_wrong_number(proc):
    (proc / "1/stat").unlink()
    (proc / "1").rmdir()
    with pytest.raises(CollectorError, match="hidepid"):
        values(ProcessCollector(HOST))


def test_uptime_is_read_with_its_fraction(proc):
    assert values(UptimeCollector(HOST)) == {("system.uptime",): 1234.56}


@pytest.mark.parametrize(
    ("collector", "file", "content", "reason"),
    [
        (lambda: CpuCollector(HOST, boot()), "stat", "cpu  1 2 3\n", "the system lists no CPU"),
        (lambda: MemoryCollector(HOST), "meminfo", "", "memory statistics cannot be understood: KeyError"),
        (lambda: MemoryCollector(HOST), "meminfo", MEMINFO.replace("1000", "0"), "the system reports no memory"),
        (lambda: PagingCollector(HOST, boot()), "meminfo", "MemTotal: 1 kB\n", "SwapTotal is missing"),
        (lambda: PagingCollector(HOST, boot()), "vmstat", "pgfault x\n", "paging statistics cannot be understood: ValueError"),
        (lambda: DiskCollector(HOST, boot(), NOTHING), "diskstats", "what is this\n", "disk statistics cannot be understood: ValueError"),
        (lambda: NetworkCollector(HOST, boot(), NOTHING), "net/sockstat", "", "TCP is missing|UDP is missing"),
        (lambda: NetworkCollector(HOST, boot(), NOTHING), "net/snmp", "Tcp: RtoMin\nTcp: 1\n", "network statistics cannot be understood"),
        (lambda: UptimeCollector(HOST), "uptime", "", "uptime cannot be understood: IndexError"),
    ],
)
def test_a_source_that_makes_no_sense_is_a_reason(proc, collector, file, content, reason):
    (proc / file).write_text(content)
    with pytest.raises(CollectorError, match=reason):
        values(collector())


def test_a_source_that_may_not_be_read_names_the_file(proc, monkeypatch):
    (proc / "uptime").unlink()
    (proc / "uptime").mkdir()  # the superuser may read every file, but no directory as one
    with pytest.raises(CollectorError, match="uptime cannot be read: Is a directory"):
        values(UptimeCollector(HOST))
    monkeypatch.setattr(psutil, "pids", _raiser(PermissionError(13, "Permission denied", "/proc")))
    with pytest.raises(CollectorError, match=r"^no permission to read /proc$"):
        values(ProcessCollector(HOST))
    monkeypatch.setattr(psutil, "pids", _raiser(psutil.AccessDenied()))
    with pytest.raises(CollectorError, match=r"^no permission to read processes$"):
        values(ProcessCollector(HOST))
    monkeypatch.setattr(psutil, "pids", _raiser(NotImplementedError()))
    with pytest.raises(CollectorError, match=r"^this system does not tell its processes$"):
        values(ProcessCollector(HOST))


def _raiser(error):
    def fail(*args, **kwargs):
        raise error

    return fail


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give up being root for a moment")
def test_an_unprivileged_user_gets_a_reason_for_the_file_it_may_not_read(monkeypatch):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        secret = Path(folder, "uptime")
        secret.write_text("1 1\n")
        secret.chmod(0o600)
        monkeypatch.setattr(psutil, "PROCFS_PATH", folder)
        os.seteuid(65534)
        try:
            collection = run_collectors([UptimeCollector(HOST), LoadCollector(HOST)], HOST)
        finally:
            os.seteuid(0)
    assert [result.reason for result in collection.collectors] == [f"no permission to read {secret}", ""]


# Where the other systems differ.


def test_a_system_that_is_not_linux_reports_what_psutil_knows_of_it(proc, monkeypatch):
    monkeypatch.setattr("connectors.server.collect.psutil", _OtherSystem())
    assert set(metrics(MemoryCollector(HOST))) == {"system.memory.usage", "system.memory.utilization", "system.memory.limit"}
    assert values(MemoryCollector(HOST))["system.memory.usage", "free"] == 600
    assert set(metrics(PagingCollector(HOST, boot()))) == {"system.paging.usage", "system.paging.utilization"}
    network = values(NetworkCollector(HOST, boot(), NOTHING))
    assert network["system.network.connection.count", "tcp", "established"] == 2
    assert network["system.network.connection.count", "udp"] == 1
    assert values(ProcessCollector(HOST))["system.process.count",] == 2
    assert values(UptimeCollector(HOST))["system.uptime",] == pytest.approx(100, abs=5)
    assert "system.disk.io_time" not in metrics(DiskCollector(HOST, boot(), NOTHING))


class _Record:
    def __init__(self, **facts):
        self.__dict__.update(facts)


class _OtherSystem:
    LINUX = False
    CONN_ESTABLISHED, CONN_TIME_WAIT, CONN_NONE = "ESTABLISHED", "TIME_WAIT", "NONE"

    virtual_memory = staticmethod(lambda: _Record(total=1000, available=600, free=10))
    swap_memory = staticmethod(lambda: _Record(used=1, free=3))
    pids = staticmethod(lambda: [4, 5])
    boot_time = staticmethod(lambda: time.time() - 100)
    net_io_counters = staticmethod(lambda **_: {})
    net_connections = staticmethod(lambda _: [_Record(status=status) for status in ("ESTABLISHED", "ESTABLISHED", "NONE", "LISTEN")])
    disk_io_counters = staticmethod(lambda **_: {"disk0": _Record(read_count=1, write_count=1, read_bytes=1, write_bytes=1)})


# Boot time and exclusions.


def test_the_boot_time_stays_the_same_until_somebody_sets_the_clock(proc):
    now, steady = [1_700_000_500.0], [500.0]
    booted = BootTime(clock=lambda: now[0], steady=lambda: steady[0])
    assert booted.nanoseconds() == 1_700_000_000_000_000_000
    (proc / "stat").write_text(STAT.replace("btime 1700000000", "btime 1700000001"))
    now[0], steady[0] = now[0] + 60.4, steady[0] + 60
    assert booted.nanoseconds() == 1_700_000_000_000_000_000
    (proc / "stat").write_text(STAT.replace("btime 1700000000", "btime 1700003600"))
    now[0] += 3600
    assert booted.nanoseconds() == 1_700_003_600_000_000_000


def test_a_boot_time_that_is_hidden_or_in_the_future_is_mended(proc):
    (proc / "stat").write_text("cpu 1\n")
    assert boot().nanoseconds() == 1_700_000_000_000_000_000
    (proc / "stat").write_text("btime 1900000000\n")
    assert boot().nanoseconds() == 1_700_000_500_000_000_000
    assert BootTime(steady=None).nanoseconds() <= time.time_ns()


def test_an_exclusion_matches_whole_names_and_forgets_names_that_went():
    exclusion = Exclusion([r"veth.*", r"lo"])
    assert "lo" in exclusion
    assert "lower" not in exclusion
    assert all(f"veth{number}" in exclusion for number in range(3 * Exclusion._LARGEST_MEMORY))
    assert len(exclusion._known) <= Exclusion._LARGEST_MEMORY
