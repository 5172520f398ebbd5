"""Which filesystems are reported, and what those do that refuse or hang."""

from __future__ import annotations

import threading

import psutil
import pytest
from small_proc import HOST, metrics, write_small_proc

from connectors.core.collector import run_collectors
from connectors.core.errors import CollectorError
from connectors.server.config import ServerConfig
from connectors.server.filesystems import FilesystemCollector, measure_filesystem
from connectors.server.host_collector import Exclusion

pytestmark = pytest.mark.skipif(not psutil.LINUX, reason="reads /proc to compare")


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """A small /proc of a host with two CPUs, read in place of the real one."""
    root = write_small_proc(tmp_path / "proc")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(root))
    return root


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
