from __future__ import annotations

import pytest
from opamp_client import OpampAgent
from test_enrolment import enrolled, exchange, only_instance, provision

from app.audit.records import SYSTEM, Actor
from app.audit.service import AuditFilter
from app.errors import ConflictError, NotFoundError
from app.fleet.views import Status

ALICE = Actor("session", "k1", "alice")


@pytest.fixture
async def joined(parts):
    agent = OpampAgent()
    credential = await enrolled(parts, await provision(parts), agent)
    await parts.fleet.flush()
    return agent, credential


async def silence(parts, seconds: float) -> None:
    parts.clock.advance(seconds)
    await parts.fleet.sweep()


async def archived(parts):
    await silence(parts, 300)
    return await parts.fleet.archive.put((await only_instance(parts)).id, ALICE)


async def test_a_gone_instance_is_archived_by_hand_and_stays_so_over_sweeps_and_restarts(parts, joined):
    instance = await archived(parts)
    assert (instance.status, instance.status_reason) == (Status.ARCHIVED, "archived by alice")
    await silence(parts, 60)
    fresh = await parts.restarted()
    await fresh.fleet.sweep()
    found = await only_instance(fresh)
    assert (found.status, found.status_reason) == (Status.ARCHIVED, "archived by alice")


async def test_both_acts_are_audited_and_told_as_events(parts, joined):
    instance = await archived(parts)
    await parts.fleet.archive.revive(instance.id, SYSTEM)
    entries = (await parts.fleet.audit.list_entries(AuditFilter(target_kind="instance"))).items
    told = {e.action: (e.actor_name, e.before, e.after) for e in entries}
    assert told["instance.archive"] == ("alice", {"status": "offline"}, {"status": "archived"})
    assert told["instance.revive"] == ("the platform", {"status": "archived"}, {"status": "offline"})
    names = await parts.event_names()
    assert {"irca.instance.archived", "irca.instance.revived"} <= set(names)
    page = await parts.events.list_events(name="irca.instance.status_changed", limit=2)
    assert [(e.attributes["irca.status"], e.severity) for e in page.items if "irca.status" in e.attributes].count(("offline", "info")) <= 1


async def test_coming_back_revives(parts, joined):
    agent, credential = joined
    await archived(parts)
    await exchange(parts, credential, agent)
    await parts.fleet.flush()
    assert (await only_instance(parts)).status is Status.HEALTHY


async def test_a_revived_instance_is_offline_as_before_and_not_archived_again_at_once(parts, joined):
    parts.clock.advance(20 * 86_400)
    await parts.fleet.sweep()
    instance = await only_instance(parts)
    assert instance.status is Status.ARCHIVED
    assert (await parts.fleet.archive.revive(instance.id, ALICE)).status is Status.OFFLINE
    for days in (0.1, 10):
        await silence(parts, days * 86_400)
        fresh = await parts.restarted()
        await fresh.fleet.sweep()
        assert (await only_instance(fresh)).status is Status.OFFLINE
    await silence(parts, 5 * 86_400)
    assert (await only_instance(parts)).status is Status.ARCHIVED


async def test_reviving_raises_no_alarm(parts, joined):
    instance = await archived(parts)
    await parts.fleet.archive.revive(instance.id, ALICE)
    await silence(parts, 60)
    assert (await parts.event_names()).count("irca.instance.went_quiet") == 1


async def test_one_that_said_goodbye_is_stopped_again(parts, joined):
    agent, credential = joined
    await exchange(parts, credential, agent, goodbye=True)
    await parts.fleet.flush()
    instance = await only_instance(parts)
    await parts.fleet.archive.put(instance.id, ALICE)
    await silence(parts, 5)
    assert (await only_instance(parts)).status is Status.ARCHIVED
    assert (await parts.fleet.archive.revive(instance.id, ALICE)).status is Status.STOPPED
    assert "irca.instance.went_quiet" not in await parts.event_names()


async def test_what_makes_no_sense_is_refused(parts, joined):
    instance = await only_instance(parts)
    with pytest.raises(ConflictError, match="stop it first"):
        await parts.fleet.archive.put(instance.id, ALICE)
    with pytest.raises(ConflictError, match="not archived"):
        await parts.fleet.archive.revive(instance.id, ALICE)
    await archived(parts)
    with pytest.raises(ConflictError, match="already"):
        await parts.fleet.archive.put(instance.id, ALICE)
    for act in (parts.fleet.archive.put, parts.fleet.archive.revive):
        with pytest.raises(NotFoundError):
            await act("nothing", ALICE)


async def test_a_replaced_pod_is_not_taken_out_of_the_archive(parts):
    token = await provision(parts, agent_type="kubernetes")
    pods = [OpampAgent(fingerprint=f"p{n}", host=f"pod-{n}", extra={"k8s.cluster.uid": "c", "k8s.pod.name": f"pod-{n}"}) for n in range(2)]
    credentials = [await enrolled(parts, token, pod) for pod in pods]
    await exchange(parts, credentials[0], pods[0], goodbye=True)
    await exchange(parts, credentials[1], pods[1])
    await parts.fleet.flush()
    gone = next(i for i in (await parts.fleet.list_instances(with_replaced=True)).items if i.name == "pod-0")
    assert (gone.status, gone.replaced) == (Status.ARCHIVED, True)
    with pytest.raises(ConflictError, match="replaced"):
        await parts.fleet.archive.revive(gone.id, ALICE)
