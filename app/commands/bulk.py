"""``agents bulk``: one act on many agents at a time."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from app.commands.connection import JsonOption, UrlOption, connect
from app.commands.fleet import EnvironmentOption, StatusOption, TypeOption, find_agent
from app.commands.keys import parse_duration
from app.commands.output import USAGE, CommandError, print_json, print_table

ACTS = ("archive", "revive", "add-label", "remove-label", "revoke-credentials", "maintenance")
_SHOWN = 20


def act_on_many(  # noqa: PLR0913, PLR0917 - one parameter for each option; Typer passes them by name
    act: Annotated[str, typer.Argument(help=f"What to do: {', '.join(ACTS)}.", metavar="ACT")],
    agent: Annotated[list[str] | None, typer.Argument(help="Agents, by id or environment; none to choose by the options.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every agent that may be seen.")] = False,
    status: StatusOption = None,
    agent_type: TypeOption = None,
    environment_name: EnvironmentOption = None,
    having: Annotated[list[str] | None, typer.Option("--having", help="Only agents with this label, name or name=value.")] = None,
    search: Annotated[str | None, typer.Option("--search", help="Only agents in whose names or labels this text occurs.")] = None,
    label: Annotated[str, typer.Option("--label", help="For add-label name=value, for remove-label name.")] = "",
    reason: Annotated[str, typer.Option("--reason", help="For maintenance: why.")] = "",
    duration: Annotated[str, typer.Option("--for", help="For maintenance: how long from now, such as 2h.")] = "2h",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Archive, revive, label or mute many agents, or revoke their credentials; says first what will happen."""
    if act not in ACTS:
        raise CommandError(f"there is no act {act!r}: it must be one of {', '.join(ACTS)}", exit_code=USAGE)
    chosen = {"status": status, "agent_type": agent_type, "environment_name": environment_name, "label": having, "search": search}
    wanted = {name: value for name, value in chosen.items() if value}
    if sum((bool(agent), bool(wanted), every)) != 1:
        raise CommandError("name agents, or choose them by options, or all of them by --all: one of the three", exit_code=USAGE)
    if as_json and not (yes or dry_run):
        raise CommandError("with --json nobody is asked: give --yes to do it, or --dry-run to see it", exit_code=USAGE)
    body: dict[str, Any] = {"act": act, "label": label, "reason": reason}
    if act == "maintenance":
        body["duration"] = parse_duration(duration)
    with connect(url) as client:
        body |= {"agent_ids": [find_agent(client, one)["id"] for one in agent]} if agent else {"filter": wanted}
        found = client.post("/api/v1/instances/bulk", {**body, "dry_run": True})
        if not dry_run and found["done"]:
            if not yes:
                _show(found)
                typer.confirm(f"Do it to {found['done']}?", abort=True, err=True)
            found = client.post("/api/v1/instances/bulk", body)
    if as_json:
        print_json(found)
        return
    _show(found)


def _show(found: dict[str, Any]) -> None:
    rows = [(i["outcome"], i["environment_name"] or "-", i["name"], i["reason"]) for i in found["items"][:_SHOWN]]
    print_table(("OUTCOME", "ENVIRONMENT", "NAME", "REASON"), rows, empty="Nothing is selected.")
    words = "Would be done" if found["dry_run"] else "Done"
    typer.echo(f"{words}: {found['done']}, refused: {found['refused']}, so already: {found['unchanged']}.", err=True)
