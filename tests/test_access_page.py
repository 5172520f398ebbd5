from __future__ import annotations

import re

import pytest
from console_client import ADMIN_KEY, BEARER, console, form_token, provision, sign_in, statements, text_of
from opamp_client import OpampAgent, credential_in

SHOWN_KEY = re.compile(r"<code>(irca_[\w-]{20,})</code>")
SHOWN_TOKEN = re.compile(r"<code>(agent_[\w.-]{20,})</code>")


@pytest.fixture
def client(tmp_path):
    with console(tmp_path / "data") as made:
        yield made


def post(client, path: str, page: str = "/access", **fields: object):
    return client.post(path, data={"form_token": form_token(client.get(page).text), **fields})


def key_named(client, name: str) -> dict:
    return next(k for k in client.get("/api/v1/api-keys", headers=BEARER).json()["items"] if k["name"] == name)


def works(client, key: str) -> bool:
    return client.get("/api/v1/agents", headers={"authorization": f"Bearer {key}"}).status_code == 200


# API keys and sessions.


def test_a_key_is_made_shown_once_and_listed_without_its_text(client):
    sign_in(client)
    made = post(
        client, "/access/keys/new", "/access/keys/new", name="deploy", role="operator", environments="prod-*\nstaging", expires="90d"
    )
    assert made.status_code == 201
    [text] = SHOWN_KEY.findall(made.text)
    assert works(client, text)
    kept = key_named(client, "deploy")
    assert (kept["role"], kept["environments"], bool(kept["expires_at"])) == ("operator", ["prod-*", "staging"], True)
    for path in ("/access", f"/access/keys/{kept['id']}"):
        page = client.get(path).text
        assert text not in page
        assert f"{kept['prefix']}…" in page
        assert "prod-*" in page
    assert "What is on record about it" in text_of(page)


def test_what_is_wrong_with_a_new_key_is_said_at_its_fields_and_what_was_typed_stays(client):
    sign_in(client)
    refused = post(client, "/access/keys/new", "/access/keys/new", name=" ", role="king", environments="", expires="never")
    assert refused.status_code == 422
    for field in ("name", "role", "environments", "expires"):
        assert f'id="{field}-error"' in refused.text
    again = post(client, "/access/keys/new", "/access/keys/new", name="x" * 201, role="admin", environments="team-*", expires="")
    assert 'value="xxx' in again.text
    assert "team-*</textarea>" in again.text
    assert '<option value="admin" selected>' in again.text
    too_long = post(client, "/access/keys/new", "/access/keys/new", name="n", role="viewer", environments="e" * 64, expires="")
    assert 'id="environments-error"' in too_long.text


def test_a_rotated_key_and_its_successor_both_work_for_the_overlap_and_are_alike(client):
    sign_in(client)
    body = {"name": "ci", "role": "viewer", "environments": ["team-*"], "expires_in": 86_400}
    first = client.post("/api/v1/api-keys", json=body, headers=BEARER).json()
    page = f"/access/keys/{first['id']}"
    answer = post(client, f"{page}/rotate", page, overlap="1d")
    assert answer.status_code == 201
    [text] = SHOWN_KEY.findall(answer.text)
    assert works(client, text)
    assert works(client, first["key"])
    newer = next(k for k in client.get("/api/v1/api-keys", headers=BEARER).json()["items"] if k["id"] != first["id"] and k["name"] == "ci")
    assert {k: newer[k] for k in ("name", "role", "environments")} == {k: first[k] for k in ("name", "role", "environments")}
    at_once = post(client, f"{page}/rotate", page, overlap="0")
    assert at_once.status_code == 201
    assert not works(client, first["key"])
    assert "cannot be brought back" in text_of(client.get(page).text)
    assert post(client, f"{page}/rotate", "/access/keys/new").status_code == 409
    assert client.get("/api/v1/audit?action=api-key.rotate", headers=BEARER).json()["items"][0]["after"]["overlap"] == 0
    assert text not in client.get("/api/v1/audit/export", headers=BEARER).text


def test_a_revoked_key_ends_with_its_sessions_and_is_shown_as_revoked(client):
    sign_in(client, "viewer")
    viewer_cookies = dict(client.cookies)
    sign_in(client)
    viewer = key_named(client, "viewer")
    page = client.get(f"/access/keys/{viewer['id']}").text
    assert "1 browser session ends" in text_of(page)
    assert post(client, f"/access/keys/{viewer['id']}/revoke").status_code == 303
    listed = text_of(client.get("/access").text)
    assert "revoked viewer" in listed
    client.cookies.clear()
    client.cookies.update(viewer_cookies)
    assert client.get("/agents").status_code == 303


def test_the_last_admin_key_stays_and_the_page_says_why(client):
    sign_in(client)
    own = key_named(client, "admin")
    preset = key_named(client, "preset")
    assert "You are signed in with it" in text_of(client.get(f"/access/keys/{own['id']}").text)
    assert post(client, f"/access/keys/{preset['id']}/revoke").status_code == 303
    refused = post(client, f"/access/keys/{own['id']}/revoke")
    assert refused.status_code == 422
    assert "this is the last admin key" in text_of(refused.text)
    assert client.get("/access").status_code == 200


def test_sessions_are_listed_and_ended(client):
    sign_in(client, "operator")
    other = dict(client.cookies)
    sign_in(client)
    page = client.get("/access").text
    shown = text_of(page)
    assert "operator operator" in shown
    assert "this browser" in shown
    path = re.findall(r'action="(/access/sessions/[^"]+/end)"', page)
    assert len(path) == 2
    listed = client.get("/api/v1/sessions", headers=BEARER).json()["items"]
    assert {(s["name"], s["kind"]) for s in listed} == {("admin", "key"), ("operator", "key")}
    ended = next(s["id"] for s in listed if s["name"] == "operator")
    assert post(client, f"/access/sessions/{ended}/end").status_code == 303
    assert "operator operator" not in text_of(client.get("/access").text)
    own = next(s["id"] for s in listed if s["name"] == "admin")
    assert client.delete(f"/api/v1/sessions/{own}", headers=BEARER).status_code == 204
    assert client.get("/access").status_code == 303
    client.cookies.clear()
    client.cookies.update(other)
    assert client.get("/agents").status_code == 303
    assert client.delete("/api/v1/sessions/nothing", headers=BEARER).status_code == 404


def test_the_page_costs_the_same_however_many_keys_and_sessions_there_are(client):
    counts = []
    for _ in range(3):
        sign_in(client)
        with statements(client) as made:
            assert client.get("/access").status_code == 200
        counts.append(len([s for s in made if "browser_sessions" in s or "api_keys" in s]))
    assert len(set(counts)) == 1
    assert counts[0] <= 3


def test_keys_over_the_api_are_read_rotated_and_refused_clearly(client):
    made = client.post("/api/v1/api-keys", json={"name": "ci"}, headers=BEARER).json()
    path = f"/api/v1/api-keys/{made['id']}"
    assert client.get(path, headers=BEARER).json()["prefix"] == made["key"][:10]
    newer = client.post(f"{path}/rotate", headers=BEARER)
    assert newer.status_code == 201
    assert newer.json()["expires_at"] is None
    assert works(client, newer.json()["key"])
    assert client.delete(path, headers=BEARER).status_code == 204
    assert client.post(f"{path}/rotate", json={"overlap": 1}, headers=BEARER).status_code == 409
    assert client.get("/api/v1/api-keys/nothing", headers=BEARER).status_code == 404
    assert client.post("/api/v1/api-keys/nothing/rotate", headers=BEARER).status_code == 404


@pytest.mark.parametrize(("role", "environments"), [("viewer", ("*",)), ("operator", ("*",)), ("admin", ("team-*",))])
def test_keys_and_sessions_are_for_admins_of_everything(client, role, environments):
    kept = key_named(client, "preset")
    sign_in(client, role, environments)
    token = form_token(client.get("/maintenance").text) if role != "viewer" else "x"
    assert client.get("/access").status_code == 403
    assert client.get("/access/keys/new").status_code == 403
    assert client.get(f"/access/keys/{kept['id']}").status_code == 403
    for path in ("/access/keys/new", f"/access/keys/{kept['id']}/revoke", f"/access/keys/{kept['id']}/rotate", "/access/sessions/x/end"):
        assert client.post(path, data={"form_token": token}).status_code == 403
    assert works(client, ADMIN_KEY)


def test_a_form_without_its_token_changes_nothing(client):
    sign_in(client)
    kept = key_named(client, "preset")
    assert client.post(f"/access/keys/{kept['id']}/revoke", data={}).status_code == 403
    assert client.post(f"/access/keys/{kept['id']}/revoke", data={}, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert works(client, ADMIN_KEY)


# Enrolment tokens.


def joined(client, made: dict, **agent: str) -> tuple[OpampAgent, dict[str, str]]:
    """An agent that enrolled with a provisioned token, and the headers of its heartbeats."""
    one, headers = OpampAgent(**agent), {"content-type": "application/x-protobuf"}
    answer = client.post("/v1/opamp", content=one.beat(full=True), headers=headers | {"authorization": f"Bearer {made['agent_token']}"})
    if answer.status_code == 200:
        headers["authorization"] = f"Bearer {credential_in(one.read(answer.content))}"
    return one, headers


def token_path(client, made: dict) -> str:
    [token] = client.get(f"/api/v1/agents/{made['agent_id']}/tokens", headers=BEARER).json()["items"]
    return f"/access/tokens/{token['id']}"


def test_tokens_of_all_agents_are_found_by_filters_and_from_their_agents(client):
    prod, team = provision(client, "prod"), provision(client, "team-a", "docker")
    sign_in(client, "operator")
    page = client.get("/access/tokens").text
    assert "0 of 1" in page
    shown = re.findall(r"<code>(agent_[^<]+)…", page)
    assert sorted(re.match("agent_(prod|team-a)_", beginning)[1] for beginning in shown) == ["prod", "team-a"]
    for query in (
        "environment_name=prod",
        "agent_type=server",
        "search=agent_prod",
        f"agent_id={prod['agent_id']}",
        "state=active&search=prod",
    ):
        found = client.get(f"/access/tokens?{query}").text
        assert "agent_prod_" in found, query
        assert "agent_team-a_" not in found, query
    assert "No token meets these filters" in client.get("/access/tokens?state=revoked").text
    assert "agent_team-a_" in client.get("/access/tokens?state=odd").text
    link = f"/access/tokens?agent_id={team['agent_id']}"
    assert link in client.get(f"/agents/{team['agent_id']}").text
    assert "Of team-a" in text_of(client.get(link).text)
    assert client.get("/access/tokens?agent_id=nothing").status_code == 404
    assert client.get("/access/tokens?cursor=odd").status_code == 422


def test_without_tokens_the_page_says_how_to_get_one(client):
    sign_in(client, "operator")
    shown = text_of(client.get("/access/tokens").text)
    assert "There is no token yet" in shown
    assert "Nobody was refused" in shown


def test_the_list_of_tokens_goes_on_older_and_costs_the_same_however_long(client, monkeypatch):
    monkeypatch.setattr("app.web.token_routes.TOKENS_SHOWN", 2)
    counts = []
    sign_in(client, "operator")
    for number in range(3):
        made = provision(client, f"env-{number}")
        joined(client, made, fingerprint=f"machine-{number}")
        with statements(client) as done:
            page = client.get("/access/tokens").text
        counts.append(len([s for s in done if "enrolment_tokens" in s or "FROM events" in s]))
    assert counts == [2, 2, 2]
    older = client.get(re.search(r'href="(\?cursor=[^"]+)" rel="next"', page)[1].replace("?", "/access/tokens?", 1)).text
    assert "agent_env-0_" in older
    assert "agent_env-2_" not in older


def test_whoever_was_refused_is_told_with_host_reason_and_agent(client):
    made = provision(client, "prod")
    joined(client, made)
    joined(client, made, fingerprint="machine-2", host="web-<b>2</b>")
    joined(client, {"agent_token": "agent_prod_nonsense"}, host="web-3")
    sign_in(client, "operator")
    page = client.get("/access/tokens").text
    assert "web-<b>" not in page
    shown = text_of(page)
    token = client.get(f"/api/v1/agents/{made['agent_id']}/tokens", headers=BEARER).json()["items"][0]
    assert f"web-<b>2</b> testclient token used up prod {token['prefix']}…" in shown
    assert "web-3 testclient unknown token or credential unknown agent_prod…" in shown
    assert "web-3" not in text_of(client.get(f"/access/tokens?agent_id={made['agent_id']}").text)


def test_a_token_is_rotated_with_an_overlap_and_its_successor_shown_once(client):
    made = provision(client, "prod")
    sign_in(client, "operator")
    path = token_path(client, made)
    answer = post(client, f"{path}/rotate", path, overlap="1h")
    assert answer.status_code == 201
    [text] = SHOWN_TOKEN.findall(answer.text)
    assert joined(client, {"agent_token": text})[1].get("authorization")
    assert text not in client.get("/access/tokens").text
    assert joined(client, made, fingerprint="machine-2")[1].get("authorization")
    post(client, f"{path}/revoke", path)
    refused = post(client, f"{path}/rotate", "/maintenance")
    assert refused.status_code == 409
    assert "Nothing was changed" in text_of(refused.text)


def test_revoking_with_instances_refuses_their_next_heartbeat(client):
    made = provision(client, "prod")
    agent, headers = joined(client, made)
    sign_in(client, "operator")
    path = token_path(client, made)
    page = client.get(path).text
    assert "Also the credentials of 1 instance" in text_of(page)
    assert agent.host in page
    assert post(client, f"{path}/revoke", path).status_code == 303
    assert client.post("/v1/opamp", content=agent.beat(), headers=headers).status_code == 200
    after = client.get(path).text
    assert "still has a credential" in text_of(after)
    assert post(client, f"{path}/revoke", path, revoke_instances="yes").status_code == 303
    assert client.post("/v1/opamp", content=agent.beat(), headers=headers).status_code == 401
    assert '<form method="post" action="/access/tokens' not in client.get(path).text


def test_a_clusters_token_says_that_it_goes_on_for_its_pods(client):
    made = provision(client, "shop", "kubernetes", namespace="monitoring")
    one = OpampAgent(extra={"k8s.cluster.uid": "cluster-1", "k8s.pod.name": "agent-1"})
    headers = {"content-type": "application/x-protobuf", "authorization": f"Bearer {made['agent_token']}"}
    assert client.post("/v1/opamp", content=one.beat(full=True), headers=headers).status_code == 200
    sign_in(client, "operator")
    shown = text_of(client.get(token_path(client, made)).text)
    assert "New pods of a cluster that has used it still come by it" in shown
    assert "1 of 1 cluster" in shown
    assert "cluster-1" in shown


def test_viewers_and_other_environments_operators_reach_no_token(client):
    made = provision(client, "prod")
    path = token_path(client, made)
    sign_in(client, "viewer")
    assert client.get("/access/tokens").status_code == 403
    assert client.get(path).status_code == 403
    assert "/access/tokens" not in client.get(f"/agents/{made['agent_id']}").text
    assert client.post(f"{path}/revoke", data={"form_token": "x"}).status_code == 403
    sign_in(client, "operator", ("team-*",))
    provision(client, "team-a")
    page = client.get("/access/tokens").text
    assert "agent_team-a_" in page
    assert "agent_prod_" not in page
    assert client.get(path).status_code == 404
    for act in ("rotate", "revoke"):
        assert post(client, f"{path}/{act}", "/maintenance").status_code == 404
