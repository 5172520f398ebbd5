"""Groups and configurations: the one door to this package for routes, pages and commands."""

from __future__ import annotations

import asyncio
import heapq
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from app.audit.records import Actor, Target
from app.audit.service import AuditService
from app.cursors import decode_cursor, encode_cursor
from app.db.models import ConfigRevisionRow, GroupRow
from app.db.session import Database
from app.errors import ConflictError, FieldError, NotFoundError, PreconditionFailedError
from app.events import catalogue
from app.events.service import EventService
from app.events.views import Page
from app.fleet.registry import Agent, Instance, moment
from app.fleet.service import FleetService
from app.fleet.views import Status
from app.groups import repository
from app.groups.delivery import ConfigDelivery, GroupState, OwnConfig, instance_labels
from app.groups.labels import LabelService
from app.groups.precedence import Change, difference, explain, plain
from app.groups.selectors import Selector
from app.groups.standing import ConfigStatus
from app.groups.validation import check_config, config_class, types_of
from app.groups.views import (
    ChangeView,
    ConfigurationChangeView,
    ConfigurationView,
    GroupView,
    InstanceConfigurationView,
    MemberView,
    OptionView,
    PreviewView,
    RevisionView,
    ScopeKind,
    SourceView,
)

PREVIEWED = 20
"""Members that a preview names."""
_AT_ONCE = 1000
"""Instances that are looked at before others get their turn."""


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """What somebody wants a group to be."""

    name: str
    selector: Selector = field(default_factory=Selector)
    description: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose configuration is meant."""

    kind: ScopeKind
    id: str


class GroupService:
    """Keeps groups and configurations, all current ones in memory with the database as their durable copy."""

    def __init__(
        self, database: Database, events: EventService, audit: AuditService, fleet: FleetService, clock: Callable[[], float]
    ) -> None:
        self._database = database
        self._events = events
        self._audit = audit
        self._fleet = fleet
        self._registry = fleet.registry
        self._clock = clock
        self._lock = asyncio.Lock()
        self.delivery = ConfigDelivery(database, events, fleet.registry, clock)
        self.labels = LabelService(database, audit, fleet, self.delivery.reconfigured)

    async def load(self) -> None:
        """Read everything from the database and begin to offer configurations; once, after the fleet is loaded."""
        async with self._database.read() as session:
            groups = await repository.all_groups(session)
            revisions = await repository.current_revisions(session)
            rows = await repository.all_instances(session)
        self.delivery.groups.update({row.id: _state(row) for row in groups})
        for row in revisions:
            group = self.delivery.groups.get(row.scope_id) if row.scope_kind == "group" else None
            if group is not None:
                group.revision, group.config = row.revision, dict(row.config)
            elif row.scope_kind == "agent":
                self.delivery.own[row.scope_id] = OwnConfig(row.revision, dict(row.config))
        self.delivery.load(rows)
        self._fleet.exchange.remote_configuration = self.delivery.exchange

    # Groups.

    async def list_groups(self, cursor: str | None = None, limit: int = 50, *, search: str | None = None) -> Page[GroupView]:
        """Groups by name; ``search`` looks in names, descriptions and selectors.

        Raises:
            InvalidRequestError: the cursor is not one of this list.
        """
        after, needle = decode_cursor(cursor, str), (search or "").lower()
        chosen = sorted(
            (
                g
                for g in self.delivery.groups.values()
                if (after is None or (g.name,) > after) and needle in f"{g.name}\n{g.description}\n{g.selector}".lower()
            ),
            key=lambda g: g.name,
        )
        await self.delivery.settle()
        counts = Counter(key for one in self._present() for key in self.delivery.desired(one).groups)
        items = [_view(g, counts[g.id]) for g in chosen[:limit]]
        return Page[GroupView](items=items, next_cursor=encode_cursor(items[-1].name) if len(chosen) > limit else None)

    async def get_group(self, group_id: str) -> GroupView:
        """One group.

        Raises:
            NotFoundError: no such group.
        """
        await self.delivery.settle()
        return _view(self._group(group_id), len(self._members(Scope("group", group_id))))

    async def create_group(self, spec: GroupSpec, actor: Actor) -> GroupView:
        """A new group, without configuration.

        Raises:
            ConflictError: the name is taken.
        """
        async with self._lock:
            self._check_name(spec.name, None)
            now = self._moment()
            row = GroupRow(id=str(uuid.uuid4()), version=1, created_at=now, updated_at=now, **_columns(spec))
            async with self._database.write() as session:
                session.add(row)
                self._audit.add(session, actor, "group.create", Target("group", row.id, row.name), after=_columns(spec))
            self.delivery.groups[row.id] = _state(row)
            self.delivery.changed()
        return await self.get_group(row.id)

    async def update_group(self, group_id: str, spec: GroupSpec, actor: Actor, version: int | None = None) -> GroupView:
        """Change a group.

        Raises:
            NotFoundError: no such group.
            PreconditionFailedError: it is not at ``version`` any more.
            ConflictError: the name is taken.
            InvalidRequestError: its configuration is not for the types that the selector selects now.
        """
        async with self._lock:
            group = self._group(group_id)
            _expect(group.version, version)
            self._check_name(spec.name, group_id)
            check_config(group.config, types_of(spec.selector))
            values = {**_columns(spec), "version": group.version + 1, "updated_at": self._moment()}
            before = _columns(GroupSpec(group.name, group.selector, group.description, group.priority))
            async with self._database.write() as session:
                await repository.change_group(session, group_id, values)
                self._audit.add(session, actor, "group.update", Target("group", group_id, spec.name), before=before, after=_columns(spec))
            self.delivery.groups[group_id] = replace(
                group,
                name=spec.name,
                description=spec.description,
                selector=spec.selector,
                priority=spec.priority,
                version=values["version"],
                updated_at=values["updated_at"],
            )
            self.delivery.changed()
        return await self.get_group(group_id)

    async def delete_group(self, group_id: str, actor: Actor, version: int | None = None) -> None:
        """Delete a group with its configuration, which its members give up.

        Raises:
            NotFoundError: no such group.
            PreconditionFailedError: it is not at ``version`` any more.
        """
        async with self._lock:
            group = self._group(group_id)
            _expect(group.version, version)
            before = {**_columns(GroupSpec(group.name, group.selector, group.description, group.priority)), "config": group.config}
            async with self._database.write() as session:
                await repository.delete_group(session, group_id)
                self._audit.add(session, actor, "group.delete", Target("group", group_id, group.name), before=before)
            self.delivery.groups.pop(group_id, None)
            self.delivery.changed()

    async def preview(self, selector: Selector) -> PreviewView:
        """Whom a selector selects."""
        found: list[Instance] = []
        for place, one in enumerate(self._present(), 1):
            if selector.matches(instance_labels(one)):
                found.append(one)
            if place % _AT_ONCE == 0:
                await asyncio.sleep(0)
        members = [self._member(i) for i in heapq.nsmallest(PREVIEWED, found, key=_order)]
        return PreviewView(selector=selector, selector_text=str(selector), instances=len(found), members=members)

    async def list_members(
        self, scope: Scope, cursor: str | None = None, limit: int = 50, *, status: ConfigStatus | None = None
    ) -> Page[MemberView]:
        """The instances that a configuration reaches and how it fares there, by environment and name.

        Raises:
            NotFoundError: no such group or agent.
            InvalidRequestError: the cursor is not one of this list.
        """
        after = decode_cursor(cursor, str, str, str)
        await self.delivery.settle()
        wanted = (i for i in self._members(scope) if status is None or self.delivery.standing(i)[0] is status)
        chosen = heapq.nsmallest(limit + 1, (i for i in wanted if after is None or _order(i) > after), key=_order)
        items = [self._member(i) for i in chosen[:limit]]
        return Page[MemberView](items=items, next_cursor=encode_cursor(*_order(chosen[limit - 1])) if len(chosen) > limit else None)

    async def status_counts(self, scope: Scope) -> dict[ConfigStatus, int]:
        """How many of the instances that a configuration reaches are in each status.

        Raises:
            NotFoundError: no such group or agent.
        """
        await self.delivery.settle()
        return dict(Counter(self.delivery.standing(i)[0] for i in self._members(scope)))

    # Configurations.

    async def configuration(self, scope: Scope) -> ConfigurationView:
        """The current configuration of a group or agent.

        Raises:
            NotFoundError: no such group or agent.
        """
        name, revision, config = self._current(scope)
        types = list(self._types(scope))
        return ConfigurationView(scope_kind=scope.kind, scope_id=scope.id, name=name, agent_types=types, revision=revision, config=config)

    async def configure(
        self,
        scope: Scope,
        config: Mapping[str, Any],
        actor: Actor,
        *,
        comment: str = "",
        revision: int | None = None,
        dry_run: bool = False,
        reverted_to: int | None = None,
    ) -> ConfigurationChangeView:
        """Change the configuration of a group or agent to ``config``, or with ``dry_run`` only say what that would change.

        Raises:
            NotFoundError: no such group or agent.
            PreconditionFailedError: it is not at ``revision`` any more.
            InvalidRequestError: an option is not valid for a type that the scope is for; every refused one is named.
        """
        async with self._lock:
            name, current, before = self._current(scope)
            _expect(current, revision)
            wanted: dict[str, Any] = plain(dict(config))
            check_config(wanted, self._types(scope))
            changes = difference(before, wanted)
            if changes and not dry_run:
                await self._store(scope, name, current + 1, wanted, before, changes, actor, comment, reverted_to)
        view = await self.configuration(scope)
        await self.delivery.settle()
        shown = view.model_copy(update={"config": wanted})
        return ConfigurationChangeView(
            **shown.model_dump(),
            dry_run=dry_run,
            changes=[ChangeView.of(change) for change in changes],
            instances=len(self._members(scope)),
        )

    async def revert(self, scope: Scope, revision: int, actor: Actor, *, expected: int | None = None) -> ConfigurationChangeView:
        """Give a group or agent the configuration again that it had at ``revision``; 0 is the time before the first.

        Raises:
            NotFoundError: no such group, agent or revision.
            PreconditionFailedError: it is not at revision ``expected`` any more.
            InvalidRequestError: that configuration is not valid any more.
        """
        self._current(scope)
        config: Mapping[str, Any] = {}
        if revision:
            async with self._database.read() as session:
                row = await repository.find_revision(session, scope.kind, scope.id, revision)
            if row is None:
                raise NotFoundError(f"this configuration has no revision {revision}")
            config = row.config
        comment = f"Back to revision {revision}."
        return await self.configure(scope, config, actor, comment=comment, revision=expected, reverted_to=revision)

    async def history(self, scope: Scope, cursor: str | None = None, limit: int = 50) -> Page[RevisionView]:
        """The revisions of a configuration, newest first.

        Raises:
            NotFoundError: no such group or agent.
            InvalidRequestError: the cursor is not one of this list.
        """
        self._current(scope)
        before = decode_cursor(cursor, int)
        async with self._database.read() as session:
            rows = await repository.revisions(session, scope.kind, scope.id, before[0] if before else None, limit + 1)
        items = [RevisionView.model_validate(row, from_attributes=True) for row in rows[:limit]]
        return Page[RevisionView](items=items, next_cursor=encode_cursor(items[-1].revision) if len(rows) > limit else None)

    async def explain(self, instance_id: str) -> InstanceConfigurationView:
        """Why an instance has the values that it has.

        Raises:
            NotFoundError: no such instance.
        """
        instance = self._registry.instances.get(instance_id)
        if instance is None:
            raise NotFoundError(f"there is no instance {instance_id}")
        desired = self.delivery.desired(instance)
        status, reason, standing = self.delivery.standing(instance)
        settled = status in (ConfigStatus.APPLIED, ConfigStatus.DRIFTED, ConfigStatus.NONE)
        undelivered = "" if settled else f"{status.value}: {reason}" if reason else status.value
        cls = config_class(instance.agent.agent_type)
        options = explain(
            {} if cls is None else cls.options(),
            instance.agent.config,
            desired.layers,
            instance.effective_config,
            undelivered,
            standing.applied if standing else {},
        )
        layers = [self.delivery.groups[key].layer.source for key in reversed(desired.groups)]
        return InstanceConfigurationView(
            **self._member(instance).model_dump(),
            config=dict(desired.config),
            config_hash=desired.hash.hex(),
            offered_at=moment(standing.offered_at) if standing else None,
            reported_at=moment(standing.reported_at) if standing else None,
            groups=[SourceView.of(source) for source in layers],
            options=[OptionView.of(one) for one in options],
        )

    async def _store(  # noqa: PLR0913, PLR0917 - one act, told apart so that the lock's block stays readable
        self,
        scope: Scope,
        name: str,
        revision: int,
        config: dict[str, Any],
        before: Mapping[str, Any],
        changes: Sequence[Change],
        actor: Actor,
        comment: str,
        reverted_to: int | None,
    ) -> None:
        agent = self._registry.agents.get(scope.id) if scope.kind == "agent" else None
        about = {} if agent is None else {"agent_id": agent.id, "agent_type": agent.agent_type, "environment_name": agent.environment_name}
        attributes: dict[str, Any] = {
            "irca.config.scope": scope.kind,
            "irca.config.scope_id": scope.id,
            "irca.config.revision": revision,
            "irca.config.keys": [change.key for change in changes],
            "irca.actor": actor.name,
        }
        kind, verb = catalogue.CONFIG_CHANGED, "was changed"
        if reverted_to is not None:
            kind, verb = catalogue.CONFIG_REVERTED, f"was set back to revision {reverted_to}"
            attributes["irca.config.reverted_to"] = reverted_to
        record = catalogue.make_event(
            kind,
            time_unix_nano=int(self._clock() * 1e9),
            body=f"The configuration of {scope.kind} {name} {verb}: {', '.join(change.key for change in changes)}.",
            attributes=attributes,
            about=about,
        )
        row = ConfigRevisionRow(
            scope_kind=scope.kind,
            scope_id=scope.id,
            revision=revision,
            config=config,
            comment=comment,
            actor=actor.name[:255],
            created_at=self._moment(),
        )
        target = Target(scope.kind, scope.id, name, agent.environment_name if agent else None)
        verb = "configure" if reverted_to is None else "revert"
        async with self._database.write() as session:
            session.add(row)
            await self._events.add(session, record)
            self._audit.add(session, actor, f"{scope.kind}.{verb}", target, before=before, after=config, reason=comment)
        if scope.kind == "group":
            self.delivery.groups[scope.id].revision, self.delivery.groups[scope.id].config = revision, config
        else:
            self.delivery.own[scope.id] = OwnConfig(revision, config)
        self.delivery.reconfigured()
        self._events.publish([record])

    def _current(self, scope: Scope) -> tuple[str, int, dict[str, Any]]:
        if scope.kind == "group":
            group = self._group(scope.id)
            return group.name, group.revision, group.config
        agent, own = self._agent(scope.id), self.delivery.own.get(scope.id) or OwnConfig()
        return agent.environment_name, own.revision, own.config

    def _types(self, scope: Scope) -> tuple[str, ...]:
        return types_of(self._group(scope.id).selector) if scope.kind == "group" else (self._agent(scope.id).agent_type,)

    def _members(self, scope: Scope) -> list[Instance]:
        if scope.kind == "agent":
            agent = self._agent(scope.id)
            replaced = agent.replaced()
            return [i for i in agent.instances.values() if i.status is not Status.ARCHIVED and i.id not in replaced]
        group_id = self._group(scope.id).id
        return [i for i in self._present() if group_id in self.delivery.desired(i).groups]

    def _present(self) -> list[Instance]:
        return [i for i in self._registry.instances.values() if i.status is not Status.ARCHIVED]

    def _member(self, instance: Instance) -> MemberView:
        status, reason, _ = self.delivery.standing(instance)
        return MemberView(
            instance_id=instance.id,
            name=instance.name,
            agent_id=instance.agent.id,
            agent_type=instance.agent.agent_type,
            environment_name=instance.agent.environment_name,
            status=status,
            reason=reason,
        )

    def _group(self, group_id: str) -> GroupState:
        group = self.delivery.groups.get(group_id)
        if group is None:
            raise NotFoundError(f"there is no group {group_id}")
        return group

    def _agent(self, agent_id: str) -> Agent:
        agent = self._registry.agents.get(agent_id)
        if agent is None:
            raise NotFoundError(f"there is no agent {agent_id}")
        return agent

    def _check_name(self, name: str, own_id: str | None) -> None:
        if any(g.name == name and g.id != own_id for g in self.delivery.groups.values()):
            raise ConflictError("the name is taken", errors=[FieldError("name", "there is a group of this name already")])

    def _moment(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def _state(row: GroupRow) -> GroupState:
    return GroupState(
        id=row.id,
        name=row.name,
        description=row.description,
        selector=Selector.model_validate(row.selector),
        priority=row.priority,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _columns(spec: GroupSpec) -> dict[str, Any]:
    return {"name": spec.name, "description": spec.description, "selector": spec.selector.document(), "priority": spec.priority}


def _view(group: GroupState, instances: int) -> GroupView:
    return GroupView(
        id=group.id,
        name=group.name,
        description=group.description,
        selector=group.selector,
        selector_text=str(group.selector),
        priority=group.priority,
        version=group.version,
        revision=group.revision,
        options=sorted(group.config),
        instances=instances,
        created_at=group.created_at,
        updated_at=group.updated_at,
    )


def _expect(current: int, wanted: int | None) -> None:
    if wanted is not None and wanted != current:
        raise PreconditionFailedError(f"it is at {current} by now, and the change was made from {wanted}: read it again")


def _order(instance: Instance) -> tuple[str, str, str]:
    return (instance.agent.environment_name, instance.name, instance.id)
