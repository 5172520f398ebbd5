from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from opamp_client import CAPABILITIES, OpampAgent, credential_in

from app.main import create_app
from app.settings import Settings
from connectors.core import opamp_pb2 as opamp

KEY = "a-preset-admin-key-for-tests"
pytestmark = pytest.mark.sockets


@pytest.fixture
def client(tmp_path):
    settings = Settings(data_dir=tmp_path / "data", admin_api_key=KEY, public_url="https://irca.test")
    with TestClient(create_app(settings), base_url="https://irca.test", headers={"authorization": f"Bearer {KEY}"}) as made:
        yield made


def key_of(client, role: str, environments: list[str] | None = None) -> dict[str, str]:
    made = client.post("/api/v1/api-keys", json={"name": role, "role": role, "environments": environments or ["*"]}).json()
    return {"authorization": f"Bearer {made['key']}"}


def created(client, name: str = "web", **fields) -> dict:
    response = client.post("/api/v1/groups", json={"name": name, **fields})
    assert response.status_code == 201, response.text
    return response.json()


def beat(client, bearer: str, agent: OpampAgent, *, full: bool = False) -> opamp.ServerToAgent:
    headers = {"authorization": f"Bearer {bearer}", "content-type": "application/x-protobuf"}
    response = client.post("/v1/opamp", content=agent.beat(full=full, healthy=True), headers=headers)
    assert response.status_code == 200, response.text
    return agent.read(response.content)


@pytest.fixture
def enrolled(client) -> tuple[dict, OpampAgent]:
    """A server agent in prod with one instance, as the API shows them."""
    body = {"agent_type": "server", "environment_name": "prod", "config": {"labels": {"team": "web"}}}
    made = client.post("/api/v1/agent/provision", json=body).json()
    agent = OpampAgent(capabilities=CAPABILITIES | 0x1002)
    bearer = credential_in(beat(client, made["agent_token"], agent, full=True))
    return {"agent_id": made["agent_id"], "bearer": bearer}, agent


def test_a_group_configures_its_members_and_each_value_tells_its_source(client, enrolled):
    about, agent = enrolled
    selector = {"matchLabels": {"team": "web"}}
    assert client.post("/api/v1/groups/preview", json={"selector": selector}).json()["instances"] == 1
    group = created(client, selector=selector, priority=5)
    assert (group["selector"]["matchLabels"], group["selector_text"], group["instances"]) == ({"team": "web"}, "team=web", 1)
    path = f"/api/v1/groups/{group['id']}/configuration"
    dry = client.put(path, params={"dry_run": True}, json={"config": {"collect_interval": 30}}).json()
    assert (dry["changes"], dry["revision"], dry["instances"]) == (
        [{"key": "collect_interval", "kind": "added", "before": None, "after": 30}],
        0,
        1,
    )
    made = client.put(path, json={"config": {"collect_interval": 30}, "comment": "why"}, headers={"if-match": '"0"'})
    assert (made.status_code, made.headers["etag"]) == (200, '"1"')
    assert client.put(path, json={"config": {}}, headers={"if-match": '"0"'}).status_code == 412
    own = f"/api/v1/agents/{about['agent_id']}/configuration"
    assert client.put(own, json={"config": {"log_level": "debug"}}).headers["etag"] == '"1"'
    reply = beat(client, about["bearer"], agent)
    assert reply.remote_config.config.config_map["agent.json"].body == b'{"collect_interval":30,"log_level":"debug"}'
    shown = client.get(f"/api/v1/instances/{agent.uid}/configuration").json()
    options = {o["key"]: o for o in shown["options"]}
    assert shown["status"] == "offered"
    assert shown["groups"] == [{"kind": "group", "name": "web", "id": group["id"], "revision": 1}]
    assert (options["log_level"]["value"], options["log_level"]["source"]["kind"], options["log_level"]["wanted"]["value"]) == (
        "info",
        "default",
        "debug",
    )
    assert options["collect_interval"]["source"] == {"kind": "group", "name": "web", "id": group["id"], "revision": 1}
    members = client.get(f"/api/v1/groups/{group['id']}/instances", params={"status": "offered"}).json()["items"]
    assert [m["name"] for m in members] == ["web-1"]
    assert client.get(f"{own}/instances").json()["items"] == members
    assert [r["comment"] for r in client.get(f"{path}/revisions").json()["items"]] == ["why"]
    assert client.get(f"{own}/revisions").json()["items"][0]["config"] == {"log_level": "debug"}
    assert client.post(f"{path}/revert", json={"revision": 0}, headers={"if-match": '"1"'}).json()["config"] == {}
    assert client.post(f"{own}/revert", json={"revision": 0}).headers["etag"] == '"2"'
    assert client.get(own).json()["config"] == client.get(path).json()["config"] == {}


def test_what_is_not_valid_is_refused_by_its_field(client, enrolled):
    group = created(client, selector={"matchLabels": {"agent_type": "server"}})
    path = f"/api/v1/groups/{group['id']}/configuration"
    refused = client.put(path, json={"config": {"collect_interval": 0, "host_metrics": True}})
    assert (refused.status_code, [e["field"] for e in refused.json()["errors"]]) == (
        422,
        ["config.collect_interval", "config.host_metrics"],
    )
    taken = client.post("/api/v1/groups", json={"name": "web"})
    assert (taken.status_code, taken.json()["errors"][0]["field"]) == (409, "name")
    assert (
        client.post("/api/v1/groups", json={"name": "x", "selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}).status_code
        == 422
    )
    assert client.get("/api/v1/groups", params={"cursor": "é"}).status_code == 422
    assert client.get(f"{path}/revisions", params={"cursor": "YQ"}).status_code == 422
    assert client.get("/api/v1/groups/none").status_code == 404
    client.put(path, json={"config": {"collect_interval": 30}})
    body = {"name": "web", "selector": {"matchLabels": {"agent_type": "nothing"}}}
    assert client.put(f"/api/v1/groups/{group['id']}", json=body).status_code == 422
    bad = client.patch(f"/api/v1/agents/{enrolled[0]['agent_id']}", json={"labels": {"environment": "x"}})
    assert bad.json()["errors"][0]["field"] == "labels.environment"


def test_groups_are_listed_page_by_page_changed_and_deleted_by_the_version_that_stands(client):
    for name in ("c", "a", "b"):
        created(client, name, description=f"group {name}")
    first = client.get("/api/v1/groups", params={"limit": 2}).json()
    assert [g["name"] for g in first["items"]] == ["a", "b"]
    second = client.get("/api/v1/groups", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert ([g["name"] for g in second["items"]], second["next_cursor"]) == (["c"], None)
    [found] = client.get("/api/v1/groups", params={"search": "GROUP B"}).json()["items"]
    path = f"/api/v1/groups/{found['id']}"
    etag = client.get(path).headers["etag"]
    assert client.put(path, json={"name": "b2"}, headers={"if-match": etag}).json()["version"] == 2
    assert client.put(path, json={"name": "b3"}, headers={"if-match": etag}).status_code == 412
    assert client.delete(path, headers={"if-match": etag}).status_code == 412
    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == 404
    actions = {e["action"] for e in client.get("/api/v1/audit").json()["items"]}
    assert {"group.create", "group.update", "group.delete"} <= actions


def test_several_agents_are_labelled_at_a_time_or_none_of_them(client, enrolled):
    agent_id = enrolled[0]["agent_id"]
    body = {"agent_ids": [agent_id, "nobody"], "action": "label", "labels": {"tier": "front"}}
    assert client.post("/api/v1/agents/bulk", json=body).status_code == 404
    assert client.get(f"/api/v1/agents/{agent_id}").json()["labels"] == {"team": "web"}
    done = client.post("/api/v1/agents/bulk", json={**body, "agent_ids": [agent_id]})
    assert done.json() == {"agents": 1, "instances": 0}
    assert client.patch(f"/api/v1/agents/{agent_id}", json={"labels": {"team": None}}).json()["labels"] == {"tier": "front"}
    assert client.post("/api/v1/agents/bulk", json={"agent_ids": [agent_id], "action": "label"}).status_code == 422
    revoked = client.post("/api/v1/agents/bulk", json={"agent_ids": [agent_id], "action": "revoke-credentials"})
    assert revoked.json() == {"agents": 1, "instances": 1}


def test_a_viewer_reads_and_changes_nothing(client, enrolled):
    group, agent_id = created(client), enrolled[0]["agent_id"]
    viewer = key_of(client, "viewer")
    path = f"/api/v1/groups/{group['id']}"
    for readable in (path, f"{path}/configuration", f"{path}/instances", f"/api/v1/agents/{agent_id}/configuration"):
        assert client.get(readable, headers=viewer).status_code == 200
    refused = [
        client.post("/api/v1/groups", json={"name": "x"}, headers=viewer),
        client.put(path, json={"name": "x"}, headers=viewer),
        client.delete(path, headers=viewer),
        client.put(f"{path}/configuration", json={"config": {}}, headers=viewer),
        client.post(f"{path}/configuration/revert", json={"revision": 0}, headers=viewer),
        client.put(f"/api/v1/agents/{agent_id}/configuration", json={"config": {}}, headers=viewer),
        client.post(f"/api/v1/agents/{agent_id}/configuration/revert", json={"revision": 0}, headers=viewer),
        client.patch(f"/api/v1/agents/{agent_id}", json={"labels": {}}, headers=viewer),
        client.post("/api/v1/agents/bulk", json={"agent_ids": [agent_id], "action": "revoke-credentials"}, headers=viewer),
    ]
    assert {r.status_code for r in refused} == {403}


def test_a_key_for_some_environments_configures_agents_there_and_no_groups(client, enrolled):
    group, agent_id = created(client), enrolled[0]["agent_id"]
    here, elsewhere = key_of(client, "operator", ["prod"]), key_of(client, "operator", ["staging"])
    own = f"/api/v1/agents/{agent_id}/configuration"
    assert client.put(own, json={"config": {"collect_interval": 20}}, headers=here).status_code == 200
    assert client.put(own, json={"config": {}}, headers=elsewhere).status_code == 404
    assert client.get(f"/api/v1/instances/{enrolled[1].uid}/configuration", headers=elsewhere).status_code == 404
    for refused in ("/api/v1/groups", f"/api/v1/groups/{group['id']}", f"/api/v1/groups/{group['id']}/configuration"):
        assert client.get(refused, headers=here).status_code == 403
    body = {"agent_ids": [agent_id], "action": "label", "labels": {"a": "b"}}
    assert client.post("/api/v1/agents/bulk", json=body, headers=elsewhere).status_code == 404
    assert client.post("/api/v1/agents/bulk", json=body, headers=here).json()["agents"] == 1


def test_a_webhook_for_a_group_is_told_of_its_members_only(client, enrolled):
    group, other = created(client), created(client, "other", selector={"matchLabels": {"team": "db"}})
    for name, group_id in (("mine", group["id"]), ("not", other["id"])):
        body = {"name": name, "url": "https://receiver.test/", "filters": {"groups": [group_id]}}
        assert client.post("/api/v1/webhooks", json=body).status_code == 201
    client.put(f"/api/v1/agents/{enrolled[0]['agent_id']}/configuration", json={"config": {"collect_interval": 20}})
    log = client.get("/api/v1/webhook-deliveries").json()["items"]
    hooks = {w["id"]: w["name"] for w in client.get("/api/v1/webhooks").json()["items"]}
    assert {hooks[d["endpoint_id"]] for d in log} == {"mine"}
