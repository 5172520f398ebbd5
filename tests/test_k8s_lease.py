"""Who leads: the decision as a pure function, a simulated election under skewed clocks, and electors against an API server on loopback."""

from __future__ import annotations

import contextlib
import random
import threading
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kube_api import KubeApi, kube_api
from waiting import eventually

from connectors.core.errors import RuntimeUnavailableError
from connectors.kubernetes import lease as lease_module
from connectors.kubernetes.cluster import Answer, Cluster
from connectors.kubernetes.cluster_watch import ClusterWatch
from connectors.kubernetes.kinds import KINDS
from connectors.kubernetes.lease import DURATION, RENEW_WITHIN, Action, Elector, Seen, Standing, decide, lease_document, observe
from connectors.kubernetes.view import View


def lease(holder, renewed="t1", duration=10, **spec):
    return {"metadata": {"name": "l"}, "spec": {"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": duration, **spec}}


@pytest.mark.parametrize(
    ("seen", "now", "action"),
    [
        (None, 0, Action.CREATE),
        (Seen("me", "t", 10, 0), 1000, Action.RENEW),
        (Seen("", "t", 10, 0), 0, Action.TAKE),
        (Seen("other", "t", 10, 0), 9.9, Action.WAIT),
        (Seen("other", "t", 10, 0), 10, Action.TAKE),
    ],
)
def test_what_is_done_about_a_lease_depends_on_whose_it_is_and_how_long_it_has_stood(seen, now, action):
    assert decide(seen, "me", now) is action


def test_a_lease_has_stood_since_it_was_first_seen_so():
    first = observe(None, lease("other"), 5)
    assert first == Seen("other", "t1", 10, 5)
    assert observe(first, lease("other"), 9) is first
    assert observe(first, lease("other", "t2"), 9).since == 9
    assert observe(first, lease("third"), 9).since == 9


@pytest.mark.parametrize(("said", "taken"), [(86400, 60), (-1, 1), ("x", DURATION), (None, 1)])
def test_an_absurd_duration_does_not_bind(said, taken):
    assert observe(None, lease("other", duration=said), 0).duration == taken


def test_times_written_by_others_do_not_matter():
    future = observe(None, lease("other", "2099-01-01T00:00:00.000000Z"), 0)
    assert decide(future, "me", 9) is Action.WAIT
    assert decide(future, "me", 11) is Action.TAKE


def test_the_document_counts_transitions_and_keeps_the_version():
    first = lease_document(None, "l", "ns", "a", 0)
    assert first["metadata"] == {"name": "l", "namespace": "ns"}
    assert first["spec"]["leaseTransitions"] == 0
    assert first["spec"]["renewTime"] == "1970-01-01T00:00:00.000000Z"
    current = {"metadata": {"name": "l", "resourceVersion": "4", "managedFields": []}, "spec": first["spec"]}
    renewed = lease_document(current, "l", "ns", "a", 60)
    assert renewed["metadata"] == {"name": "l", "resourceVersion": "4"}
    assert renewed["spec"]["acquireTime"] == first["spec"]["acquireTime"]
    taken = lease_document(current, "l", "ns", "b", 60)
    assert taken["spec"]["leaseTransitions"] == 1
    assert taken["spec"]["acquireTime"] == "1970-01-01T00:01:00.000000Z"
    released = lease_document(current, "l", "ns", "a", 60, release=True)
    assert released["spec"]["holderIdentity"] == ""


class World:
    """A clock that only moves when told, and a Lease behind a network that takes its time and fails now and then."""

    timeout = 10.0
    namespace = "ns"

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.lease: dict | None = None
        self.version = 0
        self.away: set[str] = set()
        self.caller = ""

    def request(self, method, path, access, *, document=None, expect=(), timeout=None):
        self.now += self.random.random() * 0.5
        if self.caller in self.away:
            self.now += 1.0
            raise RuntimeUnavailableError("away")
        try:
            return self._answer(method, document)
        finally:
            self.now += self.random.random() * 0.5

    def _answer(self, method, document):
        if method == "GET":
            return Answer(200, msgspec.json.encode(self.lease)) if self.lease else Answer(404, b"{}")
        if method == "POST" and self.lease:
            return Answer(409, b"{}")
        if method == "PUT" and document["metadata"].get("resourceVersion") != str(self.version):
            return Answer(409, b"{}")
        self.version += 1
        self.lease = {**document, "metadata": {**document["metadata"], "resourceVersion": str(self.version)}}
        return Answer(200, msgspec.json.encode(self.lease))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3))
def test_never_two_lead_at_once_whatever_their_clocks_say(seed, skews):
    world = World(seed)
    electors = {
        name: Elector(world, "l", name, clock=lambda s=skew: max(0.0, 1e9 + world.now + s), monotonic=lambda s=skew: world.now + s)
        for name, skew in zip("abc", skews, strict=True)
    }
    due = dict.fromkeys(electors, 0.0)
    led, alone = set(), 0.0
    while world.now < 400:
        name = min(due, key=due.get)
        world.now = max(world.now, due[name])
        world.caller = name
        if world.random.random() < 0.05:
            world.away ^= {world.random.choice("abc")}
        pause = 1.0
        with contextlib.suppress(RuntimeUnavailableError):
            pause = electors[name].step()
        if world.random.random() < 0.03:
            pause += 30 * world.random.random()  # the process stood still
        due[name] = world.now + pause
        leading = [n for n, e in electors.items() if e.standing[0] is Standing.LEADING]
        assert len(leading) <= 1
        led |= set(leading)
        alone = alone if leading else world.now
    assert led


@pytest.mark.parametrize("seed", range(20))
def test_a_leader_that_vanishes_is_followed_before_fifteen_seconds_are_over(seed):
    world = World(seed)
    old, new = (Elector(world, "l", name, monotonic=lambda: world.now) for name in ("old", "new"))
    old.step()
    kill = world.now + 10 + 3 * world.random.random()
    while world.now < kill:
        old.step()
        new.step()
        world.now += 1.0
    world.now = due = kill
    while new.standing[0] is not Standing.LEADING:
        world.now = max(world.now, due)
        due = world.now + new.step()
    assert world.now - kill < 15


def test_a_leader_that_cannot_renew_is_suspended_and_goes_on_in_the_same_term_when_nobody_took_it():
    world = World(1)
    elector = Elector(world, "l", "me", monotonic=lambda: world.now)
    assert elector.standing == (Standing.STANDBY, 0)
    elector.step()
    assert elector.standing == (Standing.LEADING, 1)
    assert elector.holder == "me"
    world.now += RENEW_WITHIN + 1
    assert elector.standing == (Standing.SUSPENDED, 1)
    elector.step()
    assert elector.standing == (Standing.LEADING, 1)
    world.lease = None  # somebody removed it
    elector.step()
    assert elector.standing == (Standing.LEADING, 1)


def test_a_leader_whose_lease_was_taken_stands_by_and_begins_a_new_term_later():
    world = World(1)
    elector = Elector(world, "l", "me", monotonic=lambda: world.now)
    elector.step()
    world.version += 1
    world.lease = lease("other") | {"metadata": {"name": "l", "resourceVersion": str(world.version)}}
    assert elector.step() <= 2
    assert elector.standing == (Standing.STANDBY, 1)
    world.now += 20
    elector.step()
    assert elector.standing == (Standing.LEADING, 2)


def test_it_is_known_until_when_another_has_led():
    world = World(1)
    first = Elector(world, "l", "first", clock=lambda: 1e9 + world.now, monotonic=lambda: world.now)
    first.step()
    assert first.led_until is None
    ended = 1e9 + world.now
    for skew in (0.0, 86400.0, -3600.0):
        world.lease["spec"]["renewTime"] = f"{datetime.fromtimestamp(ended + skew, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        second = Elector(world, "l", "second", clock=lambda: 1e9 + world.now, monotonic=lambda: world.now)
        second.step()
        world.now += 11
        second.step()
        assert second.standing[0] is Standing.LEADING
        assert second.led_until is not None
        assert second.led_until <= 1e9 + world.now - 10
        assert second.led_until >= ended + min(skew, 0.0) - 1
        world.lease["spec"]["holderIdentity"] = "first"
        ended = 1e9 + world.now


def test_a_time_that_is_none_counts_as_the_moment_when_it_was_seen():
    assert lease_module._renewed_at(Seen("other", "soon", 10, 0), 77.0) == 77.0


def test_whoever_is_outrun_waits_for_the_next_look():
    world = World(1)
    elector = Elector(world, "l", "me", monotonic=lambda: world.now)
    elector._look()
    world.lease = lease("other") | {"metadata": {"name": "l", "resourceVersion": "1"}}
    elector._write(Action.CREATE)
    assert elector.standing == (Standing.STANDBY, 0)


@pytest.fixture
def api():
    with kube_api() as served:
        yield served


class Recorder:
    """A reporter that remembers what it was told."""

    def __init__(self, told):
        self.told = told
        self.ticks = 0

    def __call__(self, kind, before, after, initial):
        self.told.append((kind, (after or before)["metadata"]["name"], initial))

    def tick(self, now):
        self.ticks += 1

    def close(self):
        self.told.append(("closed", "", False))


class Pod:
    """One of several pods of an agent."""

    def __init__(self, api: KubeApi, identity: str) -> None:
        self.cluster = Cluster(timeout=2, configure=api.config)
        self.view = View([KINDS["pods"], KINDS["nodes"]])
        self.elector = Elector(self.cluster, "agent", identity)
        self.watch = ClusterWatch(self.cluster, self.view, self.elector)
        self.told: list = []
        self.stopping = threading.Event()
        self.thread = threading.Thread(
            target=self.watch.run, args=(lambda _since: Recorder(self.told), self.stopping), name=f"pod-{identity}"
        )

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join(10)
        self.cluster.close()


@pytest.fixture
def pods(api):
    made = [Pod(api, "one"), Pod(api, "two")]
    yield made
    for pod in made:
        if pod.thread.is_alive():
            pod.stop()


@pytest.mark.sockets
def test_one_watches_the_others_stand_by_and_take_over_at_once_when_it_is_stopped(api: KubeApi, pods):
    api.put("pods", "p")
    one, two = pods
    one.start()
    one.watch.wait_for_lists(10)
    assert one.watch.leading
    two.start()
    two.watch.wait_for_lists(10)
    assert not two.watch.leading
    assert not two.elector.reason
    assert len(two.view.all("pods")) == 0
    eventually(lambda: one.told == [("pods", "p", True)])

    one.stop()
    assert one.told[-1] == ("closed", "", False)
    eventually(lambda: two.watch.leading)
    eventually(lambda: two.told == [("pods", "p", True)])
    assert len(one.view.all("pods")) == 0
    assert api.objects["leases"]["here", "agent"]["spec"]["holderIdentity"] == "two"


@pytest.mark.sockets
def test_an_outage_suspends_the_leader_and_nothing_is_lost(api: KubeApi, pods, monkeypatch, caplog):
    monkeypatch.setattr(lease_module, "RENEW_EVERY", 0.1)
    monkeypatch.setattr(lease_module, "RENEW_WITHIN", 0.5)
    [one, _] = pods
    one.start()
    one.watch.wait_for_lists(10)
    api.faults["leases", "get"] = [503, "away", 15]
    eventually(lambda: one.elector.standing[0] is Standing.SUSPENDED)
    assert "not available" in one.elector.reason
    assert not one.watch.leading
    before = len(one.told)
    api.put("pods", "meanwhile")
    eventually(lambda: one.view.waiting == 1)
    assert len(one.told) == before
    api.faults.clear()
    eventually(lambda: one.watch.leading)
    eventually(lambda: ("pods", "meanwhile", False) in one.told)
    assert one.elector.reason == ""


@pytest.mark.sockets
def test_a_leader_whose_lease_is_taken_forgets_what_it_saw(api: KubeApi, pods, monkeypatch):
    monkeypatch.setattr(lease_module, "RENEW_EVERY", 0.1)
    [one, _] = pods
    api.put("pods", "p")
    one.start()
    one.watch.wait_for_lists(10)
    with api.changed:
        api.put("leases", "agent", "here", spec=lease("other", duration=1)["spec"])
    eventually(lambda: not one.watch.leading)
    eventually(lambda: len(one.view.all("pods")) == 0)
    eventually(lambda: one.watch.leading)
    eventually(lambda: len(one.told) == 2)
    assert one.told == [("pods", "p", True)] * 2


@pytest.mark.sockets
def test_without_the_right_to_the_lease_nobody_leads_and_the_rule_is_told(api: KubeApi, pods):
    api.faults["leases", "create"] = [403, "forbidden", -1]
    [one, _] = pods
    one.start()
    one.watch.wait_for_lists(5)
    eventually(lambda: one.elector.reason)
    assert one.elector.reason == ("forbidden: the agent's role lacks verb create on resource leases (API group coordination.k8s.io)")
    assert not one.watch.leading


@pytest.mark.sockets
def test_a_lease_that_cannot_be_given_up_runs_out_by_itself(api: KubeApi, pods, caplog):
    [one, _] = pods
    one.start()
    one.watch.wait_for_lists(10)
    api.faults["leases", "update"] = [503, "away", -1]
    one.stop()
    assert api.objects["leases"]["here", "agent"]["spec"]["holderIdentity"] == "one"


@pytest.mark.sockets
def test_an_elector_survives_what_nobody_foresaw(api: KubeApi, pods, caplog):
    api.put("leases", "agent", "here", spec=["no", "mapping"])
    [one, _] = pods
    one.start()
    eventually(lambda: one.elector.reason)
    assert "AttributeError" in one.elector.reason
