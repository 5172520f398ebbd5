from __future__ import annotations

import pytest
from opamp_client import OpampAgent
from test_enrolment import enrolled, exchange, provision

from app.audit.records import SYSTEM
from app.auth.service import Identity, Role
from app.events.records import MUTED, EventRecord
from app.fleet.maintenance import MaintenanceSelector, WindowSpec

ADMIN = Identity("k", "admin", Role.ADMIN)


@pytest.fixture
async def joined(parts):
    agent = OpampAgent()
    credential = await enrolled(parts, await provision(parts), agent)
    await parts.fleet.flush()
    return agent, credential


async def told(parts) -> list[EventRecord]:
    """Events of going quiet and coming back, oldest first."""
    page = await parts.events.list_events(limit=500)
    return [e for e in reversed(page.items) if e.name in ("irca.instance.went_quiet", "irca.instance.back")]


async def silence(parts, seconds: int) -> None:
    for _ in range(seconds // 10):
        parts.clock.advance(10)
        await parts.fleet.sweep()


async def beats(parts, joined, count: int = 3) -> None:
    agent, credential = joined
    for _ in range(count):
        await exchange(parts, credential, agent)
        await parts.fleet.flush()
        parts.clock.advance(30)


async def test_going_quiet_is_told_once_and_coming_back_with_the_length_of_the_silence(parts, joined):
    heard = parts.clock.now
    await silence(parts, 600)
    [quiet] = await told(parts)
    assert (quiet.name, quiet.severity) == ("irca.instance.went_quiet", "error")
    assert quiet.attributes["irca.silence.start_time_unix_nano"] == int(heard * 1e9)
    assert "went quiet" in quiet.body
    await beats(parts, joined)
    _, back = await told(parts)
    assert (back.name, back.severity) == ("irca.instance.back", "info")
    assert back.attributes["irca.silence.seconds"] == pytest.approx(600, abs=1)


async def test_a_sign_of_life_in_the_middle_of_a_silence_is_no_news(parts, joined):
    await silence(parts, 300)
    await beats(parts, joined, 1)
    await silence(parts, 300)
    assert [e.name for e in await told(parts)] == ["irca.instance.went_quiet"]


async def test_a_goodbye_is_not_going_quiet(parts, joined):
    agent, credential = joined
    await exchange(parts, credential, agent, goodbye=True)
    await parts.fleet.flush()
    await silence(parts, 600)
    assert await told(parts) == []


async def test_one_that_comes_back_unwell_or_to_say_goodbye_is_back_too(parts, joined):
    agent, credential = joined
    for beat in ({"healthy": False, "error": "disk"}, {"goodbye": True, "healthy": True}):
        await silence(parts, 300)
        await exchange(parts, credential, agent, **beat)
        await parts.fleet.flush()
        if "goodbye" not in beat:
            await beats(parts, joined, 0)
            await exchange(parts, credential, agent, healthy=True)
            await parts.fleet.flush()
    names = [e.name.rpartition(".")[2] for e in await told(parts)]
    assert names == ["went_quiet", "back", "went_quiet", "back"]


async def test_the_silence_is_remembered_over_a_restart_and_in_the_archive(parts, joined):
    await silence(parts, 300)
    fresh = await parts.restarted()
    await silence(fresh, 100)
    parts.clock.advance(15 * 86_400)
    await fresh.fleet.sweep()
    again = await fresh.restarted()
    await beats(again, joined)
    quiet, back = await told(again)
    assert back.attributes["irca.silence.start_time_unix_nano"] == quiet.attributes["irca.silence.start_time_unix_nano"]
    assert back.attributes["irca.silence.seconds"] == pytest.approx(400 + 15 * 86_400, abs=1)


async def test_in_maintenance_it_is_muted_and_told_aloud_when_the_window_is_over(parts, joined):
    spec = WindowSpec("patching", MaintenanceSelector(environments=["prod"]), 600.0)
    await parts.fleet.maintenance.create(spec, SYSTEM, ADMIN)
    await silence(parts, 500)
    [muted] = await told(parts)
    assert muted.attributes[MUTED] is True
    await silence(parts, 300)
    _, aloud = await told(parts)
    assert MUTED not in aloud.attributes
    assert aloud.attributes["irca.maintenance.ended"] is True
    assert "still quiet" in aloud.body
    await silence(parts, 300)
    assert len(await told(parts)) == 2


async def test_one_that_is_back_before_its_maintenance_ends_is_never_told_aloud(parts, joined):
    spec = WindowSpec("patching", MaintenanceSelector(environments=["prod"]), 3600.0)
    await parts.fleet.maintenance.create(spec, SYSTEM, ADMIN)
    await silence(parts, 500)
    await beats(parts, joined)
    assert [e.attributes.get(MUTED) for e in await told(parts)] == [True, True]


async def test_maintenance_that_was_muting_is_remembered_over_a_restart(parts, joined):
    spec = WindowSpec("patching", MaintenanceSelector(environments=["prod"]), 600.0)
    await parts.fleet.maintenance.create(spec, SYSTEM, ADMIN)
    await silence(parts, 300)
    fresh = await parts.restarted()
    await silence(fresh, 600)
    assert [e.attributes.get(MUTED) for e in await told(fresh)] == [True, None]


async def test_replaced_pods_do_not_go_quiet_and_the_last_one_does(parts):
    token = await provision(parts, agent_type="kubernetes")
    pods = [OpampAgent(fingerprint=f"p{n}", host=f"pod-{n}", extra={"k8s.cluster.uid": "c", "k8s.pod.name": f"pod-{n}"}) for n in range(2)]
    credentials = [await enrolled(parts, token, pod) for pod in pods]
    await parts.fleet.flush()
    for step in range(60):
        if step % 3 == 0:
            await exchange(parts, credentials[1], pods[1])
        await parts.fleet.flush()
        await silence(parts, 10)
    assert await told(parts) == []
    await silence(parts, 600)
    assert [e.body.split(" went")[0] for e in await told(parts) if "went_quiet" in e.name][-1] == "pod-1"
