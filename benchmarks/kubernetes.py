"""The kubernetes agent's cluster view at 1,000 pods: its resident memory and CPU, and its requests to the API server a minute.

Needs a cluster that may be written to (``KUBECONFIG``) with kubectl. Pods are made through the API, in a namespace of their own which goes
at the end. No scheduler looks at them, and their status is written as a kubelet would: a container that runs, with limits and requests.
The agent is a process of this machine with what it has in a pod: spool, transport, and a watch for each kind over TLS.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from ingest import platform, provision  # noqa: E402 - the path above comes first
from processes import PYTHON, Measured, answers, free_port, running, wait_for  # noqa: E402

PREFIX = "irca-bench"
STEADY = 20.0
"""Seconds after the first whole collection before the window begins."""


@dataclass
class Figures:
    """In steady state: resident MB (median, most), CPU seconds a minute, requests a minute of watches and of the Lease, points a round.

    A watch lasts three to five minutes, so that a shorter window sees few of them begin, or none.
    """

    pods: int
    rss_mb: float
    peak_mb: float
    cpu_s_per_min: float
    requests_per_min: float
    lease_per_min: float
    points: int


def main() -> None:
    """Measure and print; the exit code does not judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=1000)
    parser.add_argument("--window", type=float, default=300.0)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.inside:
        _run_counted(Path(chosen.inside))
        return
    if why := missing():
        raise SystemExit(f"benchmark: {why}")
    found = measure(chosen.pods, chosen.window)
    print(
        f"{found.pods} pods: resident {found.rss_mb:.1f} MB (peak {found.peak_mb:.1f}), CPU {found.cpu_s_per_min:.2f} s/min, "
        f"{found.requests_per_min:.1f} requests/min beside {found.lease_per_min:.1f} for its Lease, {found.points} points a round"
    )


def missing() -> str:
    """Why it cannot be measured here; empty when it can."""
    if not os.environ.get("KUBECONFIG"):
        return "KUBECONFIG names no cluster"
    return "" if shutil.which("kubectl") else "kubectl is not installed"


def measure(pods: int = 1000, window: float = 300.0) -> Figures:
    """Figures of an agent that watches a cluster with ``pods`` more pods than it has, over ``window`` seconds."""
    namespace = f"{PREFIX}-{os.getpid()}"
    folder, port = Path(tempfile.mkdtemp(prefix="irca-bench-")), free_port()
    _kubectl("create", "namespace", namespace)
    try:
        _make_pods(namespace, pods)
        argv, env = platform(port, folder)
        with running(argv, env, folder):
            wait_for(lambda: answers(f"http://127.0.0.1:{port}/readyz"), "start of the platform")
            agent_env = {
                "PLATFORM_API_URL": f"http://127.0.0.1:{port}",
                "AGENT_TOKEN": provision(port, "bench-cluster", agent_type="kubernetes"),
                "AGENT_TYPE": "kubernetes",
                "STATE_DIR": str(folder / "agent"),
                "POD_NAMESPACE": namespace,
                "PYTHONPATH": env["PYTHONPATH"],
                "MALLOC_ARENA_MAX": "2",  # as in the image
            }
            counts = folder / "requests.json"
            with running([PYTHON, str(Path(__file__).resolve()), "--inside", str(counts)], agent_env, folder) as agent:
                wait_for(lambda: counts.exists() and _read(counts).get("points", 0) > pods, "first whole collection", 120)
                time.sleep(STEADY)
                return _window(agent, counts, pods, window)
    finally:
        _kubectl("delete", "namespace", namespace, "--wait=false")
        shutil.rmtree(folder, ignore_errors=True)


def _window(agent: Measured, counts: Path, pods: int, seconds: float) -> Figures:
    before, cpu, begun = _read(counts), agent.cpu_seconds(), time.monotonic()
    resident = []
    while time.monotonic() - begun < seconds:
        time.sleep(1)
        resident.append(agent.rss_mb())
    minutes = (time.monotonic() - begun) / 60
    after = _read(counts)
    made = {kind: (after[kind] - before[kind]) / minutes for kind in ("lease", "other")}
    resident.sort()
    return Figures(
        pods,
        resident[len(resident) // 2],
        resident[-1],
        (agent.cpu_seconds() - cpu) / minutes,
        made["other"],
        made["lease"],
        int(after["points"]),
    )


def _run_counted(counts: Path) -> None:
    """The agent, which writes down how often it asks the API server for what, once a second at most."""
    from connectors import cli
    from connectors.core.base_agent import BaseAgent
    from connectors.kubernetes.cluster import Cluster

    made: Counter[str] = Counter(lease=0, other=0, points=0)

    def count(method: Any, place: int) -> Any:
        def counted(self: Cluster, *arguments: Any, **options: Any) -> Any:
            made["lease" if "/leases" in arguments[place] else "other"] += 1
            return method(self, *arguments, **options)

        return counted

    def collected(method: Any) -> Any:
        def collect(self: BaseAgent) -> Any:
            collection = method(self)
            made["points"] = collection.point_count
            new = counts.with_suffix(".new")
            new.write_text(json.dumps(made))
            new.replace(counts)
            return collection

        return collect

    Cluster.request = count(Cluster.request, 1)  # type: ignore[method-assign]  # counted, and otherwise as it is
    Cluster.stream = count(Cluster.stream, 0)  # type: ignore[method-assign]  # likewise
    BaseAgent.collect_metrics = collected(BaseAgent.collect_metrics)  # type: ignore[method-assign]  # likewise
    raise SystemExit(cli.main(["run"]))


def _make_pods(namespace: str, number: int) -> None:
    from connectors.kubernetes.access import Access
    from connectors.kubernetes.cluster import Cluster

    cluster, access = Cluster(timeout=30), Access("create", "", "pods")
    path = f"/api/v1/namespaces/{namespace}/pods"

    def make(index: int) -> None:
        made = cluster.request("POST", path, access, document=_pod(namespace, f"web-{index:05d}")).json()
        moment = made["metadata"]["creationTimestamp"]
        state = {"running": {"startedAt": moment}}
        container = {"name": "app", "image": "shop/web:1.4.2", "imageID": "", "ready": True, "restartCount": index % 3, "state": state}
        made["status"] |= {"phase": "Running", "startTime": moment, "containerStatuses": [container]}
        cluster.request("PUT", f"{path}/{made['metadata']['name']}/status", access, document=made)

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(make, range(number)))
    finally:
        cluster.close()


def _pod(namespace: str, name: str) -> dict[str, Any]:
    labels = {"app": "web", "app.kubernetes.io/name": "web", "app.kubernetes.io/version": "1.4.2", "helm.sh/chart": "shop-1.4.2"}
    environment = [{"name": f"SETTING_{number}", "value": "a value of some length"} for number in range(12)]
    resources = {"limits": {"cpu": "500m", "memory": "256Mi"}, "requests": {"cpu": "100m", "memory": "128Mi"}}
    container = {"name": "app", "image": "shop/web:1.4.2", "env": environment, "resources": resources}
    spec = {"schedulerName": f"{PREFIX}-nobody", "terminationGracePeriodSeconds": 0, "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": labels}, "spec": spec}


def _kubectl(*words: str) -> None:
    subprocess.run(["kubectl", *words], check=True, capture_output=True, timeout=120)


def _read(counts: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads(counts.read_text())
    return found


if __name__ == "__main__":
    main()
