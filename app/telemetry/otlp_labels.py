"""Which labels a series has: the rules that turn OTLP attributes into a series' identity.

- ``__name__`` is the OTel metric name; point attributes keep their OTel keys.
- Resource attributes become labels too, except the *descriptive* ones below, which may change while the thing described stays the
  same: with them, every upgrade of an operating system or an agent would begin all series anew. On a clash the point's attribute wins.
- ``agent``, ``agent_type``, ``environment`` and ``instance`` come from the authenticated principal, whatever the client claims.
- A label without value is no label.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from opentelemetry.proto.common.v1.common_pb2 import KeyValue

from app.auth.principal import Principal
from app.telemetry.otlp_limits import OtlpLimits
from app.telemetry.otlp_values import label_text
from app.telemetry.store import NAME

DESCRIPTIVE_ATTRIBUTES = frozenset(
    {
        "container.command",
        "container.command_args",
        "container.command_line",
        "container.image.id",
        "container.image.repo_digests",
        "container.image.tags",
        "container.runtime.version",
        "host.ip",
        "host.mac",
        "k8s.cluster.version",
        "k8s.node.version",
        "os.build_id",
        "os.description",
        "os.name",
        "os.version",
        "service.instance.id",
        "service.version",
    }
)
"""Resource attributes that do not become labels. ``service.instance.id`` is here because the platform's own id is ``instance``."""

DESCRIPTIVE_PREFIXES = (
    "container.label.",
    "host.cpu.",
    "host.image.",
    "process.",
    "telemetry.",
)
"""Beginnings of resource attributes that do not become labels; Kubernetes labels and annotations (below) do not either."""

IDENTIFYING_ATTRIBUTES = frozenset({"container.label.com.docker.compose.project", "container.label.com.docker.compose.service"})
"""Exceptions from the prefixes: they name what a container is part of, and no container outlives a change of its labels."""

_DESCRIPTIVE_MIDDLES = (".annotation.", ".label.")

AGENT, AGENT_TYPE, ENVIRONMENT, INSTANCE = "agent", "agent_type", "environment", "instance"


def is_descriptive(key: str) -> bool:
    """Whether the resource attribute describes without identifying, and so is no label."""
    if key in IDENTIFYING_ATTRIBUTES:
        return False
    return (
        key in DESCRIPTIVE_ATTRIBUTES
        or key.startswith(DESCRIPTIVE_PREFIXES)
        or (key.startswith("k8s.") and any(middle in key for middle in _DESCRIPTIVE_MIDDLES))
    )


def resource_labels(attributes: Iterable[KeyValue]) -> dict[str, str]:
    """The labels that a resource gives to the series under it."""
    return {attribute.key: label_text(attribute.value) for attribute in attributes if not is_descriptive(attribute.key)}


def platform_labels(principal: Principal) -> dict[str, str]:
    """The labels that the platform sets: who the principal is."""
    return {
        AGENT: principal.agent_id,
        AGENT_TYPE: principal.agent_type,
        ENVIRONMENT: principal.environment_name,
        INSTANCE: principal.instance_id or "",
    }


def series_labels(
    resource: Mapping[str, str], point: Iterable[KeyValue], platform: Mapping[str, str], name: str
) -> tuple[tuple[str, str], ...]:
    """All labels of one series, sorted by name: see the module's rules."""
    labels = dict(resource)
    for attribute in point:
        labels[attribute.key] = label_text(attribute.value)
    labels.update(platform)
    labels[NAME] = name
    return tuple(sorted([pair for pair in labels.items() if pair[1] and pair[0]]))


def with_label(labels: tuple[tuple[str, str], ...], name: str, extra: str, value: str) -> tuple[tuple[str, str], ...]:
    """The labels of a component of a histogram or summary: another metric name, and one label more where ``extra`` names one."""
    changed = dict(labels)
    changed[NAME] = name
    if extra:
        changed[extra] = value
    return tuple(sorted(changed.items()))


def objection(labels: tuple[tuple[str, str], ...], limits: OtlpLimits) -> str:
    """Why a series may not have these labels; empty when it may."""
    if len(labels) > limits.max_labels:
        return f"more than {limits.max_labels} labels"
    longest = limits.max_label_bytes
    for name, value in labels:
        if len(name) + len(value) <= longest // 4:  # no character takes more than four bytes
            continue
        if len(name.encode()) > longest or len(value.encode()) > longest:
            return f"a label name or value longer than {longest} bytes"
    return ""
