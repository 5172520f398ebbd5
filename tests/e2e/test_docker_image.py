"""The agent's image on a real engine: built by the command, served by the platform, hardened, healthy, and stopped in an orderly way.

Needs a base image: ``IRCA_TEST_BASE_IMAGE``, or the Dockerfile's own where it can be pulled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import pytest
from waiting import eventually

pytestmark = [pytest.mark.requires("docker"), pytest.mark.timeout(600)]

GATEWAY = "172.17.0.1"
ROOT = Path(__file__).resolve().parents[2]
PREFIX = f"irca-image-room-{os.getpid()}"
TAG = f"{PREFIX}/agent:latest"
COMMAND = [sys.executable, "-m", "app.cli"]


def docker(*words: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=300, check=False)
    assert not check or done.returncode == 0, done.stderr
    return (done.stdout if check else done.stdout + done.stderr).strip()


def base_arguments() -> list[str]:
    base = os.environ.get("IRCA_TEST_BASE_IMAGE", "")
    return ["--build-arg", f"BASE_IMAGE={base}"] if base else []


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("platform")


@pytest.fixture(scope="module")
def image(data_dir):
    """Built by the command, as an operator would."""
    base = os.environ.get("IRCA_TEST_BASE_IMAGE", "")
    arguments = [*COMMAND, "image", "build", "--tag", TAG, "--data-dir", str(data_dir), *(["--base-image", base] if base else [])]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    yield TAG
    docker("image", "rm", "--force", TAG, check=False)


class Served:
    def __init__(self, data_dir: Path, port: int) -> None:
        self.url = f"http://{GATEWAY}:{port}"
        self.key = "an-admin-key-for-the-image-tests"
        environ = {**os.environ, "IRCA_PUBLIC_URL": self.url, "IRCA_ADMIN_API_KEY": self.key, "IRCA_HEARTBEAT_INTERVAL": "1"}
        arguments = [*COMMAND, "serve", "--host", GATEWAY, "--port", str(port), "--data-dir", str(data_dir)]
        self.process = subprocess.Popen(arguments, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.client = httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, trust_env=False)
        eventually(self._ready)

    def _ready(self) -> bool:
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def provision(self, **config) -> dict:
        body = {"agent_type": "docker", "environment_name": "image-room", "config": config}
        return self.client.post("/api/v1/agent/provision", json=body).json()

    def instances(self, answer: dict) -> list[dict]:
        return self.client.get("/api/v1/instances", params={"agent_id": answer["agent_id"]}).json()["items"]

    def close(self) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


@pytest.fixture
def platform(image, data_dir, free_port):
    served = Served(data_dir, free_port)
    yield served
    served.close()


@pytest.fixture
def name(request):
    made = f"{PREFIX}-{request.node.name[:20].strip('_')}"
    yield made
    docker("rm", "--force", made, check=False)
    docker("volume", "rm", "--force", made, check=False)


def run(command: str, cwd: Path, *, impatient: bool = True) -> subprocess.CompletedProcess:
    """Runs a printed command as it is, but for a health check that does not take half a minute."""
    if impatient:
        command = command.replace("docker run -d", "docker run -d --health-interval 1s --health-retries 1 --health-start-period 0s", 1)
    return subprocess.run(["bash", "-c", command], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def health(name: str) -> str:
    return docker("inspect", "--format", "{{.State.Health.Status}}", name)


def test_the_image_holds_the_agent_and_nothing_to_build_it_with(image):
    probe = """
import importlib.util, json, os, pathlib, sys
import connectors.cli, connectors.core.runtime, connectors.core.status, connectors.docker.collect
print(json.dumps({
  "uid": os.getuid(), "gid": os.getgid(), "state": oct(os.stat("/var/lib/incident-rca").st_mode & 0o777),
  "found": [n for n in ("pip", "setuptools", "app", "fastapi", "connectors", "docker") if importlib.util.find_spec(n)],
  "sources_without_bytecode": [str(p) for p in pathlib.Path(sys.prefix, "lib").rglob("*.py")
    if not os.path.exists(importlib.util.cache_from_source(p))],
  "library_without_bytecode": [m.__name__ for m in sys.modules.values()
    if getattr(m, "__cached__", None) and not os.path.exists(m.__cached__)],
  "sbom": json.load(open("/usr/share/doc/incident-rca/sbom.json")),
}))"""
    found = json.loads(docker("run", "--rm", "--name", f"{PREFIX}-probe", "--entrypoint", "python", image, "-c", probe))

    assert (found["uid"], found["gid"], found["state"]) == (10001, 10001, "0o700")
    assert found["found"] == ["connectors", "docker"]
    assert (found["sources_without_bytecode"], found["library_without_bytecode"]) == ([], [])
    assert found["sbom"]["specVersion"] == "1.6"
    components = {c["name"] for c in found["sbom"]["components"]}
    assert {"incident-rca", "docker", "psutil", "protobuf", "opentelemetry-proto"} <= components
    assert "pip" not in components


def test_the_image_says_what_it_is(image):
    described = json.loads(docker("inspect", image))[0]["Config"]

    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in described["Labels"].items()}
    assert labels["title"] == "incident-rca agent"
    assert labels["licenses"] == "Apache-2.0"
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", labels["version"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", labels["created"])
    assert described["User"] == "10001:10001"
    assert described["StopSignal"] == "SIGTERM"
    assert described["Healthcheck"]["Test"] == ["CMD", "incident-rca-agent", "status"]
    assert described["Volumes"] == {"/var/lib/incident-rca": {}}


def test_a_host_without_a_registry_builds_and_loads_what_the_platform_serves(platform, image, tmp_path):
    served = f"{platform.url}/artefacts/docker"
    rebuilt = f"{PREFIX}/rebuilt:latest"
    try:
        docker("build", "--network", "none", *base_arguments(), "-t", rebuilt, f"{served}/context.tar.gz")
        assert docker("run", "--rm", rebuilt, "version") == docker("run", "--rm", image, "version")
    finally:
        docker("image", "rm", "--force", rebuilt, check=False)

    docker("image", "rm", "--force", image)
    command = (
        f"curl -fsSL -O {served}/image.tar.gz && curl -fsSL {served}/image.tar.gz.sha256 | sha256sum -c - && docker load -i image.tar.gz"
    )
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "image.tar.gz: OK" in done.stdout
    assert docker("run", "--rm", image, "version").startswith("incident-rca-agent ")


def test_the_printed_command_runs_a_hardened_agent_that_turns_healthy_and_stops_in_order(platform, image, name, tmp_path):
    answer = platform.provision(image=image, container_name=name, collect_interval=1)

    started = run(answer["deployment_command"], tmp_path)

    assert started.returncode == 0, started.stderr
    eventually(lambda: health(name) == "healthy")
    described = json.loads(docker("inspect", name))[0]
    host = described["HostConfig"]
    assert (host["ReadonlyRootfs"], host["CapDrop"], host["SecurityOpt"]) == (True, ["ALL"], ["no-new-privileges"])
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    # The user that docker top shows is the host's name for the number, where it has one.
    assert docker("exec", name, "python", "-c", "import os; print(os.getuid())") == "10001"
    [instance] = eventually(lambda: platform.instances(answer))
    eventually(lambda: platform.instances(answer)[0]["status"] == "healthy")
    assert instance["agent_type"] == "docker"

    docker("stop", name)

    state = json.loads(docker("inspect", name))[0]["State"]
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
    assert docker("logs", name, check=False).count("Traceback") == 0
    eventually(lambda: platform.instances(answer)[0]["status"] == "stopped")


def test_an_agent_that_is_told_to_stop_while_it_starts_does_so(image, name):
    # An engine that takes connections and never answers keeps the start waiting.
    with socket.socket() as silent:
        silent.bind((GATEWAY, 0))
        silent.listen(16)
        environ = {"PLATFORM_API_URL": f"http://{GATEWAY}:1", "AGENT_TOKEN": "x", "ENGINE_TIMEOUT": "30"}
        environ["DOCKER_HOST"] = f"tcp://{GATEWAY}:{silent.getsockname()[1]}"
        docker("run", "-d", "--name", name, *(word for k, v in environ.items() for word in ("-e", f"{k}={v}")), image)
        silent.settimeout(30)
        connection, _ = silent.accept()
        with connection:
            docker("stop", "--time", "20", name)

    assert docker("inspect", "--format", "{{.State.ExitCode}}", name) == "0"


def test_a_second_run_is_refused_and_replacing_the_container_keeps_the_identity(platform, image, name, tmp_path):
    answer = platform.provision(image=image, container_name=name, collect_interval=1)
    assert run(answer["deployment_command"], tmp_path).returncode == 0
    eventually(lambda: health(name) == "healthy")
    [before] = platform.instances(answer)

    again = run(answer["deployment_command"], tmp_path)
    assert again.returncode != 0
    assert "already in use" in again.stderr
    assert f"when docker says that the name is in use: `docker rm --force {name}`" in answer["instructions"]

    docker("rm", "--force", name)
    replaced = run(answer["deployment_command"], tmp_path)
    assert replaced.returncode == 0, replaced.stderr
    eventually(lambda: health(name) == "healthy")
    eventually(lambda: platform.instances(answer)[0]["status"] == "healthy")
    assert [i["id"] for i in platform.instances(answer)] == [before["id"]]


def test_an_agent_without_the_sockets_group_is_unhealthy_and_says_so_until_the_command_is_run_as_printed(platform, image, name, tmp_path):
    answer = platform.provision(image=image, container_name=name, collect_interval=1)
    without_group = re.sub(r"  --group-add .*\n", "", answer["deployment_command"])
    assert without_group != answer["deployment_command"]

    assert run(without_group, tmp_path).returncode == 0

    eventually(lambda: health(name) == "unhealthy")
    assert "no permission to use the Docker engine" in docker("inspect", "--format", "{{json .State.Health.Log}}", name)
    assert "--group-add" in docker("exec", name, "incident-rca-agent", "check", check=False)
    assert json.loads(docker("inspect", name))[0]["State"]["Running"]
    [before] = eventually(lambda: platform.instances(answer))
    docker("rm", "--force", name)
    assert run(answer["deployment_command"], tmp_path).returncode == 0
    eventually(lambda: health(name) == "healthy")
    assert [i["id"] for i in platform.instances(answer)] == [before["id"]]


def test_the_alternatives_keep_the_token_out_of_the_command(platform, image, name, tmp_path):
    answer = platform.provision(image=image, container_name=name, collect_interval=1)
    titles = {a["title"].split(":")[0]: a["content"] for a in answer["alternatives"] if "run this" not in a["title"]}
    commands = [a["content"] for a in answer["alternatives"] if a["content"].startswith("docker run")]
    by_env_file, by_file = commands
    assert answer["agent_token"] not in by_env_file + by_file

    (tmp_path / f"{name}.env").write_text(titles["Token in an environment file"])
    done = run(by_env_file, tmp_path)
    assert done.returncode == 0, done.stderr
    eventually(lambda: health(name) == "healthy")
    subprocess.run(["bash", "-c", answer["uninstall_command"]], capture_output=True, timeout=60, check=True)

    token = tmp_path / "token"
    token.write_text(answer["agent_token"] + "\n")
    token.chmod(0o400)
    os.chown(token, 10001, 10001)
    done = run(by_file.replace("/etc/incident-rca/agent-token", str(token)), tmp_path)
    assert done.returncode == 0, done.stderr
    eventually(lambda: health(name) == "healthy")


def test_what_is_served_is_what_was_built(platform, data_dir):
    for file in ("context.tar.gz", "image.tar.gz"):
        content = httpx.get(f"{platform.url}/artefacts/docker/{file}", trust_env=False).content
        line = httpx.get(f"{platform.url}/artefacts/docker/{file}.sha256", trust_env=False).text
        assert line == f"{hashlib.sha256(content).hexdigest()}  {file}\n"
        assert content == (data_dir / "artefacts" / "docker" / file).read_bytes()
