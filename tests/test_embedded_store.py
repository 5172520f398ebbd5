from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import OverloadedError, StartupError, StorageError
from app.telemetry.embedded import EmbeddedMetricStore
from app.telemetry.embedded import files as files_module
from app.telemetry.embedded.files import DAY_MS, Day, Month
from app.telemetry.embedded.retention import expired, over_budget
from app.telemetry.store import Matcher, Row, Schema, SeriesKey

T0 = 20_000 * DAY_MS
HOUR = 3_600_000
ALL = [Matcher("__name__", "!=", "")]


@asynccontextmanager
async def opened(directory: Path, **options: Any) -> AsyncIterator[EmbeddedMetricStore]:
    settings_ = {"retention": 3 * 86_400, "rollup_retention": 60 * 86_400, "disk_budget": 2**30, "clock": lambda: T0 / 1000} | options
    store = EmbeddedMetricStore(directory, **settings_)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def keys(*names: str) -> list[SeriesKey]:
    return [SeriesKey((("__name__", name), ("host", "h1")), "1", "gauge") for name in names]


def row(schema: Schema, time_ms: int, *values: float) -> Row:
    return Row(schema.id, time_ms, np.array(values, np.float64))


def present(directory: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in directory.glob(pattern))


async def read(store: EmbeddedMetricStore, start: int = 0, end: int = T0 * 2) -> dict[str, dict[int, float]]:
    found = await store.select(ALL, start, end)
    return {s.labels["__name__"]: dict(zip(s.times.tolist(), s.values.tolist(), strict=True)) for s in found}


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


async def _three_days(directory: Path) -> None:
    async with opened(directory) as store:
        schema = await store.register(keys("a", "b"))
        await store.append([row(schema, T0 + day * DAY_MS + n * 1000, n, -n) for day in range(3) for n in range(100)])
        await store.maintain(T0 + 2 * DAY_MS + 3 * HOUR)
        await store.append([row(schema, T0 + 2 * DAY_MS + 5 * HOUR, 1, 2)])


def _damage(path: Path, *, start: int = 0, size: int = 100_000) -> None:
    content = bytearray(path.read_bytes())
    for place in range(start, min(len(content), start + size)):
        content[place] ^= 0x5A
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["scrambled", "empty", "cut off", "another index", "no table"])
async def test_a_corrupt_day_is_set_aside_and_the_rest_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    await _three_days(tmp_path)
    path = tmp_path / "day-2024-10-05.db"
    if how == "scrambled":
        _damage(path)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut off":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("DROP TABLE spans" if how == "no table" else "UPDATE meta SET identity = 'other'")
        connection.close()
    async with opened(tmp_path) as store:
        found = (await read(store))["a"]
        assert store.health().quarantined_files == 1
        assert {t // DAY_MS for t in found} == {20_000, 20_002}
        assert len(present(tmp_path, "day-2024-10-05.db.corrupt-*")) == 1
        assert "set aside" in caplog.text
        schema = await store.register(keys("a", "b"))
        await store.append([row(schema, T0 + DAY_MS + 7, 7, 7)])
        await store.maintain(T0 + 2 * DAY_MS + 3 * HOUR)
        assert (await read(store))["a"][T0 + DAY_MS + 7] == 7


@pytest.mark.parametrize("start", [0, 8192])
async def test_a_day_that_turns_corrupt_while_open_is_set_aside(tmp_path: Path, start: int) -> None:
    await _three_days(tmp_path)
    async with opened(tmp_path) as store:
        _damage(tmp_path / "day-2024-10-05.db", start=start, size=4096)
        found = (await read(store))["a"]
        assert {t // DAY_MS for t in found} == {20_000, 20_002}
        assert store.health().quarantined_files == 1
        await store.maintain(T0 + 2 * DAY_MS + 3 * HOUR)
        assert present(tmp_path, "day-2024-10-05.db.corrupt-*")
        schema = await store.register(keys("a", "b"))
        await store.append([row(schema, T0 + DAY_MS + 7, 7, 7)])
        await store.maintain(T0 + 2 * DAY_MS + 3 * HOUR)
        assert (await read(store))["a"][T0 + DAY_MS + 7] == 7


async def test_a_day_found_corrupt_by_sealing_is_set_aside_and_the_rows_are_sealed_anew(tmp_path: Path) -> None:
    await _three_days(tmp_path)
    async with opened(tmp_path) as store:
        schema = await store.register(keys("a", "b"))
        await store.append([row(schema, T0 + DAY_MS + 7, 7, 7)])
        _damage(tmp_path / "day-2024-10-05.db")
        with pytest.raises(StorageError):
            await store.maintain(T0 + 2 * DAY_MS + 3 * HOUR)
        await store.maintain(T0 + 2 * DAY_MS + 3 * HOUR)
        assert (await read(store))["a"][T0 + DAY_MS + 7] == 7
        assert store.health().quarantined_files == 1


@pytest.mark.parametrize("broken", ["one column", "the front"])
async def test_a_damaged_chunk_costs_only_itself_and_is_counted(tmp_path: Path, broken: str) -> None:
    await _three_days(tmp_path)
    connection = sqlite3.connect(tmp_path / "day-2024-10-05.db")
    number, body = connection.execute("SELECT id, body FROM chunks").fetchone()
    spoiled = bytearray(body)
    spoiled[-1 if broken == "one column" else 22] ^= 1
    connection.execute("UPDATE chunks SET body = ? WHERE id = ?", (bytes(spoiled), number))
    connection.commit()
    connection.close()
    async with opened(tmp_path) as store:
        found = await read(store)
        assert {t // DAY_MS for t in found["b"]} == {20_000, 20_002}
        assert {t // DAY_MS for t in found["a"]} == ({20_000, 20_001, 20_002} if broken == "one column" else {20_000, 20_002})
        assert store.health().damaged_chunks >= 1
        schema = await store.register(keys("a", "b"))
        await store.append([row(schema, T0 + DAY_MS + 7, 7, 8)])
        await store.maintain(T0 + 2 * DAY_MS + 3 * HOUR)
        found = await read(store)
        assert found["a"][T0 + DAY_MS + 7] == 7
        assert len([t for t in found["a"] if t // DAY_MS == 20_001]) == (101 if broken == "one column" else 1)


async def test_a_damaged_rollup_costs_only_itself(tmp_path: Path) -> None:
    await _three_days(tmp_path)
    connection = sqlite3.connect(tmp_path / "rollup-2024-10.db")
    connection.execute("UPDATE rollup_hour SET body = x'00' WHERE id = (SELECT min(id) FROM rollup_hour)")
    connection.commit()
    connection.close()
    async with opened(tmp_path) as store:
        a, _ = await store.select_rollup(ALL, T0, T0 + 3 * DAY_MS, HOUR)
        assert a.times.tolist() == [T0 + DAY_MS, T0 + 2 * DAY_MS, T0 + 2 * DAY_MS + 5 * HOUR]
        assert store.health().damaged_chunks == 1


@pytest.mark.parametrize("content", ["scrambled", "another index"])
async def test_a_corrupt_head_is_set_aside_and_the_sealed_days_stay(tmp_path: Path, content: str) -> None:
    await _three_days(tmp_path)
    if content == "scrambled":
        _damage(tmp_path / "head.db")
    else:
        with sqlite3.connect(tmp_path / "head.db") as connection:
            connection.execute("UPDATE identity SET value = 'other'")
        connection.close()
    async with opened(tmp_path) as store:
        assert len((await read(store))["a"]) == 300
        assert store.health().quarantined_files == 1
        schema = await store.register(keys("a", "b"))
        await store.append([row(schema, T0 + 3 * DAY_MS, 1, 2)])


async def test_a_corrupt_index_begins_anew_and_nothing_is_deleted(tmp_path: Path) -> None:
    await _three_days(tmp_path)
    _damage(tmp_path / "index.db")
    async with opened(tmp_path) as store:
        assert await read(store) == {}
        assert len(present(tmp_path, "*.corrupt-*")) == 6  # index, three days, the month, the head
        schema = await store.register(keys("z"))
        await store.append([row(schema, T0, 1)])
        assert await read(store) == {"z": {T0: 1}}


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


async def test_an_append_whose_caller_went_away_is_still_stored(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        schema = await store.register(keys("a"))
        task = asyncio.create_task(store.append([row(schema, T0, 1)]))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.append([row(schema, T0 + 1, 2)])
        assert await read(store) == {"a": {T0: 1, T0 + 1: 2}}


async def test_an_unexpected_failure_of_the_writer_is_answered_and_the_writer_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as store:
        schema = await store.register(keys("a"))
        with monkeypatch.context() as patch:
            patch.setattr(store._head, "insert", lambda entries: 1 / 0)
            with pytest.raises(StorageError):
                await store.append([row(schema, T0, 1)])
        await store.append([row(schema, T0, 2)])
        assert await read(store) == {"a": {T0: 2}}


async def test_reading_while_sealing_never_misses_a_row(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        schemas = [await store.register(keys(f"a{n}", f"b{n}")) for n in range(40)]
        for hour in range(6):
            await asyncio.gather(*(store.append([row(s, T0 + hour * HOUR + n * 60_000, n, n) for n in range(60)]) for s in schemas))
        sealing = asyncio.create_task(store.maintain(T0 + 8 * HOUR))
        rounds = 0
        while not sealing.done() or rounds < 2:
            number = rounds % 40
            (found,) = await store.select([Matcher("__name__", "=", f"a{number}")], 0, T0 * 2)
            assert len(found.times) == 360
            rounds += 1
        await sealing
        assert store.health().unsealed_rows == 0
        assert (await store.statistics()).samples == 40 * 360 * 2


async def test_a_registration_that_fails_never_lends_its_number_to_another(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        connection = store._index._database()
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")
        many = keys(*(f"name_{n}" for n in range(2000)))
        outcomes = await asyncio.gather(store.register(many), store.register(many), return_exceptions=True)
        assert all(isinstance(o, StorageError) for o in outcomes)
        with pytest.raises(Exception, match="the schema has None"):
            await store.append([Row(1, T0, np.zeros(2000))])
        connection.execute("PRAGMA max_page_count=1073741823")
        one, two = await asyncio.gather(store.register(keys("a")), store.register(keys("a")))
        assert one == two
        await store.append([row(one, T0, 1)])
        assert await read(store) == {"a": {T0: 1}}


async def test_registering_while_reading_disturbs_neither(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        first = await store.register(keys("a"))
        await store.append([row(first, T0, 1)])

        async def reading() -> None:
            for _ in range(30):
                assert (await read(store))["a"] == {T0: 1}
                await store.label_names([], T0, T0)
                await store.maintain(T0)

        await asyncio.gather(reading(), *(store.register(keys(*(f"m{n}_{k}" for k in range(50)))) for n in range(60)))
        assert (await store.statistics()).series == 3001


async def test_late_rows_that_arrive_while_their_hour_is_sealed_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as store:
        schema = await store.register(keys("a"))
        await store.append([row(schema, T0, 1)])
        slice_of = store._sealer.slice
        loop = asyncio.get_running_loop()

        def interrupted(*arguments: Any, **options: Any) -> Any:
            outcome = slice_of(*arguments, **options)
            asyncio.run_coroutine_threadsafe(store.append([row(schema, T0 + 1, 2)]), loop).result(10)
            return outcome

        monkeypatch.setattr(store._sealer, "slice", interrupted)
        await store.maintain(T0 + 2 * HOUR)
        monkeypatch.undo()
        assert await read(store) == {"a": {T0: 1, T0 + 1: 2}}
        await store.maintain(T0 + 2 * HOUR)
        assert await read(store) == {"a": {T0: 1, T0 + 1: 2}}
        assert store.health().unsealed_rows == 0
        assert (await store.statistics()).samples == 2


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
        await store.maintain(T0 + 86_400_000)
        assert await read(store) == {n: s for n, s in model.items() if s}
        assert (await store.statistics()).samples == sum(len(s) for s in model.values())
    finally:
        await store.close()


WRITER = textwrap.dedent(
    """
    import asyncio, random, sys
    from pathlib import Path
    import numpy as np
    from app.telemetry.embedded import EmbeddedMetricStore
    from app.telemetry.store import Row, SeriesKey

    HOUR = 3_600_000
    T0 = 20_000 * 86_400_000

    async def main(directory, seed):
        store = EmbeddedMetricStore(Path(directory), retention=30 * 86_400, rollup_retention=60 * 86_400, disk_budget=2**30)
        await store.open()
        chance = random.Random(seed)
        async def agent(number):
            labels = [(("__name__", f"m{n}"), ("agent", f"{seed}-{number}")) for n in range(5)]
            schema = await store.register([SeriesKey(one, "1", "gauge") for one in labels])
            sent = 0
            while True:
                times = [T0 + (sent + n) * 90_000 for n in range(chance.randint(1, 60))]
                await store.append([Row(schema.id, t, np.arange(5.0) + t % 977) for t in times])
                sent += len(times)
                print("ack", number, sent, flush=True)
        async def keeper():
            while True:
                await store.maintain(T0 + 20 * 86_400_000)
        await asyncio.gather(keeper(), *(agent(n) for n in range(4)))

    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
    """
)


def _write_until_killed(directory: Path, seed: int, chance: random.Random) -> dict[str, int]:
    """What a writer had been told is stored, by agent, when it was killed."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", WRITER, str(directory), str(seed)]
    acknowledged: dict[str, int] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}) as process:
        assert process.stdout is not None
        lines = chance.randint(4, 150)
        for line in process.stdout:
            if line.endswith("\n"):
                _, number, sent = line.split()
                acknowledged[number] = int(sent)
            lines -= 1
            if not lines:
                time.sleep(chance.random() * 0.01)
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    return acknowledged


async def test_nothing_acknowledged_is_lost_or_doubled_by_twenty_kills(tmp_path: Path) -> None:
    chance = random.Random(7)
    read_back = 0
    for seed in range(20):
        acknowledged = _write_until_killed(tmp_path, seed, chance)
        async with opened(tmp_path, retention=30 * 86_400) as store:
            assert store.health().quarantined_files == 0
            for number, sent in acknowledged.items():
                found = await store.select([Matcher("agent", "=", f"{seed}-{number}")], 0, T0 * 2)
                assert len(found) == 5
                expected = T0 + np.arange(len(found[0].times)) * 90_000
                assert len(expected) >= sent
                for series in found:
                    assert series.times.tolist() == expected.tolist()  # each once, no holes, all columns of a row
                    assert (series.values == expected % 977 + int(series.labels["__name__"][1:])).all()
            await store.maintain(T0 + 20 * DAY_MS)
            assert store.health().unsealed_rows == 0
            if seed % 5 != 4:
                continue
            everything = await store.select(ALL, 0, T0 * 2)
            assert (await store.statistics()).samples == sum(len(s.times) for s in everything)
            read_back += len(everything)
    assert read_back
