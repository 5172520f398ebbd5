"""What is found in changes of pods, nodes, configuration and the cluster's own events."""

from __future__ import annotations

import pytest
from watched_changes import NOW, Reported, container, ended, names, obj, pod, replica_set, stamp, waiting, warning, workload

from connectors.core.telemetry import Severity
from connectors.kubernetes.cluster_events import container_of
from connectors.kubernetes.trim import LEADER

APP = [{"name": "app", "image": "shop/web:1", "resources": {"limits": {"memory": "64Mi"}}}]


def of(*containers, **status):
    return pod(containers=APP, status={"containerStatuses": list(containers), **status}, owner=("ReplicaSet", "web-a"))


def test_a_crash_is_told_once_per_run_and_the_loop_once():
    seen = Reported()
    seen.hold("replicasets", replica_set("web-a", "1", "x"))
    seen.hold("pods", of(container()))
    [exited] = seen.put("pods", of(container(state=ended(3, -5, run="a", message="no token=abcdef123 here"))))
    [loop] = seen.put("pods", of(container(restarts=1, state=waiting("CrashLoopBackOff", "back-off"), last=ended(3, -5, run="a"))))
    assert seen.put("pods", of(container(restarts=1, state={"running": {}}, last=ended(3, -5, run="a")))) == []
    [again] = seen.put("pods", of(container(restarts=1, state=ended(4, -1, run="b"), last=ended(3, -5, run="a"))))
    assert seen.put("pods", of(container(restarts=2, state=waiting("CrashLoopBackOff"), last=ended(4, -1, run="b")))) == []

    assert exited.name == "irca.kubernetes.pod.container_exited"
    assert exited.severity is Severity.ERROR
    assert exited.attributes["irca.container.exit_code"] == 3
    assert exited.attributes["container.image.name"] == "shop/web:1"
    assert exited.attributes["irca.k8s.message"] == "no token=[redacted] here"
    assert exited.time_unix_nano == int((NOW - 5) * 1e9)
    assert exited.resource["k8s.pod.uid"] == "uid-web-1"
    assert exited.resource["k8s.deployment.name"] == "web"
    assert exited.resource["k8s.node.name"] == "node-1"
    assert exited.resource["k8s.container.name"] == "app"
    assert loop.name == "irca.kubernetes.pod.crash_loop"
    assert loop.attributes["irca.k8s.container.ran"] == 5
    assert again.attributes["irca.container.exit_code"] == 4


def test_a_loop_after_ten_good_minutes_is_another():
    seen = Reported()
    seen.hold("pods", of(container()))
    seen.put("pods", of(container(restarts=1, state=waiting("CrashLoopBackOff"), last=ended(3, -5, run="a"))))
    late = ended(3, 700, began=20, run="b")
    seen.put("pods", of(container(restarts=1, state={"running": {}})))
    told = seen.put("pods", of(container(restarts=2, state=waiting("CrashLoopBackOff"), last=late)))
    assert names(told) == ["pod.container_exited", "pod.crash_loop"]


def test_running_out_of_memory_is_told_with_the_limit():
    seen = Reported()
    [killed] = seen.put("pods", of(container(restarts=1, last=ended(137, -2, reason="OOMKilled"))))
    assert killed.name == "irca.kubernetes.pod.oom_killed"
    assert killed.attributes["irca.k8s.container.memory.limit"] == "64Mi"
    assert killed.body == "app in Pod shop/web-1 was killed: out of memory (limit 64Mi)"


def test_a_kill_under_a_memory_limit_that_nobody_asked_for_is_suspect():
    seen = Reported()
    [killed] = seen.put("pods", of(container(state=ended(137, -2))))
    assert killed.name == "irca.kubernetes.pod.container_exited"
    assert killed.attributes["irca.container.oom_suspected"] is True
    assert killed.attributes["irca.k8s.container.memory.limit"] == "64Mi"
    [unlimited] = seen.put("pods", pod("free", status={"containerStatuses": [container(state=ended(137, -2))]}))
    assert "irca.container.oom_suspected" not in unlimited.attributes


def test_runs_without_a_container_id_are_told_apart_by_their_number():
    seen = Reported()
    bare = {"terminated": {"exitCode": 1, "signal": 9}}
    [first] = seen.put("pods", of(container(state=bare)))
    assert seen.put("pods", of(container(restarts=1, state={"running": {}}, last=bare))) == []
    [second] = seen.put("pods", of(container(restarts=1, state=bare, last=bare)))
    assert first.id != second.id
    assert first.attributes["irca.container.signal"] == "9"


@pytest.mark.parametrize(("code", "told"), [(143, []), (137, []), (1, ["pod.container_exited"]), (0, [])])
def test_containers_of_a_pod_that_is_deleted_may_end_as_they_were_told_to(code, told):
    seen = Reported()
    leaving = of(container(state=ended(code, -1)))
    leaving["metadata"]["deletionTimestamp"] = stamp(0)
    events = seen.put("pods", leaving)
    assert names(events) == told
    assert all(event.severity is Severity.WARN for event in events)


def test_an_image_that_cannot_be_pulled_is_told_once_until_it_is_another():
    seen = Reported()
    seen.hold("pods", pod())
    [failed] = seen.put("pods", of(container(state=waiting("ErrImagePull", "not found"))))
    assert seen.put("pods", of(container(state=waiting("ImagePullBackOff", "back-off")))) == []
    assert seen.put("pods", of(container(state=waiting("ErrImagePull", "not found")))) == []
    other = pod(
        containers=[{"name": "app", "image": "shop/web:2"}], status={"containerStatuses": [container(state=waiting("ErrImagePull"))]}
    )
    assert names(seen.put("pods", other)) == ["pod.image_pull_failed"]
    assert failed.attributes["irca.k8s.message"] == "not found"
    assert failed.attributes["k8s.container.status.reason"] == "ErrImagePull"


def test_a_configuration_that_cannot_be_used_is_told_of_init_containers_too():
    seen = Reported()
    status = {"initContainerStatuses": [container("init", state=waiting("CreateContainerConfigError", "no such secret"))]}
    item = pod(status=status)
    item["spec"]["initContainers"] = [{"name": "init", "image": "init:1"}]
    [failed] = seen.put("pods", item)
    assert failed.name == "irca.kubernetes.pod.config_error"
    assert failed.attributes["container.image.name"] == "init:1"


def test_a_pod_that_finds_no_node_is_told_once_each_time():
    def unscheduled(since, message="0/1 nodes are available"):
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "lastTransitionTime": stamp(since)}
        return pod(node="", status={"phase": "Pending", "conditions": [{**condition, "message": message}]})

    seen = Reported()
    [found] = seen.put("pods", unscheduled(-30))
    assert seen.put("pods", unscheduled(-30, "0/2 nodes are available")) == []
    assert names(seen.put("pods", unscheduled(-10))) == ["pod.failed_scheduling"]
    assert found.severity is Severity.WARN
    assert found.attributes["irca.k8s.message"] == "0/1 nodes are available"
    assert "k8s.node.name" not in found.resource


def test_evictions_and_other_failures_of_whole_pods_are_told():
    seen = Reported()
    [evicted] = seen.put("pods", pod(status={"phase": "Failed", "reason": "Evicted", "message": "low on memory"}))
    [failed] = seen.put("pods", pod("late", status={"phase": "Failed", "reason": "DeadlineExceeded"}))
    assert (evicted.name, evicted.severity) == ("irca.kubernetes.pod.evicted", Severity.WARN)
    assert evicted.attributes["irca.k8s.message"] == "low on memory"
    assert (failed.name, failed.severity) == ("irca.kubernetes.pod.failed", Severity.ERROR)
    assert seen.remove("pods", pod("late")) == []


def test_pods_that_come_and_go_are_not_told():
    seen = Reported()
    assert seen.put("pods", pod(status={"containerStatuses": [container(state={"running": {}})]})) == []
    assert seen.remove("pods", pod()) == []


def test_trouble_of_pods_since_the_former_leader_is_told():
    seen = Reported(since=NOW - 100)
    old, new = ended(1, -500, run="a"), ended(1, -50, run="b")
    assert names(seen.hold("pods", of(container(restarts=1, state=new, last=old)))) == ["pod.container_exited"]


def node(*, ready="True", since=-9000, pressure="False", taints=(), cordoned=False, kubelet="v1.20.2", **rest):
    conditions = [
        {"type": "Ready", "status": ready, "reason": "Kubelet", "message": "it says so", "lastTransitionTime": stamp(since)},
        {"type": "DiskPressure", "status": pressure, "lastTransitionTime": stamp(-9000)},
    ]
    spec = {"unschedulable": cordoned, "taints": list(taints)}
    status = {"conditions": conditions, "nodeInfo": {"kubeletVersion": kubelet} if kubelet else {}}
    return obj("node-1", namespace="", made=-10_000, spec=spec, status=status, **rest)


def test_nodes_come_and_go():
    seen = Reported()
    assert names(seen.put("nodes", node())) == ["node.added"]
    [removed] = seen.remove("nodes", node())
    assert (removed.name, removed.severity) == ("irca.kubernetes.node.removed", Severity.WARN)


def test_cordoning_is_told_with_who_did_it_and_its_taint_is_not():
    seen = Reported()
    seen.hold("nodes", node())
    automatic = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    [cordoned] = seen.put("nodes", node(cordoned=True, taints=[automatic], manager="kubectl-cordon", wrote=-2))
    [back] = seen.put("nodes", node())
    assert cordoned.attributes["irca.k8s.changed_by"] == "kubectl-cordon"
    assert cordoned.time_unix_nano == int((NOW - 2) * 1e9)
    assert back.name == "irca.kubernetes.node.uncordoned"


def test_taints_and_software_of_a_node_are_compared():
    seen = Reported()
    seen.hold("nodes", node())
    [taints] = seen.put("nodes", node(taints=[{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]))
    assert taints.attributes["irca.k8s.change.taints.added"] == ["gpu:NoSchedule"]
    told = seen.put("nodes", node(kubelet="v1.21.0"))
    assert names(told) == ["node.taints_changed", "node.upgraded"]
    assert told[1].attributes["irca.k8s.change.software.to"] == ["kubeletVersion=v1.21.0"]
    assert seen.put("nodes", node(kubelet="")) != []
    assert seen.put("nodes", node()) == [], "a node that had not told its versions was not upgraded"


def test_conditions_of_a_node_are_told_when_they_change():
    seen = Reported()
    seen.hold("nodes", node())
    [away] = seen.put("nodes", node(ready="Unknown", since=-20))
    [back] = seen.put("nodes", node(since=-1))
    [full] = seen.put("nodes", node(since=-1, pressure="True"))
    assert (away.severity, back.severity, full.severity) == (Severity.ERROR, Severity.INFO, Severity.WARN)
    assert away.attributes["k8s.node.condition.status"] == "unknown"
    assert away.attributes["irca.k8s.condition.previous_status"] == "true"
    assert away.time_unix_nano == int((NOW - 20) * 1e9)
    assert full.attributes["k8s.node.condition.type"] == "DiskPressure"


def test_a_node_that_went_away_since_the_former_leader_is_told():
    assert names(Reported(since=NOW - 100).hold("nodes", node(ready="Unknown", since=-20))) == ["node.condition_changed"]
    assert Reported(since=NOW - 10).hold("nodes", node(ready="Unknown", since=-20)) == []


def test_values_of_config_maps_are_told_as_keyed_hashes_only():
    seen = Reported()
    seen.hold("configmaps", obj("settings", data={"a": "hunter1", "b": "x"}))
    [changed] = seen.put("configmaps", obj("settings", data={"a": "hunter2"}, binaryData={"c": "eA=="}, manager="helm", wrote=-1))
    assert changed.attributes["irca.k8s.change.data.added"] == ["c"]
    assert changed.attributes["irca.k8s.change.data.removed"] == ["b"]
    assert changed.attributes["irca.k8s.change.data.changed"] == ["a"]
    assert changed.attributes["irca.k8s.change.hashes"][1].startswith("data.a=")
    assert changed.attributes["irca.k8s.changed_by"] == "helm"
    assert "hunter" not in repr(changed)
    assert seen.put("configmaps", obj("settings", data={"a": "hunter2"}, binaryData={"c": "eA=="}, metadata={"labels": {"x": "y"}})) == []


def test_config_maps_that_controllers_keep_for_themselves_are_left_out():
    seen = Reported()
    assert seen.put("configmaps", obj("kube-root-ca.crt", data={"ca.crt": "x"})) == []
    for number in range(3):
        assert seen.put("configmaps", obj("leader", metadata={"annotations": {LEADER: f"{{{number}}}"}}, data={"a": str(number)})) == []
    later = Reported(since=NOW - 10)
    assert later.hold("configmaps", obj("empty", wrote=-1), obj("kube-root-ca.crt", data={"a": "b"}, wrote=-1)) == []


def test_secrets_are_told_by_key_and_helm_releases_by_status_where_they_may_be_read():
    seen = Reported("secrets")
    assert seen.put("secrets", obj("token-x", type="kubernetes.io/service-account-token", data={"token": "a"})) == []
    seen.hold("secrets", obj("password", data={"password": "YQ=="}))
    [changed] = seen.put("secrets", obj("password", data={"password": "Yg=="}))
    assert changed.attributes["irca.k8s.change.data.changed"] == ["password"]

    def release(number, status, modified=-5):
        labels = {"owner": "helm", "name": "shop", "status": status, "version": str(number), "modifiedAt": str(int(NOW + modified))}
        return obj(f"sh.helm.release.v1.shop.v{number}", type="helm.sh/release.v1", metadata={"labels": labels}, data={"release": "x"})

    assert seen.put("secrets", release(1, "pending-install")) == []
    [deployed] = seen.put("secrets", release(1, "deployed"))
    assert seen.put("secrets", release(1, "superseded")) == []
    [failed] = seen.put("secrets", release(2, "failed"))
    assert seen.remove("secrets", release(1, "superseded")) == []
    seen.put("secrets", release(3, "deployed"))
    [gone] = seen.remove("secrets", release(3, "deployed"))
    assert deployed.attributes["irca.helm.release.revision"] == "1"
    assert deployed.time_unix_nano == int((NOW - 5) * 1e9)
    assert (failed.name, failed.severity) == ("irca.kubernetes.helm_release.failed", Severity.ERROR)
    assert gone.name == "irca.kubernetes.helm_release.uninstalled"
    assert Reported("secrets", since=NOW - 60).hold("secrets", release(2, "failed"))[0].id == failed.id


def test_secrets_changed_since_the_former_leader_are_told_without_what_differs():
    seen = Reported("secrets", since=NOW - 60)
    [changed] = seen.hold("secrets", obj("password", data={"password": "YQ=="}, wrote=-5, manager="me"))
    assert changed.attributes["irca.k8s.change.unseen"] is True
    assert changed.body == "Secret shop/password changed by me while nobody watched"


@pytest.mark.parametrize(
    ("kind", "before", "after", "told"),
    [
        (
            "clusterroles",
            {"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "get"], "resourceNames": ["web"]}]},
            {"rules": [{"nonResourceURLs": ["/healthz"], "verbs": ["get"]}]},
            {"rules.added": ["get /healthz"], "rules.removed": ["get, list pods named web (core)"]},
        ),
        (
            "rolebindings",
            {"roleRef": {"kind": "Role", "name": "a"}, "subjects": [{"kind": "ServiceAccount", "namespace": "shop", "name": "x"}]},
            {"roleRef": {"kind": "Role", "name": "a"}, "subjects": [{"kind": "User", "name": "eve"}]},
            {"subjects.added": ["User eve"], "subjects.removed": ["ServiceAccount shop/x"]},
        ),
        (
            "horizontalpodautoscalers",
            {"spec": {"minReplicas": 1, "maxReplicas": 3, "targetCPUUtilizationPercentage": 50}},
            {"spec": {"minReplicas": 2, "maxReplicas": 3, "targetCPUUtilizationPercentage": 80, "behavior": {"scaleUp": {}}}},
            {
                "behavior.added": ["behavior"],
                "bounds.from": ["minReplicas=1"],
                "bounds.to": ["minReplicas=2"],
                "metrics.from": ["Resource/cpu=averageUtilization=50"],
                "metrics.to": ["Resource/cpu=averageUtilization=80"],
            },
        ),
        (
            "horizontalpodautoscalers",
            {
                "spec": {
                    "metrics": [
                        {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 5}}}
                    ]
                }
            },
            {"spec": {"metrics": [{"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"averageValue": "7"}}}]}},
            {"metrics.from": ["Resource/cpu=averageUtilization=5"], "metrics.to": ["Pods/rps=averageValue=7"]},
        ),
        (
            "resourcequotas",
            {"spec": {"hard": {"pods": "1"}, "scopes": ["Terminating"]}},
            {"spec": {"hard": {"pods": "2"}, "scopeSelector": {"matchExpressions": []}}},
            {"hard.from": ["pods=1"], "hard.to": ["pods=2"], "scope_selector.added": ["scopeSelector"], "scopes.removed": ["Terminating"]},
        ),
        (
            "poddisruptionbudgets",
            {"spec": {"minAvailable": 1}},
            {"spec": {"minAvailable": "50%"}},
            {"bounds.from": ["minAvailable=1"], "bounds.to": ["minAvailable=50%"]},
        ),
        (
            "cronjobs",
            {
                "spec": {
                    "schedule": "@daily",
                    "jobTemplate": {"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "1"}]}}}},
                }
            },
            {"spec": {"schedule": "@daily", "suspend": True, "jobTemplate": {}}},
            {"containers.removed": ["a"], "image.from": ["a=1"], "image.to": [], "schedule.from": [], "schedule.to": ["suspend=True"]},
        ),
    ],
)
def test_configuration_is_compared_by_what_matters(kind, before, after, told):
    seen = Reported()
    namespace = "" if kind.startswith("cluster") else "shop"
    seen.hold(kind, obj("x", namespace=namespace, **before))
    [changed] = seen.put(kind, obj("x", namespace=namespace, **after))
    assert changed.name.endswith(".changed")
    parts = sorted({key.partition(".")[0] for key in told})
    found = {key: value for key, value in changed.attributes.items() if key.startswith("irca.k8s.change")}
    assert found == {"irca.k8s.changed": parts} | {f"irca.k8s.change.{key}": value for key, value in told.items()}
    assert names(seen.remove(kind, obj("x", namespace=namespace)))[0].endswith(".deleted")


def test_jobs_that_fail_and_claims_that_lose_their_volume_are_told_once():
    seen = Reported()
    failed = {
        "conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "lastTransitionTime": stamp(-3)}],
        "failed": 2,
    }
    seen.hold("jobs", obj("once", spec={}, status={}))
    [job] = seen.put("jobs", obj("once", spec={}, status=failed))
    assert seen.put("jobs", obj("once", spec={}, status={**failed, "active": 0})) == []
    assert job.attributes["irca.k8s.condition.reason"] == "BackoffLimitExceeded"
    assert job.attributes["irca.k8s.job.pods.failed"] == 2
    seen.hold("persistentvolumeclaims", obj("data", spec={"volumeName": "pv-1"}, status={"phase": "Bound"}))
    [lost] = seen.put("persistentvolumeclaims", obj("data", spec={"volumeName": "pv-1"}, status={"phase": "Lost"}))
    assert (lost.severity, lost.attributes["k8s.volume.name"]) == (Severity.ERROR, "pv-1")


def test_a_change_tells_its_cause_where_it_is_new():
    seen = Reported()
    cause = {"kubernetes.io/change-cause": "release 2"}
    seen.hold("deployments", workload())
    seen.put("deployments", workload(image="x", generation=2, annotations=cause))
    [started] = seen.put(
        "deployments", workload(image="x", generation=2, revision="2", annotations=cause, status={"observedGeneration": 1})
    )
    assert started.attributes["irca.k8s.change.cause"] == "release 2"


def test_a_warning_is_told_at_once_and_its_repetitions_once_a_minute():
    seen = Reported()
    seen.hold("replicasets", replica_set("web-a", "1", "x"))
    seen.hold("pods", pod(owner=("ReplicaSet", "web-a")))
    path = {"fieldPath": "spec.containers{app}"}
    [first] = seen.put("events", warning("w", message="password=hunter2 refused", at=path))
    for count in (2, 5):
        assert seen.put("events", warning("w", count=count, at=path)) == []
    assert seen.put("events", warning("other", count=1, at=path)) == []
    assert seen.wait(30) == []
    [second] = seen.wait(31)
    assert seen.wait(120) == []
    [third] = seen.put("events", warning("w", count=6, at=path))

    assert first.name == "irca.kubernetes.warning.recorded"
    assert first.severity is Severity.WARN
    assert first.attributes["irca.k8s.event.reason"] == "BackOff"
    assert first.attributes["irca.k8s.event.delta"] == 1
    assert first.attributes["irca.k8s.message"] == "password=[redacted] refused"
    assert first.resource["k8s.pod.uid"] == "uid-web-1"
    assert first.resource["k8s.deployment.name"] == "web"
    assert first.resource["k8s.container.name"] == "app"
    assert second.attributes["irca.k8s.event.delta"] == 5
    assert third.attributes["irca.k8s.event.delta"] == 1
    assert third.attributes["irca.k8s.event.count"] == 6
    assert len({first.id, second.id, third.id}) == 3


def test_a_warning_about_what_is_gone_or_unknown_names_it_all_the_same():
    seen = Reported()
    seen.hold("pods", pod("web-1", uid="another"))
    [gone] = seen.put("events", warning("w"))
    [foreign] = seen.put("events", warning("v", about=("Certificate", "tls"), message=""))
    assert gone.resource["k8s.pod.uid"] == "uid-web-1"
    assert foreign.resource["irca.k8s.certificate.name"] == "tls"
    assert foreign.attributes["irca.k8s.object.kind"] == "Certificate"
    assert foreign.body == "BackOff of Certificate shop/tls"


def test_events_of_the_newer_form_are_counted_by_their_series():
    seen = Reported()
    newer = warning("w")
    for key in ("count", "firstTimestamp", "lastTimestamp", "source"):
        del newer[key]
    newer |= {"eventTime": stamp(-3), "reportingComponent": "scheduler"}
    [first] = seen.put("events", newer)
    newer["series"] = {"count": 4, "lastObservedTime": stamp(-1)}
    assert seen.put("events", newer) == []
    [second] = seen.wait(61)
    assert first.attributes["irca.k8s.event.source"] == "scheduler"
    assert first.time_unix_nano == int((NOW - 3) * 1e9)
    assert second.attributes["irca.k8s.event.delta"] == 3
    assert second.time_unix_nano == int((NOW - 1) * 1e9)


def test_warnings_since_the_former_leader_are_told_and_counted_from_there():
    seen = Reported(since=NOW - 100)
    told = seen.hold(
        "events",
        warning("old", last=-500, about=("Pod", "a")),
        warning("new", count=7, last=-10, first=-50, about=("Pod", "b")),
        warning("going-on", count=7, last=-10, first=-5000, about=("Pod", "c")),
    )
    assert [(e.attributes["irca.k8s.object.name"], e.attributes["irca.k8s.event.delta"]) for e in told] == [("b", 7), ("c", 1)]
    [more] = seen.put("events", warning("old", count=2, about=("Pod", "a")))
    assert more.attributes["irca.k8s.event.delta"] == 1


def test_an_event_that_says_no_more_than_before_is_not_told():
    seen = Reported()
    seen.put("events", warning("w", count=5))
    assert seen.put("events", warning("w", count=5)) == []
    assert seen.wait(61) == []


def test_thousands_of_warnings_are_bounded_and_counted():
    seen = Reported()
    told = [
        event
        for number in range(1000)
        for event in seen.put("events", warning(f"w{number}", about=("Pod", f"p{number}"), uid=f"e{number}"))
    ]
    assert len(told) == 120
    [dropped] = seen.close()
    assert dropped.attributes["irca.events.dropped"] == 880


def test_what_waits_is_told_at_the_end():
    seen = Reported()
    seen.hold("deployments", workload())
    seen.put("events", warning("w"))
    seen.put("events", warning("w", count=9))
    seen.put("deployments", workload(replicas=9, generation=2))
    assert names(seen.close()) == ["workload.scaled", "warning.recorded"]


@pytest.mark.parametrize(
    ("path", "name"), [("spec.containers{app}", "app"), ("spec.initContainers{a-b}", "a-b"), ("", ""), ("metadata", ""), ("spec{x}", "")]
)
def test_a_warning_names_its_container(path, name):
    assert container_of(path) == name
