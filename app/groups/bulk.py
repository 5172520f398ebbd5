"""One act on many agents or instances: planned first, told for every one of them, then done in one transaction.

Each target has its own entry in the audit log, with the action that doing it singly has: the log of a target stays whole. A maintenance
window is one act and has one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, Field

from app.audit.records import Actor
from app.auth.service import Identity
from app.errors import FieldError, InvalidRequestError
from app.fleet.archive import not_to_archive, not_to_revive
from app.fleet.listing import AgentFilter
from app.fleet.maintenance import MaintenanceSelector, WindowSpec
from app.fleet.registry import Agent, Instance, Registry
from app.fleet.service import FleetService
from app.fleet.views import Status
from app.groups.labels import LabelService
from app.groups.selectors import MAX_LABELS, check_labels

MOST_IN_WINDOW = 500
"""Agents that one maintenance window may name."""
MOST_ENVIRONMENTS = 100
"""Environments that one may name, as one of a key that is limited to some must."""
ITEMS_TOLD = 1000
"""Targets that an answer names; it counts all of them."""


class Act(StrEnum):
    """What can be done to many at a time."""

    ARCHIVE = "archive"
    REVIVE = "revive"
    ADD_LABEL = "add-label"
    REMOVE_LABEL = "remove-label"
    REVOKE_CREDENTIALS = "revoke-credentials"
    MAINTENANCE = "maintenance"

    @property
    def of_instances(self) -> bool:
        """Whether it is done to instances rather than to agents."""
        return self in (Act.ARCHIVE, Act.REVIVE, Act.REVOKE_CREDENTIALS)


class Outcome(StrEnum):
    """What becomes of one target; in the order in which they are listed."""

    REFUSED = "refused"
    DONE = "done"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Selection:
    """Whom an act is meant for: agents by id, instances by id, or the agents that a filter lets pass. One of the three is given."""

    agent_ids: Sequence[str] = ()
    instance_ids: Sequence[str] = ()
    matching: AgentFilter | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """An act with what it needs: a label, or a window's reason and length in seconds. Instances' acts need nothing."""

    act: Act
    label: str = ""
    reason: str = ""
    duration: float = 0.0

    @property
    def label_parts(self) -> tuple[str, str]:
        """Name and value of the label; the value is empty where there is none."""
        key, _, value = self.label.partition("=")
        return key.strip(), value.strip()


class BulkItem(BaseModel):
    """What becomes of one target of an act, or would."""

    kind: str = Field(description="agent or instance.")
    id: str
    name: str = Field(description="Of an instance its name, of an agent its environment's.")
    environment_name: str
    agent_id: str
    outcome: Outcome = Field(description="done (or would be), refused, or unchanged because it is so already.")
    reason: str = Field(description="Why it is refused or unchanged; empty for done.")


class BulkResult(BaseModel):
    """What an act on several agents or instances did, or would do."""

    act: Act
    dry_run: bool = Field(description="Whether nothing was done and this is what would be.")
    done: int = Field(description="Targets to which it was done, or would be.")
    refused: int = Field(description="Targets to which it cannot be done.")
    unchanged: int = Field(description="Targets that are so already.")
    items: list[BulkItem] = Field(description=f"What became of each, refusals first; the first {ITEMS_TOLD}.")
    maintenance_window_id: str | None = Field(None, description="The window that was made.")


@dataclass(frozen=True, slots=True)
class Plan:
    """An act, thought through. ``agents`` and ``instances`` are those to which it is done."""

    work: Work
    items: Sequence[BulkItem]
    agents: Sequence[Agent]
    instances: Sequence[Instance]

    def count(self, outcome: Outcome) -> int:
        """How many targets have this outcome."""
        return sum(item.outcome is outcome for item in self.items)

    @property
    def mark(self) -> str:
        """A short text that is the same for the same act on the same targets: what was confirmed."""
        done = sorted(item.id for item in self.items if item.outcome is Outcome.DONE)
        return hashlib.sha256("\n".join([self.work.act, self.work.label, *done]).encode()).hexdigest()[:24]

    def result(self, *, dry_run: bool, window_id: str | None = None) -> BulkResult:
        """The plan as it is answered."""
        counts = {outcome: self.count(outcome) for outcome in Outcome}
        return BulkResult(
            act=self.work.act,
            dry_run=dry_run,
            done=counts[Outcome.DONE],
            refused=counts[Outcome.REFUSED],
            unchanged=counts[Outcome.UNCHANGED],
            items=list(self.items[:ITEMS_TOLD]),
            maintenance_window_id=window_id,
        )


def check_work(work: Work) -> None:
    """Do nothing, or refuse an act whose label no agent can have.

    Raises:
        InvalidRequestError: the label is not usable.
    """
    key, value = work.label_parts
    if work.act is Act.ADD_LABEL:
        if "=" not in work.label or not key:
            raise InvalidRequestError("the label is not valid", errors=[FieldError("label", "must look like team=payments")])
        check_labels({key: value})
    elif work.act is Act.REMOVE_LABEL and not key:
        raise InvalidRequestError("the label is not valid", errors=[FieldError("label", "must name the label to remove, such as team")])


def plan(work: Work, selection: Selection, registry: Registry, sees: Callable[[str], bool]) -> Plan:
    """What an act would do to each of the selected that ``sees`` lets pass; what is not there or not seen is refused by its id.

    Raises:
        InvalidRequestError: nothing is selected, or instances for an act on agents, or too many for one window; or as :func:`check_work`.
    """
    check_work(work)
    given = sum((bool(selection.agent_ids), bool(selection.instance_ids), selection.matching is not None))
    if given != 1:
        raise InvalidRequestError(
            "the request is not valid", errors=[FieldError("agent_ids", "give either agent_ids, instance_ids or a filter, and not none")]
        )
    if selection.instance_ids and not work.act.of_instances:
        raise InvalidRequestError(
            "the request is not valid", errors=[FieldError("instance_ids", f"{work.act} is done to agents: give agent_ids or a filter")]
        )
    agents, instances, items = _selected(selection, registry, sees)
    chosen: list[Agent] = []
    meant: list[Instance] = []
    if work.act.of_instances:
        for instance, replaced in _with_replaced(instances if selection.instance_ids else _all_of(agents)):
            outcome, reason = _instance_outcome(work.act, instance, replaced)
            items.append(_item("instance", instance.id, instance.name, instance.agent, outcome, reason))
            if outcome is Outcome.DONE:
                meant.append(instance)
    else:
        for agent in agents:
            outcome, reason = _agent_outcome(work, agent)
            items.append(_item("agent", agent.id, agent.environment_name, agent, outcome, reason))
            if outcome is Outcome.DONE:
                chosen.append(agent)
    if work.act is Act.MAINTENANCE and len(chosen) > MOST_IN_WINDOW:
        raise InvalidRequestError(
            f"one maintenance window names at most {MOST_IN_WINDOW} agents, and {len(chosen)} are selected: "
            "make one for their environments or labels",
            errors=[FieldError("act", f"must be of at most {MOST_IN_WINDOW} agents")],
        )
    order = list(Outcome)
    return Plan(work, sorted(items, key=lambda i: (order.index(i.outcome), i.environment_name, i.name, i.id)), chosen, meant)


class BulkService:
    """Does to many what can be done to one."""

    def __init__(self, fleet: FleetService, labels: LabelService) -> None:
        self._fleet = fleet
        self._labels = labels
        self._lock = asyncio.Lock()

    def plan(self, work: Work, selection: Selection, identity: Identity) -> Plan:
        """What would be done, for somebody who sees what ``identity`` sees.

        Raises:
            InvalidRequestError: the act or the selection is not usable.
        """
        return plan(work, selection, self._fleet.registry, identity.sees)

    async def perform(self, work: Work, selection: Selection, actor: Actor, identity: Identity) -> BulkResult:
        """Do it to those for which it can be done; what became of each target.

        Raises:
            InvalidRequestError: the act or the selection is not usable.
            ForbiddenError: a maintenance window would reach beyond the environments that ``identity`` is for.
            StorageError: nothing was done.
        """
        async with self._lock:
            planned = self.plan(work, selection, identity)
            window_id = await self._do(planned, actor, identity)
        return planned.result(dry_run=False, window_id=window_id)

    async def _do(self, planned: Plan, actor: Actor, identity: Identity) -> str | None:
        work = planned.work
        if work.act is Act.MAINTENANCE:
            return await self._mute(planned, actor, identity) if planned.agents else None
        if planned.instances and work.act is Act.ARCHIVE:
            await self._fleet.archive.put_all(planned.instances, actor)
        elif planned.instances and work.act is Act.REVIVE:
            await self._fleet.archive.revive_all(planned.instances, actor)
        elif planned.instances:
            await self._fleet.enrolment.revoke_credentials(planned.instances, actor)
        elif planned.agents:
            key, value = work.label_parts
            changes = {key: value if work.act is Act.ADD_LABEL else None}
            await self._labels.label_agents([agent.id for agent in planned.agents], changes, actor)
        return None

    async def _mute(self, planned: Plan, actor: Actor, identity: Identity) -> str:
        names = sorted({agent.environment_name for agent in planned.agents})
        environments = [] if identity.everywhere or len(names) > MOST_ENVIRONMENTS else names
        selector = MaintenanceSelector(environments=environments, agent_ids=[agent.id for agent in planned.agents])
        spec = WindowSpec(planned.work.reason, selector, planned.work.duration)
        return (await self._fleet.maintenance.create(spec, actor, identity)).id


def _selected(selection: Selection, registry: Registry, sees: Callable[[str], bool]) -> tuple[list[Agent], list[Instance], list[BulkItem]]:
    """The agents and instances that are meant, and an item for each id that names none."""
    agents: list[Agent] = []
    instances: list[Instance] = []
    missing: list[BulkItem] = []
    if selection.matching is not None:
        agents = [agent for agent in registry.agents.values() if sees(agent.environment_name) and selection.matching.accepts(agent)]
    for key in dict.fromkeys(selection.agent_ids):
        agent = registry.agents.get(key)
        if agent is not None and sees(agent.environment_name):
            agents.append(agent)
        else:
            missing.append(_missing("agent", key))
    for key in dict.fromkeys(selection.instance_ids):
        instance = registry.instances.get(key)
        if instance is not None and sees(instance.agent.environment_name):
            instances.append(instance)
        else:
            missing.append(_missing("instance", key))
    return agents, instances, missing


def _all_of(agents: Iterable[Agent]) -> Iterator[Instance]:
    return (instance for agent in agents for instance in agent.instances.values())


def _with_replaced(instances: Iterable[Instance]) -> Iterator[tuple[Instance, Collection[str]]]:
    """Instances, each with the replaced pods of its agent, which are found once an agent."""
    found: dict[str, set[str]] = {}
    for instance in instances:
        if instance.agent.id not in found:
            found[instance.agent.id] = instance.agent.replaced()
        yield instance, found[instance.agent.id]


def _instance_outcome(act: Act, instance: Instance, replaced: Collection[str]) -> tuple[Outcome, str]:
    if act is Act.REVOKE_CREDENTIALS:
        return (Outcome.DONE, "") if instance.has_credential else (Outcome.UNCHANGED, f"{instance.name} has no credential")
    if act is Act.ARCHIVE and instance.status is Status.ARCHIVED:
        return Outcome.UNCHANGED, f"{instance.name} is archived already"
    if act is Act.REVIVE and instance.status is not Status.ARCHIVED:
        return Outcome.UNCHANGED, f"{instance.name} is not archived"
    reason = not_to_archive(instance) if act is Act.ARCHIVE else not_to_revive(instance, replaced)
    return (Outcome.REFUSED, reason) if reason else (Outcome.DONE, "")


def _agent_outcome(work: Work, agent: Agent) -> tuple[Outcome, str]:
    key, value = work.label_parts
    if work.act is Act.ADD_LABEL:
        if agent.labels.get(key) == value:
            return Outcome.UNCHANGED, f"it has {key}={value} already"
        if key not in agent.labels and len(agent.labels) >= MAX_LABELS:
            return Outcome.REFUSED, f"it has {MAX_LABELS} labels, and no agent has more"
    elif work.act is Act.REMOVE_LABEL and (key not in agent.labels or ("=" in work.label and agent.labels[key] != value)):
        return Outcome.UNCHANGED, f"it has no label {work.label}"
    return Outcome.DONE, ""


def _item(kind: str, key: str, name: str, agent: Agent, outcome: Outcome, reason: str) -> BulkItem:
    return BulkItem(
        kind=kind, id=key, name=name, environment_name=agent.environment_name, agent_id=agent.id, outcome=outcome, reason=reason
    )


def _missing(kind: str, key: str) -> BulkItem:
    reason = f"there is no {kind} {key[:100]}"
    return BulkItem(kind=kind, id=key[:100], name=key[:100], environment_name="", agent_id="", outcome=Outcome.REFUSED, reason=reason)
