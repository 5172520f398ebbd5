from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opamp_client import OpampAgent
from sqlalchemy import event as sa_event
from test_enrolment import enrolled, exchange, only_instance, provision

from app.errors import InvalidRequestError, NotFoundError
from app.fleet import status as rules
from app.fleet.history import AVAILABLE, Change, Life, Stretch, availability, combined, merged, timeline
from app.fleet.views import Status

H, D, O, P, S = Status.HEALTHY, Status.DEGRADED, Status.OFFLINE, Status.PENDING, Status.STOPPED  # noqa: E741 - a legend, not a number


def life(*changes: tuple[float, Status, Status], now: Status = H, since: float = 0.0, work: str = "") -> Life:
    return Life([Change(*change) for change in changes], now, "", since, work)


def shape(stretches: list[Stretch]) -> list[tuple[float, float, Status | None]]:
    return [(s.start, s.end, s.status) for s in stretches]


def worst(pairs) -> tuple[Status, str]:
    return rules.worst([status for _, status in pairs]), ""


def test_a_timeline_has_no_gap_and_begins_with_what_was_before():
    told = timeline(life((30, H, D), (40, D, O), (90, O, H)), 10, 100)
    assert shape(told) == [(10, 30, H), (30, 40, D), (40, 90, O), (90, 100, H)]


def test_without_changes_it_is_as_it_stands():
    assert shape(timeline(life(now=O), 10, 100)) == [(10, 100, O)]


def test_before_it_was_known_nothing_is_said():
    assert shape(timeline(life((60, P, H), since=50.0), 10, 100)) == [(10, 50, None), (50, 60, P), (60, 100, H)]
    assert shape(timeline(life(since=500.0), 10, 100)) == [(10, 100, None)]


def test_changes_after_the_range_say_how_it_stood_in_it():
    assert shape(timeline(life((200, H, O), now=O), 10, 100)) == [(10, 100, H)]


def test_availability_is_the_share_heard_and_leaves_out_maintenance_stops_and_the_unknown():
    stretches = timeline(life((20, P, H), (60, H, O), (80, O, D), (90, D, S), since=10.0), 0, 100)
    figures = availability(stretches, [(60, 70), (65, 75)])
    assert figures.seconds[H] == 40
    assert figures.seconds[O] == 5
    assert (figures.maintenance, figures.unknown, figures.outages) == (15, 10, 1)
    assert figures.available == pytest.approx(50 / 55)


def test_an_outage_wholly_in_maintenance_is_none_and_a_replaced_pod_is_no_outage():
    assert availability([Stretch(0, 10, O)], [(0, 10)]).outages == 0
    assert availability([Stretch(0, 10, O)], [(0, 10)]).available is None
    gone = availability([Stretch(0, 10, O, "", replaced=True), Stretch(10, 20, H)], [])
    assert (gone.available, gone.replaced, gone.outages) == (1.0, 10, 0)


_TIMES = st.floats(0, 1000)


@given(st.lists(st.tuples(_TIMES, st.sampled_from(list(Status))), max_size=12), st.lists(st.tuples(_TIMES, _TIMES), max_size=4), _TIMES)
def test_every_second_of_a_range_is_counted_once(points, spans, since):
    changes, before = [], P
    for time, status in sorted(points, key=lambda p: p[0]):
        changes.append(Change(time, before, status))
        before = status
    stretches = timeline(Life(changes, before, "", since), 100.0, 900.0)
    assert stretches[0].start == 100.0
    assert stretches[-1].end == 900.0
    assert all(a.end == b.start for a, b in pairwise(stretches))
    figures = availability(stretches, [(a, b) for a, b in spans if a < b])
    total = sum(figures.seconds.values()) + figures.maintenance + figures.unknown + figures.replaced
    assert total == pytest.approx(800.0)
    assert figures.available is None or 0.0 <= figures.available <= 1.0


@given(st.lists(st.tuples(_TIMES, _TIMES), max_size=8))
def test_merged_times_neither_overlap_nor_lose_a_second(spans):
    found = merged([(a, b) for a, b in spans if a < b])
    assert all(a[1] < b[0] for a, b in pairwise(found))
    for a, b in spans:
        assert a >= b or any(start <= a and b <= end for start, end in found)


def test_an_agent_is_as_well_as_its_worst_instance_at_every_moment():
    lives = {"a": life((30, H, O), (50, O, H)), "b": life((40, H, D), (60, D, H)), "c": life((70, P, H), since=65.0)}
    agent = combined(lives, worst, 100)
    assert shape(timeline(agent, 0, 100)) == [(0, 30, H), (30, 50, O), (50, 60, D), (60, 65, H), (65, 70, P), (70, 100, H)]
    assert combined({}, worst, 100).known_since == 100


def test_an_agents_reason_names_the_instance():
    one = Life([Change(30, H, O, "no heartbeat")], O, "no heartbeat", 0.0)
    assert combined({"web-1": one}, worst, 100).changes[-1].reason == "web-1: no heartbeat"


@pytest.fixture
async def outage(parts):
    """An instance that was heard for ten minutes, silent for ten, and heard for ten again."""
    agent = OpampAgent()
    credential = await enrolled(parts, await provision(parts), agent)
    begun = parts.clock.now
    for step in range(180):
        if step % 3 == 0 and not 60 <= step < 120:
            await exchange(parts, credential, agent)
        await parts.fleet.flush()
        await parts.fleet.sweep()
        parts.clock.advance(10)
    return begun


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


async def test_the_history_of_an_outage_is_read_in_one_statement(parts, outage):
    instance = await only_instance(parts)
    statements = []
    sa_event.listen(parts.database._engine.sync_engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    told, figures = await parts.fleet.history.of_instance(instance.id, moment(outage), moment(parts.clock.now))
    assert len([s for s in statements if s.lstrip().upper().startswith("SELECT")]) == 1
    assert [s.status for s in told.stretches] == [H, D, O, D, H]
    assert told.stretches[0].start == moment(outage)
    assert figures.outages == 1
    assert 0.6 < figures.available < 0.8
    assert next(s.reason for s in told.stretches if s.status is O).startswith("no heartbeat")
    agents, of_agent = await parts.fleet.history.of_agent(instance.agent_id, moment(outage), moment(parts.clock.now))
    assert [s.status for s in agents.stretches] == [s.status for s in told.stretches]
    assert of_agent.available == pytest.approx(figures.available)


async def test_a_range_within_the_outage_is_offline_throughout(parts, outage):
    instance = await only_instance(parts)
    told, figures = await parts.fleet.history.of_instance(instance.id, moment(outage + 900), moment(outage + 1000))
    assert [s.status for s in told.stretches] == [O]
    assert figures.available == 0.0


async def test_a_history_survives_a_restart_and_reaches_back_no_further_than_first_contact(parts, outage):
    fresh = await parts.restarted()
    told, figures = await fresh.fleet.history.of_instance((await only_instance(fresh)).id)
    assert told.stretches[0].status is None
    assert figures.unknown_seconds == pytest.approx(86_400 - 1800, abs=60)
    assert sum(figures.seconds[s] for s in AVAILABLE) > 1000


async def test_a_range_that_is_none_and_an_unknown_instance_are_refused(parts, outage):
    instance = await only_instance(parts)
    of = parts.fleet.history.of_instance
    for start, end in ((moment(outage + 10), moment(outage)), (datetime(2020, 1, 1), None), (moment(outage - 500 * 86_400), None)):  # noqa: DTZ001 - without a zone on purpose
        with pytest.raises(InvalidRequestError):
            await of(instance.id, start, end)
    for ask in (of, parts.fleet.history.of_agent):
        with pytest.raises(NotFoundError):
            await ask("nothing")
