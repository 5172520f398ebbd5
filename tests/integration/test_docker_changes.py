"""Changes and last lines from a real engine. ``IRCA_TEST_BASE_IMAGE`` names an image with Python, a shell and sleep."""

from __future__ import annotations

import os
import subprocess
import threading
import time
import uuid
from contextlib import contextmanager

import pytest
from integration.docker_engines import faulty_proxy, private_engine
from waiting import eventually

from connectors.agent_factory import AgentFactory
from connectors.core.errors import CollectorError
from connectors.core.telemetry import Severity

IMAGE = os.environ.get("IRCA_TEST_BASE_IMAGE", "")

pytestmark = [
    pytest.mark.requires("docker", "base-image"),
]


def docker(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *arguments], check=False, capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def prefix():
    """A prefix of names; what bears it is removed afterwards."""
    name = f"irca-chg-{uuid.uuid4().hex[:8]}"
    yield name
    if left := docker("ps", "-aq", "--filter", f"name={name}").split():
        docker("rm", "--force", "--volumes", *left)
    for kind in ("volume", "network"):
        if left := docker(kind, "ls", "-q", "--filter", f"name={name}").split():
            docker(kind, "rm", *left)
    if left := docker("images", "-q", "--filter", f"reference={name}*").split():
        docker("rmi", "--force", f"{name}:1", check=False)


class Watch:
    """The agent's watch, restarted when it fails, as the runtime does; ``told`` is what it told about ``prefix``."""

    def __init__(self, state_dir, prefix, **config):
        self.prefix = prefix
        self.all = []
        self.failures = []
        self.stopping = threading.Event()
        config = {"state_dir": str(state_dir)} | config
        self.agent = AgentFactory.create_agent("docker", "http://172.17.0.1:8000", "token-123", config)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        eventually(lambda: self.failures or ((memory := self._memory()) and memory.mark and self._follows()))

    def _memory(self):
        watch = self.agent.__dict__.get("_change_watch")
        return watch and watch._memory

    def _follows(self):
        return any(t.name == "irca-docker-events" for t in threading.enumerate())

    def _run(self):
        while not self.stopping.is_set():
            try:
                self.agent.watch(self.all.append, self.stopping)
            except CollectorError as exc:
                self.failures.append(exc.reason)
                self.stopping.wait(0.3)

    @property
    def told(self):
        unique = {event.id: event for event in self.all if self.is_ours(event)}
        return sorted(unique.values(), key=lambda event: event.time_unix_nano)

    def is_ours(self, event):
        about = {**event.resource, **event.attributes}
        names = [about.get(key, "") for key in ("container.name", "container.image.name", "irca.network.name", "irca.volume.name")]
        return event.name.endswith(".gap") or any(name.startswith(self.prefix) for name in names)

    def named(self, name, container=""):
        found = [e for e in self.told if e.name == f"irca.docker.{name}"]
        return [e for e in found if not container or e.resource.get("container.name") == container]

    def wait(self, name, container="", count=1):
        eventually(lambda: len(self.named(name, container)) >= count, why=lambda: [e.name for e in self.told])
        return self.named(name, container)

    def stop(self):
        self.stopping.set()
        self.thread.join(15)
        assert not self.thread.is_alive()


@contextmanager
def watching(state_dir, prefix, **config):
    watch = Watch(state_dir, prefix, **config)
    try:
        yield watch
    finally:
        watch.stop()


def test_the_life_of_a_container_is_told_event_by_event(prefix, tmp_path):
    name, network, volume = f"{prefix}-a", f"{prefix}-net", f"{prefix}-vol"
    with watching(tmp_path, prefix) as watch:
        docker("volume", "create", volume)
        docker("network", "create", network)
        options = ["--network", "none", "-v", f"{volume}:/data:ro", "--label", "secret=xyzzy", "--init"]
        identity = docker("run", "-d", "--name", name, *options, IMAGE, "sleep", "600")
        watch.wait("container.start")
        docker("pause", name)
        docker("unpause", name)
        docker("update", "--restart", "on-failure:1", name)
        docker("network", "disconnect", "none", name)
        docker("network", "connect", network, name, check=False)
        docker("rename", name, f"{name}2")
        docker("restart", "--time", "1", f"{name}2", check=False)
        docker("kill", "--signal", "USR1", f"{name}2", check=False)
        docker("stop", "--time", "1", f"{name}2")
        docker("rm", "--force", f"{name}2")
        docker("network", "rm", network)
        docker("volume", "rm", volume)
        watch.wait("volume.destroy")
        watch.wait("network.destroy")

    names = [event.name.removeprefix("irca.docker.") for event in watch.told]
    for once in ("container.create", "container.pause", "container.unpause", "container.update", "container.rename", "container.destroy"):
        assert names.count(once) == 1, (once, names)
    for action in ("network.create", "network.destroy", "volume.destroy", "volume.mount", "container.start", "container.die"):
        assert action in names
    [renamed] = watch.named("container.rename")
    assert renamed.attributes["irca.container.previous_name"] == name
    assert renamed.resource["container.name"] == f"{name}2"
    [updated] = watch.named("container.update")
    assert updated.attributes["irca.container.change.restart_policy.to"] == ["on-failure:1"]
    mounted = watch.named("volume.mount")[0]
    assert (mounted.attributes["container.id"], mounted.attributes["irca.volume.destination"]) == (identity, "/data")
    assert mounted.attributes["irca.volume.read_only"] is True
    died = watch.named("container.die")[0]
    assert (died.attributes["irca.container.stop_requested"], died.severity) == (True, Severity.WARN)
    assert watch.named("container.kill")[0].attributes["irca.container.signal"] == "SIGTERM"
    assert not [name for name in names if "exec" in name]
    assert "xyzzy" not in repr(watch.told)


def test_a_container_that_runs_out_of_memory_dies_of_it(prefix, tmp_path):
    name = f"{prefix}-oom"
    eat = "print('about to eat', flush=True); x = bytearray(500_000_000)"
    with watching(tmp_path, prefix, death_logs=True) as watch:
        limits = ["--memory", "48m", "--memory-swap", "48m", "--network", "none"]
        docker("run", "-d", "--name", name, *limits, IMAGE, "python3", "-c", eat)
        [died] = watch.wait("container.die")
        [oom] = watch.wait("container.oom")

    assert died.attributes["irca.container.oom_killed"] is True
    assert died.attributes["irca.container.exit_code"] == 137
    assert died.attributes["irca.container.stop_requested"] is False
    assert (died.severity, oom.severity) == (Severity.ERROR, Severity.ERROR)
    assert died.attributes["irca.container.log.tail"] == "about to eat"


def test_a_crash_loop_is_told_death_by_death(prefix, tmp_path):
    name = f"{prefix}-loop"
    with watching(tmp_path, prefix, death_logs=True, death_log_lines=5) as watch:
        script = "echo one; echo DB_PASSWORD=hunter2; echo three >&2; exit 7"
        docker("run", "-d", "--name", name, "--network", "none", "--restart", "on-failure:2", IMAGE, "sh", "-c", script)
        died = watch.wait("container.die", count=3)
        time.sleep(1)

    assert len(watch.named("container.die")) == len(watch.named("container.start")) == 3
    assert {e.attributes["irca.container.exit_code"] for e in died} == {7}
    assert died[-1].attributes["irca.container.restart_count"] == 2
    for event in died:
        assert sorted(event.attributes["irca.container.log.tail"].split("\n")) == ["DB_PASSWORD=[redacted]", "one", "three"]


def test_a_container_that_falls_ill_is_told_and_its_checks_make_no_noise(prefix, tmp_path):
    name = f"{prefix}-sick"
    with watching(tmp_path, prefix) as watch:
        health = ["--health-cmd", "exit 1", "--health-interval", "1s", "--health-retries", "1"]
        docker("run", "-d", "--name", name, "--network", "none", *health, IMAGE, "sleep", "600")
        [ill] = watch.wait("container.health_status")
        docker("rm", "--force", name)
        watch.wait("container.destroy")

    assert (ill.attributes["irca.container.health.status"], ill.severity) == ("unhealthy", Severity.WARN)
    assert {e.name.rpartition(".")[2] for e in watch.told if "container." in e.name} <= {
        "create", "start", "health_status", "kill", "die", "destroy",
    }  # fmt: skip


def test_a_container_made_again_is_told_with_what_differs_also_when_nobody_looked(prefix, tmp_path):
    name, image = f"{prefix}-web", f"{prefix}:1"
    docker("tag", IMAGE, image)
    first = docker("run", "-d", "--name", name, "--network", "none", "-e", "KEY=one", "--memory", "64m", IMAGE, "sleep", "600")
    with watching(tmp_path, prefix) as watch:
        docker("rm", "--force", name)
        second = docker("run", "-d", "--name", name, "--network", "none", "-e", "KEY=two-xyzzy", "-e", "MORE=1", image, "sleep", "601")
        [changed] = watch.wait("container.changed")
    docker("rm", "--force", name)
    docker("run", "-d", "--name", name, "--network", "none", "-e", "KEY=two-xyzzy", "--user", "7", image, "sleep", "601")
    with watching(tmp_path, prefix) as later:
        [found] = later.wait("container.changed")
    with watching(tmp_path, prefix) as again:
        docker("pause", name)
        again.wait("container.pause")
    docker("rm", "--force", name)

    assert (changed.attributes["irca.container.previous_id"], changed.attributes["container.id"]) == (first, second)
    assert changed.attributes["irca.container.changed"] == ["command", "env", "image", "limits"]
    assert changed.attributes["irca.container.change.env.added"] == ["MORE"]
    assert changed.attributes["irca.container.change.env.changed"] == ["KEY"]
    assert changed.attributes["irca.container.change.image.to"] == [f"reference={image}"]
    assert f"Memory={64 * 1024**2}" in changed.attributes["irca.container.change.limits.from"]
    assert "xyzzy" not in repr(watch.told)
    assert found.attributes["irca.container.previous_id"] == second
    assert found.attributes["irca.container.changed"] == ["env", "user"]
    assert [e.name for e in later.told].count("irca.docker.container.start") == 1
    assert again.named("container.changed") == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [(["--log-driver", "none"], "its logging driver cannot be read"), (["--tty"], None)],
)
def test_last_lines_with_a_terminal_and_with_a_driver_that_cannot_be_read(prefix, tmp_path, options, reason):
    with watching(tmp_path, prefix, death_logs=True) as watch:
        docker("run", "-d", "--name", f"{prefix}-x", "--network", "none", *options, IMAGE, "sh", "-c", "echo token=abc; exit 1")
        [died] = watch.wait("container.die")

    assert died.attributes.get("irca.container.log.reason") == reason
    assert died.attributes.get("irca.container.log.tail") == (None if reason else "token=[redacted]")


def test_a_cut_connection_is_taken_up_again_without_loss_and_without_a_gap(prefix, tmp_path):
    with faulty_proxy() as proxy, watching(tmp_path, prefix, docker_host=proxy.host) as watch:
        docker("run", "-d", "--name", f"{prefix}-a", "--network", "none", IMAGE, "sleep", "600")
        watch.wait("container.start")
        proxy.down()
        docker("pause", f"{prefix}-a")
        docker("unpause", f"{prefix}-a")
        eventually(lambda: watch.failures)
        proxy.up()
        watch.wait("container.unpause")
        proxy.cut()
        docker("rm", "--force", f"{prefix}-a")
        watch.wait("container.destroy")

    assert watch.failures
    names = [e.name.removeprefix("irca.docker.container.") for e in watch.told if ".container." in e.name]
    assert [names.count(n) for n in ("create", "start", "pause", "unpause", "die", "destroy")] == [1] * 6
    assert watch.named("gap") == []


def test_an_engine_that_is_restarted_leaves_one_gap_and_is_followed_again(prefix, tmp_path):
    with private_engine(IMAGE) as engine, watching(tmp_path, prefix, docker_host=engine.host, engine_timeout=2.0) as watch:
        before = engine.run(f"{prefix}-a", "sleep", "600", image=IMAGE, options=("--network", "none", "-e", "A=1"))
        watch.wait("container.start")
        engine.restart()
        engine.docker("rm", "--force", f"{prefix}-a")
        engine.run(f"{prefix}-a", "sleep", "600", image=IMAGE, options=("--network", "none", "-e", "A=2"))
        [gap] = watch.wait("gap")
        [changed] = watch.wait("container.changed")
        engine.freeze()
        frozen = len(watch.failures)
        eventually(lambda: any("does not answer" in reason for reason in watch.failures[frozen:]))
        engine.freeze(False)
        engine.docker("pause", f"{prefix}-a")
        watch.wait("container.pause")
        engine.docker("unpause", f"{prefix}-a")
        watch.wait("container.unpause")

    assert gap.attributes["irca.gap.reason"] == "engine-restarted"
    assert gap.attributes["irca.gap.start_time_unix_nano"] < gap.attributes["irca.gap.end_time_unix_nano"]
    assert changed.attributes["irca.container.previous_id"] == before
    assert changed.attributes["irca.container.change.env.changed"] == ["A"]
    assert len(watch.named("gap")) == 1
