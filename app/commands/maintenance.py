"""``maintenance``: times in which nobody is told what happens to some instances."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from app.commands.connection import JsonOption, UrlOption, connect
from app.commands.keys import parse_duration
from app.commands.output import USAGE, CommandError, print_json, print_table

maintenance = typer.Typer(help="Make, list and end maintenance windows.", no_args_is_help=True)


@maintenance.command("create")
def create(
    reason: Annotated[str, typer.Option("--reason", help="Why; others see it.")],
    lasts: Annotated[str, typer.Option("--for", help="How long, such as 2h or 30m; at most 30d.")] = "2h",
    environments: Annotated[
        list[str] | None, typer.Option("--environment", help="Environments, such as prod-*; may be repeated. * is all of them.")
    ] = None,
    agents: Annotated[list[str] | None, typer.Option("--agent", help="Id of an agent; may be repeated.")] = None,
    labels: Annotated[
        list[str] | None, typer.Option("--label", help="A label that an agent must have: team=shop; may be repeated.")
    ] = None,
    starts: Annotated[str | None, typer.Option("--starts", help="When it begins, with its zone; default: now.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Mute what happens to the instances of the agents that meet all of this, and print the window's id."""
    wanted: dict[str, str] = {}
    for label in labels or []:
        key, mark, value = label.partition("=")
        if not (key and mark and value):
            raise CommandError(f"a label must look like team=shop, not {label!r}", exit_code=USAGE)
        wanted[key] = value
    selector = {"environments": environments or [], "agent_ids": agents or [], "labels": wanted}
    body: dict[str, Any] = {"reason": reason, "selector": selector, "duration": parse_duration(lasts), "starts_at": starts}
    with connect(url) as client:
        made = client.post("/api/v1/maintenance-windows", body)
    if as_json:
        print_json(made)
        return
    count = made["agents"]
    typer.echo(f"Muted {count} agent{'' if count == 1 else 's'} from {made['starts_at']} until {made['ends_at']}:", err=True)
    typer.echo(made["id"])


@maintenance.command("list")
def list_windows(
    state: Annotated[str | None, typer.Option("--state", help="Only active, scheduled, ended or cancelled ones.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List maintenance windows, the latest first."""
    with connect(url) as client:
        found = list(client.items("/api/v1/maintenance-windows", {"state": state}))
    if as_json:
        print_json({"items": found})
        return
    rows = [(w["state"], w["reason"], _selected(w["selector"]), w["starts_at"], w["ends_at"], w["id"]) for w in found]
    print_table(("STATE", "REASON", "MUTED", "FROM", "UNTIL", "ID"), rows, empty="No maintenance windows.")


@maintenance.command("end")
def end(window_id: Annotated[str, typer.Argument(help="The window's id, as `maintenance list` shows it.")], url: UrlOption = None) -> None:
    """End a window now; one that has not begun is cancelled."""
    with connect(url) as client:
        client.post(f"/api/v1/maintenance-windows/{window_id}/end", {})
    typer.echo(f"Ended {window_id}.", err=True)


def _selected(selector: dict[str, Any]) -> str:
    labels = [f"{key}={value}" for key, value in sorted(selector["labels"].items())]
    return ", ".join([*selector["environments"], *selector["agent_ids"], *labels])
