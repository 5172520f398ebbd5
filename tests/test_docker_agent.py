"""DockerAgent: preflight, what it needs installed, provisioning, and the machine it is on."""

from __future__ import annotations

import importlib
import sys

import pytest
from docker_agents import agent
from engine_stub import running_engine

from connectors.core.errors import MissingExtraError, RuntimeUnavailableError
from connectors.core.preflight import Outcome, run_checks
from connectors.docker.docker_agent import DockerAgent
from connectors.docker.machine import machine_id


@pytest.fixture
def engine(monkeypatch):
    with running_engine() as stub:
        monkeypatch.setenv("DOCKER_HOST", stub.host)
        yield stub


def test_preflight_passes_where_the_engine_answers(engine):
    engine.add("web")

    results = run_checks(agent().preflight())

    assert [(r.name, r.outcome) for r in results] == [
        ("docker.socket", Outcome.PASS),
        ("docker.engine", Outcome.PASS),
        ("docker.containers", Outcome.PASS),
    ]
    assert results[2].detail == "1 containers are visible"


def test_preflight_says_which_step_fails_and_what_to_do(engine, monkeypatch, tmp_path):
    engine.fail["/containers/json"] = 403
    refused = run_checks(agent().preflight())
    assert [r.outcome for r in refused] == [Outcome.PASS, Outcome.PASS, Outcome.FAIL]
    assert "CONTAINERS=1" in refused[2].advice

    engine.fail["/version"] = 500
    assert [r.outcome for r in run_checks(agent().preflight())] == [Outcome.PASS, Outcome.FAIL, Outcome.SKIP]

    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    missing = run_checks(agent().preflight())
    assert [r.outcome for r in missing] == [Outcome.FAIL, Outcome.SKIP, Outcome.SKIP]
    assert "No such file" in missing[0].detail

    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}")
    assert "nothing listens on" in run_checks(agent().preflight())[0].detail


def test_preflight_needs_no_socket_for_an_engine_over_the_network():
    socket_check = run_checks(agent(docker_host="tcp://127.0.0.1:1").preflight()[:1])[0]

    assert (socket_check.outcome, "tcp://127.0.0.1:1" in socket_check.detail) == (Outcome.PASS, True)


def test_without_docker_py_only_control_and_runtime_are_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "connectors.docker.engine", None)

    assert agent().get_deployment_command().startswith("docker run")
    with pytest.raises(MissingExtraError, match=r"incident-rca\[docker\]"):
        agent().start()
    assert "incident-rca[docker]" in run_checks(agent().preflight())[0].detail


def test_the_legacy_name_forwards_and_warns_of_its_removal():
    legacy = importlib.import_module("connectors.docker.agent")

    with pytest.warns(DeprecationWarning, match=r"removed in 1\.0\.0"):
        found = legacy.DockerAgent

    assert found is DockerAgent
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        _ = legacy.Other


def test_provisioning_hands_out_the_alternatives():
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from connectors.api import router

    app = FastAPI()
    app.include_router(router)
    client = TestClient(app, base_url="http://localhost:8000")

    docker, server = (
        client.post("/api/v1/agent/provision", json={"agent_type": kind, "environment_name": "e"}).json() for kind in ("docker", "server")
    )

    assert docker["alternatives"][0]["title"] == "compose.yaml"
    assert docker["agent_token"] in docker["alternatives"][0]["content"]
    assert [each["title"].split(":")[0] for each in server["alternatives"]][:2] == ["Checksum first", "Token asked for"]


# The machine


class Ids:
    """An engine that says these identities, one after the other; None is an engine that is away."""

    def __init__(self, *answers: str | None) -> None:
        self.answers = list(answers)

    def __call__(self) -> str:
        answer = self.answers.pop(0)
        if answer is None:
            raise RuntimeUnavailableError("away")
        return answer


def test_the_machine_is_the_engines_whatever_container_the_agent_is_in(tmp_path):
    first = machine_id(tmp_path, Ids("ENGINE", "ENGINE"))

    assert first == "engine:ENGINE"
    assert machine_id(tmp_path, Ids("ENGINE")) == first
    assert machine_id(tmp_path, Ids(None)) == first


def test_a_volume_on_another_engine_is_another_machine(tmp_path):
    machine_id(tmp_path, Ids("ENGINE", "ENGINE"))

    assert machine_id(tmp_path, Ids("OTHER", "OTHER")) == "engine:OTHER"


def test_an_agent_that_first_started_without_the_engine_stays_who_it_is(tmp_path):
    first = machine_id(tmp_path, Ids(None))

    assert first.startswith("volume:")
    assert machine_id(tmp_path, Ids("ENGINE", "ENGINE")) == first
    assert machine_id(tmp_path / "other", Ids(None)) != first


def test_an_engine_that_makes_up_its_identity_is_not_believed(tmp_path):
    first = machine_id(tmp_path, Ids("A", "B"))

    assert first.startswith("volume:")
    assert machine_id(tmp_path, Ids("C", "D")) == first
    assert machine_id(tmp_path / "silent", Ids("")).startswith("volume:")


def test_the_agent_asks_its_engine_which_machine_it_is_on(engine, tmp_path):
    made = agent(state_dir=str(tmp_path))

    assert made.machine_id() == "engine:ENGINE"
    engine.fail["/info"] = 500
    assert agent(state_dir=str(tmp_path)).machine_id() == "engine:ENGINE"
