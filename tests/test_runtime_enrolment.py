"""Enrolment, credentials and heartbeats."""

from __future__ import annotations

import json
import logging

import pytest

from tests.fake_platform import FakePlatform, problem
from tests.runtime_agents import made_agents

pytestmark = pytest.mark.sockets


@pytest.fixture
def platform():
    made = FakePlatform()
    yield made
    made.down()


@pytest.fixture
def make(tmp_path):
    with made_agents(tmp_path) as agent:
        yield agent


def test_first_contact_takes_a_credential_and_proves_it(platform, make, tmp_path):
    agent = make(platform.url)
    assert agent.heartbeat()
    assert [bearer for bearer, _ in platform.messages] == ["agent_test_token", "credential-1"]
    assert platform.unproven == set()
    kept = json.loads((tmp_path / "state" / "credential").read_text())
    assert (kept["current"], kept["candidate"]) == ("credential-1", "")
    first = platform.messages[0][1]
    told = {a.key: a.value.string_value for a in first.agent_description.identifying_attributes}
    assert told["service.name"] == "incident-rca-agent"
    assert told["service.instance.id"] == agent.runtime.instance_id
    assert len(told["host.id"]) == 64
    rest = {a.key: a.value.string_value for a in first.agent_description.non_identifying_attributes}
    assert (rest["irca.agent.type"], rest["host.name"], rest["irca.machine.fingerprint"]) == ("counting", "test-host", told["host.id"])
    config = json.loads(first.effective_config.config_map.config_map["agent.json"].body)
    assert (config["collect_interval"], config["platform_url"]) == (1.0, platform.url)
    assert "agent_test_token" not in json.dumps(config)
    assert set(first.health.component_health_map) == {"collectors", "spool", "transport", "watch", "clock"}


def test_later_heartbeats_are_small_and_under_the_credential(platform, make):
    agent = make(platform.url)
    agent.heartbeat()
    assert agent.heartbeat()
    bearer, message = platform.messages[-1]
    assert bearer == "credential-1"
    assert not message.HasField("agent_description")
    assert [m.sequence_num for _, m in platform.messages] == [1, 2, 3]


def test_the_credential_outlives_the_process(platform, make):
    agent = make(platform.url)
    agent.heartbeat()
    instance = agent.runtime.instance_id
    agent.runtime.close()
    again = make(platform.url)
    assert again.heartbeat()
    assert platform.messages[-1][0] == "credential-1"
    assert again.runtime.instance_id == instance


def test_a_new_token_enrols_anew_under_the_same_identity(platform, make):
    agent = make(platform.url)
    agent.heartbeat()
    instance = agent.runtime.instance_id
    agent.runtime.close()
    platform.token = "agent_second_token"
    again = make(platform.url, token="agent_second_token")
    assert again.heartbeat()
    assert [bearer for bearer, _ in platform.messages[-2:]] == ["agent_second_token", "credential-2"]
    assert again.runtime.instance_id == instance


def test_a_process_that_died_before_the_proof_proves_the_candidate_at_its_next_start(platform, make, tmp_path):
    platform.interfere = lambda path, headers, body: problem(503, "overloaded") if "credential" in headers["authorization"] else None
    agent = make(platform.url)
    assert not agent.heartbeat()
    agent.runtime.close()
    assert json.loads((tmp_path / "state" / "credential").read_text())["candidate"] == "credential-1"
    platform.interfere = lambda *_: None
    again = make(platform.url)
    assert again.heartbeat()
    assert platform.messages[-1][0] == "credential-1"
    assert json.loads((tmp_path / "state" / "credential").read_text())["current"] == "credential-1"


def test_a_candidate_that_is_refused_is_dropped_for_what_worked_before(platform, make):
    agent = make(platform.url)
    agent.heartbeat()

    def offer(message, answer):
        answer.connection_settings.opamp.headers.headers.add(key="Authorization", value="Bearer never-valid")
        platform.answer_opamp = lambda *_: None

    platform.answer_opamp = offer
    assert agent.heartbeat()
    assert agent.runtime._management.bearer().reveal() == "credential-1"


def test_a_rotated_credential_is_proven_and_used_for_data(platform, make):
    agent = make(platform.url)
    agent.heartbeat()

    def offer(message, answer):
        platform.credentials["rotated"] = message.instance_uid
        answer.connection_settings.opamp.headers.headers.add(key="Authorization", value="Bearer rotated")

    platform.answer_opamp = offer
    assert agent.heartbeat()
    assert platform.messages[-1][0] == "rotated"
    platform.refused["credential-1"] = "token-revoked"
    assert agent.send_data(agent.collect_metrics()) == 1


@pytest.mark.parametrize("code", ["token-unknown", "token-revoked"])
def test_a_refused_credential_leads_back_to_the_token(platform, make, caplog, code):
    agent = make(platform.url)
    agent.heartbeat()
    platform.refused["credential-1"] = code
    with caplog.at_level(logging.INFO, "connectors"):
        assert agent.heartbeat()
    assert [bearer for bearer, _ in platform.messages[-2:]] == ["agent_test_token", "credential-2"]
    assert [r.facts["refusal"] for r in caplog.records if getattr(r, "action", "") == "enrolment.refused"] == [code]


def test_when_everything_is_refused_the_status_says_why_and_nothing_is_raised(platform, make):
    agent = make(platform.url)
    platform.refused["agent_test_token"] = "token-expired"
    assert not agent.heartbeat()
    status = agent.runtime.status()
    assert status.state == "degraded"
    assert "token-expired" in status.reasons["transport"]
    assert agent.send_data(agent.collect_metrics()) == 0
    assert agent.runtime.status().spool.batches == 1


def test_a_forbidden_instance_does_not_fall_back_to_its_token(platform, make):
    agent = make(platform.url)
    agent.heartbeat()
    platform.interfere = lambda *_: problem(403, "forbidden")
    before = len(platform.requests)
    assert not agent.heartbeat()
    assert len(platform.requests) == before + 1


def test_the_platform_may_give_another_identity(platform, make, tmp_path):
    agent = make(platform.url)

    def rename(message, answer):
        answer.agent_identification.new_instance_uid = b"n" * 16
        platform.answer_opamp = lambda *_: None

    platform.answer_opamp = rename
    assert agent.heartbeat()
    assert platform.messages[-1][1].instance_uid == b"n" * 16
    new = "6e6e6e6e-6e6e-6e6e-6e6e-6e6e6e6e6e6e"
    assert agent.runtime.instance_id == new
    assert json.loads((tmp_path / "state" / "identity.json").read_text())["instance_id"] == new
    assert {a.value.string_value for a in platform.messages[1][1].agent_description.identifying_attributes} >= {new}


def test_the_full_state_is_told_at_once_when_asked_for(platform, make):
    agent = make(platform.url)
    agent.heartbeat()

    def ask(message, answer):
        answer.flags = 1
        platform.answer_opamp = lambda *_: None

    platform.answer_opamp = ask
    before = len(platform.messages)
    assert agent.heartbeat()
    assert len(platform.messages) == before + 2
    assert platform.messages[-1][1].HasField("effective_config")


def test_an_unavailable_platform_is_a_failed_heartbeat(platform, make):
    agent = make(platform.url)

    def unavailable(message, answer):
        answer.error_response.type = 2
        answer.error_response.retry_info.retry_after_nanoseconds = 3_000_000_000

    platform.answer_opamp = unavailable
    error = agent.runtime._heartbeat()
    assert error.retry_after == 3.0
    assert "not available" in agent.runtime.status().reasons["transport"]


def test_an_answer_that_is_no_opamp_is_a_failed_heartbeat(platform, make):
    platform.interfere = lambda *_: (200, {}, b"\xff\xff")
    agent = make(platform.url)
    assert not agent.heartbeat()
    assert "not the platform" in agent.runtime.status().reasons["transport"]


def test_the_interval_follows_the_platform_and_an_offered_endpoint_is_not(platform, make, caplog):
    platform.heartbeat_interval = 77

    def elsewhere(message, answer):
        answer.connection_settings.opamp.destination_endpoint = "https://evil.example/v1/opamp"

    platform.answer_opamp = elsewhere
    agent = make(platform.url)
    with caplog.at_level(logging.WARNING, "connectors"):
        agent.heartbeat()
    assert agent.runtime.status().heartbeat_interval == 77.0
    assert any(getattr(r, "action", "") == "heartbeat.destination" for r in caplog.records)


@pytest.mark.parametrize("offset", [-7200.0, 7200.0])
def test_a_clock_that_is_off_by_hours_degrades_with_the_reason(platform, make, offset):
    platform.clock_offset = offset
    agent = make(platform.url)
    agent.heartbeat()
    assert f"about 120 min {'behind' if offset > 0 else 'ahead of'}" in agent.runtime.status().reasons["clock"]
    agent.heartbeat()
    assert "clock" in platform.messages[-1][1].health.last_error


def test_a_credential_that_cannot_be_kept_lasts_until_the_end(platform, make, tmp_path, caplog):
    agent = make(platform.url)
    assert agent.runtime
    (tmp_path / "state" / "credential").mkdir()
    with caplog.at_level(logging.ERROR, "connectors"):
        assert agent.heartbeat()
    assert any(getattr(r, "action", "") == "enrolment.keep" for r in caplog.records)
    assert agent.send_data(agent.collect_metrics()) == 1
