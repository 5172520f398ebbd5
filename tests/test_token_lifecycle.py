from __future__ import annotations

import json

import pytest
from fastapi.testclient import TestClient
from opamp_client import OpampAgent

from app.main import create_app
from app.settings import Settings

KEY = "a-preset-admin-key-for-tests"
PROTOBUF = {"content-type": "application/x-protobuf"}


@pytest.fixture
def client(tmp_path, clock):
    settings = Settings(data_dir=tmp_path / "data", admin_api_key=KEY)
    with TestClient(create_app(settings, clock), headers={"authorization": f"Bearer {KEY}"}) as made:
        yield made


def provisioned(client, **fields) -> dict:
    response = client.post("/api/v1/agent/provision", json={"agent_type": "server", "environment_name": "prod", **fields})
    assert response.status_code == 200, response.text
    return response.json()


def token_of(client, agent: dict) -> dict:
    return client.get(f"/api/v1/agents/{agent['agent_id']}/tokens").json()["items"][-1]


def contact(client, token: str, machine: str = "machine-1") -> int:
    return client.post(
        "/v1/opamp", content=OpampAgent(fingerprint=machine).beat(full=True), headers={"authorization": f"Bearer {token}"} | PROTOBUF
    ).status_code


def test_provisioning_sets_the_life_of_a_token_and_how_many_machines_it_enrols(client, clock):
    agent = provisioned(client, token_ttl=600, token_max_uses=2)
    assert token_of(client, agent)["max_uses"] == 2
    assert [contact(client, agent["agent_token"], f"machine-{n}") for n in range(3)] == [200, 200, 401]
    other = provisioned(client, token_ttl=600)
    clock.advance(601)
    assert contact(client, other["agent_token"]) == 401
    assert client.post("/api/v1/agent/provision", json={"agent_type": "server", "environment_name": "x", "token_ttl": 1}).status_code == 422


def test_a_rotated_token_and_its_successor_both_work_until_the_overlap_ends(client, clock):
    agent = provisioned(client, token_max_uses=5)
    before = token_of(client, agent)
    made = client.post(f"/api/v1/enrolment-tokens/{before['id']}/rotate", json={"overlap": 60}).json()
    assert made["max_uses"] == 5
    assert [contact(client, agent["agent_token"]), contact(client, made["token"])] == [200, 200]
    clock.advance(61)
    assert [contact(client, agent["agent_token"]), contact(client, made["token"])] == [401, 200]
    client.delete(f"/api/v1/enrolment-tokens/{made['id']}")
    assert contact(client, made["token"]) == 401
    assert client.post(f"/api/v1/enrolment-tokens/{made['id']}/rotate", json={}).status_code == 409
    assert client.post("/api/v1/enrolment-tokens/none/rotate", json={}).status_code == 404


def test_what_is_done_with_tokens_is_on_record_without_their_texts(client):
    agent = provisioned(client)
    token = token_of(client, agent)
    made = client.post(f"/api/v1/enrolment-tokens/{token['id']}/rotate", json={}).json()
    client.delete(f"/api/v1/enrolment-tokens/{made['id']}")
    entries = client.get("/api/v1/audit", params={"environment_name": "prod"}).json()["items"]
    assert {e["action"] for e in entries} == {"agent.provision", "token.rotate", "token.revoke"}
    assert {e["actor_name"] for e in entries} == {"preset"}
    assert agent["agent_token"] not in json.dumps(entries)
    assert made["token"] not in json.dumps(entries)
