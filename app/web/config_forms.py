"""Configurations as forms: a field for each option, by its JSON Schema, and back. An empty field does not set its option."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from app.web.forms import Form

Kind = Literal["boolean", "choice", "number", "list", "mapping", "text"]
PREFIX = "option."
_UNITS = {"By": "bytes"}
"""Units that the options' descriptions do not tell."""


@dataclass(frozen=True, slots=True)
class ConfigField:
    """A field of the form. ``text`` is what stands in it; empty where the option is not set."""

    key: str
    kind: Kind
    text: str
    description: str
    unit: str
    default: str
    choices: tuple[str, ...] = ()
    minimum: str = ""
    maximum: str = ""
    step: str = ""

    @property
    def name(self) -> str:
        """Its name in the form."""
        return PREFIX + self.key


def fields_of(schema: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> list[ConfigField]:
    """The fields for these options, filled in with ``config``."""
    return [_field(key, one, config.get(key)) for key, one in schema.items()]


def read_config(form: Form, schema: Mapping[str, Mapping[str, Any]], current: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that the form says. Whether it is valid is for others to tell: what cannot be read stays text.

    A value that ``current`` has and that a form cannot tell from none (an empty text, list or mapping) stays.
    """
    config: dict[str, Any] = {}
    for key, one in schema.items():
        text = form.text(PREFIX + key)
        if text:
            config[key] = _read(_kind(one), one, text)
        elif key in current and current[key] in ("", [], {}):
            config[key] = current[key]
    return config


def shown(value: Any) -> str:
    """A value as a field or a table shows it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "\n".join(f"{key}={text}" for key, text in value.items())
    if isinstance(value, list | tuple):
        return "\n".join(map(str, value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def read_pairs(text: str) -> dict[str, str]:
    """Lines of ``name=value`` as a mapping."""
    pairs = (line.partition("=") for line in text.splitlines() if line.strip())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _field(key: str, schema: Mapping[str, Any], value: Any) -> ConfigField:
    kind = _kind(schema)
    return ConfigField(
        key=key,
        kind=kind,
        text=shown(value),
        description=str(schema.get("description", "")),
        unit=_UNITS.get(str(schema.get("unit", "")), ""),
        default=shown(schema.get("default")).replace("\n", ", "),
        choices=tuple(map(str, schema.get("enum", ()))),
        minimum=shown(schema.get("minimum")),
        maximum=shown(schema.get("maximum")),
        step="1" if schema.get("type") == "integer" else "any",
    )


def _kind(schema: Mapping[str, Any]) -> Kind:
    if "enum" in schema:
        return "choice"
    kinds: dict[str, Kind] = {"boolean": "boolean", "number": "number", "integer": "number", "array": "list", "object": "mapping"}
    return kinds.get(str(schema.get("type", "")), "text")


def _read(kind: Kind, schema: Mapping[str, Any], text: str) -> Any:
    if kind == "boolean":
        return {"true": True, "false": False}.get(text, text)
    if kind == "mapping":
        return read_pairs(text)
    items = schema.get("items")
    whole = isinstance(items, Mapping) and items.get("type") in ("number", "integer")
    if kind == "list":
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return [_number(line) for line in lines] if whole else lines
    return _number(text) if kind == "number" else text


def _number(text: str) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, int | float) and not isinstance(found, bool) else text
