from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from opamp_client import OpampAgent, credential_in

from app.fleet.enrolment import REFUSED_BURST, REFUSED_EVERY
from app.main import create_app
from app.settings import Settings

KEY = "a-preset-admin-key-for-tests"
PROTOBUF = {"content-type": "application/x-protobuf"}


@pytest.fixture
def client(tmp_path, clock):
    with TestClient(create_app(Settings(data_dir=tmp_path / "data", admin_api_key=KEY), clock)) as made:
        yield made


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


def provisioned(client, **fields) -> str:
    body = {"agent_type": "server", "environment_name": "prod", **fields}
    return client.post("/api/v1/agent/provision", json=body, headers=bearer(KEY)).json()["agent_token"]


def beat(client, token: str, agent: OpampAgent | None = None):
    message = (agent or OpampAgent()).beat(full=True)
    return client.post("/v1/opamp", content=message, headers=bearer(token) | PROTOBUF)


def exhausted(client) -> None:
    for number in range(REFUSED_BURST):
        assert beat(client, f"agent_prod_guess{number}").status_code == 401


def refused_events(client) -> int:
    return len(client.get("/api/v1/events", params={"name": "irca.enrolment.refused", "limit": 500}, headers=bearer(KEY)).json()["items"])


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [
        ("POST", "/v1/opamp", OpampAgent().beat(full=True)),
        ("POST", "/v1/metrics", b""),
        ("POST", "/v1/logs", b""),
        ("GET", "/api/v1/agent/whoami", None),
        ("POST", "/api/v1/agent/progress", b'{"step": "installed"}'),
    ],
)
def test_whoever_shows_too_many_bad_tokens_is_asked_to_wait(client, clock, method, path, content):
    exhausted(client)
    kept = refused_events(client)
    headers = bearer("agent_prod_another") | (PROTOBUF if path.startswith("/v1/") else {})
    for shown in (headers, {k: v for k, v in headers.items() if k != "authorization"}):
        limited = client.request(method, path, content=content, headers=shown)
        assert limited.status_code == 429
        assert int(limited.headers["retry-after"]) == REFUSED_EVERY
    assert refused_events(client) == kept, "what is limited is not written down"
    clock.advance(REFUSED_EVERY)
    assert client.request(method, path, content=content, headers=headers).status_code == 401
    assert client.request(method, path, content=content, headers=headers).status_code == 429


def test_good_tokens_and_credentials_pass_whatever_their_neighbours_behind_one_address_do(client):
    token, agent = provisioned(client), OpampAgent()
    credential = credential_in(agent.read(beat(client, token, agent).content))
    newcomers = provisioned(client)
    exhausted(client)
    assert beat(client, "agent_prod_one-more").status_code == 429
    assert client.post("/v1/opamp", content=agent.beat(), headers=bearer(credential) | PROTOBUF).status_code == 200
    assert client.post("/v1/metrics", content=b"", headers=bearer(credential) | PROTOBUF).status_code == 200
    assert client.get("/api/v1/agent/whoami", headers=bearer(newcomers)).status_code == 200
    assert beat(client, newcomers, OpampAgent(fingerprint="machine-2")).status_code == 200


def test_a_used_up_token_counts_as_a_failure_too(client):
    token = provisioned(client)
    assert beat(client, token).status_code == 200
    answers = [beat(client, token, OpampAgent(fingerprint=f"machine-{n}")).status_code for n in range(2, REFUSED_BURST + 3)]
    assert answers == [401] * REFUSED_BURST + [429]


def test_the_same_refusal_of_the_same_host_is_told_once_in_a_while(client, clock):
    for _ in range(3):
        assert beat(client, "agent_prod_old").status_code == 401
        assert client.post("/v1/metrics", content=b"", headers=bearer("agent_prod_old") | PROTOBUF).status_code == 401
    assert refused_events(client) == 1
    assert beat(client, "agent_prod_old", OpampAgent(host="web-2")).status_code == 401
    assert refused_events(client) == 2
    clock.advance(601)
    assert beat(client, "agent_prod_old").status_code == 401
    assert refused_events(client) == 3
    assert client.post("/v1/opamp", content=b"", headers=PROTOBUF).status_code == 401
    assert refused_events(client) == 3, "who shows nothing is counted and not told of"
