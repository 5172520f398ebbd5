"""Sends what is due. Each event at least once, in order for each instance; a receiver that fails is left alone for a while."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from app.db.models import WebhookAttemptRow, WebhookDeliveryRow
from app.db.session import Database
from app.errors import StorageError
from app.events import catalogue
from app.events.records import EventRecord
from app.events.stream import LiveMessage
from app.webhooks import repository, schedule
from app.webhooks.payloads import body_of
from app.webhooks.repository import DEAD, DELIVERED
from app.webhooks.schedule import Circuit
from app.webhooks.sender import GONE, TIMEOUT, Attempt, WebhookSender
from app.webhooks.signing import signature_header

if TYPE_CHECKING:
    from app.webhooks.service import Endpoint, WebhookService

_log = logging.getLogger(__name__)
CLAIMED_FOR = 3 * TIMEOUT
"""Seconds for which a delivery that is being tried is nobody else's; a platform that died in the middle tries it again afterwards."""
AT_ONCE = 32
"""Deliveries that are tried side by side."""
_SIGNATURE = "webhook-signature"


@dataclass(frozen=True, slots=True)
class _Done:
    """A try and its delivery."""

    delivery: WebhookDeliveryRow
    endpoint: Endpoint
    attempt: Attempt
    headers: Mapping[str, str]


class Dispatcher:
    """Claims due deliveries, sends them side by side, and writes down what came of each."""

    def __init__(
        self,
        database: Database,
        service: WebhookService,
        sender: WebhookSender,
        *,
        public_url: str,
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self._database = database
        self._service = service
        self._sender = sender
        self._public_url = public_url
        self._clock = clock
        self._random = random
        self._in_flight: set[str] = set()

    async def run(self) -> int:
        """Send until nothing is due; how many tries that took. A background job calls it again and again."""
        tried = 0
        while sent := await self._round():
            tried += sent
        return tried

    async def _round(self) -> int:
        now = self._clock()
        ready = {e.id: e for e in self._service.endpoints() if e.enabled and e.circuit.state(now) != "open"}
        if not ready or not self._service.may_be_due(now):
            return 0
        async with self._database.write() as session:
            rows = await repository.claim_due(session, list(ready), _moment(now), _moment(now + CLAIMED_FOR), AT_ONCE)
            rows = self._probes_only(rows, ready, now)
        self._service.looked(now, found=bool(rows))
        self._in_flight = {row.id for row in rows}
        try:
            await asyncio.gather(*(self._deliver(row, ready[row.endpoint_id]) for row in rows))
        finally:
            self._in_flight = set()
        return len(rows)

    def _probes_only(self, rows: list[WebhookDeliveryRow], ready: Mapping[str, Endpoint], now: float) -> list[WebhookDeliveryRow]:
        """One delivery to each endpoint that is being tried after a pause; the others are due again when that one has told."""
        chosen, probed = [], set()
        for row in rows:
            if ready[row.endpoint_id].circuit.state(now) == "half-open":
                if row.endpoint_id in probed:
                    row.next_attempt_at = _moment(now + TIMEOUT)
                    continue
                probed.add(row.endpoint_id)
            chosen.append(row)
        return chosen

    async def _deliver(self, row: WebhookDeliveryRow, endpoint: Endpoint) -> None:
        now = self._clock()
        message_id = f"msg_{row.event_id}"
        try:
            keys = self._service.signing_keys(endpoint, now)
        except StorageError as exc:
            attempt, headers = Attempt(None, exc.reason, "", 0.0), {}
        else:
            routing_key = keys[0] if endpoint.template == "pagerduty" and not keys[0].startswith("whsec_") else ""
            body = body_of(endpoint.template, row.message, public_url=self._public_url, routing_key=routing_key)
            headers = {"webhook-id": message_id, "webhook-timestamp": str(int(now))}
            if not routing_key:
                headers[_SIGNATURE] = signature_header(keys, message_id, int(now), body)
            attempt = await self._sender.send(endpoint.url, headers, body)
        await self._write(_Done(row, endpoint, attempt, headers))

    async def _write(self, done: _Done) -> None:
        now, attempt, row = self._clock(), done.attempt, done.delivery
        attempts = row.attempts + 1
        values: dict[str, Any] = {"attempts": attempts}
        again = None
        if attempt.succeeded:
            values |= {"status": DELIVERED, "finished_at": _moment(now)}
        elif (
            attempt.status_code == GONE
            or (again := schedule.next_attempt(attempts, row.created_at.timestamp(), now, attempt.retry_after, self._random())) is None
        ):
            values |= {"status": DEAD, "finished_at": _moment(now)}
        else:
            values["next_attempt_at"] = _moment(again)
        # At once and not after the write: deliveries that fail side by side all count.
        before, circuit = self._service.attempted(
            done.endpoint, succeeded=attempt.succeeded, now=now, gone=attempt.status_code == GONE, due=again
        )
        columns: dict[str, Any] = {"failures": circuit.failures, "open_until": _moment(circuit.open_until) if circuit.open_until else None}
        if attempt.status_code == GONE:
            columns["enabled"] = False
        records = _events(done, before, circuit, now)
        shown = {name: ("v1,…" if name == _SIGNATURE else value) for name, value in done.headers.items()}
        async with self._database.write() as session:
            session.add(
                WebhookAttemptRow(
                    id=str(uuid.uuid4()),
                    delivery_id=row.id,
                    time=_moment(now),
                    latency_ms=round(attempt.latency_ms, 3),
                    status_code=attempt.status_code,
                    error=attempt.error,
                    request_headers=shown,
                    response_body=attempt.response_body.replace("\0", "\ufffd"),
                )
            )
            await repository.set_delivery(session, row.id, values)
            if circuit != before or attempt.status_code == GONE:
                await repository.set_endpoint(session, done.endpoint.id, columns)
            if attempt.succeeded and before.failures:
                # The receiver is back: what waits for its next try need not wait any longer.
                await repository.hurry(session, done.endpoint.id, _moment(now), self._in_flight)
            for record in records:
                await self._service.events.add(session, record)
        self._service.events.publish(records)
        about = {"webhook_id": done.endpoint.id, "delivery_id": row.id, "succeeded": attempt.succeeded}
        self._service.events.tell(LiveMessage("delivery", about))
        if not attempt.succeeded:
            _log.info(
                "a delivery to the webhook %s failed: %s",
                done.endpoint.name,
                attempt.error,
                extra={"action": "webhook_failed", "delivery": row.id, "attempts": attempts},
            )


def _events(done: _Done, before: Circuit, after: Circuit, now: float) -> list[EventRecord]:
    attributes = {"irca.webhook.id": done.endpoint.id, "irca.webhook.name": done.endpoint.name}
    told = {**attributes, "irca.webhook.error": done.attempt.error}
    time = int(now * 1e9)
    if done.attempt.status_code == GONE:
        body = f"The webhook {done.endpoint.name} was disabled: its receiver says that it is gone for good."
        return [catalogue.make_event(catalogue.WEBHOOK_DISABLED, time_unix_nano=time, body=body, attributes=attributes)]
    if after.open_until is not None and before.open_until is None:
        body = f"The webhook {done.endpoint.name} failed {after.failures} times in a row and is left alone for a while."
        return [catalogue.make_event(catalogue.WEBHOOK_CIRCUIT_OPENED, time_unix_nano=time, body=body, attributes=told)]
    if before.open_until is not None and after.open_until is None:
        body = f"The webhook {done.endpoint.name} takes deliveries again."
        return [catalogue.make_event(catalogue.WEBHOOK_CIRCUIT_CLOSED, time_unix_nano=time, body=body, attributes=attributes)]
    return []


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
