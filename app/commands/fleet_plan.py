"""What has to change so that the platform is what fleet files say: pure functions of the files and of what the platform has."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from app.commands.fleet_file import AgentEntry, FleetFile, GroupEntry, Placed, WebhookEntry, field_name, invalid
from app.groups.precedence import difference
from app.groups.selectors import Selector

Act = Literal["create", "update", "delete"]
Kind = Literal["group", "labels", "configuration", "webhook"]
HIDDEN = "…"
"""What stands for a text that is not shown."""


@dataclass(frozen=True, slots=True)
class ActualGroup:
    """A group as the platform has it. ``config`` is None where it was not asked for."""

    id: str
    name: str
    description: str
    selector: Selector
    priority: int
    version: int
    revision: int
    config: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ActualAgent:
    """An agent as the platform has it."""

    id: str
    environment_name: str
    agent_type: str
    labels: Mapping[str, str]
    revision: int
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ActualWebhook:
    """A webhook as the platform shows it: where the URL is a secret, ``url`` is only its beginning and ``url_sha256`` tells it."""

    id: str
    name: str
    url: str
    url_sha256: str
    template: str
    filters: Mapping[str, Any]
    enabled: bool
    version: int

    @property
    def url_shown(self) -> bool:
        """Whether ``url`` is the whole of it."""
        return _sha256(self.url) == self.url_sha256


@dataclass(frozen=True, slots=True)
class Actual:
    """What the platform has, as far as files speak of it: by name, and agents by what their entries call them."""

    groups: Mapping[str, ActualGroup] = field(default_factory=dict)
    agents: Mapping[str, ActualAgent] = field(default_factory=dict)
    webhooks: Mapping[str, ActualWebhook] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Difference:
    """A field whose value changes; None for one that is not there, where ``kind`` says so."""

    field: str
    kind: Literal["added", "removed", "changed"]
    before: Any = None
    after: Any = None


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose labels or configuration change. The id is empty for a group that is yet to be made."""

    kind: Literal["group", "agent"]
    name: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """One request to make.

    ``body`` is what is sent, except that a webhook's groups are named; ``version`` is what it was planned from, None where nothing is
    compared; ``id`` is that of the group or webhook, empty for one to be made.
    """

    act: Act
    kind: Kind
    name: str
    where: str = ""
    id: str = ""
    version: int | None = None
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)  # it may hold a routing key
    differences: tuple[Difference, ...] = ()
    owner: Owner | None = None

    def __str__(self) -> str:
        """What it changes, as messages name it: ``configuration of group web``."""
        return f"{self.kind} of {self.owner.kind} {self.name}" if self.owner else f"{self.kind} {self.name}"


def plan(wanted: FleetFile, actual: Actual, *, prune: bool = False) -> list[Change]:
    """The requests that make the platform what is wanted, in the order in which they are made; none when it is that already.

    Groups come first, then labels and configurations, then webhooks, which name groups. With ``prune``, groups and webhooks that the
    files do not name are deleted at last, where the files have such a list at all.

    Raises:
        CommandError: what is wanted cannot be planned; each problem with file and line.
    """
    changes: list[Change] = []
    configurations: list[Change] = []
    for group in wanted.groups or ():
        current = actual.groups.get(group.value.name)
        before, after = _group_configurations(group, current)
        changes += [*before, *_group(group, current)]
        configurations += after
    for agent in wanted.agents or ():
        found = actual.agents[agent.value.name]
        changes += _labels(agent, found)
        configurations += _agent_configuration(agent, found)
    changes += configurations
    kept = _kept_groups(wanted, actual, prune=prune)
    problems: list[str] = []
    for webhook in wanted.webhooks or ():
        problems += _unknown_groups(webhook, kept)
        changes += _webhook(webhook, wanted, actual, problems)
    if problems:
        raise invalid(problems)
    return [*changes, *(_deletions(wanted, actual) if prune else ())]


def group_names(actual: Actual) -> Mapping[str, str]:
    """The names of groups by their ids."""
    return {group.id: group.name for group in actual.groups.values()}


def _group(entry: Placed[GroupEntry], current: ActualGroup | None) -> list[Change]:
    wanted = entry.value
    body = {
        "name": wanted.name,
        "description": wanted.description,
        "selector": wanted.selector.document(),
        "priority": wanted.priority,
    }
    after = {"selector": str(wanted.selector), "priority": wanted.priority, "description": wanted.description}
    if current is None:
        return [Change("create", "group", wanted.name, entry.at(), body=body, differences=_told(_differences({}, after)))]
    before = {"selector": str(current.selector), "priority": current.priority, "description": current.description}
    if current.selector.document() == body["selector"] and _differences(before, after) == ():
        return []
    return [
        Change(
            "update",
            "group",
            wanted.name,
            entry.at(),
            current.id,
            current.version,
            body,
            _differences(before, after) or (Difference("selector", "changed", current.selector.document(), body["selector"]),),
        )
    ]


def _group_configurations(entry: Placed[GroupEntry], current: ActualGroup | None) -> tuple[list[Change], list[Change]]:
    """What changes of a group's configuration before the group itself changes, and after.

    A group's configuration must fit the types that its selector matches, so that what goes is taken away before the selector changes
    and what comes is given after.
    """
    wanted = entry.value.config
    if wanted is None:
        return [], []
    owner = Owner("group", entry.value.name, current.id if current else "")
    config, revision = (dict(current.config or {}), current.revision) if current else ({}, 0)
    first: list[Change] = []
    if current is not None and current.selector.document() != entry.value.selector.document():
        staying = {key: value for key, value in config.items() if key in wanted}
        first = _configuration(owner, entry.at("config"), config, staying, revision)
        config, revision = staying, revision + len(first)
    return first, _configuration(owner, entry.at("config"), config, wanted, revision)


def _agent_configuration(entry: Placed[AgentEntry], current: ActualAgent) -> list[Change]:
    if entry.value.config is None:
        return []
    owner = Owner("agent", entry.value.name, current.id)
    return _configuration(owner, entry.at("config"), current.config, entry.value.config, current.revision)


def _configuration(owner: Owner, where: str, before: Mapping[str, Any], after: Mapping[str, Any], revision: int) -> list[Change]:
    differences = _differences(before, after)
    if not differences:
        return []
    act: Act = "update" if before else "create"
    return [Change(act, "configuration", owner.name, where, owner.id, revision, {"config": dict(after)}, differences, owner)]


def _labels(entry: Placed[AgentEntry], current: ActualAgent) -> list[Change]:
    wanted = entry.value.labels or {}
    changes = {key: value for key, value in wanted.items() if current.labels.get(key) != value}
    if not changes:
        return []
    before = {key: current.labels[key] for key in changes if key in current.labels}
    after = {key: value for key, value in changes.items() if value is not None}
    owner = Owner("agent", entry.value.name, current.id)
    act: Act = "update" if current.labels else "create"
    return [Change(act, "labels", owner.name, entry.at("labels"), owner.id, None, {"labels": changes}, _differences(before, after), owner)]


def _webhook(entry: Placed[WebhookEntry], wanted: FleetFile, actual: Actual, problems: list[str]) -> list[Change]:
    value = entry.value
    current = actual.webhooks.get(value.name)
    url = value.url or wanted.secrets.get((value.name, "url")) or ""
    key = wanted.secrets.get((value.name, "routing_key")) or ""
    filters = value.filters.model_dump()
    after = {**_flat(filters), "template": value.template, "enabled": value.enabled}
    if current is None:
        before: dict[str, Any] = {}
        after["url"] = url if value.url else f"from {value.url_from}"
    else:
        names = group_names(actual)
        shown = {**current.filters, "groups": [names.get(one, one) for one in current.filters.get("groups", ())]}
        before = {**_flat(shown), "template": current.template, "enabled": current.enabled}
        if url and _sha256(url) != current.url_sha256:
            before["url"] = current.url
            after["url"] = url if value.url else f"from {value.url_from}"
    differences = _differences(before, after)
    if not differences:
        return []
    if not url and current is not None and current.url_shown:
        url = current.url
    for name, text, reference in (("url", url, value.url_from), ("routing_key", key, value.routing_key_from)):
        kept = name == "routing_key" and current is not None and current.template == value.template
        if reference is not None and not text and not kept:
            problems.append(f"{entry.at(f'{name}_from')}: {field_name((*entry.path, f'{name}_from'))}: {reference} is needed and not set")
    body = {
        "name": value.name,
        "url": url,
        "template": value.template,
        "filters": filters,
        "enabled": value.enabled,
        "routing_key": key,
    }
    if current is None:
        return [Change("create", "webhook", value.name, entry.at(), body=body, differences=_told(differences))]
    return [Change("update", "webhook", value.name, entry.at(), current.id, current.version, body, differences)]


def _kept_groups(wanted: FleetFile, actual: Actual, *, prune: bool) -> Collection[str]:
    named = {group.value.name for group in wanted.groups or ()}
    return named if prune and wanted.groups is not None else named | actual.groups.keys()


def _unknown_groups(entry: Placed[WebhookEntry], kept: Collection[str]) -> list[str]:
    return [
        f"{entry.at('filters', 'groups', number)}: {field_name((*entry.path, 'filters', 'groups', number))}: there is no group {name!r}"
        for number, name in enumerate(entry.value.filters.groups)
        if name not in kept and not _is_id(name)
    ]


def _deletions(wanted: FleetFile, actual: Actual) -> list[Change]:
    """Webhooks before the groups that they may name."""
    gone: list[Change] = []
    if wanted.webhooks is not None:
        named = {webhook.value.name for webhook in wanted.webhooks}
        gone += [Change("delete", "webhook", w.name, id=w.id, version=w.version) for w in actual.webhooks.values() if w.name not in named]
    if wanted.groups is not None:
        named = {group.value.name for group in wanted.groups}
        gone += [Change("delete", "group", g.name, id=g.id, version=g.version) for g in actual.groups.values() if g.name not in named]
    return gone


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Difference, ...]:
    return tuple(Difference(one.key, one.kind, one.before, one.after) for one in difference(before, after))


def _told(differences: tuple[Difference, ...]) -> tuple[Difference, ...]:
    """Of something new, what is not simply empty."""
    return tuple(one for one in differences if one.after not in ("", []))


def _flat(filters: Mapping[str, Any]) -> dict[str, Any]:
    return {f"filters.{name}": list(value) if isinstance(value, list | tuple) else value for name, value in filters.items()}


def _is_id(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
