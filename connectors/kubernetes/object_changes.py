"""What changes of config maps, secrets, roles, autoscalers, quotas, jobs, claims and namespaces mean: pure functions of before and after.

Each is called with None for what was not, or is not any more. Of an object that is seen for the first time it tells that it was created;
whoever calls knows whether that is news.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from connectors.core.telemetry import Severity
from connectors.kubernetes.change_event import (
    Facts,
    Finding,
    called,
    condition,
    created,
    labelled,
    last_manager,
    message_attribute,
    version,
    who,
)
from connectors.kubernetes.difference import Parts, Telling, difference_attributes, differences, digest, summary
from connectors.kubernetes.resources import Json, timestamp
from connectors.kubernetes.template_difference import TELLING, describe
from connectors.kubernetes.trim import LEADER

Changes = Callable[[Json | None, Json | None], Iterator[Finding]]

NOISY_NAMES = frozenset({"kube-root-ca.crt", "openshift-service-ca.crt"})
"""Config maps that a controller puts into every namespace."""
SERVICE_ACCOUNT_TOKEN = "kubernetes.io/service-account-token"  # noqa: S105 - a type of secrets
HELM_RELEASE = "helm.sh/release.v1"

_RELEASED = {"deployed": "helm_release.deployed", "failed": "helm_release.failed", "uninstalled": "helm_release.uninstalled"}


_KEYS = Telling()


@dataclass(frozen=True, slots=True)
class Described:
    """A kind that is compared by a description: the noun of its events, and how the description is made and told.

    ``unseen`` says that its version changes only when the object itself does, so that a change that nobody saw can be told by it.
    ``noisy`` are objects that are left out.
    """

    kind: str
    noun: str
    describe: Callable[[Json], Parts]
    telling: Telling = _KEYS
    unseen: bool = False
    noisy: Callable[[Json], bool] = lambda _item: False

    def __call__(self, before: Json | None, after: Json | None) -> Iterator[Finding]:
        """What the change means."""
        item = after or before
        if item is None or self.noisy(item):
            return
        if before is None or after is None:
            yield self._whole(item, gone=after is None)
            return
        old, new = self.describe(before), self.describe(after)
        if found := differences(old, new):
            yield Finding(
                f"{self.noun}.changed",
                self.kind,
                after,
                f"{called(self.kind, after)} changed: {summary(found, self.telling)}",
                key=(version(after),),
                time=last_manager(before, after)[1],
                attributes=dict(difference_attributes(old, new, found, self.telling)) | labelled(before, after) | who(before, after),
            )

    def changed_unseen(self, item: Json) -> Finding | None:
        """That an object was changed, by its version and who changed it last; what differs is not known."""
        manager, time = last_manager(None, item)
        if not self.unseen or self.noisy(item) or time is None or not any(self.describe(item).values()):
            return None
        return Finding(
            f"{self.noun}.changed",
            self.kind,
            item,
            f"{called(self.kind, item)} changed{f' by {manager}' if manager else ''} while nobody watched",
            key=(version(item),),
            time=time,
            attributes={"irca.k8s.change.unseen": True} | labelled(None, item) | who(None, item),
        )

    def _whole(self, item: Json, *, gone: bool) -> Finding:
        return Finding(
            f"{self.noun}.{'deleted' if gone else 'created'}",
            self.kind,
            item,
            f"{called(self.kind, item)} was {'deleted' if gone else 'created'}",
            time=None if gone else created(item),
            attributes=labelled(None, item) | ({} if gone else who(None, item)),
        )


def namespace_changes(before: Json | None, after: Json | None) -> Iterator[Finding]:
    """A namespace is created; its deletion is told when it begins, for that is when what is in it goes."""
    if before is None and after is not None:
        yield Finding(
            "namespace.created",
            "namespaces",
            after,
            f"{called('namespaces', after)} was created",
            time=created(after),
            attributes=who(None, after),
        )
    item = after or before
    if item is not None and (after is None or is_leaving(after)) and not (before is not None and after is not None and is_leaving(before)):
        when = timestamp((item.get("metadata") or {}).get("deletionTimestamp"))
        yield Finding(
            "namespace.deleted", "namespaces", item, f"{called('namespaces', item)} is being deleted", time=when, severity=Severity.WARN
        )


def is_leaving(item: Json) -> bool:
    """Whether an object's deletion has begun."""
    return bool((item.get("metadata") or {}).get("deletionTimestamp"))


def job_changes(before: Json | None, after: Json | None) -> Iterator[Finding]:
    """A job has failed for good."""
    failed = condition(after or {}, "Failed")
    if after is None or failed.get("status") != "True" or condition(before or {}, "Failed").get("status") == "True":
        return
    facts: Facts = {"irca.k8s.condition.reason": str(failed.get("reason") or ""), "irca.k8s.job.pods.failed": _failed_pods(after)}
    yield Finding(
        "job.failed",
        "jobs",
        after,
        f"{called('jobs', after)} failed: {failed.get('reason') or 'no reason given'}",
        time=timestamp(failed.get("lastTransitionTime")),
        severity=Severity.ERROR,
        attributes=facts | message_attribute(failed.get("message")),
    )


def claim_changes(before: Json | None, after: Json | None) -> Iterator[Finding]:
    """A volume claim has lost its volume."""
    phases = [str(((item or {}).get("status") or {}).get("phase") or "") for item in (before, after)]
    if after is not None and phases[1] == "Lost" and phases[0] != "Lost":
        volume = str((after.get("spec") or {}).get("volumeName") or "")
        yield Finding(
            "pvc.lost",
            "persistentvolumeclaims",
            after,
            f"{called('persistentvolumeclaims', after)} has lost its volume{f' {volume}' if volume else ''}",
            severity=Severity.ERROR,
            attributes={"k8s.volume.name": volume} if volume else {},
        )


def secret_changes(before: Json | None, after: Json | None) -> Iterator[Finding]:
    """A secret's keys changed; or it is a revision of a Helm release, which has come to an end of some kind."""
    item = after or before
    if item is None:
        return
    if item.get("type") == HELM_RELEASE:
        yield from _release_changes(before, after)
    elif item.get("type") != SERVICE_ACCOUNT_TOKEN or (before is not None and after is not None):
        yield from SECRETS(before, after)


def _release_changes(before: Json | None, after: Json | None) -> Iterator[Finding]:
    """Helm keeps each revision of a release in a secret; its labels say how far it is."""
    was, now = _label(before, "status"), _label(after, "status")
    item = after or before
    if after is None:
        # Of the revisions that go, the last one says that the release went; superseded ones go when there are too many.
        what = "helm_release.uninstalled" if was in ("deployed", "uninstalling") else ""
    else:
        what = _RELEASED.get(now, "") if was != now else ""
    if not what or item is None:
        return
    name, revision = _label(item, "name"), _label(item, "version")
    modified = _label(item, "modifiedAt")
    time = float(modified) if after is not None and modified.isdecimal() else created(after) if after is not None else None
    done = {"deployed": "was deployed", "failed": "failed", "uninstalled": "was uninstalled"}[what.rpartition(".")[2]]
    yield Finding(
        what,
        "secrets",
        item,
        f"Revision {revision} of the Helm release {(item.get('metadata') or {}).get('namespace')}/{name} {done}",
        key=(revision,),
        time=time,
        severity=Severity.ERROR if now == "failed" else Severity.INFO,
        attributes={"irca.helm.release.name": name, "irca.helm.release.revision": revision, "irca.helm.release.status": now or was},
    )


def _label(item: Json | None, name: str) -> str:
    return str((((item or {}).get("metadata") or {}).get("labels") or {}).get(name) or "")


def _data(item: Json) -> Parts:
    return {"data": {**(item.get("data") or {}), **(item.get("binaryData") or {})}}


def _is_noisy(item: Json) -> bool:
    meta = item.get("metadata") or {}
    return meta.get("name") in NOISY_NAMES or LEADER in (meta.get("annotations") or {})


def _rules(item: Json) -> Parts:
    return {"rules": {_rule(rule): "" for rule in item.get("rules") or ()}}


def _rule(rule: Json) -> str:
    """A rule in words: ``get, list pods (core)``."""
    groups = ", ".join(sorted(group or "core" for group in rule.get("apiGroups") or ()))
    on = ", ".join(sorted([*(rule.get("resources") or ()), *(rule.get("nonResourceURLs") or ())]))
    only = f" named {', '.join(sorted(rule['resourceNames']))}" if rule.get("resourceNames") else ""
    return f"{', '.join(sorted(rule.get('verbs') or ()))} {on}{only}{f' ({groups})' if groups else ''}"


def _binding(item: Json) -> Parts:
    role = item.get("roleRef") or {}
    subjects = item.get("subjects") or ()
    return {
        "role": {"roleRef": f"{role.get('kind')} {role.get('name')}"},
        "subjects": {
            " ".join([str(s.get("kind")), "/".join(str(s[key]) for key in ("namespace", "name") if s.get(key))]): "" for s in subjects
        },
    }


def _autoscaler(item: Json) -> Parts:
    spec = item.get("spec") or {}
    target = spec.get("scaleTargetRef") or {}
    metrics = {_metric_name(metric): _metric_target(metric) for metric in spec.get("metrics") or ()}
    if (percentage := spec.get("targetCPUUtilizationPercentage")) is not None:
        metrics["Resource/cpu"] = f"averageUtilization={percentage}"
    return {
        "bounds": {key: str(spec[key]) for key in ("minReplicas", "maxReplicas") if spec.get(key) is not None},
        "metrics": metrics,
        "target": {"scaleTargetRef": f"{target.get('kind')} {target.get('name')}"},
        "behavior": {"behavior": digest(spec["behavior"])} if spec.get("behavior") else {},
    }


def _metric_name(metric: Json) -> str:
    """``Resource/cpu``; of metrics from elsewhere with the metric's own name."""
    kind = str(metric.get("type"))
    held = metric.get(kind[:1].lower() + kind[1:]) or {}
    named = held.get("name") or (held.get("metric") or {}).get("name") or held.get("metricName") or ""
    return "/".join(part for part in (kind, str(held.get("container") or ""), str(named)) if part)


def _metric_target(metric: Json) -> str:
    kind = str(metric.get("type"))
    held: Mapping[str, Any] = metric.get(kind[:1].lower() + kind[1:]) or {}
    target = held.get("target") or {key: value for key, value in held.items() if key.startswith("target")}
    return " ".join(f"{key}={target[key]}" for key in sorted(target) if key != "type" and not isinstance(target[key], Mapping))


def _quota(item: Json) -> Parts:
    spec = item.get("spec") or {}
    return {
        "hard": {str(key): str(value) for key, value in (spec.get("hard") or {}).items()},
        "scopes": {str(scope): "" for scope in spec.get("scopes") or ()},
        "scope_selector": {"scopeSelector": digest(spec["scopeSelector"])} if spec.get("scopeSelector") else {},
    }


def _budget(item: Json) -> Parts:
    spec = item.get("spec") or {}
    return {
        "bounds": {key: str(spec[key]) for key in ("minAvailable", "maxUnavailable") if spec.get(key) is not None},
        "selector": {"selector": digest(spec.get("selector"))},
    }


def _cron_job(item: Json) -> Parts:
    spec = item.get("spec") or {}
    names = ("schedule", "timeZone", "suspend", "concurrencyPolicy", "startingDeadlineSeconds")
    template = ((spec.get("jobTemplate") or {}).get("spec") or {}).get("template") or {}
    return {**describe(template), "schedule": {key: str(spec[key]) for key in names if spec.get(key) is not None}}


def _failed_pods(item: Json) -> int:
    return int((item.get("status") or {}).get("failed") or 0)


_BOUNDS = Telling(open=frozenset({"bounds", "metrics", "target", "hard"}))
_DATA = Telling(hashed=frozenset({"data"}))
_ROLES = Telling(open=frozenset({"role"}))
_CRON = Telling(open=TELLING.open | {"schedule"}, hashed=TELLING.hashed)

SECRETS = Described("secrets", "secret", _data, _DATA, unseen=True)
DESCRIBED: Mapping[str, Described] = {
    each.kind: each
    for each in (
        Described("configmaps", "configmap", _data, _DATA, unseen=True, noisy=_is_noisy),
        Described("roles", "rbac", _rules, unseen=True),
        Described("clusterroles", "rbac", _rules, unseen=True),
        Described("rolebindings", "rbac", _binding, _ROLES, unseen=True),
        Described("clusterrolebindings", "rbac", _binding, _ROLES, unseen=True),
        Described("horizontalpodautoscalers", "hpa", _autoscaler, _BOUNDS),
        Described("resourcequotas", "quota", _quota, _BOUNDS),
        Described("poddisruptionbudgets", "disruption_budget", _budget, _BOUNDS),
        Described("cronjobs", "cronjob", _cron_job, _CRON),
    )
}
"""The kinds that are compared by a description."""
CHANGES: Mapping[str, Changes] = {
    **DESCRIBED,
    "namespaces": namespace_changes,
    "jobs": job_changes,
    "persistentvolumeclaims": claim_changes,
    "secrets": secret_changes,
}
"""What to make of a change, by kind."""
