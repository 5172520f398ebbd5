"""The options that every agent type shares, and how an option's value is found.

One definition serves both sides: a frozen dataclass whose fields are ``Annotated`` with constraints from ``annotated-types`` and
whose ``metadata`` describes them. The platform validates and publishes it as JSON Schema through pydantic's ``TypeAdapter``
(``__pydantic_config__`` makes it refuse unknown keys); the agent reads the same annotations here, without importing pydantic.

Precedence, highest first (remote configuration is laid over the outcome, see :mod:`connectors.core.remote_config`):

1. the ``config`` given to the constructor (or by the platform when it provisions),
2. environment variables: the option's name in capitals (``log_level`` is ``LOG_LEVEL``),
3. the configuration file (TOML; ``/etc/incident-rca/agent.toml`` or what ``AGENT_CONFIG_FILE`` names),
4. the defaults below.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import re
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

import annotated_types as at

from connectors.core.errors import ConfigError

Scope = Literal["runtime", "deploy"]


def option(
    default: Any = dataclasses.MISSING,
    doc: str = "",
    *,
    scope: Scope = "runtime",
    factory: Any = dataclasses.MISSING,
    unit: str = "",
    host_only: bool = False,
) -> Any:
    """A configuration option.

    ``doc`` is its published description. A ``runtime`` option reaches the running agent (environment variable, file, remote
    configuration); a ``deploy`` option only shapes the deployment command and is not sent to the agent. A ``host_only`` option reaches
    the running agent from its host alone: remote configuration cannot set it.
    """
    metadata = {"description": doc, "scope": scope, "unit": unit, "host_only": host_only}
    if factory is not dataclasses.MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A string option's whole text must match this regular expression (published as JSON Schema ``pattern``)."""

    pattern: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        schema = handler(source)
        schema["pattern"] = f"^(?:{self.pattern})$"
        return schema


CustomName = Annotated[str, Pattern(r"[a-z0-9][a-z0-9._-]{0,62}")]
"""Name of a source of custom metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """Options of every agent type. Types add theirs by subclassing (``connectors/<type>/config.py``)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": False}

    log_level: Literal["debug", "info", "warning", "error"] = option("info", "Least severe level that the agent logs.")
    log_format: Literal["text", "json"] = option("text", "Shape of the agent's log lines on standard error.")
    collect_interval: Annotated[float, at.Ge(1), at.Le(3600)] = option(10.0, "Seconds between two collections.", unit="s")
    heartbeat_interval: Annotated[float, at.Ge(5), at.Le(300)] = option(
        30.0, "Seconds between two heartbeats until the platform directs otherwise.", unit="s"
    )
    request_timeout: Annotated[float, at.Ge(1), at.Le(120)] = option(15.0, "Seconds that one request to the platform may take.", unit="s")
    state_dir: str = option("", "Directory for identity, credential and spool; empty means the type's own default.", host_only=True)
    spool_max_bytes: Annotated[int, at.Ge(1_048_576)] = option(268_435_456, "Largest size of the spool on disk.", unit="By")
    spool_max_age: Annotated[float, at.Ge(60)] = option(604_800.0, "Age past which spooled data is dropped.", unit="s")
    ca_file: str = option("", "PEM bundle to trust instead of the system's, for a platform with a private CA.", host_only=True)
    labels: Mapping[str, str] = option(doc="Labels of this agent, for grouping and search.", factory=dict)
    locked_options: tuple[str, ...] = option(
        (), "Options that stay as the host's owner set them, whatever remote configuration says.", host_only=True
    )
    custom_commands: tuple[CustomName, ...] = option(
        (), "Commands that measure, by the names under which the host's owner declared them in the file of custom commands."
    )
    custom_prometheus: Mapping[CustomName, str] = option(
        doc="Prometheus endpoints to scrape, each a name and a URL; on loopback, or at an address that custom_prometheus_hosts allows.",
        factory=dict,
    )
    custom_prometheus_hosts: tuple[str, ...] = option(
        (), "Addresses beyond loopback that may be scraped, each as host or host:port.", host_only=True
    )
    custom_prometheus_labels: tuple[str, ...] = option(
        (), "Labels of scraped series that are kept; empty keeps all. le and quantile always stay."
    )
    custom_otlp_endpoint: Annotated[str, Pattern(r"((127(\.[0-9]{1,3}){3}|\[::1\]):[0-9]{1,5})?")] = option(
        "", "Loopback address and port, such as 127.0.0.1:4318, where OTLP over HTTP is received; empty receives none."
    )
    custom_interval: Annotated[float, at.Ge(1), at.Le(86400)] = option(60.0, "Seconds between two scrapes of an endpoint.", unit="s")
    custom_timeout: Annotated[float, at.Ge(0.1), at.Le(300)] = option(10.0, "Seconds that one scrape may take.", unit="s")
    custom_max_series: Annotated[int, at.Ge(1), at.Le(1_000_000)] = option(1000, "Custom series that this agent sends, at most.")
    custom_max_bytes: Annotated[int, at.Ge(1024)] = option(
        4_194_304, "Bytes of custom metrics and logs that this agent takes in a minute, at most.", unit="By"
    )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that ``values`` describe, the rest at their defaults.

        Raises:
            ConfigError: a key is unknown, or a value breaks its option's type or bounds; ``field`` names the key.
        """
        known = cls.options()
        checked: dict[str, Any] = {}
        for key, value in values.items():
            if key not in known:
                raise ConfigError(f"unknown option {key!r}; known options: {', '.join(sorted(known))}", field=str(key))
            checked[key] = _check(key, known[key].annotation, value)
        return cls(**checked)

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str], file: Mapping[str, Any] | None = None, config: Mapping[str, Any] | None = None
    ) -> Self:
        """The configuration by the precedence in the module's docstring, for an agent that starts.

        ``environ`` and ``file`` may hold foreign keys (they are ignored and refused respectively).

        Raises:
            ConfigError: as :meth:`from_mapping`; texts from the environment are converted to the option's type first.
        """
        values: dict[str, Any] = dict(file or {})
        for key, known in cls.options().items():
            text = environ.get(known.variable)
            if known.scope == "runtime" and text is not None and text != "":
                values[key] = _from_text(key, known.annotation, text)
        values.update(config or {})
        return cls.from_mapping(values)

    def overlaid(self, values: Mapping[str, Any]) -> Self:
        """This configuration with remote configuration ``values`` laid over it; options that ``locked_options`` names keep their values.

        Raises:
            ConfigError: as :meth:`from_mapping`, and for options that remote configuration cannot set.
        """
        known = self.options()
        for key in values:
            if key in known and not known[key].remote:
                raise ConfigError(f"{key} can only be set where the agent is deployed, not remotely", field=key)
        laid = type(self).from_mapping(values)  # a locked option, too, must be valid
        taken = {key: getattr(laid, key) for key in values if key not in self.locked_options}
        return dataclasses.replace(self, **taken)

    @classmethod
    def options(cls) -> Mapping[str, Option]:
        """The options by name, in order of definition."""
        return _options(typing.cast(Hashable, cls))

    def explicit(self, scope: Scope = "runtime") -> dict[str, Any]:
        """The options of ``scope`` whose values differ from the defaults: what a deployment has to carry."""
        return {
            name: value
            for name, known in self.options().items()
            if known.scope == scope and (value := getattr(self, name)) != known.default
        }

    def environment(self) -> dict[str, str]:
        """The environment variables that give an agent this configuration (:meth:`from_environment` reads them back)."""
        known = self.options()
        return {known[name].variable: _to_text(value) for name, value in self.explicit().items()}


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a configuration class: its name, annotation, default, description, scope and environment variable."""

    name: str
    annotation: Any
    default: Any
    description: str
    scope: Scope
    unit: str
    host_only: bool = False

    @property
    def remote(self) -> bool:
        """Whether remote configuration may set it."""
        return self.scope == "runtime" and not self.host_only

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return self.name.upper()


@functools.cache
def _options(cls: Any) -> Mapping[str, Option]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {
        f.name: Option(
            name=f.name,
            annotation=hints[f.name],
            default=f.default if f.default is not dataclasses.MISSING else typing.cast(Any, f.default_factory)(),
            description=f.metadata["description"],
            scope=f.metadata["scope"],
            unit=f.metadata["unit"],
            host_only=f.metadata["host_only"],
        )
        for f in dataclasses.fields(cls)
    }


def _check(key: str, annotation: Any, value: Any) -> Any:
    """``value`` as ``annotation`` wants it, or a ConfigError that says what was expected."""
    base, constraints = _unwrap(annotation)
    checked = _check_type(key, base, value)
    for constraint in constraints:
        _check_constraint(key, constraint, checked)
    return checked


def _unwrap(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    if typing.get_origin(annotation) is Annotated:
        base, *constraints = typing.get_args(annotation)
        return base, tuple(constraints)
    return annotation, ()


def _check_type(key: str, base: Any, value: Any) -> Any:
    origin = typing.get_origin(base)
    if origin is Literal:
        choices = typing.get_args(base)
        if value not in choices:
            raise ConfigError(f"{key} must be one of {', '.join(map(str, choices))}, not {value!r}", field=key)
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in typing.get_args(base):
            return None
        inner = next(a for a in typing.get_args(base) if a is not type(None))
        return _check(key, inner, value)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} must be a mapping, not {type(value).__name__}", field=key)
        inner_key, inner_value = typing.get_args(base)
        return {_check(key, inner_key, k): _check(f"{key}.{k}", inner_value, v) for k, v in value.items()}
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise ConfigError(f"{key} must be a list, not {type(value).__name__}", field=key)
        return tuple(_check(f"{key}[{i}]", typing.get_args(base)[0], v) for i, v in enumerate(value))
    return _check_scalar(key, base, value)


def _check_scalar(key: str, base: Any, value: Any) -> Any:
    if base is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ConfigError(f"{key} must be a finite number", field=key)
        return float(value)
    if base is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, base) and (base is bool or not isinstance(value, bool)):
        return value
    expected = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}.get(base, base.__name__)
    raise ConfigError(f"{key} must be {expected}, not {value!r}", field=key)


def _check_constraint(key: str, constraint: Any, value: Any) -> None:
    checks: tuple[tuple[type[Any], str, Callable[[Any, Any], bool], str], ...] = (
        (at.Ge, "ge", operator.ge, "at least"),
        (at.Gt, "gt", operator.gt, "more than"),
        (at.Le, "le", operator.le, "at most"),
        (at.Lt, "lt", operator.lt, "less than"),
    )
    for kind, attribute, holds, words in checks:
        if isinstance(constraint, kind):
            bound = getattr(constraint, attribute)
            if not holds(value, bound):
                raise ConfigError(f"{key} must be {words} {bound}, not {value!r}", field=key)
    if isinstance(constraint, at.Len):
        most = constraint.max_length
        if len(value) < constraint.min_length or (most is not None and len(value) > most):
            raise ConfigError(f"{key} must have {constraint.min_length} to {most or 'any number of'} entries or characters", field=key)
    if isinstance(constraint, Pattern) and not re.fullmatch(constraint.pattern, value):
        raise ConfigError(f"{key} must match {constraint.pattern}, not {value!r}", field=key)


def _from_text(key: str, annotation: Any, text: str) -> Any:
    """An environment variable's text as the option's type: lists by commas, mappings as ``a=b,c=d``."""
    base, _ = _unwrap(annotation)
    origin = typing.get_origin(base)
    if origin in (typing.Union, types.UnionType):
        base = next(a for a in typing.get_args(base) if a is not type(None))
        return _from_text(key, base, text)
    if origin is not None and origin is not Literal and issubclass(origin, Mapping):
        pairs = [_split_escaped(part, "=", 1) for part in _split_escaped(text, ",")]
        if any(len(pair) == 1 for pair in pairs):
            raise ConfigError(f"{key} must be written name=value,name=value, not {text!r}", field=key)
        return {_unescape(k): _unescape(v) for k, v in pairs}
    if origin is tuple:
        parts = [part for part in _split_escaped(text, ",") if part]  # a lone comma is the empty list; no text at all means the default
        return tuple(_from_text(key, typing.get_args(base)[0], _unescape(part)) for part in parts)
    if base is bool:
        truth = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}.get(text.lower())
        if truth is None:
            raise ConfigError(f"{key} must be true or false, not {text!r}", field=key)
        return truth
    if base in (int, float):
        try:
            return base(text)
        except ValueError:
            expected = "a whole number" if base is int else "a number"
            raise ConfigError(f"{key} must be {expected}, not {text!r}", field=key) from None
    return text


def _to_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return ",".join(f"{_escape(str(k))}={_escape(str(v))}" for k, v in value.items())
    if isinstance(value, tuple):
        return ",".join(_escape(_to_text(v)) for v in value) or ","
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _escape(text: str) -> str:
    return re.sub(r"([\\,=])", r"\\\1", text)


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def _split_escaped(text: str, separator: str, most: int = -1) -> list[str]:
    """Split at separators that no backslash precedes."""
    parts: list[str] = []
    start = i = 0
    while i < len(text):
        if text[i] == "\\":
            i += 2
            continue
        if text[i] == separator and (most < 0 or len(parts) < most):
            parts.append(text[start:i])
            start = i + 1
        i += 1
    return [*parts, text[start:]]
