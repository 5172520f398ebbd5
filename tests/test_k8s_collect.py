"""The cluster view's collectors: who is asked, what is remembered from round to round, and what a broken watch does."""

from __future__ import annotations

import pytest
from watched_objects import Watched, gathered, outcome, recorded, recorded_cluster, resource_of, values

from connectors.core.telemetry import encode_metrics
from connectors.kubernetes.collect import HELD_FOR
from connectors.kubernetes.kinds import KINDS

PHASES = ("Pending", "Running", "Succeeded", "Failed", "Unknown")


def pods_named(collection, name):
    """Every resource of that pod, its containers' too."""
    return [r for r in collection.resources if r.resource.get("k8s.pod.name") == name]


def test_every_measured_kind_has_a_collector_of_its_own():
    watched = recorded_cluster()

    assert [collector.name for collector in watched.collectors] == [
        *("kubernetes.nodes", "kubernetes.namespaces", "kubernetes.pods", "kubernetes.deployments", "kubernetes.replicasets"),
        *("kubernetes.statefulsets", "kubernetes.daemonsets", "kubernetes.jobs", "kubernetes.cronjobs"),
        *("kubernetes.horizontalpodautoscalers", "kubernetes.persistentvolumeclaims", "kubernetes.resourcequotas"),
        *("kubernetes.poddisruptionbudgets", "kubernetes.watches"),
    ]
    assert len(watched.collectors) == 14
    assert watched.collectors[0].name == "kubernetes.nodes"
    assert [collector.name for collector in watched.collectors[-1:]] == ["kubernetes.watches"]


def test_a_feature_that_is_off_has_no_collector():
    watched = Watched(features=("quotas",))
    watched.sync()

    assert set(outcome(watched.collect())) == {
        *("kubernetes.nodes", "kubernetes.namespaces", "kubernetes.pods", "kubernetes.resourcequotas", "kubernetes.watches")
    }


def test_a_kind_that_the_cluster_does_not_have_has_no_collector_until_it_has_it():
    watched = recorded_cluster()
    watched.view.note(watched.term, "cronjobs", served=False)
    assert "kubernetes.cronjobs" not in outcome(watched.collect())

    watched.view.note(watched.term, "cronjobs", served=True)
    assert outcome(watched.collect())["kubernetes.cronjobs"] == ""


def test_a_missing_right_degrades_one_collector_and_is_named():
    watched = Watched()
    reason = "forbidden: the agent's role lacks verb list on resource deployments (API group apps)"
    watched.sync()
    watched.view._held["deployments"].synced = False
    watched.view.note(watched.term, "deployments", reason=reason)

    reasons = outcome(watched.collect())

    assert reasons.pop("kubernetes.deployments") == reason
    assert set(reasons.values()) == {""}


def test_a_kind_that_is_not_listed_yet_is_not_taken_for_empty():
    watched = Watched()
    watched.hold("nodes", *recorded("nodes"))

    reasons = outcome(watched.collect())

    assert reasons["kubernetes.nodes"] == ""
    assert reasons["kubernetes.namespaces"] == "the cluster's namespaces have not been listed yet"


def test_pods_wait_for_what_they_are_named_by():
    watched = Watched()
    watched.hold("pods", *recorded("pods"))
    watched.hold("replicasets", *recorded("replicasets"))
    assert outcome(watched.collect())["kubernetes.pods"] == "the cluster's jobs, which own pods, have not been listed yet"

    watched.view.note(watched.term, "jobs", reason="forbidden")
    assert outcome(watched.collect())["kubernetes.pods"] == ""


def test_a_deployment_is_known_by_its_pods_even_where_replica_sets_may_not_be_read():
    watched = Watched(features=("quotas",))
    pod = recorded("pods", "web-")
    watched.hold("pods", pod)
    watched.sync()

    resource = resource_of(watched.collect(), k8s_pod_name=pod["metadata"]["name"]).resource

    assert resource["k8s.deployment.name"] == "web"
    del pod["metadata"]["labels"]["pod-template-hash"]
    pod["metadata"]["uid"] = "another"
    watched.hold("pods", pod)
    assert "k8s.deployment.name" not in resource_of(watched.collect(), k8s_pod_name=pod["metadata"]["name"]).resource


def test_what_a_broken_watch_saw_last_counts_for_a_minute_and_no_longer():
    watched = recorded_cluster()
    watched.view.note(watched.term, "nodes", reason="the Kubernetes API server cannot be reached")

    broken = watched.collect()
    watched.now += HELD_FOR - 1
    held = watched.collect()
    watched.now += 1
    stale = watched.collect()

    assert {outcome(each)["kubernetes.nodes"] for each in (broken, held, stale)} == {"the Kubernetes API server cannot be reached"}
    assert gathered(broken, k8s_node_name="node-1")
    assert gathered(held, k8s_node_name="node-1")
    assert gathered(stale, k8s_node_name="node-1") == {}
    watched.view.note(watched.term, "nodes", reason="")
    again = watched.collect()
    assert outcome(again)["kubernetes.nodes"] == ""
    assert gathered(again, k8s_node_name="node-1")
    watched.view.note(watched.term, "nodes", reason="away again")
    assert gathered(watched.collect(), k8s_node_name="node-1")


def test_a_listener_that_stumbles_degrades_the_kind_and_its_objects_are_sent_all_the_same():
    watched = Watched()

    def stumbles(*_change):
        raise ValueError("what is this")

    watched.view.listen(stumbles)
    watched.hold("nodes", *recorded("nodes"))
    watched.sync()
    while watched.view.tell(0):
        pass
    watched.now += 10 * HELD_FOR

    collection = watched.collect()

    assert "what is this" in outcome(collection)["kubernetes.nodes"]
    assert gathered(collection, k8s_node_name="node-1")


def test_an_object_that_makes_no_sense_takes_no_other_along():
    watched = recorded_cluster()
    nodes = recorded("nodes")
    watched.hold("nodes", {"metadata": {"name": "odd", "uid": "o"}, "status": {"conditions": [{"kind": "?"}]}}, *nodes)

    collection = watched.collect()

    assert outcome(collection)["kubernetes.nodes"] == "1 of the cluster's nodes make no sense: KeyError: 'status'"
    assert gathered(collection, k8s_node_name="node-1")


def test_the_watches_tell_what_they_hold_and_cost():
    watched = recorded_cluster()
    watched.view.count("pods", requests=3, relists=1)
    watched.view.note(watched.term, "nodes", reason="away")
    watched.view.note(watched.term, "cronjobs", served=False)

    [found] = [r for r in watched.collect().resources if r.resource == {"k8s.cluster.uid": "c"}]

    told = values(found.metrics)
    assert told["irca.k8s.watch.object.count|pods"] == len(recorded("pods"))
    assert told["irca.k8s.watch.request.count|pods"] == 3
    assert told["irca.k8s.watch.relist.count|pods"] == 1
    assert told["irca.k8s.watch.synced|pods"] == 1
    assert told["irca.k8s.watch.synced|nodes"] == 0
    assert told["irca.k8s.watch.object.count|configmaps"] == 0
    assert "irca.k8s.watch.object.count|cronjobs" not in told
    assert {key.partition("|")[2] for key in told if key.startswith("irca.k8s.watch.")} == {*watched.kinds} - {"cronjobs"}


def test_a_pod_that_gets_a_node_ends_the_series_that_it_had_without():
    watched, pod = Watched(), recorded("pods", "unschedulable")
    watched.hold("pods", pod)
    watched.sync()
    [before, its_container] = pods_named(watched.collect(), "unschedulable")
    pod["spec"]["nodeName"], pod["status"] = "node-2", {"phase": "Running", "startTime": "2026-11-22T18:00:00Z"}
    watched.hold("pods", pod)

    placed = watched.collect()

    ended, ended_container, alive, container = pods_named(placed, "unschedulable")
    assert (ended.resource, ended_container.resource) == (before.resource, its_container.resource)
    assert values(ended.metrics).keys() == values(before.metrics).keys()
    assert {*values(ended.metrics).values(), *values(ended_container.metrics).values()} == {0}
    assert alive.resource["k8s.node.name"] == container.resource["k8s.node.name"] == "node-2"
    assert values(alive.metrics)["k8s.pod.status.phase|Running"] == 1
    assert "irca.k8s.pod.unschedulable" not in values(alive.metrics)
    assert [r.resource for r in pods_named(watched.collect(), "unschedulable")] == [alive.resource, container.resource]


def test_a_reason_that_is_over_is_told_as_zero_as_long_as_the_pod_lives():
    watched, pod = Watched(), recorded("pods", "crash")
    watched.hold("pods", pod)
    watched.sync()
    crashed = {"k8s_pod_name": "crash", "k8s_container_name": "app"}
    assert gathered(watched.collect(), **crashed)["k8s.container.status.reason|CrashLoopBackOff"] == 1
    [status] = pod["status"]["containerStatuses"]
    status["state"], status["ready"] = {"running": {"startedAt": "2026-11-22T18:00:00Z"}}, True
    status["lastState"] = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    watched.hold("pods", pod)

    found = gathered(watched.collect(), **crashed)

    assert found["k8s.container.status.state|running"] == 1
    assert found["k8s.container.status.reason|CrashLoopBackOff"] == 0
    assert found["irca.k8s.container.last_termination.reason|Error"] == 0
    assert found["irca.k8s.container.last_termination.reason|OOMKilled"] == 1
    assert found["irca.k8s.container.last_termination.exit_code"] == 137
    pod["metadata"]["uid"] = "made-anew"
    watched.hold("pods", pod)
    assert "k8s.container.status.reason|CrashLoopBackOff" not in gathered(watched.collect(), **crashed)


def test_an_evicted_pod_keeps_its_reason_and_asks_for_nothing_any_more():
    watched, pod = Watched(), recorded("pods", "web-")
    pod["status"] = {"phase": "Failed", "reason": "Evicted", "startTime": pod["status"]["startTime"]}
    watched.hold("pods", pod)
    watched.sync()

    collection = watched.collect()

    found = gathered(collection, k8s_pod_name=pod["metadata"]["name"])
    assert found == {f"k8s.pod.status.phase|{p}": float(p == "Failed") for p in PHASES} | {"k8s.pod.status.reason|Evicted": 1}
    assert len(pods_named(collection, pod["metadata"]["name"])) == 1


def test_the_finished_pods_of_jobs_are_told_once_and_never_by_an_agent_that_saw_them_only_so():
    watched, pod = Watched(), recorded("pods", "nightly-")
    name, finished = pod["metadata"]["name"], pod["status"]
    assert finished["phase"] == "Succeeded"
    pod["status"] = finished | {"phase": "Running"}
    watched.hold("pods", pod)
    watched.sync()
    assert gathered(watched.collect(), k8s_pod_name=name)["k8s.pod.status.phase|Running"] == 1
    pod["status"] = finished
    watched.hold("pods", pod)

    once, afterwards = watched.collect(), watched.collect()

    assert gathered(once, k8s_pod_name=name)["k8s.pod.status.phase|Succeeded"] == 1
    assert pods_named(afterwards, name) == []
    late = Watched()
    late.hold("pods", pod)
    late.sync()
    assert pods_named(late.collect(), name) == []


def test_a_failed_pod_of_a_job_is_told_on_and_on():
    watched, pod = Watched(), recorded("pods", "nightly-")
    pod["status"]["phase"] = "Failed"
    watched.hold("pods", pod)
    watched.sync()

    rounds = [watched.collect() for _ in range(3)]

    assert [gathered(r, k8s_pod_name=pod["metadata"]["name"])["k8s.pod.status.phase|Failed"] for r in rounds] == [1, 1, 1]


def test_replica_sets_of_old_revisions_are_told_when_they_become_empty_and_not_again():
    watched, [item] = Watched(), recorded("replicasets")
    name = item["metadata"]["name"]
    old = recorded("replicasets")[0]
    old["metadata"] |= {"uid": "old", "name": "web-old"}
    old["spec"]["replicas"], old["status"] = 0, {"replicas": 0}
    watched.hold("replicasets", item, old)
    watched.sync()
    assert gathered(watched.collect(), k8s_replicaset_name="web-old") == {}
    item["spec"]["replicas"], item["status"] = 0, {"replicas": 1, "availableReplicas": 1}
    watched.hold("replicasets", item)
    assert gathered(watched.collect(), k8s_replicaset_name=name) == {"k8s.replicaset.pod.desired": 0, "k8s.replicaset.pod.available": 1}
    item["status"] = {"replicas": 0}
    watched.hold("replicasets", item)

    once, afterwards = watched.collect(), watched.collect()

    assert gathered(once, k8s_replicaset_name=name) == {"k8s.replicaset.pod.desired": 0, "k8s.replicaset.pod.available": 0}
    assert gathered(afterwards, k8s_replicaset_name=name) == {}


def test_a_cluster_in_which_nothing_happens_keeps_its_layout():
    watched = recorded_cluster()

    rounds = [watched.collect() for _ in range(2)]

    layouts = [[(r.resource, [(m.name, [p.attributes for p in m.points]) for m in r.metrics]) for r in each.resources] for each in rounds]
    assert layouts[0] == layouts[1]
    assert len({len(encode_metrics(each)) for each in rounds}) == 1


def test_pods_that_are_gone_are_forgotten():
    watched = recorded_cluster()
    watched.collect()
    collector = next(each for each in watched.collectors if each.name == "kubernetes.pods")
    assert len(collector._measure._pods) == len(recorded("pods"))

    watched.hold("pods")
    watched.collect()

    assert collector._measure._pods == {}


@pytest.mark.parametrize("kind", sorted({"nodes", "pods", "deployments", "jobs", "resourcequotas"}))
def test_an_empty_list_is_no_failure(kind):
    watched = Watched()
    watched.sync()

    assert outcome(watched.collect())[f"kubernetes.{kind}"] == ""
    assert KINDS[kind].stored
