from __future__ import annotations

import random
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from spool_books import MB, Clock, assert_balanced, books

from connectors.core.ledger import Drop, Ledger
from connectors.core.spool import Spool


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def spool(tmp_path, clock):
    made = Spool(tmp_path / "spool.db", 8 * MB, 3600, clock)
    yield made
    made.close()


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


@pytest.mark.parametrize("size", [200, 3000, 30_000, 400_000])
@pytest.mark.parametrize("goes", ["aged", "displaced", "sent"])
def test_a_full_spool_stays_within_its_bound_while_much_of_it_goes(tmp_path, clock, size, goes):
    bound = 3 * MB
    spool = Spool(tmp_path / "spool.db", bound, 3600, clock)
    while not spool.statistics().ledger.dropped:
        spool.append("metrics", random.Random(size).randbytes(min(size, spool.max_payload)), 1)
    before = spool.statistics().batches
    if goes == "aged":
        clock.now += 3601
        spool.append("metrics", bytes(spool.max_payload), 1)
        assert spool.statistics().batches == 1
    sizes = [spool.statistics().size_bytes]
    for _ in range(8) if goes == "displaced" else ():
        spool.append("metrics", bytes(spool.max_payload), 1)
        sizes.append(spool.statistics().size_bytes)
    for batch in spool.peek(limit=before // 2, max_bytes=bound) if goes == "sent" else ():
        spool.acknowledge(batch.seq)
        sizes.append(spool.statistics().size_bytes)
    assert max(sizes) <= bound
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


def test_the_books_refuse_a_kind_they_do_not_know():
    with pytest.raises(ValueError, match="no such kind"):
        Ledger().count("invented", "metrics", "", 1)
