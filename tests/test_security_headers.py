from __future__ import annotations

import re

import pytest
from console_client import ADMIN_KEY, BEARER, sign_in
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from app.api.security import SecurityHeaders
from app.headers import API_HEADERS, COMMON, PAGE_HEADERS
from app.main import create_app
from app.settings import Settings


@pytest.fixture(params=["http", "https"])
def client(tmp_path, request):
    url = f"{request.param}://irca.test"
    settings = Settings(data_dir=tmp_path / "data", public_url=url, admin_api_key=ADMIN_KEY)
    with TestClient(create_app(settings), base_url=url, follow_redirects=False, raise_server_exceptions=False) as made:
        yield made


def all_routes(app) -> list[APIRoute]:
    found, waiting = [], list(app.routes)
    while waiting:
        route = waiting.pop()
        waiting += getattr(getattr(route, "original_router", None), "routes", [])
        if isinstance(route, APIRoute):
            found.append(route)
    return found


def assert_safe(response, client) -> None:
    where = f"{response.request.method} {response.request.url.path}"
    for name in COMMON:
        if name == "Referrer-Policy":  # a page may ask for more of it
            assert response.headers.get(name) in ("same-origin", "strict-origin", "no-referrer"), where
        else:
            assert response.headers.get(name) == COMMON[name], f"{where}: {name}"
    policy = dict(part.strip().partition(" ")[::2] for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'", where
    assert policy["frame-ancestors"] == "'none'", where
    assert "unsafe" not in str(policy), where
    assert ("strict-transport-security" in response.headers) is (client.base_url.scheme == "https"), where


@pytest.mark.sockets
def test_every_route_and_page_answers_with_the_security_headers(client):
    tried = set()
    for signed_in in (False, True):
        if signed_in:
            sign_in(client)
        for route in all_routes(client.app):
            path = re.sub(r"\{[^}]+\}", "x", route.path)
            if path == "/api/v1/live":
                continue  # never ends by itself
            for method in route.methods - {"HEAD", "OPTIONS"}:
                if signed_in and path == "/sign-out":
                    continue
                response = client.request(method, path, headers={"sec-fetch-site": "same-origin"})
                assert_safe(response, client)
                if "text/html" in response.headers.get("content-type", ""):
                    assert "script-src 'self'" in response.headers["content-security-policy"]
                    assert "style-src 'self'" in response.headers["content-security-policy"]
                assert response.headers["cache-control"]
                tried.add((method, path))
    assert len(tried) > 100


def test_answers_that_no_route_gives_have_them_too(client):
    for method, path in (("GET", "/no/such/path"), ("PUT", "/api/v1/agents"), ("GET", "/static/app.css"), ("GET", "/openapi.json")):
        assert_safe(client.request(method, path), client)
    assert client.get("/static/app.css").headers.get("cache-control") != "no-store"
    assert client.get("/openapi.json").headers["cache-control"] == "no-store"


def test_an_unforeseen_failure_of_a_route_has_them(client, monkeypatch):
    async def broken(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(type(client.app.state.platform.fleet), "list_agents", broken)
    for response in (client.get("/api/v1/agents", headers=BEARER), _page(client)):
        assert response.status_code == 500
        assert_safe(response, client)
        assert "boom" not in response.text


def _page(client):
    sign_in(client)
    return client.get("/agents")


def test_agents_are_sent_only_what_costs_nothing(client):
    response = client.post("/v1/metrics", content=b"")
    assert response.status_code == 401
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-store"
    assert "content-security-policy" not in response.headers


async def test_what_a_route_has_set_itself_stays_and_other_protocols_pass_untouched():
    async def inner(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Cache-Control", b"max-age=60")]})
        await send({"type": "http.response.body", "body": b"x"})

    sent = []

    async def send(message):
        sent.append(message)

    await SecurityHeaders(inner, tls=False)({"type": "http", "path": "/x"}, None, send)
    headers = sent[0]["headers"]
    assert (b"Cache-Control", b"max-age=60") in headers
    assert [value for name, value in headers if name.lower() == b"cache-control"] == [b"max-age=60"]
    assert len(headers) == len(API_HEADERS)
    assert sent[1]["body"] == b"x"
    sent.clear()
    await SecurityHeaders(inner, tls=True)({"type": "lifespan"}, None, send)
    assert sent[0]["headers"] == [(b"Cache-Control", b"max-age=60")]


def test_pages_allow_scripts_and_styles_of_their_own_only():
    policy = PAGE_HEADERS["Content-Security-Policy"]
    assert "'unsafe-inline'" not in policy
    assert "'unsafe-eval'" not in policy
    assert {"script-src 'self'", "style-src 'self'", "form-action 'self'", "base-uri 'none'"} <= set(policy.split("; "))
