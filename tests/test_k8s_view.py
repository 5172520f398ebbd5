"""The view: what stands, and who is told of what, in order."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from connectors.kubernetes import view as view_module
from connectors.kubernetes.kinds import KINDS
from connectors.kubernetes.view import BATCH, View, key_of


def item(name, version=1, *, namespace="ns", uid="", manager="", **rest):
    meta = {"name": name, "namespace": namespace, "uid": uid or f"uid-{name}", "resourceVersion": str(version)}
    if manager:
        meta["managedFields"] = [{"manager": manager}]
    return {"metadata": meta, **rest}


@pytest.fixture
def view():
    return View([KINDS["pods"], KINDS["events"], KINDS["nodes"]], max_waiting=10)


@pytest.fixture
def told(view):
    """What was told, as (kind, name before, name after, initial)."""
    found = []
    view.listen(lambda kind, before, after, initial: found.append((kind, before, after, initial)))
    return found


def test_what_is_put_stands_and_is_told(view, told):
    term = view.begin()
    view.put(term, "pods", item("a"), initial=True)
    view.put(term, "pods", item("b"))
    view.put(term, "pods", item("b", 2, status={"phase": "Running"}))
    view.remove(term, "pods", ("ns", "a"))
    assert view.waiting == 4
    assert view.tell(0) == 4
    assert told == [
        ("pods", None, item("a"), True),
        ("pods", None, item("b"), False),
        ("pods", item("b"), item("b", 2, status={"phase": "Running"}), False),
        ("pods", item("a"), None, False),
    ]
    assert list(view.all("pods")) == [item("b", 2, status={"phase": "Running"})]
    assert view.get("pods", "ns", "b") == view.all("pods")[0]
    assert view.get("pods", "ns", "a") is None


def test_a_snapshot_stays_as_it_was_and_can_be_cut(view):
    term = view.begin()
    for name in "abc":
        view.put(term, "pods", item(name))
    before = view.all("pods")
    view.remove(term, "pods", ("ns", "a"))
    assert [p["metadata"]["name"] for p in before] == ["a", "b", "c"]
    assert [p["metadata"]["name"] for p in before[1:]] == ["b", "c"]
    assert before[-1]["metadata"]["name"] == "c"
    assert len(view.all("pods")) == 2


def test_versions_and_managers_alone_are_no_change(view, told):
    term = view.begin()
    view.put(term, "pods", item("a", 1, manager="kubectl"))
    view.put(term, "pods", item("a", 2, manager="kubelet"))
    view.put(term, "pods", item("a", 2, status={"phase": "never looked at, for the version is the same"}))
    view.tell(0)
    assert len(told) == 1


def test_an_object_made_again_under_its_name_is_another(view, told):
    term = view.begin()
    view.put(term, "pods", item("a", uid="1"))
    view.put(term, "pods", item("a", 2, uid="2"))
    view.tell(0)
    assert [(b and b["metadata"]["uid"], a and a["metadata"]["uid"]) for _, b, a, _ in told] == [(None, "1"), ("1", None), (None, "2")]


def test_after_a_whole_list_what_it_did_not_hold_is_gone(view, told):
    term = view.begin()
    view.put(term, "pods", item("a"))
    view.put(term, "pods", item("b"))
    assert not view.state("pods").synced
    view.keep(term, "pods", {("ns", "b")})
    assert view.state("pods").synced
    view.tell(0)
    assert told[-1] == ("pods", item("a"), None, False)


def test_what_an_ended_term_still_brings_is_ignored(view, told):
    old = view.begin()
    view.put(old, "pods", item("a"))
    new = view.begin()
    view.put(old, "pods", item("b"))
    view.keep(old, "pods", set())
    view.note(old, "pods", reason="late")
    view.remove(old, "pods", ("ns", "a"))
    view.put(new, "pods", item("c"))
    assert view.tell(0) == 1
    assert [p["metadata"]["name"] for p in view.all("pods")] == ["c"]
    assert not view.state("pods").synced
    assert not view.state("pods").reason


def test_events_are_told_by_version_and_counted_when_there_is_no_room(view, told):
    term = view.begin()
    for number in range(12):
        view.put(term, "events", item(f"e{number}"))
        view.put(term, "events", item(f"e{number}"))
    assert view.state("events").dropped == 2
    assert view.tell(0) == 10
    assert len(view.all("events")) == 0
    view.remove(term, "events", ("ns", "e0"))
    assert view.tell(0) == 0


def test_few_events_are_remembered(view, told, monkeypatch):
    monkeypatch.setattr(view_module, "MAX_KNOWN", 2)
    term = view.begin()
    for name in ("a", "b", "c", "a", "c"):
        view.put(term, "events", item(name))
    assert view.tell(0) == 4


def test_a_writer_waits_for_room_and_a_new_term_sets_it_free(view, told):
    term = view.begin()
    writer = threading.Thread(target=lambda: [view.put(term, "pods", item(f"p{n}")) for n in range(25)], name="writer")
    writer.start()
    while len(told) < 15:
        view.tell(0.1)
        assert view.waiting <= 10
    view.begin()
    writer.join(5)
    assert not writer.is_alive()
    assert len(view.all("pods")) == 0


def test_without_listeners_nothing_waits(view):
    term = view.begin()
    for number in range(30):
        view.put(term, "pods", item(f"p{number}"))
    assert view.waiting == 0
    assert view.state("pods").count == 30


def test_a_listener_that_fails_misses_one_change_and_degrades_the_kind_until_the_next(view, told, caplog):
    def stumbles(kind, before, after, initial):
        if after["metadata"]["name"] == "bad":
            raise ValueError("what is this")

    view.listen(stumbles)
    term = view.begin()
    for name in ("bad", "good"):
        view.put(term, "pods", item(name))
        view.tell(0)
        state = view.state("pods")
        assert state.reason == ("a change could not be worked on: ValueError: what is this" if name == "bad" else "")
        assert not state.down
    assert len(told) == 2
    view.forget(stumbles)
    view.put(term, "pods", item("bad", uid="2"))
    view.tell(0)
    assert not view.state("pods").reason


def test_many_changes_are_told_in_batches():
    view, told = View([KINDS["pods"]]), []
    view.listen(lambda *change: told.append(change))
    term = view.begin()
    for number in range(BATCH + 5):
        view.put(term, "pods", item(f"p{number}"))
    assert (view.tell(0), view.tell(0), view.tell(0)) == (BATCH, 5, 0)
    assert [change[2]["metadata"]["name"] for change in told] == [f"p{number}" for number in range(BATCH + 5)]


def test_how_a_kind_fares_is_told(view, caplog):
    term = view.begin()
    view.note(term, "pods", reason="forbidden")
    view.count("pods", requests=2, relists=1)
    assert dataclasses.asdict(view.state("pods")) == {
        "name": "pods", "served": True, "synced": False, "reason": "forbidden", "down": True, "count": 0, "requests": 2, "relists": 1,
        "dropped": 0,
    }  # fmt: skip
    view.note(term, "pods", reason="", served=False)
    assert not view.state("pods").reason
    assert not view.state("pods").served


def test_a_kind_that_is_not_watched_is_empty(view):
    assert len(view.all("secrets")) == 0
    assert view.get("secrets", "ns", "a") is None
    assert not view.state("secrets").served
    assert [kind.name for kind in view.kinds] == ["pods", "events", "nodes"]
    assert key_of({"name": "n1"}) == ("", "n1")
