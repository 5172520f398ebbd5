"""The printed command connects a cluster: the literal string that the API returned, with the real helm, on a real cluster."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator

import pytest
from e2e.kubernetes_cluster import (
    IMAGE,
    ClusterPlatform,
    Provisioned,
    apply,
    get,
    kubectl,
    objects_of,
    own_namespace,
    platform_for_the_cluster,
    pods,
    why,
)
from waiting import eventually

from connectors.kubernetes.access import needed
from connectors.kubernetes.config import K8sAgentConfig

pytestmark = [pytest.mark.requires("kubernetes", "helm", "docker"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def platform(tmp_path_factory) -> Iterator[ClusterPlatform]:
    with platform_for_the_cluster(tmp_path_factory.mktemp("kubernetes")) as made:
        yield made


@pytest.fixture
def namespace() -> Iterator[str]:
    with own_namespace() as name:
        yield name


def install(platform: ClusterPlatform, namespace: str, command: str) -> None:
    done = platform.run(command, check=False)
    assert done.returncode == 0, done.stderr + done.stdout + why(namespace)


def available(platform: ClusterPlatform, namespace: str) -> float | None:
    """Pods of the agent's own Deployment, as the agent measured them."""
    return platform.value(f'k8s_deployment_pod_available{{k8s_namespace_name="{namespace}",k8s_deployment_name="incident-rca-agent"}}')


def leader(namespace: str) -> str:
    return get("lease", "incident-rca-agent", "--namespace", namespace)["spec"]["holderIdentity"]


def leave_nothing(platform: ClusterPlatform, namespace: str, agent: Provisioned) -> None:
    platform.run(agent.uninstall)
    eventually(lambda: not objects_of(namespace), why=lambda: str(objects_of(namespace)))


def allowed(namespace: str, account: str) -> set[tuple[str, str, str, tuple[str, ...]]]:
    """What ``kubectl auth can-i --list`` says that the account may do: verb, group, resource, names; without what every account may."""
    listed = kubectl(
        "auth", "can-i", "--list", "--no-headers", "--namespace", namespace, f"--as=system:serviceaccount:{namespace}:{account}"
    )
    found = set()
    for line in listed.splitlines():
        resource, names, verbs = re.fullmatch(
            r"(\S*)\s+\[.*?\]\s+\[(.*?)\]\s+\[(.*?)\]", line.strip() if line[0] != " " else f"- {line.strip()}"
        ).groups()
        if resource == "-" or resource.startswith("selfsubject"):
            continue
        name, _, rest = resource.partition(".")
        name, slash, sub = name.partition("/")
        found |= {(verb, rest, name + slash + sub, tuple(names.split())) for verb in verbs.split()}
    return found


def test_one_pod_connects_the_cluster_and_leaves_nothing(platform, namespace):
    agent = platform.provision(namespace)
    begun = time.monotonic()

    install(platform, namespace, agent.command)

    [instance] = agent.healthy()
    assert time.monotonic() - begun < 60, "a bound against hanging, not a performance figure"
    [pod] = pods(namespace)
    assert instance["name"] == pod["metadata"]["name"]
    [container] = pod["spec"]["containers"]
    assert container["image"] == IMAGE
    assert pod["status"]["containerStatuses"][0]["ready"] is True
    assert agent.token not in json.dumps(get("all,leases,configmaps,roles", "--namespace", namespace))
    eventually(lambda: available(platform, namespace) == 1)
    node = pod["spec"]["nodeName"]
    ready = f'k8s_node_condition_status{{k8s_node_name="{node}",k8s_node_condition_type="Ready",k8s_node_condition_status="true"}}'
    eventually(lambda: platform.value(ready) == 1)

    config = K8sAgentConfig(namespace=namespace)
    assert allowed(namespace, "incident-rca-agent") == {(a.verb, a.group, a.resource, a.names) for a in needed(config)}
    check = subprocess.run(
        ["kubectl", "-n", namespace, "exec", "deployment/incident-rca-agent", "--", "incident-rca-agent", "check", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert check.returncode == 0, check.stdout + check.stderr

    leave_nothing(platform, namespace, agent)


def test_two_pods_and_the_node_view_connect_and_the_command_may_be_run_again(platform, namespace):
    agent = platform.provision(namespace, replicas=2, node_view=True)

    install(platform, namespace, agent.command)
    agent.healthy(3)

    assert len(pods(namespace)) == 2
    [node] = pods(namespace, "node-view")
    assert eventually(lambda: leader(namespace)) in {pod["metadata"]["name"] for pod in pods(namespace)}
    eventually(lambda: available(platform, namespace) == 2)
    uses = f'k8s_node_memory_working_set_bytes{{k8s_node_name="{node["spec"]["nodeName"]}"}}'
    eventually(lambda: (platform.value(uses) or 0) > 1e7)
    view = K8sAgentConfig(view="node")
    assert allowed(namespace, "incident-rca-agent-node") == {(a.verb, a.group, a.resource, a.names) for a in needed(view)}

    before = {pod["metadata"]["uid"] for pod in pods(namespace)}
    install(platform, namespace, agent.command)
    assert {pod["metadata"]["uid"] for pod in pods(namespace)} == before
    assert leader(namespace)

    leave_nothing(platform, namespace, agent)


def test_a_revoked_token_fails_the_command_says_why_and_a_new_one_mends_it(platform, namespace):
    revoked = platform.provision(namespace)
    for token in platform.get(f"/api/v1/agents/{revoked.id}/tokens")["items"]:
        platform.client.delete(f"/api/v1/enrolment-tokens/{token['id']}").raise_for_status()

    done = platform.run(revoked.command.replace("--timeout 3m", "--timeout 25s"), check=False)
    assert done.returncode != 0
    assert revoked.token not in done.stdout + done.stderr

    def told() -> bool:
        events = get("events", "--namespace", namespace)["items"]
        return any("not enrolled yet" in e["message"] and "revoked" in e["message"] for e in events if e["reason"] == "Unhealthy")

    eventually(told, why=lambda: why(namespace))
    restarts = [pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods(namespace)]
    assert restarts == [0], "an agent whose token is refused is not restarted for that"

    mended = platform.provision(namespace)
    install(platform, namespace, mended.command)
    mended.healthy()
    leave_nothing(platform, namespace, mended)


def test_the_token_may_come_on_standard_input(platform, namespace):
    agent = platform.provision(namespace)
    [command] = [text for title, text in agent.alternatives if "standard input" in title]

    install(platform, namespace, command)

    agent.healthy()
    leave_nothing(platform, namespace, agent)


def test_the_token_may_be_in_a_secret_of_ones_own(platform, namespace):
    agent = platform.provision(namespace)
    [(title, command)] = [(title, text) for title, text in agent.alternatives if "Secret" in title]
    make = re.search(r"`(.*)`", title)[1]
    platform.run(f"printf '%s\\n' {agent.token} | {{ {make}; }}")

    install(platform, namespace, command)

    agent.healthy()
    platform.run(agent.uninstall)
    eventually(lambda: objects_of(namespace) == {"secret/incident-rca-agent"})


def test_kubectl_alone_connects_the_cluster_and_removes_what_it_made(platform, namespace):
    agent = platform.provision(namespace, replicas=2, node_view=True)
    [command] = [text for title, text in agent.alternatives if title.startswith("kubectl instead")]
    [removal] = [text for title, text in agent.alternatives if "removes" in title]
    old = lambda text: text.replace("manifests.yaml?", "manifests.yaml?kubernetes=1.20&")  # noqa: E731 - this cluster has no policy/v1

    install(platform, namespace, old(command))

    agent.healthy(3)
    platform.run(old(removal))
    eventually(lambda: not objects_of(namespace), why=lambda: str(objects_of(namespace)))


def test_the_roles_of_every_feature_are_taken_by_the_cluster_as_they_are_documented(platform, namespace):
    features = ["quotas", "secrets"]
    agent = platform.provision(namespace, features=features)

    platform.run(agent.command.replace("--wait --timeout 3m", ""))

    config = K8sAgentConfig.from_mapping({"namespace": namespace, "features": features})
    assert allowed(namespace, "incident-rca-agent") == {(a.verb, a.group, a.resource, a.names) for a in needed(config)}
    leave_nothing(platform, namespace, agent)


def test_other_services_of_the_namespace_do_not_become_options(platform, namespace):
    kubectl("create", "namespace", namespace)
    apply(namespace, "Service", "log", spec={"ports": [{"port": 80}], "selector": {"none": "such"}})
    agent = platform.provision(namespace)

    install(platform, namespace, agent.command)

    agent.healthy()
    variables = kubectl("-n", namespace, "exec", "deployment/incident-rca-agent", "--", "env").splitlines()
    assert not [variable for variable in variables if variable.startswith("LOG_")]
    assert [variable for variable in variables if variable.startswith("KUBERNETES_SERVICE_HOST=")]
    assert not [variable for variable in variables if agent.token in variable]
