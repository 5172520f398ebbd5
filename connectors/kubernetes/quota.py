"""Namespace quotas as metrics: a pure function of what a ResourceQuota's status says."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from lightkube.utils.quantity import parse_quantity

from connectors.core.telemetry import Metric, Point
from connectors.kubernetes.metrics import metric

_AMOUNTS = {
    "cpu": "cpu.request",
    "requests.cpu": "cpu.request",
    "limits.cpu": "cpu.limit",
    "memory": "memory.request",
    "requests.memory": "memory.request",
    "limits.memory": "memory.limit",
    "ephemeral-storage": "ephemeral_storage.request",
    "requests.ephemeral-storage": "ephemeral_storage.request",
    "limits.ephemeral-storage": "ephemeral_storage.limit",
    "requests.storage": "storage.request",
    "persistentvolumeclaims": "persistentvolumeclaim_count",
}
_STORAGE_CLASS = re.compile(r"(?P<name>.+)\.storageclass\.storage\.k8s\.io/(?P<amount>requests\.storage|persistentvolumeclaims)")
_HUGE_PAGES = re.compile(r"(?:requests\.)?hugepages-(?P<size>.+)")
_EXTENDED = re.compile(r"requests\.(?P<name>[^/]+/.+)")


def quota_metrics(hard: Mapping[str, str], used: Mapping[str, str]) -> list[Metric]:
    """``k8s.resourcequota.*.hard`` and ``.used``, sorted by name.

    Extended resources (``requests.vendor.example/gpu``) have no name in OpenTelemetry: they are
    ``irca.k8s.resourcequota.extended_resource.*``. An amount that is not a quantity is left out.
    """
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for suffix, amounts in (("hard", hard), ("used", used)):
        for key, text in sorted(amounts.items()):
            value = quantity(text)
            if value is None:
                continue
            name, attributes, divisor = _describe(key)
            points = found.setdefault(f"{name}.{suffix}", {})
            # "cpu" and "requests.cpu" are two spellings of one quota.
            points.setdefault(tuple(attributes.items()), value / divisor)
    return [
        metric(name, [Point(value, dict(attributes)) for attributes, value in points.items()]) for name, points in sorted(found.items())
    ]


@functools.lru_cache(maxsize=4096)
def quantity(text: str | None) -> float | None:
    """A Kubernetes quantity (``100m``, ``1.5Gi``) as a number; None for what is none."""
    try:
        value = parse_quantity(text)
    except (ValueError, TypeError):
        return None
    return None if value is None else float(value)


def _describe(key: str) -> tuple[str, dict[str, str], float]:
    """A quota's key as metric name (without suffix), attributes, and what one unit is."""
    if key in _AMOUNTS:
        return f"k8s.resourcequota.{_AMOUNTS[key]}", {}, 1.0
    if match := _STORAGE_CLASS.fullmatch(key):
        return f"k8s.resourcequota.{_AMOUNTS[match['amount']]}", {"k8s.storageclass.name": match["name"]}, 1.0
    if match := _HUGE_PAGES.fullmatch(key):
        size = match["size"]
        return "k8s.resourcequota.hugepage_count.request", {"k8s.hugepage.size": size}, quantity(size) or 1.0
    if match := _EXTENDED.fullmatch(key):
        return "irca.k8s.resourcequota.extended_resource", {"irca.k8s.resource.name": match["name"]}, 1.0
    return "k8s.resourcequota.object_count", {"k8s.resourcequota.resource_name": key}, 1.0
