"""Putting instances into the archive and taking them out again, by hand. Those that are heard again come back by themselves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from app.audit.records import Actor, Target
from app.audit.service import AuditService
from app.db.session import Database
from app.errors import ConflictError, NotFoundError
from app.events import catalogue
from app.events.event_type import EventType
from app.events.records import EventRecord
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
        if instance.status is Status.ARCHIVED or not_to_archive(instance):
            raise ConflictError(not_to_archive(instance) or f"{instance.name} is archived already")
        await self.put_all([instance], actor)
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
        if reason := not_to_revive(instance, instance.agent.replaced()):
            raise ConflictError(reason)
        await self.revive_all([instance], actor)
        return instance.view()

    async def put_all(self, instances: Sequence[Instance], actor: Actor) -> None:
        """Archive instances for which :func:`not_to_archive` knows no reason against it: all in one transaction, each audited."""
        reason = f"archived by {actor.name}"
        values = {"status": Status.ARCHIVED.value, "status_reason": reason, "revived_at": None}
        await self._write([(instance, values) for instance in instances], catalogue.INSTANCE_ARCHIVED, "instance.archive", actor)
        for instance in instances:
            instance.revived_at = None

    async def revive_all(self, instances: Sequence[Instance], actor: Actor) -> None:
        """Take instances out of the archive for which :func:`not_to_revive` knows no reason against it, as :meth:`put_all`."""
        now = self._clock()
        due: list[tuple[Instance, dict[str, Any]]] = []
        for instance in instances:
            status, reason = Status.OFFLINE, f"taken out of the archive by {actor.name}"
            if instance.said_goodbye:
                status = Status.STOPPED
            elif instance.last_seen is None:
                status = Status.PENDING
            quiet = instance.quiet_since if instance.quiet_since is not None or status is not Status.OFFLINE else instance.last_seen
            values = {"status": status.value, "status_reason": reason, "revived_at": moment(now), "quiet_since": moment(quiet)}
            due.append((instance, values))
        await self._write(due, catalogue.INSTANCE_REVIVED, "instance.revive", actor)
        for instance, values in due:
            instance.revived_at = now
            instance.quiet_since = None if values["quiet_since"] is None else values["quiet_since"].timestamp()

    async def _write(self, due: Sequence[tuple[Instance, dict[str, Any]]], kind: EventType, action: str, actor: Actor) -> None:
        """Record the act with its events, the changes of status among them, and let each instance be what its values say."""
        now = self._clock()
        records: list[EventRecord] = []
        for instance, values in due:
            status = Status(values["status"])
            what = "archived" if status is Status.ARCHIVED else "taken out of the archive"
            records += [
                catalogue.make_event(
                    kind,
                    time_unix_nano=int(now * 1e9),
                    body=f"{instance.name} was {what} by {actor.name}.",
                    attributes={"irca.actor": actor.name},
                    about=instance.about(),
                ),
                status_event(instance, Verdict(status, values["status_reason"]), now, by_hand=True),
            ]
        async with self._database.write() as session:
            await repository.save_statuses(session, [{**v, "id": i.id, "status_since": moment(now)} for i, v in due])
            await self._events.add_many(session, records)
            for instance, values in due:
                target = Target("instance", instance.id, instance.name, instance.agent.environment_name)
                self._audit.add(
                    session, actor, action, target, before={"status": instance.status.value}, after={"status": values["status"]}
                )
        for instance, values in due:
            instance.status, instance.status_reason, instance.status_since = Status(values["status"]), values["status_reason"], now
        self._events.publish(records)
        for instance, values in due:
            told = {"instance_id": instance.id, "agent_id": instance.agent.id, "status": values["status"]}
            self._live.publish(LiveMessage("instance", told))

    def _instance(self, instance_id: str) -> Instance:
        instance = self._registry.instances.get(instance_id)
        if instance is None:
            raise NotFoundError(f"there is no instance {instance_id}")
        return instance


def not_to_archive(instance: Instance) -> str:
    """Why an instance that is not in the archive cannot be put there; empty when it can."""
    if instance.status in (Status.HEALTHY, Status.DEGRADED):
        return f"{instance.name} is heard and would come back at once: stop it first"
    return ""


def not_to_revive(instance: Instance, replaced: Collection[str]) -> str:
    """Why an instance cannot be taken out of the archive, ``replaced`` being its agent's replaced pods; empty when it can."""
    return f"{instance.name} is a pod that was replaced: it will not come back" if instance.id in replaced else ""
