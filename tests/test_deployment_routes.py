from __future__ import annotations

import asyncio
import json
import time
import uuid

import pytest
from fastapi.testclient import TestClient
from opamp_client import OpampAgent, credential_in
from sqlalchemy import text
from waiting import eventually

from app.errors import TooManyRequestsError
from app.fleet.deployments import BURST, LONGEST_REASON, MOST_STEPS, REFILL
from app.fleet.funnel import DeploymentStep
from app.main import create_app
from app.settings import Settings
from connectors.core.telemetry import Collection, Kind, Metric, Point, ResourceMetrics, encode_metrics

KEY = "a-preset-admin-key-for-tests"
PROTOBUF = {"content-type": "application/x-protobuf"}


@pytest.fixture
def client(tmp_path):
    settings = Settings(data_dir=tmp_path / "data", admin_api_key=KEY, public_url="https://irca.example.com")
    with TestClient(create_app(settings), headers={"authorization": f"Bearer {KEY}"}) as made:
        yield made


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def provisioned(client, agent_type="server"):
    answer = client.post("/api/v1/agent/provision", json={"agent_type": agent_type, "environment_name": "prod"}).json()
    return answer["agent_token"], client.get("/api/v1/agents").json()["items"][0]["id"]


def progress(client, token, **document):
    return client.post("/api/v1/agent/progress", json=document, headers=bearer(token))


def stages(client, agent_id):
    found = client.get(f"/api/v1/agents/{agent_id}/deployment").json()
    return {stage["name"]: stage["state"] for stage in found["stages"]}


def joined(client, token, **who):
    agent = OpampAgent(**who)
    response = client.post("/v1/opamp", content=agent.beat(full=True), headers=bearer(token) | PROTOBUF)
    assert response.status_code == 200, response.text
    return credential_in(agent.read(response.content))


def samples(client, credential):
    metric = Metric("system.uptime", "s", Kind.GAUGE, [Point(1.0)])
    body = encode_metrics(Collection(time.time_ns(), [ResourceMetrics({"host.name": "web-1"}, [metric])]))
    assert client.post("/v1/metrics", content=body, headers=bearer(credential) | PROTOBUF).status_code == 200


def test_a_command_is_followed_from_its_issue_to_the_first_metric(client):
    token, agent_id = provisioned(client)
    waiting = {"issued": "reached", "downloaded": "waiting", "installed": "waiting", "enrolled": "waiting", "first_metric": "waiting"}
    assert stages(client, agent_id) == waiting
    assert progress(client, token, step="downloaded", host="web-1", check="", reason="").status_code == 204
    assert progress(client, token, step="installed", host="web-1").status_code == 204
    assert stages(client, agent_id) == waiting | {"downloaded": "reached", "installed": "reached"}
    credential = joined(client, token)
    assert stages(client, agent_id)["enrolled"] == "reached"
    samples(client, credential)
    eventually(lambda: stages(client, agent_id)["first_metric"] == "reached")
    found = client.get(f"/api/v1/agents/{agent_id}/deployment").json()
    assert found["complete"]
    assert [host["host"] for host in found["hosts"]] == ["web-1"], "installer and agent call it by one name"


def test_what_stopped_it_is_told_with_the_failing_item_and_without_secrets(client):
    token, agent_id = provisioned(client)
    reason = "curl: (22) https://user:hunter2@proxy.example.com answered 403\n\x1b[31m" + "x" * 5000
    assert progress(client, token, step="failed", host="db-1", check="download", reason=reason).status_code == 204
    [host] = client.get(f"/api/v1/agents/{agent_id}/deployment").json()["hosts"]
    failure = host["failure"]
    assert failure["check"] == "download"
    assert failure["reason"].startswith("curl: (22)")
    assert "hunter2" not in failure["reason"]
    assert "\x1b" not in failure["reason"]
    assert len(failure["reason"]) == LONGEST_REASON


def test_an_instance_tells_with_its_credential_too(client):
    token, agent_id = provisioned(client)
    credential = joined(client, token)
    assert progress(client, credential, step="downloaded", host="web-1").status_code == 204
    assert stages(client, agent_id)["downloaded"] == "reached"


@pytest.mark.parametrize(
    ("document", "status", "code"),
    [
        pytest.param(b'{"step": "enrolled"}', 422, "invalid-request", id="a step that is the platform's to see"),
        pytest.param(b'{"step": "installed", "extra": 1}', 422, "invalid-request", id="an unknown key"),
        pytest.param(b'{"host": "web-1"}', 422, "invalid-request", id="no step"),
        pytest.param(b"not json", 422, "invalid-request", id="no JSON"),
        pytest.param(json.dumps({"step": "installed", "host": "x" * 20_000}).encode(), 413, "body-too-large", id="too long"),
    ],
)
def test_what_is_no_progress_is_refused(client, document, status, code):
    token, _ = provisioned(client)
    response = client.post("/api/v1/agent/progress", content=document, headers=bearer(token))
    assert (response.status_code, response.json()["code"]) == (status, code)


def test_a_token_that_is_none_or_was_revoked_is_refused_with_the_reason(client):
    token, agent_id = provisioned(client)
    assert progress(client, "agent_prod_nonsense", step="installed").json()["code"] == "token-unknown"
    [row] = client.get(f"/api/v1/agents/{agent_id}/tokens").json()["items"]
    client.delete(f"/api/v1/enrolment-tokens/{row['id']}")
    assert progress(client, token, step="installed").json()["code"] == "token-revoked"


def test_an_agent_that_is_not_there_has_no_funnel(client):
    assert client.get("/api/v1/agents/nothing/deployment").status_code == 404


def test_an_installer_that_tells_without_end_is_held_back(client):
    token, _ = provisioned(client)
    answers = [progress(client, token, step="downloaded", host="web-1") for _ in range(int(BURST) + 5)]
    assert {answer.status_code for answer in answers[: int(BURST)]} == {204}
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["retry-after"]) >= 1


async def agent_of(parts, agent_type="server"):
    await parts.fleet.create_agent(agent_type, "prod", {}, "tester")
    return next(iter(parts.fleet.registry.agents.values()))


def tell(parts, agent, step=DeploymentStep.DOWNLOADED, host="web-1"):
    return parts.fleet.deployments.tell(agent.id, step, host=host, check="", reason="", client="192.0.2.7")


async def beat(parts, token, **who):
    agent = OpampAgent(**who)
    agent.read(await parts.fleet.exchange.answer(token, agent.beat(full=True), "192.0.2.7"))
    return str(agent.uid)


async def test_the_allowance_of_an_agent_comes_back_with_time(parts, clock):
    agent = await agent_of(parts)
    for _ in range(int(BURST)):
        await tell(parts, agent)
    with pytest.raises(TooManyRequestsError):
        await tell(parts, agent)
    clock.advance(REFILL)
    await tell(parts, agent)


async def test_only_the_newest_steps_of_an_agent_are_kept_and_what_the_platform_saw_stays(parts, clock):
    token = (await parts.fleet.create_agent("server", "prod", {}, "tester")).token
    [agent] = parts.fleet.registry.agents.values()
    await beat(parts, token)
    for number in range(MOST_STEPS + 5):
        clock.advance(REFILL)
        await tell(parts, agent, host=f"host-{number}")
    hosts = {host.host for host in (await parts.fleet.deployment(agent.id)).hosts}
    assert len(hosts) == MOST_STEPS + 1
    assert {"web-1", f"host-{MOST_STEPS + 4}"} <= hosts
    assert "host-0" not in hosts


async def test_each_step_is_told_to_the_live_stream(parts):
    token = (await parts.fleet.create_agent("server", "prod", {}, "tester")).token
    [agent] = parts.fleet.registry.agents.values()

    async def heard(queue):
        return [message.topic for message in [await asyncio.wait_for(queue.get(), 5)] if message.data["agent_id"] == agent.id]

    async with parts.live.subscribe() as queue:
        await tell(parts, agent)
        assert await heard(queue) == ["agent"]
        uid = await beat(parts, token)
        while not queue.empty():
            queue.get_nowait()
        await parts.fleet.deployments.flush()
        assert await heard(queue) == ["agent"], "it enrolled"
        parts.fleet.deployments.awaited[uid] = parts.clock()
        assert await parts.fleet.deployments.flush() == 1
        assert await heard(queue) == ["agent"], "its first metrics came"
        assert await parts.fleet.deployments.flush() == 0


async def test_who_is_awaited_survives_a_restart_of_the_platform_and_who_is_not_does_too(parts):
    token = (await parts.fleet.create_agent("server", "prod", {}, "tester")).token
    uid = await beat(parts, token)
    await parts.fleet.flush()
    fresh = await parts.restarted()
    assert fresh.fleet.deployments.awaited == {uid: 0.0}
    fresh.fleet.deployments.awaited[uid] = parts.clock()
    await fresh.fleet.deployments.flush()
    assert (await parts.restarted()).fleet.deployments.awaited == {}


async def test_a_host_that_enrols_again_has_enrolled_once(parts, clock):
    token = (await parts.fleet.create_agent("server", "prod", {}, "tester")).token
    [agent] = parts.fleet.registry.agents.values()
    await beat(parts, token)
    clock.advance(3600)
    await beat(parts, token, uid=uuid.uuid4())
    [host] = (await parts.fleet.deployment(agent.id)).hosts
    assert host.stages[3].time.timestamp() == clock() - 3600


async def test_instances_from_before_steps_were_kept_count_as_enrolled(parts):
    token = (await parts.fleet.create_agent("docker", "prod", {}, "tester")).token
    [agent] = parts.fleet.registry.agents.values()
    await beat(parts, token)
    async with parts.database.write() as session:
        await session.execute(text("DELETE FROM deployment_steps"))
    found = await parts.fleet.deployment(agent.id)
    assert [stage.state.value for stage in found.stages] == ["reached", "reached", "waiting"]


async def test_a_host_that_was_renamed_after_it_enrolled_is_not_another_host(parts, clock):
    token = (await parts.fleet.create_agent("server", "prod", {}, "tester")).token
    [agent] = parts.fleet.registry.agents.values()
    uid = await beat(parts, token)
    parts.fleet.deployments.awaited[uid] = clock()
    await parts.fleet.deployments.flush()
    clock.advance(3600)
    parts.fleet.registry.instances[uid].resource = {"host.name": "web-2"}
    found = await parts.fleet.deployment(agent.id)
    assert [host.host for host in found.hosts] == ["web-1"]
    assert found.complete
