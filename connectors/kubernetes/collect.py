"""The cluster view's collectors: one for each kind of objects, read from what the watches hold. None asks the API server itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, overload

from connectors.core.collector import Collector, describe_failure
from connectors.core.errors import CollectorError
from connectors.core.telemetry import Attributes, Point, ResourceMetrics
from connectors.kubernetes.cluster_objects import claim_metrics, namespace_metrics, node_metrics, resource_quota_metrics
from connectors.kubernetes.config import K8sAgentConfig
from connectors.kubernetes.kinds import KINDS, of_features
from connectors.kubernetes.metrics import metric
from connectors.kubernetes.pods import PodMetrics
from connectors.kubernetes.resources import Find, Json
from connectors.kubernetes.view import KindState, View
from connectors.kubernetes.workloads import (
    ReplicaSetMetrics,
    autoscaler_metrics,
    cronjob_metrics,
    daemonset_metrics,
    deployment_metrics,
    disruption_budget_metrics,
    job_metrics,
    statefulset_metrics,
)

HELD_FOR = 60.0
"""Seconds after a watch broke down for which what it last saw still counts as what is: most of the time it resumes within a few."""

_OWNERS = {"pods": ("replicasets", "jobs")}
"""Kinds to be known before another is measured: the owners that its series are named by."""


class Measure(Protocol):
    """Makes metrics of the objects of one kind, round by round."""

    def begin(self) -> None:
        """A round begins: every object will be looked at."""
        ...

    def of(self, item: Json, now: float) -> Iterable[ResourceMetrics]:
        """The metrics of one object at ``now`` (Unix seconds)."""
        ...


def cluster_collectors(
    view: View, config: K8sAgentConfig, clock: Callable[[], float], resource: Callable[[], Attributes] = dict
) -> Sequence[Collector]:
    """The cluster view's collectors: ``kubernetes.<kind>`` for every kind that is watched and measured, and ``kubernetes.watches``.

    The sequence follows the cluster: a kind that it does not have, or has no more, has no collector. ``clock`` gives Unix seconds;
    ``resource`` is the agent's own, for the metrics of the watches.
    """
    kinds = [kind.name for kind in of_features(KINDS, config.features)]
    measures = _measures(view.get)
    collectors = [KindCollector(view, name, measures[name], clock) for name in kinds if name in measures]
    return _Served(view, collectors, WatchCollector(view, kinds, resource))


class KindCollector:
    """The objects of one kind.

    What was seen last is not sent on and on as if it were news: once the watch has been down for :data:`HELD_FOR`, nothing is sent.
    """

    def __init__(self, view: View, kind: str, measure: Measure, clock: Callable[[], float]) -> None:
        self.name = f"kubernetes.{kind}"
        self.kind = kind
        self._view = view
        self._measure = measure
        self._clock = clock
        self._down_since: float | None = None

    def collect(self) -> Iterator[ResourceMetrics]:
        """One resource for each object that has metrics, and for each container of a pod.

        Raises:
            CollectorError: the kind is not known in full or its watch is down, or objects make no sense, after the others were yielded.
        """
        now = self._clock()
        reason = self._check(now)
        misfits = 0
        self._measure.begin()
        for item in self._view.all(self.kind):
            try:
                measured = list(self._measure.of(item, now))
            except (KeyError, TypeError, ValueError, AttributeError) as exc:
                misfits += 1
                trouble = describe_failure(exc)
                continue
            yield from (each for each in measured if each.metrics)
        if misfits and not reason:
            reason = f"{misfits} of the cluster's {self.kind} make no sense: {trouble}"
        if reason:
            raise CollectorError(reason)

    def _check(self, now: float) -> str:
        """Why the kind is degraded although there is something to send; empty when it is not.

        Raises:
            CollectorError: there is nothing to send.
        """
        state = self._view.state(self.kind)
        if not state.synced:
            raise CollectorError(state.reason or f"the cluster's {self.kind} have not been listed yet")
        for owner in _OWNERS.get(self.kind, ()):
            above = self._view.state(owner)
            if above.served and not above.synced and not above.reason:
                raise CollectorError(f"the cluster's {owner}, which own {self.kind}, have not been listed yet")
        if not state.down:
            self._down_since = None
            return state.reason
        self._down_since = now if self._down_since is None else min(self._down_since, now)
        if now - self._down_since >= HELD_FOR:
            raise CollectorError(state.reason)
        return state.reason


class WatchCollector:
    """How the watches fare. Metrics are of the agent's own resource."""

    name = "kubernetes.watches"

    def __init__(self, view: View, kinds: Sequence[str], resource: Callable[[], Attributes]) -> None:
        self._view = view
        self._kinds = kinds
        self._resource = resource

    def collect(self) -> Iterator[ResourceMetrics]:
        """One resource: the agent.

        Raises:
            CollectorError: no kind can be watched, after the figures were yielded.
        """
        states = {name: state for name in self._kinds if (state := self._view.state(name)).served}
        figures: Mapping[str, Callable[[KindState], float]] = {
            "irca.k8s.watch.object.count": lambda state: state.count,
            "irca.k8s.watch.request.count": lambda state: state.requests,
            "irca.k8s.watch.relist.count": lambda state: state.relists,
            "irca.k8s.watch.synced": lambda state: state.synced and not state.down,
        }
        points = {
            name: [Point(float(figure(s)), {"irca.k8s.watch.resource": kind}) for kind, s in states.items()]
            for name, figure in figures.items()
        }
        yield ResourceMetrics(self._resource(), [metric(name, found) for name, found in points.items() if found])
        reasons = [state.reason for state in states.values() if state.down or not state.synced]
        if states and len(reasons) == len(states) and all(reasons):
            raise CollectorError(f"nothing of the cluster can be watched: {reasons[0]}")


class _Served(Sequence[Collector]):
    """The collectors of those kinds that the cluster has now, and that of the watches."""

    def __init__(self, view: View, collectors: Sequence[KindCollector], watches: WatchCollector) -> None:
        self._view = view
        self._all = collectors
        self._watches = watches

    def _now(self) -> list[Collector]:
        return [*(each for each in self._all if self._view.state(each.kind).served), self._watches]

    def __len__(self) -> int:
        return len(self._now())

    @overload
    def __getitem__(self, index: int) -> Collector: ...

    @overload
    def __getitem__(self, index: slice) -> list[Collector]: ...

    def __getitem__(self, index: int | slice) -> Collector | list[Collector]:
        return self._now()[index]

    def __iter__(self) -> Iterator[Collector]:
        return iter(self._now())


class _Each:
    """A measure that needs no memory."""

    def __init__(self, measure: Callable[[Json], ResourceMetrics]) -> None:
        self._measure = measure

    def begin(self) -> None:
        """Nothing is remembered."""

    def of(self, item: Json, _now: float) -> Iterable[ResourceMetrics]:
        """The object's metrics."""
        return (self._measure(item),)


def _measures(find: Find) -> Mapping[str, Measure]:
    """What is measured, by kind."""
    return {
        "nodes": _Each(node_metrics),
        "namespaces": _Each(namespace_metrics),
        "pods": PodMetrics(find),
        "deployments": _Each(deployment_metrics),
        "replicasets": ReplicaSetMetrics(),
        "statefulsets": _Each(statefulset_metrics),
        "daemonsets": _Each(daemonset_metrics),
        "jobs": _Each(job_metrics),
        "cronjobs": _Each(cronjob_metrics),
        "horizontalpodautoscalers": _Each(autoscaler_metrics),
        "persistentvolumeclaims": _Each(claim_metrics),
        "resourcequotas": _Each(resource_quota_metrics),
        "poddisruptionbudgets": _Each(disruption_budget_metrics),
    }
