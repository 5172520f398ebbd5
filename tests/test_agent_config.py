from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import annotated_types as at
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from connectors.core.agent_config import AgentConfig, Pattern, option
from connectors.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RichConfig(AgentConfig):
    """Every kind of option that a type may have."""

    flag: bool = option(False, "A switch.")
    count: Annotated[int, at.Gt(0), at.Lt(10)] = option(1, "A number.")
    share: Annotated[float, at.Ge(0), at.Le(1)] = option(0.5, "A share.")
    name: Annotated[str, Pattern(r"[a-z][a-z0-9-]*"), at.Len(1, 12)] = option("a", "A name.")
    maybe: int | None = option(None, "A number or nothing.")
    paths: tuple[str, ...] = option((), "Paths.")
    ports: tuple[Annotated[int, at.Ge(1)], ...] = option((), "Ports.")
    tags: Mapping[str, str] = option(doc="Tags.", factory=dict)
    mode: Literal["soft", "hard"] = option("soft", "How.", scope="deploy")


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
valid = st.fixed_dictionaries(
    {},
    optional={
        "log_level": st.sampled_from(["debug", "info", "warning", "error"]),
        "log_format": st.sampled_from(["text", "json"]),
        "collect_interval": st.floats(1, 3600),
        "heartbeat_interval": st.floats(5, 300),
        "spool_max_bytes": st.integers(1_048_576, 2**50),
        "state_dir": words,
        "labels": st.dictionaries(words, words, max_size=4),
        "flag": st.booleans(),
        "count": st.integers(1, 9),
        "share": st.floats(0, 1),
        "name": st.from_regex(r"\A[a-z][a-z0-9-]{0,11}\Z"),
        "maybe": st.integers(),
        "paths": st.lists(words.filter(bool), max_size=3).map(tuple),
        "ports": st.lists(st.integers(1, 65535), max_size=3).map(tuple),
        "tags": st.dictionaries(words, words, max_size=4),
    },
)


@given(valid)
def test_an_environment_gives_back_the_configuration_it_was_made_from(values):
    config = RichConfig.from_mapping(values)
    environ = config.environment()
    assert all(isinstance(text, str) for text in environ.values())
    assert RichConfig.from_environment(environ) == config


@given(valid)
def test_only_what_differs_from_the_defaults_is_carried(values):
    config = RichConfig.from_mapping(values)
    defaults = RichConfig()
    assert set(config.explicit()) == {n for n in values if getattr(config, n) != getattr(defaults, n)}
    assert RichConfig.from_mapping(config.explicit()) == config


def test_a_deploy_option_shapes_the_command_and_does_not_reach_the_agent():
    config = RichConfig.from_mapping({"mode": "hard"})
    assert (config.environment(), config.explicit("deploy")) == ({}, {"mode": "hard"})
    assert RichConfig.from_environment({"MODE": "hard"}).mode == "soft"


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 4000),
    st.sampled_from([2.0, 2.5, -1.0, 0.5, 1e9, float("nan"), float("inf")]),
    st.sampled_from(["", "debug", "info", "a", "A b", "x" * 20, "hard", "é"]),
    st.lists(st.one_of(st.integers(-2, 5), st.sampled_from(["a", ""])), max_size=2),
    st.dictionaries(st.sampled_from(["k", "l"]), st.one_of(st.just("v"), st.integers(0, 2)), max_size=2),
)


def refused_by_us(values: Mapping[str, Any]) -> bool:
    try:
        RichConfig.from_mapping(values)
    except ConfigError:
        return True
    return False


def refused_by_pydantic(values: Mapping[str, Any]) -> bool:
    try:
        TypeAdapter(RichConfig).validate_python(values)
    except ValidationError:
        return True
    return False


def is_lenient_conversion(key: str, value: Any) -> bool:
    """Where pydantic, not strict, converts a text, number or boolean into another type, and the agent asks for the right one."""
    base = {
        "flag": bool,
        "count": int,
        "share": float,
        "maybe": int,
        "spool_max_bytes": int,
        "collect_interval": float,
        "spool_max_age": float,
        "request_timeout": float,
        "custom_interval": float,
        "custom_timeout": float,
        "custom_max_series": int,
        "custom_max_bytes": int,
    }
    if key in base and base[key] is not bool:
        return isinstance(value, (str, bool))
    return key == "flag" and not isinstance(value, bool)


@given(st.sampled_from([f.name for f in dataclasses.fields(RichConfig)] + ["unknown_key"]), anything)
def test_agent_and_platform_accept_and_refuse_the_same(key, value):
    if is_lenient_conversion(key, value):
        return
    assert refused_by_us({key: value}) == refused_by_pydantic({key: value})


@given(valid)
def test_agent_and_platform_read_the_same_values(values):
    ours, theirs = RichConfig.from_mapping(values), TypeAdapter(RichConfig).validate_python(values)
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)


def test_the_schema_carries_bounds_patterns_and_refuses_unknown_keys():
    schema = TypeAdapter(RichConfig).json_schema()
    assert schema["additionalProperties"] is False
    assert schema["properties"]["name"]["pattern"]
    assert schema["properties"]["collect_interval"]["minimum"] == 1
    assert schema["properties"]["mode"]["enum"] == ["soft", "hard"]


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"nope": 1}, "nope", "unknown option 'nope'; known options: "),
        ({"log_level": "loud"}, "log_level", "must be one of debug, info, warning, error, not 'loud'"),
        ({"collect_interval": 0.5}, "collect_interval", "must be at least 1, not 0.5"),
        ({"collect_interval": float("nan")}, "collect_interval", "must be a finite number"),
        ({"collect_interval": "10"}, "collect_interval", "must be a number, not '10'"),
        ({"spool_max_bytes": 1.5e9 + 0.5}, "spool_max_bytes", "must be a whole number"),
        ({"spool_max_bytes": True}, "spool_max_bytes", "must be a whole number"),
        ({"flag": 1}, "flag", "must be true or false"),
        ({"count": 10}, "count", "must be less than 10"),
        ({"count": 0}, "count", "must be more than 0"),
        ({"share": 1.5}, "share", "must be at most 1"),
        ({"name": "UPPER"}, "name", "must match"),
        ({"name": "a" * 13}, "name", "must have 1 to 12 entries or characters"),
        ({"paths": "not a list"}, "paths", "must be a list, not str"),
        ({"ports": [1, 0]}, "ports[1]", "must be at least 1"),
        ({"tags": []}, "tags", "must be a mapping, not list"),
        ({"tags": {"a": 1}}, "tags.a", "must be a string, not 1"),
    ],
)
def test_a_refusal_names_the_key_and_the_expectation(values, field, words):
    with pytest.raises(ConfigError) as caught:
        RichConfig.from_mapping(values)
    assert caught.value.field == field
    assert words in caught.value.reason


@pytest.mark.parametrize(
    ("environ", "field"),
    [
        ({"COUNT": "many"}, "count"),
        ({"SHARE": "half"}, "share"),
        ({"FLAG": "perhaps"}, "flag"),
        ({"TAGS": "a=b,c"}, "tags"),
        ({"LOG_LEVEL": "loud"}, "log_level"),
        ({"MAYBE": "x"}, "maybe"),
    ],
)
def test_a_text_that_does_not_fit_names_its_option(environ, field):
    with pytest.raises(ConfigError) as caught:
        RichConfig.from_environment(environ)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("YES", True), ("on", True), ("false", False), ("0", False), ("Off", False)]
)
def test_switches_may_be_written_in_several_ways(text, value):
    assert RichConfig.from_environment({"FLAG": text}).flag is value


def test_the_constructor_goes_before_the_environment_before_the_file_before_the_default():
    environ, file = {"LOG_LEVEL": "debug", "COUNT": "2", "SHARE": ""}, {"log_level": "error", "count": 3, "share": 0.25, "flag": True}
    config = RichConfig.from_environment(environ, file, {"log_level": "warning"})
    assert (config.log_level, config.count, config.share, config.flag, config.mode) == ("warning", 2, 0.25, True, "soft")


def test_foreign_variables_are_ignored_and_foreign_keys_of_a_file_are_not():
    assert RichConfig.from_environment({"PATH": "/bin", "HOME": "/"}) == RichConfig()
    with pytest.raises(ConfigError, match="unknown option 'path'"):
        RichConfig.from_environment({}, {"path": "/bin"})


def test_every_option_is_described():
    for name, known in AgentConfig.options().items():
        assert known.description.endswith("."), name
        assert known.variable == name.upper()
