"""``audit``: who changed what, or was refused."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from app.commands.connection import JsonOption, UrlOption, connect
from app.commands.history import SinceOption, since
from app.commands.output import print_json, print_table

audit = typer.Typer(help="Read the audit log.", no_args_is_help=True)


SearchOption = Annotated[str | None, typer.Option("--search", help="Looks in names, ids, addresses and reasons.")]
ActionOption = Annotated[str | None, typer.Option("--action", help="Such as webhook.update.")]
EnvironmentOption = Annotated[str | None, typer.Option("--environment", help="Only of this environment.")]
OutcomeOption = Annotated[str | None, typer.Option("--outcome", help="done or refused.")]


@audit.command("list")
def list_audit(
    search: SearchOption = None,
    action: ActionOption = None,
    environment: EnvironmentOption = None,
    outcome: OutcomeOption = None,
    start: SinceOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = 50,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what was done, newest first."""
    filters = {"search": search, "action": action, "environment_name": environment, "outcome": outcome, "start": since(start)}
    with connect(url) as client:
        found = list(client.items("/api/v1/audit", {k: v for k, v in filters.items() if v}, limit=limit))
    if as_json:
        print_json({"items": found})
        return
    rows = [
        (
            e["time"],
            e["actor_name"],
            e["action"],
            e["target_name"] or e["target_id"],
            e["environment_name"] or "",
            e["outcome"],
            e["client_address"],
        )
        for e in found
    ]
    print_table(("TIME", "WHO", "ACTION", "TARGET", "ENVIRONMENT", "OUTCOME", "FROM"), rows, empty="No entries.")


@audit.command("export")
def export(
    search: SearchOption = None,
    action: ActionOption = None,
    environment: EnvironmentOption = None,
    outcome: OutcomeOption = None,
    start: SinceOption = None,
    url: UrlOption = None,
) -> None:
    """Write every entry, newest first, one JSON object a line."""
    filters = {"search": search, "action": action, "environment_name": environment, "outcome": outcome, "start": since(start)}
    with connect(url) as client:
        for entry in client.items("/api/v1/audit", {k: v for k, v in filters.items() if v}):
            typer.echo(json.dumps(entry, ensure_ascii=False))
