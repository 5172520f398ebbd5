"""The node view's collectors: what a node's kubelet measures of it and its pods, and the host's own figures.

The host's come from ``/proc/stat`` and its like, which show the host in any container that shares its kernel: nothing of the host needs to
be mounted for them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from connectors.core.collector import Collector
from connectors.core.errors import CollectorError
from connectors.core.procfs import boot_time, cpu_metrics, disk_metrics, load_metrics, memory_metrics
from connectors.core.telemetry import Attributes, ResourceMetrics
from connectors.kubernetes.cluster import Cluster
from connectors.kubernetes.config import K8sAgentConfig
from connectors.kubernetes.kubelet import Kubelet, kubelet_address, summary_metrics

_NODE = ("k8s.node.uid", "k8s.node.name")


def node_collectors(
    cluster: Cluster, config: K8sAgentConfig, resource: Callable[[], Attributes], clock: Callable[[], float] = time.time
) -> Sequence[Collector]:
    """The node view's collectors, ``kubernetes.kubelet`` and ``kubernetes.host``.

    ``NODE_IP`` in the environment says where the kubelet is, unless ``kubelet_address`` does. ``resource`` is the agent's own: what it says
    of the node (``k8s.node.uid``, ``k8s.node.name``) is the node's.
    """
    return [KubeletCollector(cluster, config, resource, clock), HostCollector(resource)]


class KubeletCollector:
    """The node, its pods and their containers, as the node's kubelet measures them."""

    name = "kubernetes.kubelet"

    def __init__(self, cluster: Cluster, config: K8sAgentConfig, resource: Callable[[], Attributes], clock: Callable[[], float]) -> None:
        self._cluster = cluster
        self._config = config
        self._resource = resource
        self._clock = clock

    def collect(self) -> Iterator[ResourceMetrics]:
        """One resource for the node, each of its system containers, pods and their containers.

        Raises:
            ControlError: the kubelet cannot be asked; as :meth:`connectors.kubernetes.kubelet.Kubelet.summary`.
            CollectorError: its certificate is not trusted, it is another node's, or its summary makes no sense.
        """
        address = kubelet_address(self._config.kubelet_address, os.environ.get("NODE_IP", ""))
        config = self._config
        kubelet = Kubelet(
            self._cluster, address, ca_file=config.kubelet_ca_file, insecure=config.kubelet_insecure, timeout=config.kube_timeout
        )
        summary = kubelet.summary()
        own = self._resource()
        node = {key: own[key] for key in _NODE if key in own}
        try:
            named = str(summary["node"]["nodeName"])
            if node.setdefault("k8s.node.name", named) != named:
                raise CollectorError(f"{address} is the kubelet of {named}, not of {node['k8s.node.name']}")
            yield from summary_metrics(summary, node, self._clock())
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise CollectorError(f"the kubelet's summary makes no sense: {type(exc).__name__}: {exc}") from exc


class HostCollector:
    """The host's CPU, memory, paging, disks and load. Metrics are of the agent's own resource."""

    name = "kubernetes.host"

    def __init__(self, resource: Callable[[], Attributes], procfs: str = "/proc") -> None:
        self._resource = resource
        self._procfs = Path(procfs)

    def collect(self) -> Iterator[ResourceMetrics]:
        """One resource: the host.

        Raises:
            CollectorError: its ``/proc`` cannot be read, or is not Linux's.
        """
        try:
            stat, meminfo, loadavg, diskstats = (self._text(name) for name in ("stat", "meminfo", "loadavg", "diskstats"))
            metrics = [*cpu_metrics(stat, os.sysconf("SC_CLK_TCK")), *memory_metrics(meminfo), *load_metrics(loadavg)]
            metrics += disk_metrics(diskstats, boot_time(stat))
        except OSError as exc:
            raise CollectorError(f"the host's figures cannot be read in {self._procfs}: {exc.strerror}") from exc
        except (ValueError, KeyError, IndexError) as exc:
            raise CollectorError(f"the host's figures in {self._procfs} are not as expected: {type(exc).__name__}: {exc}") from exc
        yield ResourceMetrics(self._resource(), metrics)

    def _text(self, name: str) -> str:
        return (self._procfs / name).read_text(encoding="ascii")
