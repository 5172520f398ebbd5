"""The server's collectors against the kernel of this machine."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import psutil
import pytest
from small_proc import HOST, NOTHING, boot, values

from connectors.core.collector import run_collectors
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
from connectors.server.filesystems import FilesystemCollector
from connectors.server.host_collector import Exclusion

pytestmark = pytest.mark.skipif(not psutil.LINUX, reason="reads /proc to compare")


def real_proc(name: str) -> str:
    return Path("/proc", name).read_text(encoding="ascii")


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
