"""THE table of the kinds of objects that the agent watches: where the API has them, and what is kept of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from connectors.kubernetes import trim

CORE = "core"
"""The feature that is always on."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of objects.

    ``name`` is the plural in the API, the word used everywhere; ``versions`` are those that we read, newest first; ``trim`` makes of an
    object what is kept of it, in the same shape; ``feature`` is the option that turns the kind on; ``selector`` is a field selector that
    narrows what is listed; a kind that is not ``stored`` goes to the listeners only.
    """

    name: str
    group: str
    versions: tuple[str, ...]
    kind: str
    trim: Callable[[Mapping[str, Any]], dict[str, Any]]
    feature: str
    namespaced: bool = True
    selector: str = ""
    stored: bool = True


def kinds(salt: bytes) -> Mapping[str, Kind]:
    """The table by name, with ``salt`` for the keyed hashes of what may hold secrets."""
    hashed = trim.hasher(salt)
    return {
        name: Kind(name, group, versions, kind, partial(_trimmed, keep, hashed), feature, namespaced, selector, stored)
        for name, group, versions, kind, keep, feature, namespaced, selector, stored in _rows()
    }


def of_features(table: Mapping[str, Kind], features: Iterable[str]) -> tuple[Kind, ...]:
    """The kinds of these features, and the core ones."""
    wanted = {CORE, *features}
    return tuple(kind for kind in table.values() if kind.feature in wanted)


_Keep = Callable[[Mapping[str, Any], trim.Hashed], dict[str, Any]]
_Row = tuple[str, str, tuple[str, ...], str, _Keep, str, bool, str, bool]


def _trimmed(keep: _Keep, hashed: trim.Hashed, item: Mapping[str, Any]) -> dict[str, Any]:
    return keep(item, hashed)


def _rows() -> tuple[_Row, ...]:
    v1, rbac = ("v1",), "rbac.authorization.k8s.io"
    scalers = ("v2", "v2beta2", "v1")
    namespaced: tuple[bool, str, bool] = (True, "", True)
    global_: tuple[bool, str, bool] = (False, "", True)
    return (
        ("nodes", "", v1, "Node", trim.node, CORE, *global_),
        ("namespaces", "", v1, "Namespace", trim.namespace, CORE, *global_),
        ("pods", "", v1, "Pod", trim.pod, CORE, *namespaced),
        ("deployments", "apps", v1, "Deployment", trim.workload, "workloads", *namespaced),
        ("replicasets", "apps", v1, "ReplicaSet", trim.workload, "workloads", *namespaced),
        ("statefulsets", "apps", v1, "StatefulSet", trim.workload, "workloads", *namespaced),
        ("daemonsets", "apps", v1, "DaemonSet", trim.workload, "workloads", *namespaced),
        ("jobs", "batch", v1, "Job", trim.job, "workloads", *namespaced),
        ("cronjobs", "batch", ("v1", "v1beta1"), "CronJob", trim.cron_job, "workloads", *namespaced),
        ("horizontalpodautoscalers", "autoscaling", scalers, "HorizontalPodAutoscaler", trim.autoscaler, "autoscaling", *namespaced),
        ("persistentvolumeclaims", "", v1, "PersistentVolumeClaim", trim.volume_claim, "storage", *namespaced),
        ("resourcequotas", "", v1, "ResourceQuota", trim.quota, "quotas", *namespaced),
        ("configmaps", "", v1, "ConfigMap", trim.config_map, "configmaps", *namespaced),
        ("events", "", v1, "Event", trim.event, "events", True, "type=Warning", False),
        ("roles", rbac, v1, "Role", trim.role, "rbac", *namespaced),
        ("rolebindings", rbac, v1, "RoleBinding", trim.binding, "rbac", *namespaced),
        ("clusterroles", rbac, v1, "ClusterRole", trim.role, "rbac", *global_),
        ("clusterrolebindings", rbac, v1, "ClusterRoleBinding", trim.binding, "rbac", *global_),
        (
            *("poddisruptionbudgets", "policy", ("v1", "v1beta1"), "PodDisruptionBudget"),
            *(trim.disruption_budget, "disruption_budgets", *namespaced),
        ),
        ("secrets", "", v1, "Secret", trim.secret, "secrets", *namespaced),
    )


KINDS: Mapping[str, Kind] = kinds(os.urandom(32))
"""The table with hashes that only this process can compare."""
