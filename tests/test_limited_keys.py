from __future__ import annotations

import re

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings

KEY = "a-preset-admin-key-for-tests"


@pytest.fixture
def client(tmp_path):
    with TestClient(create_app(Settings(data_dir=tmp_path / "data", admin_api_key=KEY)), headers=bearer(KEY)) as made:
        yield made


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def provisioned(client, environment: str, **kwargs):
    return client.post("/api/v1/agent/provision", json={"agent_type": "server", "environment_name": environment}, **kwargs)


@pytest.fixture
def limited(client) -> dict[str, str]:
    made = client.post("/api/v1/api-keys", json={"name": "team", "role": "admin", "environments": ["team-*"]})
    assert made.json()["environments"] == ["team-*"]
    return bearer(made.json()["key"])


def test_a_limited_key_lists_only_what_is_in_its_environments(client, limited):
    mine, other = (provisioned(client, name).json()["agent_id"] for name in ("team-a", "prod"))
    assert [a["id"] for a in client.get("/api/v1/agents", headers=limited).json()["items"]] == [mine]
    assert {e["environment_name"] for e in client.get("/api/v1/events", headers=limited).json()["items"]} == {"team-a"}
    assert client.get(f"/api/v1/agents/{mine}/tokens", headers=limited).status_code == 200
    assert client.get(f"/api/v1/agents/{other}", headers=limited).status_code == 404
    assert client.get(f"/api/v1/agents/{other}/tokens", headers=limited).status_code == 404
    [event] = client.get("/api/v1/events", params={"environment_name": "prod"}).json()["items"]
    assert client.get(f"/api/v1/events/{event['id']}", headers=limited).status_code == 404
    assert client.get("/api/v1/instances", headers=limited).json()["items"] == []


def test_a_limited_key_provisions_only_its_environments(client, limited):
    assert provisioned(client, "team-b", headers=limited).status_code == 200
    refused = provisioned(client, "prod", headers=limited)
    assert (refused.status_code, "team-*" in refused.json()["detail"]) == (403, True)
    assert client.post("/api/v1/agent/provision", content=b"not json", headers=limited).status_code == 422


def test_whatever_is_not_made_for_limited_keys_refuses_them(client, limited):
    allowed = {"/api/v1/agents", "/api/v1/agents/bulk", "/api/v1/instances", "/api/v1/events", "/api/v1/agent/types", "/api/v1/clusters"}
    allowed |= {
        "/api/v1/maintenance-windows",
        "/api/v1/enrolment-tokens",
        "/api/v1/sign-in-links",
        "/api/v1/instances/bulk",
        "/api/v1/saved-views",
    }
    tried = 0
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        if path in allowed or path.startswith(("/api/v1/agent/", "/packages", "/install", "/artefacts", "/charts", "/healthz", "/readyz")):
            continue
        filled = re.sub(r"\{[^}]+\}", "x", path)
        for method in methods:
            tried += 1
            status = client.request(method, filled, headers=limited).status_code
            assert status in (403, 404), f"{method} {path} answered {status}"
    assert tried > 20


def test_a_limited_session_sees_its_part_of_the_pages(client, limited):
    mine, other = (provisioned(client, name).json()["agent_id"] for name in ("team-a", "prod"))
    client.post("/sign-in", data={"api_key": limited["authorization"].removeprefix("Bearer ")})
    client.headers.pop("authorization")
    for path in ("/", "/agents"):
        page = client.get(path).text
        assert ">team-a</a>" in page
        assert ">prod<" not in page
    assert client.get(f"/agents/{mine}").status_code == 200
    assert client.get(f"/agents/{other}").status_code == 404
    for path in ("/webhooks", "/audit"):
        assert client.get(path).status_code == 403
