"""K8sAgent: command, configuration, control and preflight. Control runs a stub for helm as a real process."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from connectors.agent_factory import AgentFactory
from connectors.core.errors import (
    ConfigError,
    ControlError,
    MissingExtraError,
    NotDeployedError,
    PermissionRefusedError,
    RuntimeUnavailableError,
    ToolMissingError,
)
from connectors.core.preflight import Outcome, run_checks
from connectors.kubernetes import control

TOKEN = "agent_prod_s3cr3t"


def agent(**config):
    return AgentFactory.create_agent("kubernetes", "https://platform.example.com", TOKEN, config)


@pytest.fixture
def helm(tmp_path, monkeypatch):
    """A helm on the path that records how it was called, prints ``says`` and ends with ``code``."""
    stub = HelmStub(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return stub


class HelmStub:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.answer("", 0)

    def answer(self, says: str, code: int = 1, *, before: str = "") -> None:
        (self._directory / "says").write_text(says)
        script = self._directory / "helm"
        script.write_text(
            f"#!/bin/sh\n{before}\nprintf '%s\\n' \"$@\" >'{self._directory}/argv'\ncat >'{self._directory}/stdin'\n"
            f"cat '{self._directory}/says' >&2\nexit {code}\n"
        )
        script.chmod(0o755)

    @property
    def argv(self) -> list[str]:
        return (self._directory / "argv").read_text().splitlines()

    @property
    def stdin(self) -> str:
        return (self._directory / "stdin").read_text()


def test_the_command_is_as_the_specification_promises():
    made = agent(namespace="monitoring", replicas=2)

    command = made.get_deployment_command()

    assert command.startswith("helm repo add incident-rca https://platform.example.com/charts")
    flat = " ".join(command.replace("\\\n", " ").split())
    assert "helm upgrade --install incident-rca incident-rca/incident-rca-agent --namespace monitoring --create-namespace" in flat
    assert f"--set-string platformUrl=https://platform.example.com --set-string token={TOKEN} --set replicas=2" in flat


def test_runtime_options_are_forwarded_and_deployment_options_are_not():
    words = shlex.split(agent(log_level="debug", collect_interval=30, labels={"a": "b"}, release_name="rca").get_deployment_command())

    assert "config.log_level=debug" in words
    assert "config.collect_interval=30" in words
    assert "config.labels=a=b" in words
    assert "rca" in words
    assert not [word for word in words if word.startswith(("config.release_name", "config.replicas"))]


def test_a_token_in_a_secret_stays_out_of_the_command():
    made = agent(existing_secret="rca-token", namespace="ops")

    assert TOKEN not in made.get_deployment_command()
    assert "existingSecret=rca-token" in shlex.split(made.get_deployment_command())
    assert "kubectl --namespace ops create secret generic rca-token --from-file=token=FILE" in made.get_instructions()


def test_the_instructions_say_that_the_chart_is_not_served_yet():
    assert "does not serve it yet" in agent().get_instructions()


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"namespace": "Monitoring"}, "namespace"),
        ({"namespace": "-a"}, "namespace"),
        ({"namespace": "a" * 64}, "namespace"),
        ({"namespace": ""}, "namespace"),
        ({"release_name": "a_b"}, "release_name"),
        ({"release_name": "a" * 54}, "release_name"),
        ({"replicas": 0}, "replicas"),
        ({"replicas": 1.5}, "replicas"),
        ({"replicas": True}, "replicas"),
        ({"existing_secret": "a/b"}, "existing_secret"),
        ({"kube_page_size": 0}, "kube_page_size"),
    ],
)
def test_an_option_that_cannot_work_is_refused_by_its_name(config, field):
    with pytest.raises(ConfigError) as caught:
        agent(**config)
    assert caught.value.field == field


def test_start_installs_the_release_and_keeps_the_token_off_the_command_line(helm):
    agent(namespace="monitoring", replicas=2, log_level="debug").start()

    assert helm.argv == [
        *("upgrade", "--install", "incident-rca", "incident-rca-agent", "--repo", "https://platform.example.com/charts"),
        *("--namespace", "monitoring", "--create-namespace", "--values", "-"),
    ]
    assert json.loads(helm.stdin) == {
        "platformUrl": "https://platform.example.com",
        "token": TOKEN,
        "replicas": 2,
        "config": {"log_level": "debug"},
    }


def test_stop_uninstalls_the_release(helm):
    agent(namespace="monitoring", release_name="rca").stop()

    assert helm.argv == ["uninstall", "rca", "--namespace", "monitoring"]
    assert TOKEN not in helm.stdin


@pytest.mark.parametrize(
    ("says", "expected", "reason"),
    [
        ("Error: uninstall: Release not loaded: incident-rca: release: not found", NotDeployedError, "no such release"),
        (
            "Error: Kubernetes cluster unreachable: Get ...: connect: connection refused",
            RuntimeUnavailableError,
            "no Kubernetes cluster answers",
        ),
        ("Error: dial tcp: lookup box: no such host", RuntimeUnavailableError, "no such host"),
        (
            'Error: query: failed: secrets is forbidden: User "jane" cannot list resource "secrets" in API group "" in the namespace "ops"',
            PermissionRefusedError,
            "forbids jane to list secrets in the namespace ops",
        ),
        (
            'Error: x is forbidden: User "jane" cannot create resource "clusterroles" in API group "rbac.example" at the cluster scope',
            PermissionRefusedError,
            r"create clusterroles \(API group rbac.example\) in the whole cluster",
        ),
        ("Error: the server has asked for the client to provide credentials", PermissionRefusedError, "credentials"),
        ('Error: looks like "https://p/charts" is not a valid chart repository', ControlError, "does not serve its chart repository"),
        ("Error: another operation (install/upgrade/rollback) is in progress", ControlError, "locked"),
        ("Error: something else", ControlError, "helm uninstall failed: something else"),
        ("", ControlError, "it said nothing"),
    ],
)
def test_what_helm_says_is_told_apart(helm, says, expected, reason):
    helm.answer(says)

    with pytest.raises(expected, match=reason) as caught:
        agent().stop()
    assert type(caught.value) is expected


def test_a_failure_that_quotes_the_values_does_not_show_the_token(helm):
    helm.answer(f"Error: template: token: {TOKEN}: bad")

    with pytest.raises(ControlError) as caught:
        agent().start()

    assert TOKEN not in caught.value.reason
    assert "**********" in caught.value.reason


def test_helm_that_hangs_is_given_up(helm):
    helm.answer("", 0, before="exec sleep 60")

    with pytest.raises(RuntimeUnavailableError, match=r"helm uninstall did not end within 0\.3 s"):
        control.stop(agent().config, timeout=0.3)


def test_helm_that_cannot_be_run_is_a_missing_tool(helm, tmp_path):
    (tmp_path / "helm").write_text("#!/no/such/interpreter\n")

    with pytest.raises(ToolMissingError, match="cannot be run"):
        agent().stop()


def test_no_helm_is_a_missing_tool(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ToolMissingError, match="helm is not installed"):
        agent().start()


def test_preflight_without_a_cluster_says_so_and_skips_the_rest(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))

    results = run_checks(agent().preflight())

    assert [r.name for r in results] == [
        "kubernetes.api",
        "kubernetes.rbac.pods",
        "kubernetes.rbac.nodes",
        "kubernetes.rbac.resourcequotas",
        "kubernetes.rbac.deployments",
        "kubernetes.rbac.namespaces",
    ]
    assert results[0].outcome is Outcome.FAIL
    assert "no Kubernetes cluster is configured here" in results[0].detail
    assert {r.outcome for r in results[1:]} == {Outcome.SKIP}


def test_what_the_chart_says_about_the_pod_is_the_resource(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("POD_NAME", "agent-0")
    monkeypatch.setenv("NODE_NAME", "node-1")

    assert agent().resource() == {"k8s.pod.name": "agent-0", "k8s.node.name": "node-1"}


def test_without_lightkube_only_the_runtime_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "connectors.kubernetes.cluster", None)

    assert agent().get_deployment_command().startswith("helm repo add")
    with pytest.raises(MissingExtraError, match=r"incident-rca\[kubernetes\]"):
        agent().collect_metrics()
    assert "incident-rca[kubernetes]" in run_checks(agent().preflight())[0].detail
