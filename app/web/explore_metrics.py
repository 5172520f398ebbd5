"""The metrics that can be explored, by what they measure, with what is documented of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from app.telemetry.store import MetricMetadata
from app.web.explore import Metric
from connectors.docker.metrics import METRICS as DOCKER
from connectors.kubernetes.metrics import METRICS as KUBERNETES
from connectors.server.metrics import METRICS as SERVER

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Host": ("system.", "irca.system.", "irca.host.", "irca.systemd.", "process.", "irca.process."),
    "Container": ("container.", "irca.container.", "irca.engine."),
    "Kubernetes": ("k8s.", "irca.k8s."),
    "Agent": ("irca.agent.", "irca.collector.", "irca.spool.", "irca."),
}
"""How the names of a group's metrics begin; a name goes to the group with the longest beginning that fits it."""
CUSTOM = "Custom"


@dataclass(frozen=True, slots=True)
class Group:
    """Metrics of one kind, by name."""

    title: str
    metrics: tuple[Metric, ...]


@lru_cache(maxsize=1)
def _documented() -> Mapping[str, tuple[str, tuple[str, ...]]]:
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for table in (SERVER, DOCKER, KUBERNETES):
        for name, described in table.items():
            found.setdefault(name, (described.meaning, tuple(described.attributes)))
    return found


def describe(metadata: Iterable[MetricMetadata]) -> dict[str, Metric]:
    """The metrics of a store by name; of several units or kinds under one name the first counts."""
    found: dict[str, Metric] = {}
    for one in metadata:
        meaning, attributes = _documented().get(one.name, ("", ()))
        found.setdefault(one.name, Metric(one.name, one.unit, one.kind, meaning, attributes))
    return found


def grouped(names: Collection[str], known: Mapping[str, Metric]) -> list[Group]:
    """The metrics of these names in groups; what nothing of ours sends comes last."""
    groups: dict[str, list[Metric]] = {title: [] for title in (*GROUPS, CUSTOM)}
    for name in sorted(names):
        if name in known:
            groups[group_of(name)].append(known[name])
    return [Group(title, tuple(metrics)) for title, metrics in groups.items() if metrics]


def group_of(name: str) -> str:
    """The title of a metric's group."""
    fitting = [(len(beginning), title) for title, beginnings in GROUPS.items() for beginning in beginnings if name.startswith(beginning)]
    return max(fitting)[1] if fitting else CUSTOM
