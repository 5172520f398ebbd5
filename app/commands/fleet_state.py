"""What the platform has, as far as a fleet file speaks of it; and the fleet file that describes all of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from app.commands.fleet_file import API_VERSION, SEVERITIES, AgentEntry, FleetFile, Placed, field_name, invalid
from app.commands.fleet_plan import Actual, ActualAgent, ActualGroup, ActualWebhook, group_names
from app.commands.output import CommandError
from app.errors import InvalidRequestError
from app.groups.selectors import Selector, parse

if TYPE_CHECKING:
    from app.commands.client import PlatformClient


def read_actual(client: PlatformClient, wanted: FleetFile) -> Actual:
    """What the platform has of the kinds that the files speak of.

    Raises:
        CommandError: it cannot be read, or an agent that the files name is not there, or not the only one of that name.
    """
    configured = {one.value.name for one in wanted.groups or () if one.value.config is not None}
    named = any(one.value.filters.groups for one in wanted.webhooks or ())
    webhooks = read_webhooks(client) if wanted.webhooks is not None else {}
    named = named or any(one.filters.get("groups") for one in webhooks.values())
    groups = read_groups(client, configured) if wanted.groups is not None or named else {}
    agents: dict[str, ActualAgent] = {}
    problems: list[str] = []
    seen: dict[str, str] = {}
    for entry in wanted.agents or ():
        found = _find(client, entry, problems)
        if found is None:
            continue
        if found["id"] in seen:
            problems.append(f"{entry.at()}: {field_name(entry.path)}: this agent stands at {seen[found['id']]} already")
        seen.setdefault(found["id"], entry.at())
        agents[entry.value.name] = _agent(client, found, configured=entry.value.config is not None)
    if problems:
        raise invalid(problems)
    return Actual(groups, agents, webhooks)


def read_everything(client: PlatformClient) -> Actual:
    """All groups and webhooks, and every agent with its own labels and configuration; agents by what their entries call them."""
    groups = read_groups(client, None)
    listed = list(client.items("/api/v1/agents", {"sort": "environment"}))
    environments = Counter(one["environment_name"] for one in listed)
    kinds = Counter((one["environment_name"], one["agent_type"]) for one in listed)
    agents: dict[str, ActualAgent] = {}
    for one in listed:
        environment, kind = one["environment_name"], one["agent_type"]
        alone, only = environments[environment] == 1, kinds[environment, kind] == 1
        name = environment if alone else f"{environment} ({kind})" if only else one["id"]
        agents[name] = _agent(client, one, configured=True)
    return Actual(groups, agents, read_webhooks(client))


def read_groups(client: PlatformClient, configured: Iterable[str] | None) -> dict[str, ActualGroup]:
    """Every group by name; with its configuration those that ``configured`` names, None for all."""
    groups: dict[str, ActualGroup] = {}
    wanted = None if configured is None else set(configured)
    for one in list(client.items("/api/v1/groups")):
        revision, config = one["revision"], None
        if wanted is None or one["name"] in wanted:
            current = client.get(f"/api/v1/groups/{one['id']}/configuration")
            revision, config = current["revision"], current["config"]
        selector = Selector.model_validate(one["selector"])
        groups[one["name"]] = ActualGroup(
            one["id"], one["name"], one["description"], selector, one["priority"], one["version"], revision, config
        )
    return groups


def read_webhooks(client: PlatformClient) -> dict[str, ActualWebhook]:
    """Every webhook by name."""
    return {
        one["name"]: ActualWebhook(
            one["id"], one["name"], one["url"], one["url_sha256"], one["template"], one["filters"], one["enabled"], one["version"]
        )
        for one in client.items("/api/v1/webhooks")
    }


def export_document(actual: Actual) -> dict[str, Any]:
    """The document of a fleet file that describes ``actual``; agents without labels and configuration of their own are left out."""
    names = group_names(actual)
    groups = [_group_entry(one) for one in sorted(actual.groups.values(), key=lambda g: g.name)]
    agents = [_agent_entry(name, one) for name, one in actual.agents.items() if one.labels or one.config]
    variables: set[str] = set()
    webhooks = [_webhook_entry(one, names, variables) for one in sorted(actual.webhooks.values(), key=lambda w: w.name)]
    return {"apiVersion": API_VERSION, "groups": groups, "agents": agents, "webhooks": webhooks}


def as_yaml(document: Mapping[str, Any]) -> str:
    """The document as YAML, to be read by people."""
    return yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True, width=120)


def _find(client: PlatformClient, entry: Placed[AgentEntry], problems: list[str]) -> dict[str, Any] | None:
    value, where = entry.value, f"{entry.at()}: {field_name(entry.path)}"
    if value.id is not None:
        try:
            found: dict[str, Any] = client.get(f"/api/v1/agents/{value.id}")
        except CommandError as exc:
            if "(not-found)" not in exc.message:
                raise
            problems.append(f"{where}: there is no agent {value.id}")
            return None
        return found
    candidates = list(client.items("/api/v1/agents", {"environment_name": value.environment, "agent_type": value.type}))
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        problems.append(f"{where}: there is no agent {value.name}: `incident-rca provision` makes one")
    else:
        listed = ", ".join(f"{one['id']} ({one['agent_type']})" for one in candidates)
        problems.append(f"{where}: {value.name} has {len(candidates)} agents; name one by type or id: {listed}")
    return None


def _agent(client: PlatformClient, found: Mapping[str, Any], *, configured: bool) -> ActualAgent:
    own: Mapping[str, Any] = {"revision": 0, "config": {}}
    if configured:
        own = client.get(f"/api/v1/agents/{found['id']}/configuration")
    return ActualAgent(found["id"], found["environment_name"], found["agent_type"], found["labels"], own["revision"], own["config"])


def _group_entry(group: ActualGroup) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": group.name}
    if group.description:
        entry["description"] = group.description
    entry["selector"] = _selector_text(group.selector)
    if group.priority:
        entry["priority"] = group.priority
    return {**entry, "config": dict(group.config or {})}


def _selector_text(selector: Selector) -> str | dict[str, Any]:
    """The selector as kubectl writes it, where that says the same."""
    try:
        same = parse(str(selector)).document() == selector.document()
    except InvalidRequestError:
        same = False
    return str(selector) if same else selector.document()


def _agent_entry(name: str, agent: ActualAgent) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": agent.id} if name == agent.id else {"environment": agent.environment_name}
    if name not in (agent.id, agent.environment_name):
        entry["type"] = agent.agent_type
    if agent.labels:
        entry["labels"] = dict(agent.labels)
    return {**entry, "config": dict(agent.config)}


def _webhook_entry(webhook: ActualWebhook, names: Mapping[str, str], variables: set[str]) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": webhook.name}
    if webhook.url_shown:
        entry["url"] = webhook.url
    else:
        entry["url_from"] = {"env": _variable(webhook.name, "URL", variables)}
    if webhook.template != "standard":
        entry["template"] = webhook.template
    if webhook.template == "pagerduty":
        entry["routing_key_from"] = {"env": _variable(webhook.name, "ROUTING_KEY", variables)}
    words = {number: word for word, number in SEVERITIES.items()}
    filters = {key: value for key, value in webhook.filters.items() if value}
    if "groups" in filters:
        filters["groups"] = [names.get(one, one) for one in filters["groups"]]
    filters["min_severity"] = words.get(filters["min_severity"], filters["min_severity"])
    entry["filters"] = filters
    return entry if webhook.enabled else {**entry, "enabled": False}


def _variable(webhook: str, what: str, taken: set[str]) -> str:
    stem = f"IRCA_WEBHOOK_{re.sub(r'[^A-Za-z0-9]+', '_', webhook).strip('_').upper()}"
    name, number = f"{stem}_{what}", 2
    while name in taken:
        name, number = f"{stem}_{number}_{what}", number + 1
    taken.add(name)
    return name
