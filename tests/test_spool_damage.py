"""Killed processes, corrupt files and flipped bits: collection goes on and the books balance."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from spool_books import MB, Clock, assert_balanced, books

from connectors.core.errors import StateError
from connectors.core.spool import Spool

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def clock():
    return Clock()


PRODUCER = """
import random, sys
from pathlib import Path
from connectors.core.spool import Spool
rng = random.Random(int(sys.argv[2]))
clock = [1000.0]
spool = Spool(Path(sys.argv[1]), 1_500_000, 500, lambda: clock[0])
print("open", flush=True)
while True:
    clock[0] += rng.random() * 20
    items = rng.randrange(1, 50)
    spool.append(rng.choice(["metrics", "logs"]), rng.randbytes(rng.choice([10, 4000, 90_000])), items)
    print("produced", items, flush=True)
    if rng.random() < 0.4:
        for batch in spool.peek(limit=rng.randrange(1, 4)):
            if rng.random() < 0.1:
                spool.reject(batch.seq)
            else:
                spool.acknowledge(batch.seq, rng.choice([0, 0, 0, 1]))
    if rng.random() < 0.1:
        spool.settle_gaps([gap.id for gap in spool.gaps()])
"""


def test_kill_minus_nine_loses_nothing_that_was_counted(tmp_path):
    for seed in range(20):
        path = tmp_path / f"{seed}.db"
        rng = random.Random(seed)
        acknowledged = 0
        for _ in range(2):
            process = subprocess.Popen([sys.executable, "-c", PRODUCER, str(path), str(seed)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            for _ in range(rng.randrange(1, 60)):
                acknowledged += int(process.stdout.readline().split()[1])
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().splitlines()
            acknowledged += sum(int(line.split()[1]) for line in rest if len(line.split()) == 2)
            process.stdout.close()
            process.wait()
        spool = Spool(path, 1_500_000, 1e9, Clock())
        produced = sum(spool.statistics().ledger.produced.values())
        assert acknowledged <= produced <= acknowledged + 2 * 50, "at most the append under way at each kill is not yet told"
        assert_balanced(spool)
        assert "corrupt" not in {reason for _, reason in spool.statistics().ledger.dropped}
        spool.close()


def test_a_corrupt_spool_is_quarantined_and_collection_goes_on(tmp_path, clock):
    path = tmp_path / "spool.db"
    path.write_bytes(b"this is no database at all" * 1000)
    spool = Spool(path, 8 * MB, 3600, clock)
    assert spool.append("metrics", b"x", 1) is not None
    assert (tmp_path / "spool.db.corrupt-1000000").exists()
    (gap,) = spool.gaps()
    assert (gap.reason, gap.signal, gap.items) == ("corrupt", "all", 0)
    assert "unknown number" in gap.event({}).body
    spool.close()


def test_a_spool_damaged_under_a_running_agent_keeps_its_books(tmp_path, clock):
    path = tmp_path / "spool.db"
    spool = Spool(path, 8 * MB, 3600, clock)
    for _ in range(30):
        spool.append("metrics", os.urandom(20_000), 10)
    spool.acknowledge(spool.peek(limit=1)[0].seq)
    spool.reject(spool.peek(limit=1)[0].seq)
    spool._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    with path.open("r+b") as file:
        file.write(os.urandom(path.stat().st_size))
    assert spool.peek() == []
    assert spool.append("metrics", b"after", 1) is not None
    assert [b.payload for b in spool.peek()] == [b"after"]
    assert books(spool) == {
        "produced": {"metrics": 301},
        "sent": {"metrics": 10},
        "dropped": {("metrics", "rejected"): 10, ("metrics", "corrupt"): 280},
    }
    assert sorted((g.reason, g.items) for g in spool.gaps()) == [("corrupt", 280), ("rejected", 10)]
    assert_balanced(spool)
    spool.close()


def test_a_spool_damaged_between_runs_keeps_the_books_where_they_can_be_read(tmp_path, clock):
    path = tmp_path / "spool.db"
    spool = Spool(path, 8 * MB, 3600, clock)
    spool.append("metrics", b"x" * 100, 10)
    spool._connection.execute("PRAGMA writable_schema = ON")
    spool._connection.execute("DELETE FROM sqlite_master WHERE name = 'batch_items' OR tbl_name = 'batch'")
    spool.close()
    again = Spool(path, 8 * MB, 3600, clock)
    assert books(again) == {"produced": {"metrics": 10}, "sent": {}, "dropped": {("metrics", "corrupt"): 10}}
    assert_balanced(again)
    again.close()


def test_only_the_last_quarantines_are_kept(tmp_path, clock):
    for _ in range(5):
        (tmp_path / "spool.db").write_bytes(b"junk" * 2000)
        clock.now += 10
        Spool(tmp_path / "spool.db", 8 * MB, 3600, clock).close()
    assert sorted(f.name for f in tmp_path.glob("*.corrupt-*")) == ["spool.db.corrupt-1000040", "spool.db.corrupt-1000050"]


def test_a_batch_whose_bits_flipped_is_dropped_and_counted(tmp_path, clock):
    spool = Spool(tmp_path / "spool.db", 8 * MB, 3600, clock)
    for _ in range(3):
        spool.append("metrics", b"x" * 100, 5)
    spool._connection.execute("UPDATE batch SET payload = x'00' WHERE seq = 2")
    assert [b.seq for b in spool.peek()] == [1, 3]
    assert books(spool)["dropped"] == {("metrics", "corrupt"): 5}
    assert_balanced(spool)
    spool.close()


def test_flipped_bits_anywhere_never_stop_the_spool_and_never_unbalance_it(tmp_path):
    outcomes = set()
    for seed in range(60):
        rng = random.Random(seed)
        path = tmp_path / f"{seed}.db"
        spool = Spool(path, 8 * MB, 1e9, Clock())
        for number in range(40):
            spool.append("metrics", rng.randbytes(rng.choice([50, 3000, 9000])), 10)
            if number % 9 == 0:
                spool.acknowledge(spool.peek(limit=1)[0].seq)
        spool.close()
        content = bytearray(path.read_bytes())
        for _ in range(rng.randrange(1, 40)):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        again = Spool(path, 8 * MB, 1e9, Clock())
        while batches := again.peek():
            for batch in batches:
                again.acknowledge(batch.seq)
        assert again.append("metrics", b"new", 1) is not None
        assert [b.payload for b in again.peek()] == [b"new"]
        again.close()
        final = Spool(path, 8 * MB, 1e9, Clock())
        ledger = final.statistics().ledger
        outcomes.add(bool(list(tmp_path.glob(f"{seed}.db.corrupt-*"))))
        assert ledger.produced["metrics"] - ledger.sent["metrics"] - ledger.dropped_of("metrics") == 1
        final.close()
    assert outcomes == {True, False}, "both kinds of damage were met"


def test_a_foreign_database_is_not_written_to(tmp_path, clock):
    other = sqlite3.connect(tmp_path / "spool.db")
    other.execute("CREATE TABLE mine (x)")
    other.execute("PRAGMA user_version = 7")
    other.close()
    Spool(tmp_path / "spool.db", 8 * MB, 3600, clock).close()
    (aside,) = tmp_path.glob("spool.db.corrupt-*")
    kept = sqlite3.connect(aside)
    assert kept.execute("SELECT name FROM sqlite_master").fetchall() == [("mine",)]
    kept.close()


def test_a_directory_that_is_not_there_is_said_plainly(tmp_path, clock):
    with pytest.raises(StateError, match="unable to open"):
        Spool(tmp_path / "nowhere" / "spool.db", 8 * MB, 3600, clock)
