"""Webhook endpoints and their deliveries: the one door to this package for routes, pages and commands."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sqlalchemy import ColumnElement
from sqlalchemy.ext.asyncio import AsyncSession

from app.audit.records import Actor, Target
from app.audit.service import AuditService
from app.cursors import decode_cursor, encode_cursor
from app.db.models import WebhookAttemptRow, WebhookDeliveryRow, WebhookEndpointRow
from app.db.session import Database
from app.errors import ConflictError, FieldError, InvalidRequestError, NotFoundError, PreconditionFailedError
from app.events.records import EventRecord
from app.events.service import EventService
from app.events.views import Page
from app.webhooks import repository
from app.webhooks.filters import WebhookFilters, message_of, ordering_key, wants
from app.webhooks.guard import check_url
from app.webhooks.payloads import TemplateName
from app.webhooks.schedule import GIVE_UP_AFTER, Circuit, after_attempt
from app.webhooks.signing import SecretBox, new_secret
from app.webhooks.views import AttemptView, DeliveryDetailView, DeliveryStatus, DeliveryView, NewWebhookView, WebhookView

TEST_EVENT = "irca.webhook.test"
"""Event type of a test delivery; it is in no timeline."""
MOST_REPLAYED = 10_000
"""Deliveries that one replay makes at most."""
_LOOK_AGAIN = 1.0
_LONGEST_OVERLAP = timedelta(days=7)


@dataclass(slots=True)
class Endpoint:
    """An endpoint in memory, where the outbox and the dispatcher look."""

    id: str
    name: str
    url: str
    template: TemplateName
    filters: WebhookFilters
    enabled: bool
    version: int
    secret: bytes
    previous_secret: bytes | None
    previous_secret_expires_at: datetime | None
    created_at: datetime
    updated_at: datetime
    circuit: Circuit = field(default_factory=Circuit)

    @classmethod
    def of(cls, row: WebhookEndpointRow) -> Endpoint:
        """The endpoint that a row holds."""
        return cls(
            id=row.id,
            name=row.name,
            url=row.url,
            template=cast("TemplateName", row.template),
            filters=WebhookFilters.model_validate(row.filters),
            enabled=row.enabled,
            version=row.version,
            secret=row.secret,
            previous_secret=row.previous_secret,
            previous_secret_expires_at=row.previous_secret_expires_at,
            created_at=row.created_at,
            updated_at=row.updated_at,
            circuit=Circuit(row.failures, row.open_until.timestamp() if row.open_until else None),
        )


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """What somebody wants an endpoint to be. ``routing_key`` is PagerDuty's and belongs to its template alone."""

    name: str
    url: str
    template: TemplateName = "standard"
    filters: WebhookFilters = field(default_factory=WebhookFilters)
    enabled: bool = True
    routing_key: str = ""


class WebhookService:
    """Keeps the endpoints, all of them in memory with the database as their durable copy, and the outbox."""

    def __init__(self, database: Database, events: EventService, audit: AuditService, box: SecretBox, clock: Callable[[], float]) -> None:
        self._database = database
        self.events = events
        self._audit = audit
        self._box = box
        self._clock = clock
        self._endpoints: dict[str, Endpoint] = {}
        self._sequence = 0
        self._look_at = 0.0
        self.groups_of: Callable[[EventRecord], Collection[str]] = lambda _record: ()
        """Ids of the groups that an event's instance is a member of."""

    async def load(self) -> None:
        """Read the endpoints from the database and begin to fill the outbox; once, first."""
        async with self._database.read() as session:
            self._endpoints = {row.id: Endpoint.of(row) for row in await repository.all_endpoints(session)}
            self._sequence = await repository.last_sequence(session)
        self.events.outbox = self.fill

    async def fill(self, session: AsyncSession, records: Sequence[EventRecord]) -> None:
        """Put new events into the outbox of every endpoint that wants them, in the transaction that records them."""
        enabled = [e for e in self._endpoints.values() if e.enabled]
        if not enabled:
            return
        for record in records:
            groups = self.groups_of(record) if any(e.filters.groups for e in enabled) else ()
            about = record.attributes.get("irca.webhook.id")  # that it fails is no news that it could be told
            wanted = [e for e in enabled if e.id != about and wants(e.filters, record, groups)]
            if wanted:
                message = dict(message_of(record))
                session.add_all([self._delivery(e.id, record.id, ordering_key(record), message) for e in wanted])

    # What the dispatcher asks.

    def endpoints(self) -> list[Endpoint]:
        """Every endpoint, by name."""
        return sorted(self._endpoints.values(), key=lambda e: e.name)

    def signing_keys(self, endpoint: Endpoint, now: float) -> list[str]:
        """The secrets that are valid now, the newest first.

        Raises:
            StorageError: they cannot be decrypted.
        """
        keys = [self._box.unseal(endpoint.secret)]
        until = endpoint.previous_secret_expires_at
        if endpoint.previous_secret is not None and until is not None and until.timestamp() > now:
            keys.append(self._box.unseal(endpoint.previous_secret))
        return keys

    def may_be_due(self, now: float) -> bool:
        """Whether a look into the outbox is worth while."""
        return now >= self._look_at

    def looked(self, now: float, *, found: bool) -> None:
        """The outbox was looked into."""
        if not found:
            self._look_at = now + _LOOK_AGAIN

    def attempted(self, endpoint: Endpoint, *, succeeded: bool, now: float, gone: bool, due: float | None) -> tuple[Circuit, Circuit]:
        """A try was made; its delivery is tried again at ``due``. The endpoint's standing before and now."""
        current = self._endpoints.get(endpoint.id, endpoint)
        before = current.circuit
        current.circuit = after_attempt(before, succeeded=succeeded, now=now)
        current.enabled = current.enabled and not gone
        if due is not None:
            self._look_at = min(self._look_at, due)
        return before, current.circuit

    async def maintain(self, keep: float) -> None:
        """Give up what has waited too long for an endpoint that fails, and drop finished deliveries older than ``keep`` seconds."""
        now = self._moment()
        failing = [e.id for e in self._endpoints.values() if e.circuit.open_until is not None]
        async with self._database.write() as session:
            if failing:
                await repository.give_up(session, failing, now - timedelta(seconds=GIVE_UP_AFTER), now)
            await repository.delete_older(session, now - timedelta(seconds=keep))

    # What people do.

    async def create(self, spec: EndpointSpec, actor: Actor) -> NewWebhookView:
        """A new endpoint and its secret, which nobody can learn again.

        Raises:
            InvalidRequestError: the URL, or the routing key for its template, is not usable.
            ConflictError: the name is taken.
        """
        self._check(spec, None)
        now, secret = self._moment(), spec.routing_key or new_secret()
        row = WebhookEndpointRow(
            id=str(uuid.uuid4()),
            secret=self._box.seal(secret),
            previous_secret=None,
            previous_secret_expires_at=None,
            failures=0,
            open_until=None,
            version=1,
            created_at=now,
            updated_at=now,
            **_columns(spec),
        )
        async with self._database.write() as session:
            session.add(row)
            await session.flush()
            self._audit.add(session, actor, "webhook.create", Target("webhook", row.id, row.name), after=_audited(spec))
        self._endpoints[row.id] = Endpoint.of(row)
        return NewWebhookView(**(await self.get(row.id)).model_dump(), secret=secret)

    async def update(self, endpoint_id: str, spec: EndpointSpec, actor: Actor, version: int | None = None) -> WebhookView:
        """Change an endpoint. Enabling it closes its circuit.

        Raises:
            NotFoundError: no such endpoint.
            PreconditionFailedError: it is not at ``version`` any more.
            InvalidRequestError: as :meth:`create`.
            ConflictError: as :meth:`create`.
        """
        endpoint = self._endpoint(endpoint_id, version)
        self._check(spec, endpoint)
        before = _spec_of(endpoint)
        values: dict[str, Any] = {**_columns(spec), "version": endpoint.version + 1, "updated_at": self._moment()}
        if spec.enabled and not endpoint.enabled:
            values |= {"failures": 0, "open_until": None}
        if spec.routing_key:
            values["secret"] = self._box.seal(spec.routing_key)
        elif spec.template != "pagerduty" and endpoint.template == "pagerduty":
            values["secret"] = self._box.seal(new_secret())  # nobody knows it until it is rotated
        await self._change(endpoint_id, values, actor, "webhook.update", _audited(before), _audited(spec))
        return await self.get(endpoint_id)

    async def rotate(self, endpoint_id: str, overlap: float, actor: Actor) -> NewWebhookView:
        """A new secret; deliveries are signed with the one before as well for ``overlap`` seconds.

        Raises:
            NotFoundError: no such endpoint.
            InvalidRequestError: its template has no secret of ours, or the overlap is longer than a week.
        """
        endpoint = self._endpoint(endpoint_id, None)
        if endpoint.template == "pagerduty":
            raise InvalidRequestError("a pagerduty endpoint has a routing key instead of a secret: change that")
        if not 0 <= overlap <= _LONGEST_OVERLAP.total_seconds():
            raise InvalidRequestError("the overlap is not usable", errors=[FieldError("overlap", "must be between 0 and 604800 seconds")])
        secret, now = new_secret(), self._moment()
        expires = now + timedelta(seconds=overlap)
        values = {
            "secret": self._box.seal(secret),
            "previous_secret": endpoint.secret,
            "previous_secret_expires_at": expires,
            "version": endpoint.version + 1,
            "updated_at": now,
        }
        after = {"previous_secret_expires_at": expires.isoformat()}
        await self._change(endpoint_id, values, actor, "webhook.rotate", {}, after)
        return NewWebhookView(**(await self.get(endpoint_id)).model_dump(), secret=secret)

    async def delete(self, endpoint_id: str, actor: Actor, version: int | None = None) -> None:
        """Delete an endpoint with its deliveries.

        Raises:
            NotFoundError: no such endpoint.
            PreconditionFailedError: it is not at ``version`` any more.
        """
        endpoint = self._endpoint(endpoint_id, version)
        async with self._database.write() as session:
            await repository.delete_endpoint(session, endpoint_id)
            target = Target("webhook", endpoint_id, endpoint.name)
            self._audit.add(session, actor, "webhook.delete", target, before=_audited(_spec_of(endpoint)))
        self._endpoints.pop(endpoint_id, None)

    async def test(self, endpoint_id: str, actor: Actor) -> DeliveryView:
        """Send a test event to an endpoint, whatever its filters.

        Raises:
            NotFoundError: no such endpoint.
        """
        endpoint = self._endpoint(endpoint_id, None)
        record = EventRecord(
            id=f"test-{uuid.uuid4().hex}",
            name=TEST_EVENT,
            time_unix_nano=int(self._clock() * 1e9),
            body=f"A test delivery to {endpoint.name}. Nothing has happened.",
        )
        row = self._delivery(endpoint_id, record.id, f"test-{record.id[-12:]}", dict(message_of(record)))
        async with self._database.write() as session:
            session.add(row)
            self._audit.add(session, actor, "webhook.test", Target("webhook", endpoint_id, endpoint.name))
        return _delivery_view(row, None)

    async def replay(self, endpoint_id: str, actor: Actor, *, delivery_id: str | None = None, since: datetime | None = None) -> int:
        """Deliver again: one delivery, or every dead one made since ``since``. How many were put into the outbox.

        Raises:
            NotFoundError: no such endpoint or delivery.
        """
        endpoint = self._endpoint(endpoint_id, None)
        conditions: list[ColumnElement[bool]] = [WebhookDeliveryRow.endpoint_id == endpoint_id]
        if delivery_id is not None:
            conditions.append(WebhookDeliveryRow.id == delivery_id)
        else:
            conditions.append(WebhookDeliveryRow.status == repository.DEAD)
            if since is not None:
                conditions.append(WebhookDeliveryRow.created_at >= since)
        async with self._database.write() as session:
            rows = await repository.newest_deliveries(session, conditions, None, MOST_REPLAYED)
            if delivery_id is not None and not rows:
                raise NotFoundError(f"this endpoint has no delivery {delivery_id}")
            if delivery_id is not None and rows[0].status == repository.PENDING:
                rows[0].next_attempt_at = self._moment()  # it comes first in order, so the new one would wait for its next try
            again = {row.event_id: row for row in reversed(rows)}
            last = await repository.last_replay(session, endpoint_id, list(again)) if again else {}
            for event_id, row in again.items():
                session.add(self._delivery(endpoint_id, event_id, row.ordering_key, dict(row.message), last[event_id] + 1))
            after = {"deliveries": len(again)}
            self._audit.add(session, actor, "webhook.replay", Target("webhook", endpoint_id, endpoint.name), after=after)
        return len(again)

    async def list_endpoints(self) -> list[WebhookView]:
        """Every endpoint, by name."""
        async with self._database.read() as session:
            counts = await repository.counts(session)
        return [self._view(e, counts) for e in self.endpoints()]

    async def get(self, endpoint_id: str) -> WebhookView:
        """One endpoint.

        Raises:
            NotFoundError: no such endpoint.
        """
        endpoint = self._endpoint(endpoint_id, None)
        async with self._database.read() as session:
            counts = await repository.counts(session, endpoint_id)
        return self._view(endpoint, counts)

    async def list_deliveries(
        self,
        cursor: str | None = None,
        limit: int = 50,
        *,
        endpoint_id: str | None = None,
        status: DeliveryStatus | None = None,
        event_id: str | None = None,
    ) -> Page[DeliveryView]:
        """Deliveries that meet all filters, newest first.

        Raises:
            InvalidRequestError: the cursor is not one of this list.
        """
        wanted = (
            (WebhookDeliveryRow.endpoint_id, endpoint_id),
            (WebhookDeliveryRow.status, status.value if status else None),
            (WebhookDeliveryRow.event_id, event_id),
        )
        conditions: list[ColumnElement[bool]] = [column == value for column, value in wanted if value is not None]
        async with self._database.read() as session:
            rows = await repository.newest_deliveries(session, conditions, decode_cursor(cursor, int, str), limit + 1)
            last = await repository.last_attempts(session, [row.id for row in rows])
        following = encode_cursor(rows[limit - 1].sequence, rows[limit - 1].id) if len(rows) > limit else None
        return Page[DeliveryView](items=[_delivery_view(row, last.get(row.id)) for row in rows[:limit]], next_cursor=following)

    async def get_delivery(self, delivery_id: str) -> DeliveryDetailView:
        """One delivery with every try.

        Raises:
            NotFoundError: no such delivery.
        """
        async with self._database.read() as session:
            row = await session.get(WebhookDeliveryRow, delivery_id)
            tries = await repository.attempts_of(session, delivery_id)
        if row is None:
            raise NotFoundError(f"there is no delivery {delivery_id}")
        view = _delivery_view(row, tries[-1] if tries else None)
        shown = [AttemptView.model_validate(t, from_attributes=True) for t in tries]
        return DeliveryDetailView(**view.model_dump(), message=row.message, tries=shown)

    def _check(self, spec: EndpointSpec, endpoint: Endpoint | None) -> None:
        check_url(spec.url)
        pagerduty = spec.template == "pagerduty"
        kept = endpoint is not None and endpoint.template == "pagerduty"
        if pagerduty != bool(spec.routing_key) and not (pagerduty and kept):
            expected = "is needed by the pagerduty template" if pagerduty else "belongs to the pagerduty template"
            raise InvalidRequestError("the routing key does not fit", errors=[FieldError("routing_key", expected)])
        if any(e.name == spec.name and e is not endpoint for e in self._endpoints.values()):
            raise ConflictError(f"there is a webhook {spec.name!r} already", errors=[FieldError("name", "is taken")])

    async def _change(
        self, endpoint_id: str, values: Mapping[str, Any], actor: Actor, action: str, before: Mapping[str, Any], after: Mapping[str, Any]
    ) -> None:
        async with self._database.write() as session:
            await repository.set_endpoint(session, endpoint_id, values)
            row = await session.get_one(WebhookEndpointRow, endpoint_id)
            self._audit.add(session, actor, action, Target("webhook", endpoint_id, row.name), before=before, after=after)
        self._endpoints[endpoint_id] = Endpoint.of(row)

    def _endpoint(self, endpoint_id: str, version: int | None) -> Endpoint:
        endpoint = self._endpoints.get(endpoint_id)
        if endpoint is None:
            raise NotFoundError(f"there is no webhook {endpoint_id}")
        if version is not None and version != endpoint.version:
            raise PreconditionFailedError(f"the webhook is at version {endpoint.version}, not {version}: read it again")
        return endpoint

    def _delivery(self, endpoint_id: str, event_id: str, key: str, message: dict[str, Any], replay: int = 0) -> WebhookDeliveryRow:
        now = self._clock()
        self._sequence = max(self._sequence + 1, int(now * 1e9))
        self._look_at = min(self._look_at, now)
        return WebhookDeliveryRow(
            id=str(uuid.uuid4()),
            endpoint_id=endpoint_id,
            event_id=event_id,
            replay=replay,
            ordering_key=key,
            sequence=self._sequence,
            message=message,
            status=repository.PENDING,
            attempts=0,
            created_at=self._moment(),
            next_attempt_at=self._moment(),
            finished_at=None,
        )

    def _view(self, endpoint: Endpoint, counts: Mapping[tuple[str, str], int]) -> WebhookView:
        now = self._clock()
        circuit = endpoint.circuit
        until = endpoint.previous_secret_expires_at
        return WebhookView(
            id=endpoint.id,
            name=endpoint.name,
            url=shown_url(endpoint.url, endpoint.template),
            url_sha256=hashlib.sha256(endpoint.url.encode()).hexdigest(),
            template=endpoint.template,
            filters=endpoint.filters,
            enabled=endpoint.enabled,
            circuit=circuit.state(now),
            failures=circuit.failures,
            open_until=datetime.fromtimestamp(circuit.open_until, UTC) if circuit.open_until else None,
            previous_secret_expires_at=until if until and until.timestamp() > now else None,
            pending=counts.get((endpoint.id, repository.PENDING), 0),
            dead=counts.get((endpoint.id, repository.DEAD), 0),
            version=endpoint.version,
            created_at=endpoint.created_at,
            updated_at=endpoint.updated_at,
        )

    def _moment(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def shown_url(url: str, template: TemplateName) -> str:
    """The URL as it may be seen: the path of a Slack webhook is its secret."""
    if template != "slack":
        return url
    parts = check_url(url)
    return f"{parts.scheme}://{parts.netloc}/…"


def _columns(spec: EndpointSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "url": spec.url,
        "template": spec.template,
        "filters": spec.filters.model_dump(),
        "enabled": spec.enabled,
    }


def _spec_of(endpoint: Endpoint) -> EndpointSpec:
    return EndpointSpec(endpoint.name, endpoint.url, endpoint.template, endpoint.filters, endpoint.enabled)


def _audited(spec: EndpointSpec) -> dict[str, Any]:
    return {**_columns(spec), "url": shown_url(spec.url, spec.template)}


def _delivery_view(row: WebhookDeliveryRow, last: WebhookAttemptRow | None) -> DeliveryView:
    return DeliveryView(
        id=row.id,
        endpoint_id=row.endpoint_id,
        event_id=row.event_id,
        event_type=str(row.message.get("type", "")),
        status=DeliveryStatus(row.status),
        attempts=row.attempts,
        replay=row.replay,
        created_at=row.created_at,
        next_attempt_at=row.next_attempt_at if row.status == repository.PENDING else None,
        finished_at=row.finished_at,
        last_status_code=last.status_code if last else None,
        last_error=last.error if last else "",
        last_latency_ms=last.latency_ms if last else None,
    )
