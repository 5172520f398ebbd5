from __future__ import annotations

import time

import pytest
from fastapi.testclient import TestClient
from webhook_receiver import receiver

from app.main import create_app
from app.settings import Settings

KEY = "a-preset-admin-key-for-tests"
pytestmark = pytest.mark.sockets


@pytest.fixture
def client(tmp_path):
    settings = Settings(
        data_dir=tmp_path / "data", admin_api_key=KEY, public_url="https://irca.test", webhook_allowed_networks="127.0.0.0/8"
    )
    with TestClient(create_app(settings), base_url="https://irca.test", headers={"authorization": f"Bearer {KEY}"}) as made:
        yield made


def key_of(client, role: str) -> dict[str, str]:
    made = client.post("/api/v1/api-keys", json={"name": role, "role": role}).json()
    return {"authorization": f"Bearer {made['key']}"}


def created(client, **fields) -> dict:
    response = client.post("/api/v1/webhooks", json={"name": "hook", "url": "https://receiver.test/", **fields})
    assert response.status_code == 201, response.text
    return response.json()


def test_a_provisioned_agent_is_told_to_a_receiver_within_seconds_and_logged(client):
    with receiver() as made:
        hook = created(client, url=made.url, filters={"event_types": ["irca.agent.*"]})
        client.post("/api/v1/agent/provision", json={"agent_type": "server", "environment_name": "prod"})
        deadline = time.monotonic() + 20
        log: list[dict] = []
        while time.monotonic() < deadline and not (log and log[0]["status"] == "delivered"):
            time.sleep(0.1)
            log = client.get("/api/v1/webhook-deliveries", params={"webhook_id": hook["id"]}).json()["items"]
        assert [r.message["type"] for r in made.received] == ["irca.agent.provisioned"]
        detail = client.get(f"/api/v1/webhook-deliveries/{log[0]['id']}").json()
        assert detail["tries"][0]["status_code"] == 204


def test_the_secret_is_shown_once_and_a_change_needs_the_version_that_stands(client):
    hook = created(client)
    assert hook["secret"].startswith("whsec_")
    response = client.get(f"/api/v1/webhooks/{hook['id']}")
    assert "secret" not in response.json()
    assert response.headers["etag"] == '"1"'
    body = {"name": "hook", "url": "https://other.test/"}
    assert client.put(f"/api/v1/webhooks/{hook['id']}", json=body, headers={"if-match": '"1"'}).headers["etag"] == '"2"'
    refused = client.put(f"/api/v1/webhooks/{hook['id']}", json=body, headers={"if-match": '"1"'})
    assert (refused.status_code, refused.json()["code"]) == (412, "precondition-failed")
    assert client.put(f"/api/v1/webhooks/{hook['id']}", json=body, headers={"if-match": "x"}).status_code == 422


def test_bad_input_is_refused_by_its_field(client):
    refused = client.post("/api/v1/webhooks", json={"name": "x", "url": "ftp://x.test"}).json()
    assert [e["field"] for e in refused["errors"]] == ["url"]
    created(client)
    taken = client.post("/api/v1/webhooks", json={"name": "hook", "url": "https://receiver.test/"})
    assert (taken.status_code, taken.json()["errors"][0]["field"]) == (409, "name")
    hook = client.get("/api/v1/webhooks").json()["items"][0]
    naive = client.post(f"/api/v1/webhooks/{hook['id']}/replay", json={"since": "2026-01-01T00:00:00"})
    assert naive.json()["errors"][0]["field"] == "since"


def test_roles_a_viewer_reads_an_operator_tests_and_an_admin_changes(client):
    hook = created(client)
    viewer, operator = key_of(client, "viewer"), key_of(client, "operator")
    path = f"/api/v1/webhooks/{hook['id']}"
    assert client.get(path, headers=viewer).status_code == 200
    assert client.post(f"{path}/test", headers=viewer).status_code == 403
    assert client.post(f"{path}/test", headers=operator).status_code == 202
    assert client.post(f"{path}/replay", json={}, headers=operator).json() == {"deliveries": 0}
    assert client.delete(path, headers=operator).status_code == 403
    assert client.post(f"{path}/secret", json={}, headers=operator).status_code == 403
    assert client.post(f"{path}/secret", json={"overlap": 60}).json()["secret"] != hook["secret"]
    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == 404


@pytest.fixture
def browser(client):
    response = client.post("/sign-in", data={"api_key": KEY}, headers={"authorization": ""}, follow_redirects=False)
    assert response.status_code == 303
    client.headers.pop("authorization")
    return client


def token_in(page: str) -> str:
    return page.split('name="form_token" value="')[1].split('"', maxsplit=1)[0]


def test_a_webhook_is_made_changed_tested_and_deleted_on_the_pages(browser):
    assert "Nobody is told yet" in browser.get("/webhooks").text
    page = browser.get("/webhooks/new").text
    form = {"form_token": token_in(page), "name": "on-call", "url": "https://receiver.test/", "template": "standard", "min_severity": "13"}
    form |= {"event_types": "irca.instance.*\nirca.docker.*", "environments": "prod-*", "groups": "", "enabled": "yes"}
    bad = browser.post("/webhooks/new", data={**form, "url": "ftp://x"})
    assert (bad.status_code, "must look like https://" in bad.text, "irca.docker.*" in bad.text) == (422, True, True)
    assert "must have 1 to 100 characters" in browser.post("/webhooks/new", data={**form, "name": ""}).text
    made = browser.post("/webhooks/new", data=form)
    assert "whsec_" in made.text
    path = made.text.split('class="button primary" href="')[1].split('"')[0]
    shown = browser.get(path).text
    assert "irca.docker.*" in shown
    assert "whsec_" not in shown
    edit = browser.get(path + "/edit").text
    changed = browser.post(path + "/edit", data={**form, "name": "night", "version": "1"}, follow_redirects=False)
    assert changed.status_code == 303
    assert "newer" in edit or browser.post(path + "/edit", data={**form, "version": "1"}).status_code == 412
    tested = browser.post(path + "/test", data={"form_token": form["form_token"]})
    assert "irca.webhook.test" in tested.text
    assert "The new secret" in browser.post(path + "/rotate", data={"form_token": form["form_token"]}).text
    assert browser.post(path + "/replay", data={"form_token": form["form_token"]}).status_code == 200
    assert "Nobody is told yet" in browser.post(path + "/delete", data={"form_token": form["form_token"]}).text


def test_a_form_without_its_token_or_from_another_site_changes_nothing(browser):
    form = {"name": "x", "url": "https://receiver.test/", "template": "standard", "min_severity": "9"}
    assert browser.post("/webhooks/new", data=form).status_code == 403
    token = token_in(browser.get("/webhooks/new").text)
    crossed = browser.post("/webhooks/new", data={**form, "form_token": token}, headers={"sec-fetch-site": "cross-site"})
    assert crossed.status_code == 403
    assert "Nobody is told yet" in browser.get("/webhooks").text


def test_a_viewer_sees_no_controls_and_is_refused_all_the_same(client):
    hook = created(client)
    viewer = key_of(client, "viewer")["authorization"].removeprefix("Bearer ")
    client.post("/sign-in", data={"api_key": viewer}, headers={"authorization": ""}, follow_redirects=False)
    client.headers.pop("authorization")
    page = client.get(f"/webhooks/{hook['id']}").text
    assert "Send a test" not in page
    assert "Delete" not in page
    assert client.get("/webhooks/new").status_code == 403
    assert client.post(f"/webhooks/{hook['id']}/delete", data={"form_token": "x"}).status_code == 403
