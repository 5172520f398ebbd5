from __future__ import annotations

from datetime import UTC, datetime

import pytest
from opamp_client import OpampAgent
from test_enrolment import enrolled, exchange, only_instance, provision

from app.audit.records import SYSTEM
from app.audit.service import AuditFilter
from app.auth.service import Identity, Role
from app.errors import ConflictError, ForbiddenError, InvalidRequestError, NotFoundError
from app.events.records import MUTED, EventRecord
from app.fleet.maintenance import MaintenanceSelector, WindowSpec, WindowState
from app.webhooks.filters import WebhookFilters, wants

ADMIN = Identity("k", "admin", Role.ADMIN)
TEAM = Identity("t", "team", Role.OPERATOR, ("team-*",))


def selector(**parts) -> MaintenanceSelector:
    return MaintenanceSelector.model_validate(parts)


async def muted(parts, seconds: float = 600.0, *, identity: Identity = ADMIN, starts_at: float | None = None, **parts_of):
    start = None if starts_at is None else datetime.fromtimestamp(starts_at, UTC)
    spec = WindowSpec("patching", selector(**(parts_of or {"environments": ["prod"]})), seconds, start)
    return await parts.fleet.maintenance.create(spec, SYSTEM, identity)


@pytest.fixture
async def joined(parts):
    agent = OpampAgent()
    credential = await enrolled(parts, await provision(parts, labels={"team": "shop"}), agent)
    await parts.fleet.flush()
    return agent, credential


def happened(instance, at: float, **attributes) -> EventRecord:
    about = {"instance_id": instance.id, "agent_id": instance.agent_id}
    return EventRecord(f"e{at}{len(attributes)}", "irca.server.reboot", int(at * 1e9), 17, attributes=attributes, **about)


async def marks(parts) -> list[bool]:
    page = await parts.events.list_events(name="irca.server.reboot")
    return [MUTED in e.attributes for e in reversed(page.items)]


async def test_events_of_its_instances_are_muted_by_the_time_they_happened_at(parts, joined):
    instance, now = await only_instance(parts), parts.clock.now
    await muted(parts, 600.0)
    parts.clock.advance(900)
    await parts.events.record([happened(instance, now - 1), happened(instance, now + 599), happened(instance, now + 601)])
    assert await marks(parts) == [False, True, False]


async def test_only_the_platform_mutes(parts, joined):
    instance = await only_instance(parts)
    await parts.events.record([happened(instance, parts.clock.now, **{MUTED: True, "x": 1})])
    [event] = (await parts.events.list_events(name="irca.server.reboot")).items
    assert event.attributes == {"x": 1}


async def test_the_outbox_is_told_of_the_mark_and_webhooks_leave_it_out(parts, joined):
    instance, seen = await only_instance(parts), []

    async def outbox(_session, records):
        seen.extend(records)

    parts.events.outbox = outbox
    await muted(parts)
    await parts.events.record([happened(instance, parts.clock.now)])
    parts.clock.advance(300)
    await parts.fleet.sweep()
    assert [r.name for r in seen] == ["irca.server.reboot", "irca.instance.status_changed", "irca.instance.went_quiet"]
    assert not any(wants(WebhookFilters(), r) for r in seen)


async def test_what_no_instance_did_is_never_muted(parts, joined):
    await muted(parts, environments=["*"])
    await provision(parts, "prod")
    [event, *_] = (await parts.events.list_events(name="irca.agent.provisioned")).items
    assert MUTED not in event.attributes


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ({"environments": ["pr*"]}, True),
        ({"environments": ["staging", "prod"]}, True),
        ({"environments": ["staging"]}, False),
        ({"labels": {"team": "sh*"}}, True),
        ({"labels": {"team": "shop", "tier": "*"}}, False),
        ({"environments": ["prod"], "labels": {"team": "other"}}, False),
        ({"agent_ids": ["somebody-else"]}, False),
    ],
)
async def test_a_selector_means_agents_that_meet_every_part(parts, joined, wanted, meant):
    window = await muted(parts, **wanted)
    assert window.agents == int(meant)
    instance = await only_instance(parts)
    assert (instance.maintenance_until is not None) is meant
    assert ((await parts.fleet.get_agent(instance.agent_id)).maintenance_until is not None) is meant


async def test_an_agent_is_meant_by_its_id(parts, joined):
    assert (await muted(parts, agent_ids=[(await only_instance(parts)).agent_id])).agents == 1


async def test_a_window_begins_and_ends_by_the_clock_and_survives_a_restart(parts, joined):
    window = await muted(parts, 600.0, starts_at=parts.clock.now + 300)
    assert window.state is WindowState.SCHEDULED
    assert (await only_instance(parts)).maintenance_until is None
    for advance, state in ((301, WindowState.ACTIVE), (600, WindowState.ENDED)):
        parts.clock.advance(advance)
        fresh = await parts.restarted()
        assert fresh.fleet.maintenance.get(window.id, ADMIN).state is state
        assert ((await only_instance(fresh)).maintenance_until is not None) is (state is WindowState.ACTIVE)


async def test_ending_one_ends_the_mute_at_once_and_is_on_record(parts, joined):
    window = await muted(parts)
    parts.clock.advance(60)
    ended = await parts.fleet.maintenance.end(window.id, SYSTEM, ADMIN)
    assert (ended.state, (ended.ends_at - ended.starts_at).total_seconds()) == (WindowState.ENDED, 60)
    assert (await only_instance(parts)).maintenance_until is None
    with pytest.raises(ConflictError):
        await parts.fleet.maintenance.end(window.id, SYSTEM, ADMIN)
    entries = (await parts.fleet.audit.list_entries(AuditFilter(target_kind="maintenance-window"))).items
    assert {e.action for e in entries} == {"maintenance.create", "maintenance.end"}
    assert next(e for e in entries if e.action == "maintenance.end").before.keys() == {"ends_at"}
    assert (await parts.restarted()).fleet.maintenance.get(window.id, ADMIN).state is WindowState.ENDED


async def test_one_that_has_not_begun_is_cancelled(parts, joined):
    window = await muted(parts, starts_at=parts.clock.now + 300)
    assert (await parts.fleet.maintenance.end(window.id, SYSTEM, ADMIN)).state is WindowState.CANCELLED
    parts.clock.advance(400)
    assert parts.fleet.maintenance.get(window.id, ADMIN).state is WindowState.CANCELLED
    assert (await only_instance(parts)).maintenance_until is None


async def test_maintenance_is_left_out_of_availability(parts, joined):
    begun = parts.clock.now
    await muted(parts, 1000.0)
    for _ in range(200):
        parts.clock.advance(10)
        await parts.fleet.sweep()
    instance = await only_instance(parts)
    told, figures = await parts.fleet.history.of_instance(instance.id, datetime.fromtimestamp(begun, UTC))
    assert [(s.end - s.start).total_seconds() for s in told.maintenance] == [1000]
    assert figures.maintenance_seconds == pytest.approx(1000)
    assert figures.available == 0.0


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("reason", WindowSpec("  ", selector(environments=["x"]), 60.0)),
        ("selector", WindowSpec("r", selector(), 60.0)),
        ("duration", WindowSpec("r", selector(environments=["x"]), 31 * 86_400.0)),
        ("starts_at", WindowSpec("r", selector(environments=["x"]), 60.0, datetime(2020, 1, 1, tzinfo=UTC))),
        ("starts_at", WindowSpec("r", selector(environments=["x"]), 60.0, datetime(2030, 1, 1))),  # noqa: DTZ001 - without a zone on purpose
    ],
)
async def test_a_window_that_is_of_no_use_is_refused_by_its_field(parts, field, spec):
    with pytest.raises(InvalidRequestError) as caught:
        await parts.fleet.maintenance.create(spec, SYSTEM, ADMIN)
    assert [e.field for e in caught.value.errors] == [field]


async def test_what_was_told_before_is_not_muted_afterwards(parts, joined):
    window = await muted(parts, 600.0, starts_at=parts.clock.now - 300)
    assert window.starts_at.timestamp() == parts.clock.now


async def test_whoever_is_limited_mutes_sees_and_ends_only_what_is_theirs(parts, joined):
    await provision(parts, "team-a")
    for refused in ({"environments": ["prod"]}, {"environments": ["*"]}, {"environments": ["team-?"]}, {"labels": {"team": "shop"}}):
        with pytest.raises(ForbiddenError):
            await muted(parts, identity=TEAM, **refused)
    own = [await muted(parts, identity=TEAM, environments=[name]) for name in ("team-a", "team-*")]
    of_all, foreign = await muted(parts, environments=["*"]), await muted(parts)
    service = parts.fleet.maintenance
    assert {w.id for w in service.list_windows(TEAM).items} == {*(w.id for w in own), of_all.id}
    assert service.get(of_all.id, TEAM).agents == 1
    with pytest.raises(NotFoundError):
        service.get(foreign.id, TEAM)
    with pytest.raises(ForbiddenError):
        await service.end(of_all.id, SYSTEM, TEAM)
    parts.clock.advance(1)
    assert (await service.end(own[0].id, SYSTEM, TEAM)).state is WindowState.ENDED


async def test_windows_are_listed_latest_first_page_by_page_and_dropped_when_old(parts, joined):
    made = []
    for number in range(5):
        parts.clock.advance(10)
        made.append((await muted(parts, 60.0 if number else 86_400.0)).id)
    service = parts.fleet.maintenance
    first = service.list_windows(ADMIN, None, 2)
    second = service.list_windows(ADMIN, first.next_cursor, 3)
    assert [w.id for w in [*first.items, *second.items]] == made[::-1]
    assert second.next_cursor is None
    parts.clock.advance(3600)
    assert [w.id for w in service.list_windows(ADMIN, state=WindowState.ACTIVE).items] == made[:1]
    with pytest.raises(InvalidRequestError):
        service.list_windows(ADMIN, "nonsense")
    assert await service.drop_older(600.0) == 4
    assert [w.id for w in (await parts.restarted()).fleet.maintenance.list_windows(ADMIN).items] == made[:1]


async def test_a_heartbeat_in_maintenance_is_answered_as_ever(parts, joined):
    agent, credential = joined
    await muted(parts)
    assert (await exchange(parts, credential, agent)).flags == 0
