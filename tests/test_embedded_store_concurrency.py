"""Writing, registering, sealing and reading at the same time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opened_store import HOUR, T0, keys, opened, read, row

from app.errors import StorageError
from app.telemetry.store import Matcher, Row


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
