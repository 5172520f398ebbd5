"""The kernel's messages: what is an alarm, where they come from, and that each is told once."""

from __future__ import annotations

import json
import os
import time

import pytest
from watched_host import Host, Remembered, names

from connectors.core.telemetry import Severity
from connectors.server.changes import kernel_log
from connectors.server.changes.kernel_alarms import TOGETHER, Alarms
from connectors.server.changes.kernel_log import HINTS, KernelLogWatcher, Message, parse_record

CONTAINER = "ab" * 32
MEMCG = f"oom_memcg=/docker/{CONTAINER},task_memcg=/docker/{CONTAINER},task=python,pid=4711,uid=33"
SIZES = "total-vm:60000kB, anon-rss:48000kB, file-rss:120kB, shmem-rss:0kB, UID:33 pgtables:140kB oom_score_adj:0"
OOM = (
    "python invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
    f"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,{MEMCG}",
    f"Memory cgroup out of memory: Killed process 4711 (my (odd) prog) {SIZES}",
)


def take(alarms, *texts, now=0.0):
    found = [alarms.take(Message(f"id{number}", text, 5), now) for number, text in enumerate(texts) if any(hint in text for hint in HINTS)]
    return [change for change in found if change]


def test_an_oom_kill_is_told_with_program_container_and_memory():
    (kill,) = take(Alarms(), *OOM)
    assert kill.name == "oom_kill"
    assert kill.severity is Severity.ERROR
    assert kill.identity == "id2"
    assert kill.attributes["process.executable.name"] == "my (odd) prog"
    assert kill.attributes["process.pid"] == 4711
    assert kill.attributes["container.id"] == CONTAINER
    assert kill.attributes["irca.oom.constraint"] == "memcg"
    assert kill.attributes["irca.oom.limited_cgroup"] == f"/docker/{CONTAINER}"
    assert kill.attributes["irca.oom.memory.anonymous"] == 48_000 * 1024
    assert kill.attributes["user.id"] == "33"


def test_an_oom_kill_of_the_whole_host_and_of_older_kernels_is_understood():
    context = (
        "oom-kill:constraint=CONSTRAINT_NONE,cpuset=/,mems_allowed=0,global_oom,task_memcg=/system.slice/db.service,task=db,pid=9,uid=0"
    )
    (kill,) = take(Alarms(), context, "Out of memory: Killed process 9 (db) total-vm:1kB, anon-rss:1kB")
    assert kill.attributes["irca.oom.constraint"] == "none"
    assert kill.attributes["irca.oom.cgroup"] == "/system.slice/db.service"
    assert "irca.oom.limited_cgroup" not in kill.attributes
    (kill,) = take(Alarms(), "Out of memory (oom_kill_allocating_task): Kill process 9 (db) score 5 or sacrifice child")
    assert kill.attributes["process.pid"] == 9


@pytest.mark.parametrize(
    ("text", "kind", "subject"),
    [
        ("mce: [Hardware Error]: Machine check events logged", "machine_check", None),
        ("EDAC MC0: 1 CE memory read error on CPU_SrcID#0", "memory_error", "MC0"),
        ("INFO: task kworker/u8:1:77 blocked for more than 120 seconds.", "hung_task", "kworker/u8:1"),
        ("watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [x:1]", "lockup", "soft lockup"),
        ("rcu: INFO: rcu_sched self-detected stall on CPU", "lockup", None),
        ("blk_update_request: I/O error, dev sda, sector 1 op 0x0", "io_error", "sda"),
        ("Buffer I/O error on dev dm-0, logical block 1", "io_error", "dm-0"),
        ("Buffer I/O error on device sdb1, logical block 1", "io_error", "sdb1"),
        ("critical medium error, dev nvme0n1, sector 5", "io_error", "nvme0n1"),
        ("EXT4-fs error (device sda1): ext4_lookup:1785: inode #2: comm ls: deleted inode", "filesystem_error", "sda1"),
        ("EXT4-fs (sda1): Remounting filesystem read-only", "read_only_remount", "sda1"),
        ("XFS (dm-1): Corruption detected. Unmount and run xfs_repair", "filesystem_error", "dm-1"),
        ("BTRFS error (device sdb): bdev /dev/sdb errs: wr 1", "filesystem_error", "sdb"),
        ("app[123]: segfault at 0 ip 0000 sp 0000 error 4 in app[1+2]", "segfault", "app"),
        ("traps: app[123] general protection fault ip:1 sp:2 error:0", "segfault", "app"),
        ("BUG: kernel NULL pointer dereference, address: 0000", "kernel_bug", None),
        ("Kernel panic - not syncing: x", "kernel_bug", None),
        ("swapper: page allocation failure: order:5, mode:0x0", "page_allocation", "swapper"),
        ("nf_conntrack: nf_conntrack: table full, dropping packet", "conntrack_full", None),
        ("TCP: request_sock_TCP: Possible SYN flooding on port 0.0.0.0:80. Sending cookies.", "syn_flood", "0.0.0.0:80"),
        ("e1000e: eth0 NIC Link is Down", "link_down", "eth0"),
        ("igb 0000:01:00.0 eth1: igb: eth1 NIC Link is Down", "link_down", "eth1"),
        ("tg3 0000:02:00.0 eth2: Link is down", "link_down", "eth2"),
        ("CPU1: Core temperature above threshold, cpu clock throttled", "thermal", "CPU1"),
    ],
)
def test_alarms_are_recognised(text, kind, subject):
    (alarm,) = take(Alarms(), text)
    assert (alarm.name, alarm.attributes["irca.kernel.alarm"]) == ("kernel.alarm", kind)
    if subject:
        assert alarm.attributes["irca.kernel.alarm.subject"] == subject


@pytest.mark.parametrize(
    "text",
    [
        "EXT4-fs (sda1): mounted filesystem with ordered data mode",
        "eth0: Link is up at 1000 Mbps",
        "veth1: entered promiscuous mode",
        "Memory: 24000K available",
        "ACPI: no error",
        "XFS (dm-1): Ending clean mount",
    ],
)
def test_ordinary_messages_are_no_alarms(text):
    assert take(Alarms(), text) == []


def test_a_flood_of_alarms_is_one_and_then_a_number():
    alarms = Alarms()
    texts = [f"app[{n}]: segfault at 0 ip 0 sp 0 error 4" for n in range(50)]
    assert len(take(alarms, *texts, "other[1]: segfault at 0", now=10.0)) == 2
    assert list(alarms.settle(10.0 + TOGETHER - 1)) == []
    (rest,) = alarms.settle(10.0 + TOGETHER)
    assert rest.attributes["irca.kernel.alarm.count"] == 49
    assert rest.identity == "id49"
    assert list(alarms.settle(10.0 + 2 * TOGETHER)) == []
    assert len(take(alarms, texts[0], now=10.0 + 3 * TOGETHER)) == 1


def test_very_many_subjects_are_counted_together():
    alarms = Alarms()
    told = take(alarms, *[f"app{n}[1]: segfault at 0" for n in range(500)])
    assert len(told) == 200
    assert sum(change.attributes["irca.kernel.alarm.count"] for change in alarms.settle(TOGETHER)) == 300


def test_records_of_the_ring_are_read_and_what_is_none_is_not():
    assert parse_record(b"6,1234,5678,-;a\\x0abc \\xc3\\xbc \\xzz\n SUBSYSTEM=x\n") == (1234, 6, 5678, "a\nbc ü \\xzz")
    assert parse_record(b"nonsense") is None
    assert parse_record(b"") is None


# Where the messages come from


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path)
    host.write("/proc/sys/kernel/random/boot_id", "boot-1\n")
    host.write("/proc/vmstat", "nr_free_pages 1\noom_kill 3\nother 5\n")
    return host


class Ring:
    """A stand-in for ``/dev/kmsg``: each descriptor reads every record from the oldest on, or from the end after a seek."""

    def __init__(self, monkeypatch):
        self.records = []
        self.next = None
        self.failures = []
        read, seek = os.read, os.lseek

        def read_record(descriptor, size):
            if self.next is None or size != kernel_log._RECORD:
                return read(descriptor, size)
            if self.failures:
                raise self.failures.pop()
            if self.next >= len(self.records):
                raise BlockingIOError
            self.next += 1
            return self.records[self.next - 1]

        def to_end(descriptor, offset, whence):
            if whence == os.SEEK_END:
                self.next = len(self.records)
                return 0
            return seek(descriptor, offset, whence)

        monkeypatch.setattr(kernel_log.os, "read", read_record)
        monkeypatch.setattr(kernel_log.os, "lseek", to_end)

    def write(self, text, priority=6):
        self.records.append(f"{priority},{len(self.records)},1000,-;{text}\n".encode())

    def reopen(self):
        self.next = 0


def test_the_ring_is_followed_and_after_a_restart_caught_up_with(host, monkeypatch):
    host.write("/dev/kmsg", "")
    ring = Ring(monkeypatch)
    ring.write("old[1]: segfault at 0")
    memory, watch = Remembered(), KernelLogWatcher(host.root)
    ring.reopen()
    assert memory.take(watch.look(memory)) == []
    for text in OOM:
        ring.write(text)
    ring.write("forged[1]: segfault at 0", priority=14)  # written by a program
    ring.failures = [OSError(32, "overwritten"), OSError(22, "too long")]
    (kill,) = memory.take(watch.look(memory))
    assert kill.identity == "boot-1 3"
    assert watch.look(memory) is None
    watch.close()

    ring.write("app[1]: segfault at 0")
    ring.reopen()
    again = KernelLogWatcher(host.root)
    (alarm,) = memory.take(again.look(memory))
    assert alarm.attributes["irca.kernel.alarm.subject"] == "app"
    again.close()

    host.write("/proc/sys/kernel/random/boot_id", "boot-2\n")
    ring.records = []
    ring.write("fresh[1]: segfault at 0")
    ring.reopen()
    (alarm,) = memory.take(KernelLogWatcher(host.root).look(memory))
    assert alarm.identity == "boot-2 0"


def test_a_ring_that_fails_is_a_failure(host, monkeypatch):
    host.write("/dev/kmsg", "")
    ring = Ring(monkeypatch)
    ring.reopen()
    ring.failures = [OSError(5, "broken")]
    with pytest.raises(OSError, match="broken"):
        KernelLogWatcher(host.root).look(Remembered())


def journal_entry(number, text):
    return json.dumps(
        {"__CURSOR": f"c{number}", "__REALTIME_TIMESTAMP": str(1_700_000_000_000_000 + number), "MESSAGE": text, "PRIORITY": "3"}
    )


def test_the_journal_is_asked_when_it_was_written_to(host, monkeypatch):
    journal = "/var/log/journal/machine/system.journal"
    host.write(journal, "x")
    asked, entries = [], []
    now = [100.0]
    monkeypatch.setattr(kernel_log.time, "monotonic", lambda: now[0])

    def answer(argv):
        asked.append(argv)
        return "\n".join(entries).encode()

    monkeypatch.setattr(kernel_log, "output_of", answer)
    memory, watch = Remembered(), KernelLogWatcher(host.root)
    entries[:] = [journal_entry(1, "old[1]: segfault at 0")]
    assert memory.take(watch.look(memory)) == []
    assert watch.look(memory) is None
    entries[:] = [journal_entry(2, text) for text in OOM] + [journal_entry(3, list(b"app[1]: segfault at 0")), "bad", "{}"]
    host.write(journal, "xy")
    assert watch.look(memory) is None  # too soon
    now[0] += 31
    kill, fault = memory.take(watch.look(memory))
    assert names([kill, fault]) == ["oom_kill", "kernel.alarm"]
    assert fault.time_unix_nano == 1_700_000_000_000_003_000
    now[0] += 31
    assert watch.look(memory) is None
    assert len(asked) == 2
    assert asked[1][asked[1].index("--after-cursor") + 1] == "c1"


def test_an_empty_journal_is_read_from_the_first_look_on(host, monkeypatch):
    journal = "/run/log/journal/machine/system.journal"
    host.write(journal, "x")
    asked = []
    now = [100.0]
    monkeypatch.setattr(kernel_log.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(kernel_log, "output_of", lambda argv: asked.append(argv) or b"")
    memory, watch = Remembered(), KernelLogWatcher(host.root)
    memory.take(watch.look(memory))
    host.write(journal, "xy")
    now[0] += 31
    memory.take(watch.look(memory))
    assert asked[1][asked[1].index("--since") + 1].startswith("@")
    assert asked[1][-1] == str(kernel_log.MOST_AT_ONCE)


def test_with_no_log_at_all_oom_kills_are_counted_and_that_is_a_note(host):
    memory, watch = Remembered(), KernelLogWatcher(host.root)
    assert memory.take(watch.look(memory)) == []
    assert "systemd-journal" in watch.note
    assert watch.look(memory) is None
    host.write("/proc/vmstat", "nr_free_pages 1\noom_kill 5\n")
    (kill,) = memory.take(KernelLogWatcher(host.root).look(memory))
    assert kill.attributes == {"irca.oom.count": 2}
    host.write("/proc/sys/kernel/random/boot_id", "boot-2\n")
    host.write("/proc/vmstat", "nr_free_pages 1\noom_kill 9\n")
    assert memory.take(KernelLogWatcher(host.root).look(memory)) == []
    host.write("/proc/vmstat", "nr_free_pages 1\n")
    assert memory.take(KernelLogWatcher(host.root).look(memory)) == []
    (host.path / "proc/vmstat").unlink()
    memory.take(KernelLogWatcher(host.root).look(memory))


@pytest.mark.skipif(not os.access("/dev/kmsg", os.R_OK), reason="/dev/kmsg is not readable here")
def test_the_real_ring_is_read_without_waiting():
    memory, watch = Remembered(), KernelLogWatcher()
    begun = time.monotonic()
    try:
        memory.take(watch.look(memory))
        watch.look(memory)
    finally:
        watch.close()
    assert json.loads(memory.stamp)["boot"]
    assert time.monotonic() - begun < 60
