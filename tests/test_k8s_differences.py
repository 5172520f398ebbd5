"""How pod templates differ, and how it is told."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.kubernetes.difference import MAX_KEYS, MAX_TEXT, Telling, difference_attributes, differences, digest, summary
from connectors.kubernetes.template_difference import TELLING, describe, images
from connectors.kubernetes.trim import hasher, template

TEMPLATE = {
    "metadata": {"labels": {"app": "web", "pod-template-hash": "1"}, "annotations": {"checksum/config": "1"}},
    "spec": {
        "initContainers": [{"name": "migrate", "image": "shop/migrate:1"}],
        "containers": [
            {
                "name": "app",
                "image": "shop/web:1",
                "imagePullPolicy": "Always",
                "command": ["serve", "--password=hunter2"],
                "args": ["--port", "80"],
                "env": [
                    {"name": "PASSWORD", "value": "hunter2"},
                    {"name": "EMPTY"},
                    {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "shop", "key": "token"}}},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                ],
                "envFrom": [{"configMapRef": {"name": "settings"}, "prefix": "S_"}, {"secretRef": {"name": "more"}}],
                "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "10m"}},
                "ports": [{"containerPort": 80, "name": "http"}],
                "livenessProbe": {"httpGet": {"path": "/", "port": 80, "httpHeaders": [{"name": "Authorization", "value": "hunter2"}]}},
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                "volumeDevices": [{"name": "raw", "devicePath": "/dev/raw"}],
                "securityContext": {"runAsUser": 0, "privileged": False, "capabilities": {"drop": ["ALL"]}},
                "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},
                "workingDir": "/srv",
            }
        ],
        "volumes": [{"name": "data", "emptyDir": {}}],
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "serviceAccountName": "web",
        "priorityClassName": "high",
        "hostNetwork": True,
        "terminationGracePeriodSeconds": 30,
        "securityContext": {"fsGroup": 1},
        "affinity": {"podAntiAffinity": {}},
        "hostAliases": [{"ip": "10.0.0.1"}],
    },
}


def changed(edit):
    """What a template's edit is told as."""
    after = copy.deepcopy(TEMPLATE)
    edit(after["spec"]["containers"][0], after["spec"], after["metadata"])
    hashed = hasher(b"salt")
    old, new = describe(template(TEMPLATE, hashed)), describe(template(after, hashed))
    return dict(difference_attributes(old, new, differences(old, new), TELLING))


def set_in(where, *path, to):
    """An edit that sets one thing in the container (0), the spec (1) or the metadata (2)."""

    def edit(*held):
        target = held[where]
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = to

    return edit


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (set_in(0, "image", to="shop/web:2"), {"image.from": ["app=shop/web:1"], "image.to": ["app=shop/web:2"]}),
        (set_in(0, "imagePullPolicy", to="Never"), {"pull_policy.from": ["app=Always"], "pull_policy.to": ["app=Never"]}),
        (
            set_in(0, "resources", to={"limits": {"memory": "1Gi"}}),
            {
                "resources.from": ["app.requests.cpu=10m", "app.limits.memory=64Mi"],
                "resources.to": ["app.limits.memory=1Gi"],
            },
        ),
        (set_in(0, "envFrom", to=[]), {"env_from.removed": ["app.configMapRef:settings", "app.secretRef:more"]}),
        (set_in(0, "ports", to=[{"containerPort": 81}]), {"ports.added": ["app.81/TCP"], "ports.removed": ["app.80/TCP"]}),
        (set_in(0, "livenessProbe", "httpGet", "port", to=81), {"probes.changed": ["app.livenessProbe"]}),
        (set_in(0, "readinessProbe", to={"tcpSocket": {}}), {"probes.added": ["app.readinessProbe"]}),
        (set_in(0, "volumeMounts", 0, "readOnly", to=True), {"volume_mounts.changed": ["app./data"]}),
        (set_in(0, "volumeDevices", to=[]), {"volume_mounts.removed": ["app./dev/raw"]}),
        (
            set_in(0, "securityContext", "privileged", to=True),
            {"security.from": ["app.privileged=false"], "security.to": ["app.privileged=true"]},
        ),
        (
            set_in(0, "securityContext", "capabilities", to={"add": ["NET_ADMIN"], "drop": ["ALL"]}),
            {"security.from": [], "security.to": ["app.capabilities.add=NET_ADMIN"]},
        ),
        (set_in(0, "lifecycle", to=None), {"lifecycle.removed": ["app.lifecycle"]}),
        (set_in(0, "workingDir", to="/"), {"other.changed": ["app.workingDir"]}),
        (set_in(1, "securityContext", "fsGroup", to=2), {"security.from": ["pod.fsGroup=1"], "security.to": ["pod.fsGroup=2"]}),
        (set_in(1, "volumes", to=[]), {"volumes.removed": ["data"]}),
        (set_in(1, "volumes", 0, "emptyDir", to={"medium": "Memory"}), {"volumes.changed": ["data"]}),
        (
            set_in(1, "nodeSelector", to={"disk": "hdd"}),
            {"node_selector.from": ["disk=ssd"], "node_selector.to": ["disk=hdd"]},
        ),
        (set_in(1, "serviceAccountName", to="x"), {"service_account.from": ["pod=web"], "service_account.to": ["pod=x"]}),
        (set_in(1, "priorityClassName", to=""), {"priority_class.from": ["pod=high"], "priority_class.to": []}),
        (set_in(1, "hostNetwork", to=False), {"network.from": ["hostNetwork=true"], "network.to": []}),
        (
            set_in(1, "terminationGracePeriodSeconds", to=0),
            {"termination.from": ["terminationGracePeriodSeconds=30"], "termination.to": ["terminationGracePeriodSeconds=0"]},
        ),
        (set_in(1, "affinity", to={"nodeAffinity": {}}), {"other.changed": ["affinity"]}),
        (set_in(1, "hostAliases", to=[]), {"other.removed": ["hostAliases"]}),
        (set_in(2, "labels", to={"app": "web", "team": "a"}), {"labels.added": ["team"]}),
        (set_in(2, "labels", "pod-template-hash", to="2"), {}),
    ],
)
def test_each_part_of_a_template_is_told(edit, told):
    parts = sorted({key.partition(".")[0] for key in told})
    assert changed(edit) == {"irca.k8s.changed": parts} | {f"irca.k8s.change.{key}": value for key, value in told.items()}


def test_values_that_may_be_secret_are_told_by_key_and_keyed_hash():
    def edit(container, _spec, metadata):
        container["env"] = [
            {"name": "PASSWORD", "value": "hunter3"},
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "shop", "key": "token-2"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "NEW", "value": "hunter4"},
            {"name": "ODD", "valueFrom": {}},
        ]
        container["command"] = ["serve", "--password=hunter5"]
        metadata["annotations"] = {"checksum/config": "2"}

    told = changed(edit)

    assert told["irca.k8s.change.env.added"] == ["app.NEW", "app.ODD"]
    assert told["irca.k8s.change.env.removed"] == ["app.EMPTY"]
    assert told["irca.k8s.change.env.changed"] == ["app.PASSWORD", "app.TOKEN"]
    assert told["irca.k8s.change.command.changed"] == ["app"]
    assert "env.app.TOKEN=secretKeyRef:shop/token-2" in told["irca.k8s.change.hashes"]
    assert f"env.app.PASSWORD={hasher(b'salt')('hunter3')}" in told["irca.k8s.change.hashes"]
    assert "hunter" not in repr(told)


def test_an_added_container_is_told_by_all_that_it_brings():
    told = changed(lambda _c, spec, _m: spec["containers"].append({"name": "proxy", "image": "envoy:1", "args": ["-c"]}))
    assert told["irca.k8s.change.containers.added"] == ["proxy"]
    assert told["irca.k8s.change.image.to"] == ["proxy=envoy:1"]
    assert told["irca.k8s.change.args.added"] == ["proxy"]


def test_a_toleration_is_told_as_added_or_removed():
    told = changed(lambda _c, spec, _m: spec["tolerations"].append({"operator": "Exists"}))
    assert len(told["irca.k8s.change.tolerations.added"]) == 1


def test_templates_that_do_not_differ_have_no_differences():
    found = describe(template(TEMPLATE, hasher(b"salt")))
    assert differences(found, found) == {}
    assert summary({}, TELLING) == ""


def test_an_empty_template_can_be_described():
    assert not any(describe({}).values())
    assert images({}) == []


def test_images_are_told_once_each_in_order():
    spec = {"initContainers": [{"image": "a"}], "containers": [{"image": "b"}, {"image": "a"}, {"name": "none"}]}
    assert images({"spec": spec}) == ["a", "b"]


def test_what_differs_is_summed_up_in_words():
    before, after = {"image": {"app": "1"}, "env": {"a": "1", "b": "1"}}, {"image": {"app": "2"}, "env": {"a": "2"}, "env_from": {"x": ""}}
    assert summary(differences(before, after), TELLING) == "env (2 keys), env from (1 key), image"


def test_lists_and_their_entries_are_bounded():
    after = {"data": {f"{number:03}{'x' * 1000}": "" for number in range(500)}}
    told = dict(difference_attributes({}, after, differences({}, after), Telling()))
    assert len(told["irca.k8s.change.data.added"]) == MAX_KEYS
    assert max(map(len, told["irca.k8s.change.data.added"])) == MAX_TEXT


parts = st.dictionaries(st.sampled_from("abc"), st.dictionaries(st.sampled_from("xyz"), st.sampled_from("12"), max_size=3), max_size=3)


@given(parts, parts)
def test_keys_are_told_once_by_what_became_of_them(before, after):
    for part, difference in differences(before, after).items():
        old, new = before.get(part, {}), after.get(part, {})
        assert set(difference.added) == new.keys() - old.keys()
        assert set(difference.removed) == old.keys() - new.keys()
        assert set(difference.changed) == {key for key in old.keys() & new.keys() if old[key] != new[key]}
        assert len(set(difference.keys)) == len(difference.keys) > 0


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
