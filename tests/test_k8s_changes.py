"""Changes of the cluster as events: the reporter as a whole, rollouts and workloads."""

from __future__ import annotations

import pytest
from watched_changes import CLUSTER, NOW, Reported, names, obj, pod, progressing, replica_set, stamp, warning, workload

from app.events.catalogue import CATALOGUE
from connectors.core.telemetry import Severity
from connectors.kubernetes.change_event import NAMES, WHATS
from connectors.kubernetes.event_limit import EventLimit
from connectors.kubernetes.kinds import KINDS
from connectors.kubernetes.lru import Recent


def going(generation, revision, **rest):
    """A deployment in the middle of a rollout."""
    status = {"observedGeneration": generation, "updatedReplicas": 1, "replicas": 3, "conditions": [progressing("ReplicaSetUpdated", 0)]}
    return workload(generation=generation, revision=revision, status=status, **rest)


def test_every_event_is_in_the_catalogue_with_its_severity():
    catalogued = {name for name in CATALOGUE if name.startswith("irca.kubernetes.")}
    assert catalogued == NAMES
    assert len(NAMES) == len(WHATS)


def test_what_is_there_at_the_beginning_is_not_news():
    seen = Reported()
    crashed = pod(status={"containerStatuses": [{"name": "app", "restartCount": 1, "state": {"terminated": {"exitCode": 1}}}]})
    assert seen.hold("deployments", workload()) == []
    assert seen.hold("pods", crashed) == []
    assert seen.hold("configmaps", obj("settings", data={"a": "b"})) == []
    assert seen.hold("nodes", obj("node-1", namespace="", spec={"unschedulable": True})) == []
    assert seen.hold("events", warning("w")) == []
    assert seen.wait(120) == []


def test_a_rollout_begins_when_the_controller_takes_the_template_up_and_ends_when_all_pods_are_there():
    seen = Reported()
    seen.hold("deployments", workload(labels={"helm.sh/chart": "shop-1", "app.kubernetes.io/version": "1"}))
    labels = {"helm.sh/chart": "shop-2", "app.kubernetes.io/version": "2"}

    wished = workload(image="shop/web:2", generation=2, status={"observedGeneration": 1}, labels=labels, manager="helm", wrote=-3)
    assert seen.put("deployments", wished) == []
    [started] = seen.put("deployments", going(2, "2", image="shop/web:2", labels=labels, manager="helm", wrote=-3))
    seen.now += 20
    [completed] = seen.put(
        "deployments",
        workload(
            image="shop/web:2",
            generation=2,
            revision="2",
            status={"conditions": [progressing("NewReplicaSetAvailable", 17)]},
            labels=labels,
        ),
    )

    assert started.name == "irca.kubernetes.rollout.started"
    assert started.attributes["irca.k8s.rollout.previous_revision"] == "1"
    assert started.attributes["irca.k8s.rollout.revision"] == "2"
    assert started.attributes["irca.k8s.rollout.restart"] is False
    assert started.attributes["irca.k8s.changed"] == ["image"]
    assert started.attributes["irca.k8s.change.image.from"] == ["app=shop/web:1"]
    assert started.attributes["irca.k8s.change.image.to"] == ["app=shop/web:2"]
    assert started.attributes["irca.k8s.chart.from"] == "shop-1"
    assert started.attributes["irca.k8s.app_version.to"] == "2"
    assert started.attributes["irca.k8s.changed_by"] == "helm"
    assert started.time_unix_nano == int((NOW - 3) * 1e9)
    assert started.resource == {
        "k8s.cluster.uid": CLUSTER,
        "k8s.deployment.uid": "uid-web",
        "k8s.deployment.name": "web",
        "k8s.namespace.name": "shop",
    }
    assert started.body == "Deployment shop/web began to roll out revision 2: image"
    assert len(started.id) == 32
    assert completed.name == "irca.kubernetes.rollout.completed"
    assert completed.attributes["irca.k8s.rollout.duration"] == 20
    assert completed.attributes["irca.k8s.rollout.pods.updated"] == 2
    assert completed.time_unix_nano == int((NOW + 17) * 1e9)


def test_what_is_changed_while_a_deployment_is_paused_is_one_rollout():
    seen = Reported()
    seen.hold("deployments", workload())
    assert seen.put("deployments", workload(image="shop/web:2", generation=2)) == []
    both = {"image": "shop/web:2", "container": {"env": [{"name": "A", "value": "b"}]}}
    assert seen.put("deployments", workload(generation=3, **both)) == []
    [started] = seen.put("deployments", going(3, "2", **both))
    assert started.attributes["irca.k8s.changed"] == ["env", "image"]


def test_a_template_that_is_taken_back_is_no_rollout():
    seen = Reported()
    seen.hold("deployments", workload())
    assert seen.put("deployments", workload(image="shop/web:2", generation=2)) == []
    assert seen.put("deployments", workload(generation=3)) == []
    assert seen.put("deployments", workload(generation=3, annotations={"kubernetes.io/change-cause": "none"})) == []


def test_a_restart_that_was_asked_for_is_told_as_one():
    seen = Reported()
    seen.hold("deployments", workload())
    again = {"template_meta": {"annotations": {"kubectl.kubernetes.io/restartedAt": "now"}}, "generation": 2}
    seen.put("deployments", workload(**again))
    [started] = seen.put("deployments", workload(revision="2", **again, status={"observedGeneration": 1}))
    assert started.attributes["irca.k8s.rollout.restart"] is True
    assert "restart" in started.body


def test_a_rollout_past_its_deadline_is_told_once_and_may_complete_later():
    seen = Reported()
    seen.hold("deployments", workload())
    stuck = {
        "observedGeneration": 2,
        "updatedReplicas": 1,
        "availableReplicas": 1,
        "conditions": [progressing("ProgressDeadlineExceeded", -9, "False")],
    }
    assert names(seen.put("deployments", workload(image="x", generation=2, revision="2", status={"observedGeneration": 1}))) == [
        "rollout.started"
    ]
    [stalled] = seen.put("deployments", workload(image="x", generation=2, revision="2", status=stuck))
    again = seen.put("deployments", workload(image="x", generation=2, revision="2", status={**stuck, "unavailableReplicas": 1}))
    late = seen.put("deployments", workload(image="x", generation=2, revision="2"))

    assert stalled.name == "irca.kubernetes.rollout.stalled"
    assert stalled.severity is Severity.ERROR
    assert stalled.attributes["irca.k8s.message"] == "ProgressDeadlineExceeded it is"
    assert stalled.attributes["irca.k8s.rollout.pods.available"] == 1
    assert stalled.time_unix_nano == int((NOW - 9) * 1e9)
    assert again == []
    assert names(late) == ["rollout.completed"]


def test_a_rollback_that_only_its_revision_tells_is_compared_by_replica_sets():
    seen = Reported()
    seen.hold("deployments", workload(revision="2", image="shop/web:2"))
    seen.hold("replicasets", replica_set("web-a", "3", "shop/web:1"), replica_set("web-b", "2", "shop/web:2"), replica_set("x", "", "y"))
    [started] = seen.put("deployments", workload(revision="3", image="shop/web:2", status={"observedGeneration": 0}))
    assert started.attributes["irca.k8s.rollout.previous_revision"] == "2"


def test_a_revision_without_replica_sets_is_no_rollout():
    seen = Reported()
    seen.hold("deployments", workload())
    assert seen.put("deployments", workload(revision="2")) == []


def set_of(kind, *, image="shop/db:1", generation=1, revision="db-1", current="db-1", observed=None, updated=2, ready=2):
    status = {"observedGeneration": generation if observed is None else observed, "currentRevision": current, "updateRevision": revision}
    status |= {"updatedReplicas": updated, "readyReplicas": ready, "desiredNumberScheduled": 2}
    status |= {"updatedNumberScheduled": updated, "numberAvailable": ready}
    notes = {"deprecated.daemonset.template.generation": revision} if kind == "daemonsets" else {}
    template = {"spec": {"containers": [{"name": "db", "image": image}]}}
    return obj("db", metadata={"generation": generation, "annotations": notes}, spec={"replicas": 2, "template": template}, status=status)


@pytest.mark.parametrize("kind", ["statefulsets", "daemonsets"])
def test_sets_roll_out_and_stall_after_ten_minutes_without_progress(kind):
    seen = Reported()
    seen.hold(kind, set_of(kind))
    after = {"image": "shop/db:2", "generation": 2, "revision": "db-2"}
    assert seen.put(kind, set_of(kind, **after, observed=1)) == []
    [started] = seen.put(kind, set_of(kind, **after, updated=0, ready=1))
    assert started.attributes["irca.k8s.change.image.to"] == ["db=shop/db:2"]
    assert started.attributes["irca.k8s.rollout.revision"] == "db-2"
    assert seen.wait(500) == []
    assert seen.put(kind, set_of(kind, **after, updated=1, ready=1)) == []
    assert seen.wait(500) == []
    [stalled] = seen.wait(100)
    assert (stalled.name, stalled.attributes["irca.k8s.rollout.pods.updated"]) == ("irca.kubernetes.rollout.stalled", 1)
    assert seen.wait(1000) == []
    [completed] = seen.put(kind, set_of(kind, **after, current="db-2"))
    assert completed.name == "irca.kubernetes.rollout.completed"
    assert seen.wait(1000) == []


@pytest.mark.parametrize("kind", ["statefulsets", "daemonsets"])
def test_a_set_that_goes_back_to_a_former_revision_is_another_rollout(kind):
    seen, ids = Reported(), set()
    seen.hold(kind, set_of(kind))
    for generation, number in ((2, 2), (3, 1 if kind == "statefulsets" else 3), (4, 2 if kind == "statefulsets" else 4)):
        after = {"image": f"shop/db:{number}", "generation": generation, "revision": f"db-{number}"}
        told = seen.put(kind, set_of(kind, **after, current="db-0", updated=0))
        told += seen.put(kind, set_of(kind, **after, current=f"db-{number}"))
        assert names(told) == ["rollout.started", "rollout.completed"]
        ids |= {event.id for event in told}
    assert len(ids) == 6


@pytest.mark.parametrize("kind", ["statefulsets", "daemonsets"])
def test_a_set_that_was_rolling_out_when_we_came_is_followed_to_its_end(kind):
    seen = Reported()
    assert seen.hold(kind, set_of(kind, revision="db-2", updated=1)) == []
    assert names(seen.put(kind, set_of(kind, revision="db-2", current="db-2"))) == ["rollout.completed"]


def test_a_new_workload_is_created_and_then_completes_its_first_rollout():
    seen = Reported()
    new = {"made": -1, "labels": {"helm.sh/chart": "shop-1"}}
    [created] = seen.put("deployments", workload(revision="", status={"observedGeneration": 0}, **new))
    told = seen.put("deployments", workload(**new, status={"conditions": []}))
    [deleted] = seen.remove("deployments", workload())

    assert created.name == "irca.kubernetes.workload.created"
    assert created.attributes["container.image.name"] == ["shop/web:1"]
    assert created.attributes["irca.k8s.chart.to"] == "shop-1"
    assert created.time_unix_nano == int((NOW - 1) * 1e9)
    assert names(told) == ["rollout.completed"]
    assert told[0].attributes["irca.k8s.rollout.duration"] == 1
    assert deleted.name == "irca.kubernetes.workload.deleted"


def test_replica_sets_of_a_deployment_are_not_told_and_others_are():
    seen = Reported()
    assert seen.put("replicasets", replica_set("web-a", "1", "x")) == []
    alone = obj("alone", spec={"replicas": 1, "template": {}})
    assert names(seen.put("replicasets", alone)) == ["workload.created"]
    assert seen.put("replicasets", {**alone, "spec": {"replicas": 4, "template": {}}}) == []
    assert names(seen.wait(2)) == ["workload.scaled"]


def test_scaling_by_hand_names_who_did_it():
    seen = Reported()
    seen.hold("deployments", workload(manager="helm"))
    assert seen.put("deployments", workload(replicas=5, generation=2, manager="kubectl-scale", wrote=-1)) == []
    [scaled] = seen.wait(2)
    assert scaled.attributes["irca.k8s.scale.from"] == 2
    assert scaled.attributes["irca.k8s.scale.to"] == 5
    assert scaled.attributes["irca.k8s.scale.by"] == "manager"
    assert scaled.attributes["irca.k8s.changed_by"] == "kubectl-scale"
    assert scaled.time_unix_nano == int((NOW - 1) * 1e9)


@pytest.mark.parametrize(("wanted", "acted", "by"), [(5, 0, "autoscaler"), (4, 0, None), (5, -500, None)])
def test_scaling_by_the_autoscaler_is_told_by_what_the_autoscaler_did(wanted, acted, by):
    seen = Reported()
    seen.hold("deployments", workload())
    seen.put("deployments", workload(replicas=5, generation=2))
    target = {"kind": "Deployment", "name": "web"}
    status = {"desiredReplicas": wanted, "lastScaleTime": stamp(acted)}
    seen.hold("horizontalpodautoscalers", obj("web-hpa", spec={"scaleTargetRef": target}, status=status))
    [scaled] = seen.wait(2)
    assert scaled.attributes.get("irca.k8s.scale.by") == by
    assert ("k8s.hpa.name" in scaled.attributes) == (by is not None)


def test_a_chart_that_changes_without_a_new_template_is_told():
    seen = Reported()
    seen.hold("deployments", workload(labels={"helm.sh/chart": "shop-1"}))
    [changed] = seen.put("deployments", workload(labels={"helm.sh/chart": "shop-2"}))
    assert changed.name == "irca.kubernetes.chart.changed"
    assert (changed.attributes["irca.k8s.chart.from"], changed.attributes["irca.k8s.chart.to"]) == ("shop-1", "shop-2")


def test_what_happened_since_the_former_leader_is_told_and_what_is_older_is_not():
    seen = Reported(since=NOW - 100)
    seen.hold("namespaces", obj("shop", namespace=""), obj("new", namespace="", made=-50))
    moved = {"conditions": [progressing("NewReplicaSetAvailable", -40)]}
    others = [
        obj(
            "bad",
            made=-50,
            spec={"template": {}, "replicas": 1},
            status={"conditions": [progressing("ProgressDeadlineExceeded", -20, "False")]},
        ),
        workload("calm"),
        obj("stuck", spec={"template": {}}, status={"conditions": [progressing("ProgressDeadlineExceeded", -900, "False")]}),
    ]
    first = seen.hold("deployments", workload(revision="2", image="shop/web:2", status=moved), *others)
    assert names(first) == ["rollout.completed", "rollout.stalled", "workload.created"]
    assert seen.wait(1) == []
    seen.hold("replicasets", replica_set("web-a", "1", "shop/web:1"), replica_set("web-b", "2", "shop/web:2", made=-60))
    [started] = seen.wait(1)
    assert started.attributes["irca.k8s.change.image.to"] == ["app=shop/web:2"]
    assert started.time_unix_nano == int((NOW - 60) * 1e9)
    assert seen.wait(1) == []
    still = {"conditions": [progressing("ProgressDeadlineExceeded", -900, "False")], "replicas": 2}
    assert seen.put("deployments", obj("stuck", spec={"template": {}}, status=still)) == [], "a former leader has told that"


def test_a_deployment_whose_former_template_is_gone_has_no_rollout_to_tell():
    seen = Reported(since=NOW - 100)
    moved = {"conditions": [progressing("NewReplicaSetAvailable", -40)]}
    seen.hold("deployments", workload(revision="2", status=moved))
    seen.hold("replicasets", replica_set("web-b", "2", "shop/web:2", made=-60))
    assert seen.wait(1) == []


def test_two_leaders_tell_the_same_under_the_same_ids():
    def told(reported):
        reported.hold("configmaps", obj("settings", data={"a": "1"}))
        reported.hold("deployments", workload())
        found = reported.put("configmaps", obj("settings", data={"a": "2"}, metadata={"resourceVersion": "77"}))
        found += reported.put("deployments", workload(image="x", generation=2, revision="2"))
        return found + reported.put("events", warning("w", count=3))

    first, second = told(Reported()), told(Reported())
    assert len(first) == 4
    assert [event.id for event in first] == [event.id for event in second]
    later = Reported(since=NOW - 3)
    [unseen] = later.hold("configmaps", obj("settings", data={"a": "2"}, wrote=-1, metadata={"resourceVersion": "77"}))
    assert unseen.id == first[0].id
    assert unseen.attributes["irca.k8s.change.unseen"] is True


def test_no_event_is_in_the_future_though_the_clusters_clock_may_be():
    seen = Reported()
    [created] = seen.put("namespaces", obj("new", namespace="", made=300))
    assert created.time_unix_nano == int(NOW * 1e9)


def test_the_same_is_not_told_twice():
    seen = Reported()
    item = obj("new", namespace="")
    assert names(seen.put("namespaces", item)) == ["namespace.created"]
    seen.view.remove(seen.term, "namespaces", ("", "new"))
    assert names(seen.put("namespaces", item)) == ["namespace.deleted"], "and not created again, for it is the same object"


def test_what_goes_with_its_namespace_is_not_told_one_by_one():
    seen = Reported()
    seen.hold("namespaces", obj("shop", namespace=""))
    settings = obj("settings", data={"a": "b"})
    seen.hold("configmaps", settings)
    seen.hold("deployments", workload())
    assert names(seen.put("namespaces", obj("shop", namespace="", metadata={"deletionTimestamp": stamp(0)}))) == ["namespace.deleted"]
    assert seen.remove("configmaps", settings) == []
    assert seen.remove("deployments", workload()) == []
    assert seen.remove("namespaces", obj("shop", namespace="")) == []


def test_where_namespaces_are_not_known_every_deletion_is_told():
    seen = Reported()
    seen.hold("configmaps", obj("settings", data={"a": "b"}))
    assert names(seen.remove("configmaps", obj("settings"))) == ["configmap.deleted"]


def test_a_storm_of_one_kind_is_bounded_counted_and_crowds_nothing_else_out():
    seen = Reported()
    told = [event for number in range(1000) for event in seen.put("namespaces", obj(f"n{number}", namespace=""))]
    assert len(told) == 600
    assert names(seen.put("configmaps", obj("settings", data={"a": "b"}))) == ["configmap.created"]
    assert seen.wait(59) == []
    [dropped] = seen.wait(2)
    assert dropped.name == "irca.kubernetes.events.dropped"
    assert dropped.attributes["irca.events.dropped"] == 400
    assert dropped.attributes["irca.events.dropped.kinds"] == ["namespace.created: 400"]
    assert dropped.resource == {"k8s.cluster.uid": CLUSTER}
    assert seen.wait(120) == []
    assert names(seen.put("namespaces", obj("later", namespace=""))) == ["namespace.created"]


def test_an_object_that_changes_all_the_time_does_not_fill_the_timeline():
    seen = Reported()
    seen.hold("configmaps", obj("settings", data={"a": "x"}))
    told = [event for number in range(50) for event in seen.put("configmaps", obj("settings", data={"a": str(number)}))]
    assert len(told) == 12
    [dropped] = seen.close()
    assert dropped.attributes["irca.events.dropped"] == 38


def test_events_that_found_no_room_in_the_view_are_counted():
    seen = Reported()
    seen.view._held["events"].dropped = 7
    [dropped] = seen.close()
    assert dropped.attributes["irca.events.dropped"] == 7


def test_a_cluster_that_cannot_be_named_yet_is_asked_again():
    seen = Reported()
    seen.uid = ""
    [first] = seen.put("namespaces", obj("one", namespace=""))
    seen.uid = CLUSTER
    [second] = seen.put("namespaces", obj("two", namespace=""))
    assert "k8s.cluster.uid" not in first.resource
    assert second.resource["k8s.cluster.uid"] == CLUSTER


def test_what_is_remembered_is_bounded():
    held = Recent(2)
    for number in range(5):
        held.put(number, str(number))
    held.put(3, "again")
    held.put(9, "new")
    assert list(held) == [3, 9]
    assert held.values() == ["again", "new"]
    assert (held.get(3), held.get(4), held.pop(4), len(held), 9 in held) == ("again", None, None, 2, True)


def test_a_clock_that_is_set_back_neither_opens_the_gate_nor_keeps_the_count():
    limit = EventLimit(1)
    assert limit.admits("a", "x", 1000.0)
    assert not limit.admits("a", "y", 10.0)
    assert limit.settle(5.0) == ({"a": 1}, 10.0)


def test_every_kind_that_is_watched_can_be_told_of():
    seen = Reported(*{kind.feature for kind in KINDS.values()} - {"core"})
    for kind in KINDS.values():
        bare = {"metadata": {"name": "bare", "uid": f"uid-{kind.name}"} | ({"namespace": "shop"} if kind.namespaced else {})}
        seen.put(kind.name, bare)
        seen.put(kind.name, {**bare, "spec": {}, "status": {}})
        if kind.stored:
            seen.remove(kind.name, bare)
    assert seen.wait(3) == []
