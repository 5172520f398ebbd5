"""The kubernetes collectors, against an API server in miniature behind lightkube's own client."""

from __future__ import annotations

import functools
import json
import urllib.parse

import httpx2
import pytest
from lightkube import Client, KubeConfig
from lightkube.config.models import Cluster as ClusterEntry
from lightkube.config.models import User

from connectors.agent_factory import AgentFactory
from connectors.core.errors import ControlError, PermissionRefusedError, RuntimeUnavailableError
from connectors.core.preflight import Outcome, run_checks
from connectors.core.telemetry import encode_metrics
from connectors.kubernetes.access import NEEDED, Access
from connectors.kubernetes.cluster import Cluster
from connectors.kubernetes.quota import quantity, quota_metrics

PATHS = {
    "pods": "/api/v1/pods",
    "nodes": "/api/v1/nodes",
    "resourcequotas": "/api/v1/resourcequotas",
    "deployments": "/apis/apps/v1/deployments",
}


class ApiServer:
    """Lists by path, in pages of ``limit``; refuses and hangs to order."""

    def __init__(self) -> None:
        self.objects = {path: [] for path in PATHS.values()}
        self.fail = {}
        self.denied = set()
        self.requests = []

    def add(self, resource, name, namespace="", **rest):
        metadata = {"name": name, "uid": f"uid-{name}"} | ({"namespace": namespace} if namespace else {})
        self.objects[PATHS[resource]].append({"metadata": metadata, **rest})

    def __call__(self, request):
        path, query = request.url.path, dict(request.url.params)
        self.requests.append((request.method, path, query))
        failure = self.fail.get(path)
        if isinstance(failure, Exception):
            raise failure
        if failure:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": failure, "message": f"by order: {failure}"}
            return httpx2.Response(failure, json=status)
        if path == "/api/v1/namespaces/kube-system":
            return httpx2.Response(200, json={"metadata": {"name": "kube-system", "uid": "cluster-uid"}})
        if path.endswith("/selfsubjectaccessreviews"):
            asked = json.loads(request.content)["spec"]["resourceAttributes"]
            allowed = Access(asked["verb"], asked["group"], asked["resource"]) not in self.denied
            return httpx2.Response(201, json={"spec": {}, "status": {"allowed": allowed}})
        start, limit = int(query.get("continue", 0)), int(query["limit"])
        held = self.objects[path]
        metadata = {"resourceVersion": "1"} | ({"continue": str(start + limit)} if start + limit < len(held) else {})
        return httpx2.Response(200, json={"metadata": metadata, "items": held[start : start + limit]})


@pytest.fixture
def server():
    return ApiServer()


@pytest.fixture
def cluster(server):
    made = Cluster(page_size=2, connect=functools.partial(_client, server))
    yield made
    made.close()


def _client(server, timeout):
    config = KubeConfig.from_one(cluster=ClusterEntry(server="https://api.example.com:6443"), user=User(token="t"))
    return Client(config=config.get(), timeout=timeout, transport=httpx2.MockTransport(server))


@pytest.fixture
def agent(cluster):
    made = AgentFactory.create_agent("kubernetes", "https://platform.example.com", "t", {})
    made.__dict__["_cluster"] = cluster
    return made


def values(metrics):
    return {"|".join([m.name, *map(str, p.attributes.values())]): p.value for m in metrics for p in m.points}


def outcome(collection):
    return {result.name: result.reason for result in collection.collectors}


def gathered(collection, **names):
    """The values of the one resource of that name: ``k8s_node_name`` is ``k8s.node.name``, and a pod is not one of its containers."""
    [(key, name)] = ((key.replace("_", "."), name) for key, name in names.items())
    inner = "k8s.container.name"
    [metrics] = [r.metrics for r in collection.resources if r.resource.get(key) == name and (key == inner or inner not in r.resource)]
    return values(metrics)


POD = {
    "spec": {
        "nodeName": "node-1",
        "initContainers": [{"name": "migrate", "image": "app:1"}],
        "containers": [{"name": "app", "image": "app:1"}, {"name": "sidecar", "image": "proxy:2"}],
    },
    "status": {
        "phase": "Running",
        "startTime": "2026-01-01T00:00:00Z",
        "initContainerStatuses": [
            {"name": "migrate", "image": "app:1", "imageID": "", "ready": True, "restartCount": 0, "state": {"terminated": {"exitCode": 0}}}
        ],
        "containerStatuses": [
            {
                "name": "app",
                "image": "app:1",
                "imageID": "",
                "ready": False,
                "restartCount": 7,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            },
        ],
    },
}


def test_pods_are_told_by_phase_and_their_containers_by_restarts(server, agent):
    server.add("pods", "web-0", "shop", **POD)

    collection = agent.collect_metrics()

    pod = gathered(collection, k8s_pod_name="web-0")
    assert [pod[f"k8s.pod.status.phase|{p}"] for p in ("Pending", "Running", "Succeeded", "Failed", "Unknown")] == [0, 1, 0, 0, 0]
    assert pod["k8s.pod.uptime"] > 0
    app = gathered(collection, k8s_container_name="app")
    assert app["k8s.container.restart.count"] == 7
    assert app["k8s.container.ready"] == 0
    assert app["k8s.container.status.state|waiting"] == 1
    assert gathered(collection, k8s_container_name="migrate")["k8s.container.status.state|terminated"] == 1
    assert not [r for r in collection.resources if r.resource.get("k8s.container.name") == "sidecar"]
    [resource] = [r.resource for r in collection.resources if r.resource.get("k8s.container.name") == "app"]
    assert list(resource) == ["k8s.pod.uid", "k8s.pod.name", "k8s.namespace.name", "k8s.node.name", "k8s.container.name"]
    assert encode_metrics(collection)


def test_a_pod_that_is_not_scheduled_has_a_phase_and_nothing_else(server, agent):
    server.add("pods", "new", "shop", spec={"containers": [{"name": "app"}]}, status={"phase": "Pending"})
    server.add("pods", "bare", "shop", spec={"containers": []})

    collection = agent.collect_metrics()

    assert gathered(collection, k8s_pod_name="new")["k8s.pod.status.phase|Pending"] == 1
    assert "k8s.pod.uptime" not in gathered(collection, k8s_pod_name="new")
    assert gathered(collection, k8s_pod_name="bare")["k8s.pod.status.phase|Unknown"] == 1


def test_nodes_are_told_by_conditions_and_what_pods_may_use(server, agent):
    conditions = [{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "Unknown"}]
    allocatable = {"cpu": "1900m", "memory": "1Gi", "pods": "110", "ephemeral-storage": "odd"}
    server.add("nodes", "node-1", status={"conditions": conditions, "allocatable": allocatable})
    server.add("nodes", "node-2")

    collection = agent.collect_metrics()

    found = gathered(collection, k8s_node_name="node-1")
    assert [found[f"k8s.node.condition.status|Ready|{s}"] for s in ("true", "false", "unknown")] == [1, 0, 0]
    assert found["k8s.node.condition.status|DiskPressure|unknown"] == 1
    assert found["k8s.node.cpu.allocatable"] == 1.9
    assert found["k8s.node.memory.allocatable"] == 1024**3
    assert found["k8s.node.pod.allocatable"] == 110
    assert "k8s.node.ephemeral_storage.allocatable" not in found
    assert gathered(collection, k8s_node_name="node-2") == {}


def test_deployments_are_told_by_what_they_want_and_have(server, agent):
    template = {"selector": {}, "template": {}}
    server.add("deployments", "web", "shop", spec={"replicas": 3, **template}, status={"availableReplicas": 2})
    server.add("deployments", "none", "shop", spec={"replicas": 0, **template}, status={})
    server.add("deployments", "default", "shop", spec=template)

    collection = agent.collect_metrics()

    def of(name):
        found = gathered(collection, k8s_deployment_name=name)
        return found["k8s.deployment.pod.desired"], found["k8s.deployment.pod.available"]

    assert (of("web"), of("none"), of("default")) == ((3, 2), (0, 0), (1, 0))


def test_namespace_quotas_are_told_by_hard_and_used(server, agent):
    status = {"hard": {"requests.cpu": "4", "pods": "10"}, "used": {"requests.cpu": "500m", "pods": "3"}}
    server.add("resourcequotas", "team", "shop", status=status)
    server.add("resourcequotas", "fresh", "shop")

    collection = agent.collect_metrics()

    found = gathered(collection, k8s_resourcequota_name="team")
    assert found == {
        "k8s.resourcequota.cpu.request.hard": 4,
        "k8s.resourcequota.cpu.request.used": 0.5,
        "k8s.resourcequota.object_count.hard|pods": 10,
        "k8s.resourcequota.object_count.used|pods": 3,
    }
    assert gathered(collection, k8s_resourcequota_name="fresh") == {}


def test_every_kind_of_quota_has_its_name():
    hard = {
        "cpu": "1",
        "requests.cpu": "1",
        "limits.cpu": "2",
        "requests.memory": "1Gi",
        "limits.memory": "2Gi",
        "requests.ephemeral-storage": "1G",
        "limits.ephemeral-storage": "2G",
        "requests.storage": "5Gi",
        "gold.storageclass.storage.k8s.io/requests.storage": "3Gi",
        "persistentvolumeclaims": "4",
        "gold.storageclass.storage.k8s.io/persistentvolumeclaims": "2",
        "hugepages-2Mi": "8Mi",
        "requests.nvidia.com/gpu": "2",
        "count/deployments.apps": "9",
        "broken": "many",
    }

    metrics = quota_metrics(hard, {})

    assert values(metrics) == {
        "k8s.resourcequota.cpu.request.hard": 1,
        "k8s.resourcequota.cpu.limit.hard": 2,
        "k8s.resourcequota.memory.request.hard": 1024**3,
        "k8s.resourcequota.memory.limit.hard": 2 * 1024**3,
        "k8s.resourcequota.ephemeral_storage.request.hard": 1e9,
        "k8s.resourcequota.ephemeral_storage.limit.hard": 2e9,
        "k8s.resourcequota.storage.request.hard": 5 * 1024**3,
        "k8s.resourcequota.storage.request.hard|gold": 3 * 1024**3,
        "k8s.resourcequota.persistentvolumeclaim_count.hard": 4,
        "k8s.resourcequota.persistentvolumeclaim_count.hard|gold": 2,
        "k8s.resourcequota.hugepage_count.request.hard|2Mi": 4,
        "irca.k8s.resourcequota.extended_resource.hard|nvidia.com/gpu": 2,
        "k8s.resourcequota.object_count.hard|count/deployments.apps": 9,
    }
    assert [m.name for m in metrics] == sorted(m.name for m in metrics)


@pytest.mark.parametrize(
    ("text", "expected"), [("100m", 0.1), ("1.5Gi", 1.5 * 1024**3), ("1e3", 1000), ("", None), ("x", None), (None, None)]
)
def test_quantities_are_numbers(text, expected):
    assert quantity(text) == expected


def test_lists_are_read_page_by_page(server, agent):
    for number in range(5):
        server.add("nodes", f"node-{number}")

    collection = agent.collect_metrics()

    assert len([r for r in collection.resources if "k8s.node.name" in r.resource]) == 5
    pages = [query for _, path, query in server.requests if path == "/api/v1/nodes"]
    assert [page.get("continue") for page in pages] == [None, "2", "4"]
    assert {page["limit"] for page in pages} == {"2"}


def test_a_missing_right_degrades_one_collector_and_is_named(server, agent):
    server.add("nodes", "node-1")
    server.fail[PATHS["deployments"]] = 403

    collection = agent.collect_metrics()

    assert outcome(collection) == {
        "kubernetes.nodes": "",
        "kubernetes.pods": "",
        "kubernetes.deployments": "forbidden: the agent's role lacks verb list on resource deployments (API group apps)",
        "kubernetes.resourcequotas": "",
    }


def test_what_was_read_before_a_list_broke_off_is_kept(server, agent, monkeypatch):
    for number in range(4):
        server.add("nodes", f"node-{number}")
    original = ApiServer.__call__

    def breaks(self, request):
        if "continue" in dict(request.url.params):
            raise httpx2.ReadTimeout("too slow")
        return original(self, request)

    monkeypatch.setattr(ApiServer, "__call__", breaks)

    collection = agent.collect_metrics()

    assert len([r for r in collection.resources if "k8s.node.name" in r.resource]) == 2
    assert outcome(collection)["kubernetes.nodes"] == "the Kubernetes API server does not answer within 10 s"


@pytest.mark.parametrize(
    ("failure", "expected", "reason"),
    [
        (401, PermissionRefusedError, "does not accept the agent's credentials"),
        (403, PermissionRefusedError, r"verb get on resource namespaces \(API group core\)"),
        (503, RuntimeUnavailableError, "not available"),
        (500, ControlError, "answered 500: by order"),
        (httpx2.ConnectError("refused"), RuntimeUnavailableError, "cannot be reached: refused"),
        (httpx2.ConnectTimeout("slow"), RuntimeUnavailableError, "does not answer within"),
    ],
)
def test_what_the_api_server_refuses_is_told_apart(server, cluster, failure, expected, reason):
    server.fail["/api/v1/namespaces/kube-system"] = failure

    with pytest.raises(expected, match=reason) as caught:
        cluster.uid()
    assert type(caught.value) is expected


def test_an_answer_that_is_not_from_an_api_server_is_told_by_its_status(cluster, monkeypatch):
    monkeypatch.setattr(
        ApiServer, "__call__", lambda self, request: httpx2.Response(502, text="<html>", headers={"Content-Type": "text/html"})
    )

    with pytest.raises(RuntimeUnavailableError, match="502"):
        cluster.uid()


def test_the_cluster_is_known_by_the_uid_of_kube_system(server, agent):
    server.fail["/api/v1/namespaces/kube-system"] = 503
    assert agent.resource() == {}

    server.fail.clear()
    assert agent.resource() == {"k8s.cluster.uid": "cluster-uid"}
    server.fail["/api/v1/namespaces/kube-system"] = 503
    assert agent.resource() == {"k8s.cluster.uid": "cluster-uid"}


def test_preflight_names_each_missing_right(server, agent):
    server.denied.add(Access("list", "apps", "deployments"))

    results = run_checks(agent.preflight())

    assert [r.name for r in results if r.outcome is Outcome.FAIL] == ["kubernetes.rbac.deployments"]
    assert results[0].detail == "https://api.example.com:6443 answers"
    [missing] = [r for r in results if r.outcome is Outcome.FAIL]
    assert "verb list on resource deployments (API group apps)" in missing.advice


def test_preflight_tells_when_the_api_server_goes_away_in_between(server, agent, monkeypatch):
    answers = iter([True])

    def allowed(access):
        if next(answers, None) is None:
            raise RuntimeUnavailableError("gone")
        return True

    monkeypatch.setattr(agent._cluster, "allowed", allowed)

    results = run_checks(agent.preflight())

    assert [r.outcome for r in results] == [Outcome.PASS] + [Outcome.FAIL] * len(NEEDED)


def test_a_configuration_that_makes_no_sense_is_no_cluster(monkeypatch, tmp_path):
    broken = tmp_path / "kubeconfig"
    broken.write_text("clusters: [")
    monkeypatch.setenv("KUBECONFIG", str(broken))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    with pytest.raises(RuntimeUnavailableError, match="no Kubernetes cluster is configured here"):
        Cluster().uid()


def test_the_agent_asks_for_nothing_but_what_its_role_says(server, agent):
    agent.collect_metrics()

    asked = {(method, urllib.parse.urlsplit(path).path) for method, path, _ in server.requests}
    assert asked == {("GET", path) for path in PATHS.values()} | {("GET", "/api/v1/namespaces/kube-system")}
    assert {access.resource for access in NEEDED} == {*PATHS, "namespaces"}
    assert {access.verb for access in NEEDED} == {"get", "list"}
