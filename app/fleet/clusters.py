"""Kubernetes clusters: what the fleet's pods say they run in. A cluster is the UID of its namespace ``kube-system``."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from app.fleet import status as rules
from app.fleet.registry import Agent, Instance, moment
from app.fleet.views import ClusterView, CollectorReason, Status

CLUSTER = "k8s.cluster.uid"
DEFAULT_INTERVAL = 10.0
"""Seconds between collections where no pod tells."""


def clusters_of(agents: Iterable[Agent], sees: Callable[[str], bool]) -> list[ClusterView]:
    """The clusters that pods of these agents run in, problems first; of agents in environments that ``sees`` only.

    A cluster whose pods are all archived is left out, unless it is the last one of an agent.
    """
    found: dict[str, list[Instance]] = {}
    for agent in agents:
        if not agent.has_pods or not sees(agent.environment_name):
            continue
        pods = [i for i in agent.instances.values() if i.resource.get(CLUSTER)]
        current = [i for i in pods if i.status is not Status.ARCHIVED] or sorted(pods, key=lambda i: i.last_seen or 0.0)[-1:]
        for uid in {str(i.resource[CLUSTER]) for i in current}:
            found.setdefault(uid, []).extend(i for i in pods if str(i.resource[CLUSTER]) == uid)
    clusters = [_cluster(uid, pods) for uid, pods in found.items()]
    return sorted(clusters, key=lambda one: (-rules.severity(one.status), one.name, one.uid))


def _cluster(uid: str, pods: list[Instance]) -> ClusterView:
    agents = sorted({pod.agent.id: pod.agent for pod in pods}.values(), key=lambda agent: (agent.created_at, agent.id))
    judged = [(*rules.of_pods([i.pod() for i in pods if i.agent is agent], agent.nodes), agent) for agent in agents]
    status, reason, worst = max(judged, key=lambda one: rules.severity(one[0]))
    living = [i for i in pods if i.pod().lives] or pods
    intervals = [float(told) for i in living if isinstance(told := i.effective_config.get("collect_interval"), int | float) and told > 0]
    shared = any(i.resource.get(CLUSTER) not in (None, "", uid) for agent in agents for i in agent.instances.values())
    return ClusterView(
        uid=uid,
        name=agents[0].environment_name,
        agent_ids=[agent.id for agent in agents],
        environments=sorted({agent.environment_name for agent in agents}),
        status=status,
        status_reason=reason or next((i.status_reason for i in pods if i.agent is worst and i.status is status and i.status_reason), ""),
        pods=sum(i.pod().lives for i in pods),
        last_seen_at=moment(max((i.last_seen for i in pods if i.last_seen is not None), default=None)),
        collect_interval=max(intervals, default=DEFAULT_INTERVAL),
        instance_ids=[i.id for i in pods] if shared else [],
        collectors=[CollectorReason(instance_id=i.id, last_error=error) for i in living if (error := _collectors(i))],
    )


def _collectors(instance: Instance) -> str:
    """What the pod says of its collectors that fail."""
    return next((str(part.get("last_error", "")) for part in instance.components if part.get("name") == "collectors"), "")
