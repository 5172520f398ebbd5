"""The list of agents: its filters, its orders and its pages; and what the overview says of all of them. Pure functions of the registry."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from operator import itemgetter
from typing import Any

from app.cursors import decode_cursor, encode_cursor
from app.events.views import Page
from app.fleet import status as rules
from app.fleet.registry import Agent
from app.fleet.views import AgentView, FleetOverview, QuietInstance, Status


class Sort(StrEnum):
    """What a list of agents is ordered by."""

    STATUS = "status"
    ENVIRONMENT = "environment"
    TYPE = "type"
    VERSION = "version"
    LAST_SEEN = "last_seen"


def everything(_environment_name: str) -> bool:
    """Sees every environment."""
    return True


@dataclass(frozen=True, slots=True)
class AgentFilter:
    """Which agents are listed: all that meet every part. None, and no label, lets all pass.

    ``version`` is an agent's version as lists show it. ``labels`` are ``key=value``, or ``key`` for any value. ``search`` looks in
    environment, type, labels and names of instances.
    """

    status: Status | None = None
    agent_type: str | None = None
    environment_name: str | None = None
    version: str | None = None
    labels: tuple[str, ...] = ()
    search: str | None = None
    sees: Callable[[str], bool] = field(default=everything, compare=False)

    def accepts(self, agent: Agent) -> bool:
        """Whether ``agent`` is listed."""
        return (
            self.sees(agent.environment_name)
            and (self.agent_type is None or agent.agent_type == self.agent_type)
            and (self.environment_name is None or agent.environment_name == self.environment_name)
            and all(_has_label(agent.labels, label) for label in self.labels)
            and (self.status is None or agent.status()[0] is self.status)
            and (self.version is None or agent.version() == self.version)
            and (not self.search or _matches(agent, self.search.lower()))
        )


Key = tuple[Any, str, str, str]
_KEYS: Mapping[Sort, type] = {Sort.STATUS: int, Sort.LAST_SEEN: float}


def list_agents(
    agents: Iterable[Agent], wanted: AgentFilter, sort: Sort, *, descending: bool, cursor: str | None, limit: int
) -> Page[AgentView]:
    """A page of the agents that are wanted. By status problems come first unless ``descending``.

    Raises:
        InvalidRequestError: the cursor is not one of this list in this order.
    """
    after = decode_cursor(cursor, _KEYS.get(sort, str), str, str, str)
    ranked: Iterable[tuple[Key, Agent]] = ((_key(agent, sort), agent) for agent in agents if wanted.accepts(agent))
    if after is not None:
        last: Key = (after[0], after[1], after[2], after[3])
        ranked = ((key, agent) for key, agent in ranked if (key < last if descending else key > last))
    # A page is picked out, not sorted out: of ten thousand agents it shows fifty.
    found = (heapq.nlargest if descending else heapq.nsmallest)(limit + 1, ranked, key=itemgetter(0))
    return Page[AgentView](
        items=[agent.view() for _, agent in found[:limit]],
        next_cursor=encode_cursor(*found[limit - 1][0]) if len(found) > limit else None,
    )


def overview(agents: Iterable[Agent], sees: Callable[[str], bool], now: float, most: int) -> FleetOverview:
    """What stands out in the fleet: of agents in environments that ``sees``; each list holds ``most`` entries at most.

    Args:
        agents: the fleet.
        sees: whether an environment may be seen.
        now: seconds since the epoch.
        most: entries of a list.
    """
    visible = [agent for agent in agents if sees(agent.environment_name)]
    statuses: Counter[Status] = Counter()
    versions: Counter[str] = Counter()
    unwell: list[tuple[Key, Agent]] = []
    awaited: list[Agent] = []
    quiet: list[tuple[float, QuietInstance]] = []
    for agent in visible:
        status, _ = agent.status()
        statuses[status] += 1
        if version := agent.version():
            versions[version] += 1
        if status in (Status.DEGRADED, Status.OFFLINE):
            unwell.append((_key(agent, Sort.STATUS), agent))
        if not agent.instances:
            awaited.append(agent)
        quiet += _quiet(agent, now)
    quiet.sort(key=lambda pair: (-pair[0], pair[1].id))
    return FleetOverview(
        total=len(visible),
        statuses={status: statuses[status] for status in Status},
        versions=sorted(versions.items(), key=lambda pair: rules.version_key(pair[0]), reverse=True),
        problems=[agent.view() for _, agent in sorted(unwell, key=lambda pair: pair[0])[:most]],
        quiet=[instance for _, instance in quiet[:most]],
        quiet_total=len(quiet),
        awaited=[agent.view() for agent in sorted(awaited, key=lambda a: (a.created_at, a.id), reverse=True)[:most]],
        awaited_total=len(awaited),
    )


def _key(agent: Agent, sort: Sort) -> Key:
    first: Any
    if sort is Sort.STATUS:
        first = -rules.severity(agent.status()[0])
    elif sort is Sort.VERSION:
        first = ".".join(f"{number:08}{text}" for number, text in rules.version_key(agent.version()))
    elif sort is Sort.LAST_SEEN:
        first = float(agent.last_heard() or 0.0)
    else:
        first = agent.environment_name if sort is Sort.ENVIRONMENT else agent.agent_type
    return first, agent.environment_name, agent.agent_type, agent.id


def _quiet(agent: Agent, now: float) -> list[tuple[float, QuietInstance]]:
    """The instances of ``agent`` that are late or offline by their silence, each with the time when it was last heard."""
    found = []
    replaced: set[str] | None = None
    for one in agent.instances.values():
        if one.heard is None or one.said_goodbye or one.status not in (Status.DEGRADED, Status.OFFLINE):
            continue
        if one.status is Status.DEGRADED and now - one.heard <= rules.late_after(one.interval):
            continue
        replaced = agent.replaced() if replaced is None else replaced
        if one.id in replaced:
            continue
        summary = one.summary().model_dump()
        about = QuietInstance(**summary, agent_id=agent.id, environment_name=agent.environment_name, agent_type=agent.agent_type)
        found.append((one.last_seen or one.heard, about))
    return found


def _has_label(labels: dict[str, str], wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    return labels.get(key) == value if equals else key in labels


def _matches(agent: Agent, needle: str) -> bool:
    texts = [
        agent.environment_name,
        agent.agent_type,
        *(f"{k}={v}" for k, v in agent.labels.items()),
        *(i.name for i in agent.instances.values()),
    ]
    return any(needle in text.lower() for text in texts)
