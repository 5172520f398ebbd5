"""``events``: what happened, newest first."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from app.commands.connection import JsonOption, UrlOption, connect
from app.commands.fleet import find_agent
from app.commands.history import SinceOption, since
from app.commands.output import print_json, print_table, printable

events = typer.Typer(help="Read the timeline.", no_args_is_help=True)


@events.command("list")
def list_events(  # noqa: PLR0913, PLR0917 - one option for each filter; typer passes them by name
    agent: Annotated[str | None, typer.Option("--agent", "-a", help="Only of this agent, by id or environment.")] = None,
    instance: Annotated[str | None, typer.Option("--instance", help="Only of this instance, by id.")] = None,
    environment: Annotated[str | None, typer.Option("--environment", "-e", help="Only of this environment.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Only of this type, such as irca.instance.status_changed.")] = None,
    severity: Annotated[str | None, typer.Option("--severity", help="Least severity: info, warn, error or fatal.")] = None,
    start: SinceOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = 50,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List events, newest first."""
    with connect(url) as client:
        filters = {
            "agent_id": find_agent(client, agent)["id"] if agent else None,
            "instance_id": instance,
            "environment_name": environment,
            "name": name,
            "severity": severity,
            "start": since(start),
        }
        found = list(client.items("/api/v1/events", filters, limit=limit))
    if as_json:
        print_json({"items": found})
        return
    rows = [(e["time"], e["severity"], e["name"], e["environment_name"] or "", e["body"], e["id"]) for e in found]
    print_table(("TIME", "SEVERITY", "EVENT", "ENVIRONMENT", "WHAT", "ID"), rows, empty="No events.")


@events.command("show")
def show(
    event_id: Annotated[str, typer.Argument(help="The event's id, as `events list` shows it.")],
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show an event with its attributes."""
    with connect(url) as client:
        found = client.get(f"/api/v1/events/{event_id}")
    if as_json:
        print_json(found)
        return
    for title, value in (("Event", found["name"]), ("Time", found["time"]), ("Severity", found["severity"]), ("What", found["body"])):
        typer.echo(f"{title:<14} {printable(value)}")
    typer.echo()
    values = {**found["resource"], **found["attributes"]}
    rows = [(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)) for key, value in sorted(values.items())]
    print_table(("ATTRIBUTE", "VALUE"), rows, empty="It has no attributes.")
