"""An instance's status as a pure function of what was last heard and the clock.

Thresholds: *degraded* after two missed heartbeats, *offline* after max(4 intervals, 90 s), *archived* after a settable silence.
Hysteresis: an instance that was degraded or offline needs two good heartbeats in a row to be *healthy* again. One that falls back soon
after each recovery (a *setback*) needs ever more of them, and gets longer to be heard before it is offline, so that a bad network shows
as one long trouble and not as many short ones. An archived instance stays so until it is heard again or somebody revives it.

The pods of a kubernetes agent come and go: one that is gone while another does its work is *replaced*, no problem, and archived soon.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from app.fleet.views import Status

OFFLINE_AT_LEAST = 90.0
"""Seconds of silence below which nothing is called offline, however short its interval."""
JITTER = 0.1
"""Share by which agents spread their heartbeats."""
GOOD_BEATS_NEEDED = 2
MOST_GOOD_BEATS = 64
"""Good heartbeats in a row that are asked of an instance at most, however often it fell back."""
CALM = 14_400.0
"""Seconds after a recovery within which the next fall is a setback; as many healthy ones make up for one."""
RETURN_BEATS = 4
"""Good heartbeats in a row with which an instance that has setbacks is taken to be back: fewer are a sign of life, not a return."""
PATIENCE = 2.0
"""How many times as long an instance with setbacks may be silent before it is offline."""
REPLACED_FOR = 900.0
"""Seconds that a pod which fell silent is kept as offline, when another has taken its place, before it is archived."""
CLUSTER_VIEW = "cluster"
"""The work of the pods that watch the API server."""
NODE_VIEW = "node:"
"""Beginning of the work of a pod that measures one node; the node's name follows."""

_SEVERITY = {
    Status.OFFLINE: 5,
    Status.DEGRADED: 4,
    Status.PENDING: 3,
    Status.HEALTHY: 2,
    Status.STOPPED: 1,
    Status.ARCHIVED: 0,
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an instance. Times are seconds since the epoch; ``last_heard`` is None before first contact.

    ``setbacks`` is how often in a row it fell back soon after it had recovered; ``revived`` when somebody last took it out of the archive.
    """

    last_heard: float | None
    interval: float
    healthy: bool | None = None
    last_error: str = ""
    good_beats: int = 0
    said_goodbye: bool = False
    setbacks: int = 0
    revived: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A status and why. ``silent`` says that it comes of silence, not of what was told; ``replaced`` that another pod does the work."""

    status: Status
    reason: str = ""
    silent: bool = field(default=False, compare=False)
    replaced: bool = False


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a kubernetes agent beside its siblings: what it does (:data:`CLUSTER_VIEW`, :data:`NODE_VIEW` + node), and how it is."""

    work: str
    status: Status

    @property
    def lives(self) -> bool:
        """Whether it is there, well or not."""
        return self.status in (Status.HEALTHY, Status.DEGRADED)


def evaluate(facts: Facts, now: float, previous: Status, archive_after: float) -> Verdict:
    """The status at ``now`` of an instance whose status was ``previous``."""
    silence = max(0.0, now - (facts.last_heard or 0.0))
    if previous is Status.ARCHIVED and (facts.said_goodbye or silence > late_after(facts.interval)):
        return Verdict(Status.ARCHIVED, silent=True)
    if facts.last_heard is None:
        return Verdict(Status.PENDING, "no contact yet")
    if silence >= archive_after and (facts.revived is None or now - facts.revived >= archive_after):
        return Verdict(Status.ARCHIVED, f"silent for {describe_span(silence)}", silent=True)
    if facts.said_goodbye:
        return Verdict(Status.STOPPED, "stopped in good order")
    return _of_present(facts, silence, previous)


def _of_present(facts: Facts, silence: float, previous: Status) -> Verdict:
    """The status of an instance that did not say goodbye and is not archived."""
    patience = offline_after(facts.interval, facts.setbacks)
    if silence > patience:
        return Verdict(Status.OFFLINE, f"no heartbeat since {describe_span(patience)} or more", silent=True)
    if previous is Status.OFFLINE and facts.setbacks and facts.good_beats < RETURN_BEATS:
        return Verdict(Status.OFFLINE, f"heard now and then: {facts.good_beats} of {RETURN_BEATS} good heartbeats")
    if silence > late_after(facts.interval):
        return Verdict(Status.DEGRADED, "missed two heartbeats", silent=True)
    if facts.healthy is False:
        return Verdict(Status.DEGRADED, facts.last_error or "the agent reports that it is not healthy")
    needed = good_beats_needed(facts.setbacks)
    if previous in (Status.DEGRADED, Status.OFFLINE) and facts.good_beats < needed:
        return Verdict(Status.DEGRADED, f"recovering: {facts.good_beats} of {needed} good heartbeats")
    return Verdict(Status.HEALTHY)


def is_replaced(pod: Pod, living: Collection[str], nodes: Collection[str] | None) -> bool:
    """Whether a pod that is gone (stopped, offline or archived) is no loss to its agent.

    Args:
        pod: the pod.
        living: what the living pods of its agent do.
        nodes: the cluster's nodes; None while they are not known.

    Nothing is replaced when no pod lives. A pod whose work another one does is. So is a node's when it said goodbye (its DaemonSet was
    changed or its node drained) or when its node has left the cluster; one that fell silent on a node that is there is missed.
    """
    if pod.lives or pod.status is Status.PENDING or not living:
        return False
    if pod.work in living or pod.status is Status.ARCHIVED:
        return True
    if not pod.work.startswith(NODE_VIEW):
        return False
    return pod.status is Status.STOPPED or (nodes is not None and pod.work.removeprefix(NODE_VIEW) not in nodes)


def settle(
    verdict: Verdict, facts: Facts, now: float, previous: Status, living: Collection[str], pod: Pod, nodes: Collection[str] | None
) -> Verdict:
    """What ``verdict`` comes to for a pod: archived at once after a goodbye, :data:`REPLACED_FOR` after it fell silent, when replaced.

    An archived pod stays so, for the reason it had, until it is heard again: that its successor goes too is not its return. ``living``
    is without the pod itself, and without those that have fallen silent.
    """
    if verdict.silent and verdict.status is Status.DEGRADED:  # on its way to offline
        return replace(verdict, replaced=is_replaced(replace(pod, status=Status.OFFLINE), living, nodes))
    if verdict.status not in (Status.STOPPED, Status.OFFLINE):
        return verdict
    if previous is Status.ARCHIVED:
        return Verdict(Status.ARCHIVED, replaced=True)
    if not is_replaced(replace(pod, status=verdict.status), living, nodes):
        return verdict
    silence = now - (facts.last_heard or now)
    if verdict.status is Status.STOPPED:
        return Verdict(Status.ARCHIVED, "stopped in good order, as pods are when they are replaced", replaced=True)
    if silence >= offline_after(facts.interval) + REPLACED_FOR:
        return Verdict(Status.ARCHIVED, f"silent for {describe_span(silence)}, and another pod does its work", silent=True, replaced=True)
    return replace(verdict, replaced=True)


def late_after(interval: float) -> float:
    """Seconds of silence after which two heartbeats have been missed, jitter allowed for."""
    return 2 * interval * (1 + JITTER) + 1


def offline_after(interval: float, setbacks: int = 0) -> float:
    """Seconds of silence after which an instance is offline; :data:`PATIENCE` times as many when it has setbacks."""
    return max(4 * interval, OFFLINE_AT_LEAST) * (PATIENCE if setbacks else 1.0)


def good_beats_needed(setbacks: int) -> int:
    """Good heartbeats in a row after which an instance is healthy again: two, and twice as many for each setback."""
    return int(min(GOOD_BEATS_NEEDED * 2 ** min(setbacks, 30), MOST_GOOD_BEATS))


def count_setbacks(setbacks: int, previous: Status, status: Status, calm: float | None) -> int:
    """The run of setbacks after a change from ``previous`` to ``status``, ``calm`` seconds after the last recovery (None: there was none).

    A fall soon after a recovery is one more; each :data:`CALM` of healthy time makes up for one, a goodbye for all.
    """
    if status in (Status.STOPPED, Status.ARCHIVED):
        return 0
    if previous is not Status.HEALTHY or status not in (Status.DEGRADED, Status.OFFLINE) or calm is None:
        return setbacks
    return setbacks + 1 if calm < CALM else max(0, setbacks - int(calm // CALM))


def count_beat(good_beats: int, healthy: bool, silence: float | None, interval: float, most: int = GOOD_BEATS_NEEDED) -> int:
    """The run of good heartbeats after one more, counted up to ``most``: it begins anew after an unhealthy or late one."""
    if not healthy:
        return 0
    if silence is not None and silence > late_after(interval):
        return 1
    return min(good_beats + 1, most)


def severity(status: Status) -> int:
    """How much a status calls for attention: offline most, archived least."""
    return _SEVERITY[status]


@lru_cache(maxsize=1024)
def version_key(version: str) -> tuple[tuple[int, str], ...]:
    """What versions are ordered by: their numbers as numbers."""
    return tuple((int(part) if part.isdigit() else 0, part) for part in version.replace("-", ".").split("."))


def worst(statuses: list[Status]) -> Status:
    """An agent's status: the worst of its instances', leaving archived ones aside while others are left; pending without any."""
    present = [s for s in statuses if s is not Status.ARCHIVED] or statuses
    return max(present, key=severity) if present else Status.PENDING


def of_pods(pods: Iterable[Pod], nodes: Collection[str] | None) -> tuple[Status, str]:
    """A kubernetes agent's status, as of its living pods, and why where that is not one pod's own reason.

    It is degraded while they leave something undone: nobody watches the cluster, or a node that is there is not measured any more.
    Without a living pod it is what the worst of the others is.
    """
    every = list(pods)
    alive = [pod for pod in every if pod.lives]
    if not alive:
        return worst([pod.status for pod in every]), ""
    living = {pod.work for pod in alive}
    missed = {pod.work for pod in every if not pod.lives and pod.status is not Status.PENDING and not is_replaced(pod, living, nodes)}
    if CLUSTER_VIEW in missed:
        return Status.DEGRADED, "no pod watches the cluster now: the one that did is gone"
    if missed:
        names = sorted(work.removeprefix(NODE_VIEW) for work in missed)
        return Status.DEGRADED, f"the pod on {_some(names)} is offline" if len(names) == 1 else f"the pods on {_some(names)} are offline"
    return worst([pod.status for pod in alive]), ""


def _some(names: list[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def describe_span(seconds: float) -> str:
    """A duration for people: ``90 s``, ``12 min``, ``3 h``, ``14 d``."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{round(seconds / size)} {unit}"
    return f"{round(seconds)} s"
