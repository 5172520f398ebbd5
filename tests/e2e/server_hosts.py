"""Booted hosts to install into, and a platform with a front before it that can be made to fail as networks do."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
from waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
GATEWAY = "172.17.0.1"  # this machine, as its containers see it
KEY = "a-preset-admin-key-for-tests"
SERVICE = "incident-rca-agent"
PREFIX = f"sl-{os.getpid()}"
_HOP = {"connection", "keep-alive", "transfer-encoding", "date", "server", "content-length"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((GATEWAY, 0))
        return probe.getsockname()[1]


@dataclass
class Front:
    """What hosts talk to: hands everything on to the platform, but for what a test has put in the way."""

    target: int
    port: int = 0
    instead: dict[str, bytes] = field(default_factory=dict)
    """Bodies that are served in place of the platform's, by path."""
    cut: dict[str, int] = field(default_factory=dict)
    """After how many bytes of its body the connection breaks, by path."""
    stalled: dict[str, threading.Event] = field(default_factory=dict)
    """Bodies that stop half-way until the event is set, by path."""
    clock_ahead: float = 0.0
    """By how many seconds the platform's clock seems to be ahead."""
    progress: list[dict] = field(default_factory=list)
    waiting: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        front = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_args) -> None:
                """Say nothing."""

            def answer(self) -> None:
                front.answer(self)

            do_GET = do_POST = do_HEAD = do_PUT = answer  # noqa: N815 - the names are the base class's

        self._server = ThreadingHTTPServer((GATEWAY, self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="front", daemon=True).start()

    def stop(self) -> None:
        for event in self.stalled.values():
            event.set()
        self._server.shutdown()
        self._server.server_close()

    def clear(self) -> None:
        for event in self.stalled.values():
            event.set()
        self.instead.clear()
        self.cut.clear()
        self.stalled.clear()
        self.waiting.clear()
        self.clock_ahead = 0.0

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path
        body = request.rfile.read(int(request.headers.get("content-length", 0)))
        if path.endswith("/agent/progress"):
            self.progress.append({**json.loads(body), "authorization": request.headers.get("authorization", "")})
        if path in self.instead:
            status, headers, content = 200, {}, self.instead[path]
        else:
            try:
                status, headers, content = self._ask(request, body)
            except OSError:
                status, headers, content = 502, {}, b""
        request.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in _HOP:
                request.send_header(name, value)
        request.send_header("Date", formatdate(time.time() + self.clock_ahead, usegmt=True))
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if path in self.cut:
            request.wfile.write(content[: self.cut[path]])
            request.close_connection = True
            return
        if event := self.stalled.get(path):
            request.wfile.write(content[: len(content) // 2])
            request.wfile.flush()
            self.waiting.set()
            event.wait(60)
            content = content[len(content) // 2 :]
        with contextlib.suppress(OSError):
            request.wfile.write(content)

    def _ask(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(GATEWAY, self.target, timeout=60)
        with contextlib.closing(connection):
            headers = {name: value for name, value in request.headers.items() if name.lower() not in {"connection", "accept-encoding"}}
            connection.request(request.command, request.path, body=body, headers=headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()


class Platform:
    """The platform as a process, reached through a front."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        self.front = Front(free_port())
        self.front.start()
        self.url = f"http://{GATEWAY}:{self.front.port}"
        self.client = httpx2.Client(base_url=self.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60, trust_env=False)

    def start(self) -> None:
        env = {**os.environ, "IRCA_PUBLIC_URL": self.url, "IRCA_ADMIN_API_KEY": KEY, "PYTHONPATH": str(ROOT)}
        argv = [sys.executable, "-m", "app.cli", "serve", "--host", GATEWAY, "--port", str(self.front.target), "--data-dir", str(self.data)]
        with (self.folder / "platform.log").open("ab") as log:
            self.process = subprocess.Popen(argv, cwd=self.folder, env=env, stdout=log, stderr=log)
        eventually(lambda: self.client.get("/readyz").status_code == 200)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self.client.close()
        self.front.stop()

    def get(self, path: str, **params) -> dict:
        return self.client.get(path, params=params).raise_for_status().json()

    def provision(self, environment: str, **config) -> dict:
        config = {"collect_interval": 2, "heartbeat_interval": 5, **config}
        body = {"agent_type": "server", "environment_name": environment, "config": config}
        return self.client.post("/api/v1/agent/provision", json=body).raise_for_status().json()

    def instances(self, agent_id: str) -> list[dict]:
        return self.get(f"/api/v1/agents/{agent_id}")["instances"]

    def healthy(self, agent_id: str, version: str = "") -> dict | None:
        found = [i for i in self.instances(agent_id) if i["status"] == "healthy" and version in ("", i["version"])]
        return found[0] if found else None


@dataclass
class Host:
    """A container to install into; ``command`` is what brings it up and down, none for one without a service manager."""

    name: str
    command: str = ""

    @classmethod
    def boot(cls, suffix: str) -> Host:
        host = cls(f"{PREFIX}-{suffix}", os.environ["IRCA_TEST_SYSTEMD_HOST"])
        subprocess.run([host.command, "up", host.name], check=True, capture_output=True, timeout=600)
        host.sh("mount --make-rshared /")  # as every machine's are, and containers' are not: systemd hands credentials on by mounts
        return host

    @classmethod
    def boot_image(cls, suffix: str, image: str) -> Host:
        """A container of an image whose first process is systemd."""
        host = cls(f"{PREFIX}-{suffix}")
        mounts = ["--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp:exec", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw"]
        docker("run", "--detach", "--name", host.name, *mounts, "--cap-add", "SYS_ADMIN", "--cgroupns=host", image)
        eventually(lambda: host.run("systemctl is-system-running").stdout.strip() in ("running", "degraded"))
        return host

    @classmethod
    def plain(cls, suffix: str, image: str) -> Host:
        host = cls(f"{PREFIX}-{suffix}")
        docker("run", "--detach", "--name", host.name, image, "sleep", "600")
        return host

    def remove(self) -> None:
        docker("rm", "--force", "--volumes", self.name)

    @property
    def image(self) -> str:
        return docker("inspect", "--format", "{{.Image}}", self.name)

    def run(self, command: str, user: str = "root") -> subprocess.CompletedProcess[str]:
        """Run a command line as somebody would who pastes it; output and errors together, as a terminal shows them."""
        argv = ["docker", "exec", "--user", user, self.name, "bash", "-c", command]
        return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=180, check=False)

    def sh(self, command: str) -> str:
        done = self.run(command)
        assert done.returncode == 0, done.stdout
        return done.stdout.strip()

    def background(self, command: str) -> subprocess.Popen[str]:
        """Run it in a session of its own, whose id stands in /tmp/session."""
        wrapped = f"setsid --wait bash -c {shlex.quote(f'echo $$ >/tmp/session; {command}')}"
        argv = ["docker", "exec", self.name, "bash", "-c", wrapped]
        return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)

    def install(self, command: str) -> str:
        done = self.run(command)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def refuses(self, command: str) -> str:
        """The last line of a command that must fail."""
        done = self.run(command)
        assert done.returncode != 0, done.stdout
        return done.stdout.strip().splitlines()[-1]

    def pid(self, service: str = SERVICE) -> int:
        return int(self.sh(f"systemctl show -P MainPID {service}"))

    def is_active(self, service: str = SERVICE) -> bool:
        return self.run(f"systemctl is-active {service}").stdout.strip() == "active"

    def version(self) -> str:
        return self.sh(f"cat /opt/{SERVICE}/current/VERSION")

    def files(self) -> dict[str, str]:
        """Every path but those of the kernel and of the system's own books, with type, mode, owner, and content or target."""
        pruned = " -o ".join(
            f"-path {path}" for path in ("/proc", "/sys", "/dev", "/run", "/tmp", "/var/log", "/var/lib/systemd", "/var/cache/ldconfig")
        )
        # Tools that edit the user database keep the version before under a name with a hyphen; Python keeps compiled modules.
        kept = "-name '*-' -path '/etc/*' -o -name '__pycache__' -prune -o -name '*.pyc' -o -name .pwd.lock"
        shown = "-type f -printf '%p\\t%y %m %U:%G %s\\n' -o -printf '%p\\t%y %m %U:%G %l\\n'"
        text = self.sh(f"find / \\( {pruned} \\) -prune -o \\( {kept} \\) -o {shown}")
        return dict(line.split("\t", 1) for line in text.splitlines())

    def files_of_the_agent(self) -> dict[str, str]:
        """What an installation consists of; but not its state, which a running agent writes."""
        places = (f"/opt/{SERVICE}", f"/etc/{SERVICE}", f"/etc/systemd/system/{SERVICE}.service")
        return {path: facts for path, facts in self.files().items() if path.startswith(places) and "__pycache__" not in path}


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
