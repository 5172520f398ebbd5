from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import pytest
from console_client import ADMIN_KEY, BEARER, console, provision, sign_in
from cryptography.fernet import Fernet
from fastapi import APIRouter, FastAPI
from sqlalchemy import select
from starlette.testclient import TestClient

from app.api.idempotency import creating_routes, document
from app.db.models import IdempotencyRow
from app.errors import IdempotencyKeyReusedError, RequestInProgressError, StorageError
from app.idempotency import Answer, Begun, IdempotencyStore, KeyedRequest
from app.webhooks.signing import SecretBox

KEY = {"Idempotency-Key": "a-key-of-mine"}
REQUEST = KeyedRequest("actor", "key-1", "POST /api/v1/groups", b"1" * 32)


@pytest.fixture
def client(tmp_path) -> Iterator[TestClient]:
    with console(tmp_path / "data") as made:
        made.headers.update(BEARER)
        yield made


@pytest.fixture
def store(parts) -> IdempotencyStore:
    return IdempotencyStore(parts.database, SecretBox(Fernet.generate_key()), parts.clock)


def rows(client: TestClient) -> list[IdempotencyRow]:
    async def read() -> list[IdempotencyRow]:
        async with client.app.state.platform.database.read() as session:
            return list((await session.scalars(select(IdempotencyRow))).all())

    return client.portal.call(read)


def test_a_repeated_request_gets_the_first_answer_with_the_secret_and_creates_nothing_more(client):
    first = client.post("/api/v1/api-keys", json={"name": "pipeline"}, headers=KEY)
    again = client.post("/api/v1/api-keys", json={"name": "pipeline"}, headers=KEY)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["x-content-type-options"] == "nosniff"
    assert len(client.get("/api/v1/api-keys").json()["items"]) == 2
    [row] = rows(client)
    assert first.json()["key"].encode() not in row.response
    assert b"pipeline" not in row.response


def test_without_a_key_the_same_request_creates_twice(client):
    for _ in range(2):
        assert client.post("/api/v1/api-keys", json={"name": "pipeline"}).status_code == 201
    assert len(client.get("/api/v1/api-keys").json()["items"]) == 3
    assert rows(client) == []


def test_a_key_used_for_other_content_or_another_route_is_refused(client):
    client.post("/api/v1/groups", json={"name": "web"}, headers=KEY)
    other = client.post("/api/v1/groups", json={"name": "db"}, headers=KEY)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency-key-reused")
    assert "other content" in other.json()["detail"]
    elsewhere = client.post("/api/v1/api-keys", json={"name": "web"}, headers=KEY)
    assert (elsewhere.status_code, elsewhere.json()["code"]) == (422, "idempotency-key-reused")
    assert "POST /api/v1/groups" in elsewhere.json()["detail"]
    assert [g["name"] for g in client.get("/api/v1/groups").json()["items"]] == ["web"]


def test_keys_of_two_actors_do_not_meet(client):
    text = client.post("/api/v1/api-keys", json={"name": "other", "role": "admin"}).json()["key"]
    mine = client.post("/api/v1/groups", json={"name": "web"}, headers=KEY)
    theirs = client.post("/api/v1/groups", json={"name": "db"}, headers={**KEY, "Authorization": f"Bearer {text}"})
    assert (mine.status_code, theirs.status_code) == (201, 201)


def test_a_refused_request_uses_no_key_up(client):
    refused = client.post("/api/v1/groups", json={"name": ""}, headers=KEY)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid-request")
    assert client.post("/api/v1/groups", json={"name": "web"}, headers=KEY).status_code == 201


@pytest.mark.parametrize("key", ["", "with space", "tab\there", "ä".encode(), "x" * 256])
def test_a_key_that_is_none_is_refused(client, key):
    answer = client.post("/api/v1/groups", json={"name": "web"}, headers={"Idempotency-Key": key})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "Idempotency-Key"
    assert client.post("/api/v1/groups", json={"name": "web"}, headers={"Idempotency-Key": "~" * 255}).status_code == 201


def test_who_is_nobody_or_may_not_learns_no_answer_of_others(client):
    client.post("/api/v1/api-keys", json={"name": "pipeline"}, headers=KEY)
    nobody = client.post("/api/v1/api-keys", json={"name": "pipeline"}, headers={**KEY, "Authorization": "Bearer irca_wrong"})
    assert (nobody.status_code, nobody.json()["code"]) == (401, "unauthenticated")
    viewer = client.post("/api/v1/api-keys", json={"name": "viewer", "role": "viewer"}).json()["key"]
    refused = client.post("/api/v1/api-keys", json={"name": "pipeline"}, headers={**KEY, "Authorization": f"Bearer {viewer}"})
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")


def test_a_browser_session_has_keys_too_and_only_from_our_own_pages(client):
    del client.headers["Authorization"]
    sign_in(client, "admin")
    body = {"name": "web"}
    foreign = client.post("/api/v1/groups", json=body, headers={**KEY, "Origin": "https://elsewhere.example"})
    assert foreign.status_code == 403
    assert client.post("/api/v1/groups", json=body, headers=KEY).status_code == 201
    assert client.post("/api/v1/groups", json=body, headers=KEY).headers["idempotency-replayed"] == "true"


def test_an_answer_that_cannot_be_kept_is_given_all_the_same(client, monkeypatch, caplog):
    async def fail(*_: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(client.app.state.platform.idempotency, "finish", fail)
    assert client.post("/api/v1/groups", json={"name": "web"}, headers=KEY).status_code == 201
    assert "the disk is full" in caplog.text
    again = client.post("/api/v1/groups", json={"name": "web"}, headers=KEY)
    assert (again.status_code, again.json()["code"]) == (409, "request-in-progress")
    assert int(again.headers["retry-after"]) >= 1
    assert again.json()["retryable"] is True


def test_a_request_that_the_platform_fails_to_answer_can_be_made_again(client, monkeypatch):
    auth = type(client.app.state.platform.auth)
    create = auth.create_key

    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(auth, "create_key", fail)
    assert client.post("/api/v1/api-keys", json={"name": "web"}, headers=KEY).status_code == 500
    monkeypatch.setattr(auth, "create_key", create)
    assert client.post("/api/v1/api-keys", json={"name": "web"}, headers=KEY).status_code == 201


def test_every_creating_operation_documents_the_key_and_its_answers(client):
    openapi = client.get("/openapi.json").json()
    marked = {
        path
        for path, methods in openapi["paths"].items()
        if any(p["name"] == "Idempotency-Key" for p in methods.get("post", {}).get("parameters", ()))
    }
    creating = {
        path
        for path, methods in openapi["paths"].items()
        if path.startswith("/api/v1/") and {"201", "202"} & methods.get("post", {}).get("responses", {}).keys()
    }
    assert creating < marked
    assert marked - creating == {"/api/v1/agent/provision", "/api/v1/webhooks/{webhook_id}/secret"}
    for path in marked:
        answers = openapi["paths"][path]["post"]["responses"]
        assert {"409", "422"} <= answers.keys(), path
        assert any("Idempotency-Replayed" in answer.get("headers", {}) for answer in answers.values()), path


def examples(client: TestClient) -> dict[str, tuple[str, object]]:
    """For each creating operation a path and a body that it takes."""
    provision(client, "prod")
    token = client.get("/api/v1/enrolment-tokens").json()["items"][0]["id"]
    key = client.post("/api/v1/api-keys", json={"name": "to rotate"}).json()["id"]
    hook = client.post("/api/v1/webhooks", json={"name": "hook", "url": "https://receiver.example.com/"}).json()["id"]
    soon = {"reason": "upgrade", "duration": 3600, "selector": {"environments": ["prod"]}}
    return {
        "/api/v1/agent/provision": ("", {"agent_type": "server", "environment_name": "desks"}),
        "/api/v1/enrolment-tokens/{token_id}/rotate": (token, None),
        "/api/v1/api-keys": ("", {"name": "new"}),
        "/api/v1/api-keys/{key_id}/rotate": (key, {"overlap": 60}),
        "/api/v1/sign-in-links": ("", None),
        "/api/v1/maintenance-windows": ("", soon),
        "/api/v1/webhooks": ("", {"name": "second", "url": "https://receiver.example.com/"}),
        "/api/v1/webhooks/{webhook_id}/secret": (hook, {}),
        "/api/v1/webhooks/{webhook_id}/test": (hook, None),
        "/api/v1/webhooks/{webhook_id}/replay": (hook, {}),
        "/api/v1/groups": ("", {"name": "web"}),
        "/api/v1/saved-views": ("", {"page": "agents", "name": "mine", "query": {"status": "degraded"}}),
    }


def test_every_creating_operation_answers_a_repeated_request_as_the_first_time(client):
    known = examples(client)
    routes = [route.path_format for route in creating_routes(client.app.routes)]
    assert set(routes) <= known.keys(), "an operation without an example here"
    for number, path in enumerate(routes):
        given, body = known[path]
        url = path[: path.index("{")] + given + path[path.index("}") + 1 :] if "{" in path else path
        headers = {"Idempotency-Key": f"number-{number}"}
        first, again = (client.post(url, json=body, headers=headers) for _ in range(2))
        assert first.is_success, f"{path}: {first.text}"
        assert (again.status_code, again.content) == (first.status_code, first.content), path
        assert again.headers["idempotency-replayed"] == "true", path


def test_a_route_is_documented_once_however_often_and_others_are_left_alone():
    router = APIRouter(prefix="/api/v1")

    @router.post("/things", status_code=201)
    async def create() -> str:
        return ""

    @router.get("/things")
    async def read() -> str:
        return ""

    app = FastAPI()
    app.include_router(router)
    openapi = app.openapi()
    routes = list(creating_routes(app.routes))
    assert [route.path for route in routes] == ["/api/v1/things"]
    for _ in range(2):
        document(openapi, routes)
    assert len(openapi["paths"]["/api/v1/things"]["post"]["parameters"]) == 1
    assert "parameters" not in openapi["paths"]["/api/v1/things"]["get"]


async def test_while_the_first_is_being_answered_the_second_is_told_to_wait(parts, store):
    assert isinstance(await store.begin(REQUEST), Begun)
    with pytest.raises(RequestInProgressError) as caught:
        await store.begin(REQUEST)
    assert caught.value.retry_after == 2.0
    parts.clock.advance(59.5)
    with pytest.raises(RequestInProgressError) as caught:
        await store.begin(REQUEST)
    assert caught.value.retry_after == pytest.approx(0.5)


async def test_of_several_at_once_one_is_answered(store):
    found = await asyncio.gather(*(store.begin(REQUEST) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(f, Begun) for f in found) == 1
    assert sum(isinstance(f, RequestInProgressError) for f in found) == 7


async def test_a_request_that_was_never_answered_is_taken_over_and_the_late_answer_of_the_first_does_not_count(parts, store):
    first = await store.begin(REQUEST)
    parts.clock.advance(60)
    second = await store.begin(REQUEST)
    assert isinstance(second, Begun)
    await store.finish(first, Answer(201, b"first"))
    await store.forget(first)
    await store.finish(second, Answer(201, b"second", {"etag": '"1"'}))
    assert await store.begin(REQUEST) == Answer(201, b"second", {"etag": '"1"'})


async def test_an_answer_is_kept_for_a_day_and_then_its_key_is_free(parts, store):
    begun = await store.begin(REQUEST)
    await store.finish(begun, Answer(201, b"\x00\xff"))
    parts.clock.advance(timedelta(hours=23, minutes=59).total_seconds())
    await store.drop_older()
    assert await store.begin(REQUEST) == Answer(201, b"\x00\xff")
    other = KeyedRequest(REQUEST.actor_id, REQUEST.key, REQUEST.route, b"2" * 32)
    with pytest.raises(IdempotencyKeyReusedError):
        await store.begin(other)
    parts.clock.advance(60)
    assert isinstance(await store.begin(other), Begun)
    parts.clock.advance(timedelta(hours=24).total_seconds())
    await store.drop_older()
    async with parts.database.read() as session:
        assert (await session.scalars(select(IdempotencyRow))).all() == []


async def test_an_answer_kept_under_another_key_file_is_refused_with_its_reason(parts, store):
    await store.finish(await store.begin(REQUEST), Answer(201, b"secret"))
    other = IdempotencyStore(parts.database, SecretBox(Fernet.generate_key()).derived("idempotency", "an answer"), parts.clock)
    with pytest.raises(StorageError, match="an answer cannot be decrypted"):
        await other.begin(REQUEST)


def test_a_derived_box_has_a_key_of_its_own_that_is_the_same_each_time():
    box = SecretBox(Fernet.generate_key())
    sealed = box.derived("one", "a text").seal("text")
    assert box.derived("one", "a text").unseal(sealed) == "text"
    for other in (box, box.derived("two", "a text")):
        with pytest.raises(StorageError):
            other.unseal(sealed)


def test_the_admin_key_of_the_settings_is_an_actor_like_others(client):
    assert client.post("/api/v1/sign-in-links", headers=KEY).status_code == 201
    [row] = rows(client)
    assert row.actor_id
    assert ADMIN_KEY not in row.actor_id
