from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opened_store import ALL, HOUR, T0, keys, opened, present, read, row

from app.errors import OverloadedError, StartupError, StorageError
from app.telemetry.embedded import EmbeddedMetricStore
from app.telemetry.embedded import files as files_module
from app.telemetry.embedded.files import DAY_MS, Day, Month
from app.telemetry.embedded.retention import expired, over_budget
from app.telemetry.store import Matcher, Row, Schema, SeriesKey


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        schema = await store.register(keys("a", "b"))
        await store.append([row(schema, T0 + n * 60_000, n, n / 4) for n in range(150)])
        await store.maintain(T0 + 2 * HOUR)
        before, statistics = await read(store), await store.statistics()
        labels = await store.series([], T0, T0 + 3 * HOUR)
    async with opened(tmp_path) as store:
        assert await read(store) == before
        known = await store.statistics()
        assert (known.series, known.samples, known.oldest_ms, known.newest_ms) == (2, 300, T0, T0 + 149 * 60_000)
        assert known.samples == statistics.samples
        assert await store.register(keys("a", "b")) == schema
        assert await store.series([], T0, T0 + 3 * HOUR) == labels
        other = await store.register(keys("b", "c"))
        assert other.id != schema.id
        await store.append([row(other, T0 + 1, 5, 6)])
        assert (await read(store))["c"] == {T0 + 1: 6}


async def test_finished_hours_move_to_the_days_file_and_the_current_one_stays(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        schema = await store.register(keys("a"))
        await store.append([row(schema, T0 + n * 600_000, n) for n in range(18)])
        await store.maintain(T0 + 2 * HOUR + 599_999)
        assert store.health().unsealed_rows == 12
        await store.maintain(T0 + 2 * HOUR + 600_000)
        assert store.health().unsealed_rows == 6
        assert (tmp_path / "day-2024-10-04.db").exists()
        assert len((await read(store))["a"]) == 18


async def test_one_series_of_a_wide_schema_is_read_without_the_others(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        schema = await store.register(keys(*(f"m{n}" for n in range(400))))
        values = np.random.default_rng(5).normal(size=(60, 400))
        await store.append([Row(schema.id, T0 + n * 60_000, values[n]) for n in range(60)])
        await store.maintain(T0 + 2 * HOUR)
        (found,) = await store.select([Matcher("__name__", "=", "m123")], T0, T0 + HOUR)
        assert found.values.tobytes() == values[:, 123].tobytes()
        assert len(await store.select([Matcher("__name__", "=~", "m1.*")], T0, T0 + HOUR)) == 111


async def test_a_rollup_is_what_the_samples_come_to(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        schema = await store.register(keys("a", "b"))
        values = np.random.default_rng(3).integers(0, 1000, 720) / 10
        await store.append([row(schema, T0 + n * 10_000, v, np.nan if n < 30 else -v) for n, v in enumerate(values)])
        for _ in range(2):  # from the head, then from what sealing wrote
            a, b = await store.select_rollup(ALL, T0, T0 + DAY_MS, 300_000)
            assert (a.resolution_ms, len(a.times), len(b.times)) == (300_000, 24, 23)
            assert a.times.tolist() == list(range(T0, T0 + 2 * HOUR, 300_000))
            buckets = values.reshape(24, 30)
            assert a.minimum.tolist() == buckets.min(axis=1).tolist()
            assert a.maximum.tolist() == buckets.max(axis=1).tolist()
            assert a.sum.tolist() == [round(float(s), 1) for s in buckets.sum(axis=1)]
            assert a.last.tolist() == buckets[:, -1].tolist()
            assert set(a.count.tolist()) == {30}
            hours = await store.select_rollup([Matcher("__name__", "=", "b")], T0, T0 + DAY_MS, 7_200_000)
            assert hours[0].count.tolist() == [330, 360]
            assert hours[0].minimum.tolist() == [-values[30:360].max(), -values[360:].max()]
            await store.maintain(T0 + 4 * HOUR)
        assert await store.select_rollup(ALL, T0 + 5 * HOUR, T0 + 6 * HOUR, HOUR) == []


async def test_rollups_outlive_the_raw_samples_and_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        schema = await store.register(keys("a"))
        await store.append([row(schema, T0 + n * HOUR, n) for n in range(24)])
        await store.maintain(T0 + 2 * DAY_MS)
        await store.maintain(T0 + 5 * DAY_MS)
        assert await read(store) == {}
        assert await store.series([], 0, T0 * 2) == []
    async with opened(tmp_path) as store:
        (a,) = await store.select_rollup(ALL, T0, T0 + DAY_MS, HOUR)
        assert a.last.tolist() == list(range(24))
        await store.maintain(T0 + 120 * DAY_MS)
        assert await store.select_rollup(ALL, T0, T0 + DAY_MS, HOUR) == []
        assert not present(tmp_path, "rollup-*.db*")


async def test_rows_already_past_retention_do_not_become_files(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        schema = await store.register(keys("a"))
        await store.append([row(schema, n * DAY_MS, n) for n in range(3)])
        await store.append([row(schema, 253_402_300_799_999, 1)])
        await store.maintain(T0)
        assert not present(tmp_path, "day-*.db")
        assert store.health().unsealed_rows == 1
        await store.maintain(253_402_300_799_999 + 3 * HOUR)
        assert present(tmp_path, "day-*.db") == ["day-9999-12-31.db"]
        assert list(await read(store, end=2**62)) == ["a"]


@pytest.mark.parametrize("time_ms", [-1, 253_402_300_800_000, 2**63])
async def test_impossible_times_are_refused(tmp_path: Path, time_ms: int) -> None:
    async with opened(tmp_path) as store:
        schema = await store.register(keys("a"))
        with pytest.raises(Exception, match="out of range"):
            await store.append([row(schema, T0, 1), row(schema, time_ms, 1)])
        assert await read(store) == {}


async def test_many_days_at_once_keep_few_files_open(tmp_path: Path) -> None:
    async with opened(tmp_path, retention=100 * 86_400) as store:
        schema = await store.register(keys("a"))
        await store.append([row(schema, T0 + n * DAY_MS, n) for n in range(60)])
        await store.maintain(T0 + 60 * DAY_MS)
        assert len(store._days._writers) <= files_module._OPEN_WRITERS
        assert (await read(store))["a"] == {T0 + n * DAY_MS: n for n in range(60)}
        assert len(present(tmp_path, "day-*.db")) == 60


async def test_the_disk_budget_drops_the_oldest_days_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(tmp_path, retention=100 * 86_400) as store:
        schema = await store.register(keys("a", "b"))
        noise = np.random.default_rng(4).normal(size=(6, 3000, 2))
        for day in range(6):
            await store.append([Row(schema.id, T0 + day * DAY_MS + n * 1000, noise[day, n]) for n in range(3000)])
        now = T0 + 5 * DAY_MS + 2 * HOUR
        await store.maintain(now)
        everything = (await store.statistics()).disk_bytes
        store._disk_budget = everything - 1
        await store.maintain(now)
        first = min((await read(store))["a"])
        assert first == T0 + DAY_MS
        store._disk_budget = 1
        await store.maintain(now)
        assert min((await read(store))["a"]) == T0 + 5 * DAY_MS
        assert store.health().days_dropped_for_space == 5
        assert (await store.statistics()).samples == 6000
        assert "disk budget" in caplog.text


def test_plans_of_what_to_drop_look_only_at_what_they_are_given() -> None:
    assert expired(Day(), [10, 11, 12], 13 * DAY_MS, DAY_MS) == [10, 11]
    assert over_budget({1: 5, 2: 5, 3: 5}, 15, 8, 3 * DAY_MS) == [1, 2]
    assert over_budget({1: 5}, 5, 5, 3 * DAY_MS) == []
    assert over_budget({3: 5}, 5, 1, 3 * DAY_MS) == []
    month = Month()
    assert month.name(month.key(T0)) == "rollup-2024-10"
    assert month.key(month.start_ms(month.key(T0)) - 1) == month.key(T0) - 1
    assert month.start_ms(9999 * 12 + 12) == 253_402_300_800_000


async def test_too_much_waiting_is_refused_and_what_was_accepted_is_stored(tmp_path: Path) -> None:
    async with opened(tmp_path, queue_bytes=100_000) as store:
        schema = await store.register(keys(*(f"m{n}" for n in range(100))))
        outcomes = await asyncio.gather(
            *(store.append([Row(schema.id, T0 + n, np.zeros(100))]) for n in range(500)), return_exceptions=True
        )
        refused = [o for o in outcomes if o is not None]
        assert refused
        assert all(isinstance(o, OverloadedError) and o.retry_after for o in refused)
        assert store.health().refused_appends == len(refused)
        assert (await store.statistics()).samples == 100 * (500 - len(refused))


async def test_a_full_disk_stores_nothing_and_the_next_try_works(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        schema = await store.register(keys("a"))
        await store.append([row(schema, T0, 1)])
        connection = store._head.connection
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(StorageError) as caught:
            await store.append([row(schema, T0 + n, n) for n in range(1, 3000)])
        assert caught.value.retryable
        assert await read(store) == {"a": {T0: 1}}
        assert store.health().failed_commits == 1
        connection.execute("PRAGMA max_page_count=1073741823")
        await store.append([row(schema, T0 + n, n) for n in range(1, 3000)])
        assert (await store.statistics()).samples == 3000


async def test_a_registration_that_fails_leaves_no_trace(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.register(keys("a"))
        connection = store._index._database()
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")
        many = keys(*(f"name_{n}" for n in range(2000)))
        with pytest.raises(StorageError):
            await store.register(many)
        assert (await store.statistics()).series == 1
        connection.execute("PRAGMA max_page_count=1073741823")
        schema = await store.register(many)
        await store.append([Row(schema.id, T0, np.arange(2000.0))])
        assert (await read(store))["name_1999"] == {T0: 1999}


async def test_labels_that_are_not_text_are_refused_and_harm_nobody(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        bad = SeriesKey((("__name__", "\ud800"),), "1", "gauge")
        outcomes = await asyncio.gather(store.register([bad]), store.register(keys("a")), return_exceptions=True)
        assert isinstance(outcomes[0], Exception)
        assert isinstance(outcomes[1], Schema)


async def test_sealing_that_fails_loses_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        schema = await store.register(keys("a"))
        await store.append([row(schema, T0, 1)])
        (tmp_path / "day-2024-10-04.db").mkdir()
        with pytest.raises(StorageError):
            await store.maintain(T0 + 2 * HOUR)
        (tmp_path / "day-2024-10-04.db").rmdir()
        assert await read(store) == {"a": {T0: 1}}
        await store.maintain(T0 + 2 * HOUR)
        assert await read(store) == {"a": {T0: 1}}
        assert store.health().unsealed_rows == 0


async def test_foreign_files_in_the_directory_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "day-of-the-dog.db").write_text("woof")
    async with opened(tmp_path) as store:
        assert await read(store) == {}
    assert (tmp_path / "day-of-the-dog.db").read_text() == "woof"


async def test_a_second_store_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path):
        with pytest.raises(StartupError, match="another process"):
            async with opened(tmp_path):
                pass
    async with opened(tmp_path):
        pass


async def test_a_directory_that_cannot_be_used_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot be opened"):
        async with opened(tmp_path / "file"):
            pass


async def test_a_closed_store_refuses_politely(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        schema = await store.register(keys("a"))
    await store.close()
    for call in (store.append([row(schema, T0, 1)]), store.register(keys("b")), store.select(ALL, 0, 1), store.maintain(T0)):
        with pytest.raises(StorageError):
            await call


step = st.one_of(
    st.tuples(st.just("append"), st.integers(0, 2), st.lists(st.integers(0, 8 * 24), min_size=1, max_size=12), st.integers(0, 10**6)),
    st.tuples(st.just("maintain"), st.integers(0, 8 * 26)),
    st.tuples(st.just("restart")),
    st.tuples(st.just("select"), st.integers(0, 8 * 24), st.integers(0, 8 * 24)),
)
QUARTER = HOUR // 8


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(step, min_size=3, max_size=25))
def test_any_course_of_events_gives_what_a_plain_dictionary_gives(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]]
) -> None:
    asyncio.run(_follow(tmp_path_factory.mktemp("model"), steps))


async def _follow(directory: Path, steps: list[tuple[Any, ...]]) -> None:
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    lists = [keys("a", "b"), keys("c"), keys("d", "e", "f")]
    model: dict[str, dict[int, float]] = {}
    options = {"retention": 86_400.0, "rollup_retention": 60 * 86_400, "disk_budget": 2**30, "clock": lambda: T0 / 1000}
    store = EmbeddedMetricStore(directory, **options)
    await store.open()
    try:
        for name, *arguments in steps:
            if name == "append":
                number, times, value = arguments
                schema = await store.register(lists[number])
                await store.append([row(schema, T0 + t * QUARTER, *(value + n for n in range(schema.size))) for t in times])
                for position, key in enumerate(lists[number]):
                    for t in times:
                        model.setdefault(key.labels[0][1], {}).setdefault(T0 + t * QUARTER, value + position)
            elif name == "maintain":
                now = T0 + 86_400_000 * (arguments[0] > 8 * 25) + arguments[0] * QUARTER
                await store.maintain(now)
                for samples in model.values():
                    for t in [t for t in samples if t // DAY_MS * DAY_MS + DAY_MS <= now - 86_400_000]:
                        del samples[t]
            elif name == "restart":
                await store.close()
                store = EmbeddedMetricStore(directory, **options)
                await store.open()
            else:
                start, end = (T0 + a * QUARTER for a in arguments)
                expected = {n: {t: v for t, v in s.items() if start <= t <= end} for n, s in model.items()}
                assert await read(store, start, end) == {n: s for n, s in expected.items() if s}
        assert await read(store) == {n: s for n, s in model.items() if s}
        await store.maintain(T0 + 86_400_000 + 3 * HOUR)  # after every look before, so that all is sealed and counted once
        assert await read(store) == {n: s for n, s in model.items() if s}
        assert (await store.statistics()).samples == sum(len(s) for s in model.values())
    finally:
        await store.close()
