"""Which resource the metrics of an object are of: its identity and its owners, as OTel resource attributes that stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from connectors.core.telemetry import Attributes

Json = Mapping[str, Any]
"""An object of the API, or a part of one, in its JSON shape."""
Find = Callable[[str, str, str], Json | None]
"""Looks up an object by kind (plural), namespace and name."""

_OWNERS = {
    "ReplicaSet": "k8s.replicaset.name",
    "ReplicationController": "k8s.replicationcontroller.name",
    "Deployment": "k8s.deployment.name",
    "StatefulSet": "k8s.statefulset.name",
    "DaemonSet": "k8s.daemonset.name",
    "Job": "k8s.job.name",
    "CronJob": "k8s.cronjob.name",
}
_OWNED = {"ReplicaSet": "replicasets", "Job": "jobs"}
"""Kinds that have owners themselves."""


def object_resource(prefix: str, item: Json) -> Attributes:
    """UID and name under ``prefix``, and the namespace. The UID comes first: names are used again."""
    meta = item.get("metadata") or {}
    attributes = {f"{prefix}.uid": meta.get("uid"), f"{prefix}.name": meta.get("name"), "k8s.namespace.name": meta.get("namespace")}
    return {key: str(value) for key, value in attributes.items() if value}


def uid(item: Json) -> str:
    """The object's UID."""
    return str(item["metadata"]["uid"])


def owner_attributes(item: Json, find: Find | None = None) -> Attributes:
    """The names of what controls the object, and with ``find`` of what controls that: replica set and deployment, job and cron job.

    A deployment is told without its replica set being found, too: the name of such a replica set ends with the hash that its pods carry.
    """
    kind, name = _controller(item)
    attributes = {_OWNERS[kind]: name} if kind in _OWNERS else {}
    if find is None or kind not in _OWNED:
        return attributes
    meta = item["metadata"]
    above, above_name = _controller(find(_OWNED[kind], meta.get("namespace") or "", name) or {})
    if above in _OWNERS:
        attributes[_OWNERS[above]] = above_name
    elif kind == "ReplicaSet":
        template_hash = (meta.get("labels") or {}).get("pod-template-hash")
        if template_hash and name.endswith(f"-{template_hash}"):
            attributes[_OWNERS["Deployment"]] = name.removesuffix(f"-{template_hash}")
    return attributes


def timestamp(text: Any) -> float | None:
    """Unix seconds of a time as the API writes it; None for what is none."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _controller(item: Json) -> tuple[str, str]:
    """Kind and name of the object's controller; empty where it has none."""
    for owner in (item.get("metadata") or {}).get("ownerReferences") or ():
        if owner.get("controller"):
            return str(owner["kind"]), str(owner["name"])
    return "", ""
