"""What the kubernetes agent measures, against what a real cluster's own tools and control groups say.

``IRCA_TEST_BASE_IMAGE`` names an image that the nodes have, with a shell, cat and sleep. The cluster has one node, whose kubelet is reached
where the API server is.
"""

from __future__ import annotations

import json
import os
import subprocess
import urllib.parse
import uuid

import pytest
from waiting import eventually

from connectors.agent_factory import AgentFactory
from connectors.kubernetes.quota import quantity

IMAGE = os.environ.get("IRCA_TEST_BASE_IMAGE", "")

pytestmark = [
    pytest.mark.requires("kubernetes", "base-image", "kubectl"),
]


def kubectl(*arguments, document=None):
    given = None if document is None else json.dumps(document)
    done = subprocess.run(["kubectl", *arguments], input=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def got(*arguments):
    return json.loads(kubectl("get", *arguments, "-o", "json"))


def apply(namespace, kind, name, api="v1", **rest):
    kubectl("apply", "-f", "-", document={"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": namespace}, **rest})


def pod_spec(command, **resources):
    container = {"name": "app", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", command], "resources": resources}
    return {"terminationGracePeriodSeconds": 0, "containers": [container]}


@pytest.fixture
def namespace():
    name = f"irca-test-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def agent():
    made = []

    def make(**config):
        made.append(AgentFactory.create_agent("kubernetes", "https://platform.example.com", "t", config))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def on_the_node():
    """The options of a node view of the cluster's one node. Its kubelet signs its own certificate."""
    server = kubectl("config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}")
    return {"view": "node", "kubelet_address": f"{urllib.parse.urlsplit(server).hostname}:10250", "kubelet_insecure": True}


def outcome(collection):
    return {result.name: result.reason for result in collection.collectors}


def values(collection, **wanted):
    """The values of the one resource with these attributes (``k8s_pod_name`` is ``k8s.pod.name``); a pod is not one of its containers."""
    wanted = {key.replace("_", "."): value for key, value in wanted.items()}
    inner = "k8s.container.name"
    found = [r.metrics for r in collection.resources if wanted.items() <= r.resource.items() and (inner in wanted) == (inner in r.resource)]
    assert len(found) < 2
    return {"|".join([m.name, *map(str, p.attributes.values())]): p.value for metrics in found for m in metrics for p in m.points}


def control_group(namespace, pod):
    """CPU seconds and bytes of memory that the container's control group counts, by either version of them."""
    read = (
        "cat /sys/fs/cgroup/cpuacct/cpuacct.usage /sys/fs/cgroup/memory/memory.usage_in_bytes 2>/dev/null || "
        "{ read -r _ used </sys/fs/cgroup/cpu.stat; echo ${used}000; cat /sys/fs/cgroup/memory.current; }"
    )
    nanoseconds, memory = kubectl("-n", namespace, "exec", pod, "--", "sh", "-c", read).split()
    return int(nanoseconds) / 1e9, int(memory)


def test_what_a_container_uses_is_what_its_control_group_counts(namespace, agent, on_the_node):
    hungry = "x=xxxxxxxx; while [ ${#x} -lt 8388608 ]; do x=$x$x; done; while :; do :; done"
    apply(namespace, "Pod", "busy", spec=pod_spec(hungry, limits={"cpu": "200m", "memory": "96Mi"}))
    made = agent(**on_the_node)
    app = {"k8s_namespace_name": namespace, "k8s_pod_name": "busy", "k8s_container_name": "app"}

    whole = {"k8s_namespace_name": namespace, "k8s_pod_name": "busy"}

    def looked_at_twice():
        before, _ = control_group(namespace, "busy")
        seen = made.collect_metrics()
        of_the_container, of_the_pod = values(seen, **app), values(seen, **whole)
        # As much as its limit lets it have, once the machine has that much to give.
        at_its_limit = of_the_container.get("container.cpu.usage") == pytest.approx(0.2, rel=0.35)
        both = at_its_limit and of_the_pod.get("k8s.pod.cpu.time", 0) >= of_the_container["container.cpu.time"] * 0.5
        return (before, seen, *control_group(namespace, "busy")) if both else None

    eventually(lambda: values(made.collect_metrics(), **app).get("container.cpu.usage"))  # the container runs
    # The kubelet looks at each control group by itself, every ten seconds or so, and knows the use of CPU from its second look on.
    before, collection, after, memory = eventually(looked_at_twice, why=lambda: values(made.collect_metrics(), **app))

    assert outcome(collection) == {"kubernetes.kubelet": "", "kubernetes.host": ""}
    found = values(collection, **app)
    # Never more than there is, and no older than a few of the kubelet's looks at a fifth of a CPU.
    assert before - 0.2 * 60 <= found["container.cpu.time"] <= after
    assert found["container.memory.usage"] == pytest.approx(memory, rel=0.25)
    assert 8 * 1024**2 < found["container.memory.working_set"] < 96 * 1024**2
    assert found["container.memory.available"] == pytest.approx(96 * 1024**2 - found["container.memory.working_set"], rel=0.01)
    pod = values(collection, **whole)
    assert pod["k8s.pod.cpu.time"] >= found["container.cpu.time"] * 0.5
    assert pod["k8s.pod.memory.usage"] > 8 * 1024**2


def test_a_node_is_measured_as_its_kubelet_says_through_the_api_server(agent, on_the_node):
    [node] = got("nodes")["items"]
    name = node["metadata"]["name"]

    collection = agent(**on_the_node).collect_metrics()
    said = json.loads(kubectl("get", "--raw", f"/api/v1/nodes/{name}/proxy/stats/summary"))["node"]

    [found] = [
        {m.name: m.points[0].value for m in r.metrics}
        for r in collection.resources
        if "irca.k8s.node.kubelet.pod.count" in {m.name for m in r.metrics}
    ]
    assert found["k8s.node.cpu.time"] == pytest.approx(said["cpu"]["usageCoreNanoSeconds"] / 1e9, rel=0.05)
    assert found["k8s.node.memory.working_set"] == pytest.approx(said["memory"]["workingSetBytes"], rel=0.5)
    assert found["k8s.node.filesystem.capacity"] == said["fs"]["capacityBytes"]
    host = {m.name: m.points for r in collection.resources for m in r.metrics if m.name.startswith("system.")}
    assert host["system.memory.limit"][0].value == pytest.approx(quantity(node["status"]["capacity"]["memory"]), rel=0.01)
    assert len({p.attributes["cpu.logical_number"] for p in host["system.cpu.time"]}) == int(node["status"]["capacity"]["cpu"])


def test_the_kubelets_own_certificate_is_refused_unless_an_option_says_otherwise(agent, on_the_node):
    reason = outcome(agent(**(on_the_node | {"kubelet_insecure": False})).collect_metrics())["kubernetes.kubelet"]

    assert "is not trusted" in reason
    assert "kubelet_insecure" in reason


def test_a_quota_is_used_up_and_what_it_keeps_out_shows(namespace, agent):
    hard = {"pods": "3", "requests.cpu": "300m", "limits.memory": "256Mi", "count/configmaps": "20", "services": "2"}
    apply(namespace, "ResourceQuota", "team", spec={"hard": hard})
    labels = {"app": "web"}
    resources = {"limits": {"cpu": "100m", "memory": "32Mi"}, "requests": {"cpu": "20m", "memory": "16Mi"}}
    template = {"metadata": {"labels": labels}, "spec": pod_spec("sleep 600", **resources)}
    apply(namespace, "Deployment", "web", "apps/v1", spec={"replicas": 5, "selector": {"matchLabels": labels}, "template": template})
    made, here = agent(kube_page_size=2), {"k8s_namespace_name": namespace}
    quota = {**here, "k8s_resourcequota_name": "team"}

    eventually(lambda: values(made.collect_metrics(), **quota).get("k8s.resourcequota.object_count.used|pods") == 3)
    eventually(
        lambda: (
            values(made.collect_metrics(), **here, k8s_deployment_name="web", k8s_deployment_uid=uid(namespace)).get(
                "k8s.deployment.pod.available"
            )
            == 3
        )
    )
    collection = made.collect_metrics()

    assert set(outcome(collection).values()) == {""}
    assert values(collection, **quota) == {
        "k8s.resourcequota.object_count.hard|count/configmaps": 20,
        "k8s.resourcequota.object_count.hard|pods": 3,
        "k8s.resourcequota.object_count.hard|services": 2,
        "k8s.resourcequota.object_count.used|count/configmaps": configmaps(namespace),
        "k8s.resourcequota.object_count.used|pods": 3,
        "k8s.resourcequota.object_count.used|services": 0,
        "k8s.resourcequota.cpu.request.hard": 0.3,
        "k8s.resourcequota.cpu.request.used": pytest.approx(0.06),
        "k8s.resourcequota.memory.limit.hard": 256 * 1024**2,
        "k8s.resourcequota.memory.limit.used": 3 * 32 * 1024**2,
    }
    web = values(collection, **here, k8s_deployment_name="web", k8s_deployment_uid=uid(namespace))
    assert (web["k8s.deployment.pod.desired"], web["irca.k8s.deployment.pod.unavailable"]) == (5, 2)
    pods = [r for r in collection.resources if r.resource.get("k8s.namespace.name") == namespace and "k8s.container.name" in r.resource]
    assert {r.resource["k8s.deployment.name"] for r in pods} == {"web"}
    assert sum(p.value for r in pods for m in r.metrics if m.name == "k8s.container.memory.limit.desired" for p in m.points) == 96 * 1024**2


def uid(namespace):
    return got("-n", namespace, "deployment", "web")["metadata"]["uid"]


def configmaps(namespace):
    return len(got("-n", namespace, "configmaps")["items"])


def test_the_same_pod_has_the_same_name_in_both_views(namespace, agent, on_the_node):
    apply(namespace, "Pod", "plain", spec=pod_spec("sleep 600"))
    cluster, node = agent(), agent(**on_the_node)
    app = {"k8s_namespace_name": namespace, "k8s_pod_name": "plain", "k8s_container_name": "app"}

    eventually(lambda: values(cluster.collect_metrics(), **app).get("k8s.container.ready") == 1)
    eventually(lambda: "container.memory.usage" in values(node.collect_metrics(), **app))

    def resource_of(collection):
        return next(
            r.resource
            for r in collection.resources
            if r.resource.get("k8s.namespace.name") == namespace and "k8s.container.name" in r.resource
        )

    assert resource_of(cluster.collect_metrics()) == resource_of(node.collect_metrics())
