"""``provision``, ``types`` and ``agents``: connecting environments and looking at the fleet."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.connection import JsonOption, UrlOption, connect
from app.commands.history import SinceOption, print_history, since
from app.commands.keys import parse_duration
from app.commands.output import USAGE, CommandError, ago, print_json, print_table, printable

if TYPE_CHECKING:
    from app.commands.client import PlatformClient

agents = typer.Typer(help="Look at the fleet.", no_args_is_help=True)

_COLUMNS = ("ENVIRONMENT", "TYPE", "STATUS", "VERSION", "LAST SEEN", "INSTANCES", "ID")


def provision(
    agent_type: Annotated[str, typer.Option("--type", "-t", help="Agent type; `incident-rca types` lists them.", metavar="TYPE")],
    environment_name: Annotated[str, typer.Option("--environment", "-e", help="Name of the environment, for example prod-cluster.")],
    config: Annotated[
        list[str] | None,
        typer.Option(
            "--config", "-c", help="Option of the agent type as key=value (repeat for more; labels.team=web).", metavar="KEY=VALUE"
        ),
    ] = None,
    token_ttl: Annotated[
        str | None, typer.Option("--token-ttl", help="Life of the enrolment token, for example 7d; default: as the platform is set.")
    ] = None,
    max_uses: Annotated[int, typer.Option("--max-uses", min=1, help="Machines (for kubernetes: clusters) that the token enrols.")] = 1,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create an agent and print the command that deploys it.

    The command alone goes to standard output, so that it can be piped; what to know about it, and other ways to deploy the agent, go to
    standard error.
    """
    lifetime = {} if token_ttl is None else {"token_ttl": parse_duration(token_ttl)}
    uses = {} if max_uses == 1 else {"token_max_uses": max_uses}
    with connect(url) as client:
        request: dict[str, Any] = {"agent_type": agent_type, "environment_name": environment_name, **lifetime, **uses}
        if config:
            request["config"] = parse_config(config, _schema_of(agent_type, client))
        answer = client.post("/api/v1/agent/provision", request)
    if as_json:
        print_json(answer)
        return
    typer.echo(answer["instructions"], err=True)
    typer.echo(err=True)
    typer.echo(answer["deployment_command"])
    for other in answer.get("alternatives", ()):
        typer.echo(f"\n{other['title']}:\n\n{other['content']}", err=True)


def _schema_of(agent_type: str, client: PlatformClient) -> Mapping[str, Any]:
    listed = client.get("/api/v1/agent/types")["types"]
    found: Any = next((t["config_schema"] for t in listed if t["name"] == agent_type), {})
    return found if isinstance(found, Mapping) else {}


def parse_config(pairs: Iterable[str], schema: Mapping[str, Any]) -> dict[str, Any]:
    """The options that ``key=value`` texts describe, by the type that the schema gives each key.

    Text stays text where the schema wants it; elsewhere what reads as JSON is that, lists may be written with commas, and an entry of
    a mapping as ``labels.team=web``. The platform decides whether the result is valid.

    Raises:
        CommandError: a text is not ``key=value``, or sets a key both whole and by entries.
    """
    config: dict[str, Any] = {}
    properties = schema.get("properties", {})
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise CommandError(f"--config must be written key=value, not {pair!r}", exit_code=USAGE)
        name, dot, entry = key.partition(".")
        if dot and name in properties:
            mapping = config.setdefault(name, {})
            if not isinstance(mapping, dict):
                raise CommandError(f"--config sets {name} both whole and by entries", exit_code=USAGE)
            mapping[entry] = text
        else:
            config[key] = _value(text, _types(properties.get(key, {})))
    return config


def _types(schema: Mapping[str, Any]) -> set[str]:
    types = {str(s.get("type", "")) for s in (schema, *schema.get("anyOf", ()))}
    return types | ({"string"} if "enum" in schema or "const" in schema else set())


def _value(text: str, types: set[str]) -> Any:
    if "string" in types:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return [part.strip() for part in text.split(",")] if "array" in types else text


def types(url: UrlOption = None, as_json: JsonOption = False) -> None:
    """List the agent types: what each connects, and where it runs."""
    with connect(url) as client:
        answer = client.get("/api/v1/agent/types")
    if as_json:
        print_json(answer)
        return
    rows = [(t["name"], t["description"], ", ".join(t.get("runs_on", ()))) for t in answer["types"]]
    print_table(("TYPE", "CONNECTS", "RUNS ON"), rows, empty="No agent types are installed.")


StatusOption = Annotated[str | None, typer.Option("--status", help="Only agents of this status.")]
TypeOption = Annotated[str | None, typer.Option("--type", "-t", help="Only agents of this type.")]
EnvironmentOption = Annotated[str | None, typer.Option("--environment", "-e", help="Only agents of this environment.")]


@agents.command("list")
def list_agents(
    status: StatusOption = None,
    agent_type: TypeOption = None,
    environment_name: EnvironmentOption = None,
    search: Annotated[str | None, typer.Option("--search", help="Only agents in whose names or labels this text occurs.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most this many.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the agents."""
    with connect(url) as client:
        filters = {"status": status, "agent_type": agent_type, "environment_name": environment_name, "search": search}
        found: list[dict[str, Any]] = list(client.items("/api/v1/agents", filters, limit=limit))
    if as_json:
        print_json({"items": found})
        return
    print_table(_COLUMNS, map(_row, found), empty="No agents. `incident-rca provision` connects the first environment.")


@agents.command("show")
def show_agent(
    agent: Annotated[str, typer.Argument(help="The agent's id, or the name of an environment that has one agent.")],
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one agent and its instances."""
    with connect(url) as client:
        found = find_agent(client, agent)
    if as_json:
        print_json(found)
        return
    status = found["status"] + (f" ({found['status_reason']})" if found.get("status_reason") else "")
    fields = [
        ("Environment", found["environment_name"]),
        ("Type", found["agent_type"]),
        ("Status", status),
        ("Version", found["version"] or "-"),
        ("Last seen", ago(found["last_seen_at"])),
        ("Labels", ", ".join(f"{k}={v}" for k, v in found["labels"].items()) or "-"),
        ("Configuration", ", ".join(f"{k}={v}" for k, v in found["config"].items()) or "defaults"),
        ("Id", found["id"]),
    ]
    for name, value in fields:
        typer.echo(f"{name:<14} {printable(value)}")
    if found["instances"]:
        typer.echo()
        rows = [(i["name"], i["status"], i["status_reason"], i["version"], ago(i["last_seen_at"]), i["id"]) for i in found["instances"]]
        print_table(("INSTANCE", "STATUS", "REASON", "VERSION", "LAST SEEN", "ID"), rows, empty="")


@agents.command("history")
def history(
    agent: Annotated[str, typer.Argument(help="The agent's id, or the name of an environment that has one agent.")],
    start: SinceOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how the status of an agent went, and how available it was; by default over the last day."""
    with connect(url) as client:
        print_history(client, f"/api/v1/agents/{find_agent(client, agent)['id']}", since(start), as_json=as_json)


@agents.command("label")
def label_agent(
    agent: Annotated[str, typer.Argument(help="The agent's id, or the name of an environment that has one agent.")],
    labels: Annotated[list[str], typer.Argument(help="Labels to set as name=value; name- removes one.", metavar="NAME=VALUE|NAME-...")],
    url: UrlOption = None,
) -> None:
    """Set and remove labels of an agent, by which groups select it."""
    changes: dict[str, str | None] = {}
    for text in labels:
        name, separator, value = text.partition("=")
        if not separator and not text.endswith("-"):
            raise CommandError(f"a label must be written name=value, or name- to remove it, not {text!r}", exit_code=USAGE)
        changes[name if separator else text.removesuffix("-")] = value if separator else None
    with connect(url) as client:
        found = client.patch(f"/api/v1/agents/{find_agent(client, agent)['id']}", {"labels": changes})
    typer.echo(", ".join(f"{k}={v}" for k, v in found["labels"].items()) or "no labels", err=True)


def find_agent(client: PlatformClient, text: str) -> dict[str, Any]:
    """The agent with the id ``text``, or the only one of the environment ``text``.

    Raises:
        CommandError: there is none, or the environment has several.
    """
    if _is_uuid(text):
        found: dict[str, Any] = client.get(f"/api/v1/agents/{text}")
        return found
    candidates = list(client.items("/api/v1/agents", {"environment_name": text}))
    if not candidates:
        raise CommandError(f"there is no agent with the id or environment {text!r}", hint="`incident-rca agents list` shows them all.")
    if len(candidates) > 1:
        raise CommandError(
            f"the environment {text!r} has {len(candidates)} agents; name one by its id",
            hint="\n".join(f"{a['id']}  {a['agent_type']}" for a in candidates),
        )
    return candidates[0]


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


@agents.command("watch")
def watch_agents(
    status: StatusOption = None,
    agent_type: TypeOption = None,
    environment_name: EnvironmentOption = None,
    interval: Annotated[float, typer.Option("--interval", min=0.2, help="Seconds between two looks.")] = 2.0,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep showing the fleet until Ctrl-C: a live table on a terminal, else one line for each change (with --json, one document)."""
    filters = {"status": status, "agent_type": agent_type, "environment_name": environment_name}
    with contextlib.suppress(KeyboardInterrupt), connect(url) as client:
        if sys.stdout.isatty() and not as_json:
            from app.commands.tables import show_live  # noqa: PLC0415 - Rich is heavy, and a pipe needs none of it

            show_live(_COLUMNS, lambda: map(_row, client.items("/api/v1/agents", filters)), interval)
        else:
            _watch_changes(client, filters, interval, as_json=as_json)


def _watch_changes(client: PlatformClient, filters: Mapping[str, str | None], interval: float, *, as_json: bool) -> None:
    known: dict[str, tuple[str, str, str]] = {}
    while True:
        seen = {agent["id"]: agent for agent in client.items("/api/v1/agents", filters)}
        for gone in known.keys() - seen.keys():
            typer.echo(json.dumps({"id": gone, "status": None}) if as_json else f"{gone} is gone")
            del known[gone]
        for agent in seen.values():
            state = (agent["status"], agent["status_reason"], agent["version"])
            if known.get(agent["id"]) != state:
                known[agent["id"]] = state
                typer.echo(json.dumps(agent, ensure_ascii=False) if as_json else _line(agent))
        time.sleep(interval)


def _line(agent: Mapping[str, Any]) -> str:
    reason = f": {agent['status_reason']}" if agent["status_reason"] else ""
    return printable(f"{agent['environment_name']} ({agent['agent_type']}) {agent['status']}{reason}")


def _row(agent: Mapping[str, Any]) -> Sequence[object]:
    return (
        agent["environment_name"],
        agent["agent_type"],
        agent["status"],
        agent["version"] or "-",
        ago(agent["last_seen_at"]),
        len(agent["instances"]),
        agent["id"],
    )
