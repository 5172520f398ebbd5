from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from opamp_client import CAPABILITIES, OpampAgent

from app.main import create_app
from app.settings import Settings
from app.web.config_forms import fields_of, read_config, shown
from app.web.forms import Form

KEY = "a-preset-admin-key-for-tests"


@pytest.fixture
def client(tmp_path):
    settings = Settings(data_dir=tmp_path / "data", admin_api_key=KEY, public_url="https://irca.test")
    with TestClient(create_app(settings), base_url="https://irca.test", headers={"authorization": f"Bearer {KEY}"}) as made:
        yield made


@pytest.fixture
def enrolled(client) -> tuple[str, OpampAgent]:
    """The id of a server agent in prod, and its one instance."""
    body = {"agent_type": "server", "environment_name": "prod", "config": {"labels": {"team": "web"}}}
    made = client.post("/api/v1/agent/provision", json=body).json()
    agent = OpampAgent(capabilities=CAPABILITIES | 0x1002)
    headers = {"authorization": f"Bearer {made['agent_token']}", "content-type": "application/x-protobuf"}
    agent.read(client.post("/v1/opamp", content=agent.beat(full=True, healthy=True), headers=headers).content)
    return made["agent_id"], agent


def signed_in(client, role: str = "admin", environments: list[str] | None = None) -> TestClient:
    body = {"name": role, "role": role, "environments": environments or ["*"]}
    key = client.post("/api/v1/api-keys", json=body).json()["key"]
    response = client.post("/sign-in", data={"api_key": key}, headers={"authorization": ""}, follow_redirects=False)
    assert response.status_code == 303
    client.headers.pop("authorization")
    return client


def token_in(page: str) -> str:
    return page.split('name="form_token" value="')[1].split('"', maxsplit=1)[0]


@pytest.mark.sockets
def test_a_group_is_made_configured_reverted_and_deleted_on_the_pages(client, enrolled):
    browser = signed_in(client)
    assert "No groups yet" in browser.get("/groups").text
    page = browser.get("/groups/new", params={"selector": "team=web"}).text
    assert "<b>1</b> instance matches now" in page
    form = {"form_token": token_in(page), "name": "web", "description": "The front", "selector": "team in web", "priority": "x"}
    refused = browser.post("/groups/new", data=form)
    assert refused.status_code == 422
    assert "must be a whole number" in refused.text
    assert "is not a condition" in refused.text
    tried = browser.post("/groups/new", data={**form, "selector": "team=db", "act": "preview"})
    assert "<b>0</b> instances match now." in tried.text
    made = browser.post("/groups/new", data={**form, "selector": "team=web", "priority": "5"}, follow_redirects=False)
    path = made.headers["location"]
    assert "Nothing yet: its members keep what they have" in browser.get(path).text
    editor = browser.get(f"{path}/configuration").text
    assert 'name="option.collect_interval"' in editor
    assert "option.state_dir" not in editor
    change = {"form_token": form["form_token"], "revision": "0", "comment": "quieter", "option.collect_interval": "30"}
    bad = browser.post(f"{path}/configuration", data={**change, "option.collect_interval": "0", "act": "preview"})
    assert bad.status_code == 422
    assert 'value="0"' in bad.text
    diff = browser.post(f"{path}/configuration", data={**change, "act": "preview"}).text
    assert "<ins>30</ins>" in diff
    assert "It reaches <b>1</b> instance." in diff
    sent = {**change, "config": '{"collect_interval": 30}'}
    assert 'value="30"' in browser.post(f"{path}/configuration", data={**sent, "act": "back"}).text
    assert browser.post(f"{path}/configuration", data={**sent, "config": "[]", "act": "apply"}).status_code == 422
    applied = browser.post(f"{path}/configuration", data={**sent, "act": "apply"})
    assert "quieter" in applied.text
    assert "pending" in applied.text
    assert browser.post(f"{path}/configuration", data={**sent, "act": "apply"}).status_code == 412
    assert "Nothing changes" in browser.post(f"{path}/configuration", data={**change, "revision": "1", "act": "preview"}).text
    browser.post(f"{path}/configuration", data={**sent, "config": "{}", "revision": "1", "act": "apply"})
    reverted = browser.post(f"{path}/revert", data={"form_token": form["form_token"], "revision": "1", "current": "2"})
    assert "Back to revision 1." in reverted.text
    assert browser.post(f"{path}/revert", data={"form_token": form["form_token"]}).status_code == 422
    assert "group web" in browser.get(f"/instances/{enrolled[1].uid}/configuration").text
    edit = browser.get(f"{path}/edit").text
    assert 'value="The front"' in edit
    again = {**form, "selector": "team=web", "priority": "6", "name": "front", "version": "1"}
    assert "<h1>front</h1>" in browser.post(f"{path}/edit", data=again).text
    assert browser.post(f"{path}/edit", data=again).status_code == 412
    assert "instance matches now" in browser.post(f"{path}/edit", data={**again, "act": "preview"}).text
    assert "front" in browser.get("/groups", params={"search": "TEAM=WEB"}).text
    assert "No group matches" in browser.get("/groups", params={"search": "nope"}).text
    assert "No groups yet" in browser.post(f"{path}/delete", data={"form_token": form["form_token"], "version": "2"}).text


@pytest.mark.sockets
def test_a_selector_is_tried_while_it_is_typed(client, enrolled):
    browser = signed_in(client, "viewer")
    found = browser.get("/groups/preview", params={"selector": "environment=prod"}).text
    assert f'href="/instances/{enrolled[1].uid}"' in found
    assert "<html" not in found
    assert "is not a condition" in browser.get("/groups/preview", params={"selector": "a b"}).text


@pytest.mark.sockets
def test_an_agent_is_labelled_and_configured_on_its_page(client, enrolled):
    agent_id, instance = enrolled
    browser = signed_in(client)
    path = f"/agents/{agent_id}/configuration"
    page = browser.get(path).text
    assert "team=web" in page
    assert path in browser.get(f"/agents/{agent_id}").text
    form = {"form_token": token_in(page)}
    labelled = browser.post(f"/agents/{agent_id}/labels", data={**form, "labels": "tier=front\n\nzone = a"}).text
    assert "tier=front" in labelled
    assert "zone=a" in labelled
    assert "team=web\n" not in labelled
    bad = browser.post(f"/agents/{agent_id}/labels", data={**form, "labels": "environment=x"})
    assert bad.status_code == 422
    assert "cannot be set" in bad.text
    assert 'name="option.log_level"' in browser.get(f"{path}/edit").text
    sent = {**form, "revision": "0", "config": '{"log_level": "debug"}', "act": "apply"}
    assert "log_level" in browser.post(f"{path}/edit", data=sent).text
    why = browser.get(f"/instances/{instance.uid}/configuration").text
    assert "should be debug" in why
    assert f"/instances/{instance.uid}/configuration" in browser.get(f"/instances/{instance.uid}").text
    assert "spool_max_bytes" in browser.get(f"/instances/{instance.uid}/configuration?every=1").text
    assert "Back to revision 0." in browser.post(f"/agents/{agent_id}/revert", data={**form, "revision": "0"}).text


@pytest.mark.sockets
def test_a_viewer_sees_no_controls_and_is_refused_all_the_same(client, enrolled):
    group = client.post("/api/v1/groups", json={"name": "web"}).json()
    browser = signed_in(client, "viewer")
    path, own = f"/groups/{group['id']}", f"/agents/{enrolled[0]}"
    for page in ("/groups", path, f"{own}/configuration"):
        text = browser.get(page).text
        assert not [word for word in ("New group", "Configure<", "Delete this", "Save labels") if word in text]
    forms = [f"{path}/edit", f"{path}/configuration", f"{path}/delete", f"{path}/revert", "/groups/new"]
    forms += [f"{own}/configuration/edit", f"{own}/revert", f"{own}/labels"]
    assert {browser.post(form, data={"form_token": "x"}).status_code for form in forms} == {403}
    assert {browser.get(form).status_code for form in (f"{path}/edit", f"{path}/configuration", "/groups/new")} == {403}


@pytest.mark.sockets
def test_an_operator_of_some_environments_configures_agents_there_and_sees_no_groups(client, enrolled):
    group = client.post("/api/v1/groups", json={"name": "web"}).json()
    browser = signed_in(client, "operator", ["prod"])
    page = browser.get(f"/agents/{enrolled[0]}/configuration")
    assert "Save labels" in page.text
    assert browser.get("/groups").status_code == 403
    assert browser.post(f"/groups/{group['id']}/delete", data={"form_token": token_in(page.text)}).status_code == 403


def test_each_option_has_the_field_of_its_type_and_is_read_back_from_it():
    schema = {
        "on": {"type": "boolean", "default": False},
        "level": {"enum": ["a", "b"], "default": "a"},
        "many": {"type": "integer", "minimum": 1, "maximum": 9, "default": 3.0},
        "names": {"type": "array", "items": {"type": "string"}, "default": ("x", "y")},
        "numbers": {"type": "array", "items": {"type": "number"}},
        "pairs": {"type": "object"},
        "text": {"type": "string"},
        "bare": {"type": "string"},
    }
    config = {
        "on": True,
        "level": "b",
        "many": 4,
        "names": ["1", "2"],
        "numbers": [1, 2.5],
        "pairs": {"a": "b=c"},
        "text": "t",
        "bare": "",
    }
    fields = fields_of(schema, config)
    assert [f.kind for f in fields] == ["boolean", "choice", "number", "list", "list", "mapping", "text", "text"]
    assert (fields[2].minimum, fields[2].step, fields[2].default, fields[3].default) == ("1", "1", "3", "x, y")
    form = Form({f.name: [f.text] for f in fields})
    assert read_config(form, schema, config) == config
    assert read_config(Form({}), schema, {"on": True}) == {}
    odd = {"option.many": ["much"], "option.on": ["perhaps"], "option.numbers": ["true"]}
    assert read_config(Form(odd), schema, {}) == {"many": "much", "on": "perhaps", "numbers": ["true"]}
    assert shown(None) == ""
