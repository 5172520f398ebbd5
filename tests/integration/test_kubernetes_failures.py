"""What failures of the cluster do to its view: the reason is told, nothing is lost or told twice, and it recovers by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from integration.kube_accounts import Account, Pod, kubectl, proxy
from lightkube.config.kubeconfig import KubeConfig
from waiting import eventually

from connectors.kubernetes import watch as watch_module
from connectors.kubernetes.access import Access, needed
from connectors.kubernetes.cluster import Cluster
from connectors.kubernetes.config import K8sAgentConfig
from connectors.kubernetes.lease import DURATION

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.requires("kubernetes", "kubectl"),
]


@pytest.fixture
def namespace():
    name = f"kw-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def account(namespace, tmp_path, monkeypatch):
    """KUBECONFIG is that of a service account with the documented rights."""
    made = Account(namespace, tmp_path, os.environ["KUBECONFIG"])
    made.allow(*needed(K8sAgentConfig(lease_name="agent")))
    monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig))
    yield made
    made.remove()


@pytest.fixture
def behind(account):
    """A proxy between the account and the API server."""
    with proxy(account.server) as made:
        account.reach(made.url)
        yield made


@pytest.fixture
def pod(account):
    """Makes pods' cluster views, which end with the test."""
    made = []

    def make(*kinds, identity="one", **more):
        made.append(Pod(identity, *kinds, **more))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def configure(account, name, value):
    """Make or change a config map, past the proxy."""
    document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": account.namespace}, "data": {"k": value}}
    kubectl("--kubeconfig", account.original, "apply", "-f", "-", document=document)


def leads(each):
    eventually(lambda: each.watch.leading)
    each.watch.wait_for_lists(20)
    return each.watch.leading


def test_the_documented_rights_are_enough_for_every_kind(pod):
    one = pod(*(access.resource for access in needed(K8sAgentConfig()) if access.verb == "watch"))
    assert leads(one)
    assert one.reasons() == {""}
    assert all(one.view.state(kind.name).synced for kind in one.view.kinds)
    eventually(lambda: all(one.view.state(kind.name).requests >= 2 for kind in one.view.kinds))
    time.sleep(0.5)
    assert one.reasons() == {""}


def test_an_api_server_that_is_away_is_told_and_what_happened_meanwhile_is_not_lost(account, behind, pod):
    configure(account, "stays", "1")
    configure(account, "changes", "1")
    one = pod("configmaps", "pods", "nodes")
    assert leads(one)
    behind.down()
    eventually(lambda: all("cannot be reached" in reason for reason in one.reasons()))
    eventually(lambda: "cannot be reached" in one.elector.reason)
    configure(account, "changes", "2")
    configure(account, "comes", "1")
    eventually(lambda: not one.watch.leading)
    behind.up()
    eventually(lambda: one.watch.leading and one.reasons() == {""})
    eventually(lambda: one.changes("configmaps", "comes") == 1)
    eventually(lambda: one.changes("configmaps", "changes") == 1)
    time.sleep(1)
    assert one.changes("configmaps", "comes") == 1
    assert one.changes("configmaps", "changes") == 1
    assert one.changes("configmaps", "stays") == 0
    assert one.elector.standing[1] == 1
    assert one.elector.reason == ""


def test_an_api_server_that_hangs_suspends_the_leader_until_it_answers(account, behind, pod):
    one = pod("configmaps")
    assert leads(one)
    behind.hang()
    eventually(lambda: "does not answer within" in one.elector.reason)
    eventually(lambda: not one.watch.leading)
    configure(account, "comes", "1")
    behind.go_on()
    eventually(lambda: one.watch.leading)
    eventually(lambda: one.changes("configmaps", "comes") == 1)


def test_a_service_account_that_was_made_anew_is_told_and_its_new_token_is_taken(account, behind, pod):
    one = pod("configmaps", "pods")
    assert leads(one)
    account.recreate()
    time.sleep(11)  # for as long the API server remembers whom it knew
    behind.cut()
    eventually(lambda: all("does not accept the agent's credentials" in reason for reason in one.reasons()))
    configure(account, "comes", "1")
    account.issue()
    eventually(lambda: one.reasons() == {""} and one.watch.leading)
    eventually(lambda: one.changes("configmaps", "comes") == 1)
    assert one.elector.standing[1] == 1


def test_a_token_that_was_rotated_is_read_from_its_file(account, behind, pod):
    one = pod("configmaps")
    assert leads(one)
    account.token_file.write_text("not the token that you remember")
    one.cluster.close()
    behind.cut()
    eventually(lambda: one.reasons() != {""})
    account.issue()
    eventually(lambda: one.reasons() == {""} and one.watch.leading)


def test_a_kind_that_may_not_be_read_degrades_alone_with_the_exact_rule_and_comes_back(account, pod, monkeypatch):
    monkeypatch.setattr(watch_module, "FORBIDDEN_PAUSE", 1.0)
    rights = needed(K8sAgentConfig(lease_name="agent"))
    account.allow(*(access for access in rights if access.resource != "deployments"))
    time.sleep(1)
    one = pod("deployments", "configmaps", "nodes")
    assert leads(one)
    reason = "forbidden: the agent's role lacks verb list on resource deployments (API group apps)"
    eventually(lambda: one.view.state("deployments").reason == reason)
    assert one.view.state("nodes").count >= 1
    configure(account, "comes", "1")
    eventually(lambda: one.changes("configmaps", "comes") == 1)
    account.allow(*rights)
    eventually(lambda: one.view.state("deployments").synced and one.reasons() == {""})


def test_without_the_lease_nobody_leads_and_the_exact_rule_is_told(account, pod):
    account.allow(*(access for access in needed(K8sAgentConfig()) if access.resource != "leases"))
    time.sleep(1)
    one = pod("nodes")
    eventually(lambda: one.elector.reason)
    assert one.elector.reason == "forbidden: the agent's role lacks verb get on resource leases (API group coordination.k8s.io)"
    assert not one.watch.leading


def test_a_watch_that_the_api_server_calls_too_old_lists_again_without_doubling(account, behind, pod):
    past = "/api/v1/events?watch=1&resourceVersion=1&timeoutSeconds=2"
    if '"code":410' not in kubectl("--kubeconfig", account.original, "get", "--raw", past):
        pytest.skip("this cluster is so young that nothing has been compacted yet")
    warn(account, "before")
    one = pod("events", "configmaps")
    assert leads(one)
    [events, _] = one.watch._watches._watches
    eventually(lambda: events._stream)
    behind.hang()
    warn(account, "meanwhile")
    behind.cut()
    events._version = "1"
    behind.go_on()
    eventually(lambda: one.view.state("events").relists == 1 and one.reasons() == {""})
    eventually(lambda: one.changes("events", "meanwhile") == 1)
    warn(account, "after")
    eventually(lambda: one.changes("events", "after") == 1)
    time.sleep(1)
    assert one.changes("events", "meanwhile") == 1
    assert one.changes("events", "before") == 0
    assert one.view.state("configmaps").relists == 0


def warn(account, name):
    """An event of type Warning, past the proxy."""
    kubectl("--kubeconfig", account.original, "create", "-f", "-", document=warning(account.namespace, name))


def warning(namespace, name):
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": {"kind": "Pod", "namespace": namespace, "name": "p"},
        "type": "Warning",
        "reason": "Test",
        "message": f"event {name}",
        "firstTimestamp": now,
        "lastTimestamp": now,
    }


CANDIDATE = """
import json, os, signal, sys, threading, time
from integration.kube_accounts import Pod
one = Pod(sys.argv[1], "configmaps")
said, led = 0, None
while True:
    if one.watch.leading != led:
        led = one.watch.leading
        print(json.dumps(["leading", led]), flush=True)
    while said < len(one.told):
        print(json.dumps(one.told[said]), flush=True)
        said += 1
    time.sleep(0.02)
"""


class Candidate:
    """One of several pods, as a process of its own; ``lines`` are what it says, with when."""

    def __init__(self, identity):
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CANDIDATE, identity], env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.lines = []
        self.thread = threading.Thread(target=self._read, name=f"read-{identity}")
        self.thread.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), json.loads(line)))

    def said(self, what):
        return [when for when, line in self.lines if line == what]

    def end(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        self.thread.join()
        self.process.stdout.close()


@pytest.fixture
def candidates(account):
    made = [Candidate("one")]
    eventually(lambda: made[0].said(["leading", True]))
    made.append(Candidate("two"))
    eventually(lambda: made[1].said(["leading", False]))
    time.sleep(3)
    yield made
    for each in made:
        each.end()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_another_takes_over_from_a_leader_that_is_killed_or_frozen_and_no_change_is_told_twice(account, candidates, how):
    one, two = candidates
    configure(account, "before", "1")
    eventually(lambda: one.said(["configmaps", "before", False]))
    gone = time.monotonic()
    one.process.send_signal(how)
    [taken] = eventually(lambda: two.said(["leading", True]))
    assert taken - gone < 15
    eventually(lambda: two.said(["configmaps", "before", True]))
    if how is signal.SIGSTOP:
        one.process.send_signal(signal.SIGCONT)
        eventually(lambda: one.lines[-1][1] == ["leading", False])
    configure(account, "after", "1")
    eventually(lambda: two.said(["configmaps", "after", False]))
    time.sleep(2)
    for name in ("before", "after"):
        assert len(one.said(["configmaps", name, False])) + len(two.said(["configmaps", name, False])) == 1
    assert not two.said(["configmaps", "before", False])


@pytest.mark.parametrize("skew", [-86400.0, 86400.0])
def test_clocks_that_differ_by_a_day_do_not_unseat_a_leader_nor_keep_a_dead_one(account, pod, skew):
    one = pod("nodes", identity="one")
    assert leads(one)
    two = pod("nodes", identity="two", clock=lambda: time.time() + skew)
    deadline = time.monotonic() + DURATION + 3
    while time.monotonic() < deadline:
        assert one.watch.leading
        assert not two.watch.leading
        time.sleep(0.1)
    one.elector._release = lambda: None  # it dies without a word
    one.stop()
    died = time.monotonic()
    eventually(lambda: two.watch.leading)
    assert time.monotonic() - died < 15


def test_thousands_of_events_a_minute_are_bounded_and_counted(account, pod):
    one = pod("events", max_waiting=200)
    assert leads(one)
    one.slowness = 0.01
    number = 2000
    writer = Cluster(timeout=10, configure=lambda: KubeConfig.from_file(account.original).get())

    def write(index):
        path = f"/api/v1/namespaces/{account.namespace}/events"
        writer.request("POST", path, Access("create", "", "events"), document=warning(account.namespace, f"e{index}"))
        assert one.view.waiting <= 200

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(number)))
    writer.close()
    eventually(lambda: len(one.told) + one.view.state("events").dropped >= number)
    assert one.view.state("events").dropped > 0
    assert one.reasons() == {""}
