"""The kubelet of one node: asking it for its summary, and what the summary says as metrics.

It is asked directly, under the permission ``nodes/stats``. The way through the API server would take ``nodes/proxy``, with which one may
also run commands in every container.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx2
import msgspec
from lightkube.config.client_adapter import user_auth, verify_cluster

from connectors.core.errors import CollectorError, ConnectorError, ControlError, PermissionRefusedError, RuntimeUnavailableError
from connectors.core.telemetry import Attributes, Metric, Point, ResourceMetrics
from connectors.kubernetes.access import Access
from connectors.kubernetes.cluster import FORBIDDEN, Cluster
from connectors.kubernetes.metrics import amounts, metric, single
from connectors.kubernetes.resources import Json, timestamp

PORT = 10250
MAX_BYTES = 64 * 1024 * 1024
"""Bytes of a summary: one of the most pods that a node may run takes less than one MiB."""
STATS = Access("get", "", "nodes/stats")

_UNAUTHORIZED = 401
_PATH = "/stats/summary"
_FAULT = "system.paging.fault.type"
_SIZES = (("usage", "usedBytes"), ("available", "availableBytes"), ("capacity", "capacityBytes"))
_INODES = (("inode.count", "inodes"), ("inode.free", "inodesFree"), ("inode.used", "inodesUsed"))


class Kubelet:
    """A node's kubelet, asked as the agent's own service account.

    Each time over a new connection, with certificates and token as they are then: it goes no further than to the own node.

    Args:
        cluster: whose credentials are shown, and whose CA the kubelet's certificate is checked with.
        address: host and port of the kubelet.
        ca_file: PEM bundle to check its certificate with instead.
        insecure: do not check its certificate. The token then goes to whoever answers at that address.
        timeout: seconds that one summary may take.
    """

    def __init__(self, cluster: Cluster, address: str, *, ca_file: str = "", insecure: bool = False, timeout: float = 10.0) -> None:
        self.address = address
        self._cluster = cluster
        self._ca_file = ca_file
        self._insecure = insecure
        self._timeout = timeout

    def summary(self) -> Json:
        """What ``/stats/summary`` says now.

        Raises:
            RuntimeUnavailableError: the kubelet cannot be reached, or does not answer in time.
            PermissionRefusedError: it does not take our token, or the account may not read ``nodes/stats``.
            CollectorError: its certificate is not trusted (the reason names the options), or what it says makes no sense.
            ControlError: it refuses for another reason, or there are no credentials here.
        """
        try:
            with self._client() as client:
                found = msgspec.json.decode(self._read(client))
        except msgspec.DecodeError as exc:
            raise CollectorError(f"what answers at {self.address} is no kubelet: its summary is not JSON") from exc
        except (httpx2.HTTPError, OSError) as exc:
            raise _explained(exc, self.address, self._timeout) from exc
        if not isinstance(found, dict):
            raise CollectorError(f"what answers at {self.address} is no kubelet: its summary is not an object")
        return found

    def _read(self, client: httpx2.Client) -> bytes:
        deadline, body = time.monotonic() + self._timeout, bytearray()
        with client.stream("GET", _PATH) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if time.monotonic() > deadline:
                    raise TimeoutError
                if len(body) > MAX_BYTES:
                    raise CollectorError(f"the kubelet's summary is larger than {MAX_BYTES} bytes")
            status = response.status_code
        if status == FORBIDDEN:
            raise PermissionRefusedError(f"forbidden: the agent's role lacks {STATS.rule}")
        if status == _UNAUTHORIZED:
            raise PermissionRefusedError("the kubelet does not accept the agent's token: it has to run with authentication by webhook")
        if not response.is_success:
            words = " ".join(bytes(body[:1000]).decode("utf-8", "replace").split())[:300]
            raise ControlError(f"the kubelet at {self.address} answered {status}: {words}")
        return bytes(body)

    def _client(self) -> httpx2.Client:
        config = self._cluster.config
        user = config.user
        if user is None:
            raise ControlError("there are no credentials to show to the kubelet")
        return httpx2.Client(
            base_url=f"https://{self.address}",
            verify=self._context(lambda: verify_cluster(config.cluster, user, config.abs_file)),
            auth=user_auth(user),
            timeout=self._timeout,
            trust_env=False,  # a proxy has no business between a pod and its own node
        )

    def _context(self, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        if self._insecure:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context
        if not self._ca_file:
            return default()
        try:
            return ssl.create_default_context(cafile=self._ca_file)
        except OSError as exc:
            raise ControlError(f"kubelet_ca_file {self._ca_file} cannot be used: {exc.strerror or exc}") from exc


def kubelet_address(configured: str, node_ip: str) -> str:
    """Host and port of the kubelet: what is configured, else port 10250 of the node's own address.

    Raises:
        CollectorError: nothing says what the node's address is.
    """
    if configured:
        return configured if re.search(r":\d+$", configured) else f"{configured}:{PORT}"
    if not node_ip:
        raise CollectorError("NODE_IP does not say what the node's address is: the chart sets it, or kubelet_address says it")
    return f"[{node_ip}]:{PORT}" if ":" in node_ip else f"{node_ip}:{PORT}"


def summary_metrics(summary: Json, node: Attributes, now: float) -> Iterator[ResourceMetrics]:
    """What a summary says of the node, its system containers, its pods and their containers. ``now`` is in Unix seconds."""
    found, pods = summary.get("node") or {}, summary.get("pods") or ()
    yield ResourceMetrics(node, [*_node_metrics(found, now), single("irca.k8s.node.kubelet.pod.count", len(pods))])
    for system in found.get("systemContainers") or ():
        resource = {**node, "k8s.node.system_container.name": str(system["name"])}
        wanted = ("cpu.time", "cpu.usage", "memory.usage", "memory.working_set")
        yield ResourceMetrics(resource, list(_usage("k8s.node.system_container", system, _started(system), wanted)))
    for pod in pods:
        yield from _pod_metrics(pod, str(node["k8s.node.name"]), now)


def _node_metrics(found: Json, now: float) -> Iterator[Metric]:
    started = _started(found)
    yield from _usage("k8s.node", found, started)
    yield from _uptime("k8s.node.uptime", found, now)
    yield from _faults("k8s.node.paging.faults", found, started)
    yield from _network("k8s.node.network", found, started)
    filesystem, images = found.get("fs") or {}, (found.get("runtime") or {}).get("imageFs") or {}
    yield from amounts((f"k8s.node.filesystem.{name}", filesystem.get(key)) for name, key in (*_SIZES, *_INODES[:2]))
    yield from amounts((f"irca.k8s.node.image_filesystem.{name}", images.get(key)) for name, key in _SIZES)
    limits = found.get("rlimit") or {}
    yield from amounts((("irca.k8s.node.process.count", limits.get("curproc")), ("irca.k8s.node.process.limit", limits.get("maxpid"))))


def _pod_metrics(pod: Json, node_name: str, now: float) -> Iterator[ResourceMetrics]:
    reference, started = pod["podRef"], _started(pod)
    resource: dict[str, str] = {
        "k8s.pod.uid": reference["uid"],
        "k8s.pod.name": reference["name"],
        "k8s.namespace.name": reference["namespace"],
        "k8s.node.name": node_name,
    }
    storage = pod.get("ephemeral-storage") or {}
    metrics = [
        *_usage("k8s.pod", pod, started),
        *_network("k8s.pod.network", pod, started),
        *amounts([("k8s.pod.filesystem.usage", storage.get("usedBytes"))]),
        *_volumes(pod.get("volume") or ()),
    ]
    yield ResourceMetrics(resource, metrics)
    for container in pod.get("containers") or ():
        yield ResourceMetrics({**resource, "k8s.container.name": container["name"]}, list(_container_metrics(container, now)))


def _container_metrics(container: Json, now: float) -> Iterator[Metric]:
    started = _started(container)
    yield from _usage("container", container, started)
    yield from _uptime("container.uptime", container, now)
    yield from _faults("container.paging.faults", container, started)
    layers = [
        Point(float(used), {"k8s.container.ephemeral_storage.fs_type": kind})
        for kind in ("rootfs", "logs")
        if (used := (container.get(kind) or {}).get("usedBytes")) is not None
    ]
    if layers:
        yield metric("k8s.container.ephemeral_storage.usage", layers)


def _usage(prefix: str, stats: Json, started: int, wanted: tuple[str, ...] = ()) -> Iterator[Metric]:
    """CPU and memory, under ``prefix``; only those in ``wanted``, if it says some. Counters began at ``started``."""
    cpu, memory = stats.get("cpu") or {}, stats.get("memory") or {}
    values: tuple[tuple[str, float | None, float], ...] = (
        ("cpu.time", cpu.get("usageCoreNanoSeconds"), 1e9),
        ("cpu.usage", cpu.get("usageNanoCores"), 1e9),
        ("memory.usage", memory.get("usageBytes"), 1),
        ("memory.working_set", memory.get("workingSetBytes"), 1),
        ("memory.rss", memory.get("rssBytes"), 1),
        ("memory.available", memory.get("availableBytes"), 1),
    )
    for name, value, unit in values:
        if value is not None and (not wanted or name in wanted):
            yield single(f"{prefix}.{name}", value / unit, started if name == "cpu.time" else 0)


def _uptime(name: str, stats: Json, now: float) -> Iterator[Metric]:
    if (began := timestamp(stats.get("startTime"))) is not None:
        yield single(name, max(0.0, now - began))


def _faults(name: str, stats: Json, started: int) -> Iterator[Metric]:
    memory = stats.get("memory") or {}
    if (whole := memory.get("pageFaults")) is not None:
        major = memory.get("majorPageFaults") or 0
        yield metric(name, [Point(float(major), {_FAULT: "major"}), Point(float(max(0, whole - major)), {_FAULT: "minor"})], started)


def _network(prefix: str, stats: Json, started: int) -> Iterator[Metric]:
    """Bytes and errors of each interface by direction."""
    interfaces = (stats.get("network") or {}).get("interfaces") or ()
    for name, keys in (("io", ("rxBytes", "txBytes")), ("errors", ("rxErrors", "txErrors"))):
        points = [
            Point(float(interface[key]), {"network.interface.name": interface["name"], "network.io.direction": direction})
            for interface in interfaces
            for key, direction in zip(keys, ("receive", "transmit"), strict=True)
            if interface.get(key) is not None
        ]
        if points:
            yield metric(f"{prefix}.{name}", points, started)


def _volumes(volumes: Any) -> Iterator[Metric]:
    """Volumes of claims. The others lie on the node's own file system."""
    claimed: list[tuple[Json, Mapping[str, str]]] = [
        (
            volume,
            {
                "k8s.volume.name": volume["name"],
                "k8s.volume.type": "persistentVolumeClaim",
                "k8s.persistentvolumeclaim.name": volume["pvcRef"]["name"],
            },
        )
        for volume in volumes
        if volume.get("pvcRef")
    ]
    for name, key in (*_SIZES, *_INODES):
        if points := [Point(float(volume[key]), attributes) for volume, attributes in claimed if volume.get(key) is not None]:
            yield metric(f"k8s.pod.volume.{name}", points)


def _started(stats: Json) -> int:
    """When counting began, in Unix nanoseconds; 0 where it is not said."""
    return int((timestamp(stats.get("startTime")) or 0.0) * 1e9)


def _explained(exc: Exception, address: str, timeout: float) -> ConnectorError:
    """What a request that failed on its way means."""
    if isinstance(exc, (httpx2.TimeoutException, TimeoutError)):
        return RuntimeUnavailableError(f"the kubelet at {address} does not answer within {timeout:g} s")
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return CollectorError(
                f"the certificate of the kubelet at {address} is not trusted: {cause.verify_message}; "
                "kubelet_ca_file names the CA that signed it, and kubelet_insecure leaves the check out"
            )
        cause = cause.__cause__ or cause.__context__
    return RuntimeUnavailableError(f"the kubelet at {address} cannot be reached: {' '.join(str(exc).split())[:300] or type(exc).__name__}")
