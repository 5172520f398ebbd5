"""The connection to the engine: API versions, time limits, workers and TLS."""

from __future__ import annotations

import time

import docker.errors
import pytest
from docker_agents import agent
from docker_readings import FINE, by_container, outcome
from engine_stub import running_engine

from connectors.docker import engine as engines
from connectors.docker.engine import Engine
from connectors.docker.fanout import Fanout


@pytest.fixture
def engine(monkeypatch):
    with running_engine() as stub:
        monkeypatch.setenv("DOCKER_HOST", stub.host)
        yield stub


def test_the_engine_and_the_version_spoken_with_it_are_told(engine):
    collection = agent().collect_metrics()

    [info] = [m for r in collection.resources for m in r.metrics if m.name == "irca.engine.info"]
    assert info.points[0].attributes == {"irca.engine.version": "20.10.24", "irca.engine.api_version": "1.41"}


@pytest.mark.parametrize(
    ("newest", "oldest", "agreed"),
    [("1.41", "1.12", "1.41"), ("1.24", "", "1.24"), ("1.99", "1.24", "1.45"), ("1.99", "1.60", "1.60")],
)
def test_the_api_version_is_one_that_both_know(newest, oldest, agreed):
    assert engines.agree(newest, oldest) == agreed


def test_an_engine_that_is_too_old_is_told_to_be_updated(engine):
    with pytest.raises(docker.errors.DockerException, match="update the engine"):
        engines.agree("1.20", "")

    engine.api_version = "1.20"

    assert "it speaks API 1.20" in outcome(agent().collect_metrics())["docker.engine"]


def test_an_engine_that_no_longer_speaks_the_agreed_version_is_asked_anew(engine):
    engine.add("web")
    made = agent()
    made.collect_metrics()
    engine.replies["/containers/json"] = (400, {"message": "client version 1.41 is too new. Maximum supported API version is 1.40"})
    assert "no longer speaks the API version" in outcome(made.collect_metrics())["docker.containers"]
    engine.replies.clear()
    engine.api_version = "1.40"

    collection = made.collect_metrics()

    assert outcome(collection) == FINE
    assert made._engine.speaks("1.40")
    assert not made._engine.speaks("1.41")


def test_an_engine_that_hangs_is_waited_for_once_in_a_round(engine):
    engine.add("web")
    made = agent(engine_timeout=1, disk_usage_interval=0)
    made.resource()
    engine.slow |= {"/info": 3, "/containers/json": 3}

    reasons = outcome(made.collect_metrics())

    assert all("does not answer within 1 s" in reason for reason in reasons.values())
    assert len(reasons) == 2
    assert not [r for r in engine.requests if r.startswith("GET /containers/json")]


def test_a_connection_that_breaks_in_the_middle_fails_that_container_alone(engine):
    engine.add("web")
    cut = engine.add("cut")
    engine.replies[f"/containers/{cut}/stats"] = (200, "this is no JSON object")
    nonsense = engine.add("nonsense")
    engine.replies[f"/containers/{nonsense}/json"] = (200, b"{")

    found = by_container(agent().collect_metrics())

    assert "container.cpu.time" in found["web"]
    assert found["nonsense"]["irca.container.state|running"] == 1
    assert found[None]["irca.engine.container.unmeasured"] == 1


def test_an_engine_that_goes_away_in_the_middle_fails_every_answer(tmp_path):
    with running_engine() as stub:
        stub.add("web")
        engine = Engine({}, host=stub.host, timeout=1)
        path = engine.path("/containers/x/json")
    with Fanout(engine, width=2) as fanout:
        answers = fanout.ask("inspect", {"a": path, "b": path, "c": path}, patience=1, deadline=time.monotonic() + 5)
    engine.close()

    assert list(answers) == ["a", "b", "c"]
    assert all("the socket does not exist" in answer.failure.reason for answer in answers.values())
    assert engine.costs()["inspect"].failed == 3


def test_more_containers_than_connections_are_all_asked(engine):
    for number in range(9):
        engine.add(f"web-{number}")

    found = by_container(agent(stats_workers=2).collect_metrics())

    assert len([name for name in found if name and "container.cpu.time" in found[name]]) == 9


def test_after_the_deadline_nothing_more_is_asked(engine):
    engine.add("web")
    asked = Engine({}, host=engine.host)
    path = asked.path("/info")
    with Fanout(asked, width=1) as fanout:
        answers = fanout.ask("info", {"a": path, "b": path}, patience=5, deadline=time.monotonic() - 1)
    asked.close()

    assert all("did not answer in time" in answer.failure.reason for answer in answers.values())
    assert not [r for r in engine.requests if "/info" in r]


@pytest.mark.parametrize(
    ("host", "address", "port"), [("tcp://box:1234", "box", 1234), ("tcp://box", "box", 2375), ("http://box:80", "box", 80)]
)
def test_an_engine_on_the_network_is_asked_over_tcp(host, address, port):
    connection = Engine({}, host=host).connection()

    assert (connection.host, connection.port) == (address, port)


def test_tls_uses_the_certificates_of_the_docker_command(tmp_path):
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    certificate = authority.issue_cert("agent")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    environ = {"DOCKER_HOST": "tcp://box:2376", "DOCKER_CERT_PATH": str(tmp_path)}

    verified = Engine({**environ, "DOCKER_TLS_VERIFY": "1"}).connection()
    unverified = Engine({**environ, "DOCKER_TLS_VERIFY": ""}).connection()

    assert (verified.host, verified.port) == ("box", 2376)
    assert verified._context.check_hostname
    assert not unverified._context.check_hostname
