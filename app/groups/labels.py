"""Acts on agents, one or several at a time: their labels, which selectors look at, and their instances' credentials."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from app.audit.records import Actor, Target
from app.audit.service import AuditService
from app.db.session import Database
from app.errors import NotFoundError
from app.fleet.registry import Agent
from app.fleet.service import FleetService
from app.fleet.views import AgentView
from app.groups import repository
from app.groups.selectors import check_labels
from app.groups.views import BulkView


class LabelService:
    """Changes what agents are known by. ``changed`` is told when labels have."""

    def __init__(self, database: Database, audit: AuditService, fleet: FleetService, changed: Callable[[], None]) -> None:
        self._database = database
        self._audit = audit
        self._fleet = fleet
        self._changed = changed
        self._lock = asyncio.Lock()

    async def set_labels(self, agent_id: str, changes: Mapping[str, str | None], actor: Actor) -> AgentView:
        """Set labels of an agent, and remove those whose value is None.

        Raises:
            NotFoundError: no such agent.
            InvalidRequestError: a label is not usable; each refused one is named.
        """
        await self._label([self._agent(agent_id)], changes, actor)
        return await self._fleet.get_agent(agent_id)

    async def label_agents(self, agent_ids: Sequence[str], changes: Mapping[str, str | None], actor: Actor) -> BulkView:
        """Set and remove labels of several agents: of all, or of none.

        Raises:
            NotFoundError: one of the agents does not exist.
            InvalidRequestError: as :meth:`set_labels`.
        """
        return BulkView(agents=await self._label([self._agent(key) for key in dict.fromkeys(agent_ids)], changes, actor), instances=0)

    async def revoke_agents(self, agent_ids: Sequence[str], actor: Actor) -> BulkView:
        """Revoke the credentials of every instance of several agents, at once.

        Raises:
            NotFoundError: one of the agents does not exist; nothing was revoked.
        """
        agents = [self._agent(key) for key in dict.fromkeys(agent_ids)]
        instances = [i for agent in agents for i in agent.instances.values() if i.credential_hash or i.candidate_hash]
        if instances:
            await self._fleet.enrolment.revoke_credentials(instances, actor)
        return BulkView(agents=len({i.agent.id for i in instances}), instances=len(instances))

    async def _label(self, agents: Sequence[Agent], changes: Mapping[str, str | None], actor: Actor) -> int:
        async with self._lock:
            wanted: list[tuple[Agent, dict[str, str]]] = []
            for agent in agents:
                labels = {key: value for key, value in {**agent.labels, **changes}.items() if value is not None}
                check_labels({key: value for key, value in labels.items() if agent.labels.get(key) != value})
                if labels != agent.labels:
                    wanted.append((agent, labels))
            async with self._database.write() as session:
                await repository.save_labels(session, {agent.id: labels for agent, labels in wanted})
                for agent, labels in wanted:
                    target = Target("agent", agent.id, agent.environment_name, agent.environment_name)
                    self._audit.add(session, actor, "agent.label", target, before={"labels": agent.labels}, after={"labels": labels})
            for agent, labels in wanted:
                agent.labels = labels
            self._changed()
        return len(wanted)

    def _agent(self, agent_id: str) -> Agent:
        agent = self._fleet.registry.agents.get(agent_id)
        if agent is None:
            raise NotFoundError(f"there is no agent {agent_id}")
        return agent
