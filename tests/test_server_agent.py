from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from connectors.agent_factory import AgentFactory
from connectors.core.errors import CollectorError, ConfigError
from connectors.core.preflight import Outcome, run_checks
from connectors.server import host
from connectors.server.config import ServerConfig
from connectors.server.server_agent import ServerAgent

URL, TOKEN = "http://localhost:8000", "agent_prod_s3cr3t"


def server(**config) -> ServerAgent:
    return ServerAgent(URL, TOKEN, config)


def test_the_factory_makes_server_agents():
    agent = AgentFactory.create_agent(agent_type="server", platform_url=URL, agent_token=TOKEN, config={"log_level": "debug"})
    assert type(agent) is ServerAgent
    assert agent.config.log_level == "debug"
    assert agent.description
    assert len(agent.runs_on) == 3
    assert TOKEN not in repr(agent)


def test_one_round_gathers_the_host_under_its_resource():
    agent = server()
    collection = agent.collect_metrics()
    (item,) = collection.resources
    assert item.resource == agent.resource()
    assert next(iter(item.resource)) == "host.id"
    names = {metric.name for metric in item.metrics}
    assert {"system.cpu.time", "system.memory.usage", "system.network.connection.count", "irca.collector.success"} <= names
    assert agent.resource() is agent.resource()


def test_only_the_collectors_that_are_selected_run():
    collection = server(collectors=["uptime", "load"]).collect_metrics()
    assert [result.name for result in collection.collectors] == ["uptime", "load"]


def imported_by(code: str) -> set[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # coverage would load much itself
    argv = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True, env=environ)
    return set(done.stdout.split())


FORBIDDEN = {
    *("app", "asyncio", "concurrent.futures", "docker", "fastapi", "http.client", "httpx", "httpx2", "jinja2", "lightkube", "msgspec"),
    *("multiprocessing", "numpy", "pydantic", "pydantic_core", "requests", "rich", "sqlalchemy", "starlette", "structlog", "typer"),
}


def test_importing_the_agent_brings_nothing_that_running_does_not_need():
    loaded = imported_by("import connectors.server.server_agent")
    assert not loaded & (FORBIDDEN | {"subprocess", "psutil"})
    assert not loaded & {"connectors.server.control", "connectors.server.command", "connectors.server.collect"}


def test_a_running_agent_loads_neither_control_nor_command_planning():
    code = "from connectors.server.server_agent import ServerAgent; ServerAgent('http://localhost', 'agent_x_1').collect_metrics()"
    loaded = imported_by(code)
    assert "connectors.server.collect" in loaded
    assert not loaded & (FORBIDDEN | {"connectors.server.control", "connectors.server.command"})


def test_planning_a_command_needs_no_psutil():
    code = "from connectors.server.server_agent import ServerAgent; ServerAgent('http://localhost', 'agent_x_1').get_deployment_command()"
    assert not imported_by(code) & (FORBIDDEN | {"psutil", "subprocess"})


# Configuration


@pytest.mark.parametrize(
    ("config", "field", "message"),
    [
        ({"os": "beos"}, "os", "linux, macos, windows"),
        ({"service_name": "a b; rm -rf /"}, "service_name", "must match"),
        ({"service_name": "a" * 65}, "service_name", "1 to 64"),
        ({"collectors": ["cpu", "gpu"]}, "collectors[1]", "cpu, load, memory"),
        ({"collectors": []}, "collectors", "1 to"),
        ({"collectors": ["cpu", "cpu"]}, "collectors", "once"),
        ({"network_exclude_interfaces": ["eth("]}, "network_exclude_interfaces", "regular expressions"),
        ({"filesystem_timeout": 0}, "filesystem_timeout", "at least 0.1"),
        ({"namespace": "x"}, "namespace", "unknown option"),
    ],
)
def test_a_wrong_option_is_refused_with_its_name(config, field, message):
    with pytest.raises(ConfigError, match=message) as caught:
        server(**config)
    assert caught.value.field == field


def test_a_configuration_travels_through_the_environment_unchanged():
    config = ServerConfig.from_mapping(
        {
            "collectors": ["memory", "cpu"],
            "cpu_per_core": False,
            "disk_exclude_devices": [],
            "filesystem_exclude_mounts": [r"/mnt/\d+,x", "/a=b"],
            "filesystem_timeout": 0.5,
            "labels": {"team": "a,b"},
        }
    )
    assert ServerConfig.from_environment(config.environment()) == config


def test_what_only_deployment_needs_is_not_read_from_the_environment():
    # Windows sets OS=Windows_NT for every process.
    assert ServerConfig.from_environment({"OS": "Windows_NT", "SERVICE_NAME": "x"}) == ServerConfig()


def test_every_option_is_described_and_published_as_json_schema():
    adapter = TypeAdapter(ServerConfig)
    schema = adapter.json_schema()
    assert all(option.description for option in ServerConfig.options().values())
    assert set(schema["properties"]) == set(ServerConfig.options())
    assert schema["properties"]["os"]["enum"] == ["linux", "macos", "windows"]
    assert adapter.validate_python({"collectors": ["cpu"]}) == ServerConfig(collectors=("cpu",))
    with pytest.raises(ConfigError):
        adapter.validate_python({"disk_exclude_devices": ["("]})


@pytest.mark.parametrize(
    ("option", "left_out", "kept"),
    [
        ("disk_exclude_devices", "loop0 sda1 vda12 nvme0n1p2 mmcblk0p1 sr0 ram3", "sda nvme0n1 dm-0 md127 mmcblk0"),
        ("filesystem_exclude_types", "proc cgroup2 overlay squashfs nfs4 cifs fuse.sshfs", "ext4 xfs tmpfs zfs btrfs"),
        (
            "filesystem_exclude_mounts",
            "/proc /dev/shm /run/user/1000 /etc/hosts /var/lib/docker/overlay2/x/merged",
            "/ /run /data /devices",
        ),
        ("network_exclude_interfaces", "lo veth1a2b docker0 br-0123456789ab cali12 cni0 tunl0", "eth0 ens3 bond0 br0 wg0"),
    ],
)
def test_the_default_exclusions_leave_out_what_is_virtual_and_keep_what_is_not(option, left_out, kept):
    from connectors.server.host_collector import Exclusion

    exclusion = Exclusion(getattr(ServerConfig(), option))
    assert [name for name in left_out.split() if name not in exclusion] == []
    assert [name for name in kept.split() if name in exclusion] == []


# The host


def test_the_resource_is_what_the_host_says_of_itself(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("0123456789ABCDEF0123456789abcdef\n")
    (tmp_path / "etc/os-release").write_text(
        'NAME="Debian GNU/Linux"\nVERSION_ID=\'12\'\n# comment\nbroken\nPRETTY_NAME="A \\"B\\" \\$C"\n'
    )
    found = host.host_resource(tmp_path)
    assert list(found)[:3] == ["host.id", "host.name", "host.arch"]
    assert found["host.id"] == "0123456789abcdef0123456789abcdef"
    assert found["host.name"] == os.uname().nodename
    assert found["os.type"] == "linux"
    assert found["os.name"] == "Debian GNU/Linux"
    assert found["os.version"] == "12"
    assert found["os.description"] == f'A "B" $C (kernel {os.uname().release})'


@pytest.mark.parametrize("content", ["", "uninitialized\n", "short", "not an id!!"])
def test_a_host_without_a_machine_id_is_known_by_its_name(tmp_path, content):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text(content)
    assert host.machine_id(tmp_path) == ""
    found = host.host_resource(tmp_path)
    assert found["host.id"] == host.host_resource(tmp_path)["host.id"]
    assert len(found["host.id"]) == 36
    assert found["os.name"] == "Linux"
    assert "os.version" not in found


def test_the_hardware_uuid_stands_in_for_a_machine_id(tmp_path):
    (tmp_path / "sys/class/dmi/id").mkdir(parents=True)
    (tmp_path / "sys/class/dmi/id/product_uuid").write_text("4C4C4544-0051-4A10-8051-B7C04F4E3332\n")
    assert host.machine_id(tmp_path) == "4c4c4544-0051-4a10-8051-b7c04f4e3332"


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("x86_64", "amd64"),
        ("AMD64", "amd64"),
        ("aarch64", "arm64"),
        ("armv7l", "arm32"),
        ("armv8l", "arm64"),
        ("i686", "x86"),
        ("riscv64", "riscv64"),
    ],
)
def test_architectures_have_opentelemetrys_names(machine, expected):
    assert host.architecture(machine) == expected


@pytest.mark.parametrize(
    ("platform", "environ", "privileged", "expected"),
    [
        ("linux", {}, True, "/var/lib/incident-rca"),
        ("linux", {"HOME": "/home/u"}, False, "/home/u/.local/state/incident-rca"),
        ("linux", {"HOME": "/home/u", "XDG_STATE_HOME": "/s"}, False, "/s/incident-rca"),
        ("linux", {"HOME": "/home/u", "XDG_STATE_HOME": "relative"}, False, "/home/u/.local/state/incident-rca"),
        ("linux", {"STATE_DIRECTORY": "/var/lib/private/x:/other"}, False, "/var/lib/private/x"),
        ("darwin", {}, True, "/Library/Application Support/incident-rca"),
        ("darwin", {"HOME": "/Users/u"}, False, "/Users/u/Library/Application Support/incident-rca"),
        ("win32", {"ProgramData": r"D:\Data"}, True, r"D:\Data\incident-rca"),
        ("win32", {}, True, r"C:\ProgramData\incident-rca"),
    ],
)
def test_the_state_directory_is_the_systems_or_the_users(platform, environ, privileged, expected):
    assert host.default_state_dir(platform, environ, privileged=privileged) == expected


def test_the_state_directory_can_be_configured():
    assert server(state_dir="/data/agent").state_dir == Path("/data/agent")
    assert str(server().state_dir) == ServerAgent.default_state_dir


# Preflight


def test_preflight_finds_nothing_wrong_here():
    results = {result.name: result for result in run_checks(server().preflight())}
    assert results["collectors"].outcome is Outcome.PASS
    assert "11 collectors read" in results["collectors"].detail
    assert results["host-id"].outcome in (Outcome.PASS, Outcome.WARN)


class _Broken:
    def __init__(self, name):
        self.name = name

    def collect(self):
        raise CollectorError("it is hidden")


def test_preflight_names_the_collectors_that_cannot_read_their_source():
    agent = server(collectors=["uptime"])
    agent._collectors = [*agent._ready_collectors(), _Broken("disk")]
    result = run_checks(agent.preflight())[1]
    assert (result.outcome, result.detail) == (Outcome.WARN, "disk: it is hidden")
    assert "leave the collector out" in result.advice
    agent._collectors = [_Broken("disk")]
    assert run_checks(agent.preflight())[1].outcome is Outcome.FAIL


def test_preflight_warns_of_a_machine_without_an_id(monkeypatch):
    monkeypatch.setattr(host, "machine_id", lambda: "")
    result = run_checks(server().preflight())[0]
    assert result.outcome is Outcome.WARN
    assert "systemd-machine-id-setup" in result.advice
    monkeypatch.setattr(host, "machine_id", lambda: "abc")
    assert run_checks(server().preflight())[0].outcome is Outcome.PASS
