"""Maintenance, history and archive through HTTP, the pages and the command."""

from __future__ import annotations

import re

import pytest
from fastapi.testclient import TestClient
from opamp_client import OpampAgent, credential_in

from app import cli
from app.commands.client import PlatformClient
from app.main import create_app
from app.settings import Settings
from app.web.history import percentage
from tests.platform_fixtures import Clock

KEY = "a-preset-admin-key-for-tests"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(tmp_path, clock):
    settings = Settings(data_dir=tmp_path / "data", admin_api_key=KEY, status_sweep_interval=60, heartbeat_flush_interval=30)
    with TestClient(create_app(settings, clock), headers={"authorization": f"Bearer {KEY}"}) as made:
        yield made


@pytest.fixture
def instance(client, clock) -> str:
    """The id of an instance that was heard and then fell silent."""
    made = client.post("/api/v1/agent/provision", json={"agent_type": "server", "environment_name": "prod"}).json()
    agent, token = OpampAgent(), made["agent_token"] if "agent_token" in made else re.search(r"agent_prod_[\w-]+", str(made))[0]
    headers = {"content-type": "application/x-protobuf"}
    answer = client.post("/v1/opamp", content=agent.beat(full=True), headers={**headers, "authorization": f"Bearer {token}"})
    credential = credential_in(agent.read(answer.content))
    client.post("/v1/opamp", content=agent.beat(), headers={**headers, "authorization": f"Bearer {credential}"})
    fleet = client.app.state.platform.fleet
    client.portal.call(fleet.flush)
    clock.advance(600)
    client.portal.call(fleet.sweep)
    clock.advance(60)
    return str(agent.uid)


def key_of(client, role: str) -> str:
    return client.post("/api/v1/api-keys", json={"name": role, "role": role}).json()["key"]


def sign_in(client, key: str) -> None:
    client.headers.pop("authorization", None)
    assert client.post("/sign-in", data={"api_key": key}, follow_redirects=False).status_code == 303


def token_in(page: str) -> str:
    return page.split('name="form_token" value="')[1].split('"', maxsplit=1)[0]


def test_history_and_availability_are_answered_for_instance_and_agent(client, instance):
    agent_id = client.get(f"/api/v1/instances/{instance}").json()["agent_id"]
    for path in (f"/api/v1/instances/{instance}", f"/api/v1/agents/{agent_id}"):
        told = client.get(f"{path}/history").json()
        assert [s["status"] for s in told["stretches"]][:2] == [None, "healthy"]
        figures = client.get(f"{path}/availability", params={"start": told["start"]}).json()
        assert 0 <= figures["available"] <= 1
        assert client.get(f"{path}/history", params={"start": "2026-01-01T00:00:00"}).status_code == 422
    assert client.get("/api/v1/instances/nothing/history").status_code == 404


def test_operators_archive_and_revive_and_viewers_do_not(client, instance):
    path, viewer = f"/api/v1/instances/{instance}", {"authorization": f"Bearer {key_of(client, 'viewer')}"}
    assert client.post(f"{path}/archive", headers=viewer).status_code == 403
    assert client.post(f"{path}/archive").json()["status"] == "archived"
    assert client.post(f"{path}/archive").status_code == 409
    assert client.post(f"{path}/revive", headers=viewer).status_code == 403
    assert client.post(f"{path}/revive").json()["status"] == "offline"
    assert {"instance.archive", "instance.revive"} <= {e["action"] for e in client.get("/api/v1/audit").json()["items"]}


def test_windows_are_made_read_and_ended_over_the_api(client, instance):
    base = "/api/v1/maintenance-windows"
    body = {"reason": "kernel", "selector": {"environments": ["prod"]}, "duration": 600}
    viewer = {"authorization": f"Bearer {key_of(client, 'viewer')}"}
    assert client.post(base, json=body, headers=viewer).status_code == 403
    made = client.post(base, json=body)
    assert (made.status_code, made.json()["state"], made.json()["agents"]) == (201, "active", 1)
    assert client.get(f"/api/v1/instances/{instance}").json()["maintenance_until"] == made.json()["ends_at"]
    path = f"{base}/{made.json()['id']}"
    assert client.get(path, headers=viewer).json() == made.json()
    assert client.get(base, params={"state": "active"}).json()["items"] == [made.json()]
    assert client.post(f"{path}/end", headers=viewer).status_code == 403
    assert client.post(f"{path}/end").status_code == 200
    assert client.post(f"{path}/end").status_code == 409
    assert client.post(base, json={**body, "selector": {}}).json()["errors"][0]["field"] == "selector"
    assert client.post(base, json={**body, "duration": 0}).status_code == 422


def test_a_limited_key_mutes_its_own_environments_only(client):
    made = client.post("/api/v1/api-keys", json={"name": "team", "role": "operator", "environments": ["team-*"]}).json()
    limited = {"authorization": f"Bearer {made['key']}"}
    base, body = "/api/v1/maintenance-windows", {"reason": "x", "selector": {"environments": ["team-a"]}, "duration": 60}
    assert client.post(base, json=body, headers=limited).status_code == 201
    assert client.post(base, json={**body, "selector": {"environments": ["prod"]}}, headers=limited).status_code == 403
    client.post(base, json={**body, "selector": {"environments": ["prod"]}})
    assert len(client.get(base, headers=limited).json()["items"]) == 1


def test_a_window_is_made_and_ended_on_its_page(client, clock, instance):
    sign_in(client, KEY)
    page = client.get("/maintenance?environment=prod").text
    assert "Nothing is in maintenance" in page
    form = {"form_token": token_in(page), "reason": "kernel", "environments": "prod", "agent_ids": "", "labels": "", "duration": "3600"}
    for field, value, said in (
        ("reason", "", "must have 1 to"),
        ("environments", "", "must name environments"),
        ("labels", "team", "must look like team=shop"),
        ("duration", "soon", "must be one of those offered"),
        ("starts_at", "soon", "must look like 2026"),
    ):
        refused = client.post("/maintenance", data={**form, field: value})
        assert (refused.status_code, said in refused.text) == (422, True), field
    shown = client.post("/maintenance", data={**form, "labels": ""}).text
    assert "kernel" in shown
    assert "active" in shown
    assert "In maintenance until" in client.get(f"/instances/{instance}").text
    clock.advance(60)
    path = shown.split('action="/maintenance/')[1].split('"')[0]
    assert "ended" in client.post(f"/maintenance/{path}", data={"form_token": form["form_token"]}).text
    assert client.post("/maintenance", data={k: v for k, v in form.items() if k != "form_token"}).status_code == 403


def test_a_viewer_sees_no_controls_and_is_refused_all_the_same(client, instance):
    sign_in(client, key_of(client, "viewer"))
    page = client.get("/maintenance").text
    assert "New maintenance window" not in page
    assert "An operator can make one" in page
    shown = client.get(f"/instances/{instance}").text
    assert "Status history" in shown
    assert f'action="/instances/{instance}/archive"' not in shown
    for path in ("/maintenance", "/maintenance/x/end", f"/instances/{instance}/archive", f"/instances/{instance}/revive"):
        assert client.post(path, data={"form_token": "x"}).status_code == 403


def test_the_instance_page_shows_its_history_and_archives_and_revives_by_one_click(client, instance):
    sign_in(client, KEY)
    page = client.get(f"/instances/{instance}?history=7d").text
    strip = page.split('<svg class="strip"')[1].split("</svg>")[0]
    assert 'class="is-offline"' in strip
    assert "style=" not in strip
    assert re.search(r'aria-label="Status over the last 7 days: [^"]*offline', page)
    assert "no heartbeat since" in page
    assert '<a href="?history=7d#history" aria-current="true">' in page
    archived = client.post(f"/instances/{instance}/archive", data={"form_token": token_in(page)}).text
    assert "Take out of the archive" in archived
    revived = client.post(f"/instances/{instance}/revive", data={"form_token": token_in(page)}).text
    assert f'action="/instances/{instance}/archive"' in revived


@pytest.mark.parametrize(("share", "text"), [(None, "-"), (1.0, "100 %"), (0.999_999, "99.999 %"), (0.5, "50 %"), (0.0, "0 %")])
def test_a_share_is_never_rounded_up_to_the_whole(share, text):
    assert percentage(share) == text


@pytest.fixture
def command(client, monkeypatch, capsys):
    """The command, asking the platform of ``client``."""
    monkeypatch.setenv("IRCA_URL", "http://testserver")
    monkeypatch.setenv("IRCA_API_KEY", KEY)

    def request(self, method, path, **kwargs):
        response = client.request(method, path, **kwargs)
        from app.commands.client import explain

        if response.is_success:
            return response.json() if response.content else None
        raise explain(response.status_code, response.json(), self.url)

    monkeypatch.setattr(PlatformClient, "_request", request)

    def run(*args: str) -> tuple[int, str, str]:
        code = cli.main(["maintenance", *args])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_the_command_makes_lists_and_ends_windows(command, instance):
    code, out, err = command("create", "--reason", "kernel", "--for", "30m", "--environment", "prod", "--label", "a=b")
    assert (code, err.startswith("Muted 0 agents")) == (0, True)
    window = out.strip()
    assert "prod, a=b" in command("list")[1]
    assert '"state": "active"' in command("list", "--json")[1]
    assert command("end", window)[0] == 0
    assert command("end", window)[0] == 1
    assert command("create", "--reason", "x", "--label", "nonsense")[0] == 2
    assert "selector" in command("create", "--reason", "x")[2]
    assert '"agents": 1' in command("create", "--reason", "x", "--environment", "prod", "--json")[1]
