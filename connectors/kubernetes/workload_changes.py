"""Workloads that come, go, are scaled, or get another chart version.

Pods that are made and removed are not told one by one: that a workload was scaled or rolled out says the same once, and a cluster makes
pods by the thousand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from connectors.core.telemetry import Attributes
from connectors.kubernetes.change_event import Finding, called, created, labelled, last_manager, version, who
from connectors.kubernetes.resources import Json, timestamp
from connectors.kubernetes.template_difference import images

KINDS = frozenset({"deployments", "statefulsets", "daemonsets", "replicasets"})
"""Replica sets only where nobody controls them: those of a deployment are its rollouts."""
WAIT = 2.0
"""Seconds that a scaling waits: the autoscaler says what it has done after it has done it."""
MOST_WAITING = 2_000

_LATELY = 60.0


@dataclass(frozen=True, slots=True)
class _Scaling:
    """Replicas of a workload, before and after, by whom; ``due`` (Unix seconds) is when to tell it."""

    kind: str
    item: Json
    old: int
    new: int
    time: float | None
    by: Attributes
    due: float


class WorkloadChanges:
    """Follows all workloads. ``every`` gives the objects of a kind."""

    def __init__(self, every: Callable[[str], Sequence[Json]]) -> None:
        self._all = every
        self._waiting: deque[_Scaling] = deque(maxlen=MOST_WAITING)

    def take(self, kind: str, before: Json | None, after: Json | None, now: float) -> Iterator[Finding]:
        """What a change of a workload means; ``now`` is Unix seconds."""
        if kind == "replicasets" and _is_controlled(after or before or {}):
            return
        if after is None:
            if before is not None:
                yield Finding("workload.deleted", kind, before, f"{called(kind, before)} was deleted", attributes=labelled(None, before))
        elif before is None:
            yield Finding(
                "workload.created",
                kind,
                after,
                f"{called(kind, after)} was created",
                time=created(after),
                attributes={"container.image.name": images((after.get("spec") or {}).get("template") or {})}
                | labelled(None, after)
                | who(None, after),
            )
        else:
            self._note_scaling(kind, before, after, now)
            yield from _relabelled(kind, before, after)

    def tick(self, now: float, *, at_once: bool = False) -> Iterator[Finding]:
        """The scalings that have waited long enough, or all of them."""
        due: list[_Scaling] = []
        while self._waiting and (at_once or self._waiting[0].due <= now):
            due.append(self._waiting.popleft())
        if not due:
            return
        autoscalers = {_target(hpa): hpa for hpa in self._all("horizontalpodautoscalers")}
        for scaling in due:
            yield _scaled(scaling, autoscalers.get(_identity(scaling.kind, scaling.item)))

    def _note_scaling(self, kind: str, before: Json, after: Json, now: float) -> None:
        old, new = _replicas(before), _replicas(after)
        if kind != "daemonsets" and old is not None and new is not None and old != new:
            _, time = last_manager(before, after)
            self._waiting.append(_Scaling(kind, after, old, new, time, who(before, after), now + WAIT))


def _scaled(scaling: _Scaling, autoscaler: Json | None) -> Finding:
    attributes: dict[str, str | int] = {"irca.k8s.scale.from": scaling.old, "irca.k8s.scale.to": scaling.new}
    by = ""
    if autoscaler is not None and _did(autoscaler, scaling):
        name = str((autoscaler.get("metadata") or {}).get("name"))
        attributes |= {"irca.k8s.scale.by": "autoscaler", "k8s.hpa.name": name}
        by = f" by the autoscaler {name}"
    elif manager := scaling.by.get("irca.k8s.changed_by"):
        attributes["irca.k8s.scale.by"] = "manager"
        by = f" by {manager}"
    return Finding(
        "workload.scaled",
        scaling.kind,
        scaling.item,
        f"{called(scaling.kind, scaling.item)} was scaled from {scaling.old} to {scaling.new}{by}",
        key=(str((scaling.item.get("metadata") or {}).get("generation") or version(scaling.item)),),
        time=scaling.time if scaling.time is not None else scaling.due - WAIT,
        attributes=attributes | dict(scaling.by),
    )


def _did(autoscaler: Json, scaling: _Scaling) -> bool:
    """Whether the autoscaler did it: it wants as many, and acted at about that time."""
    status = autoscaler.get("status") or {}
    acted = timestamp(status.get("lastScaleTime"))
    return status.get("desiredReplicas") == scaling.new and acted is not None and abs(acted - (scaling.due - WAIT)) < _LATELY


def _relabelled(kind: str, before: Json, after: Json) -> Iterator[Finding]:
    """A new chart or version in the labels alone: with a new template it is told of the rollout."""
    told = labelled(before, after)
    moved = sorted(key.removesuffix(".from") for key in told if key.endswith(".from"))
    if not moved or _template(before) != _template(after):
        return
    said = ", ".join(f"{told[f'{key}.from']} to {told.get(f'{key}.to', 'none')}" for key in moved)
    yield Finding(
        "chart.changed",
        kind,
        after,
        f"{called(kind, after)} went from {said}",
        key=(version(after),),
        time=last_manager(before, after)[1],
        attributes=told | who(before, after),
    )


def _target(autoscaler: Json) -> tuple[str, str, str]:
    target = (autoscaler.get("spec") or {}).get("scaleTargetRef") or {}
    return str((autoscaler.get("metadata") or {}).get("namespace")), str(target.get("kind")), str(target.get("name"))


def _identity(kind: str, item: Json) -> tuple[str, str, str]:
    word, meta = {"deployments": "Deployment", "statefulsets": "StatefulSet"}.get(kind, "ReplicaSet"), item.get("metadata") or {}
    return str(meta.get("namespace")), word, str(meta.get("name"))


def _is_controlled(item: Json) -> bool:
    owners = (item.get("metadata") or {}).get("ownerReferences") or ()
    return any(owner.get("controller") for owner in owners)


def _replicas(item: Json) -> int | None:
    held = (item.get("spec") or {}).get("replicas")
    return held if isinstance(held, int) else None


def _template(item: Json) -> object:
    return (item.get("spec") or {}).get("template")
