"""What is watched and what is kept of it: pure functions, and the accesses that follow from them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.kubernetes import discovery, trim
from connectors.kubernetes.access import Access, needed
from connectors.kubernetes.config import DEFAULT_FEATURES, K8sAgentConfig
from connectors.kubernetes.kinds import CORE, KINDS, kinds, of_features
from connectors.kubernetes.salt import kept_salt

HASHED = trim.hasher(b"salt")
TABLE = kinds(b"salt")
META = {"name": "web", "namespace": "shop", "uid": "u1", "resourceVersion": "7", "generation": 2, "selfLink": "/gone"}


def container(**more):
    return {"name": "app", "image": "web:1", "resources": {"limits": {"cpu": "1"}}, **more}


def test_a_pod_keeps_where_it_runs_and_how_its_containers_are():
    pod = TABLE["pods"].trim(
        {
            "metadata": {**META, "labels": {"app.kubernetes.io/version": "3", "helm.sh/chart": "web-1", "team/secret": "x"}},
            "spec": {
                "nodeName": "n1",
                "containers": [container(env=[{"name": "A", "value": "s3cr3t"}], volumeMounts=[{}])],
                "volumes": [{}],
                "tolerations": [{}],
            },
            "status": {
                "phase": "Running",
                "hostIP": "10.0.0.1",
                "containerStatuses": [
                    {"name": "app", "restartCount": 3, "ready": False, "lastState": {"terminated": {"message": "m" * 5000}}, "hmm": 1}
                ],
            },
        }
    )
    assert pod["metadata"]["labels"] == {"app.kubernetes.io/version": "3", "helm.sh/chart": "web-1"}
    assert pod["spec"] == {"nodeName": "n1", "containers": [{"name": "app", "image": "web:1", "resources": {"limits": {"cpu": "1"}}}]}
    [status] = pod["status"]["containerStatuses"]
    assert status["restartCount"] == 3
    assert status["ready"] is False
    assert len(status["lastState"]["terminated"]["message"]) == trim.MAX_MESSAGE + 1
    assert "s3cr3t" not in json.dumps(pod)
    assert "selfLink" not in pod["metadata"]


def test_a_template_is_kept_in_full_but_for_what_may_be_secret():
    template = {
        "metadata": {"labels": {"app": "web"}, "annotations": {"kubectl.kubernetes.io/restartedAt": "now", "checksum/config": "abc"}},
        "spec": {
            "serviceAccountName": "web",
            "tolerations": [{"key": "a", "operator": "Equal", "value": "b"}],
            "containers": [
                container(
                    env=[
                        {"name": "PASSWORD", "value": "s3cr3t"},
                        {"name": "REF", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                    ],
                    command=["run", "--password=s3cr3t"],
                    livenessProbe={"httpGet": {"path": "/", "httpHeaders": [{"name": "Authorization", "value": "s3cr3t"}]}},
                    lifecycle={"preStop": {"exec": {"command": ["say", "s3cr3t"]}}},
                )
            ],
        },
    }
    for kind in ("deployments", "replicasets", "statefulsets", "daemonsets", "jobs"):
        kept = TABLE[kind].trim({"metadata": META, "spec": {"replicas": 3, "template": template}, "status": {"replicas": 3}})
        made = kept["spec"]["template"]
        assert "s3cr3t" not in json.dumps(kept)
        assert made["spec"]["containers"][0]["env"][0] == {"name": "PASSWORD", "value": HASHED("s3cr3t")}
        assert made["spec"]["containers"][0]["env"][1]["valueFrom"] == {"secretKeyRef": {"name": "s", "key": "k"}}
        assert made["spec"]["containers"][0]["command"] == [HASHED("run"), HASHED("--password=s3cr3t")]
        assert made["spec"]["tolerations"][0]["value"] == "b"
        assert made["metadata"]["annotations"] == {"kubectl.kubernetes.io/restartedAt": "now", "checksum/config": HASHED("abc")}
    cron = TABLE["cronjobs"].trim(
        {
            "metadata": META,
            "spec": {"schedule": "* * * * *", "suspend": False, "jobTemplate": {"spec": {"template": template}}},
            "status": {},
        }
    )
    assert "s3cr3t" not in json.dumps(cron)
    assert cron["spec"]["suspend"] is False


@given(st.dictionaries(st.text(max_size=8), st.text(min_size=6, max_size=30).filter(lambda t: not set(t) <= set("0123456789abcdef"))))
def test_no_value_of_a_config_map_or_secret_is_kept(data):
    for kind in ("configmaps", "secrets"):
        kept = TABLE[kind].trim({"metadata": META, "data": data, "type": "Opaque"})
        assert kept.get("data", {}) == {key: HASHED(value) for key, value in data.items()}
        assert kept["metadata"]["name"] == "web"
    assert "type" in TABLE["secrets"].trim({"metadata": META, "type": "Opaque"})


def test_hashes_of_different_agents_cannot_be_compared():
    item = {"metadata": META, "data": {"a": "b"}, "binaryData": {"c": "ZA=="}}
    one, other = kinds(b"1")["configmaps"].trim(item), kinds(b"2")["configmaps"].trim(item)
    assert one["data"].keys() == other["data"].keys()
    assert one["data"] != other["data"]
    assert set(one["binaryData"]) == {"c"}


def test_of_a_helm_release_only_name_version_and_status_are_kept():
    kept = TABLE["secrets"].trim(
        {
            "metadata": {
                **META,
                "name": "sh.helm.release.v1.web.v12",
                "labels": {"name": "web", "owner": "helm", "status": "deployed", "version": "12", "x": "y"},
            },
            "type": "helm.sh/release.v1",
            "data": {"release": "H4sI"},
        }
    )
    assert kept["metadata"]["labels"] == {"name": "web", "owner": "helm", "status": "deployed", "version": "12"}
    assert "data" not in kept


def test_a_node_keeps_its_conditions_without_their_heartbeats():
    kept = TABLE["nodes"].trim(
        {
            "metadata": {"name": "n1", "uid": "u", "labels": {"topology.kubernetes.io/zone": "a"}},
            "spec": {"unschedulable": True, "podCIDR": "10.0.0.0/24"},
            "status": {
                "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}],
                "images": [{"names": ["a"]}],
                "allocatable": {"cpu": "2"},
            },
        }
    )
    assert kept["status"] == {"allocatable": {"cpu": "2"}, "conditions": [{"type": "Ready", "status": "True"}]}
    assert kept["spec"] == {"unschedulable": True}
    assert kept["metadata"]["labels"] == {"topology.kubernetes.io/zone": "a"}


def test_whoever_wrote_more_than_a_status_last_is_the_one_who_changed_it():
    entries = [
        {"manager": "kubectl", "operation": "Update", "time": "2026-01-01T10:00:00Z", "fieldsV1": {"f:spec": {}, "f:metadata": {}}},
        {"manager": "helm", "operation": "Update", "time": "2026-01-01T11:00:00Z", "fieldsV1": {"f:spec": {}}},
        {"manager": "kube-controller-manager", "operation": "Update", "time": "2026-01-01T12:00:00Z", "fieldsV1": {"f:status": {}}},
    ]
    assert trim.last_manager(entries) == {"manager": "helm", "operation": "Update", "time": "2026-01-01T11:00:00Z"}
    assert trim.last_manager(entries[2:])["manager"] == "kube-controller-manager"
    assert trim.last_manager([]) == {}


def test_metadata_tells_owners_and_why():
    kept = trim.metadata(
        {
            **META,
            "annotations": {"kubernetes.io/change-cause": "a fix", "kubectl.kubernetes.io/last-applied-configuration": "{...}"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "web-1", "uid": "u", "controller": True, "blockOwnerDeletion": True}],
            "managedFields": [{"manager": "helm", "time": "t", "fieldsV1": {"f:spec": {}}}],
        }
    )
    assert kept["annotations"] == {"kubernetes.io/change-cause": "a fix"}
    assert kept["ownerReferences"] == [{"kind": "ReplicaSet", "name": "web-1", "uid": "u", "controller": True}]
    assert kept["managedFields"] == [{"manager": "helm", "time": "t"}]


@pytest.mark.parametrize("name", list(KINDS))
def test_every_kind_takes_an_object_with_nothing_in_it(name):
    kept = KINDS[name].trim({"metadata": {"name": "x"}})
    assert kept["metadata"] == {"name": "x"}
    assert KINDS[name].trim({})["metadata"] == {}


@pytest.mark.parametrize(
    ("name", "item", "kept"),
    [
        ("roles", {"rules": [{"verbs": ["get"]}]}, {"rules": [{"verbs": ["get"]}]}),
        ("clusterrolebindings", {"roleRef": {"name": "r"}, "subjects": [{"name": "s"}]}, {"roleRef": {"name": "r"}}),
        ("horizontalpodautoscalers", {"spec": {"maxReplicas": 3}, "status": {"currentReplicas": 0}}, {"status": {"currentReplicas": 0}}),
        (
            "resourcequotas",
            {"status": {"hard": {"pods": "1"}, "used": {"pods": "0"}}},
            {"status": {"hard": {"pods": "1"}, "used": {"pods": "0"}}},
        ),
        ("persistentvolumeclaims", {"status": {"phase": "Bound", "x": 1}}, {"status": {"phase": "Bound"}}),
        ("poddisruptionbudgets", {"spec": {"minAvailable": 1}, "status": {"disruptionsAllowed": 0}}, {"spec": {"minAvailable": 1}}),
        ("events", {"reason": "Failed", "message": "m", "count": 4, "involvedObject": {"name": "p"}}, {"reason": "Failed", "count": 4}),
        ("namespaces", {"status": {"phase": "Active"}}, {"status": {"phase": "Active"}}),
    ],
)
def test_what_metrics_and_changes_are_made_of_is_kept(name, item, kept):
    found = KINDS[name].trim({"metadata": META, **item})
    assert kept.items() <= found.items()


def test_secrets_are_off_unless_asked_for():
    assert "secrets" not in {kind.name for kind in of_features(KINDS, DEFAULT_FEATURES)}
    assert "secrets" in {kind.name for kind in of_features(KINDS, ("secrets",))}
    assert {kind.name for kind in of_features(KINDS, ())} == {"nodes", "namespaces", "pods"}
    assert {kind.feature for kind in KINDS.values()} - {CORE} == set(K8sAgentConfig.options()["features"].default) | {"secrets"}


def test_the_accesses_follow_the_features_and_only_read():
    everything = needed(K8sAgentConfig(features=(*DEFAULT_FEATURES, "secrets")))
    assert {a.verb for a in everything if a.resource != "leases"} == {"get", "list", "watch"}
    assert {(a.verb, a.namespaced) for a in everything if a.resource == "leases"} == {(v, True) for v in ("create", "get", "update")}
    assert {a.resource for a in everything} == {*KINDS, "leases"}
    assert "secrets" not in {a.resource for a in needed(K8sAgentConfig())}
    assert {a.resource for a in needed(K8sAgentConfig(features=()))} == {"nodes", "namespaces", "pods", "leases"}
    assert {a.feature for a in everything if a.resource == "secrets"} == {"secrets"}


def test_the_node_view_reads_its_node_and_its_kubelet_and_no_proxy():
    found = needed(K8sAgentConfig(view="node"))
    assert {a.verb for a in found} == {"get"}
    assert {a.resource for a in found} == {"namespaces", "nodes", "nodes/stats"}


def test_a_rule_is_told_in_words():
    assert Access("list", "apps", "deployments").rule == "verb list on resource deployments (API group apps)"
    assert Access("list", "", "pods").rule == "verb list on resource pods (API group core)"


GROUPS = {"groups": [{"name": "batch", "versions": [{"version": "v1"}, {"version": "v1beta1"}]}]}


def resources(*names, verbs=("list", "watch")):
    return {"resources": [{"name": name, "verbs": list(verbs)} for name in names]}


def test_the_newest_version_that_has_a_kind_is_chosen():
    served = discovery.group_versions(GROUPS)
    kind = KINDS["cronjobs"]
    assert discovery.candidates(kind, served) == ["/apis/batch/v1", "/apis/batch/v1beta1"]
    old = {"/apis/batch/v1": resources("jobs"), "/apis/batch/v1beta1": resources("cronjobs")}
    new = {"/apis/batch/v1": resources("jobs", "cronjobs"), "/apis/batch/v1beta1": resources("cronjobs")}
    assert discovery.path_of(kind, served, old) == "/apis/batch/v1beta1/cronjobs"
    assert discovery.path_of(kind, served, new) == "/apis/batch/v1/cronjobs"
    assert discovery.path_of(KINDS["pods"], served, {"/api/v1": resources("pods")}) == "/api/v1/pods"


def test_a_kind_that_is_not_served_or_cannot_be_watched_has_no_path():
    served = discovery.group_versions(GROUPS)
    assert discovery.path_of(KINDS["deployments"], served, {}) is None
    assert discovery.path_of(KINDS["jobs"], served, {"/apis/batch/v1": resources("jobs", verbs=("get",))}) is None
    assert discovery.path_of(KINDS["jobs"], discovery.group_versions({}), {}) is None


def test_the_salt_is_kept_for_its_owner_only(tmp_path):
    salt = kept_salt(tmp_path / "state")
    assert kept_salt(tmp_path / "state") == salt
    [file] = (tmp_path / "state").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_bytes(b"short")
    assert kept_salt(tmp_path / "state") != salt


def test_a_salt_that_cannot_be_kept_lasts_as_long_as_the_process(tmp_path):
    (tmp_path / "file").write_text("")
    assert len(kept_salt(tmp_path / "file")) == 32
