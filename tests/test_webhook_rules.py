from __future__ import annotations

import ipaddress
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from app.errors import InvalidRequestError, StartupError, StorageError
from app.events.records import EventRecord
from app.webhooks.filters import WebhookFilters, message_of, ordering_key, wants
from app.webhooks.guard import AddressRefusedError, allowed_address, check_url, parse_networks, refusal
from app.webhooks.payloads import body_of
from app.webhooks.schedule import CIRCUIT_OPENS_AT, GIVE_UP_AFTER, Circuit, after_attempt, next_attempt
from app.webhooks.sender import retry_after
from app.webhooks.signing import SecretBox, new_secret, signature_header

EVENT = EventRecord(
    id="e1",
    name="irca.instance.status_changed",
    time_unix_nano=1_800_000_000_123_456_789,
    severity=13,
    body="db-1 is offline <!channel> & more",
    attributes={"irca.status": "offline"},
    resource={"host.name": "db-1"},
    agent_id="a1",
    instance_id="i1",
    agent_type="server",
    environment_name="prod-eu",
)


@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        ({}, True),
        ({"event_types": ["irca.instance.*"]}, True),
        ({"event_types": ["irca.docker.*", "*.status_changed"]}, True),
        ({"event_types": ["irca.docker.*"]}, False),
        ({"environments": ["prod-*"]}, True),
        ({"environments": ["staging"]}, False),
        ({"min_severity": 13}, True),
        ({"min_severity": 17}, False),
        ({"groups": ["g1", "g9"]}, True),
        ({"groups": ["g9"]}, False),
        ({"event_types": ["*"], "environments": ["staging"]}, False),
    ],
)
def test_an_event_must_pass_every_filter(filters, passes):
    assert wants(WebhookFilters(**filters), EVENT, groups={"g1"}) is passes


def test_an_event_of_no_environment_passes_only_without_a_filter_for_environments():
    record = replace(EVENT, environment_name=None)
    assert wants(WebhookFilters(), record)
    assert not wants(WebhookFilters(environments=["*"]), record)


def test_a_muted_event_is_told_to_nobody():
    assert not wants(WebhookFilters(), replace(EVENT, attributes={"irca.muted": True}))


def test_events_are_ordered_by_instance_then_agent_then_platform():
    assert ordering_key(EVENT) == "i1"
    assert ordering_key(replace(EVENT, instance_id=None)) == "a1"
    assert ordering_key(replace(EVENT, instance_id=None, agent_id=None)) == "platform"


def test_a_message_has_type_time_and_data():
    message = message_of(EVENT)
    assert message["type"] == "irca.instance.status_changed"
    assert message["timestamp"] == "2027-01-15T08:00:00.123456Z"
    assert message["data"]["instance_id"] == "i1"


@given(body=st.binary(max_size=200))
def test_the_reference_library_verifies_our_signatures_under_either_secret(body):
    old, new = new_secret(), new_secret()
    now = int(datetime.now(UTC).timestamp())
    body = json.dumps(body.hex()).encode()
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(now), "webhook-signature": signature_header([new, old], "msg_1", now, body)}
    for secret in (old, new):
        assert Webhook(secret).verify(body, headers) == json.loads(body)
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(new).verify(body + b" ", headers)


def test_secrets_are_sealed_under_a_key_that_lies_beside_the_database(tmp_path):
    box = SecretBox.open(tmp_path)
    sealed = box.seal("whsec_x")
    assert b"whsec_x" not in sealed
    assert SecretBox.open(tmp_path).unseal(sealed) == "whsec_x"
    assert (tmp_path / "keys/webhooks.key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "keys/webhooks.key").unlink()
    with pytest.raises(StorageError, match="not the key"):
        SecretBox.open(tmp_path).unseal(sealed)


def test_an_unusable_key_file_stops_the_start_and_is_named(tmp_path):
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/webhooks.key").write_text("short")
    with pytest.raises(StartupError, match=r"webhooks\.key"):
        SecretBox.open(tmp_path)


def test_a_failed_delivery_is_tried_for_a_day_with_growing_pauses():
    now, created, attempts, pauses = 0.0, 0.0, 0, []
    while True:
        attempts += 1
        due = next_attempt(attempts, created, now, None, 0.5)
        if due is None:
            break
        pauses.append(due - now)
        now = due
    assert pauses[:5] == [5, 30, 120, 600, 1800]
    assert now == GIVE_UP_AFTER
    assert 10 <= attempts <= 20


@given(attempts=st.integers(1, 30), age=st.floats(0, GIVE_UP_AFTER - 1), asked=st.none() | st.floats(0, 1e6), random=st.floats(0, 0.999))
def test_the_next_try_is_never_in_the_past_nor_before_the_receiver_asked_for_it(attempts, age, asked, random):
    due = next_attempt(attempts, 0.0, age, asked, random)
    assert due is not None
    assert due > age
    assert due <= max(GIVE_UP_AFTER, age + 6)
    if asked is not None and age + min(asked, 3600) < GIVE_UP_AFTER:
        assert due >= age + min(asked, 3600)


def test_the_circuit_opens_after_failures_in_a_row_and_a_success_closes_it():
    circuit, now = Circuit(), 100.0
    for _ in range(CIRCUIT_OPENS_AT - 1):
        circuit = after_attempt(circuit, succeeded=False, now=now)
        assert circuit.state(now) == "closed"
    circuit = after_attempt(circuit, succeeded=False, now=now)
    assert (circuit.state(now), circuit.state(now + 29), circuit.state(now + 31)) == ("open", "open", "half-open")
    assert after_attempt(circuit, succeeded=False, now=now + 1) == circuit
    longer = after_attempt(circuit, succeeded=False, now=now + 31)
    assert longer.open_until == now + 31 + 60
    assert after_attempt(longer, succeeded=True, now=now + 100) == Circuit()


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.17.0.1", "192.168.1.1", "169.254.169.254", "100.64.1.1", "0.0.0.0", "224.0.0.1", "240.0.0.1"),
        *("::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::"),
    ],
)
def test_addresses_that_are_not_public_are_refused(address):
    assert "IRCA_WEBHOOK_ALLOWED_NETWORKS" in refusal(ipaddress.ip_address(address), [])


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:93.184.215.14"])
def test_public_addresses_are_allowed(address):
    assert refusal(ipaddress.ip_address(address), []) == ""


def test_a_setting_can_allow_a_private_network():
    allowed = parse_networks("10.0.0.0/8, 127.0.0.1")
    assert refusal(ipaddress.ip_address("10.9.9.9"), allowed) == ""
    assert refusal(ipaddress.ip_address("127.0.0.1"), allowed) == ""
    assert refusal(ipaddress.ip_address("127.0.0.2"), allowed)


async def test_a_name_with_one_private_address_is_refused_whole():
    async def resolve(_host, _port):
        return ["93.184.215.14", "10.0.0.1"]

    with pytest.raises(AddressRefusedError, match=r"receiver\.test leads to 10\.0\.0\.1 is private"):
        await allowed_address("receiver.test", 443, [], resolve)


async def test_the_address_that_was_looked_at_is_the_one_that_is_used():
    async def resolve(_host, _port):
        return ["93.184.215.14"]

    assert await allowed_address("receiver.test", 443, [], resolve) == "93.184.215.14"


@pytest.mark.parametrize(
    "url",
    ["ftp://x.test/", "https://", "https://user:pw@x.test/", "https://x.test/#f", "https://x.test:0/", "https://x.test/a b", "http://[::1"],
)
def test_an_url_that_cannot_be_delivered_to_is_refused_by_its_field(url):
    with pytest.raises(InvalidRequestError) as caught:
        check_url(url)
    assert [e.field for e in caught.value.errors] == ["url"]


def test_slack_gets_text_without_markup_of_the_agents():
    body = json.loads(body_of("slack", message_of(EVENT), public_url="https://irca.test/"))
    assert "<!channel>" not in json.dumps(body)
    assert "&lt;!channel&gt; &amp; more" in body["text"]
    assert "https://irca.test/instances/i1" in json.dumps(body)


def test_pagerduty_opens_and_resolves_one_incident_for_an_instance():
    opened = json.loads(body_of("pagerduty", message_of(EVENT), public_url="https://irca.test", routing_key="R"))
    recovered = replace(EVENT, attributes={"irca.status": "healthy"}, severity=9)
    resolved = json.loads(body_of("pagerduty", message_of(recovered), public_url="https://irca.test", routing_key="R"))
    assert (opened["event_action"], resolved["event_action"]) == ("trigger", "resolve")
    assert opened["dedup_key"] == resolved["dedup_key"]
    assert opened["payload"]["severity"] == "warning"
    assert opened["payload"]["source"] == "db-1"
    assert opened["routing_key"] == "R"


def test_pagerduty_tells_other_events_apart_by_kind_and_place():
    other = replace(EVENT, name="irca.host.disk.full", instance_id=None, agent_id=None, severity=17, resource={}, environment_name=None)
    event = json.loads(body_of("pagerduty", message_of(other), public_url="https://irca.test", routing_key="R"))
    assert event["dedup_key"] == "irca/irca.host.disk.full/e1"
    assert (event["payload"]["severity"], event["payload"]["source"]) == ("error", "incident-rca")
    assert "links" not in event


def test_retry_after_is_read_in_both_of_its_forms():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert retry_after("120") == 120
    assert retry_after("Thu, 01 Jan 2026 00:01:00 GMT", now) == 60
    assert retry_after("soon") is None
    assert retry_after("") is None
