"""Putting instances into the archive and taking them out again, by hand. Those that are heard again come back by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from app.audit.records import Actor, Target
from app.audit.service import AuditService
from app.db.session import Database
from app.errors import ConflictError, NotFoundError
from app.events import catalogue
from app.events.event_type import EventType
from app.events.service import EventService
from app.events.stream import LiveMessage, LiveStream
from app.fleet import repository
from app.fleet.news import status_event
from app.fleet.registry import Instance, Registry, moment
from app.fleet.status import Verdict
from app.fleet.views import InstanceView, Status


class Archive:
    """What people do with instances that are gone."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        events: EventService,
        audit: AuditService,
        live: LiveStream,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._registry = registry
        self._events = events
        self._audit = audit
        self._live = live
        self._clock = clock

    async def put(self, instance_id: str, actor: Actor) -> InstanceView:
        """Archive an instance that is not heard any more. Its credential stays valid: when it is heard again it comes back.

        Raises:
            NotFoundError: no such instance.
            ConflictError: it is heard, or archived already.
        """
        instance = self._instance(instance_id)
        if instance.status is Status.ARCHIVED:
            raise ConflictError(f"{instance.name} is archived already")
        if instance.status in (Status.HEALTHY, Status.DEGRADED):
            raise ConflictError(f"{instance.name} is heard and would come back at once: stop it first")
        reason = f"archived by {actor.name}"
        values = {"status": Status.ARCHIVED.value, "status_reason": reason, "revived_at": None}
        await self._write(instance, values, catalogue.INSTANCE_ARCHIVED, "instance.archive", actor)
        instance.revived_at = None
        return instance.view()

    async def revive(self, instance_id: str, actor: Actor) -> InstanceView:
        """Take an instance out of the archive: it is offline, or stopped, as before, for as long as a silent one is kept.

        Raises:
            NotFoundError: no such instance.
            ConflictError: it is not archived, or a pod whose work another one does.
        """
        instance = self._instance(instance_id)
        if instance.status is not Status.ARCHIVED:
            raise ConflictError(f"{instance.name} is not archived")
        if instance.id in instance.agent.replaced():
            raise ConflictError(f"{instance.name} is a pod that was replaced: it will not come back")
        now = self._clock()
        status, reason = Status.OFFLINE, f"taken out of the archive by {actor.name}"
        if instance.said_goodbye:
            status = Status.STOPPED
        elif instance.last_seen is None:
            status = Status.PENDING
        quiet = instance.quiet_since if instance.quiet_since is not None or status is not Status.OFFLINE else instance.last_seen
        values = {"status": status.value, "status_reason": reason, "revived_at": moment(now), "quiet_since": moment(quiet)}
        await self._write(instance, values, catalogue.INSTANCE_REVIVED, "instance.revive", actor)
        instance.revived_at, instance.quiet_since = now, quiet
        return instance.view()

    async def _write(self, instance: Instance, values: dict[str, Any], kind: EventType, action: str, actor: Actor) -> None:
        """Record the act with its events, the change of status among them, and let the instance be what ``values`` say."""
        now, before, status = self._clock(), instance.status, Status(values["status"])
        what = "archived" if status is Status.ARCHIVED else "taken out of the archive"
        records = [
            catalogue.make_event(
                kind,
                time_unix_nano=int(now * 1e9),
                body=f"{instance.name} was {what} by {actor.name}.",
                attributes={"irca.actor": actor.name},
                about=instance.about(),
            ),
            status_event(instance, Verdict(status, values["status_reason"]), now, by_hand=True),
        ]
        target = Target("instance", instance.id, instance.name, instance.agent.environment_name)
        async with self._database.write() as session:
            await repository.save_status(session, instance.id, {**values, "status_since": moment(now)})
            for record in records:
                await self._events.add(session, record)
            self._audit.add(session, actor, action, target, before={"status": before.value}, after={"status": status.value})
        instance.status, instance.status_reason, instance.status_since = status, values["status_reason"], now
        self._events.publish(records)
        told = {"instance_id": instance.id, "agent_id": instance.agent.id, "status": status.value}
        self._live.publish(LiveMessage("instance", told))

    def _instance(self, instance_id: str) -> Instance:
        instance = self._registry.instances.get(instance_id)
        if instance is None:
            raise NotFoundError(f"there is no instance {instance_id}")
        return instance
