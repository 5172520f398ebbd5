"""A file system with no room left: memory takes over, and what it cannot hold is counted."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from spool_books import MB, Clock

from connectors.core.delivery import Outbox
from connectors.core.errors import SpoolFullError
from connectors.core.spool import Spool

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def clock():
    return Clock()


FULL_DISK = """
import resource, sys
from pathlib import Path
from connectors.core.delivery import Outbox
from connectors.core.errors import SpoolFullError
from connectors.core.spool import Spool
path = Path(sys.argv[1])
def limit(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
made = Spool(path, 64 << 20, 1e9, lambda: 1000.0)
for _ in range(10): made.append("metrics", bytes(50_000), 10)
limit(path.with_name(path.name + "-wal").stat().st_size + 10_000)
try: made.append("metrics", bytes(90_000), 10); raise SystemExit("not full")
except SpoolFullError as exc: print("full:", exc.code, exc.retryable)
made.close()
limit(150_000)
outbox = Outbox(lambda: Spool(path, 64 << 20, 1e9, lambda: 1000.0), lambda: 1000.0, memory_bytes=250_000)
for _ in range(5): outbox.append("metrics", bytes(90_000), 7)
print("reason:", bool(outbox.reason))
s = outbox.statistics()
print("books:", s.ledger.produced["metrics"], s.ledger.dropped_of("metrics"), s.ledger.waiting("metrics"))
for batch in outbox.peek()[:3]: outbox.acknowledge(batch.seq)
print("after sending three:", outbox.statistics().ledger.sent["metrics"], len(outbox.peek()))
limit(resource.RLIM_INFINITY)
print("recovered:", outbox.recover(), repr(outbox.reason))
s = outbox.statistics()
dropped = {(a, str(b)): n for (a, b), n in s.ledger.dropped.items()}
print("books:", s.ledger.produced["metrics"], s.ledger.sent["metrics"], dropped, s.ledger.waiting("metrics"))
print("gaps:", [(str(g.reason), g.items) for g in outbox.gaps()])
outbox.close()
"""


def test_a_full_disk_turns_to_memory_and_what_memory_cannot_hold_is_counted(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "spool.db")], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "full: spool-full True"
    assert lines[1] == "reason: True"
    assert lines[2] == "books: 135 14 121"
    assert lines[4] == "recovered: True ''"
    assert lines[5].startswith("books: 135 30 {('metrics', 'disk-full'): 14} 91")
    assert lines[6] == "gaps: [('disk-full', 14)]"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_a_really_full_file_system_is_survived(tmp_path, clock):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path)], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        outbox = Outbox(lambda: Spool(tmp_path / "spool.db", 64 * MB, 3600, clock), clock, memory_bytes=300_000)
        for _ in range(120):
            outbox.append("metrics", os.urandom(100_000), 1)
        assert "full" in outbox.reason
        ledger = outbox.statistics().ledger
        assert ledger.produced["metrics"] == 120
        assert ledger.waiting("metrics") + ledger.dropped_of("metrics") == 120
        sent = 0
        for _ in range(100):
            if not (batches := outbox.peek()):
                break
            for batch in batches:
                outbox.acknowledge(batch.seq)
                sent += 1
        ledger = outbox.statistics().ledger
        assert outbox.recover()
        assert outbox.reason == ""
        assert ledger.sent["metrics"] == sent
        assert ledger.produced["metrics"] == sent + ledger.dropped_of("metrics")
        outbox.close()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_disk_that_is_full_from_the_start_is_tried_again(tmp_path, clock):
    broken = [True]

    def open_spool():
        if broken[0]:
            raise SpoolFullError("no room")
        return Spool(tmp_path / "spool.db", 8 * MB, 3600, clock)

    outbox = Outbox(open_spool, clock)
    outbox.append("metrics", b"x", 4)
    assert outbox.reason == "no room"
    assert outbox.gaps() == []
    outbox.settle_gaps(["none"])
    outbox.acknowledge(5)
    assert outbox.max_payload > 100_000
    assert [b.payload for b in outbox.peek()] == [b"x"]
    outbox.acknowledge(-99)
    outbox.reject(outbox.peek()[0].seq)
    outbox.append("metrics", b"y", 3)
    broken[0] = False
    assert [b.payload for b in outbox.peek()] == [b"y"]
    assert outbox.reason == ""
    ledger = outbox.statistics().ledger
    assert (ledger.produced["metrics"], ledger.dropped["metrics", "rejected"], ledger.waiting("metrics")) == (7, 4, 3)
    outbox.close()


def test_the_limit_on_open_files_is_not_in_the_way():
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 50
