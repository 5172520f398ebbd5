from __future__ import annotations

import asyncio
import html
import logging
import re
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient

from app.audit.records import Actor
from app.audit.service import AuditFilter
from app.auth.service import LINK_LIFETIME, Role
from app.errors import InvalidRequestError, TokenExpiredError, TokenRevokedError, TokenUnknownError, TokenUsedUpError, TooManyRequestsError
from app.logs import LINK_PATH, loggable
from app.main import create_app
from app.settings import Settings
from tests.platform_fixtures import Clock

KEY = "a-preset-admin-key-for-tests"
ME = Actor("api-key", "me", "me", "10.0.0.1")


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def application(tmp_path_factory, clock):
    settings = Settings(data_dir=tmp_path_factory.mktemp("platform"), admin_api_key=KEY, public_url="http://testserver")
    with TestClient(create_app(settings, clock), follow_redirects=False, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def client(application, clock) -> TestClient:
    clock.advance(3600)
    application.cookies.clear()
    return application


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def key_of(client, role: str = "viewer", environments: tuple[str, ...] = ("*",)) -> tuple[str, str]:
    made = client.post("/api/v1/api-keys", json={"name": role, "role": role, "environments": environments}, headers=bearer(KEY)).json()
    return made["id"], made["key"]


def link_of(client, key: str = KEY, **body) -> str:
    made = client.post("/api/v1/sign-in-links", json=body, headers=bearer(key))
    assert made.status_code == 201, made.text
    return made.json()["url"].removeprefix("http://testserver")


def text(response) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", response.text)).split())


async def acts(parts) -> list:
    return (await parts.auth._audit.list_entries(AuditFilter())).items


async def test_a_link_signs_in_once_as_its_key_and_is_on_record(parts):
    row, _ = await parts.auth.create_key("laptop", Role.OPERATOR, environments=["prod-*"])
    token, expires = await parts.auth.create_link(row.id, ME)
    assert expires.timestamp() == parts.clock.now + LINK_LIFETIME.total_seconds()
    for _ in range(2):
        assert (await parts.auth.look_at_link(token))[0].name == "laptop"
    parts.clock.advance(1)
    session, _ = await parts.auth.open_session_by_link(token, "10.0.0.2", "a browser")
    identity = await parts.auth.session(session)
    assert (identity.name, identity.role, identity.environments) == ("laptop", Role.OPERATOR, ("prod-*",))
    with pytest.raises(TokenUsedUpError):
        await parts.auth.open_session_by_link(token)
    with pytest.raises(TokenUsedUpError):
        await parts.auth.look_at_link(token)
    [shown] = await parts.auth.list_sessions()
    assert (shown.kind, shown.key_id, shown.client_address, shown.user_agent) == ("link", row.id, "10.0.0.2", "a browser")
    entries = await acts(parts)
    assert {(e.action, e.actor_name, e.target_name, e.outcome) for e in entries} == {
        ("session.open", "somebody", "", "refused"),
        ("session.open", "laptop", "laptop", "done"),
        ("link.create", "me", "laptop", "done"),
        ("api-key.create", "the platform", "laptop", "done"),
    }
    assert token not in repr(entries)


async def test_of_many_who_open_a_link_at_once_one_is_signed_in(parts):
    row, _ = await parts.auth.create_key("laptop", Role.VIEWER)
    token, _ = await parts.auth.create_link(row.id)
    results = await asyncio.gather(*(parts.auth.open_session_by_link(token, f"10.0.0.{n}") for n in range(12)), return_exceptions=True)
    assert sum(isinstance(r, TokenUsedUpError) for r in results) == 11
    assert len(await parts.auth.list_sessions()) == 1


async def test_unknown_expired_and_disowned_links_are_told_apart(parts):
    await parts.auth.ensure_first_key()
    row, _ = await parts.auth.create_key("laptop", Role.VIEWER)
    with pytest.raises(TokenUnknownError):
        await parts.auth.open_session_by_link("nonsense")
    late, _ = await parts.auth.create_link(row.id)
    parts.clock.advance(LINK_LIFETIME.total_seconds())
    with pytest.raises(TokenExpiredError):
        await parts.auth.open_session_by_link(late)
    token, _ = await parts.auth.create_link(row.id, lifetime=timedelta(hours=2))
    used, _ = await parts.auth.create_link(row.id)
    session, _ = await parts.auth.open_session_by_link(used)
    await parts.auth.revoke_key(row.id)
    with pytest.raises(TokenRevokedError):
        await parts.auth.open_session_by_link(token)
    assert await parts.auth.session(session) is None
    for key_id in (row.id, "no-such-key"):
        with pytest.raises(InvalidRequestError, match="no link can be made"):
            await parts.auth.create_link(key_id)


async def test_links_of_long_ago_are_forgotten(parts):
    row, _ = await parts.auth.create_key("laptop", Role.VIEWER)
    token, _ = await parts.auth.create_link(row.id)
    parts.clock.advance(2 * 86_400)
    await parts.auth.create_link(row.id)
    with pytest.raises(TokenUnknownError):
        await parts.auth.look_at_link(token)


async def test_who_guesses_links_has_to_wait_and_who_opens_an_old_one_twice_does_not(parts):
    row, _ = await parts.auth.create_key("laptop", Role.VIEWER)
    token, _ = await parts.auth.create_link(row.id)
    parts.clock.advance(LINK_LIFETIME.total_seconds())
    for _ in range(20):
        with pytest.raises(TokenExpiredError):
            await parts.auth.look_at_link(token, "10.0.0.2")
    for n in range(10):
        with pytest.raises(TokenUnknownError):
            await parts.auth.look_at_link(f"guess-{n}", "10.0.0.1")
    for attempt in (parts.auth.look_at_link, parts.auth.open_session_by_link):
        with pytest.raises(TooManyRequestsError):
            await attempt("guess", "10.0.0.1")


async def test_a_session_of_a_link_ends_no_later_than_its_key(parts):
    row, _ = await parts.auth.create_key("brief", Role.VIEWER, timedelta(hours=1))
    token, _ = await parts.auth.create_link(row.id)
    session, expires = await parts.auth.open_session_by_link(token)
    assert expires == row.expires_at
    assert (await parts.auth.session(session)).expires_at == row.expires_at


def test_opening_a_link_shows_whom_it_signs_in_and_the_button_does_it(client):
    _, key = key_of(client, "operator", ("team-*",))
    path = link_of(client, key)
    for _ in range(3):
        page = client.get(path)
        assert (page.status_code, page.headers["referrer-policy"]) == (200, "strict-origin")
        assert "as operator (operator, in team-*)" in text(page)
        assert "set-cookie" not in page.headers
    done = client.post(path, headers={"sec-fetch-site": "same-origin"})
    assert (done.status_code, done.headers["location"], done.headers["referrer-policy"]) == (303, "/", "strict-origin")
    assert "operator" in client.get("/").text
    for again in (client.get(path), client.post(path)):
        assert (again.status_code, "has been used" in text(again)) == (401, True)
        assert again.headers["referrer-policy"] == "strict-origin"


def test_a_link_that_another_site_sends_is_not_used_up(client):
    path = link_of(client)
    assert client.post(path, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert client.post(path).status_code == 303


def test_a_link_that_does_not_work_says_why_and_how_to_get_another(client, clock):
    late = link_of(client, expires_in=60)
    clock.advance(61)
    for path, words in ((late, "has expired"), (LINK_PATH + "nonsense", "not known to the platform")):
        for page in (client.get(path), client.post(path)):
            assert (page.status_code, words in text(page)) == (401, True)
            assert "incident-rca sign-in-link" in page.text
    for _ in range(10):
        client.post(LINK_PATH + "nonsense")
    page = client.get(LINK_PATH + "nonsense")
    assert (page.status_code, int(page.headers["retry-after"]) > 0) == (429, True)


def test_any_key_makes_a_link_for_itself_and_an_admin_for_others(client):
    key_id, viewer = key_of(client)
    assert client.post("/api/v1/sign-in-links", headers=bearer(viewer)).json()["api_key_id"] == key_id
    other_id, _ = key_of(client, "operator")
    refused = client.post("/api/v1/sign-in-links", json={"api_key_id": other_id}, headers=bearer(viewer))
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    _, limited = key_of(client, "admin", ("team-*",))
    assert client.post("/api/v1/sign-in-links", json={"api_key_id": other_id}, headers=bearer(limited)).status_code == 403
    assert "operator (operator)" in text(client.get(link_of(client, api_key_id=other_id)))
    unknown = client.post("/api/v1/sign-in-links", json={"api_key_id": "none"}, headers=bearer(KEY))
    assert (unknown.status_code, "not known" in unknown.text) == (422, True)
    assert client.post("/api/v1/sign-in-links", json={"expires_in": 1}, headers=bearer(KEY)).status_code == 422
    assert client.post("/api/v1/sign-in-links").status_code == 401


def test_a_session_does_not_outlive_itself_by_links_that_it_makes(client):
    _, viewer = key_of(client)
    client.post(link_of(client, viewer))
    assert client.post("/api/v1/sign-in-links").status_code == 403
    client.cookies.clear()
    client.post(link_of(client))
    assert client.post("/api/v1/sign-in-links").status_code == 201


def test_no_log_holds_the_token_of_a_link(client, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    path = link_of(client)
    token = path.removeprefix(LINK_PATH)
    client.put(path)  # an answer of the framework's own
    client.get(path + "/more")
    monkeypatch.setattr(client.app.state.platform.auth, "look_at_link", None)
    assert client.get(path).status_code == 500
    ours = [record for record in caplog.records if not record.name.startswith("httpx")]  # the test's own client tells what it asked
    assert len([record for record in ours if "/sign-in/link/…" in record.getMessage()]) == 3
    assert not any(token in record.getMessage() for record in ours)
    assert loggable("/sign-in") == "/sign-in"
