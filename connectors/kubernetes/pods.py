"""What the metrics of pods and their containers are made of.

A series must mean one thing as long as its pod lives, so every attribute of the resource stays as it is: the pod's identity, its owners,
and its node. A pod that has no node yet is told without, and when it gets one those series end with zeros. The container's id is no
attribute: it changes at every restart, and the count of restarts must not begin anew then.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from connectors.core.telemetry import Attributes, Metric, ResourceMetrics
from connectors.kubernetes.metrics import CONTAINER_STATES, POD_PHASES, amounts, constant, single, status
from connectors.kubernetes.quota import quantity
from connectors.kubernetes.resources import Find, Json, object_resource, owner_attributes, timestamp, uid

_MOST_REASONS = 16
"""Reasons that are remembered of one container; there are not as many."""
_AMOUNTS = (
    ("limits", "cpu", "k8s.container.cpu.limit.desired"),
    ("requests", "cpu", "k8s.container.cpu.request.desired"),
    ("limits", "memory", "k8s.container.memory.limit.desired"),
    ("requests", "memory", "k8s.container.memory.request.desired"),
    ("limits", "ephemeral-storage", "k8s.container.ephemeral_storage.limit"),
    ("requests", "ephemeral-storage", "k8s.container.ephemeral_storage.request"),
)


@dataclass(slots=True)
class _Reasons:
    """The reasons that something has had for its state, as long as it lives, in the order in which they came."""

    seen: tuple[str, ...] = ()

    def told(self, name: str, current: str) -> list[Metric]:
        """One point for each of them, 1 for the current one; nothing while there was none. So none falls silent while it is 1."""
        if current and current not in self.seen:
            self.seen = (*self.seen, current)[-_MOST_REASONS:]
        return [status(name, self.seen, current)] if self.seen else []


@dataclass(slots=True)
class _Container:
    """What is remembered of a container from round to round."""

    resource: Attributes
    reasons: _Reasons = field(default_factory=_Reasons)
    endings: _Reasons = field(default_factory=_Reasons)


@dataclass(slots=True)
class _Pod:
    """What is remembered of a pod from round to round. ``unplaced`` is what was last told of it while it had no node."""

    resource: Attributes
    node: str
    finished: bool = False
    reasons: _Reasons = field(default_factory=_Reasons)
    containers: dict[str, _Container] = field(default_factory=dict)
    unplaced: Sequence[ResourceMetrics] = ()


class PodMetrics:
    """Pods and their containers, init containers too: they are what a stuck pod waits for.

    The finished pods of jobs are told once as such, when they become so, and then left out: a cron job leaves them behind by the hundred.
    """

    def __init__(self, find: Find) -> None:
        self._find = find
        self._before: dict[str, _Pod] = {}
        self._pods: dict[str, _Pod] = {}

    def begin(self) -> None:
        """A round begins. What was not looked at in the last one is forgotten."""
        self._before, self._pods = self._pods, {}

    def of(self, item: Json, now: float) -> Iterable[ResourceMetrics]:
        """The metrics of a pod, and of each of its containers. ``now`` is in Unix seconds."""
        key, finished = uid(item), _is_finished_job(item)
        known = self._before.get(key) or self._meet(item, finished=finished)
        self._pods[key] = known
        if finished and known.finished:
            return ()
        known.finished = finished
        return self._told(item, known, now)

    def _meet(self, item: Json, *, finished: bool) -> _Pod:
        node = str((item.get("spec") or {}).get("nodeName") or "")
        resource = {**object_resource("k8s.pod", item), **owner_attributes(item, self._find)}
        return _Pod(_placed(resource, node), node, finished)

    def _told(self, item: Json, known: _Pod, now: float) -> Iterator[ResourceMetrics]:
        node = str((item.get("spec") or {}).get("nodeName") or "")
        if node and not known.node:
            yield from map(_ended, known.unplaced)
            known.unplaced, known.node = (), node
            known.resource = _placed(known.resource, node)
            known.containers.clear()
        told = [ResourceMetrics(known.resource, _pod_metrics(item, known, now)), *_containers(item, known)]
        if not node:
            known.unplaced = told
        yield from told


def _placed(resource: Attributes, node: str) -> Attributes:
    return {**resource, "k8s.node.name": node} if node else resource


def _ended(told: ResourceMetrics) -> ResourceMetrics:
    return replace(told, metrics=[replace(m, points=[replace(point, value=0.0) for point in m.points]) for m in told.metrics])


def _is_finished_job(item: Json) -> bool:
    owners = item["metadata"].get("ownerReferences") or ()
    return (item.get("status") or {}).get("phase") == "Succeeded" and any(owner.get("kind") == "Job" for owner in owners)


def _pod_metrics(item: Json, known: _Pod, now: float) -> list[Metric]:
    state = item.get("status") or {}
    phase = str(state.get("phase") or "Unknown")
    metrics = [
        status("k8s.pod.status.phase", POD_PHASES, phase),
        *known.reasons.told("k8s.pod.status.reason", str(state.get("reason") or "")),
    ]
    started = timestamp(state.get("startTime"))
    if phase == "Running" and started is not None:
        metrics.append(single("k8s.pod.uptime", max(0.0, now - started)))
    if not known.node:
        stuck = any(c.get("type") == "PodScheduled" and c.get("reason") == "Unschedulable" for c in state.get("conditions") or ())
        metrics.append(constant("irca.k8s.pod.unschedulable", float(stuck)))
    return metrics


def _containers(item: Json, known: _Pod) -> Iterator[ResourceMetrics]:
    spec, state = item.get("spec") or {}, item.get("status") or {}
    statuses = {each["name"]: each for key in ("initContainerStatuses", "containerStatuses") for each in state.get(key) or ()}
    finished = state.get("phase") in ("Succeeded", "Failed")
    for container in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
        name = container["name"]
        if (of := known.containers.get(name)) is None:
            of = known.containers[name] = _Container({**known.resource, "k8s.container.name": name})
        metrics = _state_metrics(statuses[name], of) if name in statuses else []
        if not finished:
            metrics += _reserved(container.get("resources") or {})
        if metrics:
            yield ResourceMetrics(of.resource, metrics)


def _state_metrics(found: Json, of: _Container) -> list[Metric]:
    state = found.get("state") or {}
    current = next((name for name in CONTAINER_STATES if name in state), "waiting")
    metrics = [
        constant("k8s.container.restart.count", float(found.get("restartCount") or 0)),
        constant("k8s.container.ready", float(bool(found.get("ready")))),
        status("k8s.container.status.state", CONTAINER_STATES, current),
        *of.reasons.told("k8s.container.status.reason", str((state.get(current) or {}).get("reason") or "")),
    ]
    if ended := (found.get("lastState") or {}).get("terminated"):
        metrics += of.endings.told("irca.k8s.container.last_termination.reason", str(ended.get("reason") or ""))
        metrics.append(constant("irca.k8s.container.last_termination.exit_code", float(ended.get("exitCode") or 0)))
    return metrics


def _reserved(resources: Json) -> Sequence[Metric]:
    """Limits and requests of a container."""
    if not resources:
        return ()
    return _amounts(tuple((resources.get(part) or {}).get(key) for part, key, _ in _AMOUNTS))


@functools.lru_cache(maxsize=1024)
def _amounts(texts: tuple[str | None, ...]) -> tuple[Metric, ...]:
    """Shared by all containers that have the same: there are few sizes."""
    names = [name for _, _, name in _AMOUNTS]
    return tuple(amounts((name, quantity(text)) for name, text in zip(names, texts, strict=True)))
