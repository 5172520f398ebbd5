"""K8sAgent: connects a Kubernetes cluster: its nodes, workloads and quotas, and what changes them."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Self

from connectors.core.agent_config import AgentConfig
from connectors.core.base_agent import BaseAgent
from connectors.core.collector import Collector, run_collectors
from connectors.core.errors import CollectorError, ConnectorError, MissingExtraError
from connectors.core.preflight import Check, Outcome
from connectors.core.telemetry import Attributes, Collection, Event, ResourceMetrics
from connectors.kubernetes import command, control
from connectors.kubernetes.access import Access, needed
from connectors.kubernetes.config import K8sAgentConfig
from connectors.kubernetes.kinds import kinds, of_features
from connectors.kubernetes.salt import kept_salt

if TYPE_CHECKING:
    from connectors.kubernetes.cluster import Cluster
    from connectors.kubernetes.cluster_watch import ClusterWatch, Reporter
    from connectors.kubernetes.lease import Elector
    from connectors.kubernetes.view import View

_FIRST_LISTS = 5.0
"""Seconds that the first collection waits for the first lists."""
_OWN_POD = {"k8s.pod.uid": "POD_UID", "k8s.pod.name": "POD_NAME", "k8s.namespace.name": "POD_NAMESPACE", "k8s.node.name": "NODE_NAME"}
"""What the chart tells the pod about itself (downward API)."""


class K8sAgent(BaseAgent):
    """An agent that runs in the cluster that it watches.

    With the option ``view`` at ``cluster`` (a Deployment) one of its pods leads and watches the cluster through its API server, and the
    others stand by. With ``node`` (a DaemonSet) each pod measures its own node, and none leads.

    Planning needs nothing but this package, control needs ``helm``, and runtime needs lightkube, the extra ``kubernetes``.
    """

    agent_type = "kubernetes"
    description = "Connects a Kubernetes cluster: nodes, pods and their containers, workloads, namespace quotas, and what changes them."
    runs_on = ("Kubernetes 1.20 or newer", "Helm 3 or 4, where the command is run")
    config_class = K8sAgentConfig
    needed_resource = ("k8s.cluster.uid",)
    config: K8sAgentConfig
    _running = False

    # Control

    def start(self) -> None:
        """``helm upgrade --install`` in the cluster of kubectl's current context; the token goes to helm's standard input.

        Raises:
            ToolMissingError: helm is not installed.
            RuntimeUnavailableError: no cluster answers.
            PermissionRefusedError: the cluster refuses; the reason names verb and resource.
            ControlError: helm failed for another reason.
        """
        control.start(self.platform_url, self.agent_token, self.config)

    def stop(self) -> None:
        """``helm uninstall`` in the cluster of kubectl's current context.

        Raises:
            NotDeployedError: there is no such release.
            ControlError: as :meth:`start`.
        """
        control.stop(self.config)

    def get_deployment_command(self) -> str:
        """The ``helm`` commands, for a POSIX shell where kubectl's current context is the cluster."""
        return command.deployment_command(self.platform_url, self.agent_token, self.config)

    def get_instructions(self) -> str:
        """Numbered steps for a person who is about to run the deployment command."""
        return command.instructions(self.platform_url, self.config)

    def get_uninstall_command(self) -> str:
        """The command that removes the release; the namespace stays."""
        return command.uninstall_command(self.config)

    def get_alternatives(self) -> Sequence[tuple[str, str]]:
        """The command with the token kept out of process lists or of the shell's history, and the one without Helm."""
        return command.alternatives(self.platform_url, self.agent_token, self.config)

    # Runtime

    def resource(self) -> Attributes:
        """The cluster, by its UID, and the pod that the agent runs in; for the node view the node's UID, too.

        While the API server cannot be asked, what the pod knows of itself.
        """
        pod = {key: os.environ[variable] for key, variable in _OWN_POD.items() if os.environ.get(variable)}
        try:
            known = {"k8s.cluster.uid": self._cluster_uid}
            if self.config.view == "node" and "k8s.node.name" in pod:
                known["k8s.node.uid"] = self._node_uid
        except ConnectorError:
            return pod
        return {**known, **pod}

    def machine_id(self) -> str:
        """The pod's UID: pods of one image, or of one node, have the same operating system's answer."""
        return os.environ.get("POD_UID", "")

    def run(self, stopping: threading.Event | None = None) -> int:
        """As every agent's; what is collected comes from the watch then, not from lists of its own."""
        self._running = True
        with contextlib.suppress(MissingExtraError):  # which the loops will tell
            # Made before the loops are: two that need it at the same time would each make one.
            _ = self._cluster if self.config.view == "node" else self._cluster_watch
        try:
            return super().run(stopping)
        finally:
            self._running = False

    def watch(self, emit: Callable[[Event], None], stopping: threading.Event) -> None:
        """Stand for election, and watch the cluster and report its changes while this pod leads. The node view watches nothing.

        Raises:
            CollectorError: lightkube is not installed. Whatever else is wrong is told by the collectors, and tried again.
        """
        if self.config.view == "node":
            stopping.wait()
            return
        try:
            watch = self._cluster_watch
        except MissingExtraError as exc:
            raise CollectorError(exc.reason) from exc
        watch.run(partial(self._make_reporter, emit), stopping)

    def successor(self, config: AgentConfig) -> Self:
        """As every agent's; it runs when this one does."""
        taking_over = super().successor(config)
        taking_over._running = self._running  # noqa: SLF001 - of the same class
        return taking_over

    def close(self) -> None:
        """Close the connection to the API server."""
        if "_cluster" in vars(self):
            self._cluster.close()

    def preflight(self) -> Sequence[Check]:
        """Whether the API server answers, and whether the agent's account has each access that it needs."""
        resources: dict[str, list[Access]] = {}
        for access in needed(self.config):
            resources.setdefault(access.resource, []).append(access)
        rights = [
            Check(f"kubernetes.rbac.{resource}", partial(self._check_access, accesses), needs=("kubernetes.api",))
            for resource, accesses in resources.items()
        ]
        return [Check("kubernetes.api", self._check_api), *rights]

    def _gather_data(self) -> Collection:
        if self.config.view == "node":
            return run_collectors(self._node_collectors, self.resource())
        cluster = self._cluster
        if not self._running:
            from connectors.kubernetes.watch import list_once  # noqa: PLC0415 - needs lightkube, which planning must not need

            list_once(cluster, self._view)
            return run_collectors(self._cluster_collectors, self.resource())
        watch = self._cluster_watch
        watch.wait_for_lists(_FIRST_LISTS)
        collectors = self._cluster_collectors if watch.leading else ()
        return run_collectors([_LeaseCollector(self._elector), *collectors], self.resource())

    @cached_property
    def _cluster(self) -> Cluster:
        try:
            from connectors.kubernetes.cluster import Cluster  # noqa: PLC0415 - as in _gather_data
        except ImportError as exc:
            raise MissingExtraError(f"this needs the package {exc.name!r}: pip install 'incident-rca[kubernetes]'") from exc
        return Cluster(timeout=self.config.kube_timeout, page_size=self.config.kube_page_size)

    @cached_property
    def _cluster_uid(self) -> str:
        return self._cluster.uid()

    @cached_property
    def _node_uid(self) -> str:
        return self._cluster.node_uid(os.environ["NODE_NAME"])

    @cached_property
    def _salt(self) -> bytes:
        return kept_salt(self.state_dir)

    @cached_property
    def _view(self) -> View:
        from connectors.kubernetes.view import View  # noqa: PLC0415 - as in _gather_data

        # An agent that collects without running leaves no trace on disk, and nothing that it sees is compared later.
        salt = self._salt if self._running else os.urandom(32)
        return View(of_features(kinds(salt), self.config.features))

    @cached_property
    def _elector(self) -> Elector:
        from connectors.kubernetes.lease import Elector  # noqa: PLC0415 - as in _gather_data

        # A container that was restarted is still the same pod, and need not wait for its own Lease.
        identity = os.environ.get("POD_NAME") or f"{socket.gethostname()}_{uuid.uuid4()}"
        return Elector(self._cluster, self.config.lease_name, identity)

    @cached_property
    def _cluster_watch(self) -> ClusterWatch:
        cluster = self._cluster
        from connectors.kubernetes.cluster_watch import ClusterWatch  # noqa: PLC0415 - as in _gather_data

        return ClusterWatch(cluster, self._view, self._elector)

    @cached_property
    def _cluster_collectors(self) -> Sequence[Collector]:
        from connectors.kubernetes.collect import cluster_collectors  # noqa: PLC0415 - as in _gather_data

        return cluster_collectors(self._view, self.config, time.time, self.resource)

    @cached_property
    def _node_collectors(self) -> Sequence[Collector]:
        cluster = self._cluster
        from connectors.kubernetes.node import node_collectors  # noqa: PLC0415 - as in _gather_data

        return node_collectors(cluster, self.config, self.resource)

    def _make_reporter(self, emit: Callable[[Event], None], since: float | None) -> Reporter:
        from connectors.kubernetes.changes import ChangeReporter  # noqa: PLC0415 - as in _gather_data

        return ChangeReporter(self._view, self.config, self.resource, emit, since=since)

    def _check_api(self) -> tuple[Outcome, str, str]:
        try:
            self._cluster.allowed(needed(self.config)[0])
            server = self._cluster.server
        except ConnectorError as exc:
            advice = (
                "Run it in the cluster with a service account whose token is mounted, or set KUBECONFIG; a NetworkPolicy may be in the way."
            )
            return Outcome.FAIL, exc.reason, advice
        return Outcome.PASS, f"{server} answers", ""

    def _check_access(self, accesses: Sequence[Access]) -> tuple[Outcome, str, str]:
        try:
            missing = [access for access in accesses if not self._cluster.allowed(access)]
        except ConnectorError as exc:
            return Outcome.FAIL, exc.reason, "Try again when the API server answers."
        resource = accesses[0].resource
        if not missing:
            return Outcome.PASS, f"{', '.join(access.verb for access in accesses)} {resource} is allowed", ""
        role = "Role" if missing[0].namespaced else "ClusterRole"
        advice = f"Give the agent's {role} {'; '.join(access.rule for access in missing)}."
        return Outcome.FAIL, f"{', '.join(access.verb for access in missing)} {resource} is not allowed", advice


class _LeaseCollector:
    """Says, as a collector does, why this pod can neither lead nor stand by. It has no metrics."""

    name = "kubernetes.lease"

    def __init__(self, elector: Elector) -> None:
        self._elector = elector

    def collect(self) -> Iterator[ResourceMetrics]:
        """Nothing.

        Raises:
            CollectorError: the Lease cannot be kept or looked at.
        """
        if reason := self._elector.reason:
            raise CollectorError(reason)
        yield from ()
