from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from sqlalchemy import select
from webhook_receiver import Receiver, receiver

from app.audit.records import SYSTEM
from app.audit.service import AuditService
from app.db.models import AuditRow
from app.errors import ConflictError, InvalidRequestError, NotFoundError, PreconditionFailedError
from app.events.records import EventRecord
from app.webhooks.dispatcher import CLAIMED_FOR, Dispatcher
from app.webhooks.filters import WebhookFilters
from app.webhooks.guard import parse_networks
from app.webhooks.schedule import CIRCUIT_OPENS_AT, GIVE_UP_AFTER
from app.webhooks.sender import WebhookSender
from app.webhooks.service import EndpointSpec, WebhookService
from app.webhooks.signing import SecretBox, signature_header
from app.webhooks.views import DeliveryStatus

pytestmark = pytest.mark.sockets


@dataclass
class Hooks:
    parts: object
    service: WebhookService
    dispatcher: Dispatcher
    receiver: Receiver

    async def happen(self, *names: str, instance: str = "i1", severity: int = 9) -> None:
        for name in names:
            record = EventRecord(
                name, f"irca.test.{name}", int(self.parts.clock() * 1e9), severity, instance_id=instance, environment_name="prod"
            )
            await self.parts.events.record([record])

    async def create(self, **fields) -> tuple[str, str]:
        spec = EndpointSpec(**{"name": "hook", "url": self.receiver.url, **fields})
        made = await self.service.create(spec, SYSTEM)
        return made.id, made.secret

    async def run(self, seconds: float = 1.0) -> int:
        self.parts.clock.advance(seconds)
        return await self.dispatcher.run()

    def arrived(self) -> list[str]:
        return [r.message["data"]["id"] for r in self.receiver.received]


def built(parts, made: Receiver, tmp_path) -> Hooks:
    service = WebhookService(parts.database, parts.events, AuditService(parts.database, parts.clock), SecretBox.open(tmp_path), parts.clock)
    sender = WebhookSender(parse_networks("127.0.0.0/8"), timeout=3)
    dispatcher = Dispatcher(parts.database, service, sender, public_url="https://irca.test", clock=parts.clock, random=lambda: 0.5)
    return Hooks(parts, service, dispatcher, made)


@pytest.fixture
async def hooks(parts, tmp_path) -> AsyncIterator[Hooks]:
    with receiver() as made:
        found = built(parts, made, tmp_path)
        await found.service.load()
        yield found
        await found.dispatcher._sender.close()


async def test_an_event_that_an_endpoint_wants_arrives_signed_and_others_do_not(hooks):
    _, secret = await hooks.create(filters=WebhookFilters(event_types=["irca.test.a*"]))
    await hooks.happen("a1", "b1", "a2")
    assert await hooks.run() == 2
    assert hooks.arrived() == ["a1", "a2"]
    got = hooks.receiver.received[0]
    stamp = int(got.headers["webhook-timestamp"])
    assert got.headers["webhook-id"] == "msg_a1"
    assert stamp == int(hooks.parts.clock())
    assert got.headers["webhook-signature"] == signature_header([secret], "msg_a1", stamp, got.body)


async def test_after_a_rotation_both_secrets_verify_until_the_overlap_ends(hooks):
    endpoint, _ = await hooks.create()
    await hooks.service.rotate(endpoint, 60, SYSTEM)
    await hooks.happen("a1")
    await hooks.run()
    await hooks.happen("a2")
    await hooks.run(61)
    counts = [len(r.headers["webhook-signature"].split()) for r in hooks.receiver.received]
    assert counts == [2, 1]


async def test_a_failed_delivery_is_tried_again_and_holds_back_only_its_own_instance(hooks):
    await hooks.create()
    hooks.receiver.answer(500)
    await hooks.happen("a1", "a2")
    await hooks.happen("b1", instance="i2")
    await hooks.run()
    assert sorted(hooks.arrived()) == ["a1", "b1"]  # side by side
    hooks.receiver.answer(204)
    await hooks.run(10)
    assert hooks.arrived()[2:] in (["a1", "b1", "a2"], ["b1", "a1", "a2"])
    assert {r.headers["webhook-id"] for r in hooks.receiver.received} == {"msg_a1", "msg_a2", "msg_b1"}


async def test_the_delivery_log_tells_of_every_try(hooks):
    await hooks.create()
    hooks.receiver.answers = [(503, {"retry-after": "40"}, b"later"), (200, {}, b"thanks")]
    await hooks.happen("a1")
    await hooks.run()
    [waiting] = (await hooks.service.list_deliveries()).items
    assert (waiting.status, waiting.last_status_code, waiting.last_error) == (DeliveryStatus.PENDING, 503, "the receiver answered 503")
    assert (waiting.next_attempt_at.timestamp() - hooks.parts.clock()) == 40
    await hooks.run(41)
    detail = await hooks.service.get_delivery(waiting.id)
    assert [(t.status_code, t.response_body) for t in detail.tries] == [(503, "later"), (200, "thanks")]
    assert detail.tries[0].request_headers["webhook-signature"] == "v1,…"
    assert detail.status is DeliveryStatus.DELIVERED
    assert detail.message["type"] == "irca.test.a1"


async def test_who_is_connected_hears_of_every_try(hooks):
    made, _ = await hooks.create()
    hooks.receiver.answers = [(500, {}, b""), (204, {}, b"")]
    async with hooks.parts.live.subscribe() as queue:
        await hooks.happen("e1")
        await hooks.run()
        await hooks.run(60)
        told = []
        while len(told) < 2:
            message = await asyncio.wait_for(queue.get(), 10)
            if message.topic == "delivery":
                told.append((message.data["webhook_id"], message.data["succeeded"]))
    assert told == [(made, False), (made, True)]


async def test_after_failures_in_a_row_the_endpoint_is_left_alone_then_probed_then_used_again(hooks):
    endpoint, _ = await hooks.create()
    hooks.receiver.answer(500)
    await hooks.happen(*[f"a{n}" for n in range(CIRCUIT_OPENS_AT)], instance="i1")
    for n in range(CIRCUIT_OPENS_AT):
        await hooks.happen(f"b{n}", instance=f"i{n + 2}")
    await hooks.run()
    view = await hooks.service.get(endpoint)
    assert view.circuit == "open"
    assert "irca.webhook.circuit_opened" in await hooks.parts.event_names()
    seen = len(hooks.receiver.received)
    await hooks.run(5)
    assert len(hooks.receiver.received) == seen
    await hooks.run(3600)
    assert len(hooks.receiver.received) == seen + 1
    hooks.receiver.answer(204)
    await hooks.run(3600)
    await hooks.run(60)
    await hooks.run(60)
    assert (await hooks.service.get(endpoint)).circuit == "closed"
    assert "irca.webhook.circuit_closed" in await hooks.parts.event_names()
    order = [i for i in hooks.arrived() if i.startswith("a")]
    assert [i for n, i in enumerate(order) if i not in order[:n]] == [f"a{n}" for n in range(CIRCUIT_OPENS_AT)]
    assert {d.status for d in (await hooks.service.list_deliveries()).items} == {DeliveryStatus.DELIVERED}


async def test_when_a_receiver_is_back_what_waited_for_its_next_try_goes_out_at_once(hooks):
    await hooks.create()
    hooks.receiver.answer(500)
    for n in range(3):
        await hooks.happen(f"a{n}", instance=f"i{n}")
    await hooks.run()
    hooks.receiver.answer(204)
    hooks.receiver.received.clear()
    await hooks.happen("b", instance="other")
    await hooks.run(1)
    assert sorted(hooks.arrived()) == ["a0", "a1", "a2", "b"]


async def test_an_endpoint_is_not_told_of_its_own_failures_and_others_are(hooks):
    await hooks.create(name="failing", filters=WebhookFilters(event_types=["irca.test.*", "irca.webhook.*"]))
    await hooks.create(name="other", url=hooks.receiver.url + "?other", filters=WebhookFilters(event_types=["irca.webhook.*"]))
    hooks.receiver.answers = [(500, {}, b"")] * CIRCUIT_OPENS_AT + [(204, {}, b"")]
    for n in range(CIRCUIT_OPENS_AT):
        await hooks.happen(f"a{n}", instance=f"i{n}")
    await hooks.run()
    await hooks.run()
    told = [(r.path, r.message["type"]) for r in hooks.receiver.received if r.message["type"].startswith("irca.webhook.")]
    assert told == [("/hook?other", "irca.webhook.circuit_opened")]


async def test_what_fails_for_a_day_is_dead_and_can_be_replayed_under_its_own_id(hooks):
    endpoint, _ = await hooks.create()
    hooks.receiver.answer(500)
    await hooks.happen("a1")
    for _ in range(40):
        await hooks.run(3600)
    [dead] = (await hooks.service.list_deliveries(status=DeliveryStatus.DEAD, event_id="a1")).items
    assert dead.finished_at is not None
    hooks.receiver.answer(204)
    hooks.receiver.received.clear()
    await hooks.run(3600)
    assert await hooks.service.replay(endpoint, SYSTEM, delivery_id=dead.id) == 1
    await hooks.run(5)
    assert [r.headers["webhook-id"] for r in hooks.receiver.received if r.headers["webhook-id"] == "msg_a1"] == ["msg_a1"]
    with pytest.raises(NotFoundError):
        await hooks.service.replay(endpoint, SYSTEM, delivery_id="x")


async def test_a_delivery_that_still_waits_for_its_next_try_does_not_hold_its_replay_back(hooks):
    endpoint, _ = await hooks.create(filters=WebhookFilters(event_types=["irca.test.*"]))
    hooks.receiver.answer(500)
    await hooks.happen("a1")
    for _ in range(4):
        await hooks.run(3600)
    [waiting] = (await hooks.service.list_deliveries()).items
    assert waiting.status is DeliveryStatus.PENDING
    hooks.receiver.answer(204)
    assert await hooks.service.replay(endpoint, SYSTEM, delivery_id=waiting.id) == 1
    await hooks.run(5)
    assert {d.status for d in (await hooks.service.list_deliveries()).items} == {DeliveryStatus.DELIVERED}


async def test_what_waits_behind_a_receiver_that_is_away_for_a_day_is_given_up_and_replayed_in_order(hooks):
    endpoint, _ = await hooks.create(filters=WebhookFilters(event_types=["irca.test.*"]))
    hooks.receiver.answer(500)
    await hooks.happen("a1", "a2", "a3")
    for _ in range(30):
        await hooks.run(3600)
        await hooks.service.maintain(keep=30 * 86_400)
    assert {d.status for d in (await hooks.service.list_deliveries()).items} == {DeliveryStatus.DEAD}
    hooks.receiver.answer(204)
    hooks.receiver.received.clear()
    assert await hooks.service.replay(endpoint, SYSTEM) == 3
    for _ in range(3):
        await hooks.run(3600)
    assert hooks.arrived() == ["a1", "a2", "a3"]


async def test_a_receiver_that_is_gone_is_disabled_and_that_is_told(hooks):
    endpoint, _ = await hooks.create()
    hooks.receiver.answer(410)
    await hooks.happen("a1", "a2")
    await hooks.run()
    await hooks.run()
    view = await hooks.service.get(endpoint)
    assert not view.enabled
    assert hooks.arrived() == ["a1"]
    assert "irca.webhook.disabled" in await hooks.parts.event_names()


async def test_a_redirect_is_a_failure_that_says_so(hooks):
    await hooks.create()
    hooks.receiver.answer(302, {"location": "http://169.254.169.254/latest"})
    await hooks.happen("a1")
    await hooks.run()
    [delivery] = (await hooks.service.list_deliveries()).items
    assert "redirects are not followed" in delivery.last_error
    assert len(hooks.receiver.received) == 1


async def test_a_private_address_that_is_not_allowed_is_refused_and_the_log_says_why(hooks, tmp_path):
    strict = Dispatcher(hooks.parts.database, hooks.service, WebhookSender([]), public_url="", clock=hooks.parts.clock, random=lambda: 0.5)
    await hooks.create()
    await hooks.happen("a1")
    hooks.parts.clock.advance(1)
    await strict.run()
    [delivery] = (await hooks.service.list_deliveries()).items
    assert delivery.last_error.startswith("refused: 127.0.0.1 is this machine itself")
    assert hooks.receiver.received == []


async def test_a_receiver_that_is_not_there_fails_with_a_reason(hooks, free_port):
    await hooks.create(url=f"http://127.0.0.1:{free_port}/")
    await hooks.happen("a1")
    await hooks.run()
    [delivery] = (await hooks.service.list_deliveries()).items
    assert delivery.last_error
    assert delivery.last_status_code is None


async def test_what_was_being_sent_when_the_platform_died_is_sent_again_after_the_restart(hooks, tmp_path):
    await hooks.create()
    await hooks.happen("a1", "a2")
    hooks.parts.clock.advance(1)

    async def dies(*_args):
        raise RuntimeError("killed")

    hooks.dispatcher._write = dies
    with pytest.raises(RuntimeError):
        await hooks.dispatcher.run()
    again = built(await hooks.parts.restarted(), hooks.receiver, tmp_path)
    await again.service.load()
    await again.run(1)
    assert hooks.arrived() == ["a1"]
    await again.run(CLAIMED_FOR)
    assert hooks.arrived() == ["a1", "a1", "a2"]
    await again.dispatcher._sender.close()


async def test_an_event_that_is_not_recorded_is_not_delivered(hooks):
    await hooks.create()

    async def fails():
        async with hooks.parts.database.write() as session:
            await hooks.parts.events.add(session, EventRecord("a1", "irca.test.a1", 1))
            raise RuntimeError("rolled back")

    with pytest.raises(RuntimeError):
        await fails()
    await hooks.run()
    assert hooks.receiver.received == []


async def test_a_test_delivery_goes_out_whatever_the_filters_and_is_in_no_timeline(hooks):
    endpoint, _ = await hooks.create(filters=WebhookFilters(event_types=["nothing"]))
    await hooks.service.test(endpoint, SYSTEM)
    await hooks.run()
    assert [r.message["type"] for r in hooks.receiver.received] == ["irca.webhook.test"]
    assert await hooks.parts.event_names() == []


async def test_changes_are_checked_audited_and_refused_when_made_from_an_older_version(hooks):
    endpoint, _ = await hooks.create()
    with pytest.raises(ConflictError):
        await hooks.create()
    with pytest.raises(InvalidRequestError) as caught:
        await hooks.create(name="other", template="pagerduty")
    assert caught.value.errors[0].field == "routing_key"
    spec = EndpointSpec("renamed", hooks.receiver.url)
    hooks.parts.clock.advance(1)
    assert (await hooks.service.update(endpoint, spec, SYSTEM, 1)).version == 2
    with pytest.raises(PreconditionFailedError):
        await hooks.service.update(endpoint, spec, SYSTEM, 1)
    hooks.parts.clock.advance(1)
    await hooks.service.delete(endpoint, SYSTEM)
    with pytest.raises(NotFoundError):
        await hooks.service.get(endpoint)
    async with hooks.parts.database.read() as session:
        rows = (await session.scalars(select(AuditRow).order_by(AuditRow.time))).all()
    assert [r.action for r in rows] == ["webhook.create", "webhook.update", "webhook.delete"]
    assert (rows[1].before, rows[1].after) == ({"name": "hook"}, {"name": "renamed"})


async def test_pagerduty_is_sent_its_routing_key_and_no_signature(hooks):
    await hooks.create(template="pagerduty", routing_key="R0")
    await hooks.happen("a1", severity=17)
    await hooks.run()
    [got] = hooks.receiver.received
    assert got.message["routing_key"] == "R0"
    assert "webhook-signature" not in got.headers


async def test_the_path_of_a_slack_webhook_is_shown_to_nobody(hooks):
    endpoint, _ = await hooks.create(template="slack", url=hooks.receiver.url + "/T0/B0/secret")
    assert "secret" not in (await hooks.service.get(endpoint)).url
    async with hooks.parts.database.read() as session:
        [row] = (await session.scalars(select(AuditRow))).all()
    assert "/T0/" not in str(row.after)


async def test_finished_deliveries_are_dropped_when_their_time_is_over(hooks):
    await hooks.create()
    await hooks.happen("a1")
    await hooks.run()
    hooks.parts.clock.advance(GIVE_UP_AFTER)
    await hooks.service.maintain(keep=3600)
    assert (await hooks.service.list_deliveries()).items == []


async def test_the_log_is_read_page_by_page(hooks):
    await hooks.create()
    await hooks.happen(*[f"a{n}" for n in range(5)])
    seen, cursor = [], None
    while True:
        page = await hooks.service.list_deliveries(cursor, 2)
        seen += [d.event_id for d in page.items]
        cursor = page.next_cursor
        if not cursor:
            break
    assert seen == ["a4", "a3", "a2", "a1", "a0"]
    with pytest.raises(InvalidRequestError):
        await hooks.service.list_deliveries("x")
