from __future__ import annotations

import asyncio

import pytest
from opamp_client import OpampAgent
from sqlalchemy import event as sa_event
from test_enrolment import enrolled, exchange, only_instance, provision

from app.errors import InvalidRequestError, NotFoundError, StorageError
from app.fleet.views import Status


@pytest.fixture
async def joined(parts):
    agent = OpampAgent()
    credential = await enrolled(parts, await provision(parts, labels={"team": "shop"}), agent)
    await parts.fleet.flush()
    return agent, credential


async def statuses(parts) -> list[str]:
    events = (await parts.events.list_events(name="irca.instance.status_changed", limit=100)).items
    return [e.attributes["irca.status"] for e in reversed(events)]


async def test_heartbeats_reach_the_database_in_one_statement_and_survive_a_restart(parts):
    for number in range(5):
        await enrolled(parts, await provision(parts, f"env-{number}"), OpampAgent(fingerprint=f"m{number}", host=f"h{number}"))
    statements = []
    sa_event.listen(parts.database._engine.sync_engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    assert await parts.fleet.flush() == 5
    beats = [s for s in statements if "last_seen_at" in s and s.startswith("UPDATE")]
    assert len(beats) == 1
    assert {i.name for i in (await (await parts.restarted()).fleet.list_instances()).items} == {f"h{n}" for n in range(5)}


async def test_a_flush_that_fails_keeps_what_it_had_for_the_next(parts, joined, monkeypatch):
    agent, credential = joined
    await exchange(parts, credential, agent)

    async def broken(*_):
        raise StorageError

    with monkeypatch.context() as patch:
        patch.setattr("app.fleet.repository.save_beats", broken)
        with pytest.raises(StorageError):
            await parts.fleet.flush()
    assert await parts.fleet.flush() == 1


async def test_silence_degrades_then_takes_offline_and_two_beats_bring_back(parts, joined):
    agent, credential = joined
    for _ in range(80):
        parts.clock.advance(2)
        await parts.fleet.sweep()
    assert (await only_instance(parts)).status is Status.OFFLINE
    for _ in range(2):
        await exchange(parts, credential, agent)
        await parts.fleet.flush()
        parts.clock.advance(30)
    assert await statuses(parts) == ["healthy", "degraded", "offline", "degraded", "healthy"]


async def test_a_transition_and_its_event_are_written_together_or_not_at_all(parts, joined, monkeypatch):
    parts.clock.advance(300)

    async def broken(*_):
        raise StorageError

    with monkeypatch.context() as patch:
        patch.setattr(parts.events, "add", broken)
        with pytest.raises(StorageError):
            await parts.fleet.sweep()
    assert (await only_instance(parts)).status is Status.HEALTHY
    assert (await only_instance(await parts.restarted())).status is Status.HEALTHY
    await parts.fleet.sweep()
    assert (await only_instance(parts)).status is Status.OFFLINE


async def test_transitions_go_out_live_only_after_they_are_committed(parts, joined):
    parts.clock.advance(300)
    async with parts.live.subscribe() as queue:
        await parts.fleet.sweep()
        topics = [queue.get_nowait().topic for _ in range(queue.qsize())]
    assert topics == ["event", "event", "instance"]


async def test_a_restart_of_the_platform_raises_no_false_alarm(parts, joined):
    parts.clock.advance(3600)  # the platform was down for an hour
    fresh = await parts.restarted()
    await fresh.fleet.sweep()
    assert (await only_instance(fresh)).status is Status.HEALTHY
    parts.clock.advance(200)
    await fresh.fleet.sweep()
    assert (await only_instance(fresh)).status is Status.OFFLINE


async def test_a_restart_does_not_make_an_offline_instance_look_well(parts, joined):
    parts.clock.advance(300)
    await parts.fleet.sweep()
    fresh = await parts.restarted()
    await fresh.fleet.sweep()
    assert (await only_instance(fresh)).status is Status.OFFLINE


async def test_goodbye_is_stopped_and_the_next_beat_is_healthy(parts, joined):
    agent, credential = joined
    await exchange(parts, credential, agent, goodbye=True)
    await parts.fleet.flush()
    assert (await only_instance(parts)).status is Status.STOPPED
    parts.clock.advance(3600)
    await exchange(parts, credential, agent)
    await parts.fleet.flush()
    assert (await only_instance(parts)).status is Status.HEALTHY


async def test_an_unhealthy_report_shows_with_its_reason_and_components(parts, joined):
    agent, credential = joined
    await exchange(parts, credential, agent, healthy=False, error="collector cpu: no such file")
    await parts.fleet.flush()
    instance = await only_instance(parts)
    assert (instance.status, instance.status_reason) == (Status.DEGRADED, "collector cpu: no such file")
    assert [(c.name, c.healthy) for c in instance.components] == [("collector/cpu", False)]
    assert instance.effective_config == {"log_level": "info"}


async def test_two_weeks_of_silence_archive_and_a_heartbeat_revives(parts, joined):
    agent, credential = joined
    parts.clock.advance(15 * 86_400)
    await parts.fleet.sweep()
    assert (await parts.fleet.list_agents()).items[0].status is Status.ARCHIVED
    await exchange(parts, credential, agent)
    await parts.fleet.flush()
    assert (await only_instance(parts)).status is Status.HEALTHY


async def test_missed_sequence_numbers_make_the_platform_ask_for_the_full_state(parts, joined):
    agent, credential = joined
    agent.sequence -= 1  # a retry repeats its number
    assert (await exchange(parts, credential, agent)).flags == 0
    agent.sequence += 3
    assert (await exchange(parts, credential, agent)).flags == 1


async def test_agents_are_listed_problems_first_page_by_page(parts):
    for number in range(7):
        agent = OpampAgent(fingerprint=f"m{number}", host=f"host-{number}")
        credential = await enrolled(parts, await provision(parts, f"env-{number}"), agent)
        if number == 5:
            await exchange(parts, credential, agent, healthy=False, error="bad")
    await provision(parts, "new-one")
    await parts.fleet.flush()
    seen, cursor = [], None
    while True:
        page = await parts.fleet.list_agents(cursor, 3)
        seen += [(a.environment_name, a.status.value) for a in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    expected = [("env-5", "degraded"), ("new-one", "pending"), *((f"env-{n}", "healthy") for n in (0, 1, 2, 3, 4, 6))]
    assert seen == expected
    instances = await parts.fleet.list_instances(limit=4)
    rest = await parts.fleet.list_instances(instances.next_cursor, 4)
    assert [i.name for i in [*instances.items, *rest.items]] == ["host-5", *(f"host-{n}" for n in (0, 1, 2, 3, 4, 6))]
    assert rest.next_cursor is None


async def test_agents_are_found_by_status_type_environment_and_text(parts, joined):
    await provision(parts, "other", agent_type="docker")

    async def found(**filters) -> list[str]:
        return [a.environment_name for a in (await parts.fleet.list_agents(**filters)).items]

    assert await found(status=Status.HEALTHY) == ["prod"]
    assert await found(agent_type="docker") == ["other"]
    assert await found(environment_name="prod") == ["prod"]
    assert await found(search="WEB-1") == ["prod"]
    assert await found(search="team=shop") == ["prod"]
    assert await found(search="nothing") == []
    assert (await parts.fleet.status_counts())[Status.PENDING] == 1


@pytest.mark.parametrize("cursor", ["nonsense", "W10", "WzEsMiwzLDRd", "%%%"])
async def test_a_foreign_cursor_is_refused(parts, cursor):
    with pytest.raises(InvalidRequestError):
        await parts.fleet.list_agents(cursor)
    with pytest.raises(InvalidRequestError):
        await parts.events.list_events(cursor)


async def test_what_is_not_there_is_not_found(parts):
    for ask in (parts.fleet.get_agent, parts.fleet.get_instance, parts.events.get_event):
        with pytest.raises(NotFoundError):
            await ask("nothing")


async def test_an_agents_version_is_its_oldest_instances(parts):
    token = await provision(parts, agent_type="kubernetes")
    for number, version in enumerate(("0.10.0", "0.9.1", "")):
        agent = OpampAgent(fingerprint=f"p{number}", version=version, extra={"k8s.cluster.uid": "c"})
        await enrolled(parts, token, agent)
    assert (await parts.fleet.list_agents()).items[0].version == "0.9.1"


async def test_heartbeats_and_flushes_at_the_same_time_lose_nothing(parts, joined):
    agent, credential = joined
    for _ in range(20):
        parts.clock.advance(1)
        await asyncio.gather(exchange(parts, credential, agent), parts.fleet.flush(), parts.fleet.sweep())
    await parts.fleet.flush()
    fresh = await parts.restarted()
    assert (await only_instance(fresh)).last_seen_at.timestamp() == parts.clock.now
