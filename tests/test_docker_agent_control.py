"""Starting and stopping the agent's container: control talks to an engine stub over a real Unix socket."""

from __future__ import annotations

import socket

import pytest
import requests.exceptions
from docker_agents import agent
from engine_stub import running_engine

from connectors.core.errors import ControlError, NotDeployedError, PermissionRefusedError, RuntimeUnavailableError
from connectors.docker import engine as engine_module


@pytest.fixture
def engine(monkeypatch):
    with running_engine() as stub:
        monkeypatch.setenv("DOCKER_HOST", stub.host)
        yield stub


def test_start_and_stop_act_on_the_container_of_that_name(engine):
    identity = engine.add("incident-rca-agent", labels={"io.incident-rca.agent-type": "docker"}, Running=False, Status="exited")

    agent().start()
    assert engine.containers[identity]["State"]["Running"]
    agent().start()
    assert engine.containers[identity]["State"]["Running"]
    agent().stop()
    assert not engine.containers[identity]["State"]["Running"]
    agent().stop()

    assert [r for r in engine.requests if "/stop" in r] == [f"POST /containers/{identity}/stop?t=15"] * 2


def test_a_paused_agent_is_resumed_and_can_say_goodbye(engine):
    labels = {"io.incident-rca.agent-type": "docker"}
    identity = engine.add("incident-rca-agent", labels=labels, Paused=True)

    agent().start()
    assert f"POST /containers/{identity}/unpause" in engine.requests
    engine.containers[identity]["State"]["Paused"] = True
    engine.requests.clear()
    agent().stop()

    assert engine.requests[-2:] == [f"POST /containers/{identity}/unpause", f"POST /containers/{identity}/stop?t=15"]


def test_a_container_without_our_label_is_ours_by_its_image(engine):
    identity = engine.add("incident-rca-agent", image="incident-rca/agent:0.9", Running=False)

    agent().start()

    assert engine.containers[identity]["State"]["Running"]


@pytest.mark.parametrize("action", ["start", "stop"])
def test_a_name_that_something_else_has_is_left_alone(engine, action):
    identity = engine.add("incident-rca-agent", image="postgres:16", Running=action == "stop")

    with pytest.raises(ControlError, match=r"taken by a container that is not an incident-rca agent \(image 'postgres:16'\)"):
        getattr(agent(), action)()

    assert engine.containers[identity]["State"]["Running"] == (action == "stop")


@pytest.mark.parametrize("action", ["start", "stop"])
def test_no_container_of_that_name_is_not_deployed(engine, action):
    with pytest.raises(NotDeployedError, match="no container named 'incident-rca-agent': run the deployment command first"):
        getattr(agent(), action)()


def test_an_id_that_begins_like_the_name_is_not_the_agent(engine):
    engine.add("other", image="incident-rca/agent:latest")

    with pytest.raises(NotDeployedError):
        agent(container_name="aaaa").stop()


def test_no_engine_is_unavailable(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")

    with pytest.raises(RuntimeUnavailableError, match="the socket does not exist"):
        agent().start()


def test_a_socket_that_nobody_listens_on_is_unavailable(monkeypatch, tmp_path):
    path = tmp_path / "left.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        with pytest.raises(RuntimeUnavailableError, match="the connection was refused"):
            agent().stop()


def test_an_engine_that_hangs_is_given_up(engine):
    engine.add("incident-rca-agent")
    engine.slow["/version"] = 3

    with pytest.raises(RuntimeUnavailableError, match="does not answer within 1 s"):
        agent(engine_timeout=1).start()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (403, PermissionRefusedError),
        (401, PermissionRefusedError),
        (503, RuntimeUnavailableError),
        (500, ControlError),
        (409, ControlError),
    ],
)
def test_what_the_engine_refuses_is_told_in_its_own_words(engine, status, expected):
    identity = engine.add("incident-rca-agent", labels={"io.incident-rca.agent-type": "docker"}, Running=False)
    engine.fail[f"/containers/{identity}/start"] = status

    with pytest.raises(expected, match="refused by order") as caught:
        agent().start()
    assert type(caught.value) is expected


@pytest.mark.parametrize(
    ("cause", "expected", "reason"),
    [
        (socket.gaierror(-2, "Name or service not known"), RuntimeUnavailableError, "the name does not resolve"),
        (OSError("something\nelse"), RuntimeUnavailableError, "cannot be used: something else"),
        (PermissionError(13, "Permission denied"), PermissionRefusedError, "group that owns the socket"),
    ],
)
def test_the_cause_is_found_however_deep_it_lies(cause, expected, reason):
    wrapped = requests.exceptions.ConnectionError(("Connection aborted.", cause))
    wrapped.args = (wrapped, cause)

    for failure in (cause, wrapped):
        error = engine_module.explain(failure, "tcp://proxy:2375", 5)
        assert type(error) is expected
        if failure is cause:
            assert reason in error.reason


def test_control_goes_to_the_engine_of_here_and_not_to_the_agents_own(engine):
    engine.add("incident-rca-agent", labels={"io.incident-rca.agent-type": "docker"})

    agent(docker_host="tcp://only-in-the-container:2375").stop()

    assert any("/stop" in request for request in engine.requests)
