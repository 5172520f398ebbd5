from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from app.errors import InvalidRequestError, StorageError
from app.events.catalogue import CATALOGUE
from app.events.records import EventRecord
from app.events.service import severity_text
from app.events.stream import LiveMessage, LiveStream


def record(number: int, **fields) -> EventRecord:
    return EventRecord(**{"id": f"e{number}", "name": "container.die", "time_unix_nano": number * 1_000_000_000, **fields})


async def test_an_event_delivered_twice_is_stored_once(parts):
    assert await parts.events.record([record(1), record(2), record(1)]) == 2
    assert await parts.events.record([record(2), record(3)]) == 1
    assert [e.id for e in (await parts.events.list_events()).items] == ["e3", "e2", "e1"]
    assert await parts.events.record([]) == 0


async def test_thousands_of_events_go_in_at_once(parts):
    assert await parts.events.record([record(n) for n in range(1700)]) == 1700


async def test_events_are_found_by_filter_and_read_page_by_page(parts):
    await parts.events.record(
        [
            record(n, instance_id="i1" if n % 2 else "i2", agent_id="a", environment_name="prod", severity=17 if n == 4 else 9)
            for n in range(10)
        ]
    )
    page = await parts.events.list_events(limit=2, instance_id="i1")
    rest = await parts.events.list_events(page.next_cursor, 10, instance_id="i1")
    assert [e.id for e in [*page.items, *rest.items]] == ["e9", "e7", "e5", "e3", "e1"]
    assert rest.next_cursor is None
    window = await parts.events.list_events(start=datetime.fromtimestamp(3, UTC), end=datetime.fromtimestamp(5, UTC))
    assert [e.id for e in window.items] == ["e4", "e3"]
    assert [e.id for e in (await parts.events.list_events(min_severity=13)).items] == ["e4"]
    assert (await parts.events.list_events(environment_name="other")).items == []
    assert (await parts.events.list_events(agent_id="a", name="container.die", limit=100)).items[0].severity == "info"
    assert (await parts.events.get_event("e4")).severity == "error"


async def test_a_time_without_a_zone_is_refused(parts):
    with pytest.raises(InvalidRequestError, match="zone"):
        await parts.events.list_events(start=datetime(2026, 1, 1))  # noqa: DTZ001 - that is the point


async def test_a_bound_beyond_what_can_be_stored_is_no_bound(parts):
    await parts.events.record([record(1)])
    far = datetime.max.replace(tzinfo=UTC)
    assert len((await parts.events.list_events(end=far)).items) == 1
    assert (await parts.events.list_events(start=far)).items == []


async def test_retention_drops_the_oldest(parts):
    await parts.events.record([record(n) for n in range(5)])
    assert await parts.events.drop_older(3_000_000_000) == 3


async def test_nothing_is_recorded_when_the_database_fails(parts):
    await _execute(parts, "ALTER TABLE events RENAME TO elsewhere")
    with pytest.raises(StorageError):
        await parts.events.record([record(1)])
    await _execute(parts, "ALTER TABLE elsewhere RENAME TO events")
    assert (await parts.events.list_events()).items == []


async def test_a_value_that_no_database_holds_is_no_failure_of_the_database_and_nothing_is_recorded(parts):
    with pytest.raises(InvalidRequestError, match="a value cannot be stored"):
        await parts.events.record([record(1), record(2, time_unix_nano=2**70)])
    assert (await parts.events.list_events()).items == []


async def _execute(parts, statement: str) -> None:
    async with parts.database.write() as session:
        await session.execute(text(statement))


def test_severity_numbers_have_otels_short_names():
    assert [severity_text(n) for n in (1, 5, 9, 13, 17, 24)] == ["trace", "debug", "info", "warn", "error", "fatal"]


def test_every_catalogued_event_says_what_it_means():
    for name, kind in CATALOGUE.items():
        assert name == kind.name
        assert name.startswith("irca.")
        assert kind.meaning.endswith(".")
        assert all(text.endswith(".") for text in kind.attributes.values())


async def test_a_subscriber_that_falls_behind_is_told_and_keeps_the_newest():
    live = LiveStream(queue_size=4)
    async with live.subscribe() as queue:
        for number in range(6):
            live.publish(LiveMessage("samples", {"n": number}))
        got = [queue.get_nowait() for _ in range(queue.qsize())]
    assert live.subscribers == 0
    assert "lagged" in [m.topic for m in got]
    assert got[-1].data == {"n": 5}


def test_the_events_that_agents_record_of_themselves_are_in_the_catalogue():
    from connectors.core.identity import CLONED_EVENT, QUARANTINED_EVENT
    from connectors.core.ledger import GAP_EVENT

    for name in (CLONED_EVENT, QUARANTINED_EVENT, GAP_EVENT):
        assert CATALOGUE[name].source == "agent"
