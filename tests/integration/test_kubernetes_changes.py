"""What happens in a real cluster, as events. ``IRCA_TEST_BASE_IMAGE`` names an image that its nodes have, with a shell and Python."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from integration.kube_accounts import kubectl
from waiting import eventually

from connectors.kubernetes.access import Access
from connectors.kubernetes.changes import ChangeReporter
from connectors.kubernetes.cluster import Cluster
from connectors.kubernetes.config import K8sAgentConfig
from connectors.kubernetes.event_limit import FEWER_A_MINUTE
from connectors.kubernetes.kinds import kinds, of_features
from connectors.kubernetes.view import View
from connectors.kubernetes.watch import Watches

IMAGE = os.environ.get("IRCA_TEST_BASE_IMAGE", "")
FEATURES = ("workloads", "quotas", "storage", "autoscaling", "disruption_budgets", "configmaps", "rbac", "events")

pytestmark = [
    pytest.mark.requires("kubernetes", "base-image", "kubectl"),
]


def apply(namespace, kind, name, api="v1", *, labels=None, annotations=None, **rest):
    meta = {"name": name, "namespace": namespace, "labels": labels or {}, "annotations": annotations or {}}
    kubectl("apply", "-f", "-", document={"apiVersion": api, "kind": kind, "metadata": meta, **rest})


def pod_spec(command="sleep 600", image=IMAGE, **rest):
    container = {"name": "app", "image": image, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", command], **rest}
    return {"terminationGracePeriodSeconds": 0, "containers": [container]}


def deploy(namespace, name, *, replicas=1, version="1.0", env=None, deadline=600, **rest):
    spec = pod_spec(**rest)
    spec["containers"][0]["env"] = [{"name": key, "value": value} for key, value in (env or {}).items()]
    labels = {"app": name}
    chart = {"app.kubernetes.io/version": version, "helm.sh/chart": f"shop-{version}"}
    apply(
        namespace,
        "Deployment",
        name,
        "apps/v1",
        labels=chart,
        spec={
            "replicas": replicas,
            "progressDeadlineSeconds": deadline,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": {**labels, **chart}}, "spec": spec},
        },
    )


class Watching:
    """The events that a reporter makes of a cluster, from when everything that is there was read."""

    def __init__(self, cluster, features, since):
        config = K8sAgentConfig(features=features)
        self.view = View(of_features(kinds(b"salt"), features))
        self.events = []
        self.cluster_uid = cluster.uid()
        self._watches = Watches(cluster, self.view)
        self._stopping = threading.Event()
        self.reporter = ChangeReporter(self.view, config, lambda: {"k8s.cluster.uid": self.cluster_uid}, self.events.append, since=since)
        self.view.listen(self.reporter)
        self._thread = threading.Thread(target=self._run, name="watching")

    def start(self):
        self._watches.start()
        self._thread.start()
        eventually(lambda: all((state := self.view.state(kind.name)).synced or not state.served for kind in self.view.kinds))
        eventually(lambda: not self.view.waiting)

    def _run(self):
        ticked = 0.0
        while not self._stopping.is_set():
            self.view.tell(0.1)
            if time.time() - ticked >= 1:
                ticked = time.time()
                self.reporter.tick(ticked)

    def stop(self):
        self._stopping.set()
        self._watches.stop()
        self._thread.join()
        self.reporter.close()

    def named(self, what, namespace=None, **attributes):
        """Events of a name; ``irca_k8s_object_name`` is ``irca.k8s.object.name``, of attributes or resource."""
        wanted = {key.replace("_", "."): value for key, value in attributes.items()}
        return [
            event
            for event in list(self.events)
            if event.name == f"irca.kubernetes.{what}"
            and (namespace is None or event.attributes.get("k8s.namespace.name") == namespace)
            and wanted.items() <= {**event.resource, **event.attributes}.items()
        ]

    def wait(self, what, namespace=None, **attributes):
        """The one such event, when it has come."""
        eventually(lambda: self.named(what, namespace, **attributes))
        [event] = self.named(what, namespace, **attributes)
        return event


@pytest.fixture
def cluster():
    made = Cluster(timeout=10)
    yield made
    made.close()


@pytest.fixture
def watching(cluster):
    started = contextlib.ExitStack()

    def start(features=FEATURES, since=None):
        made = Watching(cluster, features, since)
        started.callback(made.stop)
        made.start()
        return made

    with started:
        yield start


@pytest.fixture
def namespace():
    name = f"kc-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


def test_a_rollout_is_told_from_its_beginning_to_its_end_with_what_differs(namespace, watching):
    deploy(namespace, "web", env={"COLOUR": "red", "OLD": "gone"})
    kubectl("-n", namespace, "rollout", "status", "deployment/web", "--timeout=60s")
    seen = watching()

    deploy(namespace, "web", env={"COLOUR": "blue-hidden", "NEW": "x"}, version="1.1", resources={"limits": {"memory": "64Mi"}})
    started = seen.wait("rollout.started", namespace)
    completed = seen.wait("rollout.completed", namespace)

    told = started.attributes
    assert told["irca.k8s.object.name"] == "web"
    assert (told["irca.k8s.rollout.previous_revision"], told["irca.k8s.rollout.revision"]) == ("1", "2")
    assert told["irca.k8s.change.env.added"] == ["app.NEW"]
    assert told["irca.k8s.change.env.removed"] == ["app.OLD"]
    assert told["irca.k8s.change.env.changed"] == ["app.COLOUR"]
    assert told["irca.k8s.change.resources.to"] == ["app.limits.memory=64Mi"]
    assert (told["irca.k8s.chart.from"], told["irca.k8s.chart.to"]) == ("shop-1.0", "shop-1.1")
    assert (told["irca.k8s.app_version.from"], told["irca.k8s.app_version.to"]) == ("1.0", "1.1")
    assert told["irca.k8s.changed_by"].startswith("kubectl")
    assert "blue-hidden" not in repr(seen.events)
    assert started.resource["k8s.cluster.uid"] == seen.cluster_uid
    assert started.resource["k8s.deployment.uid"]
    assert completed.attributes["irca.k8s.rollout.pods.available"] == 1
    assert completed.attributes["irca.k8s.rollout.duration"] > 0

    kubectl("-n", namespace, "scale", "deployment/web", "--replicas=3")
    scaled = seen.wait("workload.scaled", namespace)
    assert (scaled.attributes["irca.k8s.scale.from"], scaled.attributes["irca.k8s.scale.to"]) == (1, 3)

    kubectl("-n", namespace, "rollout", "undo", "deployment/web")
    back = seen.wait("rollout.started", namespace, irca_k8s_rollout_revision="3")
    assert back.attributes["irca.k8s.change.env.removed"] == ["app.NEW"]
    seen.wait("rollout.completed", namespace, irca_k8s_rollout_revision="3")

    kubectl("-n", namespace, "rollout", "restart", "deployment/web")
    assert seen.wait("rollout.started", namespace, irca_k8s_rollout_revision="4").attributes["irca.k8s.rollout.restart"] is True

    kubectl("-n", namespace, "delete", "deployment", "web")
    seen.wait("workload.deleted", namespace, irca_k8s_object_name="web")
    assert len({event.id for event in seen.events}) == len(seen.events)
    assert not seen.named("pod.container_exited", namespace), "pods of a rollout are not told"


def test_stateful_sets_and_daemon_sets_roll_out_too(namespace, watching):
    seen = watching()
    for kind, name in (("StatefulSet", "db"), ("DaemonSet", "logs")):
        for value in ("a", "b"):
            spec = {"selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}}, "spec": pod_spec()}}
            spec["template"]["spec"]["containers"][0]["env"] = [{"name": "WHICH", "value": value}]
            if kind == "StatefulSet":
                spec |= {"serviceName": "db", "replicas": 1}
            apply(namespace, kind, name, "apps/v1", spec=spec)
            number = 1 if value == "a" else 2
            eventually(lambda name=name, n=number: len(seen.named("rollout.completed", namespace, irca_k8s_object_name=name)) == n)

    for name in ("db", "logs"):
        seen.wait("workload.created", namespace, irca_k8s_object_name=name)
        started = seen.wait("rollout.started", namespace, irca_k8s_object_name=name)
        assert started.attributes["irca.k8s.change.env.changed"] == ["app.WHICH"]


def test_a_rollout_to_an_image_that_is_not_there_is_told_and_stalls(namespace, watching):
    deploy(namespace, "web", deadline=5)
    kubectl("-n", namespace, "rollout", "status", "deployment/web", "--timeout=60s")
    seen = watching()

    missing = "127.0.0.1:9/kc/nothing:2"
    deploy(namespace, "web", image=missing, deadline=5)

    started = seen.wait("rollout.started", namespace)
    assert started.attributes["irca.k8s.change.image.from"] == [f"app={IMAGE}"]
    assert started.attributes["irca.k8s.change.image.to"] == [f"app={missing}"]
    failed = seen.wait("pod.image_pull_failed", namespace)
    assert failed.attributes["container.image.name"] == missing
    assert failed.attributes["irca.k8s.message"]
    assert failed.resource["k8s.deployment.name"] == "web"
    stalled = seen.wait("rollout.stalled", namespace)
    assert stalled.severity.name == "ERROR"
    time.sleep(8)
    assert len(seen.named("pod.image_pull_failed", namespace)) == 1, "it is told once, whether it is tried again or waited for"


def test_what_is_wrong_with_pods_is_told_once_each(namespace, watching):
    seen = watching()
    apply(namespace, "Pod", "crash", spec=pod_spec("echo no such table >&2; exit 3", terminationMessagePolicy="FallbackToLogsOnError"))
    hungry = pod_spec("exec python3 -c 'x = bytes(range(256)) * 2 ** 22'", resources={"limits": {"memory": "48Mi"}})
    apply(namespace, "Pod", "hungry", spec={**hungry, "restartPolicy": "Never"})
    apply(namespace, "Pod", "nowhere", spec={**pod_spec(), "nodeSelector": {"no": "such-node"}})
    apply(namespace, "Pod", "misled", spec=pod_spec(envFrom=[{"configMapRef": {"name": "not-there"}}]))
    apply(namespace, "Pod", "fine", spec={**pod_spec("exit 0"), "restartPolicy": "Never"})
    template = {"spec": {**pod_spec("exit 4"), "restartPolicy": "Never"}}
    apply(namespace, "Job", "once", "batch/v1", spec={"backoffLimit": 0, "template": template})

    loop = seen.wait("pod.crash_loop", namespace)
    # Not every runtime tells the kubelet that memory ran out; what the cluster itself does not say is only suspected.
    path = "jsonpath={.status.containerStatuses[0].state.terminated.reason}"
    reason = eventually(lambda: kubectl("-n", namespace, "get", "pod", "hungry", "-o", path))
    what = "pod.oom_killed" if reason == "OOMKilled" else "pod.container_exited"
    killed = seen.wait(what, namespace, k8s_pod_name="hungry")
    nowhere = seen.wait("pod.failed_scheduling", namespace)
    misled = seen.wait("pod.config_error", namespace)
    job = seen.wait("job.failed", namespace)

    assert loop.resource["k8s.pod.name"] == "crash"
    assert loop.attributes["irca.container.exit_code"] == 3
    assert loop.attributes["container.image.name"] == IMAGE
    assert killed.attributes["irca.k8s.container.memory.limit"] == "48Mi"
    assert killed.attributes["irca.container.exit_code"] == 137
    assert killed.attributes.get("irca.container.oom_suspected", False) == (reason != "OOMKilled")
    assert killed.resource["k8s.container.name"] == "app"
    assert killed.resource["k8s.node.name"]
    assert "0/1 nodes are available" in nowhere.attributes["irca.k8s.message"]
    assert 'configmap "not-there" not found' in misled.attributes["irca.k8s.message"]
    assert job.attributes["irca.k8s.condition.reason"] == "BackoffLimitExceeded"
    eventually(lambda: len(seen.named("pod.container_exited", namespace, k8s_pod_name="crash")) >= 3)
    exits = seen.named("pod.container_exited", namespace, k8s_pod_name="crash")
    assert "no such table" in exits[0].attributes["irca.k8s.message"]
    assert all(event.time_unix_nano <= time.time_ns() for event in seen.events)
    restarts = int(kubectl("-n", namespace, "get", "pod", "crash", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"))
    assert len(exits) <= restarts + 1
    assert len(seen.named("pod.crash_loop", namespace)) == 1
    assert len(seen.named(what, namespace, k8s_pod_name="hungry")) == 1
    assert not seen.named("pod.container_exited", namespace, k8s_pod_name="fine")
    warned = eventually(lambda: seen.named("warning.recorded", namespace, irca_k8s_event_reason="BackOff", k8s_pod_name="crash"))
    assert warned[0].resource["k8s.container.name"] == "app"


def test_what_is_configured_is_told_without_its_values(namespace, watching):
    apply(namespace, "ConfigMap", "settings", data={"colour": "red", "shape": "round"})
    seen = watching()

    time.sleep(1.1)  # a cluster records in whole seconds who changed an object: within one, nobody seems to have changed it again
    apply(namespace, "ConfigMap", "settings", data={"colour": "hidden-blue", "size": "9"})
    changed = seen.wait("configmap.changed", namespace)
    assert changed.attributes["irca.k8s.change.data.added"] == ["size"]
    assert changed.attributes["irca.k8s.change.data.removed"] == ["shape"]
    assert changed.attributes["irca.k8s.change.data.changed"] == ["colour"]
    assert len(changed.attributes["irca.k8s.change.hashes"]) == 2
    assert changed.attributes["irca.k8s.changed_by"].startswith("kubectl")
    assert "hidden-blue" not in repr(seen.events)

    rbac = "rbac.authorization.k8s.io/v1"
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
    apply(namespace, "Role", "reader", rbac, rules=[rule])
    seen.wait("rbac.created", namespace)
    apply(namespace, "Role", "reader", rbac, rules=[rule, {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list"]}])
    assert seen.wait("rbac.changed", namespace).attributes["irca.k8s.change.rules.added"] == ["get, list secrets (core)"]
    kubectl("-n", namespace, "create", "rolebinding", "reads", "--role=reader", f"--serviceaccount={namespace}:default")
    kubectl("-n", namespace, "delete", "rolebinding", "reads")
    assert seen.wait("rbac.deleted", namespace).attributes["irca.k8s.object.kind"] == "RoleBinding"

    for most in (3, 5):
        target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
        apply(namespace, "HorizontalPodAutoscaler", "web", "autoscaling/v1", spec={"maxReplicas": most, "scaleTargetRef": target})
    hpa = seen.wait("hpa.changed", namespace)
    assert (hpa.attributes["irca.k8s.change.bounds.from"], hpa.attributes["irca.k8s.change.bounds.to"]) == (
        ["maxReplicas=3"],
        ["maxReplicas=5"],
    )

    apply(namespace, "ResourceQuota", "team", spec={"hard": {"pods": "1"}})
    eventually(lambda: kubectl("-n", namespace, "get", "quota", "team", "-o", "jsonpath={.status.hard.pods}") == "1")
    deploy(namespace, "web", replicas=3)
    warned = seen.wait("warning.recorded", namespace, irca_k8s_event_reason="FailedCreate")
    assert "exceeded quota: team" in warned.attributes["irca.k8s.message"]
    assert warned.resource["k8s.deployment.name"] == "web"
    assert warned.resource["k8s.replicaset.uid"]
    apply(namespace, "ResourceQuota", "team", spec={"hard": {"pods": "5"}})
    assert seen.wait("quota.changed", namespace).attributes["irca.k8s.change.hard.to"] == ["pods=5"]


def test_secrets_and_helm_releases_are_told_only_when_asked_for(namespace, watching, tmp_path, monkeypatch):
    quiet, seen = watching(), watching((*FEATURES, "secrets"))

    apply(namespace, "Secret", "password", stringData={"password": "hunter2"})
    seen.wait("secret.created", namespace, irca_k8s_object_name="password")
    apply(namespace, "Secret", "password", stringData={"password": "hunter3", "user": "me"})
    changed = seen.wait("secret.changed", namespace, irca_k8s_object_name="password")
    assert changed.attributes["irca.k8s.change.data.changed"] == ["password"]
    assert changed.attributes["irca.k8s.change.data.added"] == ["user"]
    for number, status in ((1, "pending-install"), (1, "deployed"), (2, "failed")):
        labels = {"owner": "helm", "name": "shop", "status": status, "version": str(number)}
        apply(
            namespace, "Secret", f"sh.helm.release.v1.shop.v{number}", labels=labels, type="helm.sh/release.v1", stringData={"release": "x"}
        )
    assert seen.wait("helm_release.deployed", namespace).attributes["irca.helm.release.revision"] == "1"
    assert seen.wait("helm_release.failed", namespace).attributes["irca.helm.release.name"] == "shop"
    assert "hunter" not in repr(seen.events)
    assert not [event for event in quiet.events if ".secret." in event.name or ".helm_release." in event.name]


def test_a_node_that_is_cordoned_is_told(watching):
    node = kubectl("get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
    seen = watching()
    try:
        kubectl("cordon", node)
        cordoned = seen.wait("node.cordoned", k8s_node_name=node)
    finally:
        kubectl("uncordon", node)
    seen.wait("node.uncordoned", k8s_node_name=node)
    assert cordoned.severity.name == "WARN"
    assert not seen.named("node.taints_changed")


def test_a_namespace_is_told_and_what_goes_with_it_is_not(watching):
    seen, name = watching(), f"kc-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    apply(name, "ConfigMap", "settings", data={"a": "b"})
    deploy(name, "web", replicas=0)
    seen.wait("namespace.created", irca_k8s_object_name=name)
    seen.wait("configmap.created", name)
    kubectl("delete", "namespace", name, "--timeout=60s")

    seen.wait("namespace.deleted", irca_k8s_object_name=name)
    eventually(lambda: seen.view.get("namespaces", "", name) is None)
    assert not seen.named("configmap.deleted", name)
    assert not seen.named("workload.deleted", name)
    assert not seen.named("configmap.created", name, irca_k8s_object_name="kube-root-ca.crt")


def test_the_next_leader_tells_what_happened_while_nobody_led_under_the_same_ids(namespace, watching):
    deploy(namespace, "web", env={"COLOUR": "red"})
    apply(namespace, "ConfigMap", "settings", data={"colour": "red"})
    kubectl("-n", namespace, "rollout", "status", "deployment/web", "--timeout=60s")
    time.sleep(7)
    former = watching()
    left_at = time.time()
    time.sleep(1)

    deploy(namespace, "web", env={"COLOUR": "blue"})
    apply(namespace, "ConfigMap", "settings", data={"colour": "blue", "size": "9"})
    apply(namespace, "Pod", "crash", spec={**pod_spec("exit 3"), "restartPolicy": "Never"})
    kubectl("-n", namespace, "rollout", "status", "deployment/web", "--timeout=60s")
    eventually(lambda: former.named("pod.container_exited", namespace) and former.named("rollout.completed", namespace))
    following, stranger = watching(since=left_at), watching()

    for what in ("rollout.started", "rollout.completed", "configmap.changed", "pod.container_exited"):
        told = former.wait(what, namespace)
        again = following.wait(what, namespace)
        assert again.id == told.id, what
        assert again.time_unix_nano == told.time_unix_nano or what.startswith("rollout"), what
    assert following.wait("rollout.started", namespace).attributes["irca.k8s.change.env.changed"] == ["app.COLOUR"]
    assert following.wait("configmap.changed", namespace).attributes["irca.k8s.change.unseen"] is True
    assert not stranger.named("rollout.started", namespace)
    told_here = [event for event in stranger.events if event.attributes.get("k8s.namespace.name") == namespace]
    assert not [event for event in told_here if not event.name.endswith("warning.recorded")], "warnings go on"


def test_thousands_of_warnings_a_minute_are_bounded_and_counted(namespace, watching, cluster):
    seen = watching()
    path, access = f"/api/v1/namespaces/{namespace}/events", Access("create", "", "events", namespaced=True)

    def warn(number):
        # Most are about a thing of their own, and every sixth about the same one.
        about = "same" if number % 6 == 0 else f"thing-{number}"
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        document = {
            "metadata": {"name": f"storm.{number}", "namespace": namespace},
            "involvedObject": {"kind": "Pod", "namespace": namespace, "name": about, "uid": f"{namespace}-{about}"},
            "reason": "Storm",
            "message": "password=hunter2 was wrong",
            "type": "Warning",
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": "test"},
        }
        cluster.request("POST", path, access, document=document)

    begun = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(warn, range(3000)))
    took = time.monotonic() - begun
    eventually(lambda: seen.view.waiting == 0 and seen.view._held["events"].versions)
    time.sleep(2)
    seen.reporter.close()

    told = seen.named("warning.recorded", namespace)
    assert len(told) <= FEWER_A_MINUTE["warning.recorded"] * (2 + took / 60)
    left_out = Counter()
    for event in seen.named("events.dropped"):
        left_out.update(
            {kind: int(number) for kind, number in (each.split(": ") for each in event.attributes["irca.events.dropped.kinds"])}
        )
    assert left_out["warning.recorded"] >= 2500 - len(told) - 1
    same = [event for event in told if event.attributes["irca.k8s.object.name"] == "same"]
    assert len(same) <= 2 + took / 60
    assert sum(event.attributes["irca.k8s.event.delta"] for event in same) + left_out["warning.recorded"] >= 500
    assert "hunter2" not in repr(told)
    assert json.dumps([event.body for event in told])
