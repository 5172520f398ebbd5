"""THE list of what the agent has to be allowed in the cluster, by feature: checks, documentation and the chart's roles follow it."""

from __future__ import annotations

from dataclasses import dataclass

from connectors.kubernetes.config import K8sAgentConfig
from connectors.kubernetes.kinds import CORE, KINDS, of_features

LEASE_GROUP = "coordination.k8s.io"


@dataclass(frozen=True, slots=True)
class Access:
    """One verb on one resource of one API group (empty: the core group), in the whole cluster or in the agent's own namespace.

    ``names`` narrows it to objects of these names; ``feature`` is the option that needs it.
    """

    verb: str
    group: str
    resource: str
    namespaced: bool = False
    names: tuple[str, ...] = ()
    feature: str = CORE

    @property
    def rule(self) -> str:
        """The access in words, as it stands in a role."""
        return f"verb {self.verb} on resource {self.resource} (API group {self.group or 'core'})"


def needed(config: K8sAgentConfig) -> tuple[Access, ...]:
    """What an agent of this configuration takes. Reading only, but for its own Lease, and nothing of Secrets unless asked for.

    The node view reads nothing of the API server but the cluster's identity and its own node.
    """
    identity = Access("get", "", "namespaces", names=("kube-system",))
    if config.view == "node":
        return (identity, Access("get", "", "nodes"), Access("get", "", "nodes/stats"))
    lists = [Access(verb, k.group, k.name, feature=k.feature) for k in of_features(KINDS, config.features) for verb in ("list", "watch")]
    leases = [
        Access("create", LEASE_GROUP, "leases", namespaced=True),
        Access("get", LEASE_GROUP, "leases", namespaced=True, names=(config.lease_name,)),
        Access("update", LEASE_GROUP, "leases", namespaced=True, names=(config.lease_name,)),
    ]
    return (identity, *lists, *leases)
