"""Times, numbers, texts and cursors at the edges of what can be written: never a server error, on either database."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from console_client import ADMIN_KEY, BEARER, provision, sign_in
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from opamp_client import OpampAgent, credential_in

from app.main import create_app
from app.settings import Settings

pytestmark = [pytest.mark.sockets, pytest.mark.timeout(600)]
NOT_TRIED = {"/api/v1/live": "the live stream never ends by itself"}
DEEP = "[" * 20_000
KEYS = [
    [10**30, "x"],
    [-(10**30), "x"],
    [1e308, "x"],
    ["0001-01-01T00:00:00+14:00", "x"],
    ["9999-12-31T23:59:59-14:00", "x"],
    [10**30],
    ["a\0b"],
]
CURSORS = [
    *(base64.urlsafe_b64encode(json.dumps(key).encode()).decode() for key in KEYS),
    *(
        base64.urlsafe_b64encode(text.encode()).decode()
        for text in ('[Infinity,"x"]', '[NaN,"x"]', '[1e999,"x"]', "[-1]", "null", "7", DEEP)
    ),
    "a",
    "ä",
]
TIMES = [
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00",
    "1600-01-01T00:00:00Z",
    "1969-12-31T00:00:00Z",
    "2300-01-01T00:00:00Z",
    "9999-12-31T23:59:59-14:00",
    "9" * 400,
]
NUMBERS = ["-1", str(2**31), str(2**63), str(10**30), "9" * 5000, "1e400", "nan"]
TEXTS = ["a\0b", "\0", "x" * 8000, "%", "_\\", "']\"", "\U0001f600", "9" * 5000, "9" * 500 + "y"]
TAGS = ['"' + "9" * 30 + '"', "9" * 5000, '"-1"', '""', "²"]


@pytest.fixture
def client(database_url: str, tmp_path) -> Iterator[TestClient]:
    settings = Settings(data_dir=tmp_path / "data", public_url="http://testserver", admin_api_key=ADMIN_KEY, database_url=database_url)
    with TestClient(create_app(settings), follow_redirects=False, raise_server_exceptions=False) as made:
        made.headers.update(BEARER)
        yield made


@pytest.fixture
def known(client: TestClient) -> dict[str, str]:
    """Ids of one thing of each kind, by the name that paths give them."""
    agent = provision(client, "prod")
    one = OpampAgent()
    answer = client.post(
        "/v1/opamp",
        content=one.beat(full=True),
        headers={"content-type": "application/x-protobuf", "authorization": f"Bearer {agent['agent_token']}"},
    )
    credential = credential_in(one.read(answer.content))
    client.post(
        "/v1/opamp",
        content=one.beat(full=True),
        headers={"content-type": "application/x-protobuf", "authorization": f"Bearer {credential}"},
    )
    group = client.post("/api/v1/groups", json={"name": "known"}).json()["id"]
    client.put(f"/api/v1/groups/{group}/configuration", json={"config": {}}).json()
    hook = client.post("/api/v1/webhooks", json={"name": "known", "url": "https://receiver.invalid/"}).json()["id"]
    return {
        "agent_id": agent["agent_id"],
        "group_id": group,
        "webhook_id": hook,
        "token_id": client.get(f"/api/v1/agents/{agent['agent_id']}/tokens").json()["items"][0]["id"],
        "instance_id": client.get("/api/v1/instances").json()["items"][0]["id"],
        "event_id": client.get("/api/v1/events").json()["items"][0]["id"],
        "agent_type": "server",
    }


def operations(client: TestClient) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            if method != "parameters" and path not in NOT_TRIED:
                yield method.upper(), path, operation


def place(path: str, operation: dict[str, Any], known: dict[str, str]) -> str:
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path":
            path = path.replace("{" + parameter["name"] + "}", known.get(parameter["name"], "none"))
    return path


def edges(parameter: dict[str, Any]) -> list[str]:
    if parameter["name"] == "cursor":
        return CURSORS
    words = json.dumps(parameter["schema"])
    return [*(TIMES if "date-time" in words or parameter["name"] in {"start", "end", "time"} else []), *NUMBERS[:5], *TEXTS]


def variants(body: Any) -> Iterator[Any]:
    """The body with one of its leaves put to an edge, one after the other."""
    if isinstance(body, dict):
        for name, value in body.items():
            yield from ({**body, name: changed} for changed in variants(value))
        yield {**body, "a\0b": "a\0b"}
    elif isinstance(body, list):
        for number, value in enumerate(body):
            yield from ([*body[:number], changed, *body[number + 1 :]] for changed in variants(value))
    else:
        yield from [*TEXTS[:3], *TIMES[1:6], "\ud800", 2**31, 2**63, -(2**63) - 1, 10**30, 1e308, None, True, [], {}]


def example(operation: dict[str, Any], client: TestClient) -> Any:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return None
    schema = content["schema"]
    if "$ref" in schema:
        schema = client.get("/openapi.json").json()["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    given = content.get("example") or next(iter(content.get("examples", {}).values()), {}).get("value")
    return given if given is not None else next(iter(schema.get("examples", [])), {})


def routes(among: Iterable[Any]) -> Iterator[APIRoute]:
    for one in among:
        if isinstance(one, APIRoute):
            yield one
        else:
            yield from routes(getattr(getattr(one, "original_router", None), "routes", ()))


def asked(dependant: Dependant) -> Iterator[Any]:
    yield from dependant.query_params
    for one in dependant.dependencies:
        yield from asked(one)


def refused_in_order(answer: Any, what: str) -> list[str]:
    return [] if answer.status_code < 500 or answer.status_code == 501 else [f"{answer.status_code} {what[:300]}"]


def test_parameters_at_their_edges_are_answered_in_good_order(client, known):
    wrong, tried = [], 0
    for method, path, operation in operations(client):
        body = example(operation, client)
        for parameter in operation.get("parameters", []):
            if parameter["in"] != "query" or (method == "DELETE"):
                continue
            for value in edges(parameter):
                answer = client.request(method, place(path, operation, known), params={parameter["name"]: value}, json=body)
                wrong += refused_in_order(answer, f"{method} {path}?{parameter['name']}={value!r}")
                tried += 1
    assert not wrong, "\n".join(wrong)
    assert tried > 1000


def test_ids_and_tags_at_their_edges_are_answered_in_good_order(client, known):
    wrong = []
    for method, path, operation in operations(client):
        names = [p["name"] for p in operation.get("parameters", []) if p["in"] == "path"]
        for name in names:
            for value in ("a%00b", "%00", "x" * 8000, "9" * 5000, "%F0%9F%98%80", "%25"):
                where = place(path, operation, {**known, name: value})
                wrong += refused_in_order(client.request(method, where, json=example(operation, client)), f"{method} {where}")
        for tag in TAGS if any(p["name"] == "If-Match" for p in operation.get("parameters", [])) else ():
            headers = {"if-match": tag.encode("latin-1")}
            answer = client.request(method, place(path, operation, known), json=example(operation, client), headers=headers)
            wrong += refused_in_order(answer, f"{method} {path} If-Match: {tag}")
    assert not wrong, "\n".join(wrong)


def test_bodies_with_a_leaf_at_its_edge_are_answered_in_good_order(client, known):
    wrong, tried = [], 0
    for method, path, operation in operations(client):
        if (body := example(operation, client)) is None:
            continue
        for changed in variants(body):
            headers = {"content-type": "application/json"}
            answer = client.request(method, place(path, operation, known), content=json.dumps(changed), headers=headers)
            wrong += refused_in_order(answer, f"{method} {path} {changed!a}")
            tried += 1
    assert not wrong, "\n".join(wrong)
    assert tried > 300


def test_pages_asked_with_values_at_their_edges_are_answered_in_good_order(client, known):
    sign_in(client)
    wrong, tried = [], 0
    for route in routes(client.app.routes):
        if "GET" not in route.methods or route.path.startswith(("/api/", "/v1/")):
            continue
        for parameter in asked(route.dependant):
            values = CURSORS if parameter.alias == "cursor" else [*TIMES, *NUMBERS[:5], *TEXTS]
            for value in values:
                where = re.sub(r"{(\w+)(:path)?}", lambda found: known.get(found[1], "none"), route.path)
                wrong += refused_in_order(client.get(where, params={parameter.alias: value}), f"GET {where}?{parameter.alias}={value!r}")
                tried += 1
    assert not wrong, "\n".join(wrong)
    assert tried > 300
