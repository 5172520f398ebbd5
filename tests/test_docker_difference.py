"""How a container differs from its predecessor, and what of it leaves the host."""

from __future__ import annotations

import copy
import json

import pytest

from app.events.catalogue import CATALOGUE
from connectors.docker.difference import (
    Description,
    describe,
    difference_attributes,
    differences,
    hasher,
    key_of,
    summary,
)

SALT = b"s" * 32


def inspection(**changes):
    """An inspection as Docker 20.10 gives it, shortened; ``changes`` go into Config, HostConfig or to the top by their names."""
    made = {
        "Id": "1" * 64,
        "Name": "/web",
        "Image": "sha256:" + "a" * 64,
        "Mounts": [{"Type": "volume", "Name": "data", "Source": "/var/lib/docker/volumes/data/_data", "Destination": "/data", "RW": True}],
        "Config": {
            "Image": "shop/web:1",
            "User": "",
            "Env": ["PATH=/bin", "DB_PASSWORD=hunter2"],
            "Cmd": ["serve", "--token", "abc123"],
            "Entrypoint": None,
            "Labels": {"team": "shop", "secret-label": "xyzzy"},
        },
        "HostConfig": {
            "NetworkMode": "default",
            "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]},
            "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
            "CapAdd": None,
            "CapDrop": ["ALL"],
            "Privileged": False,
            "Memory": 50331648,
            "PidsLimit": None,
            "Ulimits": [],
        },
        "NetworkSettings": {"Networks": {"bridge": {}}},
    }
    for key, value in changes.items():
        holder = next((made[part] for part in ("Config", "HostConfig") if key in made[part]), made)
        holder[key] = value
    return made


def described(digests=(), **changes):
    return describe(inspection(**changes), hasher(SALT), digests)


def told(before, after):
    found = differences(before.parts, after.parts)
    return dict(difference_attributes(before.parts, after.parts, found))


def changed(**changes):
    return told(described(), described(**changes))


def test_a_container_made_again_the_same_way_differs_in_nothing():
    again = described(Id="2" * 64, Hostname="222222222222")

    assert differences(described().parts, again.parts) == {}


@pytest.mark.parametrize(
    ("change", "attributes"),
    [
        ({"Memory": 25165824}, {"limits.from": ["Memory=50331648"], "limits.to": ["Memory=25165824"]}),
        ({"Memory": 0}, {"limits.from": ["Memory=50331648"], "limits.to": []}),
        ({"Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}]}, {"limits.from": [], "limits.to": ["Ulimit.nofile=1:2"]}),
        ({"RestartPolicy": {"Name": "always"}}, {"restart_policy.from": ["on-failure:3"], "restart_policy.to": ["always"]}),
        ({"User": "app"}, {"user.from": [""], "user.to": ["app"]}),
        ({"Privileged": True}, {"privileged.from": ["false"], "privileged.to": ["true"]}),
        ({"CapAdd": ["CAP_NET_ADMIN"]}, {"capabilities.added": ["+NET_ADMIN"]}),
        ({"CapDrop": None}, {"capabilities.removed": ["-ALL"]}),
        ({"NetworkSettings": {"Networks": {"shop": {}}}}, {"networks.added": ["shop"], "networks.removed": ["bridge"]}),
        (
            {"PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "81"}]}},
            {"ports.changed": ["80/tcp"], "ports.from": ["80/tcp=*:8080"], "ports.to": ["80/tcp=127.0.0.1:81"]},
        ),
        ({"PublishAllPorts": True, "PortBindings": {}}, {"ports.removed": ["80/tcp"], "ports.from": ["80/tcp=*:8080"], "ports.to": []}),
        ({"Mounts": []}, {"mounts.removed": ["/data"]}),
        (
            {"Labels": {"team": "other", "new": ""}},
            {"labels.added": ["new"], "labels.changed": ["team"], "labels.removed": ["secret-label"]},
        ),
        ({"ReadonlyRootfs": True}, {}),
    ],
)
def test_what_differs_is_told(change, attributes):
    found = changed(**change)

    part = next(iter(attributes), "").partition(".")[0]
    assert found["irca.container.changed"] == ([part] if part else [])
    rest = {key.removeprefix("irca.container.change."): value for key, value in found.items() if key != "irca.container.changed"}
    assert rest == attributes


@pytest.mark.parametrize(
    ("part", "host", "config"),
    [
        ("security", {"ReadonlyRootfs": True}, {}),
        ("security", {"SecurityOpt": ["no-new-privileges"]}, {}),
        ("ports", {"PublishAllPorts": True}, {}),
        ("mounts", {"Tmpfs": {"/tmp": "size=1m"}}, {}),
        ("devices", {"Devices": [{"PathInContainer": "/dev/fuse"}]}, {}),
        ("hosts", {"ExtraHosts": ["db:10.0.0.1"]}, {}),
        ("logging", {"LogConfig": {"Type": "journald", "Config": {}}}, {}),
        ("healthcheck", {}, {"Healthcheck": {"Test": ["CMD", "true"]}}),
        ("working_dir", {}, {"WorkingDir": "/srv"}),
        ("stop", {}, {"StopSignal": "SIGQUIT"}),
        ("entrypoint", {}, {"Entrypoint": ["/init"]}),
        ("command", {}, {"Cmd": ["serve"]}),
        ("tty", {}, {"Tty": True}),
    ],
)
def test_every_part_of_a_configuration_is_compared(part, host, config):
    other = copy.deepcopy(inspection())
    other["HostConfig"].update(host)
    other["Config"].update(config)

    assert told(described(), describe(other, hasher(SALT)))["irca.container.changed"] == [part]


def test_values_never_leave_but_keys_and_keyed_hashes_do():
    found = changed(Env=["PATH=/bin", "DB_PASSWORD=correct horse", "API_TOKEN=s3cr3t"], Cmd=["serve", "--token", "zzz999"])

    assert found["irca.container.change.env.added"] == ["API_TOKEN"]
    assert found["irca.container.change.env.changed"] == ["DB_PASSWORD"]
    assert [entry.partition("=")[0] for entry in found["irca.container.change.hashes"]] == ["command", "env.API_TOKEN", "env.DB_PASSWORD"]
    everything = json.dumps(found) + described().to_json()
    for value in ("hunter2", "correct horse", "s3cr3t", "abc123", "zzz999", "xyzzy"):
        assert value not in everything
    other = describe(inspection(), hasher(b"t" * 32))
    assert other.parts["env"]["DB_PASSWORD"] != described().parts["env"]["DB_PASSWORD"]


def test_another_image_is_told_with_both_ids_and_digests():
    before = described(digests=["shop/web@sha256:11"])
    other = inspection() | {"Image": "sha256:" + "b" * 64}

    found = told(before, describe(other, hasher(SALT), ["shop/web@sha256:22"]))

    assert found["irca.container.changed"] == ["image"]
    assert set(found["irca.container.change.image.from"]) == {f"id=sha256:{'a' * 64}", "digests=shop/web@sha256:11"}
    assert set(found["irca.container.change.image.to"]) == {f"id=sha256:{'b' * 64}", "digests=shop/web@sha256:22"}


def test_an_image_that_merely_was_pushed_is_no_other_image():
    assert told(described(), described(digests=["shop/web@sha256:11"])) == {"irca.container.changed": []}


def test_anonymous_volumes_and_composes_own_labels_are_no_difference():
    volumes = [[{"Type": "volume", "Name": c * 64, "Destination": "/cache", "RW": True}] for c in "ab"]
    labels = [{"com.docker.compose.replace": c, "com.docker.compose.config-hash": c} for c in "ab"]

    before, after = (described(Mounts=v, Labels=each) for v, each in zip(volumes, labels, strict=True))

    assert differences(before.parts, after.parts) == {}


def test_a_successor_is_known_by_name_or_by_its_place_in_compose():
    compose = {"com.docker.compose.project": "shop", "com.docker.compose.service": "web", "com.docker.compose.container-number": "2"}

    assert key_of("shop-web-2", compose) == key_of("0123456789ab_shop-web-2", compose)
    assert key_of("web", {}) != key_of("web2", {})
    assert key_of("web", {}) == key_of("web", {"team": "shop"})
    oneoff = compose | {"com.docker.compose.oneoff": "True"}
    assert key_of("shop-web-run-1", oneoff) != key_of("shop-web-run-2", oneoff)


def test_descriptions_survive_the_disk_and_damage_is_not_believed():
    one = described()

    assert Description.from_json(one.to_json()) == one
    assert Description.from_json("{") is None
    assert Description.from_json('{"id": 1, "name": "x", "parts": {"env": 3}}') is None


def test_parts_that_one_side_lacks_are_not_compared():
    before = described()
    older = {part: entries for part, entries in before.parts.items() if part != "limits"}

    assert differences(older, described(Memory=1).parts) == {}


def test_long_lists_and_texts_are_bounded():
    found = changed(Env=[f"KEY_{number}={number}" for number in range(5000)] + ["L" * 5000 + "=1"])

    assert len(found["irca.container.change.env.added"]) == 100
    assert max(map(len, found["irca.container.change.env.added"])) <= 512
    assert len(json.dumps(found)) < 20_000


def test_what_differs_is_said_in_words():
    found = differences(described().parts, described(Memory=1, Env=["PATH=/sbin", "DB_PASSWORD=hunter2"]).parts)

    assert summary(found) == "env (1 key), limits"


def test_every_attribute_is_in_the_catalogue():
    before = described()
    after = described(
        Env=[], Cmd=[], User="a", Memory=1, Labels={}, Mounts=[], PortBindings={}, CapDrop=None, Image="x", Privileged=True,
    )  # fmt: skip
    known = CATALOGUE["irca.docker.container.changed"].attributes

    for name in told(before, after):
        parts = name.split(".")
        general = ".".join(["irca.container.change.<part>", parts[-1]]) if len(parts) == 5 else name
        assert general in known, name
