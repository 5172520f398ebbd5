"""Namespace quotas as metrics: a pure function of what a ResourceQuota's status says."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lightkube.utils.quantity import parse_quantity

from connectors.core.telemetry import Kind, Metric, Point

_AMOUNTS = {
    "cpu": ("cpu.request", "{cpu}"),
    "requests.cpu": ("cpu.request", "{cpu}"),
    "limits.cpu": ("cpu.limit", "{cpu}"),
    "memory": ("memory.request", "By"),
    "requests.memory": ("memory.request", "By"),
    "limits.memory": ("memory.limit", "By"),
    "ephemeral-storage": ("ephemeral_storage.request", "By"),
    "requests.ephemeral-storage": ("ephemeral_storage.request", "By"),
    "limits.ephemeral-storage": ("ephemeral_storage.limit", "By"),
    "requests.storage": ("storage.request", "By"),
    "persistentvolumeclaims": ("persistentvolumeclaim_count", "{persistentvolumeclaim}"),
}
_STORAGE_CLASS = re.compile(r"(?P<name>.+)\.storageclass\.storage\.k8s\.io/(?P<amount>requests\.storage|persistentvolumeclaims)")
_HUGE_PAGES = re.compile(r"(?:requests\.)?hugepages-(?P<size>.+)")
_EXTENDED = re.compile(r"requests\.(?P<name>[^/]+/.+)")


def quota_metrics(hard: Mapping[str, str], used: Mapping[str, str]) -> list[Metric]:
    """``k8s.resourcequota.*.hard`` and ``.used``, sorted by name.

    Extended resources (``requests.vendor.example/gpu``) have no name in OpenTelemetry: they are
    ``irca.k8s.resourcequota.extended_resource.*``. An amount that is not a quantity is left out.
    """
    found: dict[tuple[str, str], dict[tuple[tuple[str, str], ...], float]] = {}
    for suffix, amounts in (("hard", hard), ("used", used)):
        for key, text in sorted(amounts.items()):
            value = quantity(text)
            if value is None:
                continue
            name, unit, attributes, divisor = _describe(key)
            points = found.setdefault((f"{name}.{suffix}", unit), {})
            # "cpu" and "requests.cpu" are two spellings of one quota.
            points.setdefault(tuple(attributes.items()), value / divisor)
    return [
        Metric(name, unit, Kind.UPDOWNCOUNTER, [Point(value, dict(attributes)) for attributes, value in points.items()])
        for (name, unit), points in sorted(found.items())
    ]


def quantity(text: str | None) -> float | None:
    """A Kubernetes quantity (``100m``, ``1.5Gi``) as a number; None for what is none."""
    try:
        value = parse_quantity(text)
    except (ValueError, TypeError):
        return None
    return None if value is None else float(value)


def _describe(key: str) -> tuple[str, str, dict[str, str], float]:
    """A quota's key as metric name (without suffix), unit, attributes, and what one unit is."""
    if key in _AMOUNTS:
        name, unit = _AMOUNTS[key]
        return f"k8s.resourcequota.{name}", unit, {}, 1.0
    if match := _STORAGE_CLASS.fullmatch(key):
        name, unit = _AMOUNTS[match["amount"]]
        return f"k8s.resourcequota.{name}", unit, {"k8s.storageclass.name": match["name"]}, 1.0
    if match := _HUGE_PAGES.fullmatch(key):
        size = match["size"]
        return "k8s.resourcequota.hugepage_count.request", "{hugepage}", {"k8s.hugepage.size": size}, quantity(size) or 1.0
    if match := _EXTENDED.fullmatch(key):
        return "irca.k8s.resourcequota.extended_resource", "{resource}", {"irca.k8s.resource.name": match["name"]}, 1.0
    return "k8s.resourcequota.object_count", "{object}", {"k8s.resourcequota.resource_name": key}, 1.0
