"""K8sAgent: command, configuration, control and preflight. Control runs a stub for helm as a real process."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import threading
import types
from pathlib import Path

import pytest
from fake_platform import FakePlatform
from kube_api import kube_api

from connectors.agent_factory import AgentFactory
from connectors.core.errors import (
    CollectorError,
    ConfigError,
    ControlError,
    MissingExtraError,
    NotDeployedError,
    PermissionRefusedError,
    RuntimeUnavailableError,
    ToolMissingError,
)
from connectors.core.preflight import Outcome, run_checks
from connectors.core.secret import Secret
from connectors.kubernetes import control
from connectors.kubernetes.cluster import Cluster

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
    assert "create secret generic rca-token --from-file=token=/dev/stdin" in made.get_instructions()
    assert TOKEN not in made.get_instructions()


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

    results = run_checks(agent(features=["quotas"]).preflight())

    assert [r.name for r in results] == [
        "kubernetes.api",
        "kubernetes.rbac.namespaces",
        "kubernetes.rbac.nodes",
        "kubernetes.rbac.pods",
        "kubernetes.rbac.resourcequotas",
        "kubernetes.rbac.leases",
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
    with pytest.raises(CollectorError, match=r"incident-rca\[kubernetes\]"):
        agent().watch(lambda _event: None, threading.Event())


@pytest.fixture
def api():
    with kube_api() as served:
        yield served


@pytest.fixture
def in_cluster(api, monkeypatch, tmp_path):
    """Makes agents that run in the cluster of ``api``, as pods of these names."""
    monkeypatch.setenv("POD_NAMESPACE", "here")
    made = []

    def make(pod="agent-0", **config):
        monkeypatch.setenv("POD_NAME", pod)
        each = agent(state_dir=str(tmp_path / pod), collect_interval=1, **config)
        each._cluster = Cluster(timeout=2, configure=api.config)
        _ = each._elector  # who it is, it takes from its environment
        made.append(each)
        return each

    yield make
    for each in made:
        each.close()


@pytest.fixture
def reporting(monkeypatch):
    """What reporters of changes were told, as (kind, name, initial), and what each was made with."""
    told = []

    class Reporter:
        def __init__(self, view, config, cluster_resource, emit, *args, **more):
            told.append(("begin", cluster_resource().get("k8s.cluster.uid"), True))

        def __call__(self, kind, before, after, initial):
            told.append((kind, (after or before)["metadata"]["name"], initial))

        def tick(self, now): ...

        def close(self): ...

    module = types.ModuleType("connectors.kubernetes.changes")
    module.ChangeReporter = Reporter
    monkeypatch.setitem(sys.modules, "connectors.kubernetes.changes", module)
    return told


@contextlib.contextmanager
def watching(made):
    """The agent's watch runs, as it does in a running agent."""
    stopping = threading.Event()
    made._running = True
    thread = threading.Thread(target=made.watch, args=(lambda _event: None, stopping), name="watch")
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(10)
        assert not thread.is_alive()


def pods_in(collection):
    return {r.resource["k8s.pod.name"] for r in collection.resources if "k8s.pod.uid" in r.resource}


def put_pod(api, name):
    api.put("pods", name, spec={"containers": []}, status={"phase": "Running"})


@pytest.mark.sockets
def test_an_agent_that_collects_without_running_lists_once(api, in_cluster, tmp_path):
    put_pod(api, "web-1")
    made = in_cluster(features=["workloads"])
    assert pods_in(made.collect_metrics()) == {"web-1"}
    put_pod(api, "web-2")
    assert pods_in(made.collect_metrics()) == {"web-1", "web-2"}
    assert api.count("pods", "watch") == 0
    assert "leases" not in api.objects
    assert not list(tmp_path.iterdir())


@pytest.mark.sockets
def test_a_leader_collects_what_it_watches_and_a_pod_that_stands_by_is_healthy_and_collects_itself(api, in_cluster, reporting):
    put_pod(api, "web-1")
    first, second = in_cluster("agent-0", features=[]), in_cluster("agent-1", features=[])
    with watching(first):
        assert pods_in(first.collect_metrics()) == {"web-1"}
        with watching(second):
            standby = second.collect_metrics()
            assert pods_in(standby) == set()
            assert [(r.name, r.reason) for r in standby.collectors] == [("kubernetes.lease", "")]
        assert ("begin", "uid-of-the-cluster", True) in reporting
        assert all(r.ok for r in first.collect_metrics().collectors)
        assert api.count("pods", "list") == 1
    assert api.objects["leases"]["here", "incident-rca-agent"]["spec"]["holderIdentity"] == ""
    assert ("pods", "web-1", True) in reporting


@pytest.mark.sockets
def test_an_agent_that_may_not_have_the_lease_says_which_rule_it_lacks(api, in_cluster, reporting):
    api.faults["leases", "get"] = [403, "forbidden", -1]
    made = in_cluster(features=[])
    with watching(made):
        [result] = made.collect_metrics().collectors
    assert result.reason == "forbidden: the agent's role lacks verb get on resource leases (API group coordination.k8s.io)"


@pytest.mark.sockets
def test_the_right_that_is_missing_is_named_by_the_preflight(api, in_cluster):
    api.forbidden |= {("pods", "watch"), ("leases", "update")}
    results = {r.name: r for r in run_checks(in_cluster(features=[]).preflight())}
    assert results["kubernetes.api"].outcome is Outcome.PASS
    assert results["kubernetes.rbac.nodes"].detail == "list, watch nodes is allowed"
    assert results["kubernetes.rbac.pods"].detail == "watch pods is not allowed"
    assert results["kubernetes.rbac.pods"].advice == "Give the agent's ClusterRole verb watch on resource pods (API group core)."
    assert results["kubernetes.rbac.leases"].advice.startswith("Give the agent's Role verb update on resource leases")


@pytest.mark.sockets
def test_the_node_view_watches_nothing_and_asks_for_its_own_rights(api, in_cluster, monkeypatch):
    monkeypatch.setenv("NODE_NAME", "node-1")
    made = in_cluster(view="node")
    with watching(made):
        names = [r.name for r in run_checks(made.preflight())]
    assert names == [f"kubernetes.{n}" for n in ("api", "rbac.namespaces", "rbac.nodes", "rbac.nodes/stats")]
    assert made.resource() == {
        "k8s.cluster.uid": "uid-of-the-cluster",
        "k8s.node.uid": "uid-of-the-node",
        "k8s.pod.name": "agent-0",
        "k8s.namespace.name": "here",
        "k8s.node.name": "node-1",
    }
    assert "leases" not in api.objects


def test_a_pod_is_told_from_others_by_its_uid(monkeypatch):
    monkeypatch.setenv("POD_UID", "12-34")
    assert agent().machine_id() == "12-34"
    monkeypatch.delenv("POD_UID")
    assert agent().machine_id() == ""


def test_an_agent_that_opened_nothing_has_nothing_to_close():
    agent().close()


@pytest.mark.sockets
def test_a_running_agent_watches_sends_and_gives_its_lease_up(api, in_cluster, reporting):
    put_pod(api, "web-1")
    platform = FakePlatform()
    try:
        made = in_cluster(features=[], heartbeat_interval=5)
        made.platform_url = platform.url
        made._token = Secret("agent_test_token")
        stopping = threading.Event()
        thread = threading.Thread(target=made.run, args=(stopping,), name="agent")
        thread.start()
        platform.wait(lambda: platform.values("k8s.pod.phase") or platform.values("k8s.pod.status.phase"))
        stopping.set()
        thread.join(15)
        assert not thread.is_alive()
    finally:
        platform.down()
    assert api.objects["leases"]["here", "incident-rca-agent"]["spec"]["holderIdentity"] == ""
    assert not made._running
