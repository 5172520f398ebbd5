"""What a configuration may hold: the options that remote configuration can set, by the agent types' own schemas."""

from __future__ import annotations

import functools
from collections.abc import Collection, Hashable, Mapping
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from app.errors import FieldError, InvalidRequestError
from app.groups.selectors import Selector
from connectors.agent_factory import AgentFactory
from connectors.core.agent_config import AgentConfig, Option
from connectors.core.errors import ConfigError, MissingExtraError, UnknownAgentTypeError

_NOT_HERE = frozenset({"labels"})
"""Options that have a place of their own: labels are the agent's and stand beside its configuration."""


def config_class(agent_type: str) -> type[AgentConfig] | None:
    """The options of an agent type; None where this platform does not have it."""
    try:
        return AgentFactory.agent_class(agent_type).config_class
    except (UnknownAgentTypeError, MissingExtraError):
        return None


@functools.cache
def _remote(cls: Any) -> Mapping[str, Option]:
    return {key: option for key, option in cls.options().items() if option.remote and key not in _NOT_HERE}


def _key(cls: type[AgentConfig]) -> Hashable:
    return cast("Hashable", cls)  # every class is; that its instances have a __hash__ of their own misleads mypy


def remote_options(agent_type: str) -> Mapping[str, Option]:
    """The options of a type that remote configuration can set, by name."""
    cls = config_class(agent_type)
    return {} if cls is None else _remote(_key(cls))


def types_of(selector: Selector) -> tuple[str, ...]:
    """The agent types that a selector can match."""
    conditions = Selector(
        match_labels={key: value for key, value in selector.match_labels.items() if key == "agent_type"},
        match_expressions=[one for one in selector.match_expressions if one.key == "agent_type"],
    )
    return tuple(name for name in AgentFactory.supported_types() if conditions.matches({"agent_type": name}))


def check_config(config: Mapping[str, Any], agent_types: Collection[str]) -> None:
    """Do nothing, or refuse a configuration that is not for these types: each option must be one of theirs and valid for all that have it.

    Raises:
        InvalidRequestError: every refused option with what was expected, as ``config.<option>``.
    """
    classes = [cls for name in agent_types if (cls := config_class(name)) is not None]
    errors: dict[str, str] = {}
    for key in config:
        holders = [cls for cls in classes if key in cls.options()]
        if not holders:
            known = sorted({option for cls in classes for option in _remote(_key(cls))})
            errors[key] = f"is not an option of {', '.join(agent_types) or 'any type'}; known options: {', '.join(known)}"
        elif key in _NOT_HERE:
            errors[key] = "is not part of the configuration: change the agent's labels"
        elif not any(key in _remote(_key(cls)) for cls in holders):
            errors[key] = "can only be set where the agent is deployed"
    for cls in classes:
        given = {key: value for key, value in config.items() if key in _remote(_key(cls)) and key not in errors}
        errors |= _refused(cls, given)
    if errors:
        found = [FieldError(f"config.{key}", message) for key, message in sorted(errors.items())]
        raise InvalidRequestError("the configuration is not valid", errors=found)


def schema_of(agent_types: Collection[str]) -> dict[str, dict[str, Any]]:
    """JSON Schema of each option that remote configuration can set for any of these types, in the types' order."""
    found: dict[str, dict[str, Any]] = {}
    for name in agent_types:
        cls = config_class(name)
        if cls is not None:
            found |= {key: value for key, value in _schema(_key(cls)).items() if key not in found}
    return found


@functools.cache
def _schema(cls: Any) -> dict[str, dict[str, Any]]:
    properties: Mapping[str, Any] = _adapter(_key(cls)).json_schema().get("properties", {})
    return {
        key: {**properties.get(key, {}), "description": option.description, "unit": option.unit, "default": option.default}
        for key, option in _remote(_key(cls)).items()
    }


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[AgentConfig]:
    return TypeAdapter(cls)


def _refused(cls: type[AgentConfig], config: Mapping[str, Any]) -> dict[str, str]:
    try:
        _adapter(_key(cls)).validate_python(dict(config))
        cls.from_mapping(config)
    except ValidationError as exc:
        return {".".join(map(str, e["loc"])) or "config": str(e["msg"]) for e in exc.errors(include_url=False)}
    except ConfigError as exc:
        return {exc.field or "config": exc.reason}
    return {}
