"""For tests of failures on a real cluster: a service account of exactly the documented rights, and a TCP proxy before the API server."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from connectors.kubernetes.access import Access
from connectors.kubernetes.cluster import Cluster
from connectors.kubernetes.cluster_watch import ClusterWatch
from connectors.kubernetes.kinds import KINDS
from connectors.kubernetes.lease import Elector
from connectors.kubernetes.view import View

RBAC = "rbac.authorization.k8s.io/v1"


def kubectl(*arguments: str, document: object = None, check: bool = True) -> str:
    given = None if document is None else json.dumps(document)
    done = subprocess.run(["kubectl", *arguments], input=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout.strip()


class Proxy:
    """Passes bytes on to the API server, until it is told to refuse, to hang or to cut."""

    def __init__(self, server: str) -> None:
        parts = urllib.parse.urlsplit(server)
        self._target = (parts.hostname or "", parts.port or 443)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.hanging = threading.Event()
        self._passing = threading.Event()
        self._passing.set()
        self._listener = self._listen(0)
        self.port = self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def down(self) -> None:
        """Refuse connections, and end those that are."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def up(self) -> None:
        self._listener = self._listen(self.port)

    def hang(self) -> None:
        """Take connections and bytes, and pass nothing on."""
        self._passing.clear()

    def go_on(self) -> None:
        self._passing.set()

    def cut(self) -> None:
        """End the connections that are; new ones are taken."""
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _listen(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(64)
        threading.Thread(target=self._accept, args=(listener,), name="proxy", daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target, 10)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            left = [2]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, sink, left), name="proxy-pass", daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, left: list[int]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._passing.wait()
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        with self._lock:
            left[0] -= 1
            if not left[0]:
                self._open -= {source, sink}
                source.close()
                sink.close()


@contextmanager
def proxy(server: str) -> Iterator[Proxy]:
    made = Proxy(server)
    try:
        yield made
    finally:
        made.go_on()
        with contextlib.suppress(OSError):
            made.down()


class Account:
    """A service account ``agent`` in a namespace, with the rights it is given, and a kubeconfig that uses it."""

    def __init__(self, namespace: str, directory: Path, original: str) -> None:
        self.namespace = namespace
        self.original = original
        self.token_file = directory / "token"
        self.kubeconfig = directory / "kubeconfig"
        config = json.loads(self._kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
        self.server = str(config["clusters"][0]["cluster"]["server"])
        config["users"][0]["user"] = {"tokenFile": str(self.token_file)}
        config["contexts"][0]["context"]["namespace"] = namespace
        self._config = config
        self.reach(self.server)
        self._kubectl("-n", namespace, "create", "serviceaccount", "agent")
        self.issue()

    def reach(self, server: str) -> None:
        """Reach the API server there."""
        self._config["clusters"][0]["cluster"]["server"] = server
        self.kubeconfig.write_text(json.dumps(self._config))

    def issue(self) -> None:
        """A new token, as the kubelet puts it into its file."""
        new = self.token_file.with_suffix(".new")
        new.write_text(self._kubectl("-n", self.namespace, "create", "token", "agent"))
        new.replace(self.token_file)

    def recreate(self) -> None:
        """Make the account anew: tokens of the old one are not taken any more."""
        self._kubectl("-n", self.namespace, "delete", "serviceaccount", "agent")
        self._kubectl("-n", self.namespace, "create", "serviceaccount", "agent")

    def allow(self, *accesses: Access) -> None:
        """Exactly these rights."""
        subject = [{"kind": "ServiceAccount", "name": "agent", "namespace": self.namespace}]
        for kind, namespaced in (("ClusterRole", False), ("Role", True)):
            meta = {"name": self.namespace} | ({"namespace": self.namespace} if namespaced else {})
            rules = [
                {"apiGroups": [a.group], "resources": [a.resource], "verbs": [a.verb]}
                | ({"resourceNames": list(a.names)} if a.names else {})
                for a in accesses
                if a.namespaced is namespaced
            ]
            self._kubectl("apply", "-f", "-", document={"apiVersion": RBAC, "kind": kind, "metadata": meta, "rules": rules})
            ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": self.namespace}
            binding = {"apiVersion": RBAC, "kind": f"{kind}Binding", "metadata": meta, "roleRef": ref, "subjects": subject}
            self._kubectl("apply", "-f", "-", document=binding)

    def _kubectl(self, *arguments: str, document: object = None) -> str:
        """As whoever runs the tests."""
        return kubectl("--kubeconfig", self.original, *arguments, document=document)

    def remove(self) -> None:
        self._kubectl("delete", "clusterrole,clusterrolebinding", self.namespace, "--ignore-not-found")


class Pod:
    """The cluster view of one of an agent's pods, in this process. ``told`` are the changes: kind, name, whether of the first list."""

    def __init__(self, identity: str, *kinds: str, lease: str = "agent", clock: Callable[[], float] = time.time, max_waiting: int = 10_000):
        self.cluster = Cluster(timeout=3, page_size=50)
        self.namespace = self.cluster.namespace
        self.view = View([KINDS[name] for name in kinds], max_waiting=max_waiting)
        self.elector = Elector(self.cluster, lease, identity, clock=clock)
        self.watch = ClusterWatch(self.cluster, self.view, self.elector, clock=clock)
        self.told: list[tuple[str, str, bool]] = []
        self.slowness = 0.0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.watch.run, args=(lambda _since: self, self.stopping), name=f"pod-{identity}")
        self.thread.start()

    def __call__(self, kind: str, before: Any, after: Any, initial: bool) -> None:
        time.sleep(self.slowness)
        meta = (after or before)["metadata"]
        if meta.get("namespace", self.namespace) == self.namespace:  # others do things in the cluster, too
            self.told.append((kind, meta["name"], initial))

    def tick(self, now: float) -> None: ...

    def close(self) -> None: ...

    def changes(self, kind: str, name: str) -> int:
        """How often a change of this object was told."""
        return self.told.count((kind, name, False))

    def reasons(self) -> set[str]:
        return {self.view.state(kind.name).reason for kind in self.view.kinds}

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join(15)
        self.cluster.close()
