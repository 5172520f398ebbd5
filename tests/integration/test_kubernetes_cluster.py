"""The kubernetes agent type against a real cluster. ``IRCA_TEST_BASE_IMAGE`` names an image that its nodes have, with a shell and sleep."""

from __future__ import annotations

import functools
import http.server
import json
import os
import subprocess
import threading
import uuid
from pathlib import Path

import pytest
from integration.kube_accounts import Account
from waiting import eventually

from connectors.agent_factory import AgentFactory
from connectors.core.errors import ControlError, NotDeployedError, PermissionRefusedError, RuntimeUnavailableError
from connectors.core.preflight import Outcome, run_checks
from connectors.kubernetes.access import Access, needed
from connectors.kubernetes.config import K8sAgentConfig
from connectors.kubernetes.k8s_agent import K8sAgent

IMAGE = os.environ.get("IRCA_TEST_BASE_IMAGE", "")
SECRET = "agent_prod-cluster_s3cr3t{a,b}$HOME'"

pytestmark = [
    pytest.mark.requires("kubernetes", "base-image", "kubectl"),
]


def kubectl(*arguments: str, document: object = None) -> str:
    given = None if document is None else json.dumps(document)
    done = subprocess.run(["kubectl", *arguments], input=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def apply(namespace: str, kind: str, name: str, api: str = "v1", **rest: object) -> None:
    document = {"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": namespace}, **rest}
    kubectl("apply", "-f", "-", document=document)


@pytest.fixture
def namespace():
    name = f"irca-test-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


_made: list[K8sAgent] = []


def agent(url="https://platform.example.com", **config):
    _made.append(AgentFactory.create_agent("kubernetes", url, SECRET, config))
    return _made[-1]


@pytest.fixture(autouse=True)
def closed():
    """An agent keeps its connection for as long as it lives; here that is the test."""
    yield
    for made in _made:
        made.close()
    _made.clear()


def values(collection, **wanted):
    """The values of the resource with these attributes (``k8s_pod_name`` is ``k8s.pod.name``) and fewest others.

    What an object owns carries its name, too.
    """
    wanted = {key.replace("_", "."): value for key, value in wanted.items()}
    found = sorted((r for r in collection.resources if wanted.items() <= r.resource.items()), key=lambda r: len(r.resource))
    metrics = found[0].metrics if found else ()
    return {"|".join([m.name, *map(str, p.attributes.values())]): p.value for m in metrics for p in m.points}


def outcome(collection):
    return {result.name: result.reason for result in collection.collectors}


def pod_spec(command: str) -> dict[str, object]:
    container = {"name": "app", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", command]}
    return {"terminationGracePeriodSeconds": 0, "containers": [container]}


def test_a_real_cluster_is_measured(namespace):
    apply(namespace, "ResourceQuota", "team", spec={"hard": {"pods": "7", "count/configmaps": "20"}})
    labels = {"app": "web"}
    template = {"metadata": {"labels": labels}, "spec": pod_spec("sleep 600")}
    apply(namespace, "Deployment", "web", "apps/v1", spec={"replicas": 2, "selector": {"matchLabels": labels}, "template": template})
    apply(namespace, "Pod", "crash", spec=pod_spec("exit 3"))
    apply(namespace, "Pod", "done", spec={**pod_spec("exit 0"), "restartPolicy": "Never"})
    apply(namespace, "Pod", "unschedulable", spec={**pod_spec("sleep 1"), "nodeSelector": {"no": "such-node"}})
    made = agent(kube_page_size=2)
    here = {"k8s_namespace_name": namespace}

    eventually(lambda: values(made.collect_metrics(), **here, k8s_deployment_name="web").get("k8s.deployment.pod.available") == 2)
    crashed = {"k8s_pod_name": "crash", "k8s_container_name": "app"}
    eventually(lambda: values(made.collect_metrics(), **here, **crashed).get("k8s.container.restart.count", 0) >= 1)
    eventually(lambda: values(made.collect_metrics(), **here, **crashed).get("k8s.container.ready") == 0)
    eventually(lambda: values(made.collect_metrics(), **here, k8s_pod_name="done").get("k8s.pod.status.phase|Succeeded") == 1)
    collection = made.collect_metrics()

    assert set(outcome(collection).values()) == {""}
    assert values(collection, **here, k8s_deployment_name="web")["k8s.deployment.pod.desired"] == 2
    assert values(collection, **here, k8s_pod_name="unschedulable")["k8s.pod.status.phase|Pending"] == 1
    team = eventually(lambda: values(made.collect_metrics(), **here, k8s_resourcequota_name="team"))
    assert team["k8s.resourcequota.object_count.hard|pods"] == 7
    assert team["k8s.resourcequota.object_count.hard|count/configmaps"] == 20
    [node] = [r for r in collection.resources if r.resource.keys() == {"k8s.node.uid", "k8s.node.name"}]
    found = values(collection, k8s_node_name=node.resource["k8s.node.name"], k8s_node_uid=node.resource["k8s.node.uid"])
    assert found["k8s.node.condition.status|Ready|true"] == 1
    assert found["k8s.node.cpu.allocatable"] >= 1
    assert made.resource()["k8s.cluster.uid"] == kubectl("get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}")


@pytest.fixture
def as_account(namespace, tmp_path, monkeypatch):
    """Makes KUBECONFIG that of a service account which may do what it is given, and nothing else."""
    account = Account(namespace, tmp_path, os.environ["KUBECONFIG"])

    def become(*allowed: Access) -> None:
        account.allow(*allowed)
        monkeypatch.setenv("KUBECONFIG", str(account.kubeconfig))

    yield become
    account.remove()


def test_the_documented_rights_are_enough(as_account):
    as_account(*needed(K8sAgentConfig()))

    made = agent()

    assert set(outcome(made.collect_metrics()).values()) == {""}
    assert made.resource()["k8s.cluster.uid"]
    assert {r.outcome for r in run_checks(made.preflight())} == {Outcome.PASS}


def test_a_missing_right_degrades_its_collector_alone_and_is_named(as_account):
    as_account(*(access for access in needed(K8sAgentConfig()) if access.resource != "deployments"))

    made = agent()
    reasons = outcome(made.collect_metrics())

    assert reasons.pop("kubernetes.deployments") == "forbidden: the agent's role lacks verb list on resource deployments (API group apps)"
    assert set(reasons.values()) == {""}
    [failed] = [r for r in run_checks(made.preflight()) if r.outcome is not Outcome.PASS]
    assert failed.name == "kubernetes.rbac.deployments"


def test_credentials_that_are_not_accepted_are_told(tmp_path, monkeypatch):
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    config["users"][0]["user"] = {"token": "wrong"}
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))

    reasons = outcome(agent().collect_metrics())

    assert all("does not accept the agent's credentials" in reason for reason in reasons.values() if reason)
    assert reasons["kubernetes.pods"]


def test_an_api_server_that_is_away_degrades_every_collector(tmp_path, monkeypatch, free_port):
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{free_port}"
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    original = os.environ["KUBECONFIG"]
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    made = agent()

    away = outcome(made.collect_metrics())
    monkeypatch.setenv("KUBECONFIG", original)

    assert all("cannot be reached" in reason for name, reason in away.items() if name != "kubernetes.watches")
    assert set(outcome(made.collect_metrics()).values()) == {""}


@pytest.fixture
def platform(tmp_path, monkeypatch):
    """A platform of which only the chart repository is there, with a chart that keeps its values in a ConfigMap."""
    chart = tmp_path / "chart"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: incident-rca-agent\nversion: 0.0.1\n")
    (chart / "templates" / "values.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: values}\ndata: {values: {{ .Values | toJson | quote }}}\n"
    )
    charts = tmp_path / "www" / "charts"
    charts.mkdir(parents=True)
    for variable in ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    subprocess.run(["helm", "package", str(chart), "-d", str(charts)], check=True, capture_output=True, timeout=60)
    subprocess.run(["helm", "repo", "index", str(charts)], check=True, capture_output=True, timeout=60)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "www"))) as server:
        thread = threading.Thread(target=server.serve_forever, name="platform")
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def installed_values(namespace: str) -> dict[str, object]:
    return dict(json.loads(kubectl("-n", namespace, "get", "configmap", "values", "-o", "jsonpath={.data.values}")))


@pytest.mark.requires("helm")
def test_start_installs_and_stop_removes_the_release(namespace, platform):
    made = agent(platform, namespace=namespace, replicas=2, labels={"a": "b,c"})
    with pytest.raises(NotDeployedError, match="no such release"):
        made.stop()

    made.start()
    made.start()

    assert installed_values(namespace) == {
        "platformUrl": platform,
        "token": SECRET,
        "replicas": 2,
        "config": {"labels": "a=b\\,c"},
    }
    made.stop()
    assert "values" not in kubectl("-n", namespace, "get", "configmap", "-o", "name").split("/")
    with pytest.raises(NotDeployedError):
        made.stop()


@pytest.mark.requires("helm")
def test_the_printed_commands_install_and_remove_the_release(namespace, platform):
    made = agent(platform, namespace=namespace, replicas=3, log_level="debug", labels={"note": "it's {x,y}"})

    subprocess.run(["bash", "-c", made.get_deployment_command()], check=True, capture_output=True, timeout=120)

    found = installed_values(namespace)
    assert (found["token"], found["replicas"], found["platformUrl"]) == (SECRET, 3, platform)
    config = type(made.config).from_environment({key.upper(): value for key, value in found["config"].items()})
    assert (config.log_level, config.labels) == ("debug", {"note": "it's {x,y}"})
    subprocess.run(["bash", "-c", made.get_uninstall_command()], check=True, capture_output=True, timeout=120)
    assert "release=" not in kubectl("-n", namespace, "get", "secret", "-o", "name")


@pytest.mark.requires("helm")
def test_what_the_cluster_forbids_helm_is_named(namespace, platform, as_account):
    as_account(*needed(K8sAgentConfig()))

    with pytest.raises(PermissionRefusedError, match=r"forbids system:serviceaccount:\S+ to list secrets"):
        agent(platform, namespace=namespace).start()


@pytest.mark.requires("helm")
def test_a_platform_without_a_chart_repository_is_told(namespace, free_port):
    with pytest.raises(ControlError) as caught:
        agent(f"http://127.0.0.1:{free_port}", namespace=namespace).start()
    assert "chart" in caught.value.reason
    assert SECRET not in caught.value.reason


@pytest.mark.requires("helm")
def test_helm_without_a_cluster_is_unavailable(tmp_path, monkeypatch, free_port):
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{free_port}"
    path = Path(tmp_path / "kubeconfig")
    path.write_text(json.dumps(config))
    path.chmod(0o600)
    monkeypatch.setenv("KUBECONFIG", str(path))

    with pytest.raises(RuntimeUnavailableError, match="no Kubernetes cluster answers"):
        agent().stop()
