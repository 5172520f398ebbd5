"""Corrupt files are set aside, damaged chunks cost only themselves, and the rest goes on."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from opened_store import ALL, HOUR, T0, keys, opened, present, read, row

from app.errors import StorageError
from app.telemetry.embedded.files import DAY_MS


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
