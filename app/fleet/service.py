"""The fleet: what was provisioned, who is out there, and how it is. The one door to this package for routes, pages and commands."""

from __future__ import annotations

import base64
import binascii
import json
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from app.auth.principal import Principal
from app.db.models import AgentRow, EnrolmentTokenRow
from app.db.session import Database
from app.errors import FieldError, InvalidRequestError, NotFoundError
from app.events import catalogue
from app.events.records import EventRecord
from app.events.service import EventService
from app.events.stream import LiveMessage, LiveStream
from app.events.views import Page
from app.fleet import repository
from app.fleet import status as rules
from app.fleet.enrolment import Enrolment
from app.fleet.exchange import Exchange
from app.fleet.registry import Agent, Instance, Registry, moment, sort_key
from app.fleet.views import AgentView, InstanceView, Status
from app.settings import Settings
from connectors.api.agent_store import ProvisionedAgent

FOREIGN_INTERVAL = 60.0
"""Seconds within which an OTLP client that speaks no OpAMP is expected to send something again."""
PODS_PER_TOKEN = 1
"""A kubernetes token's uses are clusters, not pods; a docker or server token's are machines. Either way it is one by default."""


class FleetService:
    """Agents and instances: provisioning, enrolment, heartbeats, status and lists."""

    def __init__(
        self, database: Database, events: EventService, live: LiveStream, settings: Settings, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._events = events
        self._live = live
        self._settings = settings
        self._clock = clock
        self.registry = Registry()
        self.enrolment = Enrolment(database, self.registry, events, clock, settings.heartbeat_interval)
        self.exchange = Exchange(self.registry, self.enrolment, clock, settings.heartbeat_interval)

    async def load(self) -> None:
        """Read the fleet from the database; once, first. Silence before now counts as nobody's fault."""
        async with self._database.read() as session:
            agents, instances = await repository.all_agents(session), await repository.all_instances(session)
        self.registry.load(agents, instances, self._clock(), self._settings.heartbeat_interval)

    async def create_agent(self, agent_type: str, environment_name: str, config: Mapping[str, Any], actor: str) -> ProvisionedAgent:
        """A new agent with an enrolment token; provisioning's store (``connectors.api.agent_store.AgentStore``)."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        row = AgentRow(
            id=str(uuid.uuid4()),
            agent_type=agent_type,
            environment_name=environment_name,
            config=dict(config),
            labels=dict(config.get("labels", {})),
            created_at=now,
        )
        agent = Agent.of(row)
        record = catalogue.make_event(
            catalogue.AGENT_PROVISIONED,
            time_unix_nano=int(self._clock() * 1e9),
            body=f"A {agent_type} agent was provisioned for {environment_name}.",
            attributes={"irca.actor": actor},
            about={"agent_id": agent.id, "agent_type": agent_type, "environment_name": environment_name},
        )
        async with self._database.write() as session:
            session.add(row)
            await session.flush()
            text, token = await self.enrolment.issue_token(session, agent, self._settings.enrolment_token_ttl, PODS_PER_TOKEN)
            await self._events.add(session, record)
        self.registry.add_agent(agent)
        self._events.publish([record])
        self._live.publish(LiveMessage("agent", {"agent_id": agent.id}))
        return ProvisionedAgent(agent.id, text, token.expires_at)

    async def principal(self, text: str) -> Principal:
        """Who sends telemetry with this credential or token.

        Raises:
            UnauthenticatedError: unknown, expired or revoked.
        """
        return await self.enrolment.principal(text)

    async def resolve_instance(self, principal: Principal, resource: Mapping[str, Any]) -> Principal:
        """The principal with its instance found, or enrolled, from the resource that a foreign OTLP client describes.

        Such a client speaks no OpAMP: its telemetry is its heartbeat.
        """
        agent = self.registry.agents[principal.agent_id]
        told = next(
            (str(resource[k]) for k in ("service.instance.id", "host.id", "k8s.pod.uid", "container.id", "host.name") if resource.get(k)),
            "",
        )
        uid = str(uuid.uuid5(uuid.UUID(agent.id), told or str(resource.get("service.name", "unknown"))))
        instance = agent.instances.get(uid)
        if instance is None:
            async with self._database.read() as session:
                token = next((t for t in await repository.tokens_of(session, agent.id) if t.revoked_at is None), None)
            if token is None:
                raise NotFoundError("this agent has no enrolment token left")
            instance = (await self.enrolment.enrol(token, uid, resource, offer_credential=False)).instance
        now = self._clock()
        instance.interval, instance.resource = FOREIGN_INTERVAL, dict(resource)
        instance.version = str(resource.get("service.version", ""))[:64]
        instance.last_seen = instance.heard = now
        instance.healthy, instance.said_goodbye = True, False
        instance.good_beats = rules.GOOD_BEATS_NEEDED
        self.exchange.changed.add(instance)
        return Principal(principal.kind, principal.agent_id, principal.agent_type, principal.environment_name, instance.id)

    async def flush(self) -> int:
        """Write what heartbeats told since the last flush, in one bulk statement; how many instances that were."""
        changed, self.exchange.changed = self.exchange.changed, set()
        if not changed:
            return 0
        try:
            async with self._database.write() as session:
                await repository.save_beats(session, [i.columns() for i in changed])
        except BaseException:
            self.exchange.changed |= changed
            raise
        await self.sweep(changed)
        return len(changed)

    async def sweep(self, instances: set[Instance] | None = None) -> int:
        """Judge the given instances (all of them by default); transitions and their events are written in one transaction."""
        now = self._clock()
        due: list[tuple[Instance, rules.Verdict]] = []
        for instance in self.registry.instances.values() if instances is None else instances:
            verdict = rules.evaluate(instance.facts(), now, instance.status, self._settings.archive_after)
            if verdict.status is not instance.status:
                due.append((instance, verdict))
            else:
                instance.status_reason = verdict.reason
        if due:
            await self._transition(sorted(due, key=lambda d: d[0].id), now)
        for instance in (d[0] for d in due) if instances is None else instances:
            self._live.publish(
                LiveMessage("instance", {"instance_id": instance.id, "agent_id": instance.agent.id, "status": instance.status})
            )
        return len(due)

    async def list_agents(
        self,
        cursor: str | None = None,
        limit: int = 50,
        *,
        status: Status | None = None,
        agent_type: str | None = None,
        environment_name: str | None = None,
        search: str | None = None,
    ) -> Page[AgentView]:
        """Agents that meet all filters, problems first. ``search`` looks in environment, labels and names of instances.

        Raises:
            InvalidRequestError: the cursor is not one of this list.
        """
        chosen = [
            a
            for a in self.registry.agents.values()
            if (status is None or a.status()[0] is status)
            and (agent_type is None or a.agent_type == agent_type)
            and (environment_name is None or a.environment_name == environment_name)
            and (not search or _matches(a, search.lower()))
        ]
        ranked = sorted(((-rules.severity(a.status()[0]), a.environment_name, a.agent_type, a.id), a) for a in chosen)
        after = _decode(cursor, 4)
        ranked = [r for r in ranked if after is None or r[0] > tuple(after)]
        items = [a.view() for _, a in ranked[:limit]]
        return Page[AgentView](items=items, next_cursor=_encode(sort_key(items[-1])) if len(ranked) > limit else None)

    async def get_agent(self, agent_id: str) -> AgentView:
        """One agent.

        Raises:
            NotFoundError: no such agent.
        """
        return self._agent(agent_id).view()

    async def list_instances(
        self, cursor: str | None = None, limit: int = 50, *, agent_id: str | None = None, status: Status | None = None
    ) -> Page[InstanceView]:
        """Instances that meet all filters, problems first.

        Raises:
            InvalidRequestError: the cursor is not one of this list.
        """
        chosen = [
            i
            for i in self.registry.instances.values()
            if (agent_id is None or i.agent.id == agent_id) and (status is None or i.status is status)
        ]
        ranked = sorted((((-rules.severity(i.status), i.name, i.id), i) for i in chosen), key=lambda r: r[0])
        after = _decode(cursor, 3)
        ranked = [r for r in ranked if after is None or r[0] > tuple(after)]
        return Page[InstanceView](
            items=[i.view() for _, i in ranked[:limit]], next_cursor=_encode(ranked[limit - 1][0]) if len(ranked) > limit else None
        )

    async def get_instance(self, instance_id: str) -> InstanceView:
        """One instance.

        Raises:
            NotFoundError: no such instance.
        """
        return self._instance(instance_id).view()

    async def status_counts(self) -> dict[Status, int]:
        """How many agents have each status."""
        counts = dict.fromkeys(Status, 0)
        for agent in self.registry.agents.values():
            counts[agent.status()[0]] += 1
        return counts

    async def list_tokens(self, agent_id: str) -> list[tuple[EnrolmentTokenRow, int]]:
        """An agent's enrolment tokens, newest first, each with how many machines it has enrolled.

        Raises:
            NotFoundError: no such agent.
        """
        self._agent(agent_id)
        async with self._database.read() as session:
            return [(row, await repository.count_uses(session, row.id)) for row in await repository.tokens_of(session, agent_id)]

    async def revoke_credential(self, instance_id: str) -> None:
        """Revoke an instance's credential, at once.

        Raises:
            NotFoundError: no such instance.
        """
        await self.enrolment.revoke_credential(self._instance(instance_id))

    async def _transition(self, due: list[tuple[Instance, rules.Verdict]], now: float) -> None:
        records: list[EventRecord] = []
        async with self._database.write() as session:
            for instance, verdict in due:
                record = _status_event(instance, verdict, now)
                await repository.save_status(session, instance.id, verdict.status.value, verdict.reason, moment(now))
                await self._events.add(session, record)
                records.append(record)
        for instance, verdict in due:
            instance.status, instance.status_reason, instance.status_since = verdict.status, verdict.reason, now
        self._events.publish(records)

    def _agent(self, agent_id: str) -> Agent:
        agent = self.registry.agents.get(agent_id)
        if agent is None:
            raise NotFoundError(f"there is no agent {agent_id}")
        return agent

    def _instance(self, instance_id: str) -> Instance:
        instance = self.registry.instances.get(instance_id)
        if instance is None:
            raise NotFoundError(f"there is no instance {instance_id}")
        return instance


def _status_event(instance: Instance, verdict: rules.Verdict, now: float) -> EventRecord:
    bad = verdict.status in (Status.DEGRADED, Status.OFFLINE)
    body = f"{instance.name} is {verdict.status.value}" + (f": {verdict.reason}" if verdict.reason else "") + "."
    return catalogue.make_event(
        catalogue.INSTANCE_STATUS_CHANGED,
        time_unix_nano=int(now * 1e9),
        body=body,
        severity=catalogue.WARN if bad else catalogue.INFO,
        attributes={
            "irca.status.previous": instance.status.value,
            "irca.status": verdict.status.value,
            "irca.status.reason": verdict.reason,
        },
        about=instance.about(),
    )


def _matches(agent: Agent, needle: str) -> bool:
    texts = [
        agent.environment_name,
        agent.agent_type,
        *(f"{k}={v}" for k, v in agent.labels.items()),
        *(i.name for i in agent.instances.values()),
    ]
    return any(needle in text.lower() for text in texts)


def _encode(key: tuple[Any, ...]) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def _decode(cursor: str | None, length: int) -> list[Any] | None:
    if cursor is None:
        return None
    try:
        key = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if isinstance(key, list) and len(key) == length and isinstance(key[0], int) and all(isinstance(k, str) for k in key[1:]):
            return key
    except (ValueError, binascii.Error):
        pass
    raise InvalidRequestError("the cursor is not valid", errors=[FieldError("cursor", "must be a next_cursor of this list")])
