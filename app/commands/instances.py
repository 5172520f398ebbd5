"""``instances``: the running processes of agents."""

from __future__ import annotations

from typing import Annotated

import typer

from app.commands.connection import JsonOption, UrlOption, connect
from app.commands.fleet import find_agent
from app.commands.history import SinceOption, print_history, since
from app.commands.output import ago, print_json, print_table, printable

instances = typer.Typer(help="Look at single instances of agents, archive them, revoke their credentials.", no_args_is_help=True)

_Id = Annotated[str, typer.Argument(help="The instance's id, as `instances list` shows it.")]


@instances.command("list")
def list_instances(
    agent: Annotated[str | None, typer.Option("--agent", "-a", help="Only of this agent, by id or environment.")] = None,
    status: Annotated[str | None, typer.Option("--status", help="Only instances of this status.")] = None,
    replaced: Annotated[bool, typer.Option("--with-replaced", help="Also pods that are gone while another does their work.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most this many.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List instances, problems first."""
    with connect(url) as client:
        filters = {
            "agent_id": find_agent(client, agent)["id"] if agent else None,
            "status": status,
            "with_replaced": "true" if replaced else None,
        }
        found = list(client.items("/api/v1/instances", filters, limit=limit))
    if as_json:
        print_json({"items": found})
        return
    rows = [
        (i["name"], i["environment_name"], i["agent_type"], i["status"], i["status_reason"], ago(i["last_seen_at"]), i["id"]) for i in found
    ]
    print_table(("INSTANCE", "ENVIRONMENT", "TYPE", "STATUS", "REASON", "LAST SEEN", "ID"), rows, empty="No instances.")


@instances.command("show")
def show(instance_id: _Id, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show an instance and the health of its parts."""
    with connect(url) as client:
        found = client.get(f"/api/v1/instances/{instance_id}")
    if as_json:
        print_json(found)
        return
    status = found["status"] + (f" ({found['status_reason']})" if found["status_reason"] else "")
    fields = [
        ("Instance", found["name"]),
        ("Environment", found["environment_name"]),
        ("Type", found["agent_type"]),
        ("Status", status),
        ("Since", found["status_since"]),
        ("Version", found["version"] or "-"),
        ("First seen", ago(found["first_seen_at"])),
        ("Last seen", ago(found["last_seen_at"])),
        ("Maintenance", f"until {found['maintenance_until']}" if found["maintenance_until"] else "-"),
        ("Agent", found["agent_id"]),
    ]
    for name, value in fields:
        typer.echo(f"{name:<14} {printable(value)}")
    typer.echo()
    rows = [(c["name"], "healthy" if c["healthy"] else "degraded", c["status"], c["last_error"]) for c in found["components"]]
    print_table(("PART", "HEALTH", "STATUS", "LAST ERROR"), rows, empty="It has not told of its parts.")


@instances.command("history")
def history(instance_id: _Id, start: SinceOption = None, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show how the status of an instance went, and how available it was; by default over the last day."""
    with connect(url) as client:
        print_history(client, f"/api/v1/instances/{instance_id}", since(start), as_json=as_json)


@instances.command("archive")
def archive(instance_id: _Id, url: UrlOption = None) -> None:
    """Archive an instance that is not heard any more. When it is heard again it comes back."""
    with connect(url) as client:
        found = client.post(f"/api/v1/instances/{instance_id}/archive", {})
    typer.echo(f"Archived {found['name']}.", err=True)


@instances.command("revive")
def revive(instance_id: _Id, url: UrlOption = None) -> None:
    """Take an instance out of the archive."""
    with connect(url) as client:
        found = client.post(f"/api/v1/instances/{instance_id}/revive", {})
    typer.echo(f"{found['name']} is {found['status']}.", err=True)


@instances.command("revoke")
def revoke(instance_id: _Id, url: UrlOption = None) -> None:
    """Revoke the credential of an instance, at once. It has to enrol again."""
    with connect(url) as client:
        client.delete(f"/api/v1/instances/{instance_id}/credential")
    typer.echo(f"Revoked the credential of {instance_id}.", err=True)
