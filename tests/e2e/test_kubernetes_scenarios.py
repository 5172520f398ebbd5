"""What goes wrong and what is changed in a cluster is found on the platform: as events, by PromQL, and where the cluster is shown.

One agent, installed by the printed command, watches while all of it happens at the same time.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from e2e.kubernetes_cluster import (
    IMAGE,
    ClusterPlatform,
    Provisioned,
    apply,
    deploy,
    doubled,
    get,
    kubectl,
    objects_of,
    own_namespace,
    platform_for_the_cluster,
    pod_spec,
    why,
)
from waiting import eventually

pytestmark = [pytest.mark.requires("kubernetes", "helm", "docker"), pytest.mark.timeout(900)]
NOWHERE = "127.0.0.1:9/shop/missing:2"


@dataclass
class Scene:
    """A platform, an agent that is at work, and a namespace where things happen."""

    platform: ClusterPlatform
    agent: Provisioned
    home: str
    before: set[str]
    shop: str
    image: str

    def event(self, what: str, **attributes: object) -> dict:
        return self.platform.event(what, k8s_namespace_name=self.shop, **attributes)

    def shows(self, metric: str, value: float, **labels: str) -> None:
        """PromQL gives this value for this metric, of the shop unless a label says otherwise."""
        chosen = ",".join(f'{key}="{text}"' for key, text in ({"k8s_namespace_name": self.shop} | labels).items())
        query = f"{metric}{{{chosen}}}"
        eventually(lambda: self.platform.value(query) == value, why=lambda: f"{query} is {self.platform.value(query)}, not {value}")

    def workload(self, name: str) -> dict | None:
        return next((each for each in self.platform.listed("workloads", namespace=self.shop) if each["name"] == name), None)

    def container(self, workload: str) -> dict:
        """The first container of the workload's first pod, as the platform shows it."""
        found = self.platform.listed("pods", namespace=self.shop, workload=workload)
        return found[0]["containers"][0] if found and found[0]["containers"] else {}


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("scenarios")
    with platform_for_the_cluster(folder) as platform, own_namespace() as home, own_namespace("shop") as shop:
        image = f"incident-rca/agent:{shop}"
        subprocess.run(["docker", "tag", IMAGE, image], check=True, timeout=60)
        try:
            for namespace in (home, shop):
                kubectl("create", "namespace", namespace)
            apply(home, "ConfigMap", "of-somebody-else", data={"a": "b"})
            before = objects_of(home)
            deploy(shop, "web", env=[{"name": "COLOUR", "value": "red"}])
            apply(shop, "ConfigMap", "settings", data={"colour": "red", "shape": "round"})
            kubectl("-n", shop, "rollout", "status", "deployment/web", "--timeout=60s")
            agent = platform.provision(home)
            done = platform.run(agent.command, check=False)
            assert done.returncode == 0, done.stderr + why(home)
            made = Scene(platform, agent, home, before, shop, image)
            made.shows("k8s_deployment_pod_available", 1, k8s_deployment_name="web")
            _let_it_happen(made)
            yield made
        finally:
            subprocess.run(["docker", "image", "rm", "--force", image], capture_output=True, check=False, timeout=60)


def _let_it_happen(scene: Scene) -> None:
    shop = scene.shop
    apply(shop, "Pod", "crash", spec=pod_spec("echo no such table >&2; exit 3", terminationMessagePolicy="FallbackToLogsOnError"))
    hungry = pod_spec("exec python -c 'x = bytes(range(256)) * 2 ** 22'", resources={"limits": {"memory": "48Mi"}})
    apply(shop, "Pod", "hungry", spec={**hungry, "restartPolicy": "Never"})
    deploy(shop, "unpullable", image=NOWHERE)
    phase = "jsonpath={.status.phase}"  # a pod that has failed does not count against a quota
    eventually(lambda: kubectl("-n", shop, "get", "pod", "hungry", "-o", phase) == "Failed")
    apply(shop, "ResourceQuota", "few", spec={"hard": {"pods": "5"}})
    eventually(lambda: get("quota", "few", "--namespace", shop)["status"].get("hard"))
    deploy(shop, "many", replicas=6)
    apply(shop, "ConfigMap", "settings", data={"colour": "hidden-blue", "size": "9"})


def test_a_crashing_container_is_an_event_a_metric_and_a_problem_of_its_workload(scene):
    loop = scene.event("pod.crash_loop")

    assert loop["severity"] == "error"
    assert loop["resource"]["k8s.pod.name"] == "crash"
    assert loop["attributes"]["k8s.container.name"] == "app"
    assert loop["attributes"]["irca.container.exit_code"] == 3
    assert loop["attributes"]["container.image.name"] == IMAGE
    ended = scene.platform.events("irca.kubernetes.pod.container_exited", k8s_namespace_name=scene.shop, k8s_pod_name="crash")
    assert all("no such table" in event["attributes"]["irca.k8s.message"] for event in ended)
    scene.shows("k8s_container_status_reason", 1, k8s_pod_name="crash", k8s_container_status_reason="CrashLoopBackOff")
    scene.shows("irca_k8s_container_last_termination_exit_code_ratio", 3, k8s_pod_name="crash")
    eventually(lambda: "CrashLoopBackOff" in (scene.workload("crash") or {}).get("problem", ""), why=lambda: str(scene.workload("crash")))
    eventually(lambda: scene.container("crash").get("last_exit_code") == 3 and scene.container("crash")["restarts"] >= 1)


def test_a_container_that_runs_out_of_memory_is_an_event_and_a_metric(scene):
    path = "jsonpath={.status.containerStatuses[0].state.terminated.reason}"
    reason = eventually(lambda: kubectl("-n", scene.shop, "get", "pod", "hungry", "-o", path))

    # On a node whose container runtime does not notice what the kernel has killed (seen with dockershim and cgroup v1), the cluster
    # itself says no more than Error. The agent then tells of a container that exited, and that memory may be why.
    killed = scene.event("pod.oom_killed" if reason == "OOMKilled" else "pod.container_exited", k8s_pod_name="hungry")

    assert killed["attributes"]["irca.container.exit_code"] == 137
    assert killed["attributes"]["irca.k8s.container.memory.limit"] == "48Mi"
    assert killed["attributes"].get("irca.container.oom_suspected", False) == (reason != "OOMKilled")
    scene.shows("k8s_container_status_reason", 1, k8s_pod_name="hungry", k8s_container_status_reason=reason)
    scene.shows("k8s_pod_status_phase", 1, k8s_pod_name="hungry", k8s_pod_status_phase="Failed")
    eventually(lambda: (scene.workload("hungry") or {}).get("problem") == reason, why=lambda: str(scene.workload("hungry")))
    eventually(lambda: scene.container("hungry").get("reason") == reason)


def test_an_image_that_cannot_be_pulled_is_an_event_a_metric_and_a_workload_that_is_down(scene):
    failed = scene.event("pod.image_pull_failed")

    assert failed["attributes"]["container.image.name"] == NOWHERE
    assert failed["attributes"]["irca.k8s.message"]
    assert failed["resource"]["k8s.deployment.name"] == "unpullable"
    reasons = 'k8s_container_status_reason=~"ErrImagePull|ImagePullBackOff"'
    waiting = f'sum(k8s_container_status_reason{{k8s_namespace_name="{scene.shop}",{reasons}}})'
    eventually(lambda: scene.platform.value(waiting) == 1)
    scene.shows("k8s_deployment_pod_available", 0, k8s_deployment_name="unpullable")
    row = eventually(lambda: one if (one := scene.workload("unpullable")) and one["problem"] else None)
    assert (row["desired"], row["available"]) == (1, 0)
    eventually(lambda: "Image" in scene.container("unpullable").get("reason", ""))


def test_a_quota_that_is_exceeded_is_an_event_a_metric_and_a_full_bar(scene):
    series = {"k8s_namespace_name": scene.shop, "irca_k8s_event_reason": "FailedCreate"}
    *_, warned = eventually(lambda: scene.platform.events("irca.kubernetes.warning.recorded", **series))

    assert "exceeded quota: few" in warned["attributes"]["irca.k8s.message"]
    assert warned["attributes"]["irca.k8s.object.kind"] == "ReplicaSet"
    assert warned["attributes"]["irca.k8s.object.name"].startswith("many-")
    for amount in ("hard", "used"):
        metric = f"k8s_resourcequota_object_count_{amount}"
        scene.shows(metric, 5, k8s_resourcequota_name="few", k8s_resourcequota_resource_name="pods")
    row = eventually(
        lambda: next((n for n in scene.platform.listed("namespaces", search=scene.shop) if n["quotas"] and n["problem"]), None)
    )
    [quota] = row["quotas"]
    assert [(amount["hard"], amount["used"]) for amount in quota["amounts"]] == [(5, 5)]
    assert "quota" in row["problem"]


def test_a_config_map_that_is_edited_is_an_event_with_its_keys_and_without_its_values(scene):
    changed = scene.event("configmap.changed")

    assert changed["attributes"]["irca.k8s.object.name"] == "settings"
    assert changed["attributes"]["irca.k8s.change.data.added"] == ["size"]
    assert changed["attributes"]["irca.k8s.change.data.removed"] == ["shape"]
    assert changed["attributes"]["irca.k8s.change.data.changed"] == ["colour"]
    assert changed["attributes"]["irca.k8s.changed_by"].startswith("kubectl")
    assert "hidden-blue" not in scene.platform.client.get("/api/v1/events", params={"limit": 500}).text


def test_scaling_and_a_new_image_are_events_and_metrics(scene):
    kubectl("-n", scene.shop, "delete", "deployment/many", "quota/few")  # or there is no room
    kubectl("-n", scene.shop, "scale", "deployment/web", "--replicas=2")

    scaled = scene.event("workload.scaled", k8s_deployment_name="web")
    assert (scaled["attributes"]["irca.k8s.scale.from"], scaled["attributes"]["irca.k8s.scale.to"]) == (1, 2)
    scene.shows("k8s_deployment_pod_desired", 2, k8s_deployment_name="web")
    scene.shows("k8s_deployment_pod_available", 2, k8s_deployment_name="web")

    kubectl("-n", scene.shop, "set", "image", "deployment/web", f"app={scene.image}")

    started = scene.event("rollout.started", k8s_deployment_name="web")
    assert started["attributes"]["irca.k8s.change.image.from"] == [f"app={IMAGE}"]
    assert started["attributes"]["irca.k8s.change.image.to"] == [f"app={scene.image}"]
    assert (started["attributes"]["irca.k8s.rollout.previous_revision"], started["attributes"]["irca.k8s.rollout.revision"]) == ("1", "2")
    completed = scene.event("rollout.completed", k8s_deployment_name="web", irca_k8s_rollout_revision="2")
    assert completed["attributes"]["irca.k8s.rollout.pods.available"] == 2
    scene.shows("irca_k8s_deployment_pod_updated", 2, k8s_deployment_name="web")
    eventually(lambda: (row := scene.workload("web")) and (row["desired"], row["available"], row["problem"]) == (2, 2, ""))
    eventually(lambda: len(scene.platform.listed("pods", namespace=scene.shop, workload="web")) == 2)


def test_a_node_that_is_cordoned_is_an_event_a_metric_and_shown(scene):
    node = kubectl("get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
    seen = len(scene.platform.events("irca.kubernetes.node.cordoned", k8s_node_name=node))
    cordoned = lambda: [one for one in scene.platform.listed("nodes", search=node) if one["unschedulable"]]  # noqa: E731 - what is waited for
    kubectl("cordon", node)
    try:
        eventually(cordoned)
        query = f'irca_k8s_node_unschedulable{{k8s_node_name="{node}"}}'
        eventually(lambda: scene.platform.value(query) == 1)
    finally:
        kubectl("uncordon", node)  # other tests wait for the node

    eventually(lambda: len(scene.platform.events("irca.kubernetes.node.cordoned", k8s_node_name=node)) > seen)
    told = scene.platform.events("irca.kubernetes.node.cordoned", k8s_node_name=node)[0]
    assert told["severity"] == "warn"
    eventually(lambda: scene.platform.events("irca.kubernetes.node.uncordoned", k8s_node_name=node))
    eventually(lambda: not cordoned())


def test_nothing_of_it_is_told_twice_and_nothing_of_the_agent_is_a_problem(scene):
    events = scene.platform.events_in(scene.shop)

    # Two runs of the crashing container may end within one second, and the cluster tells no more exactly than that.
    exits = [e for e in events if e["name"].endswith(".container_exited") and e["resource"]["k8s.pod.name"] == "crash"]
    restarts = get("pod", "crash", "--namespace", scene.shop)["status"]["containerStatuses"][0]["restartCount"]
    assert len(exits) <= restarts + 1
    assert not doubled(event for event in events if event not in exits)
    assert {"irca.kubernetes.workload.created", "irca.kubernetes.workload.deleted"} <= {event["name"] for event in events}
    assert {event["resource"]["k8s.cluster.uid"] for event in events} == {
        kubectl("get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}")
    }
    own = [event for event in scene.platform.events_in(scene.home) if event["severity"] in ("error", "fatal")]
    assert not own, own
    eventually(lambda: [i["status"] for i in scene.agent.instances()] == ["healthy"], why=lambda: str(scene.agent.instances()))


def test_at_the_end_everything_in_the_agents_namespace_is_as_before(scene):
    scene.platform.run(scene.agent.uninstall)

    eventually(lambda: objects_of(scene.home) == scene.before, why=lambda: str(objects_of(scene.home) ^ scene.before))
