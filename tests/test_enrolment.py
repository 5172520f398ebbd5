from __future__ import annotations

import uuid

import pytest
from opamp_client import OpampAgent, credential_in
from sqlalchemy import text

from app.errors import MalformedBodyError, NotFoundError, TokenExpiredError, TokenRevokedError, TokenUnknownError, TokenUsedUpError
from app.fleet.views import Status


async def provision(parts, environment="prod", agent_type="server", **config) -> str:
    return (await parts.fleet.create_agent(agent_type, environment, config, "tester")).token


async def exchange(parts, bearer, agent, **beat):
    return agent.read(await parts.fleet.exchange.answer(bearer, agent.beat(**beat), "192.0.2.7"))


async def enrolled(parts, token, agent) -> str:
    credential = credential_in(await exchange(parts, token, agent, full=True))
    assert credential is not None
    await exchange(parts, credential, agent)
    return credential


async def only_instance(parts):
    (instance,) = (await parts.fleet.list_instances()).items
    return instance


async def test_a_token_names_its_environment_and_is_kept_only_as_a_digest(parts):
    token = await provision(parts, "prod-cluster")
    assert token.startswith("agent_prod-cluster_")
    agent = (await parts.fleet.list_agents()).items[0]
    [row] = (await parts.fleet.tokens.of_agent(agent.id)).items
    assert row.uses == 0
    async with parts.database.read() as session:
        assert token not in repr((await session.execute(text("SELECT * FROM enrolment_tokens"))).all())
    assert token.startswith(row.prefix)
    assert len(token) - len(row.prefix) >= 28


async def test_first_contact_exchanges_the_token_for_a_credential_of_its_own(parts):
    token, agent = await provision(parts), OpampAgent()
    answer = await exchange(parts, token, agent, full=True)
    credential = credential_in(answer)
    assert credential is not None
    assert credential != token
    assert answer.connection_settings.opamp.heartbeat_interval_seconds == 30
    assert (await parts.fleet.principal(credential)).instance_id == str(agent.uid)
    assert (await only_instance(parts)).name == "web-1"
    assert "irca.instance.enrolled" in await parts.event_names()


async def test_without_a_description_the_platform_asks_for_the_full_state_and_enrols_nobody(parts):
    token = await provision(parts)
    answer = await exchange(parts, token, OpampAgent())
    assert answer.flags == 1
    assert (await parts.fleet.list_instances()).items == []


async def test_the_old_credential_works_until_the_new_one_has_been_used(parts):
    token, agent = await provision(parts), OpampAgent()
    first = await enrolled(parts, token, agent)
    second = credential_in(await exchange(parts, token, agent, full=True))
    await exchange(parts, first, agent)
    await exchange(parts, second, agent)
    with pytest.raises(TokenUnknownError):
        await exchange(parts, first, agent)


async def test_credentials_survive_a_restart_of_the_platform(parts):
    token, agent = await provision(parts), OpampAgent()
    credential = await enrolled(parts, token, agent)
    await parts.fleet.flush()
    fresh = await parts.restarted()
    answer = await exchange(fresh, credential, agent)
    assert answer.flags == 1, "sequence numbers are not kept, so the full state is asked for"
    assert (await exchange(fresh, credential, agent, full=True)).flags == 0
    assert (await exchange(fresh, credential, agent)).flags == 0


async def test_the_same_machine_enrols_again_for_free_and_takes_its_own_place(parts):
    token = await provision(parts)
    first = OpampAgent()
    await enrolled(parts, token, first)
    again = OpampAgent(uid=uuid.uuid4())  # state lost, same machine
    await enrolled(parts, token, again)
    assert again.uid == first.uid
    assert len((await parts.fleet.list_instances()).items) == 1


async def test_a_token_enrols_one_machine_and_then_says_that_it_is_used_up(parts):
    token = await provision(parts)
    await enrolled(parts, token, OpampAgent())
    with pytest.raises(TokenUsedUpError, match="1 machine"):
        await exchange(parts, token, OpampAgent(fingerprint="machine-2"), full=True)
    refused = (await parts.events.list_events(name="irca.enrolment.refused")).items[0]
    assert refused.attributes["irca.refusal"] == "token-used-up"
    assert refused.attributes["client.address"] == "192.0.2.7"
    assert token not in refused.model_dump_json()


async def test_a_kubernetes_token_enrols_any_number_of_pods_of_one_cluster(parts):
    token = await provision(parts, agent_type="kubernetes")
    for pod in range(3):
        agent = OpampAgent(fingerprint=f"pod-{pod}", extra={"k8s.cluster.uid": "cluster-1", "k8s.pod.name": f"agent-{pod}"})
        await enrolled(parts, token, agent)
    assert sorted(i.name for i in (await parts.fleet.list_instances()).items) == ["agent-0", "agent-1", "agent-2"]
    with pytest.raises(TokenUsedUpError):
        await exchange(parts, token, OpampAgent(fingerprint="x", extra={"k8s.cluster.uid": "cluster-2"}), full=True)


async def test_refusals_tell_unknown_expired_and_revoked_apart(parts):
    with pytest.raises(TokenUnknownError):
        await exchange(parts, "agent_prod_nonsense", OpampAgent(), full=True)
    revoked, expired = await provision(parts, "a"), await provision(parts, "b")
    agents = (await parts.fleet.list_agents()).items
    [row] = (await parts.fleet.tokens.of_agent(next(a.id for a in agents if a.environment_name == "a"))).items
    await parts.fleet.enrolment.revoke_token(row.id)
    with pytest.raises(TokenRevokedError):
        await exchange(parts, revoked, OpampAgent(), full=True)
    parts.clock.advance(31 * 86_400)
    with pytest.raises(TokenExpiredError):
        await exchange(parts, expired, OpampAgent(), full=True)


async def test_revoking_a_credential_takes_effect_at_once(parts):
    token, agent = await provision(parts), OpampAgent()
    credential = await enrolled(parts, token, agent)
    await parts.fleet.revoke_credential(str(agent.uid))
    with pytest.raises(TokenUnknownError):
        await exchange(parts, credential, agent)
    assert "irca.credential.revoked" in await parts.event_names()


async def test_a_cloned_disk_is_split_into_two_instances_and_said(parts):
    token, original = await provision(parts), OpampAgent()
    credential = await enrolled(parts, token, original)
    clone = OpampAgent(uid=uuid.uuid4(), fingerprint="machine-2", host="web-2")
    own = credential_in(await exchange(parts, credential, clone, full=True))
    assert own not in (None, credential)
    await exchange(parts, own, clone)
    await exchange(parts, credential, original)
    assert {i.id for i in (await parts.fleet.list_instances()).items} == {str(original.uid), str(clone.uid)}
    split = (await parts.events.list_events(name="irca.instance.split")).items[0]
    assert split.attributes["irca.instance.original"] == str(original.uid)


async def test_two_machines_that_come_under_one_identity_with_a_token_are_given_two(parts):
    token = await provision(parts, agent_type="kubernetes")
    first = OpampAgent(extra={"k8s.cluster.uid": "c"})
    await enrolled(parts, token, first)
    second = OpampAgent(uid=first.uid, fingerprint="machine-2", extra={"k8s.cluster.uid": "c"})
    await enrolled(parts, token, second)
    assert first.uid != second.uid
    assert len((await parts.fleet.list_instances()).items) == 2


async def test_an_agent_that_lost_its_identity_but_kept_its_credential_gets_it_back(parts):
    token, agent = await provision(parts), OpampAgent()
    credential = await enrolled(parts, token, agent)
    lost = OpampAgent(uid=uuid.uuid4())
    await exchange(parts, credential, lost, full=True)
    assert lost.uid == agent.uid


async def test_a_token_of_another_agent_moves_the_machine_to_it(parts):
    agent = OpampAgent()
    await enrolled(parts, await provision(parts, "staging"), agent)
    await enrolled(parts, await provision(parts, "prod"), agent)
    assert (await only_instance(parts)).environment_name == "prod"
    assert "irca.instance.moved" in await parts.event_names()


async def test_two_live_agents_on_one_machine_are_split_instead_of_pushing_each_other_out(parts):
    token = await provision(parts)
    for _ in range(3):
        await enrolled(parts, token, OpampAgent(uid=uuid.uuid4()))
        parts.clock.advance(5)
        await parts.fleet.flush()
    assert len((await parts.fleet.list_instances()).items) == 2


async def test_a_client_without_connection_settings_stays_with_its_token(parts):
    token, agent = await provision(parts), OpampAgent(capabilities=1)
    assert credential_in(await exchange(parts, token, agent, full=True)) is None
    assert (await exchange(parts, token, agent)).flags == 0
    await parts.fleet.flush()
    assert (await only_instance(parts)).status is Status.HEALTHY


async def test_an_agent_without_an_identity_is_given_one(parts):
    token, agent = await provision(parts), OpampAgent()
    message = agent.beat(full=True).replace(b"\x0a\x10" + agent.uid.bytes, b"", 1)
    answer = agent.read(await parts.fleet.exchange.answer(token, message, "192.0.2.7"))
    assert str(uuid.UUID(bytes=answer.agent_identification.new_instance_uid)) == (await only_instance(parts)).id


@pytest.mark.parametrize("body", [b"\xff\xff\xff", b"\x0a\x03abc"])
async def test_what_is_no_opamp_message_is_refused(parts, body):
    with pytest.raises(MalformedBodyError):
        await parts.fleet.exchange.answer(await provision(parts), body, "192.0.2.7")


async def test_what_does_not_exist_cannot_be_revoked(parts):
    with pytest.raises(NotFoundError):
        await parts.fleet.enrolment.revoke_token("nothing")
    with pytest.raises(NotFoundError):
        await parts.fleet.revoke_credential("nothing")


async def test_a_foreign_otlp_client_joins_with_its_token_and_its_telemetry_is_its_heartbeat(parts):
    principal = await parts.fleet.principal(await provision(parts))
    resource = {"service.name": "checkout", "host.name": "shop-1", "service.version": "3.1"}
    first = await parts.fleet.resolve_instance(principal, resource)
    assert (await parts.fleet.resolve_instance(principal, resource)).instance_id == first.instance_id
    await parts.fleet.flush()
    instance = await only_instance(parts)
    assert (instance.id, instance.status, instance.name, instance.version) == (first.instance_id, Status.HEALTHY, "shop-1", "3.1")
