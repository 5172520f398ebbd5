"""OTLP attribute values as Python values, as JSON-able values and as the text of a label."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue


def json_value(value: AnyValue) -> Any:
    """The value as JSON knows it: None, bool, int, float, str, list or dict.

    As in OTLP's JSON mapping bytes become base64 and numbers that JSON lacks become ``NaN``, ``Infinity`` and ``-Infinity``. NUL
    characters, which PostgreSQL refuses, become U+FFFD.
    """
    which = value.WhichOneof("value")
    if which == "string_value":
        return clean_text(value.string_value)
    if which == "double_value":
        return value.double_value if math.isfinite(value.double_value) else _non_finite(value.double_value)
    if which == "array_value":
        return [json_value(item) for item in value.array_value.values]
    if which == "kvlist_value":
        return json_attributes(value.kvlist_value.values)
    if which == "bytes_value":
        return base64.b64encode(value.bytes_value).decode("ascii")
    if which in {"bool_value", "int_value"}:
        return getattr(value, which)
    return None


def json_attributes(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    """Attributes by key, values as :func:`json_value` gives them; of a key that comes twice the last one counts."""
    return {clean_text(attribute.key): json_value(attribute.value) for attribute in attributes}


def label_text(value: AnyValue) -> str:
    """The value as the text of a label.

    Strings as they are, ``true`` and ``false``, numbers as Python writes them, lists and maps as compact JSON, bytes as base64.
    Nothing becomes the empty string, which is no label at all.
    """
    which = value.WhichOneof("value")
    if which == "string_value":
        return value.string_value
    if which == "bool_value":
        return "true" if value.bool_value else "false"
    if which == "int_value":
        return str(value.int_value)
    if which == "double_value":
        return repr(value.double_value) if math.isfinite(value.double_value) else _non_finite(value.double_value)
    if which in {"array_value", "kvlist_value"}:
        return json.dumps(json_value(value), ensure_ascii=False, separators=(",", ":"))
    return str(json_value(value)) if which == "bytes_value" else ""


def clean_text(text: str) -> str:
    """``text`` with NUL characters replaced by U+FFFD."""
    return text.replace("\x00", "\ufffd") if "\x00" in text else text


def _non_finite(number: float) -> str:
    if math.isnan(number):
        return "NaN"
    return "Infinity" if number > 0 else "-Infinity"
