"""What is kept of the cluster's objects: pure functions from an object as the API gives it to its trimmed form, of the same shape.

Only what metrics and changes are made of is kept, so that thousands of objects fit into little memory and no secret is held: values of
environment variables, arguments and entries of config maps are there as keyed hashes, whose key never leaves the agent.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Json = Mapping[str, Any]
Hashed = Callable[[str], str]

MAX_MESSAGE = 500
"""Characters of a message that are kept."""
TEMPLATE_GENERATION = "deprecated.daemonset.template.generation"
"""The annotation that counts a daemon set's templates; whatever its name says, every version up to the newest sets it."""
LEADER = "control-plane.alpha.kubernetes.io/leader"
"""The annotation by which config maps are used to elect a leader."""
POD_LABELS = frozenset(
    {
        "app", "k8s-app", "component", "tier", "version", "release", "chart", "heritage", "job-name", "helm.sh/chart",
        "pod-template-hash", "controller-revision-hash", "batch.kubernetes.io/job-name", "statefulset.kubernetes.io/pod-name",
    }
)  # fmt: skip
"""Labels of pods that are kept, beside those of ``app.kubernetes.io``."""
ANNOTATIONS = frozenset(
    {
        "deployment.kubernetes.io/revision", "kubernetes.io/change-cause", "kubectl.kubernetes.io/restartedAt",
        "meta.helm.sh/release-name", "meta.helm.sh/release-namespace", "kubernetes.io/config.mirror",
        "argocd.argoproj.io/tracking-id", "autoscaling.alpha.kubernetes.io/conditions", TEMPLATE_GENERATION,
    }
)  # fmt: skip
"""Annotations that are kept: they tell who changed what and why."""

_IDENTITY = ("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp")
_OWNER = ("apiVersion", "kind", "name", "uid", "controller")
_BOOKKEEPING = frozenset({"f:status", "f:metadata"})
_HELM_RELEASE = re.compile(r"sh\.helm\.release\.v1\..+\.v\d+")
_HELM_LABELS = ("name", "owner", "status", "version", "modifiedAt")


def hasher(salt: bytes) -> Hashed:
    """A keyed hash of texts, 16 hexadecimal digits. Without ``salt`` nobody can try out values against it."""
    return lambda text: hmac.new(salt, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:16]


def metadata(meta: Json, *, labels: Callable[[str], bool] = lambda _: True) -> dict[str, Any]:
    """An object's metadata: identity, owners, some annotations, and of the managed fields the entry that tells who changed it last."""
    kept = _pick(meta, *_IDENTITY)
    if held := {key: value for key, value in (meta.get("labels") or {}).items() if labels(key)}:
        kept["labels"] = held
    if noted := {key: _cut(value) for key, value in (meta.get("annotations") or {}).items() if key in ANNOTATIONS}:
        kept["annotations"] = noted
    if owners := meta.get("ownerReferences"):
        kept["ownerReferences"] = [_pick(owner, *_OWNER) for owner in owners]
    if last := last_manager(meta.get("managedFields") or ()):
        kept["managedFields"] = [last]
    return kept


def last_manager(entries: Iterable[Json]) -> dict[str, Any]:
    """Who changed the object last and when (``manager``, ``operation``, ``time``); empty where nobody is recorded.

    Controllers write the status of what they control all the time: whoever wrote anything but status and metadata goes before them.
    """
    best: tuple[bool, str] = (False, "")
    found: dict[str, Any] = {}
    for entry in entries:
        substantial = not _BOOKKEEPING.issuperset(entry.get("fieldsV1") or ())
        rank = (substantial and entry.get("subresource") != "status", str(entry.get("time") or ""))
        if not found or rank >= best:
            best, found = rank, _pick(entry, "manager", "operation", "time", "subresource")
    return found


def node(item: Json, _hashed: Hashed) -> dict[str, Any]:
    """A node: cordoned or not, taints, resources, conditions without their heartbeats."""
    return _parts(
        item,
        spec=("unschedulable", "taints", "providerID"),
        status=("capacity", "allocatable", "addresses", "nodeInfo", "conditions"),
    )


def namespace(item: Json, _hashed: Hashed) -> dict[str, Any]:
    """A namespace: its phase."""
    return _parts(item, status=("phase",))


def pod(item: Json, _hashed: Hashed) -> dict[str, Any]:
    """A pod: where it runs, what its containers may use, and how it and they are. Most labels are dropped."""
    spec, status = item.get("spec") or {}, item.get("status") or {}
    kept_spec = _pick(spec, "nodeName", "priority", "priorityClassName", "restartPolicy", "overhead", "hostNetwork")
    for key in ("containers", "initContainers"):
        if containers := spec.get(key):
            kept_spec[key] = [_pick(container, "name", "image", "resources", "restartPolicy") for container in containers]
    kept_status = _pick(status, "phase", "reason", "message", "qosClass", "startTime", "podIP", "conditions")
    for key in ("containerStatuses", "initContainerStatuses"):
        if statuses := status.get(key):
            names = ("name", "ready", "started", "restartCount", "image", "imageID", "containerID", "state", "lastState")
            kept_status[key] = [_pick(each, *names) for each in statuses]
    return {"metadata": metadata(item.get("metadata") or {}, labels=_is_pod_label), "spec": kept_spec, "status": kept_status}


def workload(item: Json, hashed: Hashed) -> dict[str, Any]:
    """A deployment, replica set, stateful set or daemon set: how many pods of which template it wants and has."""
    spec = ("replicas", "paused", "strategy", "updateStrategy", "selector", "minReadySeconds", "serviceName", "progressDeadlineSeconds")
    kept = _parts(item, spec=spec)
    kept["spec"]["template"] = template((item.get("spec") or {}).get("template") or {}, hashed)
    kept["status"] = _cut_deep(item.get("status") or {})
    return kept


def job(item: Json, hashed: Hashed) -> dict[str, Any]:
    """A job: what it is to do, and how far it is."""
    spec = ("parallelism", "completions", "completionMode", "backoffLimit", "activeDeadlineSeconds", "suspend")
    status = ("active", "succeeded", "failed", "ready", "startTime", "completionTime", "conditions")
    kept = _parts(item, spec=spec, status=status)
    kept["spec"]["template"] = template((item.get("spec") or {}).get("template") or {}, hashed)
    return kept


def cron_job(item: Json, hashed: Hashed) -> dict[str, Any]:
    """A cron job: its schedule, its jobs' template, and when it ran."""
    kept = _parts(item, spec=("schedule", "timeZone", "suspend", "concurrencyPolicy", "startingDeadlineSeconds"))
    spec = ((item.get("spec") or {}).get("jobTemplate") or {}).get("spec") or {}
    kept["spec"]["jobTemplate"] = {"spec": {"template": template(spec.get("template") or {}, hashed)}}
    status = item.get("status") or {}
    kept["status"] = _pick(status, "lastScheduleTime", "lastSuccessfulTime")
    kept["status"]["active"] = [_pick(each, "name", "namespace", "uid") for each in status.get("active") or ()]
    return kept


def template(item: Json, hashed: Hashed) -> dict[str, Any]:
    """A pod template in full, but for what a person may have put a secret in: that is there as keyed hashes.

    So are values of environment variables, of HTTP headers and of annotations, commands and arguments.
    """
    meta = item.get("metadata") or {}
    kept: dict[str, Any] = {"metadata": _pick(meta, "labels")}
    if noted := meta.get("annotations"):
        kept["metadata"]["annotations"] = {key: value if key in ANNOTATIONS else hashed(str(value)) for key, value in noted.items()}
    kept["spec"] = _masked(item.get("spec") or {}, hashed)
    return kept


def autoscaler(item: Json, _hashed: Hashed) -> dict[str, Any]:
    """A horizontal pod autoscaler: bounds, target and metrics, and what it last did."""
    return _parts(item, spec=None, status=None)


def volume_claim(item: Json, _hashed: Hashed) -> dict[str, Any]:
    """A persistent volume claim: what it asks for, and what it is bound to."""
    spec = ("accessModes", "resources", "storageClassName", "volumeMode", "volumeName")
    return _parts(item, spec=spec, status=("phase", "capacity", "conditions"))


def quota(item: Json, _hashed: Hashed) -> dict[str, Any]:
    """A resource quota: hard and used."""
    return _parts(item, spec=("hard", "scopes", "scopeSelector"), status=("hard", "used"))


def config_map(item: Json, hashed: Hashed) -> dict[str, Any]:
    """A config map: its keys, with the hashes of their values."""
    kept = _hashed_data(item, hashed, "data", "binaryData")
    if LEADER in ((item.get("metadata") or {}).get("annotations") or {}):
        kept["metadata"].setdefault("annotations", {})[LEADER] = ""  # that it is one; what it says changes every few seconds
    return kept | _pick(item, "immutable")


def secret(item: Json, hashed: Hashed) -> dict[str, Any]:
    """A secret: its type and keys, with the hashes of their values; of a Helm release only name, version and status."""
    meta = item.get("metadata") or {}
    if item.get("type") == "helm.sh/release.v1" or _HELM_RELEASE.fullmatch(str(meta.get("name") or "")):
        return {"metadata": metadata(meta, labels=_HELM_LABELS.__contains__), "type": "helm.sh/release.v1"}
    return _hashed_data(item, hashed, "data") | _pick(item, "type", "immutable")


def event(item: Json, _hashed: Hashed) -> dict[str, Any]:
    """An event of the cluster's own (core/v1 Event)."""
    names = (
        "involvedObject", "reason", "message", "type", "count", "series", "firstTimestamp", "lastTimestamp", "eventTime", "source",
        "reportingComponent", "reportingInstance", "action", "related",
    )  # fmt: skip
    meta = _pick(item.get("metadata") or {}, *_IDENTITY)
    return {"metadata": meta, **_pick(item, *names)}


def role(item: Json, _hashed: Hashed) -> dict[str, Any]:
    """A role or cluster role: its rules."""
    return _parts(item) | _pick(item, "rules", "aggregationRule")


def binding(item: Json, _hashed: Hashed) -> dict[str, Any]:
    """A role binding or cluster role binding: whom it gives which role."""
    return _parts(item) | _pick(item, "roleRef", "subjects")


def disruption_budget(item: Json, _hashed: Hashed) -> dict[str, Any]:
    """A pod disruption budget: what it demands, and how many disruptions it allows now."""
    status = ("currentHealthy", "desiredHealthy", "disruptionsAllowed", "expectedPods", "observedGeneration")
    return _parts(item, spec=None, status=status)


def _parts(item: Json, *, spec: tuple[str, ...] | None = (), status: tuple[str, ...] | None = ()) -> dict[str, Any]:
    """Metadata, and these fields of spec and status: None for all, none for leaving the part out."""
    kept: dict[str, Any] = {"metadata": metadata(item.get("metadata") or {})}
    for part, names in (("spec", spec), ("status", status)):
        held = item.get(part) or {}
        if names is None:
            kept[part] = _cut_deep(held)
        elif names:
            kept[part] = _pick(held, *names)
    return kept


def _hashed_data(item: Json, hashed: Hashed, *parts: str) -> dict[str, Any]:
    kept = _parts(item)
    for part in parts:
        if held := item.get(part):
            kept[part] = {key: hashed(str(value)) for key, value in held.items()}
    return kept


def _pick(held: Json, *names: str) -> dict[str, Any]:
    """These fields of ``held``, where they are there; long messages cut."""
    return {name: _cut_deep(held[name]) for name in names if held.get(name) is not None}


def _cut_deep(value: Any) -> Any:
    if isinstance(value, Mapping):
        # A heartbeat changes every few seconds and says nothing that the condition's status does not.
        return {key: _cut_deep(inner) for key, inner in value.items() if key != "lastHeartbeatTime"}
    if isinstance(value, list):
        return [_cut_deep(inner) for inner in value]
    return _cut(value)


def _cut(value: Any) -> Any:
    return value[:MAX_MESSAGE] + "…" if isinstance(value, str) and len(value) > MAX_MESSAGE else value


def _masked(value: Any, hashed: Hashed) -> Any:
    if isinstance(value, list):
        return [_masked(inner, hashed) for inner in value]
    if not isinstance(value, Mapping):
        return value
    masked: dict[str, Any] = {}
    for key, inner in value.items():
        if key in ("command", "args") and isinstance(inner, list):
            masked[key] = [hashed(str(each)) for each in inner]
        elif key == "value" and "name" in value and isinstance(inner, str):  # a variable, a header
            masked[key] = hashed(inner)
        else:
            masked[key] = _masked(inner, hashed)
    return masked


def _is_pod_label(key: str) -> bool:
    return key in POD_LABELS or key.startswith("app.kubernetes.io/")
