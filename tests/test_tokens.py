from __future__ import annotations

import asyncio

import pytest
from console_client import statements
from fastapi.testclient import TestClient
from opamp_client import OpampAgent, credential_in
from test_enrolment import enrolled, exchange, provision

from app.audit.service import AuditFilter
from app.auth.service import Identity, Role
from app.errors import InvalidRequestError, NotFoundError, TokenRevokedError, TokenUnknownError, TokenUsedUpError
from app.fleet.tokens import TokenFilter, TokenState
from app.main import create_app
from app.settings import Settings
from connectors.api.agent_store import TokenTerms

KEY = "a-preset-admin-key-for-tests"
TEAM = Identity("key", "team", Role.OPERATOR, ("team-*",))


async def issue(parts, environment: str, agent_type: str = "server", lifetime: float | None = None, uses: int = 1) -> tuple[str, str]:
    """A new agent's token: its text, and its id."""
    made = await parts.fleet.create_agent(agent_type, environment, {}, "tester", TokenTerms(lifetime, uses))
    [token] = (await parts.fleet.tokens.of_agent(made.agent_id)).items
    return made.token, token.id


async def ids(parts, viewer: Identity | None = None, **wanted) -> list[str]:
    return [t.id for t in (await parts.fleet.tokens.list_tokens(TokenFilter(**wanted), viewer=viewer)).items]


async def test_tokens_of_all_agents_are_listed_by_what_they_are_good_for(parts):
    spent_text, spent = await issue(parts, "prod", uses=1)
    parts.clock.advance(1)
    _, active = await issue(parts, "team-a", "docker", uses=3)
    parts.clock.advance(1)
    _, revoked = await issue(parts, "team-b")
    parts.clock.advance(1)
    _, expired = await issue(parts, "staging", lifetime=60)
    await enrolled(parts, spent_text, OpampAgent())
    await parts.fleet.enrolment.revoke_token(revoked)
    parts.clock.advance(61)
    assert await ids(parts) == [expired, revoked, active, spent]
    for state, only in (("active", active), ("expired", expired), ("revoked", revoked), ("used-up", spent)):
        assert await ids(parts, state=TokenState(state)) == [only]
        assert (await parts.fleet.tokens.get_token(only)).state == state
    assert await ids(parts, agent_type="docker") == [active]
    assert await ids(parts, environment_name="prod") == [spent]
    assert await ids(parts, search="AGENT_team-") == [revoked, active]
    assert await ids(parts, search="%") == []
    assert await ids(parts, viewer=TEAM) == [revoked, active]
    assert await ids(parts, viewer=Identity("key", "all", Role.OPERATOR)) == [expired, revoked, active, spent]


async def test_pages_of_tokens_neither_repeat_nor_leave_out(parts):
    made = [(await issue(parts, f"env-{n}"))[1] for n in range(7)]
    seen, cursor = [], None
    while True:
        page = await parts.fleet.tokens.list_tokens(cursor=cursor, limit=3)
        seen += [t.id for t in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert sorted(seen) == sorted(made)
    for bad in ("nonsense", "WzFd"):
        with pytest.raises(InvalidRequestError, match="cursor"):
            await parts.fleet.tokens.list_tokens(cursor=bad)


async def test_a_token_tells_which_machines_and_instances_came_by_it(parts):
    text, token = await issue(parts, "prod", uses=5)
    first, second = OpampAgent(host="web-1"), OpampAgent(fingerprint="machine-2", host="web-2")
    for agent in (second, first):
        await enrolled(parts, text, agent)
        parts.clock.advance(1)
    found = await parts.fleet.tokens.get_token(token)
    assert [m.machine for m in found.machines] == ["machine-1", "machine-2"]
    assert [(i.name, i.has_credential) for i in found.instances] == [("web-1", True), ("web-2", True)]
    await parts.fleet.revoke_credential(str(first.uid))
    for there in (parts, await parts.restarted()):
        found = await there.fleet.tokens.get_token(token)
        assert (found.instance_count, found.credential_count) == (2, 1)
    with pytest.raises(NotFoundError):
        await parts.fleet.tokens.get_token(token, viewer=TEAM)
    with pytest.raises(NotFoundError):
        await parts.fleet.tokens.require("nothing", Identity("key", "all", Role.ADMIN))
    with pytest.raises(NotFoundError):
        await parts.fleet.tokens.of_agent("nothing")


async def test_revoking_a_token_alone_leaves_its_instances_their_credentials(parts):
    text, token = await issue(parts, "prod")
    agent = OpampAgent()
    credential = await enrolled(parts, text, agent)
    assert await parts.fleet.enrolment.revoke_token(token) == 0
    await exchange(parts, credential, agent)
    assert (await parts.fleet.tokens.get_token(token)).credential_count == 1


async def test_revoking_a_token_with_its_instances_refuses_their_next_heartbeat_and_nobody_elses(parts):
    text, token = await issue(parts, "prod", uses=3)
    other_text, _ = await issue(parts, "prod")
    mine, clone, other = OpampAgent(), OpampAgent(fingerprint="machine-3"), OpampAgent(fingerprint="machine-2")
    credential, kept = await enrolled(parts, text, mine), await enrolled(parts, other_text, other)
    split = credential_in(await exchange(parts, credential, clone, full=True))  # a cloned disk came by the same token
    candidate = credential_in(await exchange(parts, text, OpampAgent(fingerprint="machine-4"), full=True))
    assert await parts.fleet.enrolment.revoke_token(token, revoke_instances=True) == 3
    for there in (parts, await parts.restarted()):
        for gone, agent in ((credential, mine), (split, clone), (candidate, OpampAgent(fingerprint="machine-4"))):
            with pytest.raises(TokenUnknownError):
                await exchange(there, gone, agent)
            with pytest.raises(TokenUnknownError):
                await there.fleet.principal(gone)
        with pytest.raises(TokenRevokedError):
            await exchange(there, text, mine, full=True)
        await exchange(there, kept, other)
    names = await parts.event_names()
    assert (names.count("irca.credential.revoked"), names.count("irca.token.revoked")) == (3, 1)
    [entry] = (await parts.fleet.audit.list_entries(AuditFilter(action="token.revoke"))).items
    assert entry.after == {"instances_revoked": 3}


async def test_the_instances_of_a_revoked_token_can_be_revoked_later_and_again_changes_nothing(parts):
    text, token = await issue(parts, "prod")
    await enrolled(parts, text, OpampAgent())
    await parts.fleet.enrolment.revoke_token(token)
    first = (await parts.fleet.tokens.get_token(token)).revoked_at
    parts.clock.advance(60)
    assert await parts.fleet.enrolment.revoke_token(token, revoke_instances=True) == 1
    assert await parts.fleet.enrolment.revoke_token(token, revoke_instances=True) == 0
    assert (await parts.fleet.tokens.get_token(token)).revoked_at == first
    assert (await parts.event_names()).count("irca.token.revoked") == 1


async def test_an_instance_that_came_again_by_another_token_is_that_ones(parts):
    old_text, old = await issue(parts, "prod")
    new_text, new = await issue(parts, "prod")
    agent = OpampAgent()
    await enrolled(parts, old_text, agent)
    credential = await enrolled(parts, new_text, agent)
    assert await parts.fleet.enrolment.revoke_token(old, revoke_instances=True) == 0
    await exchange(parts, credential, agent)
    assert await parts.fleet.enrolment.revoke_token(new, revoke_instances=True) == 1


async def test_revocation_beats_whatever_is_under_way(parts):
    text, token = await issue(parts, "prod", uses=50)
    agents = [OpampAgent(fingerprint=f"machine-{n}") for n in range(20)]

    async def join(agent: OpampAgent) -> str | None:
        try:
            credential = credential_in(await exchange(parts, text, agent, full=True))
            await exchange(parts, credential, agent)
        except (TokenRevokedError, TokenUnknownError):
            return None
        return credential

    credentials, _ = await asyncio.gather(
        asyncio.gather(*(join(agent) for agent in agents)), parts.fleet.enrolment.revoke_token(token, revoke_instances=True)
    )
    for credential in filter(None, credentials):
        with pytest.raises(TokenUnknownError):
            await parts.fleet.principal(credential)
    with pytest.raises(TokenRevokedError):
        await parts.fleet.principal(text)
    for there in (parts, await parts.restarted()):
        assert not [i for i in there.fleet.registry.instances.values() if i.has_credential]


async def test_a_foreign_client_is_the_token_that_it_shows(parts):
    text, token = await issue(parts, "prod")
    made, newer = await parts.fleet.enrolment.rotate_token(token, 3600)
    for shown, used in ((text, token), (made, newer.id)):
        principal = await parts.fleet.principal(shown)
        assert principal.token_id == used
        await parts.fleet.resolve_instance(principal, {"service.name": "shop", "host.name": f"host-{used}"})
        found = await parts.fleet.tokens.get_token(used)
        assert (found.uses, found.instance_count) == (1, 1)


async def test_refusals_name_the_host_and_are_shown_to_who_may_see_the_environment(parts):
    text = await provision(parts, "team-a")
    await enrolled(parts, text, OpampAgent())
    for shown, host in ((text, "web-2"), ("agent_prod_nonsense", "web-3")):
        with pytest.raises((TokenUnknownError, TokenUsedUpError)):
            await exchange(parts, shown, OpampAgent(fingerprint=host, host=host), full=True)
        parts.clock.advance(1)
    told = await parts.fleet.tokens.refusals()
    assert [(e.attributes["host.name"], e.attributes["irca.refusal"], e.attributes["client.address"]) for e in told] == [
        ("web-3", "token-unknown", "192.0.2.7"),
        ("web-2", "token-used-up", "192.0.2.7"),
    ]
    assert [e.attributes["host.name"] for e in await parts.fleet.tokens.refusals(viewer=TEAM)] == ["web-2"]
    [agent] = (await parts.fleet.list_agents()).items
    assert len(await parts.fleet.tokens.refusals(agent_id=agent.id)) == 1


async def test_of_a_refused_token_no_more_is_kept_than_lists_show(parts):
    text, token = await issue(parts, "prod")
    await parts.fleet.enrolment.revoke_token(token)
    for shown in (text, f"agent_prod_{'a_b' * 10}", "agent_elsewhere_abc_def", "cred_abc_def"):
        with pytest.raises((TokenRevokedError, TokenUnknownError)):
            await exchange(parts, shown, OpampAgent(), full=True)
        parts.clock.advance(1)
    prefixes = [e.attributes["irca.token.prefix"] for e in reversed(await parts.fleet.tokens.refusals())]
    assert prefixes == [(await parts.fleet.tokens.get_token(token)).prefix, "agent_prod", "", ""]


# Over HTTP.


@pytest.fixture
def client(tmp_path):
    with TestClient(create_app(Settings(data_dir=tmp_path / "data", admin_api_key=KEY)), headers=bearer(KEY)) as made:
        yield made


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def provisioned(client, environment: str = "prod", **fields) -> dict:
    body = {"agent_type": "server", "environment_name": environment, **fields}
    return client.post("/api/v1/agent/provision", json=body).json()


def test_the_api_lists_shows_and_revokes_with_instances(client):
    made, agent = provisioned(client, token_max_uses=2, token_ttl=3600), OpampAgent()
    otlp = {"content-type": "application/x-protobuf"}
    answer = client.post("/v1/opamp", content=agent.beat(full=True), headers=bearer(made["agent_token"]) | otlp)
    credential = bearer(credential_in(agent.read(answer.content))) | otlp
    assert client.post("/v1/metrics", content=b"", headers=credential).status_code == 200
    [token] = client.get("/api/v1/enrolment-tokens", params={"state": "active", "search": "prod"}).json()["items"]
    assert (token["agent_id"], token["uses"], token["max_uses"]) == (made["agent_id"], 1, 2)
    assert client.get(f"/api/v1/agents/{made['agent_id']}/tokens").json()["items"] == [token]
    path = f"/api/v1/enrolment-tokens/{token['id']}"
    assert client.get(path).json()["instances"][0]["has_credential"] is True
    assert client.delete(path, params={"revoke_instances": True}).status_code == 204
    assert client.post("/v1/opamp", content=agent.beat(), headers=credential).status_code == 401
    for signal in ("metrics", "logs"):
        assert client.post(f"/v1/{signal}", content=b"", headers=credential).status_code == 401
    assert client.get(path).json()["credential_count"] == 0
    assert client.get("/api/v1/enrolment-tokens/nothing").status_code == 404
    assert client.get("/api/v1/agents/nothing/tokens").status_code == 404
    assert client.get("/api/v1/enrolment-tokens", params={"state": "odd"}).status_code == 422


def test_limited_keys_and_viewers_reach_only_what_is_theirs(client):
    mine, other = provisioned(client, "team-a"), provisioned(client, "prod")
    paths = {a["agent_id"]: client.get(f"/api/v1/agents/{a['agent_id']}/tokens").json()["items"][0]["id"] for a in (mine, other)}
    keys = {
        role: bearer(client.post("/api/v1/api-keys", json={"name": role, "role": role, "environments": ["team-*"]}).json()["key"])
        for role in ("viewer", "operator")
    }
    listed = client.get("/api/v1/enrolment-tokens", headers=keys["operator"]).json()["items"]
    assert [t["environment_name"] for t in listed] == ["team-a"]
    for role, status in (("viewer", 403), ("operator", 404)):
        foreign = f"/api/v1/enrolment-tokens/{paths[other['agent_id']]}"
        assert client.delete(foreign, headers=keys[role]).status_code == status
        assert client.post(f"{foreign}/rotate", headers=keys[role]).status_code == status
    own = f"/api/v1/enrolment-tokens/{paths[mine['agent_id']]}"
    assert client.post(f"{own}/rotate", headers=keys["viewer"]).status_code == 403
    assert client.post(f"{own}/rotate", headers=keys["operator"]).json()["token"].startswith("agent_team-a_")
    assert client.delete(own, headers=keys["operator"]).status_code == 204


def test_a_list_of_tokens_is_one_statement_however_many_there_are(client):
    for count in (1, 30):
        for _ in range(count):
            provisioned(client)
        with statements(client) as made:
            assert client.get("/api/v1/enrolment-tokens").status_code == 200
        ours = [s for s in made if "enrolment_tokens" in s]
        assert len(ours) == 1
