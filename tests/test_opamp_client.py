from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.core import opamp
from connectors.core import opamp_pb2 as pb
from connectors.core.opamp import CAPABILITIES, Component, Enrolment, Report, Standing
from connectors.core.secret import Secret

UID = bytes(range(16))


class OpampClient(opamp.OpampClient):
    """Through the messages of the generated module: what we write it must read, and the other way round."""

    def message(self, report, now):
        written = super().message(report, now)
        parsed = pb.AgentToServer.FromString(written)
        assert parsed.ByteSize() == len(written)
        return parsed

    def goodbye(self):
        return pb.AgentToServer.FromString(super().goodbye())

    def received(self, answer):
        return super().received(answer.SerializeToString())


def report(healthy=True, config=None, **inner):
    return Report(
        {"service.name": "incident-rca-agent", "service.instance.id": "i"},
        {"os.type": "linux"},
        config or {"collect_interval": 10.0, "labels": {"team": "a"}},
        Component(healthy, "healthy" if healthy else "degraded", "" if healthy else "why", inner),
        100.0,
    )


def offer(bearer="", interval=0, **more):
    answer = pb.ServerToAgent(instance_uid=UID, **more)
    if bearer:
        answer.connection_settings.opamp.headers.headers.add(key="Authorization", value=f"Bearer {bearer}")
    answer.connection_settings.opamp.heartbeat_interval_seconds = interval
    return answer


def test_the_first_message_carries_everything():
    message = OpampClient(UID).message(report(spool=Component()), 200.0)
    assert (message.instance_uid, message.sequence_num, message.capabilities) == (UID, 1, 0x3907)
    assert int(CAPABILITIES) == 0x3907
    assert {kv.key: kv.value.string_value for kv in message.agent_description.identifying_attributes} == {
        "service.name": "incident-rca-agent",
        "service.instance.id": "i",
    }
    assert message.agent_description.non_identifying_attributes[0].key == "os.type"
    file = message.effective_config.config_map.config_map["agent.json"]
    assert file.content_type == "application/json"
    assert json.loads(file.body)["labels"] == {"team": "a"}
    assert message.health.healthy
    assert message.health.start_time_unix_nano == 100 * 10**9
    assert message.health.status_time_unix_nano == 200 * 10**9
    assert message.health.component_health_map["spool"].healthy


def test_later_messages_carry_only_what_changed():
    client = OpampClient(UID)
    client.message(report(), 1.0)
    client.received(pb.ServerToAgent())
    second = client.message(report(), 2.0)
    assert second.sequence_num == 2
    assert [field.name for field, _ in second.ListFields()] == ["instance_uid", "sequence_num", "capabilities"]
    client.received(pb.ServerToAgent())
    third = client.message(report(healthy=False), 3.0)
    assert third.health.last_error == "why"
    assert not third.HasField("agent_description")


def test_what_was_not_answered_is_told_again():
    client = OpampClient(UID)
    client.message(report(), 1.0)
    again = client.message(report(), 2.0)
    assert again.sequence_num == 2
    assert again.HasField("agent_description")


def test_the_platform_may_ask_for_everything_again():
    client = OpampClient(UID)
    client.message(report(), 1.0)
    client.received(pb.ServerToAgent(flags=pb.SERVER_TO_AGENT_FLAGS_REPORT_FULL_STATE))
    assert client.owes_state
    assert client.message(report(), 2.0).HasField("effective_config")
    client.received(pb.ServerToAgent())
    assert not client.owes_state


def test_a_new_identity_is_adopted_and_told_everything():
    client = OpampClient(UID)
    client.message(report(), 1.0)
    answer = pb.ServerToAgent()
    answer.agent_identification.new_instance_uid = b"n" * 16
    assert client.received(answer).new_uid == b"n" * 16
    message = client.message(report(), 2.0)
    assert (message.instance_uid, message.HasField("agent_description")) == (b"n" * 16, True)


@pytest.mark.parametrize("uid", [b"", UID, b"too short"])
def test_a_new_identity_that_is_none_changes_nothing(uid):
    client = OpampClient(UID)
    client.message(report(), 1.0)
    answer = pb.ServerToAgent()
    answer.agent_identification.new_instance_uid = uid
    assert client.received(answer).new_uid == b""
    assert client.message(report(), 1.0).instance_uid == UID


def test_an_offer_carries_credential_interval_and_destination():
    client = OpampClient(UID)
    client.message(report(), 1.0)
    message = offer("secret-1", 45)
    message.connection_settings.opamp.destination_endpoint = "https://elsewhere/v1/opamp"
    answer = client.received(message)
    assert (answer.credential.reveal(), answer.heartbeat_interval, answer.destination) == ("secret-1", 45.0, "https://elsewhere/v1/opamp")


@pytest.mark.parametrize(("asked", "got"), [(0, None), (1, 1.0), (9_999, 300.0)])
def test_the_heartbeat_interval_stays_within_reason(asked, got):
    client = OpampClient(UID)
    client.message(report(), 1.0)
    assert client.received(offer(interval=asked)).heartbeat_interval == got


@pytest.mark.parametrize(
    ("key", "value"),
    [("Authorization", "Basic abc"), ("X-Other", "Bearer abc"), ("Authorization", "Bearer a b"), ("authorization", "Bearer \n")],
)
def test_headers_that_are_no_bearer_are_no_credential(key, value):
    client = OpampClient(UID)
    client.message(report(), 1.0)
    answer = pb.ServerToAgent()
    answer.connection_settings.opamp.headers.headers.add(key=key, value=value)
    assert not client.received(answer).credential


def test_an_unavailable_platform_may_say_when_to_return():
    client = OpampClient(UID)
    client.message(report(), 1.0)
    answer = pb.ServerToAgent()
    answer.error_response.type = pb.SERVER_ERROR_RESPONSE_TYPE_UNAVAILABLE
    answer.error_response.retry_info.retry_after_nanoseconds = 2_500_000_000
    got = client.received(answer)
    assert (got.failed, got.retry_after) == (True, 2.5)
    assert "not available" in got.failure


def test_a_message_that_could_not_be_read_is_followed_by_the_full_state():
    client = OpampClient(UID)
    client.message(report(), 1.0)
    client.received(pb.ServerToAgent())
    client.message(report(), 2.0)
    answer = pb.ServerToAgent()
    answer.error_response.type = pb.SERVER_ERROR_RESPONSE_TYPE_BAD_REQUEST
    answer.error_response.error_message = "no"
    got = client.received(answer)
    assert (got.failed, got.retry_after) == (True, None)
    assert "no" in got.failure
    assert client.message(report(), 3.0).HasField("agent_description")


def test_the_goodbye_is_a_disconnect():
    message = OpampClient(UID).goodbye()
    assert message.HasField("agent_disconnect")
    assert message.sequence_num == 1


T, A, B = Secret("token"), Secret("first"), Secret("second")


def test_first_contact_shows_the_token_and_proves_the_credential_before_using_it():
    begun = Enrolment(T)
    assert begun.attempts() == [(Standing.TOKEN, T)]
    offered = begun.offered(A)
    assert offered.attempts()[0] == (Standing.CANDIDATE, A)
    assert not offered.current
    proven = offered.accepted(Standing.CANDIDATE)
    assert (proven.current, bool(proven.candidate)) == (A, False)
    assert proven.attempts()[0] == (Standing.CURRENT, A)


def test_rotation_keeps_the_old_credential_until_the_new_one_is_proven():
    rotating = Enrolment(T, A).offered(B)
    assert [secret for _, secret in rotating.attempts()] == [B, A, T]
    assert rotating.accepted(Standing.CANDIDATE).current == B
    assert rotating.refused(Standing.CANDIDATE) == Enrolment(T, A)
    assert rotating.accepted(Standing.CURRENT) == rotating


def test_the_same_offer_again_changes_nothing_and_neither_does_none():
    assert Enrolment(T, A).offered(A) == Enrolment(T, A)
    assert Enrolment(T, A, B).offered(B) == Enrolment(T, A, B)
    assert Enrolment(T, A).offered(Secret("")) == Enrolment(T, A)


def test_a_refused_credential_is_kept_and_the_token_tried():
    refused = Enrolment(T, A).refused(Standing.CURRENT)
    assert refused.attempts() == [(Standing.CURRENT, A), (Standing.TOKEN, T)]


@given(st.lists(st.tuples(st.sampled_from(["offer-a", "offer-b", "accept", "refuse"]), st.integers(0, 2))))
def test_there_is_always_something_to_try_and_nothing_unproven_is_current(steps):
    enrolment, proven = Enrolment(T), {""}
    for step, which in steps:
        standing, secret = enrolment.attempts()[which % len(enrolment.attempts())]
        if step.startswith("offer"):
            enrolment = enrolment.offered(A if step == "offer-a" else B)
        elif step == "accept":
            proven.add(secret.reveal())
            enrolment = enrolment.accepted(standing)
        else:
            enrolment = enrolment.refused(standing)
        assert enrolment.attempts()[-1] == (Standing.TOKEN, T)
        assert enrolment.current.reveal() in proven


def test_a_copied_credential_is_shown_before_the_token_and_is_gone_once_there_is_one_of_its_own_or_it_was_refused():
    copy = Enrolment(T, copied=A)
    assert copy.attempts() == [(Standing.COPIED, A), (Standing.TOKEN, T)]
    assert copy.accepted(Standing.COPIED) == Enrolment(T), "a platform that offers nothing for it is shown the token next"
    assert copy.offered(B) == Enrolment(T, candidate=B)
    assert copy.refused(Standing.COPIED) == Enrolment(T)
