"""The rows of a cluster: nodes, namespaces with their quotas, workloads and pods, made of the facts that the series say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from app.telemetry.cluster_facts import (
    QUOTA_NAMES,
    QUOTAS,
    Figures,
    Owner,
    PodFacts,
    Sums,
    figures,
    namespace_problem,
    node_problem,
    workload_problem,
)
from app.telemetry.cluster_views import (
    ContainerStatusView,
    NamespaceView,
    NodeView,
    PodView,
    QuotaAmount,
    QuotaView,
    WorkloadKind,
    WorkloadView,
)
from app.telemetry.store import NAME, SeriesData

NEARLY_FULL = 0.9
"""Share of a quota from which on it is a problem."""

COUNTS: Mapping[WorkloadKind, tuple[str, str]] = {
    # what is wanted, and what of it is there
    WorkloadKind.DEPLOYMENT: ("k8s.deployment.pod.desired", "k8s.deployment.pod.available"),
    WorkloadKind.STATEFULSET: ("k8s.statefulset.pod.desired", "k8s.statefulset.pod.ready"),
    WorkloadKind.DAEMONSET: ("k8s.daemonset.node.desired_scheduled", "k8s.daemonset.node.ready"),
    WorkloadKind.REPLICASET: ("k8s.replicaset.pod.desired", "k8s.replicaset.pod.available"),
    WorkloadKind.JOB: ("k8s.job.pod.desired_successful", "k8s.job.pod.successful"),
    WorkloadKind.CRONJOB: ("", ""),
}
"""The metrics of each kind of workload: what is wanted, and what of it is there."""

_CONDITIONS = "k8s.node.condition.status"
_WORDS: Mapping[str, Sequence[str]] = {
    _CONDITIONS: ("k8s.node.condition.type", "k8s.node.condition.status"),
    "k8s.namespace.phase": ("k8s.namespace.phase",),
    **{name: (label,) for name in QUOTA_NAMES for base, (_, _, label) in QUOTAS.items() if label and name.startswith(f"{base}.")},
}


def present(pods: Sequence[PodFacts], window: float) -> list[PodFacts]:
    """The pods that are still there: reported in the window (seconds) before the newest report of any."""
    newest = max((pod.sampled for pod in pods), default=0.0)
    return [pod for pod in pods if pod.sampled > newest - window and pod.figures.words]


def grouped(series: Sequence[SeriesData], window: float) -> dict[str, list[Figures]]:
    """The objects of each kind that are still there: reported in the window before the newest report of their kind."""
    found: dict[str, list[Figures]] = {}
    sorted_out: dict[str, list[SeriesData]] = {}
    for one in series:
        name = one.labels[NAME].removeprefix("irca.")
        sorted_out.setdefault(name.split(".")[1], []).append(one)
    for kind, members in sorted_out.items():
        by = ("k8s.node.name",) if kind == "node" else ("k8s.namespace.name", f"k8s.{kind}.name")
        every = [of for key, of in figures(members, by, _WORDS).items() if key[-1] or kind == "namespace"]
        newest = max((of.newest for of in every), default=0.0)
        found[kind] = [of for of in every if of.newest > newest - window]
    return found


def nodes(nodes: Iterable[Figures], pods: Iterable[PodFacts]) -> Iterator[NodeView]:
    """Every node, with how many of ``pods`` run on it."""
    running: dict[str, int] = {}
    for pod in pods:
        running[pod.node] = running.get(pod.node, 0) + (not pod.finished)
    for of in nodes:
        known = of.words.get(_CONDITIONS, {})
        current = dict(word.split("=") for _, word in sorted((of.times[_CONDITIONS, word], word) for word, on in known.items() if on))
        ready = current.pop("Ready", "")
        conditions = sorted(kind for kind, status in current.items() if status == "true")
        name = of.labels.get("k8s.node.name", "")
        yield NodeView(
            name=name,
            uid=of.labels.get("k8s.node.uid", ""),
            ready=ready,
            conditions=conditions,
            unschedulable=bool(of.number("irca.k8s.node.unschedulable")),
            problem=node_problem(ready, conditions),
            pods=running.get(name, 0),
            pods_allocatable=of.whole("k8s.node.pod.allocatable"),
            cpu_usage=of.number("k8s.node.cpu.usage"),
            cpu_allocatable=of.number("k8s.node.cpu.allocatable"),
            memory_working_set=of.whole("k8s.node.memory.working_set"),
            memory_allocatable=of.whole("k8s.node.memory.allocatable"),
            filesystem_usage=of.whole("k8s.node.filesystem.usage"),
            filesystem_capacity=of.whole("k8s.node.filesystem.capacity"),
            sampled_at=datetime.fromtimestamp(of.newest, UTC),
        )


def namespaces(
    objects: Iterable[Figures], pods: Iterable[PodFacts], problems: Mapping[str, str], usage: Mapping[tuple[str, ...], Figures]
) -> Iterator[NamespaceView]:
    """Every namespace that is reported, or that something in it is."""
    sums, phases, quotas, newest = dict[str, Sums](), dict[str, str](), dict[str, list[QuotaView]](), dict[str, float]()
    used: dict[str, tuple[list[float], list[float]]] = {}
    for of in objects:
        name = of.labels.get("k8s.namespace.name", "")
        newest[name] = max(newest.get(name, 0.0), of.newest)
        if "k8s.resourcequota.name" in of.labels:
            quotas.setdefault(name, []).append(_quota(of))
        else:
            phases[name] = of.word("k8s.namespace.phase")
    for pod in pods:
        sums.setdefault(pod.namespace, Sums()).add(pod, problems[pod.uid])
        newest[pod.namespace] = max(newest.get(pod.namespace, 0.0), pod.sampled)
        if measured := usage.get((pod.uid,)):
            for place, metric in enumerate(("k8s.pod.cpu.usage", "k8s.pod.memory.working_set")):
                if (value := measured.number(metric)) is not None:
                    used.setdefault(pod.namespace, ([], []))[place].append(value)
    for name in sorted(newest):
        come, (cpu, memory) = sums.get(name, Sums()), used.get(name, ([], []))
        full = sorted(
            ((a.title, a.share) for q in quotas.get(name, ()) for a in q.amounts if a.share >= NEARLY_FULL and a.hard), key=lambda f: -f[1]
        )
        yield NamespaceView(
            name=name,
            phase=phases.get(name, ""),
            problem=namespace_problem(phases.get(name, ""), come, iter(full)),
            pods=come.pods,
            pods_with_problems=come.troubled,
            restarts=come.restarts,
            cpu_usage=sum(cpu) if cpu else None,
            memory_working_set=int(sum(memory)) if memory else None,
            quotas=sorted(quotas.get(name, ()), key=lambda quota: quota.name),
            sampled_at=datetime.fromtimestamp(newest[name], UTC),
        )


def _quota(of: Figures) -> QuotaView:
    amounts = []
    for base, (title, unit, _) in QUOTAS.items():
        hard_name, used_name = f"{base}.hard", f"{base}.used"
        bounds = {**of.words.get(hard_name, {}), **({"": of.values[hard_name]} if hard_name in of.values else {})}
        taken = {**of.words.get(used_name, {}), "": of.values.get(used_name, 0.0)}
        amounts += [
            QuotaAmount(title=" ".join(part for part in (title, word) if part) or base, unit=unit, hard=hard, used=taken.get(word, 0.0))
            for word, hard in bounds.items()
        ]
    return QuotaView(name=of.labels.get("k8s.resourcequota.name", ""), amounts=sorted(amounts, key=lambda a: (-a.share, a.title)))


def workloads(groups: Mapping[str, Sequence[Figures]], pods: Iterable[PodFacts], problems: Mapping[str, str]) -> Iterator[WorkloadView]:
    """Every workload, with what its pods come to; ``problems`` are those of the pods, by UID."""
    sums: dict[Owner, Sums] = {}
    for pod in pods:
        sums.setdefault(pod.owner, Sums()).add(pod, problems[pod.uid])
    failed_jobs: dict[Owner, int] = {}
    for kind, (wanted, there) in COUNTS.items():
        for of in groups.get(kind.value, ()):
            namespace = of.labels.get("k8s.namespace.name", "")
            desired, available = (of.whole(name) if name else None for name in (wanted, there))
            failed = of.whole("k8s.job.pod.failed") or 0 if kind is WorkloadKind.JOB else 0
            if kind is WorkloadKind.JOB and (above := of.labels.get("k8s.cronjob.name")):
                owner = WorkloadKind.CRONJOB, namespace, above
                failed_jobs[owner] = failed_jobs.get(owner, 0) + (failed > 0 and (available or 0) < (desired or 1))
                continue
            if kind is WorkloadKind.REPLICASET and (of.labels.get("k8s.deployment.name") or not desired):
                continue  # a revision of its deployment
            owner = kind, namespace, of.labels.get(f"k8s.{kind.value}.name", "")
            failed = failed_jobs.get(owner, 0) if kind is WorkloadKind.CRONJOB else failed
            active = of.whole("k8s.cronjob.job.active") if kind is WorkloadKind.CRONJOB else of.whole("k8s.job.pod.active")
            yield _workload(owner, desired, available, active, failed, sums.pop(owner, Sums()), of.newest)
    for owner, come in sums.items():
        # A pod without owner; or the pods of what cannot be read, or is gone: of a job that is done there is nothing more to say.
        if owner[0] is WorkloadKind.POD and (come.pods or come.problems):  # one that has failed is wanted still: nobody makes another
            yield _workload(owner, 1, int(not come.problems), None, 0, come, come.newest)
        elif come.pods:
            yield _workload(owner, None, None, None, 0, come, come.newest)


def _workload(
    owner: Owner, desired: int | None, available: int | None, active: int | None, failed: int, sums: Sums, newest: float
) -> WorkloadView:
    return WorkloadView(
        kind=owner[0],
        namespace=owner[1],
        name=owner[2],
        desired=desired,
        available=available,
        active=active,
        problem=workload_problem(owner[0], desired, available, failed, sums),
        pods=sums.pods,
        restarts=sums.restarts,
        recent_restarts=sums.recent_restarts,
        sampled_at=datetime.fromtimestamp(newest, UTC),
    )


def pod_view(pod: PodFacts, usage: Figures | None) -> PodView:
    """One pod, with what it uses where that is measured."""
    cpu, memory = (_bound(pod, f"k8s.container.{what}.limit.desired") for what in ("cpu", "memory"))
    return PodView(
        uid=pod.uid,
        name=pod.name,
        namespace=pod.namespace,
        node=pod.node,
        workload_kind=pod.owner[0],
        workload_name=pod.owner[2],
        phase=pod.phase,
        reason=pod.reason(),
        problem=pod.problem(),
        ready=pod.ready(),
        containers=[
            ContainerStatusView(
                name=name,
                state=one.word("k8s.container.status.state"),
                reason=one.word("k8s.container.status.reason"),
                last_termination=one.word("irca.k8s.container.last_termination.reason"),
                last_exit_code=one.whole("irca.k8s.container.last_termination.exit_code"),
                ready=bool(one.number("k8s.container.ready")),
                restarts=one.whole("k8s.container.restart.count") or 0,
            )
            for name, one in sorted(pod.containers.items())
        ],
        restarts=pod.restarts,
        recent_restarts=pod.recent_restarts,
        cpu_usage=usage.number("k8s.pod.cpu.usage") if usage else None,
        cpu_limit=cpu,
        memory_working_set=usage.whole("k8s.pod.memory.working_set") if usage else None,
        memory_limit=None if memory is None else int(memory),
        uptime_seconds=pod.figures.number("k8s.pod.uptime"),
        sampled_at=datetime.fromtimestamp(pod.sampled, UTC),
    )


def _bound(pod: PodFacts, name: str) -> float | None:
    """The sum of its containers' limits; None when one of them has none."""
    limits = [limit for one in pod.containers.values() if (limit := one.number(name))]
    return sum(limits) if limits and len(limits) == len(pod.containers) else None


def phases(pods: Iterable[PodFacts]) -> dict[str, int]:
    """How many pods are in each phase."""
    counts: dict[str, int] = {}
    for pod in pods:
        counts[pod.phase] = counts.get(pod.phase, 0) + 1
    return counts
