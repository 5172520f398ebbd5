"""What failures of the engine do: the agent stays up, is degraded with the reason, and recovers by itself in the next round.

Against a real engine of the test's own, or a faulty proxy before a real one. ``IRCA_TEST_BASE_IMAGE`` names an image with Python.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from fake_platform import FakePlatform
from integration.docker_engines import faulty_proxy, private_engine
from waiting import eventually

from connectors.agent_factory import AgentFactory

IMAGE = os.environ.get("IRCA_TEST_BASE_IMAGE", "")
ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
INTERVAL = 2

pytestmark = [
    pytest.mark.requires("docker", "base-image"),
]
needs_dockerd = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("dockerd") or not shutil.which("unshare"), reason="a private engine takes root and dockerd"
)


@pytest.fixture(scope="module")
def shared_private_engine():
    with private_engine(IMAGE) as engine:
        yield engine


@pytest.fixture
def own_engine(shared_private_engine):
    """A private engine with one running container, ``web``."""
    if not shared_private_engine.answers():
        shared_private_engine.kill()
        shared_private_engine.start()
    shared_private_engine.run("web", "sleep", "600", image=IMAGE)
    yield shared_private_engine
    shared_private_engine.freeze(False)
    shared_private_engine.docker("rm", "--force", "--volumes", *shared_private_engine.docker("ps", "-aq").split())


@pytest.fixture
def proxy():
    """A proxy before the shared engine."""
    with faulty_proxy() as made:
        yield made


@pytest.fixture
def container():
    """A running container of the shared engine, removed afterwards."""
    name = f"irca-fail-{uuid.uuid4().hex[:8]}"
    docker("run", "-d", "--name", name, IMAGE, "sleep", "600")
    yield name
    subprocess.run(["docker", "rm", "--force", name], capture_output=True, timeout=60, check=False)


def docker(*arguments):
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def agent(host, **config):
    return AgentFactory.create_agent("docker", "http://localhost:8000", "token-123", {"docker_host": host, "engine_timeout": 1, **config})


def outcome(collection):
    return {result.name: result.reason for result in collection.collectors}


def measured(collection):
    """The names of the containers whose CPU time was told."""
    return {
        r.resource["container.name"]
        for r in collection.resources
        if "container.name" in r.resource and any(m.name == "container.cpu.time" for m in r.metrics)
    }


def fine(collection):
    return not any(outcome(collection).values())


@needs_dockerd
def test_an_engine_that_is_restarted_is_used_again_in_the_next_round(own_engine):
    made = agent(own_engine.host)
    assert fine(made.collect_metrics())

    own_engine.stop()
    stopped = made.collect_metrics()
    own_engine.start()
    own_engine.docker("start", "web")
    back = made.collect_metrics()

    assert "there is no Docker engine" in outcome(stopped)["docker.engine"]
    assert "there is no Docker engine" in outcome(stopped)["docker.containers"]
    assert fine(back)
    assert measured(back) == {"web"}


@needs_dockerd
def test_an_engine_that_crashed_leaves_a_socket_that_refuses(own_engine):
    made = agent(own_engine.host)
    assert fine(made.collect_metrics())

    own_engine.kill()
    crashed = made.collect_metrics()
    own_engine.start()
    back = made.collect_metrics()

    assert "the connection was refused" in outcome(crashed)["docker.containers"]
    assert fine(back)


@needs_dockerd
def test_an_engine_that_hangs_is_given_up_and_used_again_when_it_goes_on(own_engine):
    made = agent(own_engine.host, disk_usage_interval=0)
    assert fine(made.collect_metrics())

    own_engine.freeze()
    hanging = made.collect_metrics()
    own_engine.freeze(False)
    back = made.collect_metrics()

    assert set(outcome(hanging).values()) == {f"the Docker engine at {own_engine.host} does not answer within 1 s"}
    assert fine(back)
    assert measured(back) == {"web"}


@needs_dockerd
def test_an_engine_that_hangs_from_the_start_is_found_later(own_engine):
    own_engine.freeze()
    made = agent(own_engine.host)
    assert made.resource() == {"container.runtime.name": "docker"}
    assert "does not answer" in outcome(made.collect_metrics())["docker.engine"]

    own_engine.freeze(False)

    assert fine(made.collect_metrics())
    assert made.resource()["irca.engine.id"]


def test_a_socket_that_is_gone_and_comes_back(proxy):
    made = agent(proxy.host)
    assert fine(made.collect_metrics())

    proxy.down()
    gone = made.collect_metrics()
    proxy.up()
    back = made.collect_metrics()

    assert "the socket does not exist" in outcome(gone)["docker.containers"]
    assert fine(back)


def test_a_socket_that_nobody_listens_on(proxy):
    made = agent(proxy.host)
    proxy.down(leave_socket=True)
    refused = made.collect_metrics()
    proxy.up()

    assert "the connection was refused" in outcome(refused)["docker.engine"]
    assert fine(made.collect_metrics())


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the user takes root")
def test_permission_that_is_denied_is_told_and_used_when_granted(proxy):
    made = agent(proxy.host)
    assert fine(made.collect_metrics())
    made._engine.close()
    proxy.socket.parent.chmod(0o755)
    proxy.socket.chmod(0o600)
    groups, group = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        denied = made.collect_metrics()
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)

    assert "no permission to use the Docker engine" in outcome(denied)["docker.containers"]
    assert fine(made.collect_metrics())


def test_a_proxy_that_lets_nothing_through_is_told_and_used_when_it_does(proxy):
    made = agent(proxy.host)
    proxy.rule("/containers", answer=(403, {"message": "Forbidden"}))
    refused = made.collect_metrics()
    proxy.clear()

    assert "(or a proxy before it) refused this: Forbidden" in outcome(refused)["docker.containers"]
    assert outcome(refused)["docker.engine"] == ""
    assert fine(made.collect_metrics())


def test_a_container_that_vanishes_between_list_and_statistics_is_no_failure(proxy, container):
    made = agent(proxy.host)
    assert container in measured(made.collect_metrics())
    identity = docker("inspect", "--format", "{{.Id}}", container)
    proxy.rule(f"/containers/{identity}/stats", before=lambda: docker("rm", "--force", container))

    collection = made.collect_metrics()

    assert fine(collection)
    assert container not in {r.resource.get("container.name") for r in collection.resources}


def test_a_container_whose_statistics_hang_is_told_with_its_state_alone(proxy, container):
    identity = docker("inspect", "--format", "{{.Id}}", container)
    proxy.rule(f"/containers/{identity}/stats", hang=True)
    made = agent(proxy.host)

    stuck = made.collect_metrics()
    proxy.clear()
    back = made.collect_metrics()

    assert "could not be measured in this round" in outcome(stuck)["docker.containers"]
    assert container not in measured(stuck)
    assert container in {r.resource.get("container.name") for r in stuck.resources}
    assert container in measured(back)
    assert fine(back)


def test_connections_that_are_cut_fail_the_round_and_not_the_agent(proxy, container):
    made = agent(proxy.host)
    proxy.rule("/containers/[0-9a-f]{64}", cut=True)
    cut = made.collect_metrics()
    proxy.clear()

    assert "could not be measured in this round: the Docker engine" in outcome(cut)["docker.containers"]
    assert fine(made.collect_metrics())


@pytest.mark.parametrize(("newest", "spoken"), [("1.40", "1.40"), ("1.30", "1.30"), ("1.99", None)])
def test_an_engine_of_another_api_version_is_spoken_to_in_one_that_both_know(proxy, container, newest, spoken):
    def rewrite(document):
        return {**document, "ApiVersion": newest} if spoken else {**document, "ApiVersion": newest, "MinAPIVersion": "1.24"}

    proxy.rule("/version", rewrite=rewrite)
    if not spoken:
        # The engine behind it does not speak what the proxy claims: it refuses with the words of a real one.
        made = agent(proxy.host)
        refused = made.collect_metrics()
        proxy.clear()
        assert "client version" in outcome(refused)["docker.containers"]
        assert fine(made.collect_metrics())
        return
    made = agent(proxy.host, collect_interval=10)

    collection = made.collect_metrics()

    assert fine(collection)
    assert container in measured(collection)
    [info] = [m for r in collection.resources for m in r.metrics if m.name == "irca.engine.info"]
    assert info.points[0].attributes["irca.engine.api_version"] == spoken


def test_an_engine_that_is_too_old_is_told_so_and_used_after_its_update(proxy):
    proxy.rule("/version", rewrite=lambda document: {**document, "ApiVersion": "1.20"})
    made = agent(proxy.host)
    old = made.collect_metrics()
    proxy.clear()

    assert "it speaks API 1.20" in outcome(old)["docker.engine"]
    assert fine(made.collect_metrics())


class RunningAgent:
    """``incident-rca-agent run`` in a process of its own, and what the platform hears of its health."""

    def __init__(self, platform, host, directory):
        self.platform = platform
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("COVERAGE", "COV_"))}
        environment |= {
            "PYTHONPATH": str(ROOT),
            "PLATFORM_API_URL": platform.url,
            "AGENT_TOKEN": platform.token,
            "STATE_DIR": str(directory),
            "DOCKER_HOST": host,
            "COLLECT_INTERVAL": str(INTERVAL),
            "HEARTBEAT_INTERVAL": "5",
            "ENGINE_TIMEOUT": "1",
            "LOG_FORMAT": "json",
        }
        command = [sys.executable, "-m", "connectors.cli", "run", "--type", "docker"]
        self.log = directory / "log"
        directory.mkdir()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)

    def health(self):
        """What was last heard: whether healthy, and the reason."""
        told = [message.health for _, message in self.platform.messages if message.HasField("health")]
        return (told[-1].healthy, told[-1].last_error) if told else (None, "")

    def wait(self, condition):
        def so():
            assert self.process.poll() is None, self.log.read_text()
            return condition(*self.health())

        eventually(so, why=lambda: f"{self.health()}\n{self.log.read_text()[-3000:]}")

    def wait_healthy(self):
        self.wait(lambda healthy, _reason: healthy is True)

    def wait_degraded(self, why):
        self.wait(lambda healthy, reason: healthy is False and why in reason)


@pytest.fixture
def running(tmp_path):
    platform, started = FakePlatform(), []

    def start(host):
        started.append(RunningAgent(platform, host, tmp_path / "agent"))
        return started[-1]

    yield start
    for one in started:
        one.process.terminate()
        one.process.wait(30)
    platform.down()


@needs_dockerd
def test_a_running_agent_survives_a_restart_of_the_engine(own_engine, running):
    started = running(own_engine.host)
    started.wait_healthy()

    own_engine.stop()
    started.wait_degraded("there is no Docker engine")
    own_engine.start()

    started.wait_healthy()


@needs_dockerd
def test_a_running_agent_survives_an_engine_that_hangs(own_engine, running):
    started = running(own_engine.host)
    started.wait_healthy()

    own_engine.freeze()
    started.wait_degraded("does not answer within 1 s")
    own_engine.freeze(False)

    started.wait_healthy()


def test_a_running_agent_survives_a_socket_that_goes(proxy, running):
    started = running(proxy.host)
    started.wait_healthy()

    proxy.down()
    started.wait_degraded("the socket does not exist")
    proxy.up()

    started.wait_healthy()


def test_a_running_agent_survives_an_engine_of_another_version(proxy, running):
    proxy.rule("/version", rewrite=lambda document: {**document, "ApiVersion": "1.20"})
    started = running(proxy.host)
    started.wait_degraded("it speaks API 1.20")

    proxy.clear()

    started.wait_healthy()


def test_a_running_agent_survives_permission_that_is_withdrawn(proxy, running):
    started = running(proxy.host)
    started.wait_healthy()

    proxy.rule("", answer=(403, {"message": "Forbidden by the administrator"}))
    started.wait_degraded("Forbidden by the administrator")
    proxy.clear()

    started.wait_healthy()
