"""What every agent type promises: one suite over the factory's table."""

from __future__ import annotations

import copy
import inspect
import json
import re
import shlex
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from connectors.agent_factory import AgentFactory
from connectors.core.base_agent import BaseAgent
from connectors.core.errors import (
    ConfigError,
    ControlError,
    NotDeployedError,
    PermissionRefusedError,
    RuntimeUnavailableError,
    ToolMissingError,
)
from connectors.core.preflight import Check, run_checks
from connectors.core.telemetry import Collection, encode_metrics

URL = "https://platform.example.com:8443/base"
TOKEN = "agent_prod-cluster_a1B2c3D4e5F6"
CONFIG = {"log_level": "debug", "labels": {"team": "payments"}}
SECTIONS = ["What it is", "Quick start", "Permissions", "Options", "Metrics", "Limits"]
SHELL_SPECIAL = 'it\'s $HOME; `id` "x" & {a,b}'

pytestmark = pytest.mark.parametrize("agent_type", AgentFactory.supported_types())


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """No engine, no cluster, no service manager: what an agent on the wrong machine finds. State goes to the test's directory."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/no-kubeconfig")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


def make(agent_type: str, config: dict[str, object] | None = None, token: str = TOKEN) -> BaseAgent:
    return AgentFactory.create_agent(
        agent_type=agent_type, platform_url=URL, agent_token=token, config=CONFIG if config is None else config
    )


def test_it_constructs_and_says_what_it_is(agent_type):
    agent = make(agent_type)

    assert agent.agent_type == agent_type
    assert agent.description.endswith(".")
    assert agent.runs_on
    assert all(agent.runs_on)
    assert agent.config.log_level == "debug"
    assert agent.config.labels == {"team": "payments"}


def test_it_constructs_without_a_configuration(agent_type):
    agent = AgentFactory.create_agent(agent_type, URL, TOKEN)

    assert agent.config == type(agent).config_class()


def test_constructing_and_planning_touch_no_file(agent_type, tmp_path):
    agent = make(agent_type, CONFIG | {"state_dir": str(tmp_path / "state")})
    agent.get_deployment_command()
    agent.get_uninstall_command()
    agent.get_instructions()

    assert list(tmp_path.iterdir()) == []


def test_the_command_carries_url_token_and_configuration(agent_type):
    command = make(agent_type).get_deployment_command()

    words = shlex.split(command)
    assert any(URL in word for word in words)
    assert any(TOKEN in word for word in words)
    assert any("debug" in word for word in words)
    assert any("payments" in word for word in words)


def test_the_command_quotes_what_a_shell_would_read(agent_type):
    words = shlex.split(make(agent_type, {"labels": {"note": SHELL_SPECIAL}}).get_deployment_command())

    # Braces, commas and equals signs may be escaped for whoever reads the value next; the shell must not have read any of it.
    assert any('it\'s $HOME; `id` "x" & ' in word for word in words)


def test_the_command_is_the_same_every_time_and_depends_on_nothing_else(agent_type, monkeypatch):
    config = copy.deepcopy(CONFIG)
    agent = make(agent_type, config)
    first = agent.get_deployment_command()
    monkeypatch.setenv("LOG_LEVEL", "error")
    monkeypatch.setenv("PATH", "")

    assert agent.get_deployment_command() == first
    assert make(agent_type, config).get_deployment_command() == first
    assert config == CONFIG


def test_an_unknown_option_is_refused_by_its_name(agent_type):
    with pytest.raises(ConfigError, match="no_such_option") as caught:
        make(agent_type, {"no_such_option": 1})
    assert caught.value.field == "no_such_option"


@pytest.mark.parametrize(
    ("option", "value"),
    [("log_level", "loud"), ("collect_interval", "often"), ("collect_interval", 0), ("labels", "a=b"), ("labels", {"a": 1})],
)
def test_an_option_of_the_wrong_kind_is_refused_by_its_name(agent_type, option, value):
    with pytest.raises(ConfigError, match=option) as caught:
        make(agent_type, {option: value})
    assert str(caught.value.field).startswith(option)


@pytest.mark.parametrize("url", ["", "platform", "ftp://x", "http://", "http://u:p@x", "http://x/?q", "http://x y", "http://x:port"])
def test_what_is_no_platform_url_is_refused(agent_type, url):
    with pytest.raises(ConfigError) as caught:
        AgentFactory.create_agent(agent_type, url, TOKEN)
    assert caught.value.field == "platform_url"


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "\u00e9"])
def test_what_is_no_token_is_refused_without_being_shown(agent_type, token):
    with pytest.raises(ConfigError) as caught:
        AgentFactory.create_agent(agent_type, URL, token)
    assert caught.value.field == "agent_token"
    assert not token or token not in caught.value.reason


def test_every_option_has_a_description_in_the_published_schema(agent_type):
    adapter = TypeAdapter(AgentFactory.agent_class(agent_type).config_class)

    schema = adapter.json_schema()

    assert schema["additionalProperties"] is False
    assert schema["properties"].keys() == AgentFactory.agent_class(agent_type).config_class.options().keys()
    for name, published in schema["properties"].items():
        assert published.get("description", "").strip().endswith("."), name
        assert "default" in published or name == "labels" or published["type"] in ("object", "array"), name
    json.dumps(schema)


def test_the_schema_and_the_agent_refuse_the_same(agent_type):
    adapter = TypeAdapter(AgentFactory.agent_class(agent_type).config_class)

    assert adapter.validate_python(CONFIG) == make(agent_type).config
    for wrong in ({"no_such_option": 1}, {"log_level": "loud"}, {"collect_interval": 0}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)


def test_runtime_options_survive_the_way_through_the_environment(agent_type):
    config_class = AgentFactory.agent_class(agent_type).config_class
    config = config_class.from_mapping(CONFIG | {"collect_interval": 2.5, "spool_max_bytes": 2_000_000})

    assert config_class.from_environment(config.environment()) == config


def test_the_token_does_not_show(agent_type):
    agent = make(agent_type)

    assert TOKEN not in repr(agent)
    assert TOKEN not in str(agent)
    assert TOKEN not in f"{vars(agent)}"


def test_the_instructions_are_numbered_steps_without_the_token(agent_type):
    instructions = make(agent_type).get_instructions()

    numbers = re.findall(r"^(\d+)\. \S", instructions, flags=re.MULTILINE)
    assert numbers == [str(n) for n in range(1, len(numbers) + 1)]
    assert len(numbers) >= 2
    assert TOKEN not in instructions


def test_the_uninstall_command_is_there_and_holds_no_token(agent_type):
    command = make(agent_type).get_uninstall_command()

    assert shlex.split(command)
    assert TOKEN not in command


@pytest.mark.parametrize("action", ["start", "stop"])
def test_control_without_its_tool_says_so(agent_type, action, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises((ToolMissingError, RuntimeUnavailableError)) as caught:
        getattr(make(agent_type), action)()

    assert isinstance(caught.value, ControlError)
    assert caught.value.reason
    assert TOKEN not in caught.value.reason


def test_the_kinds_of_control_failure_can_be_told_apart(agent_type):
    kinds = [ToolMissingError, PermissionRefusedError, NotDeployedError, RuntimeUnavailableError]

    assert len({kind.code for kind in kinds}) == len(kinds)
    assert [kind for kind in kinds if kind.retryable] == [RuntimeUnavailableError]
    documented = inspect.getdoc(AgentFactory.agent_class(agent_type).start) or ""
    assert "Raises:" in documented


def test_a_runtime_that_is_not_there_degrades_collectors_and_not_the_agent(agent_type, monkeypatch):
    agent = make(agent_type)

    collection = agent.collect_metrics()

    assert isinstance(collection, Collection)
    assert collection.collectors
    assert all(result.ok or result.reason.strip() for result in collection.collectors)
    assert len({result.name for result in collection.collectors}) == len(collection.collectors)
    assert encode_metrics(collection)
    names = {metric.name for gathered in collection.resources for metric in gathered.metrics}
    assert {"irca.collector.duration", "irca.collector.success"} <= names
    if agent_type in ("docker", "kubernetes"):
        assert not any(result.ok for result in collection.collectors)


def test_what_it_runs_on_is_told_without_a_runtime(agent_type):
    resource = make(agent_type).resource()

    assert all(isinstance(key, str) and value not in ("", None) for key, value in resource.items())


def test_the_preflight_checks_have_names_and_findings(agent_type):
    checks = make(agent_type).preflight()

    assert all(isinstance(check, Check) for check in checks)
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    for check in checks:
        assert set(check.needs) <= set(names)
    for result in run_checks(checks):
        assert result.detail
        assert "Report this; the check itself failed." not in result.advice
        assert TOKEN not in result.detail + result.advice


def test_the_readme_has_the_same_sections_as_every_other_type(agent_type):
    module = inspect.getfile(AgentFactory.agent_class(agent_type))
    readme = Path(module).with_name("README.md").read_text(encoding="utf-8")

    assert readme.startswith("# ")
    assert re.findall(r"^## (.+)$", readme, flags=re.MULTILINE) == SECTIONS
    assert "docs/reference" in readme
    assert not re.search(r"\bTODO\b|\bTBD\b", readme)


def test_the_drawers_of_its_folder_are_the_usual_ones(agent_type):
    folder = Path(inspect.getfile(AgentFactory.agent_class(agent_type))).parent

    assert {"config.py", "command.py", "control.py", "collect.py", "README.md"} <= {path.name for path in folder.iterdir()}
