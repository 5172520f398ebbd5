from __future__ import annotations

import math
import re
import time
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from opamp_client import OpampAgent
from test_enrolment import enrolled, exchange, provision

from app.db.models import EnrolmentTokenRow
from app.errors import NotFoundError, QueryTooLargeError
from app.fleet.views import Status
from app.main import _tell_nodes
from app.telemetry import clusters as clusters_module
from app.telemetry.cluster_views import ClusterFilter, ClusterSort, WorkloadKind, listed
from app.telemetry.clusters import ClusterScope, ClusterService, collector_reasons
from app.telemetry.containers import SortOrder
from connectors.kubernetes.metrics import METRICS
from tests.page_clusters import MadeCluster, MadeNode, MadePod, MadeWorkload, shop_cluster, synthetic_cluster
from tests.page_platform import PagePlatform, identifier

AGENT, LEADER = identifier("agent prod-cluster"), identifier("node-a")
SCOPE = ClusterScope((AGENT,))
DEPLOYMENT = WorkloadKind.DEPLOYMENT


@pytest.fixture
async def platform(tmp_path: Path):
    made = PagePlatform(tmp_path)
    await made.open()
    yield made
    await made.close()


def _before(seconds: float) -> float:
    return (time.time() - seconds) * 1000


def _cluster(**parts) -> MadeCluster:
    """A cluster of nothing but these parts."""
    nothing = {"nodes": [], "namespaces": {}, "quotas": {}, "workloads": [], "pods": []}
    return MadeCluster(AGENT, [(LEADER, -math.inf, math.inf)], **{**nothing, **parts})


async def _read(platform: PagePlatform, *, usage: bool = False, scope: ClusterScope = SCOPE, **parts):
    if parts:
        platform.metrics.cluster = _cluster(**parts)
    return await platform.clusters.read(scope, usage=usage)


def _names(items) -> list[str]:
    return [one.name for one in items]


async def test_a_node_is_shown_with_its_conditions_what_pods_may_use_and_what_is_used(platform):
    pods = [MadePod("a", "x"), MadePod("b", "x"), MadePod("done", "x", phase="Succeeded")]
    [node] = (await _read(platform, nodes=[MadeNode("worker-1", conditions=("DiskPressure",), cordoned=True)], pods=pods)).nodes
    assert (node.name, node.uid, node.ready, node.conditions) == ("worker-1", "uid-worker-1", "true", ["DiskPressure"])
    assert (node.unschedulable, node.problem, node.pods, node.pods_allocatable) == (True, "DiskPressure", 2, 110)
    assert (node.cpu_usage, node.cpu_allocatable) == (1.2, 4.0)
    assert node.memory_working_set == 5 * 1024**3
    assert node.memory_allocatable == 16 * 1024**3


async def test_without_the_node_view_usage_is_unknown_and_the_rest_is_there(platform):
    found = await _read(platform, usage=True, nodes=[MadeNode("n")], pods=[MadePod("a", "x", node="n")], node_view=False)
    assert (found.nodes[0].cpu_usage, found.nodes[0].cpu_allocatable) == (None, 4.0)
    assert (found.namespaces[0].cpu_usage, found.namespaces[0].pods) == (None, 1)


@pytest.mark.parametrize(("ready", "problem"), [("true", ""), ("false", "not ready"), ("unknown", "its kubelet does not answer")])
async def test_what_is_wrong_with_a_node_is_said(platform, ready, problem):
    [node] = (await _read(platform, nodes=[MadeNode("n", ready=ready)])).nodes
    assert node.problem == problem


async def test_a_namespace_has_its_quotas_the_fullest_first_and_what_its_pods_come_to(platform):
    found = await platform.clusters.read(SCOPE, usage=True)
    shop = next(one for one in found.namespaces if one.name == "shop")
    [quota] = shop.quotas
    assert [(a.title, a.unit, a.used, a.hard) for a in quota.amounts][:2] == [
        ("pods", "{object}", 20, 20),
        ("CPU requests", "{cpu}", 7.4, 8),
    ]
    assert shop.problem == "pods quota used up, 92 % of CPU requests quota used, 3 pods with problems"
    assert (shop.pods, shop.pods_with_problems, shop.phase) == (20, 3, "active")
    assert shop.cpu_usage == pytest.approx(1.85)
    payments = next(one for one in found.namespaces if one.name == "payments")
    assert [a.title for q in payments.quotas for a in q.amounts] == [
        "CPU requests",
        "Memory requests",
        "Storage requests fast",
        "count/secrets",
    ]
    assert {one.name: one.problem for one in found.namespaces}["staging"] == "terminating with pods left"


async def test_a_quota_of_nothing_is_no_problem_though_it_is_full(platform):
    [one] = (await _read(platform, namespaces={"x": "active"}, quotas={("x", "none"): {"pods": (0, 0)}})).namespaces
    assert (one.problem, one.fullest) == ("", 1.0)


def _by_name(workloads) -> dict[str, tuple]:
    return {one.name: (one.kind.value, one.desired, one.available, one.active, one.problem) for one in workloads}


async def test_workloads_say_what_is_wanted_what_is_there_and_what_is_wrong(platform):
    found = _by_name((await platform.clusters.read(SCOPE)).workloads)
    looping = re.fullmatch(r"1 of 3 available: CrashLoopBackOff, restarted [23] times in 15 min \(2 pods\)", found["checkout"][4])
    assert looping, found["checkout"]
    assert found["thumbnails"] == ("deployment", 2, 0, None, "0 of 2 available: ImagePullBackOff (2 pods)")
    assert found["postgres"] == ("statefulset", 3, 2, None, "2 of 3 available: no node fits it (1 pod)")
    assert found["kube-proxy"] == ("daemonset", 5, 4, None, "4 of 5 nodes ready")
    assert found["import-2026-11-21"] == ("job", 1, 0, 0, "4 pods failed")
    assert found["migrate-2026-11-20"] == ("job", 1, 1, 0, "")
    assert found["nightly-report"] == ("cronjob", None, None, 1, "")
    assert found["debug-shell"] == ("pod", 1, 1, None, "")
    assert found["storefront"] == ("deployment", 4, 4, None, "")
    assert found["preview"] == ("deployment", 0, 0, None, ""), "an evicted pod that was replaced is no problem of its deployment"
    assert "out of memory" in found["search"][4]
    assert "nightly-report-29384" not in found, "a cron job's jobs are part of it"


async def test_a_cron_job_tells_that_a_job_of_it_failed(platform):
    workloads = [
        MadeWorkload("cronjob", "b", "nightly"),
        MadeWorkload("job", "b", "nightly-1", 1, 1, failed=2, cronjob="nightly"),
        MadeWorkload("job", "b", "nightly-2", 1, 0, failed=3, cronjob="nightly"),
    ]
    [one] = (await _read(platform, workloads=workloads)).workloads
    assert (one.name, one.problem) == ("nightly", "a job of it failed")


async def test_replica_sets_of_deployments_are_not_workloads_and_one_of_its_own_is(platform):
    owned = MadeWorkload("replicaset", "x", "web-1", 2, 2)
    pods = [MadePod("lone-a", "x", {"replicaset": "lone"}, waiting="ErrImagePull")]
    found = (
        await _read(platform, workloads=[MadeWorkload("replicaset", "x", "lone", 1, 0), replace(owned, desired=0)], pods=pods)
    ).workloads
    assert [(one.kind, one.name, one.problem) for one in found] == [(WorkloadKind.REPLICASET, "lone", "0 of 1 available: ErrImagePull")]


async def test_a_pod_without_owner_that_has_failed_is_a_problem_and_one_that_has_succeeded_is_done(platform):
    pods = [MadePod("import", "x", phase="Failed", reason="Evicted"), MadePod("done", "x", phase="Succeeded")]
    found = (await _read(platform, pods=pods)).workloads
    assert [(one.kind, one.name, one.desired, one.available, one.problem) for one in found] == [
        (WorkloadKind.POD, "import", 1, 0, "Evicted")
    ]


async def test_the_pods_of_a_workload_whose_kind_cannot_be_read_still_make_a_row(platform):
    platform.metrics.cluster.failing = {"deployments"}
    found = _by_name((await platform.clusters.read(SCOPE)).workloads)
    assert found["storefront"] == ("deployment", None, None, None, "")
    assert found["thumbnails"][4] == "ImagePullBackOff (2 pods)"


@pytest.mark.parametrize(
    ("pod", "problem"),
    [
        (MadePod("p", "x"), ""),
        (MadePod("p", "x", waiting="ContainerCreating", phase="Pending"), ""),
        (MadePod("p", "x", waiting="CreateContainerConfigError"), "CreateContainerConfigError"),
        (MadePod("p", "x", phase="Failed", reason="Evicted"), "Evicted"),
        (MadePod("p", "x", phase="Failed"), "failed"),
        (MadePod("p", "x", phase="Unknown"), "its node does not answer"),
        (MadePod("p", "x", phase="Succeeded", restarts=3), ""),
        (MadePod("p", "x", node="", phase="Pending", unschedulable=True), "no node fits it"),
        (MadePod("p", "x", node="", phase="Pending"), ""),
        (MadePod("p", "x", ready=False), "not ready"),
        (MadePod("p", "x", ready=False, uptime=20.0), ""),
        (MadePod("p", "x", ended="OOMKilled", restarts=4), ""),
    ],
    ids=lambda value: "" if isinstance(value, MadePod) else value or "well",
)
async def test_what_is_wrong_with_a_pod_is_said(platform, pod, problem):
    platform.metrics.cluster = _cluster(pods=[pod])
    [one] = (await platform.clusters.pods(SCOPE)).items
    assert one.problem == problem
    phases = (await platform.clusters.read(SCOPE)).phases
    assert phases == {pod.phase: 1}


async def test_a_pod_that_ran_out_of_memory_lately_says_so_with_its_restarts(platform):
    pod = MadePod("p", "x", ended="OOMKilled", looping=True, memory=100.0, limit=128.0)
    platform.metrics.cluster = _cluster(nodes=[MadeNode("worker-1")], pods=[pod])
    [one] = (await platform.clusters.pods(SCOPE)).items
    assert one.problem in ("out of memory, restarted 2 times in 15 min", "out of memory, restarted 3 times in 15 min")
    [container] = one.containers
    assert (container.name, container.state, container.last_termination, container.last_exit_code) == ("app", "running", "OOMKilled", 137)
    assert (one.memory_working_set, one.memory_limit, one.cpu_limit) == (100 * 1024**2, 128 * 1024**2, 1.0)
    assert one.restarts == container.restarts


async def test_the_pods_of_a_workload_are_its_own_only(platform):
    found = await platform.clusters.pods(SCOPE, owner=(DEPLOYMENT, "shop", "checkout"))
    assert _names(found.items) == [f"checkout-6c9f7d84b5-{n:05x}" for n in range(3)]
    assert (await platform.clusters.pods(SCOPE, owner=(DEPLOYMENT, "payments", "checkout"))).items == []
    nightly = await platform.clusters.pods(SCOPE, owner=(WorkloadKind.CRONJOB, "batch", "nightly-report"))
    assert _names(nightly.items) == ["nightly-report-29384-q9d4m"]
    assert {one.namespace for one in (await platform.clusters.pods(SCOPE, namespace="payments")).items} == {"payments"}


async def test_after_a_change_of_leader_every_object_is_there_once_and_as_the_new_one_tells(platform):
    old = _cluster(
        nodes=[MadeNode("n", ready="false")],
        workloads=[MadeWorkload("deployment", "x", "web", 3, 1)],
        pods=[MadePod("web-1", "x", {"deployment": "web"}, waiting="CrashLoopBackOff"), MadePod("gone", "x", {"deployment": "web"})],
    )
    old.leaders = [("old", -math.inf, _before(15))]
    new = _cluster(
        nodes=[MadeNode("n")],
        workloads=[MadeWorkload("deployment", "x", "web", 3, 3)],
        pods=[MadePod("web-1", "x", {"deployment": "web"}, restarts=1)],
    )
    new.leaders = [("new", _before(12), math.inf)]
    platform.metrics.cluster = _Both(old, new)
    found = await platform.clusters.read(SCOPE)
    assert [(one.name, one.ready) for one in found.nodes] == [("n", "true")]
    assert [(one.name, one.available) for one in found.workloads] == [("web", 3)]
    pods = (await platform.clusters.pods(SCOPE, namespace="x")).items
    assert [one.phase for one in pods if one.name == "web-1"] == ["Running"]
    old.leaders = [("old", -math.inf, _before(60))]
    assert _names((await platform.clusters.pods(SCOPE, namespace="x")).items) == ["web-1"]


@dataclass
class _Both:
    """Two clusters' series as one's."""

    first: MadeCluster
    second: MadeCluster

    def series(self, start_ms, end_ms):
        yield from self.first.series(start_ms, end_ms)
        yield from self.second.series(start_ms, end_ms)


async def test_a_pod_that_got_its_node_is_shown_as_it_is_now(platform):
    waiting = _cluster(pods=[MadePod("p", "x", node="", phase="Pending", unschedulable=True)])
    waiting.leaders = [(LEADER, -math.inf, _before(12))]
    running = _cluster(pods=[MadePod("p", "x")])
    running.leaders = [(LEADER, _before(10), math.inf)]
    platform.metrics.cluster = _Both(waiting, running)
    [one] = (await platform.clusters.pods(SCOPE)).items
    assert (one.phase, one.node, one.ready) == ("Running", "worker-1", 1)


async def test_what_the_agents_role_does_not_allow_is_named_with_its_reason(platform):
    platform.metrics.cluster.failing = {"resourcequotas", "nodes"}
    scope = replace(SCOPE, reasons={(LEADER, "kubernetes.resourcequotas"): "list resourcequotas is forbidden"})
    found = await platform.clusters.read(scope)
    assert [(one.subject, one.reason) for one in found.degraded] == [
        ("nodes", "the agent says no more than that it fails"),
        ("quotas", "list resourcequotas is forbidden"),
    ]
    assert found.workloads
    assert await platform.clusters.node_names(scope) == []


def test_a_health_report_names_each_collector_with_its_reason():
    told = "kubernetes.nodes: nodes is forbidden; kubernetes.resourcequotas: verb list; on x; kubernetes.pods: 503: away"
    assert collector_reasons(told) == {
        "kubernetes.nodes": "nodes is forbidden",
        "kubernetes.resourcequotas": "verb list; on x",
        "kubernetes.pods": "503: away",
    }
    assert collector_reasons("no data was collected for 3 intervals") == {}


async def test_while_the_api_server_is_away_what_was_last_reported_stays_for_some_minutes(platform):
    before, after = shop_cluster(AGENT, LEADER), shop_cluster(AGENT, LEADER)
    before.leaders, after.leaders = [(LEADER, -math.inf, _before(150))], [(LEADER, _before(145), math.inf)]
    after.failing = set(clusters_module._SUBJECTS) | {"nodes", "namespaces", "pods", "deployments", "jobs"}
    after.node_view = False
    platform.metrics.cluster = _Both(before, after)
    found = await platform.clusters.read(SCOPE)
    assert len(found.workloads) == 27
    assert "nodes" in {one.subject for one in found.degraded}
    assert timedelta(seconds=140) < datetime.now(UTC) - found.newest < timedelta(seconds=180)


async def test_what_a_silent_agent_last_reported_stays(platform):
    platform.metrics.cluster.leaders = [(LEADER, -math.inf, _before(4000))]
    told = replace(SCOPE, last_seen_at=datetime.now(UTC) - timedelta(seconds=3990))
    found = await platform.clusters.read(told)
    assert len(found.workloads) == 27
    assert datetime.now(UTC) - found.newest > timedelta(hours=1)
    assert (await platform.clusters.read(SCOPE)).newest is None


async def test_objects_that_are_gone_leave_after_three_intervals(platform):
    old = _cluster(pods=[MadePod("gone", "x")], workloads=[MadeWorkload("deployment", "x", "gone")])
    now = _cluster(pods=[MadePod("here", "x")], workloads=[MadeWorkload("deployment", "x", "here")])
    old.leaders, now.leaders = [(LEADER, -math.inf, _before(45))], [(LEADER, -math.inf, math.inf)]
    platform.metrics.cluster = _Both(old, now)
    assert sorted(_names((await platform.clusters.read(SCOPE)).workloads)) == ["here", "here"]
    slow = await platform.clusters.read(replace(SCOPE, interval=30.0))
    assert {"gone", "here"} == set(_names(slow.workloads))


async def test_an_agent_that_is_no_agent_of_ours_has_no_cluster(platform):
    found = await platform.clusters.read(ClusterScope(('another"} or vector(1) #',)))
    assert (found.newest, found.workloads, found.nodes) == (None, [], [])
    narrowed = await platform.clusters.read(replace(SCOPE, instances=("nobody",)))
    assert narrowed.newest is None


async def test_the_number_of_selections_does_not_grow_with_the_number_of_objects(platform):
    asked = []
    for made in (_cluster(pods=[MadePod("a", "x", waiting="Error", restarts=1)]), synthetic_cluster(AGENT, LEADER, 500)):
        platform.metrics.cluster = made
        before = platform.metrics.selects
        await platform.clusters.read(SCOPE, usage=True)
        await platform.clusters.pods(SCOPE, namespace="x")
        asked.append(platform.metrics.selects - before)
    assert asked[0] >= asked[1] - 1
    assert max(asked) <= 10


async def test_when_most_pods_are_unwell_all_of_them_are_asked_about(platform, monkeypatch):
    monkeypatch.setattr(clusters_module, "MOST_ASIDE", 1)
    found = _by_name((await platform.clusters.read(SCOPE)).workloads)
    assert found["thumbnails"][4] == "0 of 2 available: ImagePullBackOff (2 pods)"


async def test_more_samples_than_a_query_may_touch_are_refused(platform):
    class Small:
        async def select(self, *_args, max_samples):
            raise QueryTooLargeError(str(max_samples))

    with pytest.raises(QueryTooLargeError, match="7"):
        await ClusterService(Small(), max_samples=7, clock=time.time).read(SCOPE)


def test_what_is_read_is_what_the_agent_sends():
    read = {
        *clusters_module._OBJECT_NAMES, *clusters_module._POD_NAMES, *clusters_module._DETAIL_NAMES, *clusters_module._USAGE,
    }  # fmt: skip
    assert read <= set(METRICS)


@pytest.mark.parametrize(
    ("wanted", "first"),
    [
        (ClusterFilter(), ["import-2026-11-21", "thumbnails"]),
        (ClusterFilter(problems_only=True, namespace="shop"), ["checkout", "search"]),
        (ClusterFilter(kind=WorkloadKind.DAEMONSET), ["kube-proxy", "node-exporter"]),
        (ClusterFilter(search="GRAF"), ["grafana"]),
        (ClusterFilter(search="monitoring", sort=ClusterSort.NAME), ["grafana", "node-exporter", "prometheus"]),
        (ClusterFilter(sort=ClusterSort.NAME, order=SortOrder.DESCENDING), ["worker-tax", "worker-returns"]),
        (ClusterFilter(sort=ClusterSort.RESTARTS), ["checkout", "search"]),
        (ClusterFilter(sort=ClusterSort.READY, kind=DEPLOYMENT), ["thumbnails", "checkout"]),
        (ClusterFilter(sort=ClusterSort.KIND), ["nightly-report"]),
        (ClusterFilter(sort=ClusterSort.PROBLEM, order=SortOrder.DESCENDING), ["migrate-2026-11-20"]),
        (ClusterFilter(sort=ClusterSort.QUOTA), ["import-2026-11-21"]),
    ],
)
async def test_workloads_are_filtered_and_sorted(platform, wanted, first):
    found = _names(listed((await platform.clusters.read(SCOPE)).workloads, wanted))
    assert found[: len(first)] == first


async def test_nodes_namespaces_and_pods_are_sorted_with_what_is_unknown_last(platform):
    found = await platform.clusters.read(SCOPE, usage=True)
    assert _names(listed(found.nodes, ClusterFilter())) == ["worker-4", "worker-2", "control-plane-1", "worker-1", "worker-3"]
    assert _names(listed(found.nodes, ClusterFilter(sort=ClusterSort.CPU)))[-1] == "worker-4"
    assert _names(listed(found.nodes, ClusterFilter(sort=ClusterSort.READY)))[0] == "worker-4"
    assert _names(listed(found.namespaces, ClusterFilter(sort=ClusterSort.QUOTA)))[:2] == ["shop", "payments"]
    assert _names(listed(found.namespaces, ClusterFilter(sort=ClusterSort.MEMORY)))[0] == "payments"
    pods = (await platform.clusters.pods(SCOPE)).items
    assert _names(listed(pods, ClusterFilter(sort=ClusterSort.NODE)))[-1] in ("postgres-2", "thumbnails-6c9f7d84b5-00001")
    assert listed(pods, ClusterFilter(sort=ClusterSort.READY))[0].ready == 0
    assert {one.node for one in listed(pods, ClusterFilter(search="worker-3"))} >= {"worker-3"}


async def _joined(parts, token, name, cluster, **config):
    agent = OpampAgent(fingerprint=name, host=name, extra={"k8s.cluster.uid": cluster, "k8s.pod.name": name})
    agent.uid, agent.config = uuid.uuid4(), {"view": "cluster", **config}
    credential = await enrolled(parts, token, agent)
    await parts.fleet.flush()
    return credential, agent


async def test_the_fleets_clusters_are_what_its_pods_say_they_run_in(parts):
    token = await provision(parts, "prod", agent_type="kubernetes")
    credential, agent = await _joined(parts, token, "agent-1", "cluster-1", collect_interval=30)
    parts.clock.advance(10)
    await _joined(parts, await provision(parts, "prod-too", agent_type="kubernetes"), "agent-2", "cluster-1", collect_interval=15)
    await _joined(parts, await provision(parts, "staging", agent_type="kubernetes"), "agent-3", "cluster-2")
    await enrolled(parts, await provision(parts, "web"), OpampAgent())
    first, second = await parts.fleet.list_clusters()
    assert (first.uid, first.name, first.environments, first.pods) == ("cluster-1", "prod", ["prod", "prod-too"], 2)
    assert (first.collect_interval, first.status, first.instance_ids) == (30.0, Status.HEALTHY, [])
    assert (second.uid, second.collect_interval) == ("cluster-2", 10.0)
    await exchange(parts, credential, agent, healthy=False, error="collectors: kubernetes.nodes: no")
    await parts.fleet.flush()
    worst = await parts.fleet.get_cluster("cluster-1")
    assert (worst.status, worst.status_reason) == (Status.DEGRADED, "collectors: kubernetes.nodes: no")


async def test_the_fleet_learns_which_nodes_its_clusters_have(parts, platform):
    token = await provision(parts, agent_type="kubernetes")
    await _joined(parts, token, "agent-1", "cluster-1")
    [found] = await parts.fleet.list_clusters()
    platform.metrics.cluster = shop_cluster(found.agent_ids[0], LEADER)
    assert "worker-4" in await platform.clusters.node_names(ClusterScope.of(_heard_now(found)))
    await _tell_nodes(parts.fleet, _Nodes())
    assert parts.fleet.registry.agents[found.agent_ids[0]].nodes == {"worker-1", "worker-2"}


def _heard_now(found):
    return found.model_copy(update={"last_seen_at": datetime.now(UTC)})


class _Nodes:
    async def node_names(self, scope):
        return ["worker-1", "worker-2"] if scope.agents else []


async def test_a_cluster_is_seen_by_those_who_see_an_environment_in_it(parts):
    await _joined(parts, await provision(parts, "prod", agent_type="kubernetes"), "agent-1", "cluster-1")
    await _joined(parts, await provision(parts, "shared", agent_type="kubernetes"), "agent-2", "cluster-1")
    [one] = await parts.fleet.list_clusters(lambda environment: environment == "shared")
    assert one.environments == ["shared"]
    with pytest.raises(NotFoundError):
        await parts.fleet.get_cluster("cluster-1", lambda _: False)


async def test_a_cluster_stays_known_by_its_last_pod_when_all_are_archived(parts):
    credential, agent = await _joined(parts, await provision(parts, agent_type="kubernetes"), "agent-1", "cluster-1")
    await exchange(parts, credential, agent, goodbye=True)
    await parts.fleet.flush()
    assert (await parts.fleet.get_cluster("cluster-1")).status is Status.STOPPED
    parts.clock.advance(15 * 86_400)
    await parts.fleet.sweep()
    found = await parts.fleet.get_cluster("cluster-1")
    assert (found.status, found.pods) == (Status.ARCHIVED, 0)


async def test_where_an_agent_has_pods_in_two_clusters_their_series_are_told_apart_by_pod(parts):
    token = await provision(parts, agent_type="kubernetes")
    [agent] = (await parts.fleet.list_agents()).items
    [row] = (await parts.fleet.tokens.of_agent(agent.id)).items
    async with parts.database.write() as session:
        (await session.get(EnrolmentTokenRow, row.id)).max_uses = 2
    parts.fleet.enrolment._tokens.clear()
    _, one = await _joined(parts, token, "agent-1", "cluster-1")
    await _joined(parts, token, "agent-2", "cluster-2")
    assert (await parts.fleet.get_cluster("cluster-1")).instance_ids == [str(one.uid)]
    scope = ClusterScope.of(await parts.fleet.get_cluster("cluster-1"))
    assert {matcher.name for matcher in scope.matchers} == {"agent", "instance"}
