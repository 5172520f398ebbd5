"""The OpenAPI document, walked whole: everything in it is told, and what it shows as an example is taken."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError

from app.api.deployment_routes import Progress
from app.main import create_app
from app.settings import Settings

METHODS = ("get", "put", "post", "patch", "delete")
READ_BY_HAND = {("post", "/api/v1/agent/progress"): Progress}
"""Operations that read their body themselves, with the model that they check it by."""


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("document")
    return create_app(Settings(data_dir=folder))


@pytest.fixture(scope="module")
def document(app) -> dict[str, Any]:
    return app.openapi()


def operations(document) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, found in document["paths"].items():
        for method in METHODS:
            if method in found:
                yield method, path, found[method]


def json_bodies(document) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for method, path, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {})
        if "application/json" in content:
            yield method, path, content["application/json"]


def resolved(document, schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def examples_of(document, media: dict[str, Any]) -> list[Any]:
    named = [example["value"] for example in media.get("examples", {}).values()]
    single = [media["example"]] if "example" in media else []
    return [*named, *single, *resolved(document, media["schema"]).get("examples", [])]


def all_routes(app) -> list[APIRoute]:
    found, waiting = [], list(app.routes)
    while waiting:
        route = waiting.pop()
        waiting += getattr(getattr(route, "original_router", None), "routes", [])
        if isinstance(route, APIRoute) and route.include_in_schema:
            found.append(route)
    return found


def body_adapters(app) -> dict[tuple[str, str], TypeAdapter[Any]]:
    found: dict[tuple[str, str], TypeAdapter[Any]] = {operation: TypeAdapter(model) for operation, model in READ_BY_HAND.items()}
    for route in all_routes(app):
        if route.body_field is not None:
            for method in route.methods:
                found[method.lower(), route.path_format] = TypeAdapter(route.body_field.field_info.annotation)
    return found


def test_the_document_holds_every_operation_of_the_api(document, app):
    documented = {(method, path) for method, path, _ in operations(document)}
    of_the_api = {
        (method.lower(), route.path_format) for route in all_routes(app) if route.path.startswith("/api/") for method in route.methods
    }
    assert of_the_api - documented == set()
    assert {operation for operation in documented if operation[1].startswith("/api/")} == of_the_api
    assert len(documented) > 90


def test_every_operation_has_a_summary_a_description_and_tags(document):
    missing = [
        f"{method} {path}: {part}"
        for method, path, operation in operations(document)
        for part in ("summary", "description", "tags")
        if not operation.get(part)
    ]
    assert missing == []


def test_every_operation_has_an_id_of_its_own(document):
    ids = Counter(operation.get("operationId") for _, _, operation in operations(document))
    assert None not in ids
    assert [name for name, count in ids.items() if count > 1] == []


def test_every_parameter_has_a_description(document):
    missing = [
        f"{method} {path}: {parameter['name']}"
        for method, path, operation in operations(document)
        for parameter in operation.get("parameters", [])
        if not parameter.get("description", "").strip()
    ]
    assert missing == []


def test_every_parameter_of_the_path_is_told_with_the_same_words_wherever_it_stands(document):
    # Ids alone: what a "name" or a "file" is differs from path to path.
    told: dict[str, set[str]] = {}
    for _, _, operation in operations(document):
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "path" and parameter["name"].endswith("id"):
                told.setdefault(parameter["name"], set()).add(parameter["description"])
    assert {name: texts for name, texts in told.items() if len(texts) > 1} == {}
    assert {"agent_id", "instance_id", "group_id", "webhook_id", "uid"} <= set(told)


def test_every_json_body_has_an_example(document):
    bodies = list(json_bodies(document))
    assert [f"{method} {path}" for method, path, media in bodies if not examples_of(document, media)] == []
    assert len(bodies) >= 20


def test_every_example_of_a_json_body_is_valid_for_its_route(document, app):
    adapters = body_adapters(app)
    refused = []
    for method, path, media in json_bodies(document):
        for example in examples_of(document, media):
            try:
                adapters[method, path].validate_json(json.dumps(example))
            except ValidationError as exc:
                refused.append(f"{method} {path}: {exc}")
    assert refused == []


def test_every_example_of_a_json_body_meets_its_documented_schema(document):
    jsonschema = pytest.importorskip("jsonschema")
    for _, _, media in json_bodies(document):
        schema = {**media["schema"], "components": document["components"]}
        for example in examples_of(document, media):
            jsonschema.Draft202012Validator(schema).validate(example)


def test_every_answer_in_json_has_a_schema_that_the_document_holds(document):
    known = document["components"]["schemas"]
    dangling = sorted({ref for ref in references(document) if ref.rpartition("/")[2] not in known})
    assert dangling == []


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)
