"""Pods of the agent die and lose rights on a real cluster: another leads, nothing is told twice, and the fleet shows no ghosts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from e2e.kubernetes_cluster import (
    ClusterPlatform,
    Provisioned,
    apply,
    doubled,
    get,
    kubectl,
    own_namespace,
    platform_for_the_cluster,
    pods,
    why,
)
from waiting import eventually

pytestmark = [pytest.mark.requires("kubernetes", "helm", "docker"), pytest.mark.timeout(900)]
TAKES_OVER_WITHIN = 15.0


@pytest.fixture(scope="module")
def platform(tmp_path_factory) -> Iterator[ClusterPlatform]:
    with platform_for_the_cluster(tmp_path_factory.mktemp("leader")) as made:
        yield made


@pytest.fixture
def home() -> Iterator[str]:
    with own_namespace() as name:
        yield name


@pytest.fixture
def shop() -> Iterator[str]:
    with own_namespace("shop") as name:
        kubectl("create", "namespace", name)
        yield name


def install(platform: ClusterPlatform, namespace: str, **config: object) -> Provisioned:
    agent = platform.provision(namespace, **config)
    done = platform.run(agent.command, check=False)
    assert done.returncode == 0, done.stderr + why(namespace)
    return agent


def lease(home: str) -> dict:
    return get("lease", "incident-rca-agent", "--namespace", home)["spec"]


def leader(home: str) -> str:
    return eventually(lambda: lease(home)["holderIdentity"])


def kill(home: str, name: str) -> datetime:
    """End the pod's process without a word to it, and have the pod replaced rather than its container restarted; when that was."""
    [status] = get("pod", name, "--namespace", home)["status"]["containerStatuses"]
    killed = datetime.now(UTC)
    subprocess.run(["docker", "kill", "--signal", "KILL", status["containerID"].removeprefix("docker://")], check=True, timeout=60)
    kubectl("-n", home, "delete", "pod", name, "--force", "--grace-period=0", "--wait=false")
    return killed


def edit(shop: str, name: str, value: str) -> None:
    apply(shop, "ConfigMap", name, data={"value": value})


def told_of(platform: ClusterPlatform, shop: str, name: str) -> dict:
    return platform.event("configmap.created", k8s_namespace_name=shop, irca_k8s_object_name=name)


def measured(platform: ClusterPlatform, home: str) -> int:
    """Series of one figure of the cluster at this moment, over all pods of the agent."""
    query = f'count(k8s_deployment_pod_desired{{k8s_namespace_name="{home}",k8s_deployment_name="incident-rca-agent"}})'
    return int(platform.value(query) or 0)


def test_another_pod_takes_over_from_a_leader_that_was_killed_and_nothing_is_told_twice(platform, home, shop):
    agent = install(platform, home, replicas=2, node_view=True)
    agent.healthy(3)
    edit(shop, "before", "1")
    told_of(platform, shop, "before")
    first = leader(home)
    edit(shop, "at-the-end", "1")

    killed = kill(home, first)
    edit(shop, "while-nobody-led", "1")

    second = eventually(lambda: (now := lease(home)["holderIdentity"]) != first and now, 40)
    taken = datetime.fromisoformat(lease(home)["acquireTime"])
    assert (taken - killed).total_seconds() < TAKES_OVER_WITHIN
    assert second in {pod["metadata"]["name"] for pod in pods(home)}
    for name in ("at-the-end", "while-nobody-led"):
        told_of(platform, shop, name)
    edit(shop, "after", "1")
    told_of(platform, shop, "after")
    told_of(platform, shop, "before")
    assert not doubled(platform.events_in(shop))
    living = lambda: {pod["metadata"]["name"] for view in ("cluster-view", "node-view") for pod in pods(home, view)}  # noqa: E731 - asked again and again
    eventually(lambda: {each["name"] for each in agent.instances()} == living(), why=lambda: f"{living()}; {agent.instances()}")
    agent.healthy(3)
    whole = lambda: platform.get(f"/api/v1/agents/{agent.id}")  # noqa: E731 - asked again and again
    eventually(lambda: (whole()["status"], whole()["replaced_pods"]) == ("healthy", 1), why=lambda: str(whole()))
    assert first not in {each["name"] for each in whole()["instances"]}
    rows = lambda: platform.listed("workloads", namespace=home, search="incident-rca-agent", kind="deployment")  # noqa: E731 - the same
    # One row, whichever pod has reported it.
    eventually(lambda: [(row["desired"], row["available"]) for row in rows()] == [(2, 2)], why=lambda: str(rows()))


def test_the_only_pod_is_replaced_and_its_successor_goes_on_where_it_left(platform, home, shop):
    agent = install(platform, home, replicas=1)
    agent.healthy()
    edit(shop, "before", "1")
    told_of(platform, shop, "before")
    first = leader(home)

    kill(home, first)
    edit(shop, "while-nobody-led", "1")

    told_of(platform, shop, "while-nobody-led")
    told_of(platform, shop, "before")
    eventually(
        lambda: [(each["status"], each["name"] != first) for each in agent.instances()] == [("healthy", True)],
        why=lambda: str(agent.instances()),
    )
    assert not doubled(platform.events_in(shop))


def test_a_right_that_is_taken_away_degrades_one_collector_by_name_and_it_comes_back_with_the_right(platform, home):
    agent = install(platform, home, replicas=1)
    agent.healthy()
    name = f"{home}:incident-rca-agent"
    role = get("clusterrole", name)
    without = [rule | {"resources": [r for r in rule["resources"] if r != "resourcequotas"]} for rule in role["rules"]]
    apply_role(role | {"rules": [rule for rule in without if rule["resources"]]})
    kubectl("-n", home, "delete", "pod", leader(home), "--wait=false")  # a watch that stands is not ended by a right that is taken away

    rule = "verb list on resource resourcequotas (API group core)"
    reason = f"kubernetes.resourcequotas: forbidden: the agent's role lacks {rule}"

    def degraded() -> list[dict]:
        return [each for each in agent.instances() if each["status"] == "degraded" and reason in each["status_reason"]]

    [instance] = eventually(degraded, why=lambda: str(agent.instances()))
    told = platform.get(f"/api/v1/instances/{instance['id']}")
    failing = [part["name"] for part in told["components"] if part["healthy"] is False]
    assert "kubernetes.pods" not in json.dumps(failing)
    ok = 'irca_collector_success_ratio{irca_collector_name="kubernetes.pods",instance="' + instance["id"] + '"}'
    eventually(lambda: platform.value(ok) == 1, why=lambda: f"{ok}: {platform.value(ok)}")
    uid = kubectl("get", "namespace", "kube-system", "--output", "jsonpath={.metadata.uid}")
    eventually(lambda: [one["subject"] for one in platform.get(f"/api/v1/clusters/{uid}/namespaces")["degraded"]] == ["quotas"])

    apply_role(role)

    eventually(lambda: [each["status"] for each in agent.instances()] == ["healthy"], why=lambda: str(agent.instances()))
    eventually(lambda: not platform.get(f"/api/v1/clusters/{uid}/namespaces")["degraded"])


def apply_role(role: dict) -> None:
    kept = {key: value for key, value in role["metadata"].items() if key in ("name", "labels", "annotations")}
    kubectl("replace", "--filename", "-", given=role | {"metadata": kept})
