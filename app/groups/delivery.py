"""Remote configuration on its way: what is meant for each instance, offered at its heartbeat, and how it fares there.

The heartbeat path touches memory only; :meth:`ConfigDelivery.flush` writes what changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from app.db.models import InstanceConfigRow
from app.db.session import Database
from app.events import catalogue
from app.events.records import EventRecord
from app.events.service import EventService
from app.fleet.registry import Agent, Instance, Registry, moment
from app.groups import repository
from app.groups.canary import Cohorts
from app.groups.membership import SelectorIndex
from app.groups.precedence import Desired, Layer, Source, canonical, desire
from app.groups.selectors import Selector, labels_of
from app.groups.standing import (
    ACCEPTS_REMOTE_CONFIG,
    REPORTS_REMOTE_CONFIG,
    UNDER_WAY,
    ConfigStatus,
    Reported,
    Standing,
    after_report,
    is_due,
    offer_of,
    status_of,
)
from app.groups.validation import remote_options
from connectors.core import opamp_pb2 as opamp

CONFIG_FILE = "agent.json"
HURRIED_INTERVAL = 5.0
"""Seconds between heartbeats of an instance whose configuration is under way."""
_AT_ONCE = 250
"""Instances that are worked out before others get their turn."""
_MAX_REASON = 4096
_TOLD = {
    ConfigStatus.APPLIED: (catalogue.CONFIG_APPLIED, "{name} runs with the configuration that was offered."),
    ConfigStatus.FAILED: (catalogue.CONFIG_FAILED, "{name} could not work with the configuration that was offered: {reason}."),
    ConfigStatus.DRIFTED: (catalogue.CONFIG_DRIFTED, "{name} has drifted from its configuration: {reason}."),
}


@dataclass(slots=True)
class GroupState:
    """A group in memory: who it selects, and its current configuration. ``changed_at`` is Unix seconds."""

    id: str
    name: str
    description: str
    selector: Selector
    priority: int
    version: int
    created_at: Any
    updated_at: Any
    revision: int = 0
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def layer(self) -> Layer:
        """What it gives its members."""
        return Layer(Source("group", self.name, self.id, self.revision), self.config)


@dataclass(slots=True)
class OwnConfig:
    """The current configuration of one agent."""

    revision: int = 0
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Link:
    """What is known of remote configuration at one instance."""

    capabilities: int | None = None
    reported: Reported | None = None
    standing: Standing | None = None
    desired: Desired | None = None
    generation: int = -1
    groups: tuple[GroupState, ...] = ()
    membership: int = -1
    agent: Agent | None = None
    resource: object = None
    labels: object = None
    held: bool = False
    hurried: bool = False


class ConfigDelivery:
    """What is meant for every instance, and its way there."""

    def __init__(self, database: Database, events: EventService, registry: Registry, clock: Callable[[], float]) -> None:
        self._database = database
        self._events = events
        self._registry = registry
        self._clock = clock
        self.groups: dict[str, GroupState] = {}
        self.own: dict[str, OwnConfig] = {}
        self._ranked: list[GroupState] = []
        self._index = SelectorIndex(())
        self._from_groups: dict[tuple[str, tuple[str, ...]], Desired] = {}
        self._links: dict[str, _Link] = {}
        self._cohorts = Cohorts()
        self._generation = 0
        self._membership = 0
        self._changed: set[str] = set()
        self._untold: list[EventRecord] = []

    def load(self, rows: Iterable[InstanceConfigRow]) -> None:
        """Take in how configurations fared when the platform last ran; groups and agents' own ones first."""
        self.changed()
        for row in rows:
            reported_at = row.reported_at.timestamp() if row.reported_at else None
            status, offered_at = ConfigStatus(row.status), row.offered_at.timestamp()
            self._links[row.instance_id] = _Link(
                standing=Standing(
                    bytes(row.config_hash), dict(row.config), status, row.reason, offered_at, reported_at, dict(row.applied_config)
                )
            )
        for instance_id in self._links:
            if (instance := self._registry.instances.get(instance_id)) is not None:
                self.desired(instance)

    def changed(self) -> None:
        """Groups have come, gone or changed: who is in which is found anew, each instance at its turn."""
        self._membership += 1
        self._ranked = sorted(self.groups.values(), key=lambda g: g.name, reverse=True)
        self._ranked.sort(key=lambda g: g.priority)
        self._index = SelectorIndex([group.selector for group in self._ranked])
        self.reconfigured()

    def reconfigured(self) -> None:
        """Values that groups or agents give have changed: what is meant for instances is worked out anew, each at its turn."""
        self._generation += 1
        self._from_groups.clear()

    async def settle(self) -> None:
        """Work out what is meant for every instance, in parts, so that heartbeats are answered meanwhile; asking for all is quick then."""
        for place, instance in enumerate(list(self._registry.instances.values()), 1):
            self.desired(instance)
            if place % _AT_ONCE == 0:
                await asyncio.sleep(0)

    def desired(self, instance: Instance) -> Desired:
        """What the platform means for ``instance`` now."""
        link = self._links.get(instance.id)
        if link is None:
            link = self._links[instance.id] = _Link()
        agent = instance.agent
        # Labels and resources are replaced, never changed in place.
        same = link.agent is agent and link.resource is instance.resource and link.labels is agent.labels
        placed = same and link.membership == self._membership
        if placed and link.desired is not None and link.generation == self._generation:
            return link.desired
        before = link.desired.cohorts if link.desired is not None else ()
        if not placed:
            link.groups = tuple(self._ranked[place] for place in self._index.matching(instance_labels(instance)))
            link.membership, link.agent, link.resource, link.labels = self._membership, agent, instance.resource, agent.labels
        link.desired = self._worked_out(agent, link.groups)
        link.generation = self._generation
        self._cohorts.join(instance.id, link.desired.cohorts, before)
        if link.standing is not None and link.standing.hash == link.desired.hash:
            standing = link.standing
            self._cohorts.note(instance.id, link.desired.cohorts, standing.status, standing.reason, standing.offered_at)
        return link.desired

    def _worked_out(self, agent: Agent, groups: tuple[GroupState, ...]) -> Desired:
        own = self.own.get(agent.id)
        key = agent.agent_type, tuple(group.id for group in groups)
        if own is None and (known := self._from_groups.get(key)) is not None:
            return known
        layer = Layer(Source("agent", agent.environment_name, agent.id, own.revision), own.config) if own else None
        chosen = [(group.id, group.layer) for group in groups]
        found = desire(agent.agent_type, agent.id, chosen, layer, remote_options(agent.agent_type))
        if own is None:
            self._from_groups[key] = found
        return found

    def groups_of(self, record: EventRecord) -> tuple[str, ...]:
        """Ids of the groups that an event's instance is in; of an agent's own event, those that select it whatever its instances tell."""
        instance = self._registry.instances.get(record.instance_id or "")
        if instance is not None:
            return self.desired(instance).groups
        agent = self._registry.agents.get(record.agent_id or "")
        if agent is None:
            return ()
        labels = labels_of(agent.environment_name, agent.agent_type, agent.labels, {})
        return tuple(self._ranked[place].id for place in self._index.matching(labels))

    def standing(self, instance: Instance) -> tuple[ConfigStatus, str, Standing | None]:
        """How what is meant for ``instance`` fares, why, and the last offer."""
        desired, link = self.desired(instance), self._links[instance.id]
        status = status_of(link.standing, desired, link.capabilities)
        current = link.standing if link.standing is not None and link.standing.hash == desired.hash else None
        if status is ConfigStatus.PENDING:
            return status, self._waits_for(instance, link, desired), link.standing
        if status is ConfigStatus.UNSUPPORTED:
            return status, "its agent cannot be configured remotely", link.standing
        return status, current.reason if current else "", link.standing

    def exchange(self, instance: Instance, message: opamp.AgentToServer, reply: opamp.ServerToAgent) -> float | None:
        """Take what a heartbeat tells of remote configuration, and offer what is due; memory only.

        Returns:
            Seconds between heartbeats that the instance should keep from now on; None for no change.
        """
        desired, link, now = self.desired(instance), self._links[instance.id], self._clock()
        link.capabilities = message.capabilities
        if message.HasField("remote_config_status"):
            told = message.remote_config_status
            link.reported = Reported(bytes(told.last_remote_config_hash), int(told.status), told.error_message[:_MAX_REASON])
        elif message.HasField("agent_description"):
            link.reported = Reported()  # the full state, and nothing of this in it
        if not message.capabilities & REPORTS_REMOTE_CONFIG:
            link.reported = self._seen(link, desired, instance)
        self._become(instance, link, after_report(link.standing, desired, link.reported, instance.effective_config, now))
        if is_due(link.standing, desired, message.capabilities, link.reported):
            link.held = not self._cohorts.has_place(instance.id, desired.cohorts, now)
            if not link.held:
                self._offer(instance, link, desired, reply, now)
        status = status_of(link.standing, desired, link.capabilities)
        hurried = bool(message.capabilities & ACCEPTS_REMOTE_CONFIG) and status in UNDER_WAY and not link.held
        if hurried == link.hurried and not message.HasField("agent_description"):
            return None
        link.hurried = hurried
        return min(HURRIED_INTERVAL, instance.interval) if hurried else instance.interval

    async def flush(self) -> int:
        """Write what heartbeats changed, with its events, in one transaction; how many instances that were."""
        changed, self._changed = self._changed, set()
        records, self._untold = self._untold, []
        if not changed and not records:
            return 0
        try:
            async with self._database.write() as session:
                await repository.save_instances(session, [self._columns(key) for key in sorted(changed)])
                for record in records:
                    await self._events.add(session, record)
        except BaseException:
            self._changed |= changed
            self._untold = records + self._untold
            raise
        self._events.publish(records)
        return len(changed)

    def _offer(self, instance: Instance, link: _Link, desired: Desired, reply: opamp.ServerToAgent, now: float) -> None:
        file = reply.remote_config.config.config_map[CONFIG_FILE]
        file.body, file.content_type = canonical(desired.config), "application/json"
        reply.remote_config.config_hash = desired.hash
        self._become(instance, link, offer_of(link.standing, desired, now))

    def _become(self, instance: Instance, link: _Link, standing: Standing | None) -> None:
        before = link.standing
        if standing is None or standing == before:
            return
        link.standing = standing
        if link.desired is not None and standing.hash == link.desired.hash:
            self._cohorts.note(instance.id, link.desired.cohorts, standing.status, standing.reason, standing.offered_at)
        self._changed.add(instance.id)
        if standing.status in _TOLD and (before is None or (before.hash, before.status) != (standing.hash, standing.status)):
            kind, text = _TOLD[standing.status]
            attributes = {"irca.config.hash": standing.hash.hex(), "irca.config.keys": sorted(standing.config)}
            if standing.reason:
                attributes["irca.config.reason"] = standing.reason
            body = text.format(name=instance.name, reason=standing.reason)
            now = int(self._clock() * 1e9)
            self._untold.append(catalogue.make_event(kind, time_unix_nano=now, body=body, attributes=attributes, about=instance.about()))

    def _seen(self, link: _Link, desired: Desired, instance: Instance) -> Reported | None:
        """For a client that accepts configuration and does not say how it fares: its effective configuration says so."""
        standing, effective = link.standing, instance.effective_config
        if standing is None or standing.hash != desired.hash or not all(key in effective for key in desired.config):
            return None
        told = Reported(desired.hash, opamp.REMOTE_CONFIG_STATUSES_APPLIED)
        found = after_report(None, desired, told, effective, 0.0)
        in_use = found is not None and found.status is ConfigStatus.APPLIED
        return told if in_use or standing.status in (ConfigStatus.APPLIED, ConfigStatus.DRIFTED) else None

    def _waits_for(self, instance: Instance, link: _Link, desired: Desired) -> str:
        failures = self._cohorts.failures(desired.cohorts)
        if link.held and failures:
            key, reason = next(iter(failures.items()))
            where = self._registry.instances.get(key)
            return f"held back: it failed on {where.name if where else key}: {reason}"
        if link.held:
            return "waits until one of the first instances has proven it"
        if link.capabilities is None:
            return "not heard since the platform started" if instance.last_seen else "not heard yet"
        return "goes out with its next heartbeat"

    def _columns(self, instance_id: str) -> dict[str, Any]:
        standing = self._links[instance_id].standing
        assert standing is not None  # noqa: S101 - only what has one is marked as changed
        return {
            "instance_id": instance_id,
            "config_hash": standing.hash,
            "config": dict(standing.config),
            "applied_config": dict(standing.applied),
            "status": standing.status.value,
            "reason": standing.reason,
            "offered_at": moment(standing.offered_at),
            "reported_at": moment(standing.reported_at),
        }


def instance_labels(instance: Instance) -> dict[str, str]:
    """What selectors see of an instance."""
    agent = instance.agent
    return labels_of(agent.environment_name, agent.agent_type, agent.labels, instance.resource)
