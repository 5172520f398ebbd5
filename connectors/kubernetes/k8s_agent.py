"""K8sAgent: connects a Kubernetes cluster, its nodes, pods, deployments and namespace quotas."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

from connectors.core.base_agent import BaseAgent
from connectors.core.collector import Collector, run_collectors
from connectors.core.errors import ConnectorError, MissingExtraError
from connectors.core.preflight import Check, Outcome
from connectors.core.telemetry import Attributes, Collection
from connectors.kubernetes import command, control
from connectors.kubernetes.access import NEEDED, Access
from connectors.kubernetes.config import K8sAgentConfig

if TYPE_CHECKING:
    from connectors.kubernetes.cluster import Cluster

_OWN_POD = {"k8s.pod.uid": "POD_UID", "k8s.pod.name": "POD_NAME", "k8s.namespace.name": "POD_NAMESPACE", "k8s.node.name": "NODE_NAME"}
"""What the chart tells the pod about itself (downward API)."""


class K8sAgent(BaseAgent):
    """An agent that runs as a Deployment and watches the cluster that runs it.

    Planning needs nothing but this package, control needs ``helm``, and runtime needs lightkube, the extra ``kubernetes``.
    """

    agent_type = "kubernetes"
    description = "Connects a Kubernetes cluster: nodes, pods and their containers, deployments and namespace quotas."
    runs_on = ("Kubernetes 1.20 or newer", "Helm 3 or 4, where the command is run")
    config_class = K8sAgentConfig
    config: K8sAgentConfig

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

    # Runtime

    def resource(self) -> Attributes:
        """The cluster, by its UID, and the pod that the agent runs in; while the API server cannot be asked, the pod alone."""
        pod = {key: os.environ[variable] for key, variable in _OWN_POD.items() if os.environ.get(variable)}
        try:
            return {"k8s.cluster.uid": self._cluster_uid, **pod}
        except ConnectorError:
            return pod

    def preflight(self) -> Sequence[Check]:
        """Whether the API server answers, and whether the agent's account has each access that it needs."""
        rights = [
            Check(f"kubernetes.rbac.{access.resource}", partial(self._check_access, access), needs=("kubernetes.api",)) for access in NEEDED
        ]
        return [Check("kubernetes.api", self._check_api), *rights]

    def _gather_data(self) -> Collection:
        return run_collectors(self._collectors, self.resource())

    @cached_property
    def _cluster(self) -> Cluster:
        try:
            from connectors.kubernetes.cluster import Cluster  # noqa: PLC0415 - needs lightkube, which planning must not need
        except ImportError as exc:
            raise MissingExtraError(f"this needs the package {exc.name!r}: pip install 'incident-rca[kubernetes]'") from exc
        return Cluster(timeout=self.config.kube_timeout, page_size=self.config.kube_page_size)

    @cached_property
    def _cluster_uid(self) -> str:
        return self._cluster.uid()

    @cached_property
    def _collectors(self) -> Sequence[Collector]:
        cluster = self._cluster
        from connectors.kubernetes import collect  # noqa: PLC0415 - as in _cluster

        return [
            collect.NodeCollector(cluster),
            collect.PodCollector(cluster),
            collect.DeploymentCollector(cluster),
            collect.QuotaCollector(cluster),
        ]

    def _check_api(self) -> tuple[Outcome, str, str]:
        try:
            self._cluster.allowed(NEEDED[0])
            server = self._cluster.server
        except ConnectorError as exc:
            advice = (
                "Run it in the cluster with a service account whose token is mounted, or set KUBECONFIG; a NetworkPolicy may be in the way."
            )
            return Outcome.FAIL, exc.reason, advice
        return Outcome.PASS, f"{server} answers", ""

    def _check_access(self, access: Access) -> tuple[Outcome, str, str]:
        try:
            allowed = self._cluster.allowed(access)
        except ConnectorError as exc:
            return Outcome.FAIL, exc.reason, "Try again when the API server answers."
        if allowed:
            return Outcome.PASS, f"{access.verb} {access.resource} is allowed", ""
        return Outcome.FAIL, f"{access.verb} {access.resource} is not allowed", f"Give the agent's ClusterRole {access.rule}."
