"""What the OpenAPI document says of refusals: every operation's, by rules that hold for all, so that no route has to list its own."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

SCHEMA = "Problem"
_MUTATING = frozenset({"post", "put", "patch", "delete"})
_METHODS = _MUTATING | {"get"}
_PUBLISHED = ("/artefacts/", "/charts/", "/packages/", "/install/")
_OPEN = ("/healthz", "/readyz")
_TOLD = {
    "400": "The body cannot be read.",
    "401": "No credential, or one that is not valid (any more); the code says which.",
    "403": "The credential's role or environments do not allow this.",
    "404": "There is no such thing, or none that may be seen.",
    "409": "It conflicts with what there is; the detail says how.",
    "412": "It was changed meanwhile: the ETag of If-Match is not that of its present state.",
    "413": "The body is larger than the platform takes.",
    "415": "The body is of a type that is not taken here.",
    "422": "The request is not valid; the errors name the fields.",
    "429": "Too many requests; Retry-After says when to come back.",
    "501": "The agent type is not installed on the platform.",
    "503": "The platform cannot answer now; the code says why, and whether to try again.",
}
_FIELD = {
    "type": "object",
    "required": ["field", "message"],
    "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
}
_PROBLEM = {
    "type": "object",
    "title": SCHEMA,
    "description": "Why a request was refused (RFC 9457).",
    "required": ["type", "title", "status", "code", "detail", "retryable"],
    "properties": {
        "type": {"type": "string", "description": "urn:incident-rca:error:<code>"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "Which refusal it is; stable."},
        "detail": {"type": "string", "description": "The reason, for people."},
        "retryable": {"type": "boolean", "description": "Whether the same request may succeed later."},
        "errors": {"type": "array", "items": _FIELD, "description": "The fields that are not valid, and why."},
    },
}
_PROMETHEUS_ERROR = {
    "type": "object",
    "required": ["status", "errorType", "error"],
    "properties": {"status": {"const": "error"}, "errorType": {"type": "string"}, "error": {"type": "string"}},
}


def document(openapi: MutableMapping[str, Any]) -> None:
    """Add to a fresh OpenAPI document the refusals of each operation and their schema; what a route says itself keeps its description."""
    openapi.setdefault("components", {}).setdefault("schemas", {})[SCHEMA] = _PROBLEM
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            if method not in _METHODS:
                continue
            responses = operation.setdefault("responses", {})
            for status in statuses(path, method):
                told = responses.get(status, {}).get("description", "Validation Error")
                description = _TOLD[status] if told == "Validation Error" else told
                responses[status] = {"description": description, "content": _content(path)}
            operation["responses"] = dict(sorted(responses.items()))


def statuses(path: str, method: str) -> list[str]:
    """The statuses with which an operation may refuse a request."""
    if path in _OPEN:
        return []
    if path.startswith(_PUBLISHED):
        return ["404", "409", "422", "503"]
    found = {"401", "403", "422", "429", "503"}
    if "{" in path:
        found.add("404")
    if path.startswith("/prometheus"):
        found.add("400")
    if method in _MUTATING:
        found |= {"400", "404", "409", "412", "413", "415"}
    if path.startswith("/api/v1/agent/"):
        found.add("501")
    return sorted(found)


def _content(path: str) -> Mapping[str, Any]:
    problem = {"application/problem+json": {"schema": {"$ref": f"#/components/schemas/{SCHEMA}"}}}
    return {"application/json": {"schema": _PROMETHEUS_ERROR}, **problem} if path.startswith("/prometheus") else problem
