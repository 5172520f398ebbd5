"""What the kubernetes agent makes of the objects that a real cluster had."""

from __future__ import annotations

import inspect
import re
from collections import Counter

import pytest
from opentelemetry.semconv._incubating.metrics import k8s_metrics
from watched_objects import NOW, Watched, gathered, outcome, recorded, recorded_cluster, resource_of, values

from connectors.core.telemetry import encode_metrics
from connectors.kubernetes.metrics import METRICS, TABLE, metric
from connectors.kubernetes.quota import quantity, quota_metrics
from connectors.kubernetes.resources import timestamp


def opentelemetry_names():
    """Kind and unit by name, from the constants of OpenTelemetry's own package and their descriptions; deprecated ones left out."""
    source = inspect.getsource(k8s_metrics)
    found = re.findall(r'^K8S_\w+: Final = "([^"]+)"\n"""(.*?)"""', source, re.DOTALL | re.MULTILINE)
    return {
        name: (re.search(r"Instrument: (\S+)", text)[1], re.search(r"Unit: (\S+)", text)[1])
        for name, text in found
        if "Deprecated" not in text
    }


@pytest.fixture(scope="module")
def cluster():
    return recorded_cluster().collect()


def test_everything_that_was_recorded_is_measured(cluster):
    assert set(outcome(cluster).values()) == {""}
    assert encode_metrics(cluster)
    kinds = {next(iter(r.resource)).rpartition(".")[0] for r in cluster.resources}
    assert kinds >= {
        *("k8s.node", "k8s.namespace", "k8s.pod", "k8s.deployment", "k8s.replicaset", "k8s.statefulset", "k8s.daemonset", "k8s.job"),
        *("k8s.cronjob", "k8s.hpa", "k8s.persistentvolumeclaim", "k8s.resourcequota", "irca.k8s.poddisruptionbudget"),
    }


def test_no_resource_is_told_twice_and_each_is_known_by_its_uid(cluster):
    assert max(Counter(tuple(r.resource.items()) for r in cluster.resources).values()) == 1
    assert all(any(key.endswith(".uid") for key in r.resource) for r in cluster.resources)


def test_nothing_is_sent_that_is_not_in_the_table(cluster):
    sent = {m.name for r in cluster.resources for m in r.metrics if not m.name.startswith("irca.collector.")}
    for found in (m for r in cluster.resources for m in r.metrics if m.name in METRICS):
        assert (found.unit, found.kind) == (METRICS[found.name].unit, METRICS[found.name].kind)
        assert all(set(point.attributes) <= set(METRICS[found.name].attributes) for point in found.points)
    assert sent <= METRICS.keys()
    assert len(METRICS) == len(TABLE)
    with pytest.raises(KeyError):
        metric("k8s.pod.surprise", [])


def test_names_units_and_kinds_are_opentelemetrys_where_it_has_them():
    known = opentelemetry_names()
    for row in TABLE:
        if row.name.startswith("k8s."):
            assert known[row.name] == (row.kind.value, row.unit), row.name
        else:
            assert row.name.startswith(("irca.", "system.", "container.")), row.name
            assert row.name.removeprefix("irca.") not in known


def test_a_node_is_told_by_conditions_and_what_pods_may_use(cluster):
    found = gathered(cluster, k8s_node_name="node-1")

    assert [found[f"k8s.node.condition.status|Ready|{s}"] for s in ("true", "false", "unknown")] == [1, 0, 0]
    assert found["k8s.node.condition.status|DiskPressure|false"] == 1
    assert found["irca.k8s.node.unschedulable"] == 0
    assert found["k8s.node.cpu.allocatable"] == 2
    assert found["k8s.node.pod.allocatable"] == 110
    assert found["k8s.node.memory.allocatable"] > 1024**3
    assert found["k8s.node.ephemeral_storage.allocatable"] > 1024**3


def test_a_cordoned_node_and_one_that_nobody_has_described():
    watched = Watched()
    node = recorded("nodes")[0]
    node["spec"]["unschedulable"] = True
    node["status"]["allocatable"]["cpu"] = "1900m"
    node["status"]["allocatable"]["memory"] = "odd"
    watched.hold("nodes", node, {"metadata": {"name": "new", "uid": "n"}})
    watched.sync()

    collection = watched.collect()

    found = gathered(collection, k8s_node_name="node-1")
    assert found["irca.k8s.node.unschedulable"] == 1
    assert found["k8s.node.cpu.allocatable"] == 1.9
    assert "k8s.node.memory.allocatable" not in found
    assert gathered(collection, k8s_node_name="new") == {"irca.k8s.node.unschedulable": 0}


def test_a_namespace_is_told_by_its_phase(cluster):
    assert gathered(cluster, k8s_namespace_name="km-fixture") == {"k8s.namespace.phase|active": 1, "k8s.namespace.phase|terminating": 0}


def test_a_running_pod_is_told_with_owners_and_node(cluster):
    pod = recorded("pods", "web-")
    name = pod["metadata"]["name"]

    found = gathered(cluster, k8s_pod_name=name)

    assert [found[f"k8s.pod.status.phase|{p}"] for p in ("Pending", "Running", "Succeeded", "Failed", "Unknown")] == [0, 1, 0, 0, 0]
    assert found["k8s.pod.uptime"] == NOW - timestamp(pod["status"]["startTime"])
    assert not [key for key in found if "reason" in key or "unschedulable" in key]
    assert resource_of(cluster, k8s_pod_name=name).resource == {
        "k8s.pod.uid": pod["metadata"]["uid"],
        "k8s.pod.name": name,
        "k8s.namespace.name": "km-fixture",
        "k8s.replicaset.name": name.rpartition("-")[0],
        "k8s.deployment.name": "web",
        "k8s.node.name": "node-1",
    }


def test_containers_are_told_by_state_restarts_and_what_is_kept_for_them(cluster):
    web = {"k8s_pod_name": recorded("pods", "web-")["metadata"]["name"]}

    assert gathered(cluster, **web, k8s_container_name="app") == {
        "k8s.container.restart.count": 0,
        "k8s.container.ready": 1,
        "k8s.container.status.state|waiting": 0,
        "k8s.container.status.state|running": 1,
        "k8s.container.status.state|terminated": 0,
        "k8s.container.cpu.limit.desired": 0.25,
        "k8s.container.cpu.request.desired": 0.05,
        "k8s.container.memory.limit.desired": 96 * 1024**2,
        "k8s.container.memory.request.desired": 48 * 1024**2,
        "k8s.container.ephemeral_storage.limit": 1024**3,
        "k8s.container.ephemeral_storage.request": 1024**3,
    }
    migrate = gathered(cluster, **web, k8s_container_name="migrate")
    assert migrate["k8s.container.status.state|terminated"] == 1
    assert migrate["k8s.container.status.reason|Completed"] == 1


def test_a_container_that_crashes_tells_why_and_how_often(cluster):
    found = gathered(cluster, k8s_pod_name="crash", k8s_container_name="app")

    assert found["k8s.container.restart.count"] >= 4
    assert found["k8s.container.ready"] == 0
    assert found["k8s.container.status.reason|CrashLoopBackOff"] == 1
    assert found["irca.k8s.container.last_termination.reason|Error"] == 1
    assert found["irca.k8s.container.last_termination.exit_code"] == 3
    assert gathered(cluster, k8s_pod_name="crash")["k8s.pod.status.phase|Running"] == 1


def test_an_image_that_cannot_be_pulled_is_the_reason_of_a_waiting_container(cluster):
    found = gathered(cluster, k8s_pod_name="nopull", k8s_container_name="app")

    assert found["k8s.container.status.state|waiting"] == 1
    assert found.keys() & {"k8s.container.status.reason|ImagePullBackOff", "k8s.container.status.reason|ErrImagePull"}


def test_a_pod_that_no_node_fits_is_told_with_what_it_asks_for(cluster):
    found = gathered(cluster, k8s_pod_name="unschedulable")

    assert found["k8s.pod.status.phase|Pending"] == 1
    assert found["irca.k8s.pod.unschedulable"] == 1
    assert "k8s.pod.uptime" not in found
    assert "k8s.node.name" not in resource_of(cluster, k8s_pod_name="unschedulable").resource
    asked = gathered(cluster, k8s_pod_name="unschedulable", k8s_container_name="app")
    assert asked["k8s.container.memory.request.desired"] == 32 * 1024**2
    assert "k8s.container.ready" not in asked


def test_pods_are_told_with_what_owns_them(cluster):
    def owners(name):
        resource = resource_of(cluster, k8s_pod_name=recorded("pods", name)["metadata"]["name"]).resource
        return {
            key: value
            for key, value in resource.items()
            if key not in ("k8s.pod.name", "k8s.namespace.name", "k8s.node.name", "k8s.pod.uid")
        }

    assert owners("db-0") == {"k8s.statefulset.name": "db"}
    assert owners("logs-") == {"k8s.daemonset.name": "logs"}
    assert owners("crash") == {}


def test_a_pod_of_a_cron_job_is_told_with_its_job_and_that_ones_cron_job():
    watched, pod = recorded_cluster(), recorded("pods", "nightly-")
    pod["status"]["phase"] = "Running"
    watched.hold("pods", pod)

    resource = resource_of(watched.collect(), k8s_pod_name=pod["metadata"]["name"]).resource

    assert resource["k8s.cronjob.name"] == "nightly"
    assert resource["k8s.job.name"] == recorded("jobs", "nightly-")["metadata"]["name"]


def test_workloads_are_told_by_what_they_want_and_have(cluster):
    assert gathered(cluster, k8s_deployment_name="web") == {
        "k8s.deployment.pod.desired": 2,
        "k8s.deployment.pod.available": 2,
        "irca.k8s.deployment.pod.updated": 2,
        "irca.k8s.deployment.pod.unavailable": 0,
    }
    [owned] = recorded("replicasets")
    assert gathered(cluster, k8s_replicaset_name=owned["metadata"]["name"]) == {
        "k8s.replicaset.pod.desired": 2,
        "k8s.replicaset.pod.available": 2,
    }
    assert resource_of(cluster, k8s_replicaset_name=owned["metadata"]["name"]).resource["k8s.deployment.name"] == "web"
    assert gathered(cluster, k8s_statefulset_name="db") == {
        "k8s.statefulset.pod.desired": 1,
        "k8s.statefulset.pod.ready": 1,
        "k8s.statefulset.pod.current": 1,
        "k8s.statefulset.pod.updated": 1,
    }
    assert gathered(cluster, k8s_daemonset_name="logs") == {
        "k8s.daemonset.node.desired_scheduled": 1,
        "k8s.daemonset.node.current_scheduled": 1,
        "k8s.daemonset.node.misscheduled": 0,
        "k8s.daemonset.node.ready": 1,
        "irca.k8s.daemonset.node.updated": 1,
        "irca.k8s.daemonset.node.unavailable": 0,
    }


def test_jobs_and_cron_jobs_are_told_by_how_far_they_are(cluster):
    assert gathered(cluster, k8s_job_name="once") == {
        "k8s.job.pod.active": 0,
        "k8s.job.pod.failed": 0,
        "k8s.job.pod.successful": 2,
        "k8s.job.pod.desired_successful": 2,
        "k8s.job.pod.max_parallel": 2,
    }
    nightly = recorded("jobs", "nightly-")["metadata"]["name"]
    assert gathered(cluster, k8s_job_name=nightly)["k8s.job.pod.successful"] == 1
    assert resource_of(cluster, k8s_job_name=nightly).resource["k8s.cronjob.name"] == "nightly"
    assert gathered(cluster, k8s_cronjob_name="nightly")["k8s.cronjob.job.active"] >= 1


def test_autoscalers_claims_and_disruption_budgets(cluster):
    assert gathered(cluster, k8s_hpa_name="web") == {
        "k8s.hpa.pod.min": 2,
        "k8s.hpa.pod.max": 5,
        "k8s.hpa.pod.current": 2,
        "k8s.hpa.pod.desired": 0,
    }
    bound = gathered(cluster, k8s_persistentvolumeclaim_name="data")
    assert bound["k8s.persistentvolumeclaim.status.phase|Bound"] == 1
    assert bound["k8s.persistentvolumeclaim.storage.request"] == bound["k8s.persistentvolumeclaim.storage.capacity"] == 1024**3
    waiting = gathered(cluster, k8s_persistentvolumeclaim_name="waiting")
    assert waiting["k8s.persistentvolumeclaim.status.phase|Pending"] == 1
    assert "k8s.persistentvolumeclaim.storage.capacity" not in waiting
    assert gathered(cluster, irca_k8s_poddisruptionbudget_name="web") == {
        "irca.k8s.poddisruptionbudget.pod.expected": 2,
        "irca.k8s.poddisruptionbudget.pod.desired_healthy": 1,
        "irca.k8s.poddisruptionbudget.pod.current_healthy": 2,
        "irca.k8s.poddisruptionbudget.disruption.allowed": 1,
    }


def test_a_namespace_quota_is_told_by_hard_and_used(cluster):
    found = gathered(cluster, k8s_resourcequota_name="team")

    assert found["k8s.resourcequota.object_count.hard|pods"] == 12
    assert found["k8s.resourcequota.object_count.used|pods"] == 12
    assert found["k8s.resourcequota.cpu.request.hard"] == 2
    assert 0 < found["k8s.resourcequota.cpu.request.used"] < 2
    assert found["k8s.resourcequota.storage.request.used"] == 3 * 1024**3
    assert found["k8s.resourcequota.persistentvolumeclaim_count.used"] == 2
    assert found["k8s.resourcequota.memory.limit.hard"] == 2 * 1024**3


def test_objects_that_no_controller_has_looked_at_yet_have_no_figures_of_it():
    watched = Watched()
    quota, budget, claim = recorded("resourcequotas")[0], recorded("poddisruptionbudgets")[0], recorded("persistentvolumeclaims", "waiting")
    for item in (quota, budget, claim):
        item["status"] = {}
    watched.hold("resourcequotas", quota)
    watched.hold("poddisruptionbudgets", budget)
    watched.hold("persistentvolumeclaims", claim)
    watched.sync()

    collection = watched.collect()

    assert set(outcome(collection).values()) == {""}
    assert gathered(collection, k8s_resourcequota_name="team") == {}
    assert gathered(collection, irca_k8s_poddisruptionbudget_name="web") == {}
    assert gathered(collection, k8s_persistentvolumeclaim_name="waiting")["k8s.persistentvolumeclaim.status.phase|Pending"] == 1


def test_what_a_spec_leaves_out_has_the_apis_defaults():
    watched = Watched()
    deployment, job, scaler = recorded("deployments")[0], recorded("jobs", "once"), recorded("horizontalpodautoscalers")[0]
    for item, keys in ((deployment, ["replicas"]), (job, ["completions", "parallelism"]), (scaler, ["minReplicas"])):
        for key in keys:
            del item["spec"][key]
    watched.hold("deployments", deployment)
    watched.hold("jobs", job)
    watched.hold("horizontalpodautoscalers", scaler)
    watched.sync()

    collection = watched.collect()

    assert gathered(collection, k8s_deployment_name="web")["k8s.deployment.pod.desired"] == 1
    assert gathered(collection, k8s_job_name="once")["k8s.job.pod.desired_successful"] == 1
    assert gathered(collection, k8s_hpa_name="web")["k8s.hpa.pod.min"] == 1


def test_every_kind_of_quota_has_its_name():
    hard = {
        "cpu": "1",
        "requests.cpu": "1",
        "limits.cpu": "2",
        "requests.memory": "1Gi",
        "limits.memory": "2Gi",
        "requests.ephemeral-storage": "1G",
        "limits.ephemeral-storage": "2G",
        "requests.storage": "5Gi",
        "gold.storageclass.storage.k8s.io/requests.storage": "3Gi",
        "persistentvolumeclaims": "4",
        "gold.storageclass.storage.k8s.io/persistentvolumeclaims": "2",
        "hugepages-2Mi": "8Mi",
        "requests.nvidia.com/gpu": "2",
        "count/deployments.apps": "9",
        "broken": "many",
    }

    metrics = quota_metrics(hard, {})

    assert values(metrics) == {
        "k8s.resourcequota.cpu.request.hard": 1,
        "k8s.resourcequota.cpu.limit.hard": 2,
        "k8s.resourcequota.memory.request.hard": 1024**3,
        "k8s.resourcequota.memory.limit.hard": 2 * 1024**3,
        "k8s.resourcequota.ephemeral_storage.request.hard": 1e9,
        "k8s.resourcequota.ephemeral_storage.limit.hard": 2e9,
        "k8s.resourcequota.storage.request.hard": 5 * 1024**3,
        "k8s.resourcequota.storage.request.hard|gold": 3 * 1024**3,
        "k8s.resourcequota.persistentvolumeclaim_count.hard": 4,
        "k8s.resourcequota.persistentvolumeclaim_count.hard|gold": 2,
        "k8s.resourcequota.hugepage_count.request.hard|2Mi": 4,
        "irca.k8s.resourcequota.extended_resource.hard|nvidia.com/gpu": 2,
        "k8s.resourcequota.object_count.hard|count/deployments.apps": 9,
    }
    assert [m.name for m in metrics] == sorted(m.name for m in metrics)


@pytest.mark.parametrize(
    ("text", "expected"), [("100m", 0.1), ("1.5Gi", 1.5 * 1024**3), ("1e3", 1000), ("", None), ("x", None), (None, None)]
)
def test_quantities_are_numbers(text, expected):
    assert quantity(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1970-01-01T00:00:01Z", 1.0), ("1970-01-01T00:00:01.5+00:00", 1.5), ("yesterday", None), (None, None), (7, None)],
)
def test_times_are_seconds(text, expected):
    assert timestamp(text) == expected


def test_the_table_says_of_every_metric_who_sends_it_and_what_it_means():
    for row in TABLE:
        assert re.fullmatch(r"kubernetes\.[a-z]+", row.collector)
        assert row.meaning
        assert row.resource
