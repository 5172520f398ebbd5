"""The printed command connects a Docker host: the literal string that the API returned, on a real engine."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from waiting import eventually

pytestmark = [pytest.mark.requires("docker", "base-image"), pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
GATEWAY = "172.17.0.1"  # this machine, as its containers see it
KEY = "a-preset-admin-key-for-tests"
AGENT = "incident-rca-agent"
PREFIX = f"irca-e2e-{os.getpid()}"
PLATFORM_AWAY = float(os.environ.get("IRCA_TEST_PLATFORM_AWAY", "120"))


def docker(*words: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=120, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout.strip()


class Platform:
    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.url = f"http://{GATEWAY}:{port}"
        self.client = httpx2.Client(base_url=self.url, headers={"authorization": f"Bearer {KEY}"}, timeout=30, trust_env=False)
        self.process: subprocess.Popen | None = None
        self.instance = ""

    def start(self) -> None:
        env = {**os.environ, "IRCA_PUBLIC_URL": self.url, "IRCA_ADMIN_API_KEY": KEY, "PYTHONPATH": str(ROOT)}
        argv = [sys.executable, "-m", "app.cli", "serve", "--host", GATEWAY, "--port", str(self.port)]
        argv += ["--data-dir", str(self.folder / "data")]
        with (self.folder / "platform.log").open("ab") as log:
            self.process = subprocess.Popen(argv, cwd=self.folder, env=env, stdout=log, stderr=log)
        eventually(self._ready)

    def _ready(self) -> bool:
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)

    def get(self, path: str, **params) -> dict:
        return self.client.get(path, params=params).raise_for_status().json()

    def value(self, query: str) -> float | None:
        result = self.get("/prometheus/api/v1/query", query=query)["data"]["result"]
        return float(result[0]["value"][1]) if result else None

    def events(self, container: str, action: str) -> list[dict]:
        found = self.get("/api/v1/events", name=f"irca.docker.container.{action}", limit=500)["items"]
        return [e for e in found if e["attributes"].get("container.name") == container]

    def event(self, container: str, action: str) -> dict:
        return eventually(lambda: self.events(container, action))[0]


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> Iterator[Platform]:
    """A platform, and this machine's engine connected to it with what the platform printed."""
    folder = tmp_path_factory.mktemp("docker")
    base = os.environ.get("IRCA_TEST_BASE_IMAGE", "")
    build = [sys.executable, "-m", "app.cli", "image", "build", "--no-save", "--data-dir", str(folder / "data")]
    build += ["--base-image", base] if base else []
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    _remove()
    with socket.socket() as probe:
        probe.bind((GATEWAY, 0))
        port = probe.getsockname()[1]
    platform = Platform(folder, port)
    platform.start()
    body = {"agent_type": "docker", "environment_name": "host", "config": {"collect_interval": 2, "heartbeat_interval": 5}}
    answer = platform.client.post("/api/v1/agent/provision", json=body).raise_for_status().json()
    begun = time.monotonic()
    ran = subprocess.run(["bash", "-c", answer["deployment_command"]], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    platform.agent_id = answer["agent_id"]
    platform.command = answer["deployment_command"]
    platform.uninstall = answer["uninstall_command"]

    def healthy() -> list[dict]:
        return [i for i in platform.get("/api/v1/agents/" + answer["agent_id"])["instances"] if i["status"] == "healthy"]

    platform.instance = eventually(healthy)[0]["id"]
    platform.connected_after = time.monotonic() - begun
    yield platform
    _remove()
    platform.stop()
    platform.client.close()


def _remove() -> None:
    docker("rm", "--force", "--volumes", AGENT, check=False)
    docker("volume", "rm", "--force", AGENT, check=False)
    for name in docker("ps", "--all", "--quiet", "--filter", f"name={PREFIX}").split():
        docker("rm", "--force", name, check=False)


@pytest.fixture
def start(request):
    """Starts a container that this test owns."""
    names = []

    def run(suffix: str, *options: str, command: tuple[str, ...] = ("sleep", "600")) -> str:
        name = f"{PREFIX}-{suffix}"
        names.append(name)
        docker("run", "--detach", "--name", name, *options, os.environ["IRCA_TEST_BASE_IMAGE"], *command)
        return name

    yield run
    for name in names:
        docker("rm", "--force", name, check=False)


def test_the_host_is_healthy_within_moments_of_pasting_the_command(host):
    assert host.connected_after < 45, "a bound against hanging, not a performance figure"
    assert docker("inspect", "--format", "{{.HostConfig.ReadonlyRootfs}} {{.Config.User}}", AGENT).startswith("true")


def test_a_start_and_a_clean_end_are_events_with_the_exit_code(host, start):
    name = start("clean", command=("sh", "-c", "sleep 2"))
    host.event(name, "start")
    died = host.event(name, "die")
    assert (died["attributes"]["irca.container.exit_code"], died["severity"]) == (0, "info")


def test_an_oom_kill_is_told_with_its_cause(host, start):
    name = start("oom", "--memory", "48m", "--memory-swap", "48m", command=("python3", "-c", "x = bytearray(200_000_000)"))
    died = host.event(name, "die")
    assert died["attributes"]["irca.container.exit_code"] == 137
    assert died["attributes"]["irca.container.oom_killed"] is True
    assert died["severity"] == "error"
    host.event(name, "oom")


def test_a_crash_loop_is_one_event_for_each_death(host, start):
    name = start("loop", "--restart", "on-failure:3", command=("sh", "-c", "exit 3"))
    deaths = eventually(lambda: len(found := host.events(name, "die")) >= 4 and found)
    assert len(deaths) == 4
    assert {d["attributes"]["irca.container.exit_code"] for d in deaths} == {3}


def test_health_pause_and_removal_are_told(host, start):
    name = start("sick", "--health-cmd", "false", "--health-interval", "1s", "--health-retries", "1")
    sick = host.event(name, "health_status")
    assert (sick["attributes"]["irca.container.health.status"], sick["severity"]) == ("unhealthy", "warn")
    docker("pause", name)
    host.event(name, "pause")
    docker("unpause", name)
    docker("rm", "--force", name)
    host.event(name, "destroy")


def test_a_recreated_container_tells_what_changed_and_no_value_leaves_the_host(host, start):
    name = start("app", "--env", "COLOUR=blue", "--env", "SECRET_TEXT=hunter2", "--memory", "64m")
    host.event(name, "start")
    docker("rm", "--force", name)
    start("app", "--env", "COLOUR=green", "--env", "SECRET_TEXT=hunter3", "--memory", "96m")
    changed = host.event(name, "changed")
    assert {"env", "limits"} <= set(changed["attributes"]["irca.container.changed"])
    assert {"COLOUR", "SECRET_TEXT"} <= set(changed["attributes"]["irca.container.change.env.changed"])
    assert not re.search("hunter|blue|green", str(changed))


def test_metrics_are_within_five_percent_of_what_the_engine_and_the_kernel_say(host, start):
    name = start("busy", command=("python3", "-c", "x = bytearray(60_000_000)\nwhile True: sum(range(1000))"))
    query = f'{{container_name="{name}"}}'
    eventually(lambda: (host.value("container_cpu_time_seconds_total" + query) or 0) > 3)
    container = docker("inspect", "--format", "{{.Id}}", name)
    paths = [
        Path(f"/sys/fs/cgroup/memory/docker/{container}/memory.usage_in_bytes"),
        *Path("/sys/fs/cgroup").glob(f"*/*{container}*/memory.current"),
    ]
    usage = int(next(p for p in paths if p.exists()).read_text())
    told = eventually(lambda: host.value("container_memory_usage_bytes" + query))
    assert told == pytest.approx(usage, rel=0.05)
    time.sleep(5)
    used = docker("stats", "--no-stream", "--format", "{{.MemUsage}} {{.CPUPerc}}", name)
    megabytes = float(re.match(r"([\d.]+)MiB", used)[1])
    assert eventually(lambda: host.value("container_memory_working_set_bytes" + query)) / 2**20 == pytest.approx(megabytes, rel=0.05, abs=1)


def test_a_killed_agent_comes_back_as_itself_and_its_replacement_too(host):
    docker("kill", AGENT)
    docker("start", AGENT)
    seen = host.get(f"/api/v1/instances/{host.instance}")["last_seen_at"]
    eventually(lambda: host.get(f"/api/v1/instances/{host.instance}")["last_seen_at"] > seen)
    docker("rm", "--force", AGENT)
    subprocess.run(["bash", "-c", host.command], capture_output=True, timeout=60, check=True)
    seen = host.get(f"/api/v1/instances/{host.instance}")["last_seen_at"]
    eventually(lambda: host.get(f"/api/v1/instances/{host.instance}")["last_seen_at"] > seen)
    assert len(host.get(f"/api/v1/agents/{host.agent_id}")["instances"]) == 1


def test_an_absent_platform_loses_nothing(host, start):
    before = time.time()
    host.stop()
    name = start("while-away", command=("sh", "-c", "exit 7"))
    time.sleep(PLATFORM_AWAY)
    host.start()
    assert host.event(name, "die")["attributes"]["irca.container.exit_code"] == 7
    end = time.time()

    def longest_pause() -> float:
        """The longest stretch between two rounds of collection from before the absence to after it."""
        query = f'max(timestamp(irca_collector_success_ratio{{instance="{host.instance}"}}))'
        params = {"query": query, "start": before - 4, "end": end, "step": 1}
        found = host.client.get("/prometheus/api/v1/query_range", params=params).raise_for_status().json()["data"]["result"]
        times = sorted({before - 4, *(float(v) for _, v in found[0]["values"]), end} if found else {0.0, end})
        return max(b - a for a, b in itertools.pairwise(times))

    eventually(lambda: longest_pause() < 8, 90)  # rounds are 2 s apart, a little more while containers come and go
    assert host.get("/api/v1/events", name="irca.agent.gap")["items"] == []


def test_the_printed_uninstall_command_leaves_nothing_and_nobody_to_be_missed(host):
    done = subprocess.run(["bash", "-c", host.uninstall], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert docker("ps", "--all", "--quiet", "--filter", f"name=^{AGENT}$") == ""
    assert AGENT not in docker("volume", "ls", "--format", "{{.Name}}").split()
    eventually(lambda: host.get(f"/api/v1/agents/{host.agent_id}")["status"] == "stopped")
