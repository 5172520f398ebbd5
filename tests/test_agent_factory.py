"""AgentFactory and its table."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

from connectors.agent_factory import AgentFactory
from connectors.core.base_agent import BaseAgent
from connectors.core.errors import (
    AgentTypeConflictError,
    ConfigError,
    IncompleteAgentError,
    MissingExtraError,
    UnknownAgentTypeError,
)
from connectors.core.telemetry import Collection
from connectors.docker.docker_agent import DockerAgent
from connectors.kubernetes.k8s_agent import K8sAgent


class ThirdPartyAgent(BaseAgent):
    agent_type = "third-party"

    def start(self): ...

    def stop(self): ...

    def get_deployment_command(self):
        return "true"

    def _gather_data(self):
        return Collection(0, [])


class HalfAgent(BaseAgent):
    def start(self): ...


@pytest.fixture
def table(monkeypatch):
    """The factory with a table of its own, which the test may change."""
    monkeypatch.setattr(AgentFactory, "_types", dict(AgentFactory._types))
    return AgentFactory


@pytest.mark.parametrize(("agent_type", "expected"), [("docker", DockerAgent), ("kubernetes", K8sAgent)])
def test_a_type_is_made_by_its_name(agent_type, expected):
    agent = AgentFactory.create_agent(agent_type=agent_type, platform_url="http://localhost:8000", agent_token="token-123", config={})

    assert type(agent) is expected
    assert (agent.platform_url, agent.agent_token) == ("http://localhost:8000", "token-123")


def test_the_three_types_of_the_product_are_known():
    assert {"docker", "kubernetes", "server"} <= set(AgentFactory.supported_types())
    assert list(AgentFactory.supported_types()) == sorted(AgentFactory.supported_types())


@pytest.mark.parametrize("wrong", ["", "Docker", "mainframe", None, 7, ["docker"]])
def test_an_unknown_type_is_refused_with_the_known_ones(wrong):
    with pytest.raises(UnknownAgentTypeError, match=r"known types: docker, kubernetes, server") as caught:
        AgentFactory.create_agent(wrong, "http://localhost:8000", "t")
    assert caught.value.field == "agent_type"


def test_a_type_can_be_registered_used_and_removed(table):
    table.register("third-party", ThirdPartyAgent)

    assert "third-party" in table.supported_types()
    assert isinstance(table.create_agent("third-party", "http://localhost:8000", "t"), ThirdPartyAgent)
    table.unregister("third-party")
    assert "third-party" not in table.supported_types()
    with pytest.raises(UnknownAgentTypeError):
        table.unregister("third-party")


def test_a_type_can_be_registered_by_the_name_of_its_class(table):
    table.register("docker-too", "connectors.docker.docker_agent:DockerAgent")

    with pytest.raises(AgentTypeConflictError, match="says that it is 'docker', not 'docker-too'"):
        table.agent_class("docker-too")


def test_a_name_is_registered_once(table):
    with pytest.raises(AgentTypeConflictError, match="registered already"):
        table.register("docker", "connectors.docker.docker_agent:DockerAgent")
    assert table.agent_class("docker") is DockerAgent


@pytest.mark.parametrize("name", ["", "Third", "1st", "a b", "a_b", "a" * 33])
def test_a_name_is_lower_case_letters_digits_and_dashes(table, name):
    with pytest.raises(ConfigError, match="lower-case letters"):
        table.register(name, ThirdPartyAgent)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [(dict, "not a subclass"), (HalfAgent, "does not define"), (object(), "not a subclass"), (DockerAgent, "says that it is")],
)
def test_what_is_not_an_agent_of_that_name_is_refused(table, wrong, why):
    with pytest.raises(AgentTypeConflictError, match=why):
        table.register("third-party", wrong)


@pytest.mark.parametrize("path", ["connectors.nowhere:Agent", "connectors.docker.docker_agent:Nothing", "no_such_package:Agent"])
def test_a_row_that_names_nothing_is_reported(table, path):
    table.register("third-party", path)

    with pytest.raises(AgentTypeConflictError, match="does not exist"):
        table.create_agent("third-party", "http://localhost:8000", "t")


def test_a_missing_package_is_reported_with_the_extra_that_brings_it(table, tmp_path, monkeypatch):
    (tmp_path / "needy_agent.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    table.register("needy", "needy_agent:Agent")

    with pytest.raises(MissingExtraError, match=r"'a_package_that_nobody_has'.*incident-rca\[needy\]"):
        table.agent_class("needy")


def test_third_parties_add_types_by_entry_point(table, monkeypatch):
    entry = metadata.EntryPoint("from-afar", f"{__name__}:ThirdPartyAgent", "incident_rca.agent_types")
    monkeypatch.setattr(table, "_entry_points_read", False)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry])

    assert "from-afar" in table.supported_types()


def test_an_entry_point_cannot_take_a_name_that_is_taken(table, monkeypatch):
    entry = metadata.EntryPoint("docker", "elsewhere:Agent", "incident_rca.agent_types")
    monkeypatch.setattr(table, "_entry_points_read", False)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry])

    with pytest.raises(AgentTypeConflictError, match="elsewhere:Agent wants to be agent type 'docker'"):
        table.supported_types()


def test_an_incomplete_agent_says_what_it_lacks():
    with pytest.raises(IncompleteAgentError, match="_gather_data, get_deployment_command, stop"):
        HalfAgent("http://localhost:8000", "t")


@pytest.mark.parametrize(
    "module", ["connectors", "connectors.agent_factory", "connectors.docker.docker_agent", "connectors.kubernetes.k8s_agent"]
)
def test_planning_imports_neither_sdk_nor_platform(module):
    heavy = ("docker.api", "lightkube", "pydantic", "fastapi", "sqlalchemy", "httpx2", "requests")
    code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip() == "[]"
