"""``webhooks``: who is told of what, and what came of it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from app.commands.connection import JsonOption, UrlOption, connect
from app.commands.keys import parse_duration
from app.commands.output import USAGE, CommandError, ago, print_json, print_table

webhooks = typer.Typer(help="Make, list, test and replay webhooks.", no_args_is_help=True)

_SEVERITIES = {"info": 9, "warn": 13, "error": 17}
_Id = Annotated[str, typer.Argument(help="The webhook's id, as `webhooks list` shows it.")]


@webhooks.command("create")
def create(  # noqa: PLR0913, PLR0917 - one option for each part of an endpoint; typer passes them by name
    name: Annotated[str, typer.Option("--name", help="What lists and the audit log call it.")],
    receiver: Annotated[str, typer.Option("--receiver", help="URL that events are posted to.")],
    template: Annotated[str, typer.Option("--template", help="standard, slack or pagerduty.")] = "standard",
    event_types: Annotated[
        list[str] | None, typer.Option("--event-type", help="Only these, such as irca.instance.*; may be repeated.")
    ] = None,
    environments: Annotated[list[str] | None, typer.Option("--environment", help="Only these, such as prod-*; may be repeated.")] = None,
    severity: Annotated[str, typer.Option("--severity", help="Least severity: info, warn or error.")] = "info",
    routing_key: Annotated[
        str, typer.Option("--routing-key", envvar="IRCA_PAGERDUTY_ROUTING_KEY", help="PagerDuty's integration key.", show_default=False)
    ] = "",
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a webhook and print its secret. It is shown this once."""
    if severity not in _SEVERITIES:
        raise CommandError(f"the severity must be one of {', '.join(_SEVERITIES)}, not {severity!r}", exit_code=USAGE)
    filters = {"event_types": event_types or [], "environments": environments or [], "min_severity": _SEVERITIES[severity]}
    body: dict[str, Any] = {"name": name, "url": receiver, "template": template, "filters": filters, "routing_key": routing_key}
    with connect(url) as client:
        made = client.post("/api/v1/webhooks", body)
    if as_json:
        print_json(made)
        return
    if template == "pagerduty":
        typer.echo(f"Webhook {made['name']!r}, id {made['id']}.", err=True)
        return
    typer.echo(f"Webhook {made['name']!r}, id {made['id']}. Its secret is shown only now:", err=True)
    typer.echo(made["secret"])


@webhooks.command("list")
def list_webhooks(url: UrlOption = None, as_json: JsonOption = False) -> None:
    """List the webhooks and how they fare."""
    with connect(url) as client:
        found = list(client.items("/api/v1/webhooks"))
    if as_json:
        print_json({"items": found})
        return
    rows = [(w["name"], _state(w), w["url"], w["pending"], w["dead"], w["id"]) for w in found]
    print_table(("NAME", "STATE", "RECEIVER", "WAITING", "GIVEN UP", "ID"), rows, empty="No webhooks.")


@webhooks.command("deliveries")
def deliveries(
    webhook_id: _Id,
    status: Annotated[str | None, typer.Option("--status", help="Only pending, delivered or dead ones.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = 50,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what was delivered, newest first."""
    with connect(url) as client:
        found = list(client.items("/api/v1/webhook-deliveries", {"webhook_id": webhook_id, "status": status}, limit=limit))
    if as_json:
        print_json({"items": found})
        return
    rows = [
        (d["status"], d["event_type"], d["last_error"] or d["last_status_code"] or "", d["attempts"], ago(d["created_at"]), d["id"])
        for d in found
    ]
    print_table(("STATUS", "EVENT", "LAST ANSWER", "TRIES", "MADE", "ID"), rows, empty="No deliveries.")


@webhooks.command("test")
def send_test(webhook_id: _Id, url: UrlOption = None) -> None:
    """Send a test event; `webhooks deliveries` shows what came of it."""
    with connect(url) as client:
        made = client.post(f"/api/v1/webhooks/{webhook_id}/test", {})
    typer.echo(f"Test delivery {made['id']} is on its way.", err=True)


@webhooks.command("replay")
def replay(
    webhook_id: _Id,
    delivery: Annotated[str | None, typer.Option("--delivery", help="Only this one; by default every one that was given up.")] = None,
    url: UrlOption = None,
) -> None:
    """Deliver again."""
    with connect(url) as client:
        done = client.post(f"/api/v1/webhooks/{webhook_id}/replay", {"delivery_id": delivery})
    typer.echo(f"{done['deliveries']} deliveries are on their way.", err=True)


@webhooks.command("rotate")
def rotate(
    webhook_id: _Id,
    overlap: Annotated[str, typer.Option("--overlap", help="How long the secret before stays valid.")] = "24h",
    url: UrlOption = None,
) -> None:
    """Change the secret and print the new one. It is shown this once."""
    with connect(url) as client:
        made = client.post(f"/api/v1/webhooks/{webhook_id}/secret", {"overlap": parse_duration(overlap)})
    typer.echo("The new secret. It is shown only now:", err=True)
    typer.echo(made["secret"])


@webhooks.command("delete")
def delete(webhook_id: _Id, url: UrlOption = None) -> None:
    """Delete a webhook with its delivery log."""
    with connect(url) as client:
        client.delete(f"/api/v1/webhooks/{webhook_id}")
    typer.echo(f"Deleted {webhook_id}.", err=True)


def _state(webhook: dict[str, Any]) -> str:
    if not webhook["enabled"]:
        return "disabled"
    if webhook["circuit"] == "open":
        return "failing"
    return "retrying" if webhook["failures"] else "well"
