"""OTLP's JSON mapping, which is protobuf's with three differences (OTLP specification, "JSON Protobuf Encoding").

Trace and span ids are hexadecimal instead of base64; enum values are numbers; unknown fields are ignored. Lower camel case is what
the specification asks of senders; 64-bit integers may be strings or numbers.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from app.errors import MalformedBodyError

_Request = TypeVar("_Request", bound=Message)
_ID_BYTES = {"traceId": 16, "spanId": 8}
_POINT_HOLDERS = ("gauge", "sum", "histogram", "exponentialHistogram")


def parse_json(body: bytes, request: _Request) -> _Request:
    """Fill ``request``, an empty export request for metrics or logs, from OTLP/JSON; an empty body is an empty request.

    Raises:
        MalformedBodyError: the body is no JSON, or not of the request's form.
    """
    if not body:
        return request
    try:
        document = json.loads(body.decode("utf-8"))
        if not isinstance(document, dict):
            raise MalformedBodyError(f"the body must be a JSON object, not {type(document).__name__}")
        for holder in _id_holders(document):
            _to_base64(holder)
        json_format.ParseDict(document, request, ignore_unknown_fields=True)
    except RecursionError:
        raise MalformedBodyError("the body is nested too deeply") from None
    except (ValueError, TypeError, AttributeError, json_format.ParseError) as error:  # json_format leaks the middle two on wrong shapes
        raise MalformedBodyError(f"the body is not valid OTLP/JSON: {str(error)[:200]}") from None
    return request


def render_json(answer: Message) -> bytes:
    """An OTLP answer as JSON."""
    return json_format.MessageToJson(answer, indent=None).encode()


def _id_holders(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The objects that may carry ids: log records and exemplars."""
    for resource in _objects(document, "resourceLogs"):
        for scope in _objects(resource, "scopeLogs"):
            yield from _objects(scope, "logRecords")
    for resource in _objects(document, "resourceMetrics"):
        for scope in _objects(resource, "scopeMetrics"):
            for metric in _objects(scope, "metrics"):
                for holder in _POINT_HOLDERS:
                    data = metric.get(holder)
                    if isinstance(data, dict):
                        for point in _objects(data, "dataPoints"):
                            yield from _objects(point, "exemplars")


def _objects(parent: dict[str, Any], key: str) -> Iterator[dict[str, Any]]:
    children = parent.get(key)
    if isinstance(children, list):
        yield from (child for child in children if isinstance(child, dict))


def _to_base64(holder: dict[str, Any]) -> None:
    for key, length in _ID_BYTES.items():
        text = holder.get(key)
        if not text:
            holder.pop(key, None)
            continue
        raw = bytes.fromhex(text)
        if len(raw) != length:
            raise MalformedBodyError(f"{key} must be {length * 2} hexadecimal digits")
        holder[key] = base64.b64encode(raw).decode("ascii")
