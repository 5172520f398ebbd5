"""A Docker engine's event stream in miniature, over a real Unix socket: a buffer of 256 events, and whoever follows hears of new ones."""

from __future__ import annotations

import json
import shutil
import socketserver
import tempfile
import threading
import time
import urllib.parse
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any


class EventEngine:
    """What the engine holds; ``fail`` is a status by path, ``hang`` are paths that are accepted and not answered."""

    def __init__(self, socket: Path) -> None:
        self.host = f"unix://{socket}"
        self.identity = "ENGINE"
        self.events: deque[dict[str, Any]] = deque(maxlen=256)
        self.containers: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, bytes] = {}
        self.fail: dict[str, tuple[int, str]] = {}
        self.hang: set[str] = set()
        self.deaf = False
        self.requests: list[str] = []
        self.changed = threading.Condition()
        self.generation = 0
        self.over = threading.Event()

    def say(self, kind: str, action: str, actor: str, *, at: int = 0, **attributes: str) -> int:
        """Something happens; its time in Unix nanoseconds."""
        when = at or time.time_ns()
        told = {"Type": kind, "Action": action, "Actor": {"ID": actor, "Attributes": attributes}, "timeNano": when, "time": when // 10**9}
        with self.changed:
            self.events.append(told)
            self.changed.notify_all()
        return when

    def add(self, name: str, *, number: int, **config: Any) -> str:
        """A running container; its id."""
        identity = f"{number:064x}"
        self.containers[identity] = {
            "Id": identity,
            "Name": f"/{name}",
            "Image": "sha256:" + "b" * 64,
            "Created": f"2026-11-22T14:45:{number % 60:02d}Z",
            "RestartCount": 2,
            "State": {"Status": "running", "Running": True, "OOMKilled": False, "StartedAt": "2026-11-22T14:45:24.9Z", "ExitCode": 0},
            "Config": {"Image": "team/app:1.2", "Labels": {}, "Env": ["A=1"], "Tty": False} | config,
            "HostConfig": {"Memory": 0},
            "NetworkSettings": {"Networks": {"bridge": {}}},
        }
        return identity

    def finish(self, identity: str, when: int, **state: Any) -> None:
        """The container's process has ended."""
        finished = datetime.fromtimestamp(when / 1e9, UTC).isoformat()
        self.containers[identity]["State"].update(Status="exited", Running=False, FinishedAt=finished, **state)

    def cut(self) -> None:
        """End every stream."""
        with self.changed:
            self.generation += 1
            self.changed.notify_all()

    def restart(self) -> None:
        """Forget all events and end every stream."""
        self.events.clear()
        self.cut()

    def document(self, path: str) -> tuple[int, Any]:
        if path == "/version":
            return 200, {"ApiVersion": "1.41", "Version": "20.10.24"}
        if path == "/info":
            return 200, {"ID": self.identity, "Name": "box", "SystemTime": datetime.now(UTC).isoformat()}
        if path == "/containers/json":
            return 200, [
                {
                    "Id": c["Id"],
                    "Names": [c["Name"]],
                    "Image": c["Config"]["Image"],
                    "ImageID": c["Image"],
                    "Labels": c["Config"]["Labels"],
                    "State": c["State"]["Status"],
                    "Created": int(datetime.fromisoformat(c["Created"]).timestamp()),
                }
                for c in reversed(list(self.containers.values()))
            ]
        if path.startswith("/images/"):
            return 200, {"RepoDigests": ["team/app@sha256:99"]}
        found = self.containers.get(path.split("/")[2])
        return (200, found) if found else (404, {"message": "No such container"})


@contextmanager
def running_event_engine() -> Iterator[EventEngine]:  # noqa: C901 - one class of one handler inside
    """An engine that answers on a socket of its own until the block ends."""
    directory = Path(tempfile.mkdtemp(prefix="irca-ev-"))  # short: a socket's path has at most 107 characters
    engine = EventEngine(directory / "docker.sock")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urllib.parse.urlsplit(self.path)
            path = "/" + parts.path.split("/", 2)[2] if parts.path.startswith("/v1.") else parts.path
            engine.requests.append(path)
            if path in engine.hang:
                engine.over.wait()
                return
            if path in engine.fail:
                status, words = engine.fail[path]
                self._answer(status, json.dumps({"message": words}).encode())
            elif path == "/events":
                self._events(dict(urllib.parse.parse_qsl(parts.query)))
            elif path.endswith("/logs"):
                self._answer(200, engine.logs.get(path.split("/")[2], b""))
            else:
                status, document = engine.document(path)
                self._answer(status, json.dumps(document).encode())

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _events(self, asked: dict[str, str]) -> None:
            since, until = (int(asked[key].replace(".", "")) if key in asked else 0 for key in ("since", "until"))
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.flush()
            with engine.changed:
                generation, told = engine.generation, [e for e in engine.events if e["timeNano"] >= since]
            for event in told:
                if not until or event["timeNano"] <= until:
                    self._chunk(json.dumps(event).encode() + b"\n")
            while not until and engine.generation == generation and not engine.over.is_set():
                with engine.changed:
                    known = [id(e) for e in told]
                    new = [e for e in engine.events if id(e) not in known and e["timeNano"] >= since]
                    if not new or engine.deaf:
                        engine.changed.wait(0.05)
                        continue
                    told += new
                self._chunk(b"".join(json.dumps(e).encode() + b"\n" for e in new))
            self._chunk(b"")

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

        def address_string(self) -> str:
            return "engine"

        def log_message(self, *args: Any) -> None: ...

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *args: Any) -> None: ...  # a client that went away

    with Server(str(directory / "docker.sock"), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="event-engine")
        thread.start()
        try:
            yield engine
        finally:
            engine.over.set()
            engine.cut()
            server.shutdown()
            thread.join()
            shutil.rmtree(directory)
