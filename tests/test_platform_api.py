from __future__ import annotations

import logging

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from opamp_client import OpampAgent, credential_in

from app.errors import ERRORS, PlatformError, Problem, StartupError
from app.main import create_app, open_platform
from app.settings import Settings
from connectors.core.errors import ConnectorError

KEY = "a-preset-admin-key-for-tests"
PROTOBUF = {"content-type": "application/x-protobuf"}


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(data_dir=tmp_path / "data", admin_api_key=KEY, public_url="https://irca.example.com")


@pytest.fixture
def client(settings):
    with TestClient(create_app(settings), headers={"authorization": f"Bearer {KEY}"}) as made:
        yield made


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def provisioned(client, **body) -> dict:
    response = client.post("/api/v1/agent/provision", json={"agent_type": "server", "environment_name": "prod", **body})
    assert response.status_code == 200, response.text
    return response.json()


def joined(client, **provision) -> tuple[OpampAgent, str]:
    agent, token = OpampAgent(), provisioned(client, **provision)["agent_token"]
    response = client.post("/v1/opamp", content=agent.beat(full=True), headers=bearer(token) | PROTOBUF)
    return agent, credential_in(agent.read(response.content))


def test_the_first_start_makes_an_admin_key_and_later_ones_do_not(tmp_path):
    app = create_app(Settings(data_dir=tmp_path))
    with TestClient(app) as client:
        key = app.state.first_run_key
        assert client.get("/api/v1/agents", headers=bearer(key)).status_code == 200
    with TestClient(app) as client:
        assert app.state.first_run_key is None
        assert client.get("/api/v1/agents", headers=bearer(key)).status_code == 200


def test_a_preset_key_works(client):
    assert client.get("/api/v1/agents").json() == {"items": [], "next_cursor": None}


def test_every_route_but_the_known_open_ones_needs_a_key(client):
    open_paths = {"/healthz", "/readyz", "/sign-in", "/sign-out", "/openapi.json", "/api/v1/agent/whoami", "/api/v1/agent/progress"}
    open_paths.add("/theme")  # keeps a cookie, on the sign-in page, too
    published = ("/artefacts/", "/packages/", "/install/", "/charts/")  # code, for hosts that have no key yet
    tried = 0
    for route in _all_routes(client.app):
        for method in route.methods - {"HEAD", "OPTIONS"}:
            path = route.path
            for parameter in route.param_convertors:
                path = path.replace("{" + parameter + "}", "x").replace("{" + parameter + ":path}", "x")
            if path in open_paths or (path.startswith(published) and method == "GET"):
                continue
            tried += 1
            response = client.request(method, path, headers={"authorization": ""}, follow_redirects=False)
            signed_out = response.status_code == 303 and response.headers["location"].startswith("/sign-in")
            assert response.status_code == 401 or signed_out, f"{method} {path} answered {response.status_code}"
    assert tried > 15


def _all_routes(app) -> list[APIRoute]:
    found, waiting = [], list(app.routes)
    while waiting:
        route = waiting.pop()
        waiting += getattr(getattr(route, "original_router", None), "routes", [])
        if isinstance(route, APIRoute):
            found.append(route)
    return found


@pytest.mark.parametrize("path", ["/v1/metrics", "/v1/logs", "/v1/opamp"])
def test_telemetry_needs_a_token_and_says_why_one_is_refused(client, path):
    missing = client.post(path, headers={"authorization": ""} | PROTOBUF)
    assert missing.status_code == 401
    unknown = client.post(path, headers=bearer("agent_prod_nonsense") | PROTOBUF, content=OpampAgent().beat() if "opamp" in path else b"")
    assert unknown.status_code == 401
    assert 'error="token-unknown"' in unknown.headers["www-authenticate"]


def test_errors_have_one_shape(client):
    for response in (
        client.get("/api/v1/agents/nothing"),
        client.get("/no/such/path"),
        client.put("/api/v1/agents"),
        client.get("/api/v1/agents?limit=0"),
    ):
        assert response.headers["content-type"] == "application/problem+json"
        problem = response.json()
        assert {"type", "title", "status", "code", "detail", "retryable"} <= set(problem)
        assert problem["status"] == response.status_code
    assert problem["errors"][0]["field"] == "limit"


def test_an_agent_is_provisioned_enrols_and_shows_as_healthy(client):
    agent, credential = joined(client, config={"labels": {"team": "shop"}})
    client.post("/v1/opamp", content=agent.beat(), headers=bearer(credential) | PROTOBUF)
    client.portal.call(client.app.state.platform.fleet.flush)
    (item,) = client.get("/api/v1/agents").json()["items"]
    assert set(item) >= {"id", "agent_type", "environment_name", "status", "version", "last_seen_at", "labels", "instances"}
    assert (item["status"], item["labels"], item["version"]) == ("healthy", {"team": "shop"}, "0.1.0")
    assert client.get(f"/api/v1/agents/{item['id']}").json() == item
    (instance,) = client.get(f"/api/v1/instances?agent_id={item['id']}").json()["items"]
    assert client.get(f"/api/v1/instances/{instance['id']}").json() == instance
    names = [e["name"] for e in client.get("/api/v1/events").json()["items"]]
    assert names == ["irca.instance.status_changed", "irca.instance.enrolled", "irca.agent.provisioned"]
    event = client.get("/api/v1/events?severity=info&limit=1").json()["items"][0]
    assert client.get(f"/api/v1/events/{event['id']}").json() == event


def test_the_printed_command_carries_the_public_url(client):
    assert "https://irca.example.com" in provisioned(client, agent_type="docker")["deployment_command"]


def test_whoami_tells_a_token_from_a_credential_and_uses_nothing_up(client):
    token = provisioned(client)["agent_token"]
    for _ in range(3):
        who = client.get("/api/v1/agent/whoami", headers=bearer(token)).json()
    assert (who["kind"], who["environment_name"], who["instance_id"]) == ("enrolment", "prod", None)
    agent, credential = joined(client)
    assert client.get("/api/v1/agent/whoami", headers=bearer(credential)).json()["instance_id"] == str(agent.uid)
    assert client.get("/api/v1/agent/whoami", headers=bearer("agent_x_y")).json()["code"] == "token-unknown"


def test_tokens_are_listed_without_their_texts_and_revoked(client):
    made = provisioned(client)
    (token,) = client.get(f"/api/v1/agents/{made['agent_id']}/tokens").json()["items"]
    assert made["agent_token"].startswith(token["prefix"])
    assert made["agent_token"] not in str(token)
    assert client.delete(f"/api/v1/enrolment-tokens/{token['id']}").status_code == 204
    refused = client.get("/api/v1/agent/whoami", headers=bearer(made["agent_token"]))
    assert refused.json()["code"] == "token-revoked"


def test_a_revoked_credential_stops_working_at_once(client):
    agent, credential = joined(client)
    assert client.delete(f"/api/v1/instances/{agent.uid}/credential").status_code == 204
    response = client.post("/v1/opamp", content=agent.beat(), headers=bearer(credential) | PROTOBUF)
    assert response.json()["code"] == "token-unknown"


def test_roles_are_kept_apart(client):
    made = {role: client.post("/api/v1/api-keys", json={"name": role, "role": role}).json()["key"] for role in ("viewer", "operator")}
    body = {"agent_type": "server", "environment_name": "e"}
    assert client.post("/api/v1/agent/provision", json=body, headers=bearer(made["viewer"])).status_code == 403
    assert client.post("/api/v1/agent/provision", json=body, headers=bearer(made["operator"])).status_code == 200
    assert client.get("/api/v1/agents", headers=bearer(made["viewer"])).status_code == 200
    assert client.get("/api/v1/api-keys", headers=bearer(made["operator"])).status_code == 403


def test_keys_are_created_listed_and_revoked(client):
    made = client.post("/api/v1/api-keys", json={"name": "ci", "expires_in": 60})
    assert made.status_code == 201
    listed = client.get("/api/v1/api-keys").json()["items"]
    assert [k["name"] for k in listed] == ["preset", "ci"]
    assert made.json()["key"] not in str(listed)
    assert client.delete(f"/api/v1/api-keys/{made.json()['id']}").status_code == 204
    assert client.get("/api/v1/agents", headers=bearer(made.json()["key"])).json()["code"] == "token-revoked"
    assert client.post("/api/v1/api-keys", json={"name": "x", "role": "king"}).json()["errors"][0]["field"] == "role"


def test_a_browser_session_may_change_things_only_from_our_own_pages(client):
    token, _ = client.portal.call(client.app.state.platform.auth.open_session, KEY)
    browser = {"authorization": "", "cookie": f"__Host-irca_session={token}"}
    body = {"agent_type": "server", "environment_name": "e"}
    assert client.get("/api/v1/agents", headers=browser).status_code == 200
    foreign = client.post("/api/v1/agent/provision", json=body, headers=browser | {"origin": "https://evil.example.com"})
    assert foreign.status_code == 403
    assert client.post("/api/v1/agent/provision", json=body, headers=browser | {"sec-fetch-site": "cross-site"}).status_code == 403
    assert client.post("/api/v1/agent/provision", json=body, headers=browser | {"sec-fetch-site": "same-origin"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "headers", "body", "status"),
    [
        ("GET", PROTOBUF, b"", 405),
        ("POST", {"content-type": "text/plain"}, b"", 415),
        ("POST", PROTOBUF, b"\xff\xff", 400),
        ("POST", PROTOBUF, b"x" * 1_048_577, 413),
        ("POST", PROTOBUF | {"content-encoding": "br"}, b"x", 415),
    ],
)
def test_what_the_opamp_endpoint_cannot_take_it_refuses_with_the_fitting_status(client, method, headers, body, status):
    token = provisioned(client)["agent_token"]
    response = client.request(method, "/v1/opamp", headers=bearer(token) | headers, content=body)
    assert response.status_code == status
    assert response.json()["status"] == status


def test_health_readiness_and_the_platforms_own_metrics(client):
    assert client.get("/healthz", headers={"authorization": ""}).json()["service"] == "incident-rca"
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    joined(client)
    text = client.get("/metrics").text
    assert "irca_opamp_exchanges_total 1.0" in text
    assert 'irca_instances{status="pending"}' in text


def test_readiness_tells_of_a_database_that_fails_and_of_a_job_that_fails(client, monkeypatch):
    from app.errors import StorageError

    async def broken():
        raise StorageError("the disk is gone")

    monkeypatch.setattr(client.app.state.platform.database, "ping", broken)
    monkeypatch.setattr(client.app.state.platform.jobs, "failures", lambda: {"status-sweep": "boom"})
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["checks"] == {"database": "the disk is gone", "metrics": "ok", "job status-sweep": "boom"}


def test_an_unforeseen_failure_says_nothing_of_the_inside(settings, monkeypatch):
    with TestClient(create_app(settings), headers=bearer(KEY), raise_server_exceptions=False) as client:

        async def broken(*_, **__):
            raise RuntimeError("secret detail")

        monkeypatch.setattr(client.app.state.platform.fleet, "list_agents", broken)
        response = client.get("/api/v1/agents")
    assert response.status_code == 500
    assert "secret" not in response.text


def test_no_secret_reaches_the_log(settings, caplog):
    caplog.set_level(logging.DEBUG)
    with TestClient(create_app(settings), headers=bearer(KEY)) as client:
        token = provisioned(client)["agent_token"]
        agent, credential = joined(client)
        client.post("/v1/opamp", content=agent.beat(), headers=bearer(credential) | PROTOBUF)
        client.post("/v1/opamp", content=agent.beat(), headers=bearer("agent_prod_a-wrong-secret-text") | PROTOBUF)
        client.get("/api/v1/agents", headers=bearer("irca_a-wrong-key"))
    for secret in (KEY, token, credential, "a-wrong-secret-text", "a-wrong-key"):
        assert secret not in caplog.text


async def test_one_data_directory_serves_one_platform(settings):
    async with open_platform(settings):
        with pytest.raises(StartupError, match="another platform is running"):
            async with open_platform(settings):
                pass


async def test_a_data_directory_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="IRCA_DATA_DIR"):
        async with open_platform(Settings(data_dir=tmp_path / "file" / "data")):
            pass


def test_every_error_has_its_row_in_the_table():
    def tree(cls):
        yield cls
        for sub in cls.__subclasses__():
            yield from tree(sub)

    for cls in tree(PlatformError):
        if cls.__module__.startswith("app."):
            assert cls.code in ERRORS, cls
            assert Problem.of(cls()).treatment is ERRORS[cls.code]
    assert Problem.of(ConnectorError("x")).code == "internal-error"


def test_the_public_url_follows_from_the_settings(tmp_path):
    assert Settings(port=9000).resolved_public_url() == "http://localhost:9000"
    assert Settings(port=0).resolved_public_url(1234) == "http://localhost:1234"
    assert Settings(tls_certificate=tmp_path / "x").resolved_public_url() == "https://localhost:8000"
    assert Settings(public_url="https://a.example/").resolved_public_url() == "https://a.example"
    assert Settings(database_url="postgres://h/db").resolved_database_url() == "postgresql+psycopg://h/db"
    assert Settings(database_url="sqlite+aiosqlite:///x").resolved_database_url() == "sqlite+aiosqlite:///x"
