"""How clusters read on a page: tables with the links that sort and filter, bars, the words for a state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from app.errors import PlatformError
from app.events.views import EventView
from app.telemetry.cluster_views import (
    AnyView,
    ClusterFilter,
    ClusterSort,
    DegradedView,
    NamespaceView,
    NodeView,
    PodView,
    QuotaAmount,
    WorkloadKind,
    WorkloadView,
    default_order,
    listed,
)
from app.telemetry.clusters import Cluster
from app.telemetry.containers import SortOrder, cut_page
from app.web.formats import duration, format_value
from app.web.tables import Choice, Heading, following, one_of, problem_choices

PAGE_SIZE = 100
BARS_SHOWN = 4
"""Quota bars that a namespace's row shows; the others are in the API and the namespace's title."""
MANY_NAMESPACES = 500
"""Namespaces that the filter offers at most."""


class ClusterTab(StrEnum):
    """The tables of a cluster's page."""

    WORKLOADS = "workloads"
    NODES = "nodes"
    NAMESPACES = "namespaces"


Column = tuple[ClusterSort, str, str]
"""What a column sorts by, its title, its classes."""

COLUMNS: Mapping[ClusterTab, Sequence[Column]] = {
    ClusterTab.WORKLOADS: (
        (ClusterSort.PROBLEM, "State", ""),
        (ClusterSort.NAME, "Name", ""),
        (ClusterSort.NAMESPACE, "Namespace", "wide"),
        (ClusterSort.KIND, "Kind", "wide"),
        (ClusterSort.READY, "Available", "right"),
        (ClusterSort.RESTARTS, "Restarts", "wide right"),
    ),
    ClusterTab.NODES: (
        (ClusterSort.PROBLEM, "State", ""),
        (ClusterSort.NAME, "Name", ""),
        (ClusterSort.CPU, "CPU, in cores", "wide right"),
        (ClusterSort.MEMORY, "Memory", "wide right"),
        (ClusterSort.PODS, "Pods", "right"),
    ),
    ClusterTab.NAMESPACES: (
        (ClusterSort.PROBLEM, "State", ""),
        (ClusterSort.NAME, "Name", ""),
        (ClusterSort.QUOTA, "Quotas", "wide"),
        (ClusterSort.PODS, "Pods", "right"),
        (ClusterSort.RESTARTS, "Restarts", "wide right"),
        (ClusterSort.CPU, "CPU, in cores", "wide right"),
        (ClusterSort.MEMORY, "Memory", "wide right"),
    ),
}
POD_COLUMNS: Sequence[Column] = (
    (ClusterSort.PROBLEM, "State", ""),
    (ClusterSort.NAME, "Name", ""),
    (ClusterSort.NODE, "Node", "wide"),
    (ClusterSort.READY, "Ready", "wide right"),
    (ClusterSort.RESTARTS, "Restarts", "right"),
    (ClusterSort.CPU, "CPU, in cores", "wide right"),
    (ClusterSort.MEMORY, "Memory", "wide right"),
)
KINDS: Mapping[WorkloadKind, tuple[str, str]] = {
    WorkloadKind.DEPLOYMENT: ("deployment", "deployments"),
    WorkloadKind.STATEFULSET: ("stateful set", "stateful sets"),
    WorkloadKind.DAEMONSET: ("daemon set", "daemon sets"),
    WorkloadKind.REPLICASET: ("replica set", "replica sets"),
    WorkloadKind.CRONJOB: ("cron job", "cron jobs"),
    WorkloadKind.JOB: ("job", "jobs"),
    WorkloadKind.POD: ("pod", "pods without owner"),
}
_PHASES = {"Running": "healthy", "Pending": "pending", "Succeeded": "stopped", "Failed": "offline", "Unknown": "offline"}
_FULL, _NEARLY = 1.0, 0.9


@dataclass(frozen=True, slots=True)
class Bar:
    """A used part: ``width`` per cent of it is drawn, ``look`` names a status' colour."""

    title: str
    text: str
    width: float
    look: str


@dataclass(frozen=True, slots=True)
class Row:
    """An object as a table shows it: ``look`` names a status' colour and shape, ``word`` is the state. Not every table has bars."""

    one: Any
    look: str
    word: str
    cpu: str = ""
    memory: str = ""
    uptime: str = ""
    bars: Sequence[Bar] = ()
    more: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """What the template draws."""

    rows: Sequence[Row]
    total: int
    found: int
    headings: Sequence[Heading]
    choices: Sequence[Choice]
    filters: Mapping[str, str]
    first_query: Mapping[str, str] | None
    next_query: Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class ClusterQuery:
    """What the URL asks for; whatever it does not understand is no filter."""

    tab: ClusterTab
    wanted: ClusterFilter
    cursor: str

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> ClusterQuery:
        """The query that the URL's parameters are."""
        wanted = ClusterFilter(
            search=parameters.get("search", "").strip(),
            namespace=parameters.get("namespace", "").strip(),
            kind=one_of(WorkloadKind, parameters.get("kind")),
            problems_only=parameters.get("problems") == "1",
            sort=one_of(ClusterSort, parameters.get("sort")) or ClusterSort.PROBLEM,
            order=one_of(SortOrder, parameters.get("order")),
        )
        return cls(one_of(ClusterTab, parameters.get("view")) or ClusterTab.WORKLOADS, wanted, parameters.get("cursor", ""))

    def parameters(self, **changed: str) -> dict[str, str]:
        """The parameters of this query from its first page on, with some changed; those without value are left out."""
        wanted = self.wanted
        own = {
            "view": "" if self.tab is ClusterTab.WORKLOADS else self.tab.value,
            "search": wanted.search,
            "namespace": wanted.namespace,
            "kind": wanted.kind.value if wanted.kind else "",
            "problems": "1" if wanted.problems_only else "",
            "sort": "" if wanted.sort is ClusterSort.PROBLEM else wanted.sort.value,
            "order": wanted.order.value if wanted.order else "",
        }
        return {key: value for key, value in {**own, **changed}.items() if value}


def cluster_table(query: ClusterQuery, found: Cluster) -> Table:
    """The table of the tab that is asked for."""
    if query.tab is ClusterTab.NODES:
        return _table(query, found.nodes, COLUMNS[query.tab], [_node_row(one) for one in _page(query, found.nodes)[0]])
    if query.tab is ClusterTab.NAMESPACES:
        return _table(query, found.namespaces, COLUMNS[query.tab], [_namespace_row(one) for one in _page(query, found.namespaces)[0]])
    rows = [_workload_row(one) for one in _page(query, found.workloads)[0]]
    return _table(query, found.workloads, COLUMNS[query.tab], rows, _kind_choices(query, found.workloads))


def pod_table(query: ClusterQuery, pods: Sequence[PodView]) -> Table:
    """The table of a workload's pods."""
    return _table(query, pods, POD_COLUMNS, [_pod_row(one) for one in _page(query, pods)[0]])


def tabs(query: ClusterQuery, found: Cluster) -> list[Choice]:
    """The tables that there are, with how many objects each has and whether something is wrong with one."""
    every: Mapping[ClusterTab, Sequence[WorkloadView | NodeView | NamespaceView]] = {
        ClusterTab.WORKLOADS: found.workloads,
        ClusterTab.NODES: found.nodes,
        ClusterTab.NAMESPACES: found.namespaces,
    }
    return [
        Choice(
            tab.value.capitalize(),
            len(items),
            "degraded" if any(one.problem for one in items) else "",
            {} if tab is ClusterTab.WORKLOADS else {"view": tab.value},
            tab is query.tab,
        )
        for tab, items in every.items()
    ]


def problems(found: Cluster) -> list[tuple[str, str, Mapping[str, str]]]:
    """What is wrong in the cluster, one line for each table: look, text, the query that lists it."""
    lines: list[tuple[str, str, Mapping[str, str]]] = []
    bad_nodes = [one for one in found.nodes if one.problem]
    if bad_nodes:
        named = ", ".join(f"{one.name}: {one.problem}" for one in bad_nodes[:3])
        look = "offline" if any(one.ready != "true" for one in bad_nodes) else "degraded"
        lines.append((look, f"{_count(bad_nodes, 'node')} with problems: {named}", {"view": "nodes", "problems": "1"}))
    bad = [one for one in found.workloads if one.problem]
    if bad:
        down = sum(bool(one.desired) and one.available == 0 for one in bad)
        text = f"{_count(bad, 'workload')} with problems" + (f", {down} of them down" if down else "")
        lines.append(("offline" if down else "degraded", text, {"problems": "1"}))
    full = [one for one in found.namespaces if (one.fullest or 0.0) >= _NEARLY]
    if full:
        named = ", ".join(one.name for one in full[:3])
        text = f"{_count(full, 'namespace')} at {'its' if len(full) == 1 else 'their'} quota: {named}"
        lines.append(("degraded", text, {"view": "namespaces", "sort": "quota"}))
    return lines


def summary(found: Cluster) -> list[tuple[str, str]]:
    """The cluster in figures."""
    ready = sum(one.ready == "true" for one in found.nodes)
    running = found.phases.get("Running", 0)
    others = [f"{count} {phase.lower()}" for phase, count in sorted(found.phases.items()) if phase and phase != "Running"]
    figures = [("Nodes ready", f"{ready} of {len(found.nodes)}")] if found.nodes else []
    if found.phases:
        figures.append(("Pods running", f"{running}" + (f" ({', '.join(others)})" if others else "")))
    return figures


def about_tab(tab: ClusterTab, degraded: Sequence[DegradedView]) -> list[DegradedView]:
    """The parts that cannot be seen and that this table shows."""
    shown = {
        ClusterTab.NODES: {"nodes", "pods", "kubelet"},
        ClusterTab.NAMESPACES: {"namespaces", "resourcequotas", "pods", "kubelet"},
        ClusterTab.WORKLOADS: {"pods", *(f"{kind.value}s" for kind in WorkloadKind)},
    }[tab]
    return [one for one in degraded if one.collector.rpartition(".")[2] in shown]


def images(events: Sequence[EventView]) -> list[str]:
    """The images that a workload's changes tell of, newest first."""
    found: dict[str, None] = {}
    for event in events:
        told = event.attributes.get("container.image.name") or event.resource.get("container.image.name") or []
        found.update(dict.fromkeys(str(one) for one in (told if isinstance(told, list) else [told])))
    return list(found)


def concerns(event: EventView, kind: WorkloadKind, namespace: str, name: str) -> bool:
    """Whether an event is about this workload or one of its pods."""
    told = {**event.attributes, **event.resource}
    return told.get(f"k8s.{kind.value}.name") == name and told.get("k8s.namespace.name") == namespace


def _page(query: ClusterQuery, items: Sequence[AnyView]) -> tuple[list[AnyView], str | None, int, ClusterQuery]:
    found = listed(items, query.wanted)
    try:
        shown, next_cursor = cut_page(found, query.cursor or None, PAGE_SIZE)
    except PlatformError:  # a cursor that is none of ours means the first page
        query = replace(query, cursor="")
        shown, next_cursor = cut_page(found, None, PAGE_SIZE)
    return shown, next_cursor, len(found), query


def _table(
    query: ClusterQuery, items: Sequence[AnyView], columns: Sequence[Column], rows: Sequence[Row], more: Sequence[Choice] = ()
) -> Table:
    _, next_cursor, found, query = _page(query, items)
    return Table(
        rows=rows,
        total=len(items),
        found=found,
        headings=[_heading(query, column) for column in columns],
        choices=[*_choices(query, items), *more],
        filters=query.parameters(),
        first_query=query.parameters() if query.cursor else None,
        next_query=query.parameters(cursor=next_cursor) if next_cursor else None,
    )


def _choices(query: ClusterQuery, items: Sequence[AnyView]) -> list[Choice]:
    wanted, troubled = query.wanted, sum(bool(one.problem) for one in items)
    return problem_choices(
        len(items),
        troubled,
        (query.parameters(kind="", problems="", namespace=""), not (wanted.kind or wanted.problems_only or wanted.namespace)),
        (query.parameters(kind="", problems="1"), wanted.problems_only),
    )


def _kind_choices(query: ClusterQuery, workloads: Sequence[WorkloadView]) -> list[Choice]:
    choices = []
    for kind, (one, several) in KINDS.items():
        count = sum(workload.kind is kind for workload in workloads)
        if count or query.wanted.kind is kind:
            title = one if count == 1 else several
            choices.append(Choice(title, count, "", query.parameters(kind=kind.value, problems=""), query.wanted.kind is kind))
    return choices


def _heading(query: ClusterQuery, column: Column) -> Heading:
    sort, title, classes = column
    if sort is ClusterSort.PROBLEM:  # the order without a choice
        return Heading(title, classes, query.parameters(sort="", order=""), "")
    usual = default_order(sort)
    order, word = following(query.wanted.sort is sort, query.wanted.order or usual, usual)
    return Heading(title, classes, query.parameters(sort=sort.value, order=order.value), word)


def _node_row(one: NodeView) -> Row:
    look, word = {"true": ("healthy", "ready"), "false": ("offline", "not ready")}.get(one.ready, ("offline", one.ready or "unknown"))
    if look == "healthy" and one.problem:
        look = "degraded"
    elif look == "healthy" and one.unschedulable:
        look, word = "stopped", "cordoned"
    cpu = memory = ""
    bars = []
    if one.cpu_usage is not None and one.cpu_allocatable:
        cpu = format_value(one.cpu_usage, "number")
        bars.append(_bar("CPU", one.cpu_usage, one.cpu_allocatable, f"{cpu} of {format_value(one.cpu_allocatable, 'number')}"))
    if one.memory_working_set is not None and one.memory_allocatable:
        memory = format_value(one.memory_working_set, "bytes")
        text = f"{memory} of {format_value(one.memory_allocatable, 'bytes')}"
        bars.append(_bar("Memory", one.memory_working_set, one.memory_allocatable, text))
    cpu = cpu or (format_value(one.cpu_allocatable, "number") if one.cpu_allocatable else "")
    memory = memory or (format_value(one.memory_allocatable, "bytes") if one.memory_allocatable else "")
    return Row(one, look, word, cpu, memory, bars=bars)


def _namespace_row(one: NamespaceView) -> Row:
    amounts = [amount for quota in one.quotas for amount in quota.amounts]
    amounts.sort(key=lambda amount: -amount.share)
    look, word = ("stopped", "terminating") if one.phase == "terminating" else ("healthy", one.phase or "active")
    return Row(
        one,
        "degraded" if one.problem else look,
        word,
        "" if one.cpu_usage is None else format_value(one.cpu_usage, "number"),
        "" if one.memory_working_set is None else format_value(one.memory_working_set, "bytes"),
        bars=[_quota_bar(amount) for amount in amounts[:BARS_SHOWN]],
        more=max(0, len(amounts) - BARS_SHOWN),
    )


def _workload_row(one: WorkloadView) -> Row:
    if one.problem:
        down = bool(one.desired) and one.available == 0
        return Row(one, "offline" if down else "degraded", "down" if down else "degraded")
    if one.kind is WorkloadKind.JOB and one.desired is not None:
        return Row(one, "pending", "running") if (one.available or 0) < one.desired else Row(one, "stopped", "complete")
    if one.kind is WorkloadKind.CRONJOB:
        return Row(one, "pending", "running") if one.active else Row(one, "healthy", "waiting")
    if one.desired == 0:
        return Row(one, "stopped", "scaled to 0")
    return Row(one, "healthy", "running" if one.kind is WorkloadKind.POD else "available")


def _pod_row(one: PodView) -> Row:
    look = _PHASES.get(one.phase, "pending")
    if one.problem and look == "healthy":
        look = "degraded"
    return Row(
        one,
        look,
        (one.phase or "unknown").lower(),
        "" if one.cpu_usage is None else format_value(one.cpu_usage, "number"),
        "" if one.memory_working_set is None else format_value(one.memory_working_set, "bytes"),
        "" if one.uptime_seconds is None else duration(one.uptime_seconds),
        bars=[
            _bar(title, used, limit, f"{format_value(used / limit, 'ratio')} of {format_value(limit, unit)}")
            for title, used, limit, unit in (
                ("CPU", one.cpu_usage, one.cpu_limit, "number"),
                ("Memory", one.memory_working_set, one.memory_limit, "bytes"),
            )
            if used is not None and limit
        ],
    )


def _quota_bar(amount: QuotaAmount) -> Bar:
    unit = "bytes" if amount.unit == "By" else "number"
    return _bar(amount.title, amount.used, amount.hard, f"{format_value(amount.used, unit)} of {format_value(amount.hard, unit)}")


def _bar(title: str, used: float, whole: float, text: str) -> Bar:
    share = used / whole if whole > 0 else 1.0
    look = "offline" if share >= _FULL else "degraded" if share >= _NEARLY else "healthy"
    return Bar(title, text, round(100 * min(1.0, max(0.0, share)), 1), look)


def _count(items: Sequence[object], noun: str) -> str:
    return f"{len(items)} {noun}" if len(items) == 1 else f"{len(items)} {noun}s"
