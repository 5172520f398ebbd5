from __future__ import annotations

import json

import pytest
from opamp_client import CAPABILITIES, OpampAgent, credential_in

from app.audit.records import Actor
from app.audit.service import AuditFilter
from app.errors import NotFoundError, PreconditionFailedError
from app.events.records import EventRecord
from app.groups.precedence import config_hash
from app.groups.selectors import parse
from app.groups.service import GroupService, GroupSpec, Scope
from app.groups.standing import ConfigStatus
from connectors.core import opamp_pb2 as opamp

ADMIN = Actor("api-key", "k1", "ann")
REMOTE = CAPABILITIES | 0x2 | 0x1000
APPLIED, APPLYING, FAILED = 1, 2, 3


class Host:
    """An agent that can be configured remotely, on a platform without HTTP between them."""

    def __init__(self, parts, token: str, name: str, capabilities: int = REMOTE) -> None:
        self.parts = parts
        self.bearer = token
        self.agent = OpampAgent(host=name, fingerprint=name, capabilities=capabilities)
        self.agent.config = {"collect_interval": 10.0, "log_level": "info"}

    @property
    def id(self) -> str:
        return str(self.agent.uid)

    async def beat(self, status: int = 0, hashed: bytes = b"", error: str = "", *, full: bool = False, effective: bool = False):
        message = opamp.AgentToServer.FromString(self.agent.beat(full=full, healthy=True))
        if status:
            told = message.remote_config_status
            told.last_remote_config_hash, told.status, told.error_message = hashed, status, error
        if effective:
            message.effective_config.config_map.config_map["agent.json"].body = json.dumps(self.agent.config).encode()
        reply = self.agent.read(await self.parts.fleet.exchange.answer(self.bearer, message.SerializeToString(), "10.0.0.1"))
        self.bearer = credential_in(reply) or self.bearer
        return reply

    async def apply(self, reply) -> None:
        """Work with what was offered, and say so."""
        self.agent.config |= offered(reply)
        await self.beat(APPLIED, reply.remote_config.config_hash, effective=True)


def offered(reply) -> dict:
    file = reply.remote_config.config.config_map["agent.json"]
    assert file.content_type == "application/json"
    return json.loads(file.body)


async def groups_of(parts) -> GroupService:
    service = GroupService(parts.database, parts.events, parts.fleet.audit, parts.fleet, parts.clock)
    await service.load()
    return service


@pytest.fixture
async def groups(parts) -> GroupService:
    return await groups_of(parts)


async def hosts(parts, *names: str, environment: str = "prod", capabilities: int = REMOTE, labels: dict | None = None) -> list[Host]:
    from connectors.api.agent_store import TokenTerms

    config = {"labels": labels} if labels else {}
    made = await parts.fleet.create_agent("server", environment, config, "ann", TokenTerms(None, 100))
    found = [Host(parts, made.token, name, capabilities) for name in names]
    for host in found:
        await host.beat(full=True)
    return found


async def group(groups: GroupService, name: str = "all", selector: str = "", **config) -> Scope:
    made = await groups.create_group(GroupSpec(name, parse(selector)), ADMIN)
    scope = Scope("group", made.id)
    if config:
        await groups.configure(scope, config, ADMIN)
    return scope


async def status(groups: GroupService, host: Host) -> tuple[str, str]:
    found = await groups.explain(host.id)
    return found.status.value, found.reason


async def test_a_configuration_goes_out_with_the_next_heartbeat_and_is_applied_when_the_agent_proves_it(parts, groups):
    [host] = await hosts(parts, "web-1")
    await group(groups, collect_interval=30)
    assert await status(groups, host) == ("pending", "goes out with its next heartbeat")
    reply = await host.beat()
    assert offered(reply) == {"collect_interval": 30}
    assert reply.remote_config.config_hash == config_hash({"collect_interval": 30})
    assert reply.capabilities & 0x2
    assert reply.connection_settings.opamp.heartbeat_interval_seconds == 5
    assert (await status(groups, host))[0] == "offered"
    applying = await host.beat(APPLYING, reply.remote_config.config_hash)
    assert not applying.HasField("remote_config")
    assert (await status(groups, host))[0] == "applying"
    await host.apply(reply)
    assert await status(groups, host) == ("applied", "")
    quiet = await host.beat()
    assert not quiet.HasField("remote_config")
    assert not quiet.HasField("connection_settings")
    await groups.delivery.flush()
    assert await groups.delivery.flush() == 0
    assert "irca.config.applied" in await parts.event_names(instance_id=host.id)


async def test_the_heartbeat_slows_down_again_when_all_is_settled(parts, groups):
    [host] = await hosts(parts, "web-1")
    await group(groups, collect_interval=30)
    reply = await host.beat()
    host.agent.config |= offered(reply)
    settled = await host.beat(APPLIED, reply.remote_config.config_hash, effective=True)
    assert settled.connection_settings.opamp.heartbeat_interval_seconds == 30


async def test_a_lost_answer_is_made_good_at_the_next_heartbeat(parts, groups):
    [host] = await hosts(parts, "web-1")
    await group(groups, collect_interval=30)
    await host.beat()
    assert offered(await host.beat(full=True)) == {"collect_interval": 30}


async def test_a_configuration_that_fails_is_told_with_its_reason_and_not_offered_again(parts, groups):
    [host] = await hosts(parts, "web-1")
    scope = await group(groups, collect_interval=30)
    reply = await host.beat()
    again = await host.beat(FAILED, reply.remote_config.config_hash, "cpu: permission denied")
    assert not again.HasField("remote_config")
    assert await status(groups, host) == ("failed", "cpu: permission denied")
    option = next(o for o in (await groups.explain(host.id)).options if o.key == "collect_interval")
    assert (option.value, option.source.kind, option.wanted.value) == (10.0, "default", 30)
    await groups.delivery.flush()
    assert "irca.config.failed" in await parts.event_names(instance_id=host.id)
    await groups.configure(scope, {"collect_interval": 31}, ADMIN)
    assert offered(await host.beat()) == {"collect_interval": 31}


async def test_an_instance_that_reports_other_values_has_drifted(parts, groups):
    [host] = await hosts(parts, "web-1")
    await group(groups, collect_interval=30)
    await host.apply(await host.beat())
    host.agent.config["collect_interval"] = 12.0
    await host.beat(effective=True)
    assert await status(groups, host) == ("drifted", "the instance reports another value of collect_interval")
    option = next(o for o in (await groups.explain(host.id)).options if o.key == "collect_interval")
    assert (option.value, option.source.kind, option.wanted.value, option.wanted.source.name) == (12.0, "local", 30, "all")
    host.agent.config["collect_interval"] = 30.0
    await host.beat(effective=True)
    assert (await status(groups, host))[0] == "applied"
    await groups.delivery.flush()
    assert (await parts.event_names(instance_id=host.id)).count("irca.config.drifted") == 1


async def test_a_client_without_the_capability_is_not_offered_and_shown_as_such(parts, groups):
    [host] = await hosts(parts, "web-1", capabilities=CAPABILITIES)
    await group(groups, collect_interval=30)
    assert not (await host.beat()).HasField("remote_config")
    assert await status(groups, host) == ("unsupported", "its agent cannot be configured remotely")


async def test_a_client_that_accepts_and_does_not_report_is_offered_once_and_judged_by_what_it_runs_with(parts, groups):
    [host] = await hosts(parts, "web-1", capabilities=CAPABILITIES | 0x2)
    await group(groups, collect_interval=30)
    reply = await host.beat()
    assert offered(reply) == {"collect_interval": 30}
    assert not (await host.beat()).HasField("remote_config")
    assert (await status(groups, host))[0] == "offered"
    host.agent.config |= offered(reply)
    await host.beat(effective=True)
    assert (await status(groups, host))[0] == "applied"


async def test_a_change_goes_to_one_first_and_to_the_rest_once_it_is_proven(parts, groups):
    found = await hosts(parts, *(f"web-{n}" for n in range(5)))
    await group(groups, collect_interval=30)
    replies = [await host.beat() for host in found]
    assert [reply.HasField("remote_config") for reply in replies] == [True, False, False, False, False]
    assert await status(groups, found[1]) == ("pending", "waits until one of the first instances has proven it")
    await found[0].apply(replies[0])
    assert all([(await host.beat()).HasField("remote_config") for host in found[1:]])


async def test_a_change_that_fails_on_the_first_is_held_back_from_the_rest(parts, groups):
    found = await hosts(parts, "web-1", "web-2", "web-3")
    scope = await group(groups, collect_interval=30)
    reply = await found[0].beat()
    await found[0].beat(FAILED, reply.remote_config.config_hash, "it does not start")
    assert not (await found[1].beat()).HasField("remote_config")
    assert await status(groups, found[1]) == ("pending", "held back: it failed on web-1: it does not start")
    assert await groups.status_counts(scope) == {ConfigStatus.FAILED: 1, ConfigStatus.PENDING: 2}
    page = await groups.list_members(scope, limit=1, status=ConfigStatus.PENDING)
    assert [m.name for m in page.items] == ["web-2"]
    rest = await groups.list_members(scope, page.next_cursor, status=ConfigStatus.PENDING)
    assert [m.name for m in rest.items] == ["web-3"]


async def test_a_restart_of_the_platform_forgets_nothing_and_offers_nothing_twice(parts, groups):
    done, failed, untold = await hosts(parts, "web-1", "web-2", "web-3")
    scope = await group(groups, collect_interval=30)
    await done.apply(await done.beat())
    reply = await failed.beat()
    await failed.beat(FAILED, reply.remote_config.config_hash, "no")
    await groups.delivery.flush()
    fresh = await parts.restarted()
    again = await groups_of(fresh)
    for host in (done, failed, untold):
        host.parts = fresh
    assert await status(again, done) == ("applied", "")
    assert await status(again, failed) == ("failed", "no")
    first = await done.beat()
    assert first.flags == 1
    assert not first.HasField("remote_config")
    assert not (await failed.beat(FAILED, reply.remote_config.config_hash, "no", full=True)).HasField("remote_config")
    assert offered(await untold.beat()) == {"collect_interval": 30}
    assert (await again.configuration(scope)).revision == 1


async def test_an_agent_that_lost_its_configuration_is_offered_it_again(parts, groups):
    [host] = await hosts(parts, "web-1")
    await group(groups, collect_interval=30)
    await host.apply(await host.beat())
    host.agent.config["collect_interval"] = 10.0
    assert offered(await host.beat(full=True)) == {"collect_interval": 30}


async def test_deleting_a_group_takes_its_configuration_back(parts, groups):
    [host] = await hosts(parts, "web-1")
    scope = await group(groups, collect_interval=30)
    reply = await host.beat()
    await host.apply(reply)
    await groups.delete_group(scope.id, ADMIN)
    assert (await status(groups, host))[0] == "pending"
    taken = await host.beat(APPLIED, reply.remote_config.config_hash)
    assert offered(taken) == {}
    host.agent.config["collect_interval"] = 10.0
    await host.beat(APPLIED, taken.remote_config.config_hash, effective=True)
    assert (await status(groups, host))[0] == "none"
    with pytest.raises(NotFoundError):
        await groups.get_group(scope.id)


async def test_labels_move_an_agent_between_groups_at_once(parts, groups):
    [host] = await hosts(parts, "web-1", labels={"team": "web"})
    scope = await group(groups, "web", "team=web", log_level="debug")
    agent_id = parts.fleet.registry.instances[host.id].agent.id
    await host.apply(await host.beat())
    view = await groups.labels.set_labels(agent_id, {"team": None, "tier": "front"}, ADMIN)
    assert view.labels == {"tier": "front"}
    assert (await groups.get_group(scope.id)).instances == 0
    assert offered(await host.beat(APPLIED, config_hash({"log_level": "debug"}))) == {}
    assert (await (await parts.restarted()).fleet.get_agent(agent_id)).labels == {"tier": "front"}
    entry = (await parts.fleet.audit.list_entries(AuditFilter(action="agent.label"))).items[0]
    assert (entry.before, entry.after) == ({"labels": {"team": "web"}}, {"labels": {"tier": "front"}})


async def test_history_is_kept_and_reverted_to_by_a_new_revision(parts, groups):
    scope = await group(groups, collect_interval=30)
    await groups.configure(scope, {"collect_interval": 60, "log_level": "debug"}, ADMIN, comment="quieter", revision=1)
    with pytest.raises(PreconditionFailedError):
        await groups.configure(scope, {}, ADMIN, revision=1)
    tried = await groups.configure(scope, {}, ADMIN, dry_run=True)
    assert (tried.dry_run, [c.kind for c in tried.changes], tried.revision) == (True, ["removed", "removed"], 2)
    made = await groups.revert(scope, 1, ADMIN, expected=2)
    assert (made.revision, made.config) == (3, {"collect_interval": 30})
    assert (await groups.revert(scope, 0, ADMIN)).config == {}
    page = await groups.history(scope, limit=3)
    assert [(r.revision, r.comment, r.actor) for r in page.items] == [
        (4, "Back to revision 0.", "ann"),
        (3, "Back to revision 1.", "ann"),
        (2, "quieter", "ann"),
    ]
    assert [r.revision for r in (await groups.history(scope, page.next_cursor)).items] == [1]
    assert "irca.config.reverted" in await parts.event_names()
    with pytest.raises(NotFoundError):
        await groups.revert(scope, 9, ADMIN)


async def test_an_events_groups_are_those_of_its_instance_or_its_agent(parts, groups):
    [host] = await hosts(parts, "web-1")
    by_host = await group(groups, "one", "host.name=web-1")
    by_place = await group(groups, "prod", "environment=prod")
    agent_id = parts.fleet.registry.instances[host.id].agent.id
    of = groups.delivery.groups_of
    assert set(of(EventRecord("1", "x", 0, instance_id=host.id, agent_id=agent_id))) == {by_host.id, by_place.id}
    assert set(of(EventRecord("1", "x", 0, agent_id=agent_id))) == {by_place.id}
    assert of(EventRecord("1", "x", 0)) == ()


async def test_revoking_several_agents_revokes_every_instance_of_them(parts, groups):
    [host] = await hosts(parts, "web-1")
    agent_id = parts.fleet.registry.instances[host.id].agent.id
    assert (await groups.labels.revoke_agents([agent_id], ADMIN)).instances == 1
    assert parts.fleet.registry.instances[host.id].credential_hash is None


async def test_while_a_new_configuration_is_refused_the_one_before_is_named_as_the_source(parts, groups):
    [host] = await hosts(parts, "web-1")
    scope = await group(groups, collect_interval=30)
    await host.apply(await host.beat())
    await groups.configure(scope, {"log_level": "debug"}, ADMIN)
    reply = await host.beat()
    await host.beat(FAILED, reply.remote_config.config_hash, "no")
    await groups.delivery.flush()
    await parts.fleet.flush()
    fresh = await parts.restarted()
    for service in (groups, await groups_of(fresh)):
        options = {o.key: o for o in (await service.explain(host.id)).options}
        one = options["collect_interval"]
        assert (one.value, one.source.kind, one.wanted.value, one.note) == (30.0, "earlier", 10.0, "failed: no")
        assert (options["log_level"].value, options["log_level"].wanted.value) == ("info", "debug")
