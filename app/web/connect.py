"""The form of the Connect page: a field for each option of an agent type, made from its JSON Schema, and back to a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from app.errors import FieldError
from app.web.forms import Form
from connectors.agent_factory import AgentFactory
from connectors.core.errors import ConfigError

Kind = Literal["text", "number", "choice", "check", "several", "lines", "pairs"]

PREFIX = "config."
"""Beginning of the names of the options' fields."""
ALWAYS_SHOWN = frozenset({"labels"})
"""Options that are not folded away although the running agent has them, too."""
_INITIALS = frozenset({"ca", "cpu", "id", "os", "otlp", "url"})
LIFETIMES: Mapping[str, tuple[str, float | None]] = {
    "": ("as the platform is set", None),
    "1h": ("1 hour", 3600.0),
    "1d": ("1 day", 86_400.0),
    "7d": ("7 days", 7 * 86_400.0),
    "30d": ("30 days", 30 * 86_400.0),
}
"""Lifetimes of an enrolment token that the form offers: title and seconds."""


@dataclass(frozen=True, slots=True)
class OptionField:
    """A field for one option. ``value`` is what it shows: text, or the chosen values of ``several``."""

    name: str
    kind: Kind
    description: str
    default: Any
    advanced: bool
    unit: str = ""
    choices: tuple[str, ...] = ()
    attributes: Mapping[str, object] | None = None
    whole: bool = False
    """Whether a number, or each of ``lines``, must be a whole one."""
    numeric: bool = False
    """Whether each of ``lines`` is a number."""

    @property
    def field(self) -> str:
        """The field's name in the form, which is also what refusals call the option."""
        return PREFIX + self.name

    @property
    def title(self) -> str:
        """The option's name for people."""
        words = [word.upper() if word in _INITIALS else word for word in self.name.split("_")]
        return " ".join([words[0][:1].upper() + words[0][1:], *words[1:]])

    def shown(self, form: Form | None) -> str:
        """The text in the field: as it was sent, else the default."""
        if form is not None and self.field in form.values:
            return form.values[self.field][-1]
        if self.kind == "check":
            return "yes" if self.default else "no"
        if self.kind == "lines":
            return "\n".join(_text(one) for one in self.default or ())
        if self.kind == "pairs":
            return "\n".join(f"{key}={value}" for key, value in (self.default or {}).items())
        return _text(self.default)

    def chosen(self, form: Form | None) -> Sequence[str]:
        """The ticked boxes of ``several``: as they were sent, else the default."""
        if form is not None and self.field in form.values:
            return form.every(self.field)
        return [_text(one) for one in self.default or ()]


def option_fields(agent_type: str) -> list[OptionField]:
    """The fields of a type, in the order of its options.

    Raises:
        ConnectorError: there is no such type, or it is not installed.
    """
    config_class = AgentFactory.agent_class(agent_type).config_class
    known = config_class.options()
    schema = TypeAdapter(config_class).json_schema()
    fields = []
    for name, part in schema.get("properties", {}).items():
        option = known[name]
        own = _resolved(part, schema)
        items = _resolved(own.get("items", {}), schema)
        kind = _kind(own, items)
        fields.append(
            OptionField(
                name=name,
                kind=kind,
                description=option.description,
                default=own.get("default", option.default),
                advanced=option.scope == "runtime" and name not in ALWAYS_SHOWN,
                unit=option.unit,
                choices=tuple(_text(one) for one in (own if kind == "choice" else items).get("enum", ())),
                attributes=_attributes(own, kind),
                whole="integer" in (own.get("type"), items.get("type")),
                numeric=items.get("type") in ("integer", "number"),
            )
        )
    return fields


def read_config(agent_type: str, fields: Iterable[OptionField], form: Form) -> tuple[dict[str, Any], list[FieldError]]:
    """The options that a form sets, without those at their defaults, and what is wrong with each field.

    A field that the form does not have is at its default.
    """
    config: dict[str, Any] = {}
    errors: list[FieldError] = []
    for field in fields:
        if field.field not in form.values:
            continue
        try:
            value = _value(field, form)
        except ValueError as exc:
            errors.append(FieldError(field.field, str(exc)))
            continue
        if value is not None and value != _plain(field.default):
            config[field.name] = value
    return config, errors or refusals(agent_type, config)


def refusals(agent_type: str, config: Mapping[str, Any]) -> list[FieldError]:
    """What the type's own rules have against a configuration, one entry for a field."""
    config_class = AgentFactory.agent_class(agent_type).config_class
    found: dict[str, str] = {}
    try:
        TypeAdapter(config_class).validate_python(dict(config))
        config_class.from_mapping(config)
    except ValidationError as exc:
        for error in exc.errors(include_url=False):
            found.setdefault(PREFIX + str(error["loc"][0] if error["loc"] else ""), str(error["msg"]))
    except ConfigError as exc:
        found[PREFIX + (exc.field or "")] = exc.reason
    return [FieldError(field, message) for field, message in found.items()]


def _value(field: OptionField, form: Form) -> Any:
    """What the form says of an option; None for its default. Raises ValueError with what was expected."""
    text = form.text(field.field)
    if field.kind == "number":
        return _number(text, whole=field.whole) if text else None
    if field.kind == "check":
        return text == "yes"
    if field.kind == "several":
        ticked = [one for one in form.every(field.field) if one]
        return None if sorted(ticked) == sorted(field.chosen(None)) else ticked
    lines = [line.strip() for line in form.text(field.field).splitlines() if line.strip()]
    if field.kind == "lines":
        return [_number(line, whole=field.whole) for line in lines] if field.numeric else lines
    if field.kind == "pairs":
        return _pairs(lines)
    return text


def _number(text: str, *, whole: bool) -> int | float:
    try:
        return int(text) if whole else float(text)
    except ValueError:
        raise ValueError(f"must be a {'whole ' if whole else ''}number, not {text[:40]!r}") from None


def _pairs(lines: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not key:
            raise ValueError(f"each line must read name=value; {line[:60]!r} does not")
        found[key] = value
    return found


def _kind(schema: Mapping[str, Any], items: Mapping[str, Any]) -> Kind:
    if "enum" in schema:
        return "choice"
    if schema.get("type") == "array":
        return "several" if "enum" in items else "lines"
    kinds: Mapping[str, Kind] = {"boolean": "check", "integer": "number", "number": "number", "object": "pairs"}
    return kinds.get(str(schema.get("type")), "text")


def _attributes(schema: Mapping[str, Any], kind: Kind) -> dict[str, object]:
    """What the browser can check by itself. Patterns are ours to check: the browser's dialect is another."""
    if kind == "number":
        bounds = {"min": schema.get("minimum"), "max": schema.get("maximum"), "step": 1 if schema.get("type") == "integer" else "any"}
        return {name: value for name, value in bounds.items() if value is not None}
    if kind == "text" and "maxLength" in schema:
        return {"maxlength": schema["maxLength"]}
    return {}


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part of a schema with its reference followed and, of a choice between something and null, the something."""
    if "$ref" in schema:
        found = root.get("$defs", {}).get(str(schema["$ref"]).rsplit("/", 1)[-1], {})
        return {**found, **{key: value for key, value in schema.items() if key != "$ref"}}
    for one in schema.get("anyOf", ()):
        if one.get("type") != "null":
            return {**_resolved(one, root), **{key: value for key, value in schema.items() if key != "anyOf"}}
    return schema


def _plain(default: Any) -> Any:
    """A default as a form would give it back."""
    if isinstance(default, Mapping):
        return dict(default)
    return list(default) if isinstance(default, (tuple, list)) else default


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)
