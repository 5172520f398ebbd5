"""The docker agent type against a real engine. ``IRCA_TEST_BASE_IMAGE`` names an image with Python, a shell and sleep."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
import uuid
from pathlib import Path

import pytest
from waiting import eventually

from connectors.agent_factory import AgentFactory
from connectors.core.errors import ControlError, NotDeployedError, PermissionRefusedError, RuntimeUnavailableError
from connectors.core.preflight import Outcome, run_checks
from connectors.docker.metrics import TABLE

IMAGE = os.environ.get("IRCA_TEST_BASE_IMAGE", "")
SOCKET = Path("/var/run/docker.sock")
NOBODY = 65534
FINE = {"docker.engine": "", "docker.containers": "", "docker.disk": ""}
UNITS = {"B": 1, "kB": 1000, "KiB": 1024, "MB": 1000**2, "MiB": 1024**2, "GB": 1000**3, "GiB": 1024**3}

pytestmark = [
    pytest.mark.requires("docker", "base-image"),
]


@pytest.fixture
def prefix():
    """A prefix of container names; what bears it is removed afterwards."""
    name = f"irca-test-{uuid.uuid4().hex[:8]}"
    yield name
    left = docker("ps", "-aq", "--filter", f"name=^{name}").split()
    if left:
        docker("rm", "--force", "--volumes", *left)
    volumes = docker("volume", "ls", "-q", "--filter", f"name={name}").split()
    if volumes:
        docker("volume", "rm", "--force", *volumes)


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def agent(**config):
    return AgentFactory.create_agent("docker", "http://172.17.0.1:8000", "token-123", config)


def values(collection, name):
    [metrics] = [r.metrics for r in collection.resources if r.resource.get("container.name") == name]
    return {"|".join([m.name, *map(str, p.attributes.values())]): p.value for m in metrics for p in m.points}


def outcome(collection):
    return {result.name: result.reason for result in collection.collectors}


def test_real_containers_are_measured_as_docker_itself_says(prefix):
    busy, idle, ended = f"{prefix}-busy", f"{prefix}-idle", f"{prefix}-ended"
    docker("run", "-d", "--name", busy, "--memory", "64m", IMAGE, "python3", "-c", "x = bytearray(20_000_000)\nwhile True: pass")
    docker("run", "-d", "--name", idle, "--label", "com.docker.compose.project=shop", IMAGE, "sleep", "600")
    docker("run", "--name", ended, IMAGE, "sh", "-c", "exit 0")
    subprocess.run(["docker", "run", "--name", f"{prefix}-failed", IMAGE, "sh", "-c", "exit 3"], check=False, timeout=60)
    made = agent()

    made.collect_metrics()
    before = time.monotonic()
    cpu_before = cpu_seconds(busy)
    collection = made.collect_metrics()
    time.sleep(2)
    collection = made.collect_metrics()
    cpu_after, elapsed = cpu_seconds(busy), time.monotonic() - before

    assert outcome(collection) == FINE
    found = values(collection, busy)
    assert 20_000_000 < found["container.memory.working_set"] <= found["container.memory.usage"] <= 64 * 1024**2
    assert found["irca.container.memory.limit"] == 64 * 1024**2
    assert found["container.memory.available"] == 64 * 1024**2 - found["container.memory.working_set"]
    assert cpu_before <= found["container.cpu.time"] <= cpu_after
    assert 0 < found["container.cpu.usage"] <= (os.cpu_count() or 1) + 0.2
    assert found["irca.container.process.count"] == 1
    assert 0 < found["container.uptime"] < elapsed + 120
    assert values(collection, idle)["container.cpu.usage"] < found["container.cpu.usage"]
    assert values(collection, idle)["container.network.io|eth0|receive"] >= 0
    assert values(collection, ended)["irca.container.state|exited"] == 1
    assert values(collection, f"{prefix}-failed")["irca.container.exit_code"] == 3
    [resource] = [r.resource for r in collection.resources if r.resource.get("container.name") == idle]
    assert resource["container.id"] == docker("inspect", "--format", "{{.Id}}", idle)
    assert resource["container.label.com.docker.compose.project"] == "shop"
    assert IMAGE.startswith(resource["container.image.name"])


def cpu_seconds(name: str) -> float:
    """The container's CPU time as its own cgroup file says; the engine's answer must lie between two of these."""
    script = "import os; p='/sys/fs/cgroup/cpuacct/cpuacct.usage'\n"
    script += "if os.path.exists(p): print(int(open(p).read()) / 1e9)\n"
    script += "else: print(int(open('/sys/fs/cgroup/cpu.stat').read().split()[1]) / 1e6)"
    return float(docker("exec", name, "python3", "-c", script))


def size(text: str) -> float:
    """Bytes of a size as the docker command prints it."""
    number, unit = re.fullmatch(r"([\d.]+)([A-Za-z]+)", text.strip()).groups()
    return float(number) * UNITS[unit]


def docker_stats(name: str) -> dict[str, float]:
    """What ``docker stats`` says about a container: CPUs, bytes and processes."""
    row = json.loads(docker("stats", "--no-stream", "--format", "{{json .}}", name))
    received, sent = row["NetIO"].split(" / ")
    used, limit = row["MemUsage"].split(" / ")
    return {
        "cpu": float(row["CPUPerc"].rstrip("%")) / 100,
        "used": size(used),
        "limit": size(limit),
        "received": size(received),
        "sent": size(sent),
        "processes": int(row["PIDs"]),
    }


def cgroup_files(name: str) -> dict[str, int]:
    """Bytes in use, inactive page cache and anonymous memory by the container's own cgroup files, read by the smallest of processes."""
    script = "cd /sys/fs/cgroup; cat memory/memory.usage_in_bytes memory/memory.stat 2>/dev/null || cat memory.current memory.stat"
    usage, *lines = docker("exec", name, "sh", "-c", script).splitlines()
    stat = {key: int(value) for key, value in (line.split() for line in lines)}
    return {
        "usage": int(usage),
        "inactive": stat.get("total_inactive_file", stat["inactive_file"]),
        "anonymous": stat.get("total_rss", stat.get("anon", 0)),
    }


def cpu_files(name: str) -> tuple[float, float]:
    """The machine's uptime and the CPU time that a container has used, in seconds, by the container's own cgroup files."""
    usage = "cat cpuacct/cpuacct.usage || cat cpu,cpuacct/cpuacct.usage || sed -n 's/^usage_usec \\(.*\\)/\\1000/p' cpu.stat"
    uptime, used = docker("exec", name, "sh", "-c", f"cat /proc/uptime; cd /sys/fs/cgroup; {{ {usage}; }} 2>/dev/null").splitlines()
    return float(uptime.split()[0]), int(used) / 1e9


def test_what_is_sent_is_within_five_percent_of_docker_stats_and_the_cgroup_files(prefix):
    name = f"{prefix}-steady"
    work = "x = bytearray(60_000_000)\nwhile True: pass"
    docker("run", "-d", "--name", name, "--memory", "128m", "--cpus", "0.25", IMAGE, "python3", "-c", work)
    made = agent()
    made.collect_metrics()
    begun = cpu_files(name)
    time.sleep(8)
    found = values(made.collect_metrics(), name)
    ended = cpu_files(name)

    said, files = docker_stats(name), cgroup_files(name)

    assert found["container.memory.working_set"] == pytest.approx(said["used"], rel=0.05)
    assert found["irca.container.memory.limit"] == pytest.approx(said["limit"], rel=0.05)
    assert found["container.network.io|eth0|receive"] == pytest.approx(said["received"], rel=0.05, abs=500)
    assert found["irca.container.process.count"] == said["processes"]
    assert found["irca.container.cpu.limit"] == 0.25
    # The container is held to a quarter of a CPU; a busy machine gives it less of that in one second than in the next.
    assert found["container.cpu.usage"] == pytest.approx((ended[1] - begun[1]) / (ended[0] - begun[0]), rel=0.05)
    assert found["container.cpu.usage"] <= 0.25 * 1.05
    assert said["cpu"] == pytest.approx(found["container.cpu.usage"], rel=0.25)
    assert found["container.memory.rss"] == pytest.approx(files["anonymous"], rel=0.05)
    assert found["container.memory.working_set"] == pytest.approx(files["usage"] - files["inactive"], rel=0.05)


@pytest.mark.skipif(not Path("/sys/fs/cgroup/memory/docker").is_dir(), reason="the container's cgroup is not where cgroup v1 has it")
def test_memory_and_cpu_time_are_within_five_percent_of_the_cgroup_files_of_the_host(prefix):
    name = f"{prefix}-files"
    docker(
        "run",
        "-d",
        "--name",
        name,
        IMAGE,
        "python3",
        "-c",
        "import time; x = bytearray(60_000_000); sum(range(30_000_000)); time.sleep(600)",
    )
    identity = docker("inspect", "--format", "{{.Id}}", name)
    time.sleep(4)
    found = values(agent().collect_metrics(), name)

    memory = Path("/sys/fs/cgroup/memory/docker", identity)
    stat = dict(line.split() for line in (memory / "memory.stat").read_text().splitlines())
    usage = int((memory / "memory.usage_in_bytes").read_text())
    assert found["container.memory.usage"] == pytest.approx(usage, rel=0.05)
    assert found["container.memory.working_set"] == pytest.approx(usage - int(stat["total_inactive_file"]), rel=0.05)
    assert found["container.memory.rss"] == pytest.approx(int(stat["total_rss"]), rel=0.05)
    used = int(Path("/sys/fs/cgroup/cpuacct/docker", identity, "cpuacct.usage").read_text()) / 1e9
    assert found["container.cpu.time"] == pytest.approx(used, rel=0.05)
    faults = found["container.paging.faults|major"] + found["container.paging.faults|minor"]
    assert faults == pytest.approx(int(stat["total_pgfault"]), rel=0.05)


def test_every_metric_of_the_table_is_sent_or_says_when_it_is(prefix):
    options = ["--memory", "64m", "--cpus", "0.5", "--pids-limit", "50", "--health-cmd", "true", "--health-interval", "1s"]
    docker("run", "-d", "--name", f"{prefix}-all", *options, IMAGE, "sleep", "600")
    docker("run", "--name", f"{prefix}-ended", IMAGE, "python3", "-c", "pass")
    made = agent(host_metrics=True)
    for collector in made._collectors:
        if collector.name == "docker.host":
            collector._procfs = Path("/proc")
    made.collect_metrics()
    time.sleep(1)

    collection = made.collect_metrics()

    sent = {m.name for r in collection.resources for m in r.metrics if m.points}
    assert {described.name for described in TABLE if not described.only} <= sent
    missing = {described.name for described in TABLE} - sent
    # Some engines account no block I/O: cgroup v1 without the controller's support for the device.
    assert missing <= {"container.disk.io", "irca.container.disk.operations"}
    assert not outcome(collection)["docker.host"]


def test_the_memory_agrees_with_the_containers_own_cgroup_file(prefix):
    name = f"{prefix}-memory"
    docker("run", "-d", "--name", name, IMAGE, "python3", "-c", "import time; x = bytearray(50_000_000); time.sleep(600)")
    script = "cat /sys/fs/cgroup/memory/memory.usage_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.current"
    eventually(lambda: values(agent().collect_metrics(), name)["container.memory.usage"] > 50_000_000)

    found = values(agent().collect_metrics(), name)

    assert found["container.memory.usage"] == pytest.approx(int(docker("exec", name, "sh", "-c", script)), rel=0.1)
    assert found["container.memory.rss"] >= 50_000_000


def test_states_health_and_restarts_are_the_engines(prefix):
    paused, sick, looping = f"{prefix}-paused", f"{prefix}-sick", f"{prefix}-loop"
    docker("run", "-d", "--name", paused, IMAGE, "sleep", "600")
    docker("pause", paused)
    health = ["--health-cmd", "exit 1", "--health-interval", "1s", "--health-retries", "1"]
    docker("run", "-d", "--name", sick, *health, IMAGE, "sleep", "600")
    docker("run", "-d", "--name", looping, "--restart", "on-failure:2", IMAGE, "sh", "-c", "exit 7")
    made = agent()
    try:
        eventually(lambda: values(made.collect_metrics(), sick)["irca.container.health.status|unhealthy"] == 1)
        eventually(lambda: values(made.collect_metrics(), looping)["irca.container.restart.count"] == 2)
        collection = made.collect_metrics()
    finally:
        docker("unpause", paused)

    assert values(collection, paused)["irca.container.state|paused"] == 1
    assert values(collection, looping)["irca.container.exit_code"] == 7


def test_many_containers_come_and_go_without_a_failed_round(prefix):
    names = [f"{prefix}-{number}" for number in range(12)]
    for name in names:
        docker("run", "-d", "--name", name, IMAGE, "sleep", "600")
    made = agent()
    removal = subprocess.Popen(["docker", "rm", "--force", *names[:6]], stdout=subprocess.DEVNULL)
    try:
        rounds = [made.collect_metrics() for _ in range(4)]
    finally:
        removal.wait(60)

    assert [outcome(collection)["docker.containers"] for collection in rounds] == [""] * 4
    seen = {r.resource.get("container.name") for r in rounds[-1].resources}
    assert set(names[6:]) <= seen


def test_start_and_stop_act_on_the_deployed_container(prefix):
    made = agent(container_name=prefix, image=IMAGE)
    with pytest.raises(NotDeployedError, match="run the deployment command first"):
        made.start()
    docker("create", "--name", prefix, "--label", "io.incident-rca.agent-type=docker", "--init", IMAGE, "sleep", "600")

    made.start()
    made.start()
    assert docker("inspect", "--format", "{{.State.Status}}", prefix) == "running"
    docker("pause", prefix)
    made.start()
    assert docker("inspect", "--format", "{{.State.Status}}", prefix) == "running"
    docker("pause", prefix)
    made.stop()
    made.stop()
    assert docker("inspect", "--format", "{{.State.Status}}", prefix) == "exited"


def test_a_container_of_somebody_else_is_left_alone(prefix):
    docker("run", "-d", "--name", prefix, IMAGE, "sleep", "600")

    with pytest.raises(ControlError, match="taken by a container that is not an incident-rca agent"):
        agent(container_name=prefix).stop()

    assert docker("inspect", "--format", "{{.State.Status}}", prefix) == "running"


def test_the_printed_command_makes_the_container_that_was_meant(prefix):
    made = agent(
        container_name=prefix,
        image=IMAGE,
        log_level="debug",
        labels={"note": "it's $HOME"},
        extra_labels={"team": "ops"},
        memory_limit="64m",
    )
    command = made.get_deployment_command()

    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    [described] = json.loads(docker("inspect", prefix))
    environment = dict(entry.split("=", 1) for entry in described["Config"]["Env"])
    assert environment["PLATFORM_API_URL"] == "http://172.17.0.1:8000"
    assert environment["AGENT_TOKEN"] == "token-123"
    assert environment["LOG_LEVEL"] == "debug"
    assert type(made.config).from_environment(environment).labels == {"note": "it's $HOME"}
    assert described["Config"]["Labels"]["team"] == "ops"
    host = described["HostConfig"]
    assert (host["RestartPolicy"]["Name"], host["Memory"], host["PidsLimit"]) == ("unless-stopped", 64 * 1024**2, 256)
    assert host["GroupAdd"] == [str(SOCKET.stat().st_gid)]
    assert {mount["Destination"] for mount in described["Mounts"]} == {"/var/run/docker.sock", "/var/lib/incident-rca"}

    made.stop()
    subprocess.run(["bash", "-c", made.get_uninstall_command()], capture_output=True, timeout=60, check=True)
    assert docker("ps", "-aq", "--filter", f"name=^{prefix}") == ""
    assert docker("volume", "ls", "-q", "--filter", f"name={prefix}") == ""


def test_without_capabilities_and_as_nobody_the_socket_can_still_be_used_by_its_group(prefix):
    """What the printed command grants is enough: the socket answers a process with no capability, by group alone."""
    command = agent(container_name=prefix).get_deployment_command().replace("\\\n", " ")
    words = shlex.split(re.sub(r'"\$\(stat [^"]+\)"', str(SOCKET.stat().st_gid), command))
    words = [word for word in words if word != "-d"][:-1]
    ask = "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/var/run/docker.sock')\n"
    ask += "s.send(b'GET /_ping HTTP/1.0\\r\\n\\r\\n'); print(s.recv(999).split()[1].decode())"
    words[words.index("--restart") : words.index("--restart") + 2] = ["--user", str(NOBODY)]

    done = subprocess.run([*words, IMAGE, "python3", "-c", ask], capture_output=True, text=True, timeout=60, check=False)

    assert (done.stdout.strip(), done.returncode) == ("200", 0), done.stderr


@pytest.fixture
def as_nobody():
    """This process with the rights of a user who is in no group, after what it needs has been imported."""
    if os.geteuid() != 0:
        pytest.skip("changing the user takes root")
    agent().collect_metrics()
    with pytest.raises(NotDeployedError):
        agent(container_name="irca-test-nothing").start()
    groups, group = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    yield
    os.seteuid(0)
    os.setegid(group)
    os.setgroups(groups)


def test_a_user_without_the_group_is_refused_with_the_cause(as_nobody):
    with pytest.raises(PermissionRefusedError, match="no permission to use the Docker engine"):
        agent().start()
    assert all("no permission to use the Docker engine" in reason for reason in outcome(agent().collect_metrics()).values())
    first = run_checks(agent().preflight())[0]
    assert (first.outcome, "--group-add" in first.advice) == (Outcome.FAIL, True)


def test_preflight_passes_on_a_docker_host():
    assert {r.outcome for r in run_checks(agent().preflight())} == {Outcome.PASS}


def test_no_engine_degrades_the_collectors_and_it_comes_back(tmp_path):
    link = tmp_path / "docker.sock"
    made = agent(docker_host=f"unix://{link}")
    assert "the socket does not exist" in outcome(made.collect_metrics())["docker.engine"]
    with pytest.raises(RuntimeUnavailableError), made._engine.client() as client:
        client.info()

    link.symlink_to(SOCKET)

    assert outcome(made.collect_metrics()) == FINE
    link.unlink()
    made._engine.close()
    assert "the socket does not exist" in outcome(made.collect_metrics())["docker.containers"]
