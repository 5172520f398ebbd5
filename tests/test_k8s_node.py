"""The node view: a kubelet's summary as a real one gave it, over TLS that is really checked, and the host's own figures."""

from __future__ import annotations

import contextlib
import http.server
import ipaddress
import json
import os
import ssl
import threading
import time
from pathlib import Path

import pytest
import trustme
from lightkube.config.kubeconfig import KubeConfig
from lightkube.config.models import Cluster as ClusterEntry
from lightkube.config.models import User
from watched_objects import FIXTURES, outcome, values

from connectors.core.collector import run_collectors
from connectors.core.errors import CollectorError
from connectors.core.procfs import disk_metrics
from connectors.core.telemetry import encode_metrics
from connectors.kubernetes.cluster import Cluster
from connectors.kubernetes.config import K8sAgentConfig
from connectors.kubernetes.kubelet import kubelet_address, summary_metrics
from connectors.kubernetes.metrics import METRICS
from connectors.kubernetes.node import HostCollector, node_collectors
from connectors.kubernetes.resources import timestamp

SUMMARY = json.loads((FIXTURES / "summary.json").read_text())
NODE = {"k8s.node.uid": "n-1", "k8s.node.name": "node-1"}
NOW = timestamp("2026-11-22T18:00:00Z")


def resources(summary=SUMMARY):
    return list(summary_metrics(summary, NODE, NOW))


def exactly(found, resource):
    [metrics] = [r.metrics for r in found if r.resource == resource]
    return values(metrics)


def test_a_node_is_told_by_what_its_kubelet_measures():
    [node, *_] = resources()

    told, said = values(node.metrics), SUMMARY["node"]
    assert node.resource == NODE
    assert told["k8s.node.cpu.time"] == said["cpu"]["usageCoreNanoSeconds"] / 1e9
    assert told["k8s.node.cpu.usage"] == said["cpu"]["usageNanoCores"] / 1e9
    assert told["k8s.node.memory.working_set"] == said["memory"]["workingSetBytes"]
    assert told["k8s.node.memory.available"] == said["memory"]["availableBytes"]
    assert told["k8s.node.uptime"] == NOW - timestamp(said["startTime"])
    assert told["k8s.node.filesystem.usage"] == said["fs"]["usedBytes"]
    assert told["k8s.node.filesystem.inode.free"] == said["fs"]["inodesFree"]
    assert told["irca.k8s.node.image_filesystem.usage"] == said["runtime"]["imageFs"]["usedBytes"]
    assert told["irca.k8s.node.process.limit"] == said["rlimit"]["maxpid"]
    eth0 = next(each for each in said["network"]["interfaces"] if each["name"] == "eth0")
    assert told["k8s.node.network.io|eth0|receive"] == eth0["rxBytes"]
    assert told["k8s.node.network.errors|eth0|transmit"] == 0
    assert told["k8s.node.paging.faults|minor"] == said["memory"]["pageFaults"] - said["memory"]["majorPageFaults"]
    assert told["irca.k8s.node.kubelet.pod.count"] == 3


def test_counters_begin_when_what_they_count_began():
    [node, *rest] = resources()
    web = next(r for r in rest if r.resource.get("k8s.container.name") == "app" and r.resource["k8s.pod.name"].startswith("web"))

    def began(found, name):
        return next(m.start_time_unix_nano for m in found.metrics if m.name == name)

    assert began(node, "k8s.node.cpu.time") == timestamp(SUMMARY["node"]["startTime"]) * 1e9
    assert began(web, "container.cpu.time") > began(node, "k8s.node.cpu.time")
    assert began(web, "container.memory.usage") == 0


def test_pods_and_containers_are_known_as_the_cluster_view_knows_them():
    pod = next(p for p in SUMMARY["pods"] if p["podRef"]["name"].startswith("web"))
    found = resources()

    [whole, container] = [r for r in found if r.resource.get("k8s.pod.uid") == pod["podRef"]["uid"]]

    assert whole.resource == {
        "k8s.pod.uid": pod["podRef"]["uid"],
        "k8s.pod.name": pod["podRef"]["name"],
        "k8s.namespace.name": "km-fixture",
        "k8s.node.name": "node-1",
    }
    assert container.resource == {**whole.resource, "k8s.container.name": "app"}
    told = values(whole.metrics)
    assert told["k8s.pod.memory.usage"] == pod["memory"]["usageBytes"]
    assert told["k8s.pod.network.io|eth0|receive"] == pod["network"]["interfaces"][0]["rxBytes"]
    assert told["k8s.pod.filesystem.usage"] == pod["ephemeral-storage"]["usedBytes"]
    assert not [name for name in told if "volume" in name]
    [said] = pod["containers"]
    told = values(container.metrics)
    assert told["container.cpu.time"] == said["cpu"]["usageCoreNanoSeconds"] / 1e9
    assert told["container.memory.rss"] == said["memory"]["rssBytes"]
    assert told["container.memory.available"] == said["memory"]["availableBytes"]
    assert told["container.uptime"] == NOW - timestamp(said["startTime"])
    assert told["k8s.container.ephemeral_storage.usage|rootfs"] == said["rootfs"]["usedBytes"]
    assert told["k8s.container.ephemeral_storage.usage|logs"] == said["logs"]["usedBytes"]


def test_system_containers_are_told_by_name():
    found = exactly(resources(), {**NODE, "k8s.node.system_container.name": "pods"})

    assert found.keys() == {f"k8s.node.system_container.{n}" for n in ("cpu.time", "cpu.usage", "memory.usage", "memory.working_set")}


def test_volumes_of_claims_are_told_and_others_are_not():
    volumes = [
        {"name": "token", "usedBytes": 1},
        {"name": "data", "pvcRef": {"name": "claim", "namespace": "shop"}, "usedBytes": 5, "capacityBytes": 9, "inodesUsed": 2},
    ]
    pod = {"podRef": {"name": "p", "namespace": "shop", "uid": "u"}, "volume": volumes}

    [_, told] = resources({"node": {}, "pods": [pod]})

    assert values(told.metrics) == {
        "k8s.pod.volume.usage|data|persistentVolumeClaim|claim": 5,
        "k8s.pod.volume.capacity|data|persistentVolumeClaim|claim": 9,
        "k8s.pod.volume.inode.used|data|persistentVolumeClaim|claim": 2,
    }


def test_what_the_kubelet_does_not_know_yet_is_left_out():
    pod = {"podRef": {"name": "p", "namespace": "shop", "uid": "u"}, "containers": [{"name": "app", "startTime": None, "cpu": {}}]}

    [node, new, container] = resources({"node": {"nodeName": "node-1"}, "pods": [pod]})

    assert values(node.metrics) == {"irca.k8s.node.kubelet.pod.count": 1}
    assert (new.metrics, container.metrics) == ([], [])


def test_nothing_is_sent_that_is_not_in_the_table():
    for found in (m for r in [*resources(), *HostCollector(dict).collect()] for m in r.metrics):
        described = METRICS[found.name]
        assert (found.unit, found.kind) == (described.unit, described.kind)
        assert all(set(point.attributes) <= set(described.attributes) for point in found.points)


class KubeletStub(http.server.BaseHTTPRequestHandler):
    """Answers as a kubelet that has been told how."""

    protocol_version = "HTTP/1.1"
    status, body, delay = 200, b"{}", 0.0
    asked: list[tuple[str, str | None]]

    def do_GET(self):
        self.asked.append((self.path, self.headers["Authorization"]))
        time.sleep(self.delay)
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *args): ...


class QuietServer(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Connections that the agent breaks off are what some of these tests are about."""


@contextlib.contextmanager
def kubelet(authority, identity="127.0.0.1"):
    handler = type("Handler", (KubeletStub,), {"asked": [], "body": json.dumps(SUMMARY).encode()})
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(identity).configure_cert(context)
    with QuietServer(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="kubelet")
        thread.start()
        handler.address = f"127.0.0.1:{server.server_address[1]}"
        try:
            yield handler
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def token(tmp_path):
    path = tmp_path / "token"
    path.write_text("t-1")
    return path


@pytest.fixture
def cluster(authority, token, tmp_path):
    """A cluster with this CA, as a pod's service account finds it. Nobody asks its API server."""
    (tmp_path / "ca.crt").write_bytes(authority.cert_pem.bytes())
    entry = ClusterEntry(server="https://192.0.2.1:6443", certificate_auth=str(tmp_path / "ca.crt"))
    config = KubeConfig.from_one(cluster=entry, user=User(token="t-1", token_file=str(token)))
    made = Cluster(configure=config.get)
    yield made
    made.close()


@pytest.fixture
def collect(cluster, monkeypatch):
    """Runs the node view's collectors once, with these options and what the agent knows of its node."""
    monkeypatch.delenv("NODE_IP", raising=False)
    made = []

    def run(address="", known=NODE, *, anew=True, **config):
        if anew or not made:
            made[:] = node_collectors(cluster, K8sAgentConfig(kubelet_address=address, **config), lambda: known, lambda: NOW)
        return run_collectors(made, known)

    return run


def reason(collection):
    return outcome(collection)["kubernetes.kubelet"]


@pytest.mark.sockets
def test_the_kubelet_is_asked_as_the_service_account_and_its_certificate_is_checked(authority, collect):
    with kubelet(authority) as stub:
        collection = collect(stub.address)

    assert outcome(collection) == {"kubernetes.kubelet": "", "kubernetes.host": ""}
    assert stub.asked == [("/stats/summary", "Bearer t-1")]
    assert exactly(collection.resources, NODE)["k8s.node.memory.usage"] > 0
    assert encode_metrics(collection)


@pytest.mark.sockets
def test_a_token_that_was_rotated_is_read_anew(authority, collect, token):
    with kubelet(authority) as stub:
        collect(stub.address)
        stub.status = 401
        token.write_text("t-2")
        refused = collect(stub.address, anew=False)
        stub.status = 200
        accepted = collect(stub.address, anew=False)

    assert [authorization for _, authorization in stub.asked] == ["Bearer t-1", "Bearer t-2", "Bearer t-2", "Bearer t-2"]
    assert reason(refused) == "the kubelet does not accept the agent's token: it has to run with authentication by webhook"
    assert reason(accepted) == ""


@pytest.mark.sockets
def test_a_certificate_of_another_ca_is_refused_and_the_options_are_named(collect):
    with kubelet(trustme.CA()) as stub:
        refused = collect(stub.address)
        accepted = collect(stub.address, kubelet_insecure=True)

    assert "is not trusted" in reason(refused)
    assert "kubelet_ca_file" in reason(refused)
    assert "kubelet_insecure" in reason(refused)
    assert reason(accepted) == ""
    assert len(stub.asked) == 1, "the token must not have gone to whom we do not trust"


@pytest.mark.sockets
def test_a_certificate_for_another_name_is_refused(authority, collect):
    with kubelet(authority, "node-1.example.com") as stub:
        refused = collect(stub.address)

    assert "IP address mismatch" in reason(refused)
    assert stub.asked == []


@pytest.mark.sockets
def test_a_kubelets_own_ca_can_be_named(collect, tmp_path):
    own = trustme.CA()
    (tmp_path / "kubelet-ca.crt").write_bytes(own.cert_pem.bytes())
    with kubelet(own) as stub:
        accepted = collect(stub.address, kubelet_ca_file=str(tmp_path / "kubelet-ca.crt"))
        missing = collect(stub.address, kubelet_ca_file=str(tmp_path / "none.crt"))

    assert reason(accepted) == ""
    assert "kubelet_ca_file" in reason(missing)
    assert "No such file" in reason(missing)


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (403, b"Forbidden", "forbidden: the agent's role lacks verb get on resource nodes/stats (API group core)"),
        (500, b"out of\norder", "answered 500: out of order"),
        (200, b"<html>", "its summary is not JSON"),
        (200, b"[]", "its summary is not an object"),
        (200, b'{"pods": []}', "the kubelet's summary makes no sense: KeyError: 'node'"),
        (200, b'{"node": {"nodeName": "node-1"}, "pods": [{}]}', "the kubelet's summary makes no sense: KeyError: 'podRef'"),
        (200, b'{"node": {"nodeName": "node-7"}}', "is the kubelet of node-7, not of node-1"),
    ],
)
def test_what_a_kubelet_answers_amiss_is_told(authority, collect, status, body, expected):
    with kubelet(authority) as stub:
        stub.status, stub.body = status, body
        collection = collect(stub.address)

    assert expected in reason(collection)
    assert outcome(collection)["kubernetes.host"] == ""


@pytest.mark.sockets
def test_a_kubelet_that_does_not_answer_in_time_is_given_up_and_asked_again(authority, collect):
    with kubelet(authority) as stub:
        stub.delay = 1.5
        away = collect(stub.address, kube_timeout=1)
        stub.delay = 0
        there = collect(stub.address, anew=False)

    assert reason(away).endswith("does not answer within 1 s")
    assert reason(there) == ""


@pytest.mark.sockets
def test_a_summary_without_end_is_broken_off(authority, collect, monkeypatch):
    monkeypatch.setattr("connectors.kubernetes.kubelet.MAX_BYTES", 1000)
    with kubelet(authority) as stub:
        assert reason(collect(stub.address)) == "the kubelet's summary is larger than 1000 bytes"


@pytest.mark.sockets
def test_a_summary_that_trickles_in_is_given_up(authority, collect, monkeypatch):
    seconds = iter(range(0, 1000, 60))
    with kubelet(authority) as stub:
        monkeypatch.setattr("connectors.kubernetes.kubelet.time.monotonic", lambda: next(seconds))
        collection = collect(stub.address)
        monkeypatch.undo()

    assert reason(collection).endswith("does not answer within 10 s")


@pytest.mark.sockets
def test_a_kubelet_that_is_not_there_is_told(collect, free_port):
    assert "cannot be reached" in reason(collect(f"127.0.0.1:{free_port}"))


def test_without_an_address_or_credentials_there_is_a_reason(collect, cluster, monkeypatch):
    assert "NODE_IP does not say" in reason(collect())

    monkeypatch.setattr(cluster, "_configure", cluster_without_user)
    monkeypatch.setenv("NODE_IP", "192.0.2.9")
    assert "names no user" in reason(collect())


def cluster_without_user():
    return KubeConfig.from_one(cluster=ClusterEntry(server="https://192.0.2.1:6443")).get()


@pytest.mark.sockets
def test_the_node_is_named_by_its_kubelet_where_nobody_else_says_its_name(authority, collect):
    with kubelet(authority) as stub:
        collection = collect(stub.address, known={})

    assert exactly(collection.resources, {"k8s.node.name": "node-1"})["k8s.node.memory.usage"] > 0


@pytest.mark.parametrize(
    ("configured", "node_ip", "expected"),
    [
        ("", "192.0.2.9", "192.0.2.9:10250"),
        ("", str(ipaddress.IPv6Address("2001:db8::9")), "[2001:db8::9]:10250"),
        ("node-1:10255", "192.0.2.9", "node-1:10255"),
        ("node-1", "", "node-1:10250"),
        ("[2001:db8::9]", "", "[2001:db8::9]:10250"),
    ],
)
def test_the_kubelet_is_where_the_node_is(configured, node_ip, expected):
    assert kubelet_address(configured, node_ip) == expected


def test_the_host_is_measured_without_anything_of_it_mounted():
    [gathered] = HostCollector(lambda: NODE).collect()

    told = values(gathered.metrics)
    assert gathered.resource == NODE
    assert told["system.memory.limit"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert told["system.cpu.time|0|user"] > 0
    assert told.keys() >= {"irca.system.load.1m", "system.memory.linux.available", "system.paging.usage|used"}


@pytest.mark.parametrize(("content", "expected"), [(None, "cannot be read"), ("nonsense", "are not as expected")])
def test_a_proc_that_is_not_linuxs_is_told(tmp_path, content, expected):
    if content is not None:
        for name in ("stat", "meminfo", "loadavg", "diskstats"):
            Path(tmp_path / name).write_text(content)

    with pytest.raises(CollectorError, match=expected):
        list(HostCollector(dict, str(tmp_path)).collect())


def test_disks_are_told_and_their_parts_and_what_lies_upon_them_are_not():
    line = " 8 {minor} {name} 10 0 {sectors} 5 20 0 6 7 0 1500 9 0 0 0 0 0 0"
    names = ("loop0", "sda", "sda1", "sda12", "nvme0n1", "nvme0n1p1", "dm-0", "sdab", "idle")
    text = (
        "\n".join(line.format(minor=i, name=name, sectors=4) for i, name in enumerate(names[:-1])) + "\n 8 9 idle 0 0 0 0 0 0 0 0 0 0 0\n"
    )

    found = {name: value for metric in disk_metrics(text, 5) for name, value in values([metric]).items()}

    assert {key.split("|")[1] for key in found} == {"sda", "nvme0n1", "sdab"}
    assert found["system.disk.io|sda|read"] == 4 * 512
    assert found["system.disk.io|sda|write"] == 6 * 512
    assert found["system.disk.operations|sda|write"] == 20
    assert found["system.disk.io_time|sda"] == 1.5
    assert {metric.start_time_unix_nano for metric in disk_metrics(text, 5)} == {5}
    assert list(disk_metrics("", 5)) == []
