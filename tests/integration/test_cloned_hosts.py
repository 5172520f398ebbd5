"""Machines that are copies of one another, as containers of one committed image, before a platform of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from waiting import eventually

pytestmark = pytest.mark.requires("docker", "base-image")

ROOT = Path(__file__).resolve().parents[2]
PREFIX = f"irca-clones-{os.getpid()}"
GATEWAY = "172.17.0.1"  # this machine, as its containers see it
KEY = "a-preset-admin-key-for-tests"


def docker(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout.strip()


class Platform:
    """The platform as a process, and agents in containers before it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind((GATEWAY, 0))
            port = probe.getsockname()[1]
        self.url = f"http://{GATEWAY}:{port}"
        self.client = httpx2.Client(base_url=self.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60, trust_env=False)
        env = {**os.environ, "IRCA_PUBLIC_URL": self.url, "IRCA_ADMIN_API_KEY": KEY, "PYTHONPATH": str(ROOT)}
        argv = [sys.executable, "-m", "app.cli", "serve", "--host", GATEWAY, "--port", str(port), "--data-dir", str(folder / "data")]
        with (folder / "platform.log").open("ab") as log:
            self.process = subprocess.Popen(argv, cwd=folder, env=env, stdout=log, stderr=log)
        eventually(self._ready)

    def _ready(self) -> bool:
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self.client.close()

    def get(self, path: str, **params) -> dict:
        return self.client.get(path, params=params).raise_for_status().json()

    def provision(self, environment: str) -> dict:
        body = {"agent_type": "server", "environment_name": environment}
        return self.client.post("/api/v1/agent/provision", json=body).raise_for_status().json()

    def healthy(self, agent_id: str) -> dict[str, str]:
        """Names of the healthy instances, by id."""
        return {i["id"]: i["name"] for i in self.get(f"/api/v1/agents/{agent_id}")["instances"] if i["status"] == "healthy"}

    def events(self, name: str, **params) -> list[dict]:
        return self.get("/api/v1/events", name=name, limit=500, **params)["items"]


@pytest.fixture(scope="module")
def platform(tmp_path_factory) -> Iterator[Platform]:
    made = Platform(tmp_path_factory.mktemp("clones"))
    yield made
    made.stop()


@pytest.fixture
def machine(platform) -> Iterator[Callable[..., str]]:
    """Starts a container that is a machine with an agent on it, whose state is on its own disk; gives its name."""
    made: list[str] = []

    def start(suffix: str, token: str, image: str = "", hostname: str = "", machine_id: str = "", *, again: bool = False) -> str:
        name = f"{PREFIX}-{suffix}"
        made.append(name)
        variables = {
            "PLATFORM_API_URL": platform.url,
            "AGENT_TOKEN": token,
            "STATE_DIR": "/state",
            "COLLECT_INTERVAL": "1",
            "HEARTBEAT_INTERVAL": "5",
            "PYTHONPATH": "/agent:/packages",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        options = [option for key, value in variables.items() for option in ("--env", f"{key}={value}")]
        options += ["--volume", f"{ROOT / 'connectors'}:/agent/connectors:ro", "--volume", f"{sysconfig.get_path('purelib')}:/packages:ro"]
        options += ["--hostname", hostname] if hostname else []
        begin = f"echo {machine_id} > /etc/machine-id; " if machine_id else ""
        agent = "python3 -m connectors.cli run --type server"
        run = f"{begin}mkdir -p /state; " + (f"while :; do {agent}; sleep 1; done" if again else f"exec {agent}")
        docker("run", "--detach", "--name", name, *options, image or os.environ["IRCA_TEST_BASE_IMAGE"], "sh", "-c", run)
        return name

    yield start
    for name in made:
        docker("rm", "--force", "--volumes", name, check=False)


@pytest.fixture
def committed() -> Iterator[Callable[[str], str]]:
    """Makes an image of a container, its disk and all."""
    made: list[str] = []

    def commit(name: str) -> str:
        image = f"{name}:copy"
        docker("commit", name, image)
        made.append(image)
        return image

    yield commit
    for image in made:
        docker("rmi", "--force", image, check=False)


@pytest.mark.parametrize("machine_id", ["a" * 32, ""], ids=["with machine id", "without machine id"])
def test_a_copy_of_an_enrolled_machine_becomes_an_instance_of_its_own_and_that_is_said(platform, machine, committed, machine_id):
    suffix = "known" if machine_id else "unknown"
    answer = platform.provision(suffix)
    original = machine(f"{suffix}-1", answer["agent_token"], machine_id=machine_id)
    [first] = eventually(lambda: platform.healthy(answer["agent_id"]))
    image = committed(original)
    machine(f"{suffix}-2", answer["agent_token"], image=image)
    both = eventually(lambda: len(found := platform.healthy(answer["agent_id"])) == 2 and found)
    assert first in both
    [other] = both.keys() - {first}
    [split] = platform.events("irca.instance.split", instance_id=other)
    assert split["attributes"]["irca.instance.original"] == first
    [cloned] = eventually(lambda: platform.events("irca.agent.identity.cloned", instance_id=other))
    assert cloned["attributes"]["irca.agent.identity.old_id"] == first
    for name in (f"{PREFIX}-{suffix}-2", original):
        docker("stop", "--time", "20", name)
    eventually(lambda: not platform.healthy(answer["agent_id"]))
    for name in (f"{PREFIX}-{suffix}-2", original):
        docker("start", name)
    assert eventually(lambda: len(found := platform.healthy(answer["agent_id"])) == 2 and found).keys() == both.keys(), "and so it stays"
    assert len(platform.events("irca.instance.split", agent_id=answer["agent_id"])) == 1


def test_a_machine_whose_agent_is_installed_again_takes_its_own_place(platform, machine):
    answer = platform.provision("again")
    name = machine("again", answer["agent_token"], machine_id="b" * 32)
    [first] = eventually(lambda: platform.healthy(answer["agent_id"]))
    docker("exec", name, "rm", "-rf", "/state/identity.json", "/state/credential")
    docker("restart", "--time", "20", name)
    enrolled = eventually(lambda: len(found := platform.events("irca.instance.enrolled", agent_id=answer["agent_id"])) == 2 and found)
    assert {event["instance_id"] for event in enrolled} == {first}
    assert eventually(lambda: platform.healthy(answer["agent_id"])).keys() == {first}


def test_a_renamed_machine_is_no_copy(platform, machine):
    answer = platform.provision("renamed")
    name = machine("renamed", answer["agent_token"], hostname="web-1", machine_id="c" * 32, again=True)
    assert list(eventually(lambda: platform.healthy(answer["agent_id"])).values()) == ["web-1"]
    [first] = platform.healthy(answer["agent_id"])
    pid = docker("inspect", "--format", "{{.State.Pid}}", name)
    subprocess.run(["nsenter", "--target", pid, "--uts", "hostname", "web-2"], check=True, timeout=10)
    docker("exec", name, "sh", "-c", "kill $(cat /state/agent.lock)")
    assert eventually(lambda: (found := platform.healthy(answer["agent_id"])) and "web-2" in found.values() and found) == {first: "web-2"}
    assert platform.events("irca.agent.identity.cloned", agent_id=answer["agent_id"]) == []
    assert platform.events("irca.instance.split", agent_id=answer["agent_id"]) == []
