from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from console_client import BEARER, console, form_token, provision, sign_in, text_of
from starlette.testclient import TestClient

from app.audit.records import Actor
from app.audit.service import AuditFilter
from app.auth.identity import Identity, Role
from app.errors import ConflictError, InvalidRequestError, NotFoundError
from app.fleet.saved_views import MOST_VIEWS, SavedViews

ALICE = Actor("session", "k1", "alice")
EVERYWHERE = Identity("k1", "alice", Role.OPERATOR)
TEAM = Identity("k2", "team", Role.VIEWER, ("team-*",))


@pytest.fixture
async def views(parts) -> SavedViews:
    return await SavedViews.opened(parts.database, parts.fleet.audit, parts.clock)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with console(tmp_path / "data") as made:
        yield made


async def test_a_view_is_kept_over_restarts_and_its_acts_are_audited(parts, views):
    made = await views.save("agents", " Unwell ", {"status": "offline", "search": "", "label": "tier=1"}, ALICE)
    assert (made.name, made.query, made.created_by) == ("Unwell", {"status": "offline", "label": "tier=1"}, "alice")
    fresh = await SavedViews.opened(parts.database, parts.fleet.audit, parts.clock)
    assert fresh.of_page("agents", EVERYWHERE) == [made]
    await fresh.delete(made.id, ALICE, EVERYWHERE)
    assert fresh.of_page(None, EVERYWHERE) == []
    actions = [e.action for e in (await parts.fleet.audit.list_entries(AuditFilter(target_kind="saved-view"))).items]
    assert sorted(actions) == ["saved-view.create", "saved-view.delete"]


async def test_a_name_is_used_once_a_page(views):
    await views.save("agents", "mine", {"status": "offline"}, ALICE)
    with pytest.raises(ConflictError, match="choose another name"):
        await views.save("agents", "mine", {"status": "healthy"}, ALICE)
    assert len(views.of_page("agents", EVERYWHERE)) == 1


@pytest.mark.parametrize(
    ("page", "name", "query", "field"),
    [
        ("nowhere", "a", {"status": "offline"}, "page"),
        ("agents", "", {"status": "offline"}, "name"),
        ("agents", "a\nb", {"status": "offline"}, "name"),
        ("agents", "a" * 101, {"status": "offline"}, "name"),
        ("agents", "a", {"next": "https://elsewhere.test/"}, "query.next"),
        ("agents", "a", {"search": "x" * 501}, "query.search"),
        ("agents", "a", {"search": " "}, "query"),
    ],
)
async def test_what_the_page_does_not_know_is_not_saved(views, page, name, query, field):
    with pytest.raises(InvalidRequestError) as refused:
        await views.save(page, name, query, ALICE)
    assert field in [e.field for e in refused.value.errors]
    assert views.of_page(None, EVERYWHERE) == []


async def test_views_of_environments_that_are_not_seen_are_not_there(views):
    other = await views.save("agents", "prod", {"environment_name": "prod"}, ALICE)
    mine = await views.save("agents", "team", {"environment_name": "team-a"}, ALICE)
    assert views.of_page("agents", TEAM) == [mine]
    with pytest.raises(NotFoundError):
        await views.delete(other.id, ALICE, TEAM)
    with pytest.raises(NotFoundError):
        await views.delete("nothing", ALICE, EVERYWHERE)


async def test_there_is_an_end_to_the_number_of_views(views):
    for number in range(MOST_VIEWS):
        await views.save("agents", f"view {number}", {"status": "offline"}, ALICE)
    with pytest.raises(ConflictError, match="delete one"):
        await views.save("agents", "one more", {"status": "offline"}, ALICE)


def test_an_operator_saves_and_deletes_a_view_on_the_page_and_a_viewer_only_follows_it(client):
    sign_in(client, "operator")
    provision(client, "prod", labels={"tier": "1"})
    page = client.get("/agents?label=tier%3D1&sort=environment").text
    assert '<input type="hidden" name="label" value="tier=1" form="save-view">' in page
    form = {"form_token": form_token(page), "name": "First tier", "label": "tier=1", "sort": "environment", "next": "//x"}
    saved = client.post("/agents/views", data=form)
    assert (saved.status_code, saved.headers["location"]) == (303, "/agents?label=tier%3D1&sort=environment")
    taken = client.post("/agents/views", data=form)
    assert taken.status_code == 409
    assert "There is a view 'First tier' of this page already" in text_of(taken.text)
    assert "Name must have 1 to 100 printable" in text_of(client.post("/agents/views", data={**form, "name": ""}).text)
    shown = client.get(saved.headers["location"]).text
    assert '<a href="/agents?label=tier%3D1&amp;sort=environment" aria-current="true"' in shown
    delete = re.search(r'action="(/agents/views/[^"]+/delete)"', shown)
    assert delete
    assert "/delete" not in client.get("/agents").text
    sign_in(client, "viewer")
    seen = client.get(saved.headers["location"]).text
    assert "First tier" in seen
    assert "Save this view" not in seen
    for path in ("/agents/views", delete[1]):
        assert client.post(path, data={"form_token": "x"}).status_code == 403
    sign_in(client, "operator")
    token = form_token(client.get("/agents").text)
    assert client.post(delete[1], data={"form_token": token}).headers["location"] == "/agents"
    assert "First tier" not in client.get("/agents").text


def test_the_api_saves_lists_and_deletes(client):
    body = {"page": "agents", "name": "Unwell", "query": {"status": "offline"}}
    made = client.post("/api/v1/saved-views", json=body, headers=BEARER)
    assert made.status_code == 201
    assert client.post("/api/v1/saved-views", json=body, headers=BEARER).status_code == 409
    assert client.post("/api/v1/saved-views", json={**body, "query": {"x": "y"}}, headers=BEARER).status_code == 422
    assert client.get("/api/v1/saved-views?page=agents", headers=BEARER).json()["items"] == [made.json()]
    limited = client.post("/api/v1/api-keys", json={"name": "t", "role": "operator", "environments": ["team-*"]}, headers=BEARER)
    bearer = {"Authorization": f"Bearer {limited.json()['key']}"}
    path = f"/api/v1/saved-views/{made.json()['id']}"
    assert len(client.get("/api/v1/saved-views", headers=bearer).json()["items"]) == 1
    assert client.post("/api/v1/saved-views", json={**body, "name": "x"}, headers=bearer).status_code == 403
    assert client.delete(path, headers=bearer).status_code == 403
    assert client.delete(path, headers=BEARER).status_code == 204
    assert client.delete(path, headers=BEARER).status_code == 404
