"""The options of the kubernetes agent type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import annotated_types as at

from connectors.core.agent_config import AgentConfig, Pattern, option

Feature = Literal["workloads", "quotas", "storage", "autoscaling", "disruption_budgets", "configmaps", "rbac", "events", "secrets"]
DEFAULT_FEATURES: tuple[Feature, ...] = (
    "workloads",
    "quotas",
    "storage",
    "autoscaling",
    "disruption_budgets",
    "configmaps",
    "rbac",
    "events",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class K8sAgentConfig(AgentConfig):
    """Options of a kubernetes agent."""

    namespace: Annotated[str, Pattern(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")] = option(
        "incident-rca", "Namespace that the agent is installed in; created when it is not there.", scope="deploy"
    )
    release_name: Annotated[str, Pattern(r"[a-z0-9]([-a-z0-9]{0,51}[a-z0-9])?")] = option(
        "incident-rca", "Name of the Helm release.", scope="deploy"
    )
    replicas: Annotated[int, at.Ge(1)] = option(
        1, "Pods of the agent's Deployment: one watches the cluster, the others stand by.", scope="deploy", unit="{pod}"
    )
    node_view: bool = option(
        False, "Also install a DaemonSet, whose pods measure their own nodes (kubelet summary, host metrics).", scope="deploy"
    )
    existing_secret: Annotated[str, Pattern(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?")] = option(
        "",
        "Name of a Secret in the namespace that holds the token under the key 'token'. Given, the command does not contain the token.",
        scope="deploy",
    )
    view: Literal["cluster", "node"] = option(
        "cluster",
        "What this pod looks at: the cluster through its API server (one of several pods leads), or its own node. Set by the chart.",
        host_only=True,
    )
    features: tuple[Feature, ...] = option(
        DEFAULT_FEATURES,
        "What is watched beside nodes, namespaces and pods. 'secrets' lets the agent read every Secret of the cluster: it keeps their "
        "names, types and keys with hashes of the values, and of Helm's releases name, version and status.",
    )
    lease_name: Annotated[str, Pattern(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")] = option(
        "incident-rca-agent", "Name of the Lease, in the agent's namespace, that tells which pod leads. Set by the chart.", host_only=True
    )
    kube_timeout: Annotated[float, at.Ge(1), at.Le(60)] = option(10.0, "Seconds that one request to the API server may take.", unit="s")
    kube_page_size: Annotated[int, at.Ge(1), at.Le(5000)] = option(500, "Objects that one page of a list from the API server holds.")
    kubelet_address: str = option(
        "", "Address and port of the node's kubelet, for the node view; empty means port 10250 of the node's own address.", host_only=True
    )
    kubelet_ca_file: str = option(
        "", "PEM bundle that the kubelet's certificate is checked with, for the node view; empty means the cluster's own.", host_only=True
    )
    kubelet_insecure: bool = option(
        False, "Do not check the kubelet's certificate, for the node view: many clusters' kubelets sign their own.", host_only=True
    )
    image: Annotated[str, Pattern(r"([a-zA-Z0-9][a-zA-Z0-9._:/@-]*)?")] = option(
        "",
        "Image that the pods run. Empty means the one that `incident-rca image build` makes, incident-rca/agent:<version>, which is in no "
        "registry: every node must have it already.",
        scope="deploy",
    )
    image_pull_secrets: tuple[Annotated[str, Pattern(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")], ...] = option(
        (), "Names of Secrets in the namespace with credentials for the image's registry.", scope="deploy"
    )
    ca_config_map: Annotated[str, Pattern(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?")] = option(
        "",
        "Name of a ConfigMap in the namespace that holds the platform's certificate authority under the key 'ca.crt'. ca_file, a file "
        "where the command is run, does the same without one.",
        scope="deploy",
    )
