"""One suite over every metric store: a new store adds a row to STORES."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from app.errors import PlatformError
from app.telemetry.embedded import EmbeddedMetricStore
from app.telemetry.memory_store import MemoryMetricStore
from app.telemetry.store import Matcher, MetricStore, Row, Schema, SeriesKey

DAY = 86_400_000
T0 = 20_000 * DAY
HOUR = 3_600_000
ALL = [Matcher("__name__", "!=", "")]


def _embedded(directory: Path) -> MetricStore:
    return EmbeddedMetricStore(
        directory / "metrics", retention=2 * 86_400, rollup_retention=40 * 86_400, disk_budget=2**30, clock=lambda: T0 / 1000
    )


def _memory(_: Path) -> MetricStore:
    return MemoryMetricStore(retention=2 * 86_400)


STORES: dict[str, Callable[[Path], MetricStore]] = {"embedded": _embedded, "memory": _memory}


@pytest.fixture(params=STORES.values(), ids=STORES.keys())
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MetricStore]:
    made: MetricStore = request.param(tmp_path)
    await made.open()
    yield made
    await made.close()


def key(name: str, *, unit: str = "1", kind: str = "gauge", **labels: str) -> SeriesKey:
    return SeriesKey((("__name__", name), *labels.items()), unit, kind)


def row(schema: Schema, time_ms: int, *values: float) -> Row:
    return Row(schema.id, time_ms, np.array(values, np.float64))


async def read(store: MetricStore, *matchers: Matcher, start: int = 0, end: int = T0 * 2) -> dict[str, list[tuple[int, float]]]:
    found = await store.select(list(matchers) or ALL, start, end)
    return {s.labels["__name__"] + s.labels.get("host", ""): list(zip(s.times.tolist(), s.values.tolist(), strict=True)) for s in found}


async def test_what_was_appended_is_selected_in_time_order(store: MetricStore) -> None:
    schema = await store.register([key("a"), key("b")])
    await store.append([row(schema, T0 + 20, 3, 4), row(schema, T0 + 10, 1, 2)])
    assert await read(store) == {"a": [(T0 + 10, 1), (T0 + 20, 3)], "b": [(T0 + 10, 2), (T0 + 20, 4)]}


async def test_both_ends_of_the_range_belong_to_it(store: MetricStore) -> None:
    schema = await store.register([key("a")])
    await store.append([row(schema, T0 + t, t) for t in range(5)])
    assert (await read(store, start=T0 + 1, end=T0 + 3))["a"] == [(T0 + 1, 1), (T0 + 2, 2), (T0 + 3, 3)]
    assert await read(store, start=T0 + 5, end=T0 + 9) == {}


async def test_labels_unit_and_kind_come_back(store: MetricStore) -> None:
    schema = await store.register([key("system.cpu.time", unit="s", kind="counter", host="h1", empty="")])
    await store.append([row(schema, T0, 1.5)])
    (found,) = await store.select(ALL, T0, T0)
    assert (dict(found.labels), found.unit, found.kind) == ({"__name__": "system.cpu.time", "host": "h1"}, "s", "counter")
    assert found.times.dtype == np.int64
    assert found.values.dtype == np.float64


async def test_the_same_series_in_the_same_order_are_the_same_schema(store: MetricStore) -> None:
    one, again, turned = [await store.register(s) for s in ([key("a"), key("b")], [key("a"), key("b")], [key("b"), key("a")])]
    assert one == again
    assert one.id != turned.id
    assert one.size == 2


async def test_the_first_value_for_a_time_stays(store: MetricStore) -> None:
    schema = await store.register([key("a")])
    await store.append([row(schema, T0, 1), row(schema, T0, 2)])
    await store.append([row(schema, T0, 3)])
    assert await read(store) == {"a": [(T0, 1)]}
    assert (await store.statistics()).samples == 1


async def test_a_series_in_two_schemas_is_one_series(store: MetricStore) -> None:
    first = await store.register([key("a", host="x"), key("b", host="x")])
    second = await store.register([key("c", host="x"), key("a", host="x")])
    await store.append([row(first, T0, 1, 2), row(second, T0, 9, 8), row(second, T0 + 1, 7, 6)])
    assert (await read(store))["ax"] == [(T0, 1), (T0 + 1, 6)]
    assert (await store.statistics()).series == 3


async def test_a_series_listed_twice_in_a_schema_keeps_its_first_value(store: MetricStore) -> None:
    schema = await store.register([key("a"), key("a")])
    await store.append([row(schema, T0, 1, 2)])
    assert await read(store) == {"a": [(T0, 1)]}


async def test_label_order_does_not_make_another_series(store: MetricStore) -> None:
    one = await store.register([SeriesKey((("__name__", "a"), ("x", "1")), "1", "gauge")])
    two = await store.register([SeriesKey((("x", "1"), ("__name__", "a")), "1", "gauge")])
    await store.append([row(one, T0, 1), row(two, T0 + 1, 2)])
    assert await read(store) == {"a": [(T0, 1), (T0 + 1, 2)]}


async def test_every_bit_of_a_value_survives(store: MetricStore) -> None:
    patterns = [0x7FF0_0000_0000_0002, 0x7FF8_0000_0000_0000, 0xFFF8_0000_DEAD_BEEF, 0x7FF0_0000_0000_0000, 0x8000_0000_0000_0000, 1]
    values = struct.pack("<6Q", *patterns)
    schema = await store.register([key(f"m{i}") for i in range(6)])
    await store.append([Row(schema.id, T0, np.frombuffer(values))])
    for _ in range(2):
        found = await store.select(ALL, T0, T0)
        assert sorted(s.values.tobytes() for s in found) == sorted(struct.pack("<Q", p) for p in patterns)
        await store.maintain(T0 + 2 * HOUR)


async def test_little_endian_bytes_are_values_too(store: MetricStore) -> None:
    schema = await store.register([key("a"), key("b")])
    await store.append([Row(schema.id, T0, struct.pack("<2d", 1.5, 2.5))])  # type: ignore[arg-type]  # what the store takes beyond the port
    assert await read(store) == {"a": [(T0, 1.5)], "b": [(T0, 2.5)]}


@pytest.mark.parametrize(
    ("matchers", "expected"),
    [
        ([("__name__", "=", "a")], {"ax", "ay", "a"}),
        ([("__name__", "=", "nothing")], set()),
        ([("host", "=", "")], {"a"}),
        ([("host", "!=", "")], {"ax", "ay", "by"}),
        ([("host", "!=", "x")], {"ay", "by", "a"}),
        ([("host", "=~", "x|y")], {"ax", "ay", "by"}),
        ([("host", "=~", "x|")], {"ax", "a"}),
        ([("host", "=~", "[xz]")], {"ax"}),
        ([("host", "=~", ".*")], {"ax", "ay", "by", "a"}),
        ([("host", "=~", ".+")], {"ax", "ay", "by"}),
        ([("host", "!~", "x.*")], {"ay", "by", "a"}),
        ([("host", "!~", ".*")], set()),
        ([("host", "!~", ".+")], {"a"}),
        ([("__name__", "=~", "(?i)A"), ("host", "=", "y")], {"ay"}),
        ([("__name__", "=", "a"), ("host", "!=", "x"), ("host", "!=", "")], {"ay"}),
        ([("absent", "=", "")], {"ax", "ay", "by", "a"}),
        ([("absent", "!=", "")], set()),
        ([], {"ax", "ay", "by", "a"}),
    ],
)
async def test_matchers_choose_series(store: MetricStore, matchers: list[tuple[str, str, str]], expected: set[str]) -> None:
    schema = await store.register([key("a", host="x"), key("a", host="y"), key("b", host="y"), key("a")])
    await store.append([row(schema, T0, 1, 2, 3, 4)])
    found = await store.select([Matcher(*m) for m in matchers], T0, T0)
    assert {s.labels["__name__"] + s.labels.get("host", "") for s in found} == expected


@pytest.mark.parametrize("pattern", ["(", "a)(b", "(?=x)", r"(a)\1", "a" * 20_000, "((a{1000}){1000}){1000}"])
async def test_an_unusable_regular_expression_is_refused(store: MetricStore, pattern: str) -> None:
    with pytest.raises(PlatformError) as caught:
        await store.select([Matcher("a", "=~", pattern)], 0, T0)
    assert caught.value.code == "invalid-request"


async def test_a_pattern_that_backtracks_exponentially_elsewhere_is_answered_at_once(store: MetricStore) -> None:
    schema = await store.register([key("a", host="a" * 5000 + "b")])
    await store.append([row(schema, T0, 1)])
    assert await store.select([Matcher("host", "=~", "((a+)+)+")], T0, T0) == []


async def test_a_range_that_is_too_large_is_refused(store: MetricStore) -> None:
    schema = await store.register([key("a"), key("b")])
    await store.append([row(schema, T0 + t, 1, 2) for t in range(10)])
    assert len(await store.select(ALL, T0, T0 + 9, max_samples=20)) == 2
    with pytest.raises(PlatformError) as caught:
        await store.select(ALL, T0, T0 + 9, max_samples=19)
    assert caught.value.code == "query-too-large"


async def test_label_queries_know_what_there_is(store: MetricStore) -> None:
    schema = await store.register([key("a", host="x"), key("a", host="y", zone="1"), key("b", host="y")])
    await store.append([row(schema, T0, 1, 2, 3)])
    assert await store.label_names([], T0, T0) == ["__name__", "host", "zone"]
    assert await store.label_values("host", [], T0, T0) == ["x", "y"]
    assert await store.label_values("host", [Matcher("zone", "=", "1")], T0, T0) == ["y"]
    assert await store.label_values("absent", [], T0, T0) == []
    assert await store.label_names([Matcher("host", "=", "nobody")], T0, T0) == []
    found = await store.series([Matcher("__name__", "=", "a")], T0, T0)
    assert sorted(s["host"] for s in found) == ["x", "y"]
    assert await store.series([], T0 + 3 * DAY, T0 + 4 * DAY) == []


async def test_a_series_never_written_to_is_not_among_the_present_ones(store: MetricStore) -> None:
    await store.register([key("silent")])
    assert await store.series([], 0, T0 * 2) == []
    assert await store.label_values("__name__", [], 0, T0 * 2) == []


async def test_metadata_is_that_of_the_latest_registration(store: MetricStore) -> None:
    await store.register([key("b", unit="By"), key("a", unit="s", kind="counter")])
    assert [(m.name, m.unit, m.kind) for m in await store.metadata()] == [("a", "s", "counter"), ("b", "By", "gauge")]
    await store.register([key("b", unit="kBy", kind="updowncounter")])
    assert [(m.name, m.unit, m.kind) for m in await store.metadata()] == [("a", "s", "counter"), ("b", "kBy", "updowncounter")]


@pytest.mark.parametrize("bad", ["unknown schema", "too few values", "not whole values"])
async def test_an_impossible_row_refuses_the_whole_append(store: MetricStore, bad: str) -> None:
    schema = await store.register([key("a"), key("b")])
    wrong = {
        "unknown schema": Row(99, T0, np.zeros(2)),
        "too few values": row(schema, T0, 1),
        "not whole values": Row(schema.id, T0, b"123"),  # type: ignore[arg-type]  # on purpose
    }[bad]
    with pytest.raises((PlatformError, ValueError)):
        await store.append([row(schema, T0, 1, 2), wrong])
    assert await read(store) == {}


async def test_a_schema_without_series_is_refused(store: MetricStore) -> None:
    with pytest.raises(PlatformError):
        await store.register([])


async def test_statistics_count_what_is_stored(store: MetricStore) -> None:
    empty = await store.statistics()
    assert (empty.series, empty.samples, empty.oldest_ms, empty.newest_ms) == (0, 0, None, None)
    schema = await store.register([key("a"), key("b")])
    await store.append([row(schema, T0 + t * HOUR, 1, 2) for t in range(3)])
    for now in (T0, T0 + 3 * HOUR):
        await store.maintain(now)
        known = await store.statistics()
        assert (known.series, known.samples, known.oldest_ms, known.newest_ms) == (2, 6, T0, T0 + 2 * HOUR)


async def test_maintenance_changes_no_answer(store: MetricStore) -> None:
    schema = await store.register([key("a"), key("b", host="h")])
    await store.append([row(schema, T0 + t * 60_000, t, t / 10) for t in range(300)])
    before = await read(store)
    await store.maintain(T0 + 4 * HOUR)
    assert await read(store) == before
    await store.append([row(schema, T0 + 30_000, 7, 8), row(schema, T0 + 60_000, 9, 9)])  # late, and late again
    late = await read(store)
    assert late["a"] == sorted([*before["a"], (T0 + 30_000, 7.0)])
    await store.maintain(T0 + 4 * HOUR)
    assert await read(store) == late
    assert (await store.statistics()).samples == 602


async def test_what_is_past_retention_goes_by_whole_days(store: MetricStore) -> None:
    schema = await store.register([key("a")])
    await store.append([row(schema, T0 + day * DAY + HOUR, day) for day in range(4)])
    await store.maintain(T0 + 3 * DAY + 2 * HOUR)
    assert (await read(store))["a"] == [(T0 + day * DAY + HOUR, day) for day in (1, 2, 3)]
    assert (await store.statistics()).oldest_ms == T0 + DAY + HOUR


async def test_concurrent_appends_and_reads_agree(store: MetricStore) -> None:
    schemas = [await store.register([key("a", host=str(n)), key("b", host=str(n))]) for n in range(8)]

    async def agent(schema: Schema) -> None:
        for t in range(25):
            await store.append([row(schema, T0 + t, t, -t)])
            (a,) = await store.select([Matcher("__name__", "=", "a"), Matcher("host", "=", str(schemas.index(schema)))], T0, T0 + t)
            assert a.times.tolist() == list(range(T0, T0 + t + 1))

    await asyncio.gather(*map(agent, schemas))
    assert (await store.statistics()).samples == 8 * 25 * 2
