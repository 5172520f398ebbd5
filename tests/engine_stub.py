"""A Docker engine's API in miniature, over a real Unix socket: enough for docker-py to talk to, with faults to order."""

from __future__ import annotations

import json
import shutil
import socketserver
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

STARTED = "2026-11-22T14:45:24.907458139Z"


class EngineStub:
    """What the engine holds and how it answers.

    By path (without version), ``fail`` is a status, ``slow`` a delay in seconds, ``replies`` status and document.
    """

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.host = f"unix://{socket}"
        self.api_version = "1.41"
        self.oldest_api_version = "1.12"
        self.containers: dict[str, dict[str, Any]] = {}
        self.statistics: dict[str, dict[str, Any]] = {}
        self.fail: dict[str, int] = {}
        self.slow: dict[str, float] = {}
        self.replies: dict[str, tuple[int, Any]] = {}
        self.images: list[dict[str, Any]] = []
        self.disk: dict[str, Any] = {"LayersSize": 1000, "Containers": [], "Volumes": [], "BuildCache": []}
        self.requests: list[str] = []

    def add(self, name: str, *, image: str = "team/app:1.2", labels: dict[str, str] | None = None, **state: Any) -> str:
        identity = f"{len(self.containers):x}".rjust(64, "a")
        described = {
            "Status": "running",
            "Running": True,
            "Paused": False,
            "StartedAt": STARTED,
            "FinishedAt": "0001-01-01T00:00:00Z",
            "ExitCode": 0,
        }
        self.containers[identity] = {
            "Id": identity,
            "Name": f"/{name}",
            "Image": "sha256:" + "b" * 64,
            "RestartCount": 0,
            "State": described | state,
            "Config": {"Image": image, "Labels": labels or {}},
            "HostConfig": {"Memory": 0},
        }
        self.statistics[identity] = statistics()
        return identity

    def answer(self, method: str, target: str) -> tuple[int, Any]:
        parts = urllib.parse.urlsplit(target)
        path = "/" + parts.path.split("/", 2)[2] if parts.path.startswith("/v1.") else parts.path
        self.requests.append(f"{method} {path}{'?' + parts.query if parts.query else ''}")
        time.sleep(self.slow.get(path, 0))
        if path in self.fail:
            return self.fail[path], {"message": f"refused by order: {path}"}
        if path in self.replies:
            return self.replies[path]
        if path == "/version":
            return 200, {"ApiVersion": self.api_version, "MinAPIVersion": self.oldest_api_version, "Version": "20.10.24"}
        if path == "/info":
            running = sum(c["State"]["Running"] for c in self.containers.values())
            stopped = len(self.containers) - running
            counts = {"ContainersRunning": running, "ContainersPaused": 0, "ContainersStopped": stopped, "Images": 7}
            return 200, {"ID": "ENGINE", "Name": "box", "OSType": "linux", "Architecture": "x86_64", "ServerVersion": "20.10.24", **counts}
        if path == "/containers/json":
            return 200, [summary(c) for c in self.containers.values()]
        if path == "/images/json":
            return 200, self.images
        if path == "/system/df":
            return 200, self.disk
        _, _, name, *action = path.split("/")
        found = self.containers.get(name) or next((c for c in self.containers.values() if c["Name"] == f"/{name}"), None)
        found = found or next((c for i, c in self.containers.items() if i.startswith(name)), None)
        if found is None:
            return 404, {"message": f"No such container: {name}"}
        return self._act(found, action[0])

    def _act(self, found: dict[str, Any], action: str) -> tuple[int, Any]:
        if action == "json":
            return 200, found
        if action == "stats":
            return 200, self.statistics[found["Id"]]
        running = {"start": True, "unpause": True, "stop": False}[action]
        changed = found["State"]["Running"] != running or found["State"]["Paused"]
        found["State"].update(Running=running, Paused=False, Status="running" if running else "exited")
        return (204 if changed else 304), None


def summary(container: dict[str, Any]) -> dict[str, Any]:
    described = container["Config"]
    return {
        "Id": container["Id"],
        "Names": [container["Name"]],
        "Image": described["Image"],
        "ImageID": container["Image"],
        "Labels": described["Labels"],
        "State": container["State"]["Status"],
    }


def statistics(*, used: int = 31_091_038, read: str = "2026-11-22T14:45:27.652138415Z", **changes: Any) -> dict[str, Any]:
    """One-shot statistics as recorded from Docker 20.10 on cgroup v1."""
    memory = {"total_inactive_file": 200_000, "inactive_file": 100_000, "total_rss": 98_304, "total_pgfault": 1048, "total_pgmajfault": 8}
    return {
        "read": read,
        "pids_stats": {"current": 3},
        "blkio_stats": {
            "io_service_bytes_recursive": [
                {"major": 8, "minor": 0, "op": "Read", "value": 4096},
                {"major": 8, "minor": 0, "op": "Write", "value": 512},
                {"major": 8, "minor": 0, "op": "Total", "value": 4608},
            ]
        },
        "cpu_stats": {"cpu_usage": {"total_usage": used}, "online_cpus": 2},
        "memory_stats": {"usage": 618_496, "stats": memory, "limit": 25_276_514_304},
        "networks": {"eth0": {"rx_bytes": 1042, "tx_bytes": 90}},
    } | changes


@contextmanager
def running_engine() -> Iterator[EngineStub]:
    """An engine stub that answers on a socket of its own until the block ends."""
    directory = Path(tempfile.mkdtemp(prefix="irca-"))  # short: a socket's path has at most 107 characters
    engine = EngineStub(directory / "docker.sock")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, document = engine.answer(self.command, self.path)
            body = b"" if document is None else document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if status != 304:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _serve  # noqa: N815 - http.server's own names

        def address_string(self) -> str:
            return "stub"

        def log_message(self, *args: Any) -> None: ...

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *args: Any) -> None: ...  # a client that gave up waiting

    with Server(str(engine.socket), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="engine-stub")
        thread.start()
        try:
            yield engine
        finally:
            server.shutdown()
            thread.join()
            shutil.rmtree(directory)
