"""How the agent is deployed: the command, its options, and compose.yaml."""

from __future__ import annotations

import itertools
import shlex

import pytest
from docker_agents import agent
from hypothesis import given
from hypothesis import strategies as st

from connectors.agent_factory import AgentFactory
from connectors.core.errors import ConfigError
from connectors.docker.compose import scalar


def test_the_command_is_as_the_specification_promises():
    made = AgentFactory.create_agent(
        agent_type="docker", platform_url="http://localhost:8000", agent_token="token-123", config={"log_level": "debug"}
    )

    command = made.get_deployment_command()

    assert command.startswith("docker run -d --name incident-rca-agent \\\n")
    flat = " ".join(command.replace("\\\n", " ").split())
    assert "-e PLATFORM_API_URL=http://localhost:8000 -e AGENT_TOKEN=token-123 -e LOG_LEVEL=debug" in flat
    assert flat.endswith(" incident-rca/agent:latest")


def test_the_command_gives_the_agent_what_it_needs():
    words = shlex.split(agent().get_deployment_command())

    pairs = list(itertools.pairwise(words))
    assert ("--restart", "unless-stopped") in pairs
    assert ("-v", "/var/run/docker.sock:/var/run/docker.sock") in pairs
    assert ("-v", "incident-rca-agent:/var/lib/incident-rca") in pairs
    assert ("--group-add", "$(stat -c %g /var/run/docker.sock)") in pairs
    assert ("--memory", "256m") in pairs
    assert ("--pids-limit", "256") in pairs
    assert ("-e", "AGENT_TYPE=docker") in pairs


def test_every_deployment_option_shows_in_the_command():
    config = {
        "container_name": "rca-2",
        "image": "registry.example.com:5000/ops/agent:1.2@sha256:00ff",
        "network": "ops",
        "memory_limit": "64m",
        "pids_limit": 50,
        "extra_environment": {"HTTPS_PROXY": "http://proxy:3128"},
        "extra_labels": {"team": "ops", "io.incident-rca.agent-type": "something else"},
        "ca_file": "/etc/ssl/own.pem",
        "state_dir": "/data",
        "host_metrics": True,
    }

    words = shlex.split(agent(**config).get_deployment_command())

    pairs = list(itertools.pairwise(words))
    for expected in [
        ("--name", "rca-2"),
        ("--network", "ops"),
        ("--memory", "64m"),
        ("--pids-limit", "50"),
        ("-e", "HTTPS_PROXY=http://proxy:3128"),
        ("-e", "CA_FILE=/etc/ssl/own.pem"),
        ("-e", "STATE_DIR=/data"),
        ("-e", "HOST_METRICS=true"),
        ("--label", "team=ops"),
        ("--label", "io.incident-rca.agent-type=docker"),
        ("-v", "rca-2:/data"),
        ("-v", "/proc:/host/proc:ro"),
        ("--mount", "type=bind,source=/etc/ssl/own.pem,target=/etc/ssl/own.pem,readonly"),
    ]:
        assert expected in pairs
    assert "io.incident-rca.agent-type=something else" not in words
    assert words[-1] == "registry.example.com:5000/ops/agent:1.2@sha256:00ff"


def test_limits_can_be_left_out():
    command = agent(memory_limit="", pids_limit=0).get_deployment_command()

    assert "--memory" not in command
    assert "--pids-limit" not in command


def test_an_engine_over_the_network_needs_no_socket():
    command = agent(docker_host="tcp://socket-proxy:2375", network="ops").get_deployment_command()

    assert "docker.sock" not in command
    assert "--group-add" not in command
    assert "-e DOCKER_HOST=tcp://socket-proxy:2375" in command


def test_a_token_in_a_file_stays_out_of_the_command():
    made = agent(token_file="/srv/irca-token")

    assert "token-123" not in made.get_deployment_command()
    assert "-e AGENT_TOKEN_FILE=/run/secrets/incident-rca-token" in made.get_deployment_command()
    assert "Write the token to /srv/irca-token" in made.get_instructions()


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"container_name": "-rm"}, "container_name"),
        ({"container_name": "a b"}, "container_name"),
        ({"image": "--privileged"}, "image"),
        ({"image": "a b"}, "image"),
        ({"network": "-x"}, "network"),
        ({"memory_limit": "much"}, "memory_limit"),
        ({"pids_limit": -1}, "pids_limit"),
        ({"docker_host": "ssh://box"}, "docker_host"),
        ({"docker_host": "/var/run/docker.sock"}, "docker_host"),
        ({"token_file": "relative"}, "token_file"),
        ({"token_file": "/a,readonly=false"}, "token_file"),
        ({"state_dir": "here"}, "state_dir"),
        ({"ca_file": "/a:b"}, "ca_file"),
        ({"extra_environment": {"A-B": "x"}}, "extra_environment"),
        ({"extra_environment": {"AGENT_TOKEN": "x"}}, "extra_environment"),
        ({"extra_environment": {"LOG_LEVEL": "x"}}, "extra_environment"),
        ({"extra_labels": {"a=b": "x"}}, "extra_labels"),
        ({"stats_workers": 0}, "stats_workers"),
    ],
)
def test_an_option_that_cannot_work_is_refused_by_its_name(config, field):
    with pytest.raises(ConfigError) as caught:
        agent(**config)
    assert caught.value.field == field


def test_a_platform_on_loopback_is_pointed_out():
    assert "the container itself" in agent().get_instructions()
    assert "the container itself" not in agent(network="host").get_instructions()
    elsewhere = AgentFactory.create_agent("docker", "https://platform.example.com", "t", {"docker_host": "tcp://proxy:2375"})
    assert "the container itself" not in elsewhere.get_instructions()
    assert "tcp://proxy:2375" in elsewhere.get_instructions()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, ("--restart", "unless-stopped")),
        ({"restart_policy": "on-failure:3"}, ("--restart", "on-failure:3")),
        ({"state_volume": "rca-state"}, ("-v", "rca-state:/var/lib/incident-rca")),
        ({"socket_group": "0"}, ("--group-add", "0")),
        ({"host_metrics": True}, ("-v", "/sys:/host/sys:ro")),
        ({}, ("--stop-timeout", "15")),
        ({}, ("--pull", "never")),
    ],
)
def test_the_container_is_run_as_configured(config, expected):
    assert expected in list(itertools.pairwise(shlex.split(agent(**config).get_deployment_command())))


def test_the_root_file_system_is_read_only_and_there_are_no_rights_to_gain():
    words = shlex.split(agent().get_deployment_command())
    assert "--read-only" in words
    assert ("--cap-drop", "ALL") in list(itertools.pairwise(words))


def test_an_image_of_ones_own_may_be_pulled():
    assert "--pull" not in agent(image="registry.example.com/rca:1").get_deployment_command()


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"restart_policy": "sometimes"}, "restart_policy"),
        ({"restart_policy": "always --privileged"}, "restart_policy"),
        ({"state_volume": "/host/path"}, "state_volume"),
        ({"state_volume": "a:b"}, "state_volume"),
        ({"socket_group": "a b"}, "socket_group"),
    ],
)
def test_a_deployment_option_that_cannot_work_is_refused(config, field):
    with pytest.raises(ConfigError) as caught:
        agent(**config)
    assert caught.value.field == field


def test_the_uninstall_command_stops_the_agent_and_removes_container_and_state():
    made = agent(container_name="rca", state_volume="rca-state")
    assert made.get_uninstall_command() == "docker stop rca; docker rm --force rca; docker volume rm --force rca-state"


def test_the_instructions_offer_both_ways_to_the_image_from_the_platform():
    told = agent().get_instructions()

    assert "`docker build -t incident-rca/agent:latest http://localhost:8000/artefacts/docker/context.tar.gz`" in told
    assert "curl -fsSL -O http://localhost:8000/artefacts/docker/image.tar.gz && " in told
    assert "curl -fsSL http://localhost:8000/artefacts/docker/image.tar.gz.sha256 | sha256sum -c - && docker load -i image.tar.gz`" in told
    assert "`incident-rca image build`" in told


def test_a_private_ca_is_trusted_for_the_image_too():
    told = agent(ca_file="/etc/ssl/own.pem").get_instructions()

    assert "curl -fsSL --cacert /etc/ssl/own.pem http://localhost:8000/artefacts/docker/context.tar.gz | docker build -t" in told
    assert "-k" not in told.split()


def test_an_image_of_ones_own_is_not_the_platforms_to_give():
    told = agent(image="registry.example.com/rca:1").get_instructions()

    assert "the image registry.example.com/rca:1, or can pull it" in told
    assert "/artefacts/" not in told


def test_a_state_directory_that_the_image_does_not_have_is_pointed_out():
    assert "no directory /data" in agent(state_dir="/data").get_instructions()
    assert "no directory" not in agent(state_dir="/var/lib/incident-rca").get_instructions()


def test_the_alternatives_keep_the_token_out_of_the_command_line():
    compose, env_file, by_env_file, by_file = agent().get_alternatives()

    assert compose == ("compose.yaml", agent().get_compose_file())
    assert env_file[1] == "AGENT_TOKEN=token-123\n"
    assert "incident-rca-agent.env" in env_file[0]
    assert "--env-file incident-rca-agent.env" in by_env_file[1]
    assert "source=/etc/incident-rca/agent-token,target=/run/secrets/incident-rca-token,readonly" in by_file[1]
    assert "-o 10001" in by_file[0]
    for _, content in (by_env_file, by_file):
        assert content.startswith("docker run -d --name incident-rca-agent ")
        assert "token-123" not in content


def test_with_a_token_file_compose_is_the_only_alternative_and_holds_no_token():
    [(title, content)] = agent(token_file="/srv/token").get_alternatives()

    assert title == "compose.yaml"
    assert "token-123" not in content
    assert "/srv/token" in content


# compose.yaml


def composed(**config) -> dict:
    return pytest.importorskip("yaml").safe_load(agent(**config).get_compose_file())


def test_compose_runs_the_same_container_as_the_command():
    read = composed(log_level="debug", labels={"team": "a,b"}, host_metrics=True, ca_file="/etc/ssl/own.pem")

    service = read["services"]["agent"]
    assert service["container_name"] == "incident-rca-agent"
    assert service["image"] == "incident-rca/agent:latest"
    assert service["pull_policy"] == "never"
    assert (service["read_only"], service["cap_drop"], service["security_opt"]) == (True, ["ALL"], ["no-new-privileges:true"])
    assert (service["mem_limit"], service["pids_limit"], service["restart"]) == ("256m", 256, "unless-stopped")
    assert service["stop_grace_period"] == "15s"
    assert service["labels"] == {"io.incident-rca.agent-type": "docker"}
    assert service["environment"] == {
        "AGENT_TYPE": "docker",
        "PLATFORM_API_URL": "http://localhost:8000",
        "AGENT_TOKEN": "token-123",
        "LOG_LEVEL": "debug",
        "LABELS": r"team=a\,b",
        "HOST_METRICS": "true",
        "CA_FILE": "/etc/ssl/own.pem",
    }
    assert [(v["type"], v["source"], v["target"], v.get("read_only", False)) for v in service["volumes"]] == [
        ("volume", "state", "/var/lib/incident-rca", False),
        ("bind", "/var/run/docker.sock", "/var/run/docker.sock", False),
        ("bind", "/proc", "/host/proc", True),
        ("bind", "/sys", "/host/sys", True),
        ("bind", "/etc/ssl/own.pem", "/etc/ssl/own.pem", True),
    ]
    assert read["volumes"] == {"state": {"name": "incident-rca-agent"}}
    assert service["group_add"][0].startswith("${SOCKET_GROUP:?")
    assert 'SOCKET_GROUP="$(stat -c %g /var/run/docker.sock)" docker compose up -d' in agent().get_compose_file()


def test_compose_follows_the_deployment_options():
    read = composed(network="ops", docker_host="tcp://proxy:2375", memory_limit="", pids_limit=0, restart_policy="no", container_name="A.b")
    service = read["services"]["agent"]
    assert read["name"] == "a-b"
    assert read["networks"] == {"agent": {"name": "ops", "external": True}}
    assert service["networks"] == ["agent"]
    assert service["restart"] == "no"
    assert service["environment"]["DOCKER_HOST"] == "tcp://proxy:2375"
    assert not {"mem_limit", "pids_limit", "group_add"} & service.keys()
    assert composed(network="host")["services"]["agent"]["network_mode"] == "host"
    assert composed(socket_group="0")["services"]["agent"]["group_add"] == ["0"]
    assert composed(image="own/agent:1")["services"]["agent"].get("pull_policy") is None


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",))))
def test_any_text_survives_yaml_and_composes_variables(text):
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(scalar(text)).replace("$$", "\0").count("$") == 0
    assert yaml.safe_load(scalar(text)).replace("$$", "$") == text
