"""Control of the kubernetes agent with the real helm and a real cluster: installing, removing, and every way in which that fails."""

from __future__ import annotations

import functools
import http.server
import json
import os
import signal
import subprocess
import threading
import uuid
from pathlib import Path

import pytest
from waiting import eventually

from app.api.chart_repository import ChartRepository
from connectors.agent_factory import AgentFactory
from connectors.core.errors import ControlError, NotDeployedError, PermissionRefusedError
from connectors.kubernetes.chart_package import own_package
from connectors.kubernetes.k8s_agent import K8sAgent

pytestmark = [pytest.mark.requires("kubernetes", "helm"), pytest.mark.timeout(240)]
TOKEN = "agent_prod-cluster_s3cr3t{a,b}$HOME'"


def kubectl(*arguments: str, document: object = None, check: bool = True) -> str:
    given = None if document is None else json.dumps(document)
    done = subprocess.run(["kubectl", *arguments], input=given, capture_output=True, text=True, timeout=60, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def namespace():
    name = f"kh-control-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "clusterrole,clusterrolebinding", f"{name}:incident-rca-agent", f"{name}:caller", "--ignore-not-found")
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A platform of which the chart repository is there, with the chart as it is served."""
    charts = tmp_path / "www" / "charts"
    charts.mkdir(parents=True)
    (charts / "index.yaml").write_bytes(ChartRepository(tmp_path / "none").index())
    (charts / own_package().file).write_bytes(own_package().content)
    for word in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"HELM_{word}_HOME", str(tmp_path / "helm" / word.lower()))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "www"))) as server:
        thread = threading.Thread(target=server.serve_forever, name="platform")
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def agent(namespace, repository):
    """Makes agents of the namespace; their image is on no node, so that no pod runs."""

    def make(**config) -> K8sAgent:
        made = AgentFactory.create_agent(
            "kubernetes", repository, TOKEN, {"namespace": namespace, "image": "incident-rca/agent:none", **config}
        )
        assert isinstance(made, K8sAgent)
        return made

    return make


def status(namespace: str) -> str:
    """The release's status, as helm tells it; empty where there is none."""
    done = subprocess.run(
        ["helm", "list", "--namespace", namespace, "--output", "json", "--failed", "--pending", "--deployed"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = json.loads(done.stdout)
    return str(found[0]["status"]) if found else ""


def objects(namespace: str) -> set[str]:
    kinds = "deployments,daemonsets,serviceaccounts,secrets,configmaps,roles,rolebindings,leases,poddisruptionbudgets"
    inside = kubectl("-n", namespace, "get", kinds, "-o", "name").split()
    outside = kubectl("get", "clusterroles,clusterrolebindings", "-o", "name").split()
    return {name for name in inside if not name.endswith("/default") and "token-" not in name and "kube-root-ca" not in name} | {
        name for name in outside if namespace in name
    }


def test_start_installs_start_again_changes_it_in_place_and_stop_leaves_nothing(agent, namespace):
    with pytest.raises(NotDeployedError):
        agent().stop()

    agent().start()
    agent(replicas=2, log_level="debug").start()

    made = json.loads(kubectl("-n", namespace, "get", "deployment", "incident-rca-agent", "-o", "json"))
    assert made["spec"]["replicas"] == 2
    [container] = made["spec"]["template"]["spec"]["containers"]
    assert {"name": "LOG_LEVEL", "value": "debug"} in container["env"]
    token = kubectl("-n", namespace, "get", "secret", "incident-rca-agent-token", "-o", "go-template={{.data.token | base64decode}}")
    assert token == TOKEN
    assert status(namespace) == "deployed"

    agent().stop()
    eventually(lambda: not objects(namespace))
    with pytest.raises(NotDeployedError):
        agent().stop()


def test_a_release_that_failed_is_installed_over(agent, namespace):
    command = agent().get_deployment_command().replace("--timeout 3m", "--timeout 2s")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "not ready" in done.stderr
    assert status(namespace) == "failed"

    agent().start()

    assert status(namespace) == "deployed"
    agent().stop()


def test_an_install_that_was_broken_off_locks_the_release_and_the_way_out_is_said(agent, namespace):
    process = subprocess.Popen(["bash", "-c", agent().get_deployment_command()], stdout=subprocess.DEVNULL, start_new_session=True)
    eventually(lambda: status(namespace) == "pending-install")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)

    with pytest.raises(ControlError, match="locked by another helm operation") as caught:
        agent().start()
    assert "helm uninstall" in caught.value.reason

    agent().stop()
    agent().start()
    agent().stop()


def test_an_object_in_the_way_is_named(agent, namespace):
    kubectl("-n", namespace, "create", "serviceaccount", "incident-rca-agent")

    with pytest.raises(ControlError, match='ServiceAccount "incident-rca-agent" is there already and belongs to another'):
        agent().start()


@pytest.fixture
def as_caller(namespace, tmp_path, monkeypatch):
    """Makes KUBECONFIG that of an account that may do what it is given, and everything within the namespace."""
    original = os.environ["KUBECONFIG"]

    def become(*rules: dict[str, list[str]]) -> None:
        kubectl("-n", namespace, "create", "serviceaccount", "caller")
        kubectl("-n", namespace, "create", "rolebinding", "caller", "--clusterrole=cluster-admin", f"--serviceaccount={namespace}:caller")
        role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": f"{namespace}:caller"}}
        kubectl("apply", "-f", "-", document={**role, "rules": list(rules)})
        kubectl(
            "create",
            "clusterrolebinding",
            f"{namespace}:caller",
            f"--clusterrole={namespace}:caller",
            f"--serviceaccount={namespace}:caller",
        )
        config = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
        config["users"][0]["user"] = {"token": kubectl("-n", namespace, "create", "token", "caller")}
        path = Path(tmp_path / "kubeconfig")
        path.write_text(json.dumps(config))
        path.chmod(0o600)
        monkeypatch.setenv("KUBECONFIG", str(path))

    yield become
    monkeypatch.setenv("KUBECONFIG", original)


_ALL_BUT_ESCALATE = ["get", "list", "watch", "create", "update", "patch", "delete"]
NAMESPACES = {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get", "create"]}
ROLES = {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles", "clusterrolebindings"], "verbs": _ALL_BUT_ESCALATE}


def test_who_may_not_make_cluster_roles_is_told_the_verb_and_the_resource(agent, namespace, as_caller):
    as_caller(NAMESPACES)

    with pytest.raises(
        PermissionRefusedError, match=rf"forbids system:serviceaccount:{namespace}:caller to (get|create|patch) clusterroles"
    ):
        agent().start()


def test_who_would_hand_out_rights_that_they_lack_is_told_which(agent, namespace, as_caller):
    as_caller(NAMESPACES, ROLES)

    with pytest.raises(PermissionRefusedError, match=r"to give the agent rights that \S+ does not have: .*configmaps") as caught:
        agent().start()
    assert TOKEN not in caught.value.reason


def test_a_platform_without_the_chart_is_told(agent, tmp_path):
    (tmp_path / "www" / "charts" / "index.yaml").write_text("apiVersion: v1\nentries: {}\n")

    with pytest.raises(ControlError, match='chart "incident-rca-agent"'):
        agent().start()
