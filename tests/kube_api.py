"""An API server of Kubernetes as far as lists, watches, leases and discovery go, on loopback, whose faults a test can choose."""

from __future__ import annotations

import json
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.config.models import Cluster as ClusterConfig
from lightkube.config.models import User

from connectors.kubernetes.kinds import KINDS

SERVED = {
    "/apis/apps/v1": ("deployments", "replicasets", "statefulsets", "daemonsets"),
    "/apis/batch/v1": ("jobs",),
    "/apis/batch/v1beta1": ("cronjobs",),
    "/apis/autoscaling/v1": ("horizontalpodautoscalers",),
    "/apis/policy/v1beta1": ("poddisruptionbudgets",),
    "/apis/rbac.authorization.k8s.io/v1": ("roles", "rolebindings", "clusterroles", "clusterrolebindings"),
    "/apis/coordination.k8s.io/v1": ("leases",),
    "/api/v1": tuple(kind.name for kind in KINDS.values() if not kind.group),
}
"""What a cluster of 1.20 serves."""


class KubeApi:
    """The objects, by plural; ``faults`` maps plural and verb to (status, message, how many times)."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
        self.history: list[tuple[int, str, str, dict[str, Any]]] = []
        self.version = 100
        self.compacted = 0
        self.faults: dict[tuple[str, str], list[Any]] = {}
        self.forbidden: set[tuple[str, str]] = set()
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.served = {path: set(names) for path, names in SERVED.items()}
        self.token = "good"
        self.changed = threading.Condition()
        self.cut = 0
        self.raw_lines: list[bytes] = []
        self.base = ""

    def put(self, plural: str, name: str, namespace: str = "ns", *, uid: str = "", **rest: Any) -> dict[str, Any]:
        """Make or change an object."""
        with self.changed:
            self.version += 1
            known = self.objects.setdefault(plural, {}).get((namespace, name))
            meta = {"name": name, "namespace": namespace, "uid": uid or f"uid-{plural}-{name}", "resourceVersion": str(self.version)}
            meta |= rest.pop("metadata", {})
            item = {"metadata": meta, **rest}
            self.objects[plural][namespace, name] = item
            self.history.append((self.version, plural, "MODIFIED" if known else "ADDED", item))
            self.changed.notify_all()
            return item

    def delete(self, plural: str, name: str, namespace: str = "ns") -> None:
        with self.changed:
            self.version += 1
            item = self.objects[plural].pop((namespace, name))
            gone = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version)}}
            self.history.append((self.version, plural, "DELETED", gone))
            self.changed.notify_all()

    def compact(self) -> None:
        """Forget what was: watches and lists of the past are answered 410."""
        with self.changed:
            self.compacted = self.version
            self.cut += 1
            self.changed.notify_all()

    def cut_watches(self) -> None:
        with self.changed:
            self.cut += 1
            self.changed.notify_all()

    def say(self, line: bytes) -> None:
        """Send this line to every watch."""
        with self.changed:
            self.raw_lines.append(line)
            self.changed.notify_all()

    def count(self, plural: str, verb: str) -> int:
        return sum(1 for p, v, _ in self.requests if (p, v) == (plural, verb))

    def config(self, token: str = "good") -> SingleConfig:
        found = KubeConfig.from_one(cluster=ClusterConfig(server=self.base), user=User(token=token), namespace="here").get()
        assert found is not None
        return found


@contextmanager
def kube_api() -> Iterator[KubeApi]:
    api = KubeApi()

    class Handler(_Handler):
        state = api

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    api.base = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, name="kube-api", args=(0.05,))
    thread.start()
    try:
        yield api
    finally:
        api.compact()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: KubeApi

    def log_message(self, *args: Any) -> None: ...

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        known = {"/api/v1/namespaces/kube-system": "uid-of-the-cluster", "/api/v1/nodes/node-1": "uid-of-the-node"}
        if self.headers.get("Authorization") != f"Bearer {self.state.token}":
            self._status(401, "Unauthorized")
        elif url.path in known:
            self._json(200, {"metadata": {"uid": known[url.path]}})
        elif url.path == "/apis" or url.path in self.state.served:
            self._json(200, self._discovery(url.path))
        elif "/leases/" in url.path:
            self._get_lease(url.path.rpartition("/")[2])
        else:
            self._objects(url.path, dict(urllib.parse.parse_qsl(url.query)))

    def _discovery(self, path: str) -> dict[str, Any]:
        if path in self.state.served:
            return {"resources": [{"name": name, "verbs": ["get", "list", "watch"]} for name in self.state.served[path]]}
        groups: dict[str, list[str]] = {}
        for base in self.state.served:
            if base.startswith("/apis/"):
                groups.setdefault(base.split("/")[2], []).append(base.split("/")[3])
        return {"groups": [{"name": name, "versions": [{"version": v} for v in versions]} for name, versions in groups.items()]}

    def _objects(self, path: str, params: dict[str, str]) -> None:
        base, _, plural = path.rpartition("/")
        verb = "watch" if params.get("watch") else "list"
        self.state.requests.append((plural, verb, params))
        if plural not in self.state.served.get(base, ()):
            self._status(404, "not here")
        elif not self._faulty(plural, verb):
            self._watch(plural, params) if verb == "watch" else self._list(plural, params)

    def do_POST(self) -> None:
        document = self._body()
        if self.path.endswith("selfsubjectaccessreviews"):
            asked = document["spec"]["resourceAttributes"]
            self._json(201, {"status": {"allowed": (asked["resource"], asked["verb"]) not in self.state.forbidden}})
        elif not self._faulty("leases", "create"):
            with self.state.changed:
                name = document["metadata"]["name"]
                if ("here", name) in self.state.objects.get("leases", {}):
                    self._status(409, "already exists")
                    return
                made = self.state.put("leases", name, "here", spec=document["spec"])
            self._json(201, made)

    def do_PUT(self) -> None:
        document = self._body()
        if self._faulty("leases", "update"):
            return
        with self.state.changed:
            name = document["metadata"]["name"]
            known = self.state.objects.get("leases", {}).get(("here", name))
            if known is None:
                self._status(404, "not found")
                return
            if known["metadata"]["resourceVersion"] != document["metadata"]["resourceVersion"]:
                self._status(409, "modified meanwhile")
                return
            made = self.state.put("leases", name, "here", spec=document["spec"])
        self._json(200, made)

    def _get_lease(self, name: str) -> None:
        if self._faulty("leases", "get"):
            return
        lease = self.state.objects.get("leases", {}).get(("here", name))
        self._json(200, lease) if lease else self._status(404, "not found")

    def _list(self, plural: str, params: Mapping[str, str]) -> None:
        with self.state.changed:
            items = sorted(self.state.objects.get(plural, {}).items())
            version, after = self.state.version, None
            if "continue" in params:
                token = json.loads(params["continue"])
                version, after = token["version"], tuple(token["after"])
                if version < self.state.compacted:
                    self._status(410, "the continue token has expired")
                    return
            rest = [(key, item) for key, item in items if after is None or key > after]
            limit = int(params.get("limit", 500))
            page = rest[:limit]
            meta = {"resourceVersion": str(version)}
            if len(rest) > limit:
                meta["continue"] = json.dumps({"version": version, "after": page[-1][0]})
        self._json(200, {"metadata": meta, "items": [item for _, item in page] or None})

    def _watch(self, plural: str, params: Mapping[str, str]) -> None:
        state, at = self.state, int(params["resourceVersion"])
        cut, said = state.cut, len(state.raw_lines)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if at < state.compacted:
            status = {"kind": "Status", "code": 410, "message": "too old resource version"}
            self._chunk(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
            self._chunk(b"")
            return
        deadline = time.monotonic() + float(params["timeoutSeconds"])
        try:
            while time.monotonic() < deadline:
                with state.changed:
                    news = [entry for entry in state.history if entry[0] > at and entry[1] == plural]
                    lines = state.raw_lines[said:]
                    if not news and not lines and cut == state.cut:
                        state.changed.wait(0.2)
                        continue
                for version, _, what, item in news:
                    at = version
                    self._chunk(json.dumps({"type": what, "object": item}).encode() + b"\n")
                for line in lines:
                    said += 1
                    self._chunk(line)
                if cut != state.cut:
                    break
            self._chunk(b"")
        except OSError:
            self.close_connection = True

    def _faulty(self, plural: str, verb: str) -> bool:
        fault = self.state.faults.get((plural, verb))
        if not fault or not fault[2]:
            return False
        fault[2] -= 1
        self._status(fault[0], fault[1])
        return True

    def _body(self) -> dict[str, Any]:
        return dict(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _status(self, code: int, message: str) -> None:
        self._json(code, {"kind": "Status", "code": code, "message": message})

    def _json(self, code: int, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()
