"""Engines to break: a private Docker engine of the test's own, and a proxy before an engine that hangs, refuses, cuts and lies.

Import as ``from integration.docker_engines import private_engine, faulty_proxy``; both are context managers.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARED_SOCKET = Path("/var/run/docker.sock")
_WAIT = 30


class PrivateEngine:
    """A ``dockerd`` with data, socket, containers and networks of its own; its containers reach nothing outside.

    It lives in a network namespace of its own, for it would delete or take over the bridge ``docker0`` of the machine's other engine. The
    default runtime and other settings come from the machine's own ``daemon.json``.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "docker.sock"
        self.host = f"unix://{self.socket}"
        self.log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        # In a network namespace of its own: an engine without a bridge removes docker0 wherever it finds it.
        command = [
            "unshare",
            "--net",
            "dockerd",
            "--data-root",
            str(self.directory / "data"),
            "--exec-root",
            str(self.directory / "exec"),
            "-H",
            self.host,
        ]
        command += ["--pidfile", str(self.directory / "pid"), "--iptables=false", "--ip-forward=false", "--ip-masq=false"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + _WAIT
        while not self.answers():
            alive = self._process.poll() is None and time.monotonic() < deadline
            assert alive, f"the private engine did not start:\n{self.log.read_text(errors='replace')[-2000:]}"
            time.sleep(0.1)

    def answers(self) -> bool:
        """Whether it answers a ping."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2)
            connection.connect(str(self.socket))
            connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(100)
        return False

    def stop(self) -> None:
        """End it as the service manager would; its containers are stopped. The socket is gone afterwards."""
        self.freeze(False)
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_WAIT)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None

    def kill(self) -> None:
        """End it as a crash would, with its containerd: the socket's file stays, and nothing listens on it."""
        files = [self.directory / "pid", self.directory / "exec" / "containerd" / "containerd.pid"]
        for path in files:
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(path.read_text()), signal.SIGKILL)
            # Where process 1 reaps nothing, the engine would take the dead containerd for a running one.
            path.unlink(missing_ok=True)
        if self._process is not None:
            self._process.kill()
            self._process.wait(_WAIT)
        self._process = None

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def freeze(self, frozen: bool = True) -> None:
        """Make the engine hang, connections accepted by the kernel but never answered; or let it go on."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def docker(self, *arguments: str) -> str:
        """What the docker command prints about this engine."""
        done = subprocess.run(["docker", "-H", self.host, *arguments], check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr.strip()}"
        return done.stdout.strip()

    def load(self, image: str) -> None:
        """Copy an image from the machine's shared engine."""
        save = subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE)
        try:
            subprocess.run(["docker", "-H", self.host, "load"], stdin=save.stdout, check=True, capture_output=True, timeout=120)
        finally:
            assert save.stdout is not None
            save.stdout.close()
            save.wait(_WAIT)

    def run(self, name: str, *command: str, image: str, options: tuple[str, ...] = ()) -> str:
        """Start a detached container; returns its id."""
        return self.docker("run", "--detach", "--name", name, *options, image, *command)


@contextlib.contextmanager
def private_engine(*images: str) -> Iterator[PrivateEngine]:
    """A running private engine that holds ``images``; it and all that is in it are gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="irca-eng-"))  # short: a socket's path has at most 107 characters
    (directory / "data").mkdir()
    engine = PrivateEngine(directory)
    try:
        engine.start()
        for image in images:
            engine.load(image)
        yield engine
    finally:
        with contextlib.suppress(AssertionError, subprocess.SubprocessError):
            engine.freeze(False)
            if not engine.answers():
                engine.kill()
                engine.start()
            if left := engine.docker("ps", "--all", "--quiet").split():
                engine.docker("rm", "--force", "--volumes", *left)
        engine.stop()
        # An engine that was killed leaves its data directory mounted on itself.
        subprocess.run(["umount", "--lazy", str(directory / "data")], check=False, capture_output=True, timeout=_WAIT)
        shutil.rmtree(directory, ignore_errors=True)


@dataclass(frozen=True, eq=False)
class Rule:
    """What the proxy does with requests whose path (without version) matches ``pattern``; see :meth:`FaultyProxy.rule`."""

    pattern: re.Pattern[str]
    hang: bool = False
    delay: float = 0.0
    cut: bool = False
    answer: tuple[int, Any] | None = None
    rewrite: Callable[[Any], Any] | None = None
    before: Callable[[], object] | None = None


class FaultyProxy:
    """A Unix socket before a real engine. Each request goes upstream over a connection of its own, unless a rule says otherwise.

    ``requests`` lists what was asked, as ``GET /path?query`` without the version.
    """

    def __init__(self, path: Path, upstream: Path) -> None:
        self.socket = path
        self.host = f"unix://{path}"
        self.upstream = upstream
        self.requests: list[str] = []
        self._rules: list[Rule] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._go_on = threading.Event()
        self._server: socketserver.ThreadingUnixStreamServer | None = None
        self._thread: threading.Thread | None = None

    def rule(self, pattern: str, **does: Any) -> Rule:
        """Order a fault for paths that match ``pattern`` from their beginning (a regular expression; ``""`` is every path).

        One of: ``hang`` (accepted, not answered until :meth:`clear`), ``delay`` (seconds), ``cut`` (the connection is closed instead of
        an answer), ``answer`` (status and document instead of the engine's), ``rewrite`` (a function of the engine's document),
        ``before`` (called before the request goes on). Of several rules that match, the first counts.
        """
        made = Rule(re.compile(pattern), **does)
        self._rules.append(made)
        return made

    def clear(self) -> None:
        """Forget all rules; requests that hang are cut."""
        self._rules.clear()
        self._go_on.set()
        self._go_on = threading.Event()

    def cut(self) -> None:
        """Cut every open connection, such as event streams."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def up(self) -> None:
        """Listen (again)."""
        proxy = self
        self.socket.unlink(missing_ok=True)

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError), proxy._tracked(self.request):
                    proxy._serve(self.rfile, self.request)

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 256

        self._server = Server(str(self.socket), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="faulty-proxy")
        self._thread.start()

    def down(self, *, leave_socket: bool = False) -> None:
        """Stop listening and cut everything; the socket's file goes, or stays and refuses connections."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = self._thread = None
        self._go_on.set()
        self._go_on = threading.Event()
        self.cut()
        if not leave_socket:
            self.socket.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _tracked(self, connection: socket.socket) -> Iterator[None]:
        with self._lock:
            self._open.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(connection)

    def _serve(self, reader: Any, client: socket.socket) -> None:
        """One request of a client, and its answer; the connection ends with it."""
        first = reader.readline().decode("latin-1")
        if not first.strip():
            return
        method, target, _ = first.split()
        headers = list(iter(lambda: reader.readline().decode("latin-1"), "\r\n"))
        length = sum(int(line.split(":")[1]) for line in headers if line.lower().startswith("content-length:"))
        body = reader.read(length)
        path = re.sub(r"^/v1\.\d+", "", urllib.parse.urlsplit(target).path) or "/"
        query = urllib.parse.urlsplit(target).query
        self.requests.append(f"{method} {path}{'?' + query if query else ''}")
        matching = next((rule for rule in list(self._rules) if rule.pattern.match(path)), None)
        if matching is not None:
            if matching.before is not None:
                matching.before()
            if matching.hang:
                self._go_on.wait()
                return
            time.sleep(matching.delay)
            if matching.cut:
                return
            if matching.answer is not None:
                _respond(client, *matching.answer)
                return
        kept = [line for line in headers if not line.lower().startswith("connection:")]
        head = "".join([first, *kept, "Connection: close\r\n\r\n"]).encode("latin-1")
        with socket.socket(socket.AF_UNIX) as upstream, self._tracked(upstream):
            upstream.connect(str(self.upstream))
            upstream.sendall(head + body)
            if matching is not None and matching.rewrite is not None:
                status, document = _read(upstream)
                _respond(client, status, matching.rewrite(document))
                return
            while chunk := upstream.recv(65536):
                client.sendall(chunk)


@contextlib.contextmanager
def faulty_proxy(upstream: Path | str = SHARED_SOCKET) -> Iterator[FaultyProxy]:
    """A proxy before the engine that listens on ``upstream``, without faults until some are ordered."""
    directory = Path(tempfile.mkdtemp(prefix="irca-prx-"))
    proxy = FaultyProxy(directory / "docker.sock", Path(upstream))
    proxy.up()
    try:
        yield proxy
    finally:
        proxy.clear()
        proxy.down()
        shutil.rmtree(directory)


def _respond(client: socket.socket, status: int, document: Any) -> None:
    body = json.dumps(document).encode()
    head = f"HTTP/1.1 {status} By order\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    client.sendall(head.encode() + body)


def _read(connection: socket.socket) -> tuple[int, Any]:
    """Status and document of an answer that ends with its connection."""
    import http.client

    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, json.loads(answer.read())
