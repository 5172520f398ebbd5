"""``config``: what groups and agents are configured with, and why an instance has the values that it has."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.connection import JsonOption, UrlOption, connect
from app.commands.fleet import find_agent, parse_config
from app.commands.groups import find_group
from app.commands.output import USAGE, CommandError, ago, print_json, print_table

if TYPE_CHECKING:
    from app.commands.client import PlatformClient

config = typer.Typer(help="Show, compare, change and revert configurations.", no_args_is_help=True)

GroupOption = Annotated[str | None, typer.Option("--group", "-g", help="Of this group, by name or id.")]
AgentOption = Annotated[str | None, typer.Option("--agent", "-a", help="Of this agent, by id or environment.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", "-s", help="Set an option (repeat for more).", metavar="KEY=VALUE")]
UnsetOption = Annotated[list[str] | None, typer.Option("--unset", "-u", help="Do not set an option any more.", metavar="KEY")]
FileOption = Annotated[
    Path | None, typer.Option("--file", "-f", help="The whole configuration, JSON or TOML; - reads JSON from standard input.")
]


@config.command("show")
def show(group: GroupOption = None, agent: AgentOption = None, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show what a group or an agent is configured with."""
    with connect(url) as client:
        found = client.get(_path(client, group, agent))
    if as_json:
        print_json(found)
        return
    rows = [(key, json.dumps(value, ensure_ascii=False)) for key, value in sorted(found["config"].items())]
    print_table(("OPTION", "VALUE"), rows, empty="Nothing is set.")


@config.command("diff")
def diff(
    group: GroupOption = None,
    agent: AgentOption = None,
    set_options: SetOption = None,
    unset: UnsetOption = None,
    file: FileOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a change would change; nothing is changed. Exit code 1 when something would."""
    with connect(url) as client:
        path = _path(client, group, agent)
        current = client.get(path)
        wanted = _wanted(client, current, set_options, unset, file)
        made = client.put(f"{path}?dry_run=true", {"config": wanted}, version=current["revision"])
    if as_json:
        print_json(made)
    else:
        _print_changes(made)
    if made["changes"]:
        raise typer.Exit(1)


@config.command("apply")
def apply(
    group: GroupOption = None,
    agent: AgentOption = None,
    set_options: SetOption = None,
    unset: UnsetOption = None,
    file: FileOption = None,
    comment: Annotated[str, typer.Option("--comment", "-m", help="Why; kept in the history and the audit log.")] = "",
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change what a group or an agent is configured with. `config status` shows how it fares."""
    with connect(url) as client:
        path = _path(client, group, agent)
        current = client.get(path)
        wanted = _wanted(client, current, set_options, unset, file)
        made = client.put(path, {"config": wanted, "comment": comment}, version=current["revision"])
    if as_json:
        print_json(made)
        return
    _print_changes(made)
    if made["changes"]:
        typer.echo(f"Revision {made['revision']} goes to {made['instances']} instances.", err=True)


@config.command("history")
def history(group: GroupOption = None, agent: AgentOption = None, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """List the revisions of a configuration, newest first."""
    with connect(url) as client:
        found = list(client.items(f"{_path(client, group, agent)}/revisions"))
    if as_json:
        print_json({"items": found})
        return
    rows = [(r["revision"], ago(r["created_at"]), r["actor"], r["comment"], ", ".join(sorted(r["config"])) or "-") for r in found]
    print_table(("REVISION", "MADE", "BY", "WHY", "SETS"), rows, empty="It has not been changed yet.")


@config.command("revert")
def revert(
    revision: Annotated[int, typer.Argument(help="The revision whose content is wanted again; 0 for no configuration.", min=0)],
    group: GroupOption = None,
    agent: AgentOption = None,
    url: UrlOption = None,
) -> None:
    """Give a group or an agent an earlier configuration again."""
    with connect(url) as client:
        made = client.post(f"{_path(client, group, agent)}/revert", {"revision": revision})
    _print_changes(made)
    typer.echo(f"It is at revision {made['revision']} now.", err=True)


@config.command("status")
def status(group: GroupOption = None, agent: AgentOption = None, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show how a configuration fares at each instance."""
    with connect(url) as client:
        path = _path(client, group, agent)
        members = path.removesuffix("/configuration") + "/instances" if group else f"{path}/instances"
        found = list(client.items(members))
    if as_json:
        print_json({"items": found})
        return
    rows = [(m["name"], m["environment_name"], m["status"], m["reason"], m["instance_id"]) for m in found]
    print_table(("INSTANCE", "ENVIRONMENT", "STATUS", "REASON", "ID"), rows, empty="No instances.")


@config.command("explain")
def explain(
    instance_id: Annotated[str, typer.Argument(help="The instance's id, as `agents show` lists it.")],
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every option of an instance with its value, who says so, and what that overrides."""
    with connect(url) as client:
        found = client.get(f"/api/v1/instances/{instance_id}/configuration")
    if as_json:
        print_json(found)
        return
    typer.echo(f"{found['name']}: {found['status']}" + (f" ({found['reason']})" if found["reason"] else ""), err=True)
    rows = [
        (
            one["key"],
            json.dumps(one["value"], ensure_ascii=False),
            _source(one["source"]),
            "; ".join(f"{json.dumps(g['value'], ensure_ascii=False)} ({_source(g['source'])})" for g in one["overrides"]),
            one["note"],
        )
        for one in found["options"]
    ]
    print_table(("OPTION", "VALUE", "SET BY", "INSTEAD OF", "NOTE"), rows, empty="Its type is not known here.")


def _path(client: PlatformClient, group: str | None, agent: str | None) -> str:
    if (group is None) == (agent is None):
        raise CommandError("say whose configuration: --group or --agent", exit_code=USAGE)
    if group is not None:
        return f"/api/v1/groups/{find_group(client, group)['id']}/configuration"
    return f"/api/v1/agents/{find_agent(client, str(agent))['id']}/configuration"


def _wanted(
    client: PlatformClient, current: Mapping[str, Any], set_options: list[str] | None, unset: list[str] | None, file: Path | None
) -> dict[str, Any]:
    if file is None and not set_options and not unset:
        raise CommandError("say what is wanted: --set, --unset or --file", exit_code=USAGE)
    wanted = dict(current["config"]) if file is None else _read(file)
    types = client.get("/api/v1/agent/types")["types"] if set_options else []
    properties: dict[str, Any] = {}
    for one in types:
        if one["name"] in current["agent_types"]:
            properties |= one["config_schema"].get("properties", {})
    for key, value in parse_config(set_options or [], {"properties": properties}).items():
        merge = isinstance(value, dict) and isinstance(wanted.get(key), dict)
        wanted[key] = {**wanted[key], **value} if merge else value
    for key in unset or []:
        wanted.pop(key, None)
    return wanted


def _read(file: Path) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
        found = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    except OSError as exc:
        raise CommandError(f"{file} cannot be read: {exc.strerror}", exit_code=USAGE) from exc
    except ValueError as exc:
        raise CommandError(f"{file} is neither JSON nor TOML: {exc}", exit_code=USAGE) from exc
    if not isinstance(found, dict):
        raise CommandError(f"{file} must hold an object of options", exit_code=USAGE)
    return found


def _print_changes(made: Mapping[str, Any]) -> None:
    for one in made["changes"]:
        if one["kind"] != "added":
            typer.echo(f"- {one['key']} = {json.dumps(one['before'], ensure_ascii=False)}")
        if one["kind"] != "removed":
            typer.echo(f"+ {one['key']} = {json.dumps(one['after'], ensure_ascii=False)}")
    if not made["changes"]:
        typer.echo("Nothing changes.", err=True)


def _source(one: Mapping[str, Any]) -> str:
    if one["kind"] in ("group", "agent"):
        return f"{one['kind']} {one['name']} revision {one['revision']}"
    return str({"local": "the host itself", "earlier": "what was applied before"}.get(one["kind"], one["kind"]))
