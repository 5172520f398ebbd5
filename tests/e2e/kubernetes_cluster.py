"""A platform and a real cluster connected to it with what the platform printed, for the tests of the kubernetes type.

Import as ``from e2e.kubernetes_cluster import ClusterPlatform, kubectl, ...``.
Every test has namespaces of its own, which begin with ``kh-``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
from waiting import eventually

from connectors._version import __version__

ROOT = Path(__file__).resolve().parents[2]
GATEWAY = os.environ.get("IRCA_TEST_GATEWAY", "172.17.0.1")
"""This machine, as pods see it."""
KEY = "a-preset-admin-key-for-tests"
IMAGE = f"incident-rca/agent:{__version__}"
QUICK = {"collect_interval": 2, "heartbeat_interval": 5, "kubelet_insecure": True}

SESSION = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex
"""What all workers of one session of tests have in common."""


def kubectl(*words: str, given: object = None, check: bool = True) -> str:
    document = None if given is None else json.dumps(given)
    done = subprocess.run(["kubectl", *words], input=document, capture_output=True, text=True, timeout=120, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout.strip()


def apply(namespace: str, kind: str, name: str, api: str = "v1", **rest: object) -> None:
    """Make or change one object."""
    document = {"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": namespace}, **rest}
    kubectl("apply", "--filename", "-", given=document)


def get(*words: str) -> Any:
    """What ``kubectl get`` of these words gives, as JSON."""
    return json.loads(kubectl("get", *words, "--output", "json"))


def names(kind: str, namespace: str = "") -> set[str]:
    found = kubectl("get", kind, *(["--namespace", namespace] if namespace else []), "--output", "name", "--ignore-not-found")
    return set(found.split())


def objects_of(namespace: str) -> set[str]:
    """Every object in the namespace, and every one outside of namespaces whose name tells of it, but for the cluster's own."""
    made_by_the_cluster = ("/default", "configmap/kube-root-ca.crt", "event", "token-")
    kinds = kubectl("api-resources", "--verbs=list", "--namespaced", "--output=name").split()
    inside = names(",".join(k for k in kinds if not k.startswith("events")), namespace)
    outside = names("clusterroles,clusterrolebindings,priorityclasses,customresourcedefinitions,persistentvolumes")
    return {n for n in inside if not any(part in n for part in made_by_the_cluster)} | {n for n in outside if namespace in n}


@contextlib.contextmanager
def own_namespace(word: str = "agent") -> Iterator[str]:
    """The name of a namespace that nobody has; what is in it at the end goes."""
    name = f"kh-{word}-{uuid.uuid4().hex[:6]}"
    try:
        yield name
    finally:
        kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")
        kubectl(
            "delete",
            "clusterrole,clusterrolebinding",
            f"{name}:incident-rca-agent",
            f"{name}:incident-rca-agent-node",
            "--ignore-not-found",
        )


def build_image(folder: Path) -> str:
    """The agent's image, built by the product's own command, once for a whole session of tests with all of its workers; its name."""
    built = Path(tempfile.gettempdir()) / f"irca-image-{SESSION}"
    with built.open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if not lock.read():
            _build_image(folder)
            lock.write("built")
    return IMAGE


def _build_image(folder: Path) -> None:
    base = os.environ.get("IRCA_TEST_BASE_IMAGE", "")
    command = [sys.executable, "-m", "app.cli", "image", "build", "--no-save", "--data-dir", str(folder / "image")]
    done = subprocess.run(
        [*command, *(["--base-image", base] if base else [])], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr


class Provisioned:
    """An agent as the provisioning route answered."""

    def __init__(self, platform: ClusterPlatform, answer: Mapping[str, Any]) -> None:
        self.platform = platform
        self.id = answer["agent_id"]
        self.token = answer["agent_token"]
        self.command = answer["deployment_command"]
        self.uninstall = answer["uninstall_command"]
        self.alternatives = [(each["title"], each["content"]) for each in answer["alternatives"]]

    def instances(self) -> list[dict[str, Any]]:
        return list(self.platform.get(f"/api/v1/agents/{self.id}")["instances"])

    def healthy(self, count: int = 1) -> list[dict[str, Any]]:
        """Its healthy instances, once there are ``count`` of them."""

        def enough() -> list[dict[str, Any]]:
            found = [each for each in self.instances() if each["status"] == "healthy"]
            return found if len(found) >= count else []

        return eventually(enough, why=lambda: f"instances: {[(i['status'], i.get('reason')) for i in self.instances()]}")


class ClusterPlatform:
    """A real platform in a process of its own, which the cluster's pods reach; run commands with Helm's homes in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind((GATEWAY, 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://{GATEWAY}:{self.port}"
        self.client = httpx2.Client(base_url=self.url, headers={"authorization": f"Bearer {KEY}"}, timeout=30, trust_env=False)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        env = {**os.environ, "IRCA_PUBLIC_URL": self.url, "IRCA_ADMIN_API_KEY": KEY, "PYTHONPATH": str(ROOT)}
        env["IRCA_HEARTBEAT_INTERVAL"] = str(QUICK["heartbeat_interval"])
        argv = [sys.executable, "-m", "app.cli", "serve", "--host", GATEWAY, "--port", str(self.port)]
        with (self.folder / "platform.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*argv, "--data-dir", str(self.folder / "data")], cwd=self.folder, env=env, stdout=log, stderr=log
            )
        eventually(self._is_ready)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)
            self.process = None

    def close(self) -> None:
        self.stop()
        self.client.close()

    def _is_ready(self) -> bool:
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def get(self, path: str, **params: object) -> Any:
        return self.client.get(path, params=params).raise_for_status().json()

    def provision(self, namespace: str, **config: object) -> Provisioned:
        """Provision an agent for the cluster; ``config`` beside the namespace and :data:`QUICK` intervals."""
        body = {"agent_type": "kubernetes", "environment_name": namespace, "config": {"namespace": namespace, **QUICK, **config}}
        return Provisioned(self, self.client.post("/api/v1/agent/provision", json=body).raise_for_status().json())

    def run(self, command: str, check: bool = True, seconds: float = 400) -> subprocess.CompletedProcess[str]:
        """Run what was printed, as a user would: the literal text, in bash."""
        homes = {f"HELM_{word}_HOME": str(self.folder / "helm" / word.lower()) for word in ("CACHE", "CONFIG", "DATA")}
        done = subprocess.run(
            ["bash", "-c", command],
            env={**os.environ, **homes},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr + done.stdout
        return done

    def value(self, query: str) -> float | None:
        """The first value of a PromQL query."""
        result = self.get("/prometheus/api/v1/query", query=query)["data"]["result"]
        return float(result[0]["value"][1]) if result else None

    def events(self, name: str, **attributes: object) -> list[dict[str, Any]]:
        """The events of this name with these attributes, their own or their resource's (``k8s_pod_name`` is ``k8s.pod.name``)."""
        wanted = {key.replace("_", "."): value for key, value in attributes.items()}
        found = self.get("/api/v1/events", name=name, limit=500)["items"]
        return [each for each in found if wanted.items() <= {**each["resource"], **each["attributes"]}.items()]

    def event(self, what: str, **attributes: object) -> dict[str, Any]:
        """The one event ``irca.kubernetes.<what>`` with these attributes, once it has come."""
        name = f"irca.kubernetes.{what}"
        told = lambda: [(e["name"], e["body"]) for e in self.get("/api/v1/events", limit=40)["items"]]  # noqa: E731 - asked only where it fails
        eventually(lambda: self.events(name, **attributes), why=lambda: f"{name} {attributes}; there is {told()}")
        [event] = self.events(name, **attributes)
        return event

    def events_in(self, namespace: str) -> list[dict[str, Any]]:
        """Every event about this namespace, or of something in it; newest first."""
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while page := self.get("/api/v1/events", limit=500, **({"cursor": cursor} if cursor else {})):
            found += [e for e in page["items"] if {**e["resource"], **e["attributes"]}.get("k8s.namespace.name") == namespace]
            if not (cursor := page["next_cursor"]):
                break
        return found

    def listed(self, what: str, **wanted: object) -> list[dict[str, Any]]:
        """Nodes, namespaces, workloads or pods of the cluster, as the platform's API lists them."""
        uid = kubectl("get", "namespace", "kube-system", "--output", "jsonpath={.metadata.uid}")
        return list(self.get(f"/api/v1/clusters/{uid}/{what}", limit=500, **wanted)["items"])


@contextlib.contextmanager
def platform_for_the_cluster(folder: Path) -> Iterator[ClusterPlatform]:
    """A platform that is ready, with the agent's image built."""
    build_image(folder)
    platform = ClusterPlatform(folder)
    platform.start()
    try:
        yield platform
    finally:
        platform.close()


def pod_spec(command: str = "sleep 3600", image: str = IMAGE, **container: object) -> dict[str, Any]:
    """A pod with one container, ``app``, of an image that the node has, which ends at once when it is told to."""
    app = {"name": "app", "image": image, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", command], **container}
    return {"terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False, "containers": [app]}


def deploy(namespace: str, name: str, replicas: int = 1, **pod: Any) -> None:
    """Make or change a deployment; ``pod`` as :func:`pod_spec` takes it."""
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": pod_spec(**pod)}
    apply(namespace, "Deployment", name, "apps/v1", spec={"replicas": replicas, "selector": {"matchLabels": labels}, "template": template})


def doubled(events: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """What is told more than once: name, time and text of the events."""
    told = Counter((event["name"], event["time"], event["body"]) for event in events)
    return [each for each, times in told.items() if times > 1]


def pods(namespace: str, component: str = "cluster-view") -> list[dict[str, Any]]:
    """The agent's pods that are not going."""
    items = get("pods", "--namespace", namespace, "--selector", f"app.kubernetes.io/component={component}")["items"]
    return [pod for pod in items if not pod["metadata"].get("deletionTimestamp")]


def why(namespace: str) -> str:
    """What to look at when an agent does not come up."""
    logs = kubectl(
        *("--namespace", namespace, "logs", "--selector", "app.kubernetes.io/name=incident-rca-agent"),
        "--all-containers",
        "--tail=30",
        check=False,
    )
    return "\n".join([kubectl("--namespace", namespace, "get", "pods,events", check=False), logs])
