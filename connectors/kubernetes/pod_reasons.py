"""Why pods do not run as they should: each reason once, however often the pod's status is written.

A crash is one of a container's run; back-off, a failed pull and a configuration that cannot be used last, and are told when they begin.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from connectors.core.telemetry import Attributes, AttributeValue, Severity
from connectors.kubernetes.change_event import Finding, called, condition, message_attribute
from connectors.kubernetes.lru import Recent
from connectors.kubernetes.resources import Json, timestamp, uid

MOST = 10_000
"""Containers whose lasting trouble is remembered."""
RECOVERED = 600.0
"""Seconds that a container has to have run for its next back-off to be another: then the kubelet, too, begins to count anew."""
PULL = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable", "ImageInspectError"})
CONFIG = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreStartHookError", "PostStartHookError"},
)

_KILLED = 137
_STOPPED = frozenset({_KILLED, 143})
"""Exit codes of a program that was told to end: by SIGTERM or, if it did not heed that, by SIGKILL."""


class PodReasons:
    """Follows all pods."""

    def __init__(self) -> None:
        self._loops: Recent[tuple[str, str], int] = Recent(MOST)

    def take(self, before: Json | None, after: Json | None) -> Iterator[Finding]:
        """What is wrong with a pod that was not wrong with it before."""
        if after is None:
            return
        known = {(found.what, found.key) for found in _findings(before)} if before is not None else set()
        for found in _findings(after):
            if (found.what, found.key) not in known and (found.what != "pod.crash_loop" or self._is_another(found)):
                yield found

    def _is_another(self, found: Finding) -> bool:
        """Whether a back-off is not the one that was told already."""
        key, restarts = (uid(found.item), found.key[0]), int(found.key[1])
        told = self._loops.get(key)
        ran = found.attributes.get("irca.k8s.container.ran")
        if told is not None and (restarts <= told or not isinstance(ran, float) or ran < RECOVERED):
            return False
        self._loops.put(key, restarts)
        return True


def _findings(item: Json) -> Iterator[Finding]:
    """Everything that a pod's status says is wrong, or went wrong last."""
    status = item.get("status") or {}
    yield from _of_pod(item, status)
    for part, specs in (("initContainerStatuses", "initContainers"), ("containerStatuses", "containers")):
        spec = {each.get("name"): each for each in (item.get("spec") or {}).get(specs) or ()}
        for container in status.get(part) or ():
            yield from _of_container(item, container, spec.get(container.get("name")) or {})


def _of_pod(item: Json, status: Json) -> Iterator[Finding]:
    reason, name = str(status.get("reason") or ""), called("pods", item)
    if status.get("phase") == "Failed" and reason:
        evicted = reason == "Evicted"
        yield Finding(
            "pod.evicted" if evicted else "pod.failed",
            "pods",
            item,
            f"{name} was evicted" if evicted else f"{name} failed: {reason}",
            key=(reason,),
            time=timestamp(condition(item, "DisruptionTarget").get("lastTransitionTime")),
            severity=Severity.WARN if evicted else Severity.ERROR,
            attributes={"k8s.pod.status.reason": reason} | message_attribute(status.get("message")),
            inner=_node(item),
        )
    scheduled = condition(item, "PodScheduled")
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        since = scheduled.get("lastTransitionTime")
        yield Finding(
            "pod.failed_scheduling",
            "pods",
            item,
            f"{name} finds no node",
            key=(str(since or ""),),
            time=timestamp(since),
            severity=Severity.WARN,
            attributes={"k8s.pod.status.reason": "Unschedulable"} | message_attribute(scheduled.get("message")),
        )


def _of_container(item: Json, status: Json, spec: Json) -> Iterator[Finding]:
    state, last = status.get("state") or {}, (status.get("lastState") or {}).get("terminated") or {}
    restarts = int(status.get("restartCount") or 0)
    for ended, run in ((state.get("terminated") or {}, restarts), (last, restarts - 1)):
        if ended:
            yield from _of_end(item, status, spec, ended, run)
    waiting = state.get("waiting") or {}
    reason = str(waiting.get("reason") or "")
    name, where = str(status.get("name")), f"{status.get('name')} in {called('pods', item)}"
    facts: dict[str, AttributeValue] = {**_facts(item, status, spec), "k8s.container.status.reason": reason}
    if reason == "CrashLoopBackOff":
        ran = _seconds(last)
        yield _container_finding(
            "pod.crash_loop",
            item,
            status,
            f"{where} crashes again and again: {restarts} restarts, last exit code {last.get('exitCode', 'unknown')}",
            (name, str(restarts)),
            facts | _ending(last) | ({} if ran is None else {"irca.k8s.container.ran": ran}) | message_attribute(last.get("message")),
            timestamp(last.get("finishedAt")),
        )
    elif reason in PULL:
        image = str(spec.get("image") or status.get("image") or "")
        body = f"The image {image} of {where} cannot be pulled"
        yield _container_finding(
            "pod.image_pull_failed", item, status, body, (name, image, str(restarts)), facts | message_attribute(waiting.get("message"))
        )
    elif reason in CONFIG:
        body = f"{where} cannot be made: {reason}"
        yield _container_finding(
            "pod.config_error", item, status, body, (name, reason, str(restarts)), facts | message_attribute(waiting.get("message"))
        )


def _of_end(item: Json, status: Json, spec: Json, ended: Json, run: int) -> Iterator[Finding]:
    """The end of a container's run, where it was a bad one. ``run`` counts from 0."""
    code, reason = int(ended.get("exitCode") or 0), str(ended.get("reason") or "")
    memory = reason == "OOMKilled"
    leaving = bool((item.get("metadata") or {}).get("deletionTimestamp"))
    if not memory and (code == 0 or (leaving and code in _STOPPED)):
        return
    name, where = str(status.get("name")), f"{status.get('name')} in {called('pods', item)}"
    facts = _facts(item, status, spec) | _ending(ended) | {"k8s.container.status.reason": reason}
    limit = ((spec.get("resources") or {}).get("limits") or {}).get("memory")
    body = f"{where} ended with exit code {code}"
    if memory:
        body = f"{where} was killed: out of memory{f' (limit {limit})' if limit else ''}"
    elif limit and code == _KILLED and not leaving:
        # Not every runtime notices what the kernel has killed and why: then nothing but the signal and the limit say so.
        facts["irca.container.oom_suspected"] = True
        body += f": memory may have run out (limit {limit})"
    if limit and (memory or code == _KILLED):
        facts["irca.k8s.container.memory.limit"] = str(limit)
    yield _container_finding(
        "pod.oom_killed" if memory else "pod.container_exited",
        item,
        status,
        body,
        (name, str(ended.get("containerID") or run)),
        facts | message_attribute(ended.get("message")),
        timestamp(ended.get("finishedAt")),
        severity=Severity.WARN if leaving and not memory else Severity.ERROR,
    )


def _container_finding(
    what: str,
    item: Json,
    status: Json,
    body: str,
    key: tuple[str, ...],
    attributes: Attributes,
    time: float | None = None,
    *,
    severity: Severity = Severity.ERROR,
) -> Finding:
    inner = {**_node(item), "k8s.container.name": str(status.get("name"))}
    return Finding(what, "pods", item, body, key=key, time=time, severity=severity, attributes=attributes, inner=inner)


def _facts(item: Json, status: Json, spec: Json) -> dict[str, AttributeValue]:
    facts: dict[str, Any] = {
        "k8s.pod.name": (item.get("metadata") or {}).get("name"),
        "k8s.container.name": status.get("name"),
        "container.image.name": spec.get("image") or status.get("image"),
        "container.image.id": status.get("imageID"),
        "k8s.container.restart_count": int(status.get("restartCount") or 0),
    }
    return {key: value for key, value in facts.items() if value not in (None, "")}


def _ending(ended: Json) -> dict[str, AttributeValue]:
    if not ended:
        return {}
    found: dict[str, AttributeValue] = {"irca.container.exit_code": int(ended.get("exitCode") or 0)}
    if reason := ended.get("reason"):
        found["k8s.container.status.last_terminated_reason"] = str(reason)
    if number := ended.get("signal"):
        found["irca.container.signal"] = str(number)
    return found


def _seconds(ended: Json) -> float | None:
    """How long a run lasted."""
    began, end = timestamp(ended.get("startedAt")), timestamp(ended.get("finishedAt"))
    return None if began is None or end is None else max(0.0, end - began)


def _node(item: Json) -> Attributes:
    node = (item.get("spec") or {}).get("nodeName")
    return {"k8s.node.name": str(node)} if node else {}
