"""Rollouts of deployments, stateful sets and daemon sets: a new template that a controller takes up, brings to its end, or does not.

A template that is changed is only a wish: the rollout begins when the controller has given it a revision, so that what is changed while
a deployment is paused is one rollout. After a change of leaders nobody has seen the former template; a deployment's replica sets tell
it, and when the rollout began. Of the two other kinds such a rollout is told when it completes or stalls, but not what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from connectors.core.telemetry import AttributeValue, Severity
from connectors.kubernetes.change_event import (
    Facts,
    Finding,
    called,
    condition,
    created,
    labelled,
    last_manager,
    message_attribute,
    who,
)
from connectors.kubernetes.difference import difference_attributes, differences, summary
from connectors.kubernetes.lru import Recent
from connectors.kubernetes.resources import Json, timestamp, uid
from connectors.kubernetes.template_difference import RESTARTED_AT, TELLING, describe, images
from connectors.kubernetes.trim import TEMPLATE_GENERATION

KINDS = frozenset({"deployments", "statefulsets", "daemonsets"})
DEADLINE = 600.0
"""Seconds without progress after which a rollout counts as stalled, for the kinds that know no deadline of their own."""
REVISION = "deployment.kubernetes.io/revision"
MOST = 5_000
"""Rollouts under way that are remembered, and as many changed templates that wait for one."""

All = Callable[[str], Sequence[Json]]
_STUCK = "ProgressDeadlineExceeded"
_DONE = "NewReplicaSetAvailable"


@dataclass(slots=True)
class _Pending:
    """A template that was changed, until a controller rolls it out: the object before the first change, and who changed it last."""

    before: Json
    revision: str
    time: float | None = None
    by: Facts = field(default_factory=dict)


@dataclass(slots=True)
class _Active:
    """A rollout under way. ``progress`` are the pods that have come, ``since`` (Unix seconds) is when there was some last."""

    kind: str
    namespace: str
    name: str
    progress: tuple[int, ...]
    since: float
    began: float | None = None
    stalled: bool = False


class Rollouts:
    """Follows all of them.

    Args:
        find: looks an object up by kind, namespace and name.
        every: the objects of a kind.
        ready: whether all replica sets are known.
        since: until when another leader has told changes, in Unix seconds; None where there was none.
    """

    def __init__(self, find: Callable[[str, str, str], Json | None], every: All, ready: Callable[[], bool], since: float | None) -> None:
        self._find = find
        self._all = every
        self._ready = ready
        self._since = since
        self._pending: Recent[str, _Pending] = Recent(MOST)
        self._active: Recent[str, _Active] = Recent(MOST)
        self._missed: Recent[str, tuple[str, str]] = Recent(MOST)

    def take(self, kind: str, before: Json | None, after: Json | None, *, initial: bool, now: float) -> Iterator[Finding]:
        """What a change of a deployment, stateful set or daemon set means; ``now`` is Unix seconds."""
        if after is None:
            self._forget(before)
        elif before is None:
            yield from self._met(kind, after, initial=initial, now=now)
        else:
            self._note(kind, before, after)
            yield from self._started(kind, before, after, now)
            yield from self._go_on(kind, after, now)

    def tick(self, now: float) -> Iterator[Finding]:
        """Rollouts that nobody saw begin, and those that have come to a standstill."""
        if len(self._missed) and self._ready():
            yield from self._tell_missed()
        for key, active in self._active.items():
            if active.kind != "deployments" and not active.stalled and now - active.since >= DEADLINE:
                active.stalled = True
                item = self._find(active.kind, active.namespace, active.name)
                if item is not None and uid(item) == key and not _is_done(active.kind, item):
                    yield _stalled(active.kind, item, active.since + DEADLINE, f"no progress for {DEADLINE:.0f} seconds")

    def _forget(self, before: Json | None) -> None:
        key = uid(before) if before else ""
        for held in (self._pending, self._active, self._missed):
            held.pop(key)

    def _met(self, kind: str, after: Json, *, initial: bool, now: float) -> Iterator[Finding]:
        """An object that was not there, or not known, before."""
        if not initial or _in_progress(kind, after):
            self._begin(kind, after, now, created(after) if not initial else None)
        if not initial or self._since is None or kind != "deployments":
            return
        progressing = condition(after, "Progressing")
        moved, made = timestamp(progressing.get("lastUpdateTime")), created(after)
        if moved is None or moved < self._since:
            if (active := self._active.get(uid(after))) is not None and progressing.get("reason") == _STUCK:
                active.stalled = True  # which was told before our time
            return
        if made is not None and made < self._since:
            self._missed.put(uid(after), _where(after))
        if progressing.get("reason") == _STUCK:
            yield from self._go_on(kind, after, now)
        elif progressing.get("reason") == _DONE and _is_done(kind, after):
            yield _completed(kind, after, moved, None)

    def _note(self, kind: str, before: Json, after: Json) -> None:
        """Remember the template that a changed one takes the place of."""
        if _template(before) == _template(after):
            return
        key = uid(after)
        pending = self._pending.get(key)
        if pending is None:
            pending = _Pending(before, _revision(kind, before))
        elif _template(pending.before) == _template(after):
            self._pending.pop(key)  # taken back before anybody acted on it
            return
        pending.time, pending.by = last_manager(before, after)[1], who(before, after)
        self._pending.put(key, pending)

    def _started(self, kind: str, before: Json, after: Json, now: float) -> Iterator[Finding]:
        key, revision = uid(after), _revision(kind, after)
        pending = self._pending.get(key)
        if pending is not None:
            if not revision or revision == pending.revision or not (kind == "deployments" or _observed(after)):
                return
            self._pending.pop(key)
            old, time, by = pending.before, pending.time, pending.by
        else:
            previous = _revision(kind, before)
            if kind != "deployments" or not previous or revision == previous:
                return
            found = _replica_sets(self._all("replicasets"), after)
            if found is None:
                return
            (old, new), by = found, {}
            time = created(new)
        self._begin(kind, after, now, time or now)
        yield _start(kind, old, after, time, by)

    def _go_on(self, kind: str, after: Json, now: float) -> Iterator[Finding]:
        active = self._active.get(uid(after))
        progressing = condition(after, "Progressing")
        if kind == "deployments" and progressing.get("status") == "False" and progressing.get("reason") == _STUCK:
            if active is None or not active.stalled:
                if active is None:
                    active = self._begin(kind, after, now, None)
                active.stalled = True
                yield _stalled(kind, after, timestamp(progressing.get("lastTransitionTime")), str(progressing.get("message") or ""))
            return
        if active is None:
            return
        if (progress := _progress(kind, after)) != active.progress:
            active.progress, active.since = progress, now
        if uid(after) not in self._pending and _is_done(kind, after):
            self._active.pop(uid(after))
            ended = timestamp(progressing.get("lastUpdateTime")) if progressing.get("reason") == _DONE else None
            yield _completed(kind, after, ended, None if active.began is None else max(0.0, (ended or now) - active.began))

    def _begin(self, kind: str, item: Json, now: float, began: float | None) -> _Active:
        namespace, name = _where(item)
        active = _Active(kind, namespace, name, _progress(kind, item), now, began)
        self._active.put(uid(item), active)
        return active

    def _tell_missed(self) -> Iterator[Finding]:
        every = self._all("replicasets")
        for key, (namespace, name) in self._missed.items():
            self._missed.pop(key)
            item = self._find("deployments", namespace, name)
            found = _replica_sets(every, item) if item is not None and uid(item) == key else None
            if item is None or found is None:
                continue
            old, new = found
            made = created(new)
            if made is not None and self._since is not None and made >= self._since:
                yield _start("deployments", old, item, made, {})


def _start(kind: str, old: Json, item: Json, time: float | None, by: Facts) -> Finding:
    before, after = describe(_template(old)), describe(_template(item))
    found = differences(before, after)
    restart = set(found) == {"annotations"} and found["annotations"].keys == (RESTARTED_AT,)
    attributes: dict[str, AttributeValue] = {
        "irca.k8s.rollout.revision": _revision(kind, item),
        "irca.k8s.rollout.previous_revision": _revision(kind, old),
        "irca.k8s.rollout.restart": restart,
        "container.image.name": images(_template(item)),
    }
    attributes |= dict(difference_attributes(before, after, found, TELLING))
    what = "a restart that was asked for" if restart else summary(found, TELLING) or "the same template"
    return Finding(
        "rollout.started",
        kind,
        item,
        f"{called(kind, item)} began to roll out revision {_revision(kind, item)}: {what}",
        key=_key(kind, item),
        time=time,
        attributes={key: value for key, value in attributes.items() if value != ""} | labelled(old, item) | by,
    )


def _completed(kind: str, item: Json, time: float | None, seconds: float | None) -> Finding:
    return Finding(
        "rollout.completed",
        kind,
        item,
        f"{called(kind, item)} has rolled out revision {_revision(kind, item)}",
        key=_key(kind, item),
        time=time,
        attributes=_figures(kind, item)
        | labelled(None, item)
        | ({} if seconds is None else {"irca.k8s.rollout.duration": round(seconds, 3)}),
    )


def _stalled(kind: str, item: Json, time: float | None, message: str) -> Finding:
    return Finding(
        "rollout.stalled",
        kind,
        item,
        f"{called(kind, item)} does not get on with the rollout of revision {_revision(kind, item)}",
        key=_key(kind, item),
        time=time,
        severity=Severity.ERROR,
        attributes=_figures(kind, item) | labelled(None, item) | message_attribute(message),
    )


def _figures(kind: str, item: Json) -> dict[str, AttributeValue]:
    updated, available = _progress(kind, item)
    return {
        "irca.k8s.rollout.revision": _revision(kind, item),
        "irca.k8s.rollout.pods.desired": _desired(kind, item),
        "irca.k8s.rollout.pods.updated": updated,
        "irca.k8s.rollout.pods.available": available,
        "container.image.name": images(_template(item)),
    }


def _key(kind: str, item: Json) -> tuple[str, ...]:
    # A stateful set that goes back to a former template gets its former revision, too.
    generation = str(_meta(item).get("generation") or "")
    return (_revision(kind, item), generation) if kind == "statefulsets" else (_revision(kind, item),)


def _revision(kind: str, item: Json) -> str:
    """What the controller calls the template; empty where it has not said."""
    notes = _meta(item).get("annotations") or {}
    if kind == "statefulsets":
        return str(_status(item).get("updateRevision") or "")
    if kind == "daemonsets":
        return str(notes.get(TEMPLATE_GENERATION) or _meta(item).get("generation") or "")
    return str(notes.get(REVISION) or "")


def _replica_sets(every: Sequence[Json], item: Json) -> tuple[Json, Json] | None:
    """The replica set of a deployment's former revision and that of its present one; None where either is gone."""
    key, held = uid(item), {}
    for replica_set in every:
        owners = _meta(replica_set).get("ownerReferences") or ()
        number = str((_meta(replica_set).get("annotations") or {}).get(REVISION) or "")
        if number.isdecimal() and any(owner.get("uid") == key for owner in owners):
            held[int(number)] = replica_set
    revision = _revision("deployments", item)
    present = int(revision) if revision.isdecimal() else -1
    former = max((number for number in held if number < present), default=None)
    return None if former is None or present not in held else (held[former], held[present])


def _progress(kind: str, item: Json) -> tuple[int, int]:
    """Pods that are of the new template, and pods that are available."""
    if kind == "daemonsets":
        return _number(item, "updatedNumberScheduled"), _number(item, "numberAvailable")
    return _number(item, "updatedReplicas"), _number(item, "readyReplicas" if kind == "statefulsets" else "availableReplicas")


def _desired(kind: str, item: Json) -> int:
    if kind == "daemonsets":
        return _number(item, "desiredNumberScheduled")
    wanted = (item.get("spec") or {}).get("replicas")
    return 1 if wanted is None else int(wanted)


def _is_done(kind: str, item: Json) -> bool:
    """Whether every pod is of the new template and available."""
    if not _observed(item):
        return False
    updated, available = _progress(kind, item)
    desired = _desired(kind, item)
    if kind == "deployments":
        return updated >= desired and _number(item, "replicas") <= updated and available >= updated
    if kind == "statefulsets" and _status(item).get("currentRevision") != _status(item).get("updateRevision"):
        return False
    return available >= desired and (kind == "statefulsets" or updated >= desired)


def _in_progress(kind: str, item: Json) -> bool:
    """Whether a rollout is under way, as far as an object that is seen for the first time tells: pods may be missing for other reasons."""
    if kind == "deployments":
        return condition(item, "Progressing").get("reason") not in (_DONE, None)
    if kind == "statefulsets":
        return bool(_status(item).get("currentRevision") != _status(item).get("updateRevision"))
    return _number(item, "updatedNumberScheduled") < _number(item, "desiredNumberScheduled")


def _observed(item: Json) -> bool:
    return _number(item, "observedGeneration") >= int(_meta(item).get("generation") or 0)


def _number(item: Json, name: str) -> int:
    return int(_status(item).get(name) or 0)


def _meta(item: Json) -> Json:
    return item.get("metadata") or {}


def _status(item: Json) -> Json:
    return item.get("status") or {}


def _template(item: Json) -> Mapping[str, object]:
    return (item.get("spec") or {}).get("template") or {}


def _where(item: Json) -> tuple[str, str]:
    return str(_meta(item).get("namespace") or ""), str(_meta(item).get("name") or "")
