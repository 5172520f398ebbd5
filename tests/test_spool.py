from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from connectors.core.delivery import Outbox
from connectors.core.errors import SpoolFullError, StateError
from connectors.core.ledger import Drop, Ledger
from connectors.core.spool import Spool

ROOT = Path(__file__).resolve().parent.parent
MB = 1_048_576


class Clock:
    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def spool(tmp_path, clock):
    made = Spool(tmp_path / "spool.db", 8 * MB, 3600, clock)
    yield made
    made.close()


def books(spool) -> dict:
    ledger = spool.statistics().ledger
    return {"produced": dict(+ledger.produced), "sent": dict(+ledger.sent), "dropped": dict(+ledger.dropped)}


def held(spool) -> int:
    total, after = 0, 0
    while batches := spool.peek(after=after):
        total += sum(b.items for b in batches)
        after = batches[-1].seq
    return total


def assert_balanced(spool) -> None:
    ledger = spool.statistics().ledger
    assert sum(ledger.produced.values()) == sum(ledger.sent.values()) + sum(ledger.dropped.values()) + held(spool)


def test_batches_come_back_in_order_and_survive_reopening(tmp_path, clock):
    spool = Spool(tmp_path / "spool.db", 8 * MB, 3600, clock)
    first = spool.append("metrics", b"one", 3)
    clock.now += 1
    second = spool.append("logs", b"two", 1)
    spool.close()
    spool.close()
    again = Spool(tmp_path / "spool.db", 8 * MB, 3600, clock)
    assert [(b.seq, b.signal, b.payload, b.items, b.created_at) for b in again.peek()] == [
        (first, "metrics", b"one", 3, 1_000_000.0),
        (second, "logs", b"two", 1, 1_000_001.0),
    ]
    assert again.statistics().waiting == {"metrics": 3, "logs": 1}
    assert again.statistics().batches == 2
    assert again.statistics().oldest_at == 1_000_000.0
    again.close()


def test_peek_is_bounded_by_count_and_bytes_but_always_gives_one(spool):
    for _ in range(5):
        spool.append("metrics", bytes(1000), 1)
    assert len(spool.peek(limit=2)) == 2
    assert len(spool.peek(max_bytes=2500)) == 2
    assert len(spool.peek(max_bytes=1)) == 1
    assert [b.seq for b in spool.peek(after=3)] == [4, 5]


def test_acknowledged_items_are_sent_and_refused_ones_dropped_with_a_gap(spool):
    seq = spool.append("metrics", b"x", 10)
    spool.acknowledge(seq, rejected=4)
    assert books(spool) == {"produced": {"metrics": 10}, "sent": {"metrics": 6}, "dropped": {("metrics", "rejected"): 4}}
    (gap,) = spool.gaps()
    assert (gap.signal, gap.reason, gap.items) == ("metrics", "rejected", 4)
    assert_balanced(spool)


def test_settling_an_unknown_batch_changes_nothing(spool):
    spool.acknowledge(99)
    spool.reject(99)
    assert books(spool) == {"produced": {}, "sent": {}, "dropped": {}}


def test_a_batch_that_was_refused_for_good_is_counted_whole(spool):
    spool.reject(spool.append("logs", b"x", 7))
    assert books(spool)["dropped"] == {("logs", "rejected"): 7}
    assert spool.peek() == []


def test_old_batches_are_dropped_into_one_gap_that_spans_them(spool, clock):
    for _ in range(3):
        spool.append("metrics", b"x", 2)
        clock.now += 100
    clock.now += 3600
    spool.expire()
    assert books(spool)["dropped"] == {("metrics", "age"): 6}
    (gap,) = spool.gaps()
    assert (gap.items, gap.start, gap.end) == (6, 1_000_000.0, 1_000_200.0)


def test_a_gap_that_was_handed_out_never_changes_and_newer_drops_follow_in_their_own(tmp_path, spool, clock):
    spool.reject(spool.append("metrics", b"x", 2))
    (first,) = spool.gaps()
    spool.reject(spool.append("metrics", b"x", 5))
    assert spool.gaps() == [first]
    spool.close()
    again = Spool(tmp_path / "spool.db", 8 * MB, 3600, clock)
    assert again.gaps() == [first]
    again.settle_gaps([first.id])
    (second,) = again.gaps()
    assert (second.items, second.id != first.id) == (5, True)
    again.settle_gaps([second.id])
    assert again.gaps() == []
    again.close()


def test_a_gap_becomes_an_event_under_its_own_id(spool):
    spool.reject(spool.append("metrics", b"x", 2))
    (gap,) = spool.gaps()
    event = gap.event({"host.name": "h"})
    assert (event.name, event.id, event.attributes["irca.gap.items"], event.attributes["irca.gap.signal"]) == (
        "irca.agent.gap",
        gap.id,
        2,
        "metrics",
    )
    assert event.attributes["irca.gap.start_time_unix_nano"] == 1_000_000 * 10**9


@pytest.mark.parametrize("size", [1_048_576, 3 * MB, 8 * MB])
def test_the_files_never_take_more_than_the_bound_and_the_oldest_give_way(tmp_path, clock, size):
    spool = Spool(tmp_path / "spool.db", size, 3600, clock)
    rng = random.Random(size)
    largest = 0
    for number in range(400):
        spool.append("metrics", rng.randbytes(rng.choice([100, 5_000, 60_000])), 1)
        if number % 7 == 0:
            spool.acknowledge(spool.peek(limit=1)[0].seq)
        on_disk = sum(f.stat().st_size for f in tmp_path.iterdir())
        largest = max(largest, on_disk)
        assert on_disk <= size
    assert spool.statistics().size_bytes == on_disk
    assert largest > size * 0.5, "the bound is not wasted"
    assert spool.statistics().ledger.dropped["metrics", "size"] > 0
    assert_balanced(spool)
    spool.close()


def test_a_batch_larger_than_the_bounds_is_counted_and_dropped_at_once(tmp_path, clock):
    spool = Spool(tmp_path / "spool.db", MB, 3600, clock)
    assert spool.append("metrics", bytes(spool.max_payload + 1), 9) is None
    assert spool.append("metrics", bytes(spool.max_payload), 1) is not None
    assert books(spool)["dropped"] == {("metrics", "size"): 9}
    spool.close()


def test_disk_space_is_given_back_after_a_backlog(tmp_path, clock):
    spool = Spool(tmp_path / "spool.db", 16 * MB, 3600, clock)
    for _ in range(100):
        spool.append("metrics", bytes(100_000), 1)
    assert spool.statistics().size_bytes > 8 * MB
    for batch in spool.peek(limit=200, max_bytes=1 << 30):
        spool.acknowledge(batch.seq)
    assert spool.statistics().size_bytes < 5 * MB
    spool.close()


def test_items_that_never_reached_the_disk_are_entered_with_a_gap(spool):
    ledger = Ledger()
    ledger.produced["metrics"] += 12
    ledger.sent["metrics"] += 5
    spool.record(ledger, [Drop("metrics", "disk-full", 7, 1.0, 2.0)])
    assert books(spool) == {"produced": {"metrics": 12}, "sent": {"metrics": 5}, "dropped": {("metrics", "disk-full"): 7}}
    assert [(g.reason, g.items) for g in spool.gaps()] == [("disk-full", 7)]


def test_many_threads_may_use_it_at_once(spool):
    def produce():
        for _ in range(50):
            spool.append("metrics", b"x" * 100, 2)

    def consume():
        for _ in range(60):
            for batch in spool.peek(limit=3):
                spool.acknowledge(batch.seq)

    threads = [threading.Thread(target=t) for t in (produce, produce, consume, consume)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert spool.statistics().ledger.produced["metrics"] == 200
    assert_balanced(spool)


class SpoolMachine(RuleBasedStateMachine):
    """The books balance whatever happens, and a reopened spool is the spool that was closed (or left behind)."""

    @initialize()
    def begin(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "spool.db"
        self.clock = Clock()
        self.spool = Spool(self.path, MB, 1000, self.clock)
        self.told: dict[str, object] = {}

    def teardown(self):
        if hasattr(self, "spool"):
            self.spool.close()
            self.folder.cleanup()

    @rule(of=st.sampled_from(["metrics", "logs"]), size=st.integers(0, 200_000), items=st.integers(0, 500), pause=st.floats(-50, 300))
    def append(self, of, size, items, pause):
        self.clock.now += pause
        self.spool.append(of, bytes(size), items)

    @rule(count=st.integers(1, 5), refused=st.integers(-1, 300))
    def acknowledge(self, count, refused):
        for batch in self.spool.peek(limit=count):
            self.spool.acknowledge(batch.seq, refused)

    @rule()
    def reject(self):
        for batch in self.spool.peek(limit=1):
            self.spool.reject(batch.seq)

    @rule(settle=st.booleans())
    def deliver_gaps(self, settle):
        gaps = self.spool.gaps()
        for gap in gaps:
            assert self.told.setdefault(gap.id, gap) == gap
        if settle:
            self.spool.settle_gaps([gap.id for gap in gaps])
            assert not {g.id for g in gaps} & {g.id for g in self.spool.gaps()}

    @rule(clean=st.booleans())
    def reopen(self, clean):
        before = self.spool.statistics()
        if clean:
            self.spool.close()
        left = self.spool  # an unclean end leaves its connection behind, as a killed process leaves its files
        self.spool = Spool(self.path, MB, 1000, self.clock)
        left.close()
        after = self.spool.statistics()
        assert (sorted(after.ledger.rows()), after.batches, after.since) == (sorted(before.ledger.rows()), before.batches, before.since)

    @invariant()
    def balanced(self):
        if hasattr(self, "spool"):
            assert_balanced(self.spool)
            statistics = self.spool.statistics()
            assert statistics.size_bytes <= MB
            dropped = sum(statistics.ledger.dropped.values())
            told = sum(g.items for i, g in self.told.items() if i not in {x.id for x in self.spool._gaps.values()})
            assert dropped == told + sum(g.items for g in self.spool._gaps.values())


SpoolMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
test_the_books_balance_at_all_times = SpoolMachine.TestCase


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


def test_the_books_refuse_a_kind_they_do_not_know():
    with pytest.raises(ValueError, match="no such kind"):
        Ledger().count("invented", "metrics", "", 1)
