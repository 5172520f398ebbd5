"""The options of the kubernetes agent type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import annotated_types as at

from connectors.core.agent_config import AgentConfig, Pattern, option


@dataclass(frozen=True, slots=True, kw_only=True)
class K8sAgentConfig(AgentConfig):
    """Options of a kubernetes agent."""

    namespace: Annotated[str, Pattern(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")] = option(
        "incident-rca", "Namespace that the agent is installed in; created when it is not there.", scope="deploy"
    )
    release_name: Annotated[str, Pattern(r"[a-z0-9]([-a-z0-9]{0,51}[a-z0-9])?")] = option(
        "incident-rca", "Name of the Helm release.", scope="deploy"
    )
    replicas: Annotated[int, at.Ge(1)] = option(1, "Pods of the agent's Deployment.", scope="deploy", unit="{pod}")
    existing_secret: Annotated[str, Pattern(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?")] = option(
        "",
        "Name of a Secret in the namespace that holds the token under the key 'token'. Given, the command does not contain the token.",
        scope="deploy",
    )
    kube_timeout: Annotated[float, at.Ge(1), at.Le(60)] = option(10.0, "Seconds that one request to the API server may take.", unit="s")
    kube_page_size: Annotated[int, at.Ge(1), at.Le(5000)] = option(500, "Objects that one page of a list from the API server holds.")
