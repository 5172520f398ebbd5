"""The steps of deployments: told by installers, seen by the platform, kept for the funnel.

The platform sees two of them itself. An enrolment writes its step in its own transaction. That an instance's first metrics have arrived
is noticed on the ingest path, which costs a look at an empty dictionary once nobody is awaited; it is written down by a background job.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import DeploymentStepRow
from app.db.session import Database
from app.errors import TooManyRequestsError
from app.events.stream import LiveMessage, LiveStream
from app.fleet.funnel import DeploymentStep, FunnelView, ToldStep, funnel
from app.fleet.registry import Agent, Instance, Registry
from connectors.core.redaction import redact

BURST, REFILL = 30.0, 2.0
"""Steps that one agent may tell at once, and the seconds after which it may tell one more."""
TOLD = (DeploymentStep.DOWNLOADED, DeploymentStep.INSTALLED, DeploymentStep.FAILED)
"""Steps that installers tell; the others are the platform's to see."""
MOST_STEPS = 300
"""Steps told by installers that are kept of an agent: the newest ones."""
NEARLY_AT_ONCE = 60.0
"""Seconds between the step of an enrolment and the instance's own first moment, at most; its host may have been renamed since."""
MOST_AT_ONCE = 1000
"""First metrics that are written down in one transaction."""
LONGEST_REASON = 1000
ENROLLED, FIRST_METRIC = DeploymentStep.ENROLLED, DeploymentStep.FIRST_METRIC


class Deployments:
    """Keeps and tells how far deployments have come."""

    def __init__(self, database: Database, registry: Registry, live: LiveStream, clock: Callable[[], float]) -> None:
        self._database = database
        self._registry = registry
        self._live = live
        self._clock = clock
        self._allowance: dict[str, tuple[float, float]] = {}
        self._changed: set[str] = set()
        self._seen: set[tuple[str, str, str]] = set()
        self.awaited: dict[str, float] = {}
        """Instances whose first metrics have not been seen, by id; the ingest path puts the time in the place of 0 when they come."""

    async def load(self) -> None:
        """Find out whose first metrics are still to come; once, after the fleet was loaded."""
        async with self._database.read() as session:
            query = select(DeploymentStepRow.agent_id, DeploymentStepRow.host, DeploymentStepRow.step)
            rows = await session.execute(query.where(DeploymentStepRow.step.in_([ENROLLED, FIRST_METRIC])))
            self._seen = {(agent_id, host, step) for agent_id, host, step in rows}
        for instance in self._registry.instances.values():
            place = instance.agent.id, _host(instance, instance.resource)
            if (*place, ENROLLED) in self._seen and (*place, FIRST_METRIC) not in self._seen:
                self.awaited[instance.id] = 0.0

    async def tell(self, agent_id: str, step: DeploymentStep, *, host: str, check: str, reason: str, client: str) -> None:
        """Keep what an installer tells; texts are shortened, and what looks secret is taken out of them.

        Raises:
            TooManyRequestsError: this agent's installers tell more than :data:`BURST` steps at once.
            StorageError: nothing was kept.
        """
        self._spend(agent_id)
        now = datetime.fromtimestamp(self._clock(), UTC)
        row = _row(agent_id, step, _plain(host, 255), now, check=_plain(check, 100), reason=_plain(redact(reason), LONGEST_REASON))
        row.client_address = client[:64]
        async with self._database.write() as session:
            session.add(row)
            await session.flush()
            await _prune(session, agent_id)
        self._live.publish(LiveMessage("agent", {"agent_id": agent_id}))

    def enrolled(self, session: AsyncSession, instance: Instance, resource: Mapping[str, Any]) -> None:
        """Keep, in the transaction of its enrolment, that ``instance`` has enrolled from what ``resource`` describes.

        The first time on a host counts, and of a cluster's pods the first one.
        """
        if row := self._first(instance, ENROLLED, _host(instance, resource), self._clock()):
            session.add(row)
            self.awaited[instance.id] = 0.0

    async def flush(self) -> int:
        """Write down whose first metrics have arrived, and tell the live stream what has changed; how many steps were written."""
        arrived = dict(islice(((key, time) for key, time in self.awaited.items() if time), MOST_AT_ONCE))
        instances = [(self._registry.instances.get(key), time) for key, time in arrived.items()]
        rows = [self._first(i, FIRST_METRIC, _host(i, i.resource), time) for i, time in instances if i is not None]
        written = [row for row in rows if row is not None]
        if written:
            async with self._database.write() as session:
                session.add_all(written)
        for key in arrived:
            self.awaited.pop(key, None)
        changed, self._changed = self._changed, set()
        for agent_id in changed:
            self._live.publish(LiveMessage("agent", {"agent_id": agent_id}))
        return len(written)

    async def funnel(self, agent: Agent) -> FunnelView:
        """How far the agent's deployment command has come. Instances from before steps were kept count as enrolled.

        Raises:
            StorageError: the database failed.
        """
        query = select(DeploymentStepRow).where(DeploymentStepRow.agent_id == agent.id).order_by(DeploymentStepRow.time)
        async with self._database.read() as session:
            rows = (await session.scalars(query)).all()
        told = [ToldStep(DeploymentStep(row.step), row.host, row.time, row.check, row.reason) for row in rows]
        seen = [one.time.timestamp() for one in told if one.step is ENROLLED]
        for instance in agent.instances.values():
            if not any(abs(time - instance.first_seen) < NEARLY_AT_ONCE for time in seen) and not (agent.has_pods and seen):
                first_seen = datetime.fromtimestamp(instance.first_seen, UTC)
                told.append(ToldStep(ENROLLED, _host(instance, instance.resource), first_seen))
        return funnel(agent.id, agent.agent_type, agent.created_at, told)

    def _first(self, instance: Instance, step: DeploymentStep, host: str, time: float) -> DeploymentStepRow | None:
        """A row for a step that the platform saw; None where this is not the first time on the host."""
        seen = instance.agent.id, host, step.value
        if seen in self._seen:
            return None
        self._seen.add(seen)
        self._changed.add(instance.agent.id)
        return _row(instance.agent.id, step, host, datetime.fromtimestamp(time, UTC))

    def _spend(self, agent_id: str) -> None:
        now = self._clock()
        left, at = self._allowance.get(agent_id, (BURST, now))
        left = min(BURST, left + max(0.0, now - at) / REFILL)
        if left < 1:
            raise TooManyRequestsError("this agent's installers tell too much at once", retry_after=REFILL)
        self._allowance[agent_id] = (left - 1, now)


def _row(agent_id: str, step: DeploymentStep, host: str, time: datetime, *, check: str = "", reason: str = "") -> DeploymentStepRow:
    return DeploymentStepRow(
        id=str(uuid.uuid4()), agent_id=agent_id, step=step.value, host=host, check=check, reason=reason, client_address="", time=time
    )


async def _prune(session: AsyncSession, agent_id: str) -> None:
    """Drop what installers told beyond the newest steps; what the platform saw itself is one step of each kind for each host."""
    table = DeploymentStepRow
    told = (table.agent_id == agent_id, table.step.in_([step.value for step in TOLD]))
    kept = select(table.id).where(*told).order_by(table.time.desc(), table.id).limit(MOST_STEPS)
    await session.execute(delete(table).where(*told, table.id.not_in(kept)))


def _host(instance: Instance, resource: Mapping[str, Any]) -> str:
    """What the funnel calls the place of an instance: a pod's cluster, otherwise what installers call it, the host's name."""
    if instance.agent.has_pods:
        named = resource.get("k8s.cluster.name") or resource.get("k8s.cluster.uid") or ""
    else:
        named = resource.get("host.name") or instance.name
    return str(named)[:255]


def _plain(text: str, longest: int) -> str:
    """One line of at most ``longest`` characters."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return words if len(words) <= longest else words[: longest - 1] + "…"
