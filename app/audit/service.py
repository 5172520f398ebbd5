"""The audit log: written in the transaction of the act it tells of, and only ever added to."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy.ext.asyncio import AsyncSession

from app.audit.records import Actor, Target, changed, redacted
from app.db.models import AuditRow
from app.db.session import Database


class AuditService:
    """Keeps the log."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def add(
        self,
        session: AsyncSession,
        actor: Actor,
        action: str,
        target: Target,
        *,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
        outcome: Literal["done", "refused"] = "done",
        reason: str = "",
    ) -> None:
        """Log an act in the caller's transaction: it stands if and only if the act does.

        Args:
            session: the transaction of the act.
            actor: who.
            action: ``<noun>.<verb>``, such as ``group.update``.
            target: what is acted on.
            before: its state before; keys that did not change are left out, secrets replaced.
            after: its state afterwards, likewise.
            outcome: whether it was done, or refused for ``reason``.
            reason: why it was refused, or what the actor gave as a reason.
        """
        old, new = changed(before, after)
        session.add(
            AuditRow(
                id=str(uuid.uuid4()),
                time=datetime.fromtimestamp(self._clock(), UTC),
                actor_kind=actor.kind,
                actor_id=actor.id[:255],
                actor_name=actor.name[:255],
                action=action,
                target_kind=target.kind,
                target_id=target.id[:255],
                target_name=target.name[:255],
                environment_name=target.environment_name,
                before=redacted(old),
                after=redacted(new),
                outcome=outcome,
                reason=reason,
                client_address=actor.client_address[:64],
                user_agent=actor.user_agent[:255],
            )
        )

    async def record(
        self,
        actor: Actor,
        action: str,
        target: Target,
        *,
        outcome: Literal["done", "refused"] = "done",
        reason: str = "",
        after: Mapping[str, Any] | None = None,
    ) -> None:
        """Log an act that has no transaction of its own, such as a refused one. Durable on return."""
        async with self._database.write() as session:
            self.add(session, actor, action, target, outcome=outcome, reason=reason, after=after)
