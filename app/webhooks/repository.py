"""SQL for endpoints, deliveries and attempts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, exists, func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.db.models import WebhookAttemptRow, WebhookDeliveryRow, WebhookEndpointRow

PENDING, DELIVERED, DEAD = "pending", "delivered", "dead"


async def all_endpoints(session: AsyncSession) -> list[WebhookEndpointRow]:
    """Every endpoint, by name."""
    return list((await session.scalars(select(WebhookEndpointRow).order_by(WebhookEndpointRow.name))).all())


async def counts(session: AsyncSession, endpoint_id: str | None = None) -> dict[tuple[str, str], int]:
    """How many deliveries of each endpoint, or of one, are pending or dead; what was delivered is not counted."""
    table = WebhookDeliveryRow
    statement = select(table.endpoint_id, table.status, func.count()).where(table.status.in_((PENDING, DEAD)))
    if endpoint_id is not None:
        statement = statement.where(table.endpoint_id == endpoint_id)
    statement = statement.group_by(table.status, table.endpoint_id)
    return {(endpoint, status): count for endpoint, status, count in (await session.execute(statement)).all()}


async def last_sequence(session: AsyncSession) -> int:
    """The highest sequence number given so far."""
    return int(await session.scalar(select(func.max(WebhookDeliveryRow.sequence))) or 0)


async def claim_due(
    session: AsyncSession, endpoint_ids: Collection[str], now: datetime, until: datetime, limit: int
) -> list[WebhookDeliveryRow]:
    """Deliveries that are due and first in their order, put off to ``until`` so that nobody else takes them meanwhile.

    Should this process die, they are due again then: at least once.
    """
    earlier = aliased(WebhookDeliveryRow)
    blocked = exists().where(
        earlier.endpoint_id == WebhookDeliveryRow.endpoint_id,
        earlier.ordering_key == WebhookDeliveryRow.ordering_key,
        earlier.status == PENDING,
        earlier.sequence < WebhookDeliveryRow.sequence,
    )
    statement = (
        select(WebhookDeliveryRow)
        .where(
            WebhookDeliveryRow.status == PENDING,
            WebhookDeliveryRow.next_attempt_at <= now,
            WebhookDeliveryRow.endpoint_id.in_(endpoint_ids),
            ~blocked,
        )
        .order_by(WebhookDeliveryRow.sequence)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = list((await session.scalars(statement)).all())
    for row in rows:
        row.next_attempt_at = until
    return rows


async def set_delivery(session: AsyncSession, delivery_id: str, values: Mapping[str, Any]) -> None:
    """Change a delivery's columns."""
    await session.execute(update(WebhookDeliveryRow).where(WebhookDeliveryRow.id == delivery_id).values(**values))


async def set_endpoint(session: AsyncSession, endpoint_id: str, values: Mapping[str, Any]) -> None:
    """Change an endpoint's columns."""
    await session.execute(update(WebhookEndpointRow).where(WebhookEndpointRow.id == endpoint_id).values(**values))


async def hurry(session: AsyncSession, endpoint_id: str, now: datetime, but: Collection[str]) -> None:
    """Make the pending deliveries of an endpoint due now, ``but`` for those that are on their way."""
    await session.execute(
        update(WebhookDeliveryRow)
        .where(
            WebhookDeliveryRow.endpoint_id == endpoint_id,
            WebhookDeliveryRow.status == PENDING,
            WebhookDeliveryRow.next_attempt_at > now,
            WebhookDeliveryRow.id.not_in(but),
        )
        .values(next_attempt_at=now)
    )


async def give_up(session: AsyncSession, endpoint_ids: Collection[str], older_than: datetime, now: datetime) -> int:
    """Mark the pending deliveries of these endpoints dead that are older; how many."""
    result: Any = await session.execute(
        update(WebhookDeliveryRow)
        .where(
            WebhookDeliveryRow.endpoint_id.in_(endpoint_ids),
            WebhookDeliveryRow.status == PENDING,
            WebhookDeliveryRow.created_at < older_than,
        )
        .values(status=DEAD, finished_at=now)
    )
    return int(result.rowcount)


async def newest_deliveries(
    session: AsyncSession, conditions: Sequence[ColumnElement[bool]], before: tuple[int, str] | None, limit: int
) -> list[WebhookDeliveryRow]:
    """Deliveries that meet all conditions, newest first, after the position ``before`` (sequence and id)."""
    position = tuple_(WebhookDeliveryRow.sequence, WebhookDeliveryRow.id)
    statement = select(WebhookDeliveryRow).where(*conditions)
    if before is not None:
        statement = statement.where(position < before)
    statement = statement.order_by(WebhookDeliveryRow.sequence.desc(), WebhookDeliveryRow.id.desc()).limit(limit)
    return list((await session.scalars(statement)).all())


async def last_attempts(session: AsyncSession, delivery_ids: Collection[str]) -> dict[str, WebhookAttemptRow]:
    """The last try of each of these deliveries that has been tried."""
    rows = await session.scalars(
        select(WebhookAttemptRow).where(WebhookAttemptRow.delivery_id.in_(delivery_ids)).order_by(WebhookAttemptRow.time)
    )
    return {row.delivery_id: row for row in rows}


async def attempts_of(session: AsyncSession, delivery_id: str) -> list[WebhookAttemptRow]:
    """Every try of a delivery, in order."""
    statement = select(WebhookAttemptRow).where(WebhookAttemptRow.delivery_id == delivery_id)
    return list((await session.scalars(statement.order_by(WebhookAttemptRow.time))).all())


async def last_replay(session: AsyncSession, endpoint_id: str, event_ids: Collection[str]) -> dict[str, int]:
    """The highest replay number of each of these events at an endpoint."""
    statement = (
        select(WebhookDeliveryRow.event_id, func.max(WebhookDeliveryRow.replay))
        .where(WebhookDeliveryRow.endpoint_id == endpoint_id, WebhookDeliveryRow.event_id.in_(event_ids))
        .group_by(WebhookDeliveryRow.event_id)
    )
    return {row[0]: row[1] for row in (await session.execute(statement)).all()}


async def delete_endpoint(session: AsyncSession, endpoint_id: str) -> None:
    """Delete an endpoint, its deliveries and their attempts."""
    await session.execute(delete(WebhookEndpointRow).where(WebhookEndpointRow.id == endpoint_id))


async def delete_older(session: AsyncSession, before: datetime) -> int:
    """Drop finished deliveries, with their attempts, that were made before; how many."""
    result: Any = await session.execute(
        delete(WebhookDeliveryRow).where(WebhookDeliveryRow.status != PENDING, WebhookDeliveryRow.created_at < before)
    )
    return int(result.rowcount)
