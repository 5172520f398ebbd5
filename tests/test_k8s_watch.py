"""Lists and watches, against an API server on loopback whose faults are chosen."""

from __future__ import annotations

import contextlib
import json
import threading
import time

import pytest
from kube_api import KubeApi, kube_api
from waiting import eventually

from connectors.core.errors import ControlError, PermissionRefusedError, RuntimeUnavailableError
from connectors.kubernetes import cluster as cluster_module
from connectors.kubernetes import watch as watch_module
from connectors.kubernetes.access import Access
from connectors.kubernetes.cluster import Cluster, explain
from connectors.kubernetes.kinds import KINDS
from connectors.kubernetes.view import View
from connectors.kubernetes.watch import Watches, list_once

pytestmark = pytest.mark.sockets
PODS = Access("list", "", "pods")


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(watch_module, "FORBIDDEN_PAUSE", 0.1)
    monkeypatch.setattr(watch_module, "UNSERVED_PAUSE", 0.1)
    monkeypatch.setattr(watch_module, "LONGEST_PAUSE", 0.2)
    with kube_api() as served:
        yield served


@pytest.fixture
def cluster(api):
    made = Cluster(timeout=5, page_size=2, configure=api.config)
    yield made
    made.close()


@contextlib.contextmanager
def watching(cluster, *names, max_waiting=10_000):
    """A view that is watched, and the changes that were told of it."""
    view, told = View([KINDS[name] for name in names], max_waiting=max_waiting), []
    view.listen(lambda kind, before, after, initial: told.append((kind, name_of(before), name_of(after), initial)))
    watches = Watches(cluster, view)
    watches.start()
    try:
        yield view, told
    finally:
        watches.stop()


def name_of(item):
    return item and item["metadata"]["name"]


def wait_for(view, condition):
    def told():
        view.tell(0.02)
        return condition()

    condition() or eventually(told)


def names(view, kind="pods"):
    return sorted(name_of(item) for item in view.all(kind))


def test_a_list_of_many_pages_is_read_whole_and_then_watched(api: KubeApi, cluster):
    for number in range(5):
        api.put("pods", f"p{number}")
    with watching(cluster, "pods") as (view, told):
        wait_for(view, lambda: view.state("pods").synced and len(told) == 5)
        assert [entry[3] for entry in told] == [True] * 5
        assert api.count("pods", "list") == 3
        wait_for(view, lambda: api.count("pods", "watch") == 1)
        api.put("pods", "p5")
        api.put("pods", "p0", status={"phase": "Failed"})
        api.delete("pods", "p1")
        wait_for(view, lambda: len(told) == 8)
    assert told[5:] == [("pods", None, "p5", False), ("pods", "p0", "p0", False), ("pods", "p1", None, False)]
    assert view.state("pods").relists == 0
    assert len(view.all("pods")) == 0


def test_a_watch_that_ends_goes_on_where_it_was(api: KubeApi, cluster):
    with watching(cluster, "pods") as (view, told):
        wait_for(view, lambda: api.count("pods", "watch") == 1)
        for number in range(4):
            api.put("pods", f"p{number}")
            api.cut_watches()
            wait_for(view, lambda n=number: len(told) == n + 1)
        assert [entry[2] for entry in told] == ["p0", "p1", "p2", "p3"]
        assert api.count("pods", "list") == 1
        assert view.state("pods").relists == 0


def test_a_watch_that_is_too_old_lists_again_and_tells_only_what_differs(api: KubeApi, cluster):
    for name in ("same", "changes", "goes", "made-again"):
        api.put("pods", name)
    with watching(cluster, "pods") as (view, told):
        wait_for(view, lambda: len(told) == 4 and api.count("pods", "watch") == 1)
        with api.changed:  # nobody may watch this
            api.cut += 1
            api.put("pods", "changes", status={"phase": "Running"})
            api.delete("pods", "goes")
            api.put("pods", "made-again", uid="another")
            api.put("pods", "comes")
            api.history.clear()
            api.compact()
        wait_for(view, lambda: view.state("pods").relists == 1 and len(told) == 9)
        time.sleep(0.1)
        view.tell(0.0)
        assert sorted(told[4:], key=str) == sorted(
            [
                ("pods", None, "comes", False),
                ("pods", "changes", "changes", False),
                ("pods", "made-again", None, False),
                ("pods", None, "made-again", False),
                ("pods", "goes", None, False),
            ],
            key=str,
        )
        assert names(view) == ["changes", "comes", "made-again", "same"]


def test_a_list_that_expires_between_pages_begins_anew(api: KubeApi, cluster):
    for number in range(5):
        api.put("pods", f"p{number}")
    original, done = Cluster.request, []

    def request(self, method, path, access, **more):
        if "continue" in (more.get("params") or {}) and not done:
            done.append(1)
            api.put("pods", "p9")
            api.delete("pods", "p0")
            api.compact()
        return original(self, method, path, access, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cluster, "request", request)
        with watching(cluster, "pods") as (view, told):
            wait_for(view, lambda: view.state("pods").synced)
            wait_for(view, lambda: ("pods", "p0", None, False) in told)
            assert names(view) == ["p1", "p2", "p3", "p4", "p9"]


def test_bookmarks_move_the_place_to_go_on_from(api: KubeApi, cluster):
    with watching(cluster, "pods") as (view, _):
        wait_for(view, lambda: api.count("pods", "watch") == 1)
        api.say(json.dumps({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "777"}}}).encode() + b"\n")
        api.cut_watches()
        wait_for(view, lambda: api.count("pods", "watch") == 2)
        assert api.requests[-1][2]["resourceVersion"] == "777"
        assert api.requests[-1][2]["allowWatchBookmarks"] == "true"


@pytest.mark.parametrize("verb", ["list", "watch"])
def test_a_kind_that_may_not_be_read_degrades_alone_and_comes_back(api: KubeApi, cluster, verb):
    api.put("deployments", "web")
    api.put("pods", "p")
    api.faults["deployments", verb] = [403, "forbidden", 3]
    with watching(cluster, "pods", "deployments") as (view, _):
        wait_for(view, lambda: view.state("deployments").reason)
        assert view.state("deployments").reason == (
            f"forbidden: the agent's role lacks verb {verb} on resource deployments (API group apps)"
        )
        assert view.state("deployments").down
        wait_for(view, lambda: view.state("pods").synced)
        assert not view.state("pods").reason
        wait_for(view, lambda: view.state("deployments").synced and not view.state("deployments").reason)
        assert names(view, "deployments") == ["web"]


def test_a_kind_that_the_cluster_does_not_have_is_no_failure_and_is_found_after_an_upgrade(api: KubeApi, cluster):
    api.served["/apis/apps/v1"].discard("deployments")
    api.put("deployments", "web")
    with watching(cluster, "deployments") as (view, _):
        wait_for(view, lambda: not view.state("deployments").served)
        assert view.state("deployments").reason == ""
        api.served["/apis/apps/v1"].add("deployments")
        wait_for(view, lambda: view.state("deployments").synced)
        assert view.state("deployments").served


def test_the_newest_version_that_has_the_kind_is_read(api: KubeApi, cluster):
    api.put("cronjobs", "nightly")
    view = View([KINDS["cronjobs"]])
    list_once(cluster, view)
    assert names(view, "cronjobs") == ["nightly"]
    api.served["/apis/batch/v1beta1"].clear()
    api.served["/apis/batch/v1"].add("cronjobs")
    list_once(cluster, view)
    assert names(view, "cronjobs") == ["nightly"]


def test_a_kind_whose_path_vanishes_is_looked_for_again(api: KubeApi, cluster):
    api.put("cronjobs", "nightly")
    with watching(cluster, "cronjobs") as (view, _):
        wait_for(view, lambda: api.count("cronjobs", "watch") == 1)
        api.served["/apis/batch/v1beta1"].clear()
        api.served["/apis/batch/v1"].add("cronjobs")
        api.cut_watches()
        wait_for(view, lambda: api.count("cronjobs", "watch") >= 3 and not view.state("cronjobs").reason)
        api.put("cronjobs", "weekly")
        wait_for(view, lambda: names(view, "cronjobs") == ["nightly", "weekly"])


@pytest.mark.parametrize(
    "line",
    [
        b"this is no JSON\n",
        b'{"type":"ERROR","object":{"code":500,"message":"etcdserver: no leader"}}\n',
        b'{"type":"ADDED","object":{}}\n',
    ],
)
def test_what_makes_no_sense_degrades_the_kind_until_it_does_again(api: KubeApi, cluster, line, caplog):
    with watching(cluster, "pods") as (view, _):
        wait_for(view, lambda: api.count("pods", "watch") == 1)
        api.say(line)
        wait_for(view, lambda: view.state("pods").reason or api.count("pods", "watch") > 1)
        api.put("pods", "later")
        wait_for(view, lambda: names(view) == ["later"] and not view.state("pods").reason)


def test_events_are_told_once_and_not_kept(api: KubeApi, cluster):
    api.put("events", "old")
    with watching(cluster, "events") as (view, told):
        wait_for(view, lambda: len(told) == 1 and api.count("events", "watch") == 1)
        api.put("events", "new")
        api.put("events", "new", count=2)
        wait_for(view, lambda: len(told) == 3)
        with api.changed:
            api.put(
                "events", "new", count=2, metadata={"resourceVersion": api.objects["events"]["ns", "new"]["metadata"]["resourceVersion"]}
            )
            api.delete("events", "old")
            api.history.clear()
            api.compact()
        wait_for(view, lambda: view.state("events").relists == 1)
        time.sleep(0.1)
        view.tell(0.0)
        assert told == [("events", None, "old", True), ("events", None, "new", False), ("events", None, "new", False)]
        assert len(view.all("events")) == 0
        assert all(p["fieldSelector"] == "type=Warning" for plural, _, p in api.requests if plural == "events")


def test_a_listener_that_lags_holds_the_watch_back_and_loses_nothing(api: KubeApi, cluster):
    for number in range(50):
        api.put("pods", f"p{number:02}")
    with watching(cluster, "pods", max_waiting=5) as (view, told):
        time.sleep(0.3)
        assert view.waiting == 5
        wait_for(view, lambda: len(told) == 50)
        assert view.state("pods").synced


def test_credentials_are_read_anew_when_they_are_not_taken_any_more(api: KubeApi):
    given = {"token": "good"}
    cluster = Cluster(configure=lambda: api.config(given["token"]))
    api.put("pods", "p")
    with watching(cluster, "pods") as (view, _):
        wait_for(view, lambda: api.count("pods", "watch") == 1)
        api.token = "rotated"
        api.cut_watches()
        wait_for(view, lambda: "does not accept the agent's credentials" in view.state("pods").reason)
        given["token"] = "rotated"
        wait_for(view, lambda: not view.state("pods").reason)
        assert view.state("pods").relists == 0
    cluster.close()


def test_stopping_ends_every_watch_at_once(api: KubeApi, cluster):
    with watching(cluster, "pods", "nodes", "events") as (view, _):
        wait_for(view, lambda: all(api.count(name, "watch") for name in ("pods", "nodes", "events")))
        begun = time.monotonic()
    assert time.monotonic() - begun < 2.0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("irca-k8s-")]


def test_reading_once_notes_what_cannot_be_read(api: KubeApi, cluster):
    api.put("pods", "p")
    api.faults["nodes", "list"] = [500, "boom", 1]
    view = View([KINDS["pods"], KINDS["nodes"], KINDS["horizontalpodautoscalers"]])
    api.served["/apis/autoscaling/v1"].clear()
    list_once(cluster, view)
    assert names(view) == ["p"]
    assert view.state("nodes").reason == "the Kubernetes API server answered 500: boom"
    assert not view.state("horizontalpodautoscalers").served


def test_the_cluster_is_known_by_the_uid_of_its_first_namespace(cluster):
    assert cluster.uid() == "uid-of-the-cluster"
    assert cluster.namespace == "here"


def test_the_pods_own_namespace_goes_before_the_configurations(cluster, monkeypatch):
    monkeypatch.setenv("POD_NAMESPACE", "agents")
    assert cluster.namespace == "agents"


@pytest.mark.parametrize(
    ("status", "expected", "words"),
    [
        (403, PermissionRefusedError, "lacks verb list on resource pods"),
        (401, RuntimeUnavailableError, "does not accept the agent's credentials"),
        (429, RuntimeUnavailableError, "is not available"),
        (500, ControlError, "answered 500: boom"),
    ],
)
def test_what_the_api_server_refuses_is_told_apart(api: KubeApi, cluster, status, expected, words):
    api.faults["pods", "list"] = [status, "boom", 1]
    with pytest.raises(expected, match=words):
        cluster.request("GET", "/api/v1/pods", PODS)


def test_an_api_server_that_is_not_there_cannot_be_reached(api: KubeApi, free_port):
    api.base = f"http://127.0.0.1:{free_port}"
    with pytest.raises(RuntimeUnavailableError, match="cannot be reached"):
        Cluster(configure=api.config).uid()


def test_an_answer_that_is_no_json_is_told(cluster):
    with pytest.raises(ControlError, match="not JSON"):
        cluster_module.Answer(200, b"<html>").json()
    assert "does not answer within 3 s" in explain(TimeoutError(), PODS, 3).reason
    assert cluster_module._words(b"<html> a\nb") == "<html> a b"


def test_a_configuration_without_a_user_or_a_cluster_is_no_cluster(api: KubeApi):
    def without_user():
        return api.config()._replace(user=None)

    with pytest.raises(RuntimeUnavailableError, match="names no user"):
        Cluster(configure=without_user).uid()


def test_a_line_without_an_end_is_given_up(cluster, monkeypatch, api: KubeApi):
    monkeypatch.setattr(cluster_module, "MAX_LINE", 1000)
    with watching(cluster, "pods") as (view, _):
        wait_for(view, lambda: api.count("pods", "watch") == 1)
        api.say(b"x" * 2000)
        wait_for(view, lambda: "too long" in view.state("pods").reason or api.count("pods", "list") > 1)
