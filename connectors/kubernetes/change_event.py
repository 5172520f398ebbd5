"""What was found to have happened in the cluster, and the event of ours that it becomes: pure functions.

An event's id follows from what happened to which object, and never from who saw it or when, so that a second list, or a second leader,
tells the same thing under the same id: the platform stores each id once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from connectors.core.redaction import redact
from connectors.core.telemetry import Attributes, AttributeValue, Event, Severity
from connectors.kubernetes.difference import MAX_TEXT
from connectors.kubernetes.kinds import KINDS
from connectors.kubernetes.resources import Find, Json, object_resource, owner_attributes, timestamp

Facts = dict[str, AttributeValue]
"""Attributes that are being put together."""

PREFIX = "irca.kubernetes"
DROPPED = "events.dropped"
WHATS = frozenset(
    {
        "rollout.started", "rollout.completed", "rollout.stalled",
        "workload.created", "workload.deleted", "workload.scaled", "chart.changed",
        "pod.oom_killed", "pod.container_exited", "pod.crash_loop", "pod.image_pull_failed", "pod.config_error", "pod.evicted",
        "pod.failed", "pod.failed_scheduling",
        "node.added", "node.removed", "node.cordoned", "node.uncordoned", "node.taints_changed", "node.condition_changed", "node.upgraded",
        "namespace.created", "namespace.deleted",
        "configmap.created", "configmap.changed", "configmap.deleted",
        "secret.created", "secret.changed", "secret.deleted",
        "helm_release.deployed", "helm_release.failed", "helm_release.uninstalled",
        "rbac.created", "rbac.changed", "rbac.deleted",
        "hpa.created", "hpa.changed", "hpa.deleted",
        "quota.created", "quota.changed", "quota.deleted",
        "disruption_budget.created", "disruption_budget.changed", "disruption_budget.deleted",
        "cronjob.created", "cronjob.changed", "cronjob.deleted",
        "job.failed", "pvc.lost", "warning.recorded", DROPPED,
    }
)  # fmt: skip
"""What can be found, by noun and what happened; with :data:`PREFIX` before it, the name of an event."""
NAMES = frozenset(f"{PREFIX}.{what}" for what in WHATS)
"""Every event name that the kubernetes agent type records of its cluster."""

NANO = 1_000_000_000
_MAX_MESSAGE = 500
_OTEL = {"horizontalpodautoscalers": "k8s.hpa"} | {
    plural: f"k8s.{KINDS[plural].kind.lower()}"
    for plural in (
        "nodes", "namespaces", "pods", "deployments", "replicasets", "statefulsets", "daemonsets", "jobs", "cronjobs",
        "persistentvolumeclaims", "resourcequotas",
    )
}  # fmt: skip
"""Kinds that OTel has resource attributes for."""
_PLURALS = {kind.kind: plural for plural, kind in KINDS.items()}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that happened to an object.

    Args:
        what: one of :data:`WHATS`.
        kind: the object's kind (plural).
        item: the object.
        body: one sentence for a person.
        key: what tells this from other times that the same happened to the object.
        time: when it happened, in Unix seconds, where the cluster tells.
        severity: how bad it is.
        attributes: its facts.
        inner: further attributes of the resource: the container, the node.
    """

    what: str
    kind: str
    item: Json
    body: str
    key: tuple[str, ...] = ()
    time: float | None = None
    severity: Severity = Severity.INFO
    attributes: Attributes = field(default_factory=dict)
    inner: Attributes = field(default_factory=dict)


def event_id(cluster: str, *parts: object) -> str:
    """An id of 32 hexadecimal digits that is the same whenever the same thing is told again."""
    return hashlib.sha256(json.dumps([cluster, *map(str, parts)]).encode()).hexdigest()[:32]


def to_event(finding: Finding, cluster: str, find: Find, now: int) -> Event:
    """The event of a finding in the cluster with the UID ``cluster``.

    ``find`` looks the owners up. ``now`` (Unix nanoseconds) is the event's time where the cluster tells none, or one in our future: its
    clocks may be ahead of ours.
    """
    meta = finding.item.get("metadata") or {}
    resource = {**identity(finding.kind, finding.item), **owner_attributes(finding.item, find), **finding.inner}
    attributes: Facts = {
        "irca.k8s.object.kind": kind_word(finding.kind),
        "irca.k8s.object.name": meta.get("name") or "",
    }
    if namespace := meta.get("namespace"):
        attributes["k8s.namespace.name"] = namespace
    when = now if finding.time is None else min(int(finding.time * NANO), now)
    return Event(
        name=f"{PREFIX}.{finding.what}",
        attributes=attributes | dict(finding.attributes),
        severity=finding.severity,
        body=finding.body[:MAX_TEXT],
        resource=({"k8s.cluster.uid": cluster} if cluster else {}) | resource,
        time_unix_nano=when,
        id=event_id(cluster, finding.what, finding.kind, meta.get("uid") or "", *finding.key),
    )


def dropped_event(cluster: str, counts: Mapping[str, int], start: int, end: int) -> Event:
    """The record of a storm: how many events were left out between ``start`` and ``end`` (Unix nanoseconds), and which most."""
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:10]
    total = sum(counts.values())
    return Event(
        name=f"{PREFIX}.{DROPPED}",
        attributes={
            "irca.events.dropped": total,
            "irca.events.dropped.kinds": [f"{kind}: {count}" for kind, count in most],
            "irca.gap.start_time_unix_nano": start,
            "irca.gap.end_time_unix_nano": end,
        },
        severity=Severity.WARN,
        body=f"{total} events of the Kubernetes cluster were left out: too many at a time",
        resource={"k8s.cluster.uid": cluster} if cluster else {},
        time_unix_nano=end,
        id=event_id(cluster, "dropped", start, end, total),
    )


def identity(kind: str, item: Json) -> Attributes:
    """An object's identity as attributes of a resource; kinds that OTel has none for are under ``irca.k8s``."""
    return object_resource(_OTEL.get(kind) or f"irca.k8s.{kind_word(kind).lower()}", item)


def kind_word(kind: str) -> str:
    """``Deployment`` for ``deployments``; what is no plural of ours is told as it came."""
    return KINDS[kind].kind if kind in KINDS else kind


def plural_of(word: str) -> str:
    """``deployments`` for ``Deployment``; what we do not watch is told as it came."""
    return _PLURALS.get(word, word)


def called(kind: str, item: Json) -> str:
    """An object in a sentence: ``Deployment shop/web``."""
    meta = item.get("metadata") or {}
    return f"{kind_word(kind)} {'/'.join(str(meta[key]) for key in ('namespace', 'name') if meta.get(key))}"


def message_attribute(text: object) -> Facts:
    """What the cluster says about it, without what looks like a secret; nothing where it says nothing."""
    said = redact(" ".join(str(text or "").split()))
    return {"irca.k8s.message": said if len(said) <= _MAX_MESSAGE else f"{said[:_MAX_MESSAGE]}…"} if said else {}


def created(item: Json) -> float | None:
    """When an object was made, in Unix seconds."""
    return timestamp((item.get("metadata") or {}).get("creationTimestamp"))


def version(item: Json) -> str:
    """Which state of an object this is."""
    return str((item.get("metadata") or {}).get("resourceVersion") or "")


def condition(item: Json, name: str) -> Json:
    """A condition of an object's status; empty where it has none of that name."""
    return next((c for c in (item.get("status") or {}).get("conditions") or () if c.get("type") == name), {})


def last_manager(before: Json | None, after: Json) -> tuple[str, float | None]:
    """Who made ``after`` of ``before``, and when (Unix seconds); empty where the cluster recorded nobody for it."""
    now = _managed(after)
    if before is not None and _managed(before) == now:
        return "", None
    entry = now[0] if now else {}
    return str(entry.get("manager") or ""), timestamp(entry.get("time"))


def who(before: Json | None, after: Json) -> Facts:
    """:func:`last_manager` and the cause that was given, as attributes."""
    manager, _ = last_manager(before, after)
    cause = _annotations(after).get("kubernetes.io/change-cause") or ""
    told: Facts = {"irca.k8s.changed_by": manager[:MAX_TEXT]} if manager else {}
    if cause and (before is None or cause != _annotations(before).get("kubernetes.io/change-cause")):
        told["irca.k8s.change.cause"] = redact(str(cause))[:MAX_TEXT]
    return told


def labelled(before: Json | None, after: Json) -> Facts:
    """Helm chart and application version by an object's labels, before and after where they differ."""
    old, new = _labels(before or {}), _labels(after)
    told: Facts = {}
    for label, name in (("helm.sh/chart", "irca.k8s.chart"), ("app.kubernetes.io/version", "irca.k8s.app_version")):
        if new.get(label):
            told[f"{name}.to"] = str(new[label])
        if before is not None and old.get(label) and old.get(label) != new.get(label):
            told[f"{name}.from"] = str(old[label])
    return told


def _managed(item: Json) -> Sequence[Json]:
    return (item.get("metadata") or {}).get("managedFields") or ()


def _annotations(item: Json) -> Json:
    return (item.get("metadata") or {}).get("annotations") or {}


def _labels(item: Json) -> Json:
    return (item.get("metadata") or {}).get("labels") or {}
