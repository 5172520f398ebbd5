"""``audit``: who changed what, or was refused."""

from __future__ import annotations

from typing import Annotated

import typer

from app.commands.connection import JsonOption, UrlOption, connect
from app.commands.output import print_json, print_table

audit = typer.Typer(help="Read the audit log.", no_args_is_help=True)


@audit.command("list")
def list_audit(
    search: Annotated[str | None, typer.Option("--search", help="Looks in names, ids, addresses and reasons.")] = None,
    action: Annotated[str | None, typer.Option("--action", help="Such as webhook.update.")] = None,
    environment: Annotated[str | None, typer.Option("--environment", help="Only of this environment.")] = None,
    outcome: Annotated[str | None, typer.Option("--outcome", help="done or refused.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = 50,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what was done, newest first."""
    filters = {"search": search, "action": action, "environment_name": environment, "outcome": outcome}
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
