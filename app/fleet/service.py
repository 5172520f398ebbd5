"""The fleet: what was provisioned, who is out there, and how it is. The one door to this package for routes, pages and commands."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from app.audit.records import SYSTEM, Actor, Target
from app.audit.service import AuditService
from app.auth.principal import Principal
from app.cursors import decode_cursor, encode_cursor
from app.db.models import AgentRow
from app.db.session import Database
from app.errors import NotFoundError, UnauthenticatedError
from app.events import catalogue
from app.events.service import EventService
from app.events.stream import LiveMessage, LiveStream
from app.events.views import Page
from app.fleet import listing, repository
from app.fleet import status as rules
from app.fleet.archive import Archive
from app.fleet.clusters import clusters_of
from app.fleet.deployments import Deployments
from app.fleet.enrolment import Enrolment
from app.fleet.exchange import Exchange
from app.fleet.funnel import FunnelView
from app.fleet.listing import AgentFilter, Sort, everything
from app.fleet.maintenance import MaintenanceService
from app.fleet.news import Change, change_of
from app.fleet.registry import Agent, Instance, Registry
from app.fleet.timeline import HistoryService
from app.fleet.tokens import Tokens
from app.fleet.views import AgentView, ClusterView, FleetOverview, InstanceView, Status
from app.settings import Settings
from connectors.api.agent_store import DEFAULT_TERMS, ProvisionedAgent, TokenTerms

FOREIGN_INTERVAL = 60.0
"""Seconds within which an OTLP client that speaks no OpAMP is expected to send something again."""


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
        self.audit = AuditService(database, clock)
        self.registry = Registry()
        self.deployments = Deployments(database, self.registry, live, clock)
        self.enrolment = Enrolment(database, self.registry, events, self.audit, clock, settings.heartbeat_interval, self.deployments)
        self.tokens = Tokens(database, self.registry, events, self.enrolment, clock)
        self.exchange = Exchange(self.registry, self.enrolment, clock, settings.heartbeat_interval)
        self.maintenance = MaintenanceService(database, self.registry, self.audit, clock)
        self.archive = Archive(database, self.registry, events, self.audit, live, clock)
        self.history = HistoryService(database, self.registry, self.maintenance, settings.events_retention, clock)

    async def load(self) -> None:
        """Read the fleet from the database; once, first. Silence before now counts as nobody's fault."""
        async with self._database.read() as session:
            agents, instances = await repository.all_agents(session), await repository.all_instances(session)
        self.registry.load(agents, instances, self._clock(), self._settings.heartbeat_interval)
        await self.deployments.load()
        await self.maintenance.load()
        self._events.is_muted = self.maintenance.mutes

    async def create_agent(
        self, agent_type: str, environment_name: str, config: Mapping[str, Any], actor: object, token: TokenTerms = DEFAULT_TERMS
    ) -> ProvisionedAgent:
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
            attributes={"irca.actor": str(actor)},
            about={"agent_id": agent.id, "agent_type": agent_type, "environment_name": environment_name},
        )
        async with self._database.write() as session:
            session.add(row)
            await session.flush()
            lifetime = token.lifetime or self._settings.enrolment_token_ttl
            text, issued = await self.enrolment.issue_token(session, agent, lifetime, token.max_uses)
            await self._events.add(session, record)
            who = actor if isinstance(actor, Actor) else Actor("anonymous", "", str(actor))
            after = {"agent_type": agent_type, "config": dict(config), "token_prefix": issued.prefix, "token_max_uses": token.max_uses}
            self.audit.add(session, who, "agent.provision", Target("agent", agent.id, environment_name, environment_name), after=after)
        self.registry.add_agent(agent)
        self._events.publish([record])
        self._live.publish(LiveMessage("agent", {"agent_id": agent.id}))
        return ProvisionedAgent(agent.id, text, issued.expires_at)

    async def principal(self, text: str, client: str = "") -> Principal:
        """Who sends telemetry with this credential or token. A refusal of a ``client`` whose address is told is recorded.

        Raises:
            UnauthenticatedError: unknown, expired or revoked.
            TooManyRequestsError: likewise, and too much was refused from this address.
        """
        try:
            return await self.enrolment.principal(text)
        except UnauthenticatedError as exc:
            if client:
                await self.enrolment.refuse(exc, text, client)
            raise

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
                tokens = [t for t in await repository.tokens_of(session, agent.id) if t.revoked_at is None]
            token = next((t for t in tokens if t.id == principal.token_id), next(iter(tokens), None))
            if token is None:
                raise NotFoundError("this agent has no enrolment token left")
            instance = (await self.enrolment.enrol(token, uid, resource, offer_credential=False)).instance
        now = self._clock()
        instance.interval, instance.resource = FOREIGN_INTERVAL, dict(resource)
        instance.version = str(resource.get("service.version", ""))[:64]
        instance.last_seen = instance.heard = now
        instance.healthy, instance.said_goodbye = True, False
        instance.good_beats = rules.MOST_GOOD_BEATS
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
        self.maintenance.mark()
        due: list[Change] = []
        judged: dict[Instance, rules.Verdict] = {}
        for instance in self.registry.instances.values() if instances is None else instances:
            judged[instance] = rules.evaluate(instance.facts(), now, instance.status, self._settings.archive_after)
        _settle_pods(judged, now)
        for instance, verdict in judged.items():
            instance.passed_on = verdict.silent and verdict.replaced
            change = change_of(instance, verdict, now)
            if change.records:
                due.append(change)
                continue
            change.quiet.keep(instance)
            if verdict.reason or verdict.status is not Status.ARCHIVED:
                instance.status_reason = verdict.reason
        if due:
            await self._transition(sorted(due, key=lambda change: change.instance.id))
        for instance in (change.instance for change in due) if instances is None else instances:
            self._live.publish(
                LiveMessage("instance", {"instance_id": instance.id, "agent_id": instance.agent.id, "status": instance.status})
            )
        return len(due)

    async def list_agents(  # noqa: PLR0913 - one argument for each filter of the API
        self,
        cursor: str | None = None,
        limit: int = 50,
        *,
        status: Status | None = None,
        agent_type: str | None = None,
        environment_name: str | None = None,
        version: str | None = None,
        labels: Sequence[str] = (),
        search: str | None = None,
        sort: Sort = Sort.STATUS,
        descending: bool = False,
        sees: Callable[[str], bool] = everything,
    ) -> Page[AgentView]:
        """Agents that meet all filters (:class:`app.fleet.listing.AgentFilter`), problems first unless ordered otherwise.

        Raises:
            InvalidRequestError: the cursor is not one of this list.
        """
        wanted = AgentFilter(status, agent_type, environment_name, version, tuple(labels), search, sees)
        agents = self.registry.agents.values()
        return listing.list_agents(agents, wanted, sort, descending=descending, cursor=cursor, limit=limit)

    def count_agents(self, wanted: AgentFilter) -> int:
        """How many agents meet a filter."""
        return sum(wanted.accepts(agent) for agent in self.registry.agents.values())

    async def overview(self, sees: Callable[[str], bool] = everything, most: int = 10) -> FleetOverview:
        """The fleet at a glance, of environments that ``sees``; ``most`` entries of each list."""
        return listing.overview(self.registry.agents.values(), sees, self._clock(), most)

    def environment_names(self, sees: Callable[[str], bool]) -> set[str]:
        """The environments of the fleet that ``sees``."""
        return {a.environment_name for a in self.registry.agents.values() if sees(a.environment_name)}

    async def get_agent(self, agent_id: str, *, with_replaced: bool = False) -> AgentView:
        """One agent, with the pods that were replaced if they are asked for.

        Raises:
            NotFoundError: no such agent.
        """
        return self._agent(agent_id).view(with_replaced=with_replaced)

    async def deployment(self, agent_id: str) -> FunnelView:
        """How far the deployment command of an agent has come.

        Raises:
            NotFoundError: no such agent.
        """
        return await self.deployments.funnel(self._agent(agent_id))

    async def list_instances(
        self,
        cursor: str | None = None,
        limit: int = 50,
        *,
        agent_id: str | None = None,
        status: Status | None = None,
        with_replaced: bool = False,
        sees: Callable[[str], bool] = lambda _: True,
    ) -> Page[InstanceView]:
        """Instances that meet all filters, problems first; of environments that ``sees`` only.

        Pods that were replaced are left out unless they or archived instances are asked for.

        Raises:
            InvalidRequestError: the cursor is not one of this list.
        """
        agents = self.registry.agents.values() if agent_id is None else filter(None, [self.registry.agents.get(agent_id)])
        replaced = set().union(*(agent.replaced() for agent in agents))
        left_out = set() if with_replaced or status is Status.ARCHIVED else replaced
        chosen = [
            i
            for i in self.registry.instances.values()
            if sees(i.agent.environment_name)
            and (agent_id is None or i.agent.id == agent_id)
            and (status is None or i.status is status)
            and i.id not in left_out
        ]
        ranked = sorted((((-rules.severity(i.status), i.name, i.id), i) for i in chosen), key=lambda r: r[0])
        after = decode_cursor(cursor, int, str, str)
        ranked = [r for r in ranked if after is None or r[0] > after]
        return Page[InstanceView](
            items=[i.view(replaced=i.id in replaced) for _, i in ranked[:limit]],
            next_cursor=encode_cursor(*ranked[limit - 1][0]) if len(ranked) > limit else None,
        )

    async def get_instance(self, instance_id: str) -> InstanceView:
        """One instance.

        Raises:
            NotFoundError: no such instance.
        """
        instance = self._instance(instance_id)
        return instance.view(replaced=instance.id in instance.agent.replaced())

    async def list_clusters(self, sees: Callable[[str], bool] = lambda _: True) -> list[ClusterView]:
        """The clusters that pods of the fleet run in, problems first; of agents in environments that ``sees`` only."""
        return clusters_of(self.registry.agents.values(), sees)

    async def get_cluster(self, uid: str, sees: Callable[[str], bool] = lambda _: True) -> ClusterView:
        """One cluster, by the UID of its namespace kube-system.

        Raises:
            NotFoundError: no pod runs in such a cluster, or none that may be seen.
        """
        for found in await self.list_clusters(sees):
            if found.uid == uid:
                return found
        raise NotFoundError(f"there is no cluster {uid}")

    def know_nodes(self, agent_id: str, nodes: Iterable[str]) -> None:
        """Keep which nodes an agent's cluster has: a pod that fell silent on one that is gone is not missed."""
        agent = self.registry.agents.get(agent_id)
        names = frozenset(nodes)
        if agent is not None and names:  # a cluster without nodes is one that cannot be read
            agent.nodes = names

    async def status_counts(self, sees: Callable[[str], bool] = lambda _: True) -> dict[Status, int]:
        """How many agents have each status, of those in environments that ``sees``."""
        counts = dict.fromkeys(Status, 0)
        for agent in self.registry.agents.values():
            if sees(agent.environment_name):
                counts[agent.status()[0]] += 1
        return counts

    async def revoke_credential(self, instance_id: str, actor: Actor = SYSTEM) -> None:
        """Revoke an instance's credential, at once.

        Raises:
            NotFoundError: no such instance.
        """
        await self.enrolment.revoke_credential(self._instance(instance_id), actor)

    async def _transition(self, due: list[Change]) -> None:
        async with self._database.write() as session:
            for change in due:
                await repository.save_status(session, change.instance.id, change.columns())
                for record in change.records:
                    await self._events.add(session, record)
        for change in due:
            change.keep()
        self._events.publish([record for change in due for record in change.records])

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


def _settle_pods(judged: dict[Instance, rules.Verdict], now: float) -> None:
    """Let what became of a pod's siblings in the same round count: two that say goodbye together do not replace one another."""
    living: dict[Agent, Counter[str]] = {}
    for instance, verdict in judged.items():
        agent, work = instance.agent, instance.pod().work
        if not agent.has_pods or verdict.status in (Status.PENDING, Status.HEALTHY):
            continue
        if agent not in living:
            living[agent] = Counter(i.pod().work for i in agent.instances.values() if _is_heard(i, judged.get(i)))
        others = living[agent] - Counter([work] if _is_heard(instance, verdict) else [])
        pod = rules.Pod(work, verdict.status)
        judged[instance] = rules.settle(verdict, instance.facts(), now, instance.status, others, pod, agent.nodes)


def _is_heard(instance: Instance, verdict: rules.Verdict | None) -> bool:
    status = instance.status if verdict is None else verdict.status
    return rules.Pod("", status).lives and not (verdict and verdict.silent)
