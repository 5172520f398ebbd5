from __future__ import annotations

import math
import os
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from connectors.core.collector import run_collectors
from connectors.core.errors import CollectorError
from connectors.core.telemetry import Kind, encode_metrics
from connectors.server.collect import (
    CpuCollector,
    DiskCollector,
    LoadCollector,
    MemoryCollector,
    NetworkCollector,
    PagingCollector,
    ProcessCollector,
    UptimeCollector,
    make_collectors,
)
from connectors.server.config import COLLECTORS, ServerConfig
from connectors.server.filesystems import FilesystemCollector, measure_filesystem
from connectors.server.host_collector import BootTime, Exclusion

pytestmark = pytest.mark.skipif(not psutil.LINUX, reason="reads /proc to compare")

HOST = {"host.id": "h1"}
NOTHING = Exclusion(())

STAT = """\
cpu  300 30 150 3000 60 6 12 3 0 0
cpu0 100 10 50 1000 20 2 4 1 0 0
cpu1 200 20 100 2000 40 4 8 2 0 0
intr 1
btime 1700000000
processes 99
"""
MEMINFO = """\
MemTotal:        1000 kB
MemFree:          200 kB
MemAvailable:     600 kB
Buffers:           50 kB
Cached:           300 kB
SReclaimable:      10 kB
Shmem:              5 kB
Active:           100 kB
Inactive:         100 kB
Slab:              20 kB
SwapTotal:        400 kB
SwapFree:         300 kB
"""
DISKSTATS = """\
   7       0 loop0 5 0 10 1 0 0 0 0 0 1 1 0 0 0 0 0 0
   8       0 sda 100 1 2000 30 50 2 4000 60 0 1500 90 0 0 0 0 0 0
   8       1 sda1 90 1 1900 30 50 2 4000 60 0 1400 90 0 0 0 0 0 0
   8      16 sdb 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
 259       0 nvme0n1 7 0 8 1 3 0 16 1 0 250 1 0 0 0 0 0 0
"""
NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0:    1000      10    3    4    0     0          0         0     2000      20    5    6    0     0       0          0
veth12a:     50       1    0    0    0     0          0         0       50       1    0    0    0     0       0          0
"""
SNMP = """\
Ip: Forwarding DefaultTTL
Ip: 1 64
Tcp: RtoAlgorithm CurrEstab InSegs
Tcp: 1 17 300
"""
FILES = {
    "stat": STAT,
    "meminfo": MEMINFO,
    "vmstat": "nr_free_pages 1\npgpgin 5\npswpin 11\npswpout 22\npgfault 1000\npgmajfault 40\n",
    "diskstats": DISKSTATS,
    "uptime": "1234.56 2000.00\n",
    "net/dev": NET_DEV,
    "net/snmp": SNMP,
    "net/sockstat": "sockets: used 9\nTCP: inuse 4 orphan 0 tw 6 alloc 5 mem 0\nUDP: inuse 3 mem 0\n",
    "net/sockstat6": "TCP6: inuse 2\nUDP6: inuse 2\n",
    "self/mounts": "proc /proc proc rw 0 0\n",
    "1/stat": "",
    "27/stat": "",
    "self/stat": "",
}


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """A small /proc of a host with two CPUs, read in place of the real one."""
    root = tmp_path / "proc"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(root))
    return root


def boot(seconds: float = 1_700_000_000.0) -> BootTime:
    return BootTime(clock=lambda: seconds + 500, steady=lambda: 500.0)


def metrics(collector) -> dict:
    """The collector's metrics by name."""
    return {metric.name: metric for item in collector.collect() for metric in item.metrics}


def values(collector) -> dict:
    """Every point: name and attribute values, and its value."""
    return {(name, *point.attributes.values()): point.value for name, metric in metrics(collector).items() for point in metric.points}


def real_proc(name: str) -> str:
    return Path("/proc", name).read_text(encoding="ascii")


# Against this machine.


def cpu_ticks() -> list[list[int]]:
    return [[int(w) for w in line.split()[1:]] for line in real_proc("stat").splitlines() if line.startswith("cpu") and line[3] != " "]


def test_cpu_times_are_those_of_the_kernel():
    before, found, after = cpu_ticks(), values(CpuCollector(HOST, boot())), cpu_ticks()
    hertz = os.sysconf("SC_CLK_TCK")
    columns = {"user": [0], "nice": [1], "system": [2], "idle": [3], "iowait": [4], "interrupt": [5, 6], "steal": [7]}
    assert found["system.cpu.logical.count",] == len(before)
    for number in range(len(before)):
        for mode, parts in columns.items():
            low, high = (sum(ticks[number][part] for part in parts) / hertz for ticks in (before, after))
            value = found["system.cpu.time", mode, number]
            assert low - 0.02 <= value <= high + 0.02  # iowait and idle may step back by a tick


def test_memory_is_what_meminfo_says():
    found = values(MemoryCollector(HOST))
    facts = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in real_proc("meminfo").splitlines()}
    total = facts["MemTotal"]
    assert found["system.memory.limit",] == total
    assert found["system.memory.linux.available",] == pytest.approx(facts["MemAvailable"], rel=0.2)
    assert found["system.memory.usage", "used"] == total - found["system.memory.linux.available",]
    assert found["system.memory.usage", "free"] == pytest.approx(facts["MemFree"], rel=0.2)
    for state in ("used", "free", "buffers", "cached"):
        assert found["system.memory.utilization", state] == pytest.approx(found["system.memory.usage", state] / total)


def test_page_faults_are_those_of_vmstat():
    def faults() -> tuple[int, int]:
        facts = dict(line.split() for line in real_proc("vmstat").splitlines())
        return int(facts["pgfault"]), int(facts["pgmajfault"])

    before, found, after = faults(), values(PagingCollector(HOST, boot())), faults()
    assert before[0] <= found["system.paging.faults", "major"] + found["system.paging.faults", "minor"] <= after[0]
    assert before[1] <= found["system.paging.faults", "major"] <= after[1]


def test_disks_are_those_of_diskstats():
    def disks() -> dict[str, list[int]]:
        return {line.split()[2]: [int(word) for word in line.split()[3:14]] for line in real_proc("diskstats").splitlines()}

    before, found, after = disks(), values(DiskCollector(HOST, boot(), NOTHING)), disks()
    used = [name for name, numbers in before.items() if numbers[0] or numbers[4]]
    assert {key[1] for key in found} >= set(used)
    for name in used:
        for metric, direction, column, unit in (("io", "read", 2, 512), ("io", "write", 6, 512), ("operations", "read", 0, 1)):
            value = found[f"system.disk.{metric}", name, direction]
            assert before[name][column] * unit <= value <= after[name][column] * unit
        assert before[name][9] / 1000 <= found["system.disk.io_time", name] <= after[name][9] / 1000


def test_interfaces_are_those_of_net_dev():
    def cards() -> dict[str, list[int]]:
        lines = [line.split(":") for line in real_proc("net/dev").splitlines()[2:]]
        return {name.strip(): [int(word) for word in rest.split()] for name, rest in lines}

    before, found, after = cards(), values(NetworkCollector(HOST, boot(), NOTHING)), cards()
    for name in before:
        for metric, direction, column in (
            ("io", "receive", 0),
            ("io", "transmit", 8),
            ("errors", "receive", 2),
            ("packet.dropped", "transmit", 11),
        ):
            assert before[name][column] <= found[f"system.network.{metric}", name, direction] <= after[name][column]


def test_processes_uptime_and_load_are_the_kernels():
    def processes() -> int:
        return sum(entry.name.isdigit() for entry in Path("/proc").iterdir())

    before, found, after = processes(), values(ProcessCollector(HOST)), processes()
    assert min(before, after) - 50 <= found["system.process.count",] <= max(before, after) + 50  # neighbours come and go
    low, uptime = float(real_proc("uptime").split()[0]), values(UptimeCollector(HOST))["system.uptime",]
    assert low <= uptime <= float(real_proc("uptime").split()[0])
    load = values(LoadCollector(HOST))
    assert load["irca.system.load.15m",] == pytest.approx(float(real_proc("loadavg").split()[2]), abs=0.2)


def test_the_root_filesystem_is_what_statvfs_says():
    config = ServerConfig()
    collector = FilesystemCollector(HOST, Exclusion(config.filesystem_exclude_types), Exclusion(config.filesystem_exclude_mounts))
    root = {key[0] + key[-1]: value for key, value in values(collector).items() if key[2] == "/"}
    found = os.statvfs("/")
    whole = (found.f_blocks - found.f_bfree + max(found.f_bavail, found.f_bfree)) * found.f_frsize
    assert root["system.filesystem.limitrw"] == pytest.approx(whole, rel=0.01)
    states = [root[f"system.filesystem.usage{state}"] for state in ("used", "free", "reserved")]
    assert sum(states) == root["system.filesystem.limitrw"]
    assert root["system.filesystem.utilizationrw"] == pytest.approx(states[0] / (states[0] + states[1]))


def test_every_collector_works_on_this_machine_and_the_layout_stays_the_same():
    collectors = make_collectors(ServerConfig(), HOST)
    assert [collector.name for collector in collectors] == list(COLLECTORS)
    first = run_collectors(collectors, HOST)
    time.sleep(0.05)  # the kernel counts CPU time in hundredths of a second
    second, third = run_collectors(collectors, HOST), run_collectors(collectors, HOST)
    assert [result.reason for result in first.collectors] == [""] * len(COLLECTORS)

    def layout(collection):
        return [
            (
                item.resource,
                metric.name,
                metric.unit,
                metric.kind,
                metric.start_time_unix_nano,
                [point.attributes for point in metric.points],
            )
            for item in collection.resources
            for metric in item.metrics
        ]

    assert layout(second) == layout(third)
    assert [row for row in layout(second) if row[1] != "system.cpu.utilization"] == layout(first)
    assert len(encode_metrics(second)) == len(encode_metrics(third))


def test_every_value_is_a_finite_number_and_every_counter_starts_at_boot():
    collection = run_collectors(make_collectors(ServerConfig(), HOST), HOST)
    booted = int(psutil.boot_time())
    for item in collection.resources:
        for metric in item.metrics:
            assert metric.unit
            assert (metric.start_time_unix_nano > 0) == (metric.kind is Kind.COUNTER)
            if metric.kind is Kind.COUNTER:
                assert abs(metric.start_time_unix_nano / 1e9 - booted) <= 1
            for point in metric.points:
                assert math.isfinite(point.value)
                assert point.value >= 0


# Against a small /proc.


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


# Filesystems.

MOUNTS = """\
proc /proc proc rw 0 0
/dev/sda1 / ext4 rw,relatime 0 0
tmpfs /run tmpfs rw 0 0
tmpfs /run/user/0 tmpfs rw 0 0
/dev/sdb1 /data xfs ro 0 0
/dev/sda1 /var/lib/docker ext4 rw 0 0
overlay /var/lib/docker/overlay2/abc/merged overlay rw 0 0
tmpfs /tmp tmpfs rw 0 0
server:/export /mnt/nfs nfs4 rw 0 0
host /mnt/with\\040space fuse.sshfs rw 0 0
"""


def filesystems(measure, types=(), mounts=(), timeout=0.2) -> FilesystemCollector:
    config = ServerConfig()
    return FilesystemCollector(
        HOST,
        Exclusion(types or config.filesystem_exclude_types),
        Exclusion(mounts or config.filesystem_exclude_mounts),
        timeout=timeout,
        measure=measure,
    )


def mountpoints(collector) -> list[str]:
    found = []
    try:
        for item in collector.collect():
            found += [point.attributes["system.filesystem.mountpoint"] for point in item.metrics[2].points]
    except CollectorError:
        pass
    return found


def test_pseudo_network_and_container_filesystems_and_second_mounts_are_left_out(proc):
    (proc / "self/mounts").write_text(MOUNTS)
    collector = filesystems(lambda _: (10, 80, 10))
    assert mountpoints(collector) == ["/", "/run", "/data", "/tmp"]
    found = metrics(collector)
    assert found["system.filesystem.utilization"].points[0].value == pytest.approx(10 / 90)
    assert found["system.filesystem.usage"].points[6].attributes == {
        "system.device": "/dev/sdb1",
        "system.filesystem.mountpoint": "/data",
        "system.filesystem.type": "xfs",
        "system.filesystem.mode": "ro",
        "system.filesystem.state": "used",
    }


def test_the_root_of_a_container_is_reported_whatever_its_type(proc):
    (proc / "self/mounts").write_text("overlay / overlay rw 0 0\nproc /proc proc rw 0 0\n")
    assert mountpoints(filesystems(lambda _: (1, 1, 0))) == ["/"]


def test_the_mount_table_is_looked_at_anew_when_it_changes(proc):
    (proc / "self/mounts").write_text("/dev/sda1 / ext4 rw 0 0\n")
    collector = filesystems(lambda _: (1, 1, 0))
    assert mountpoints(collector) == ["/"]
    (proc / "self/mounts").write_text("/dev/sda1 / ext4 rw 0 0\n/dev/sdb1 /data ext4 rw 0 0\n")
    assert mountpoints(collector) == ["/", "/data"]
    (proc / "self/mounts").write_text("/dev/sda1 / ext4 rw 0 0\n/dev/sdb1 /data ext4 rw 0 0\nproc /data proc rw 0 0\n")
    assert mountpoints(collector) == ["/"]


def test_a_filesystem_without_size_is_left_out_and_a_full_one_is_full(proc):
    (proc / "self/mounts").write_text("/dev/sda1 / ext4 rw 0 0\n/dev/sdb1 /data ext4 rw 0 0\n")
    found = metrics(filesystems(lambda name: (0, 0, 0) if name == "/" else (0, 0, 7)))
    assert [point.value for point in found["system.filesystem.utilization"].points] == [1.0]
    (proc / "self/mounts").write_text("proc /proc proc rw 0 0\n")
    assert metrics(filesystems(lambda _: (1, 1, 1))) == {}


def test_a_filesystem_that_refuses_is_named_and_the_others_are_reported(proc):
    (proc / "self/mounts").write_text("".join(f"/dev/sd{letter} /{letter} ext4 rw 0 0\n" for letter in "abcdef"))

    def measure(mountpoint):
        if mountpoint != "/c":
            raise PermissionError(13, "Permission denied")
        return 1, 1, 0

    collection = run_collectors([filesystems(measure)], HOST)
    assert collection.collectors[0].reason.startswith("/a: Permission denied; /b: Permission denied; /d: Permission denied and 2 more (")
    assert [point.value for point in collection.resources[0].metrics[2].points] == [2]


def test_a_stale_network_filesystem_blocks_nothing_and_is_asked_once_until_it_answers(proc):
    (proc / "self/mounts").write_text(MOUNTS)
    back, asked = threading.Event(), []

    def measure(mountpoint):
        if mountpoint == "/mnt/nfs":
            asked.append(mountpoint)
            back.wait(30)
        return 1, 1, 0

    collector = filesystems(measure, types=["proc", "overlay"])
    try:
        for _ in range(3):
            collection = run_collectors([collector], HOST)
            assert collection.collectors[0].reason.startswith("/mnt/nfs: no answer for")
            found = [point.attributes["system.filesystem.mountpoint"] for point in collection.resources[0].metrics[2].points]
            assert found == ["/", "/run", "/data", "/tmp", "/mnt/with space"]
        assert len(asked) == 1
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith("statvfs")] == ["statvfs /mnt/nfs"]
    finally:
        back.set()
    for thread in threading.enumerate():
        if thread.name == "statvfs /mnt/nfs":
            thread.join(10)
    assert "/mnt/nfs" in mountpoints(collector)


def test_a_network_filesystem_that_refuses_is_named(proc):
    (proc / "self/mounts").write_text("server:/export /mnt/nfs nfs4 rw 0 0\n")

    def measure(_):
        raise OSError(116, "Stale file handle")

    with pytest.raises(CollectorError, match=r"^/mnt/nfs: Stale file handle"):
        list(filesystems(measure, types=["proc"]).collect())


def test_a_mount_point_that_is_gone_is_an_error():
    with pytest.raises(FileNotFoundError):
        measure_filesystem("/no/such/place")
