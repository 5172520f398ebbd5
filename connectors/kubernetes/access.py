"""What the agent has to be allowed in the cluster: the one list that the checks, the documentation and the chart's role follow."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Access:
    """One verb on one resource of one API group (empty: the core group), in the whole cluster."""

    verb: str
    group: str
    resource: str

    @property
    def rule(self) -> str:
        """The access in words, as it stands in a role."""
        return f"verb {self.verb} on resource {self.resource} (API group {self.group or 'core'})"


NEEDED = (
    Access("list", "", "pods"),
    Access("list", "", "nodes"),
    Access("list", "", "resourcequotas"),
    Access("list", "apps", "deployments"),
    Access("get", "", "namespaces"),
)
"""What the collectors and the cluster's identity take. Reading only, and nothing of Secrets."""
