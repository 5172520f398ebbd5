"""``webhooks``: who is told of what, and what came of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.connection import JsonOption, UrlOption, connect
from app.commands.groups import find_group
from app.commands.keys import parse_duration
from app.commands.output import USAGE, CommandError, ago, print_json, print_table, printable

if TYPE_CHECKING:
    from app.commands.client import PlatformClient

webhooks = typer.Typer(help="Make, list, test and replay webhooks.", no_args_is_help=True)

_SEVERITIES = {"info": 9, "warn": 13, "error": 17}
_Id = Annotated[str, typer.Argument(help="The webhook's name or id.", metavar="WEBHOOK")]


@webhooks.command("create")
def create(  # noqa: PLR0913, PLR0917 - one option for each part of an endpoint; typer passes them by name
    name: Annotated[str, typer.Option("--name", help="What lists and the audit log call it.")],
    receiver: Annotated[str, typer.Option("--receiver", help="URL that events are posted to.")],
    template: Annotated[str, typer.Option("--template", help="standard, slack or pagerduty.")] = "standard",
    event_types: Annotated[
        list[str] | None, typer.Option("--event-type", help="Only these, such as irca.instance.*; may be repeated.")
    ] = None,
    environments: Annotated[list[str] | None, typer.Option("--environment", help="Only these, such as prod-*; may be repeated.")] = None,
    groups: Annotated[list[str] | None, typer.Option("--group", help="Only of members of these groups; may be repeated.")] = None,
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
        filters["groups"] = [find_group(client, group)["id"] for group in groups or ()]
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


@webhooks.command("show")
def show(webhook_id: _Id, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show a webhook, its filters and how it fares."""
    with connect(url) as client:
        found = find_webhook(client, webhook_id)
    if as_json:
        print_json(found)
        return
    filters = found["filters"]
    fields = [
        ("Name", found["name"]),
        ("State", _state(found)),
        ("Receiver", found["url"]),
        ("Template", found["template"]),
        ("Event types", ", ".join(filters["event_types"]) or "all"),
        ("Environments", ", ".join(filters["environments"]) or "all"),
        ("Groups", ", ".join(filters["groups"]) or "all"),
        ("Severity", f"from {filters['min_severity']}"),
        ("Waiting", found["pending"]),
        ("Given up", found["dead"]),
        ("Id", found["id"]),
    ]
    for title, value in fields:
        typer.echo(f"{title:<14} {printable(value)}")


@webhooks.command("update")
def update(  # noqa: PLR0913, PLR0917 - one option for each part of an endpoint; typer passes them by name
    webhook_id: _Id,
    name: Annotated[str | None, typer.Option("--name", help="A new name.")] = None,
    receiver: Annotated[
        str | None, typer.Option("--receiver", help="URL that events are posted to; Slack's has to be given again.")
    ] = None,
    event_types: Annotated[list[str] | None, typer.Option("--event-type", help="Only these from now on; may be repeated.")] = None,
    environments: Annotated[list[str] | None, typer.Option("--environment", help="Only these from now on; may be repeated.")] = None,
    groups: Annotated[list[str] | None, typer.Option("--group", help="Only of members of these groups; may be repeated.")] = None,
    severity: Annotated[str | None, typer.Option("--severity", help="Least severity: info, warn or error.")] = None,
    enabled: Annotated[bool | None, typer.Option("--enable/--disable", help="Whether anything is sent.")] = None,
    routing_key: Annotated[
        str, typer.Option("--routing-key", envvar="IRCA_PAGERDUTY_ROUTING_KEY", help="PagerDuty's integration key.", show_default=False)
    ] = "",
    url: UrlOption = None,
) -> None:
    """Change a webhook; what is not given stays."""
    if severity is not None and severity not in _SEVERITIES:
        raise CommandError(f"the severity must be one of {', '.join(_SEVERITIES)}, not {severity!r}", exit_code=USAGE)
    with connect(url) as client:
        found = find_webhook(client, webhook_id)
        if receiver is None and found["template"] == "slack":
            raise CommandError(
                "the URL of a Slack webhook is a secret and not kept in the open: give it again with --receiver", exit_code=USAGE
            )
        given: dict[str, Any] = {"event_types": event_types, "environments": environments, "min_severity": _SEVERITIES.get(severity or "")}
        given["groups"] = [find_group(client, group)["id"] for group in groups or ()]
        body = {
            "name": name or found["name"],
            "url": receiver or found["url"],
            "template": found["template"],
            "filters": {**found["filters"], **{key: value for key, value in given.items() if value}},
            "enabled": found["enabled"] if enabled is None else enabled,
            "routing_key": routing_key if found["template"] == "pagerduty" else "",
        }
        made = client.put(f"/api/v1/webhooks/{found['id']}", body, version=found["version"])
    typer.echo(f"Webhook {made['name']!r} is at version {made['version']}.", err=True)


@webhooks.command("delivery")
def show_delivery(
    delivery_id: Annotated[str, typer.Argument(help="The delivery's id, as `webhooks deliveries` shows it.")],
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a delivery: its message, and what came of every try."""
    with connect(url) as client:
        found = client.get(f"/api/v1/webhook-deliveries/{delivery_id}")
    if as_json:
        print_json(found)
        return
    typer.echo(json.dumps(found["message"], indent=2, ensure_ascii=False))
    rows = [
        (t["time"], t["status_code"] or "-", t["error"] or "taken", f"{t['latency_ms']:.0f} ms", t["response_body"]) for t in found["tries"]
    ]
    print_table(("TIME", "STATUS", "RESULT", "LATENCY", "ANSWER"), rows, empty="It has not been tried yet.")


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
        filters = {"webhook_id": find_webhook(client, webhook_id)["id"], "status": status}
        found = list(client.items("/api/v1/webhook-deliveries", filters, limit=limit))
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
        made = client.post(f"/api/v1/webhooks/{find_webhook(client, webhook_id)['id']}/test", {})
    typer.echo(f"Test delivery {made['id']} is on its way.", err=True)


@webhooks.command("replay")
def replay(
    webhook_id: _Id,
    delivery: Annotated[str | None, typer.Option("--delivery", help="Only this one; by default every one that was given up.")] = None,
    url: UrlOption = None,
) -> None:
    """Deliver again."""
    with connect(url) as client:
        done = client.post(f"/api/v1/webhooks/{find_webhook(client, webhook_id)['id']}/replay", {"delivery_id": delivery})
    typer.echo(f"{done['deliveries']} deliveries are on their way.", err=True)


@webhooks.command("rotate")
def rotate(
    webhook_id: _Id,
    overlap: Annotated[str, typer.Option("--overlap", help="How long the secret before stays valid.")] = "24h",
    url: UrlOption = None,
) -> None:
    """Change the secret and print the new one. It is shown this once."""
    with connect(url) as client:
        made = client.post(f"/api/v1/webhooks/{find_webhook(client, webhook_id)['id']}/secret", {"overlap": parse_duration(overlap)})
    typer.echo("The new secret. It is shown only now:", err=True)
    typer.echo(made["secret"])


@webhooks.command("delete")
def delete(webhook_id: _Id, url: UrlOption = None) -> None:
    """Delete a webhook with its delivery log."""
    with connect(url) as client:
        found = find_webhook(client, webhook_id)
        client.delete(f"/api/v1/webhooks/{found['id']}")
    typer.echo(f"Deleted {found['name']}.", err=True)


def find_webhook(client: PlatformClient, text: str) -> dict[str, Any]:
    """The webhook with the id or name ``text``.

    Raises:
        CommandError: there is none.
    """
    for one in client.items("/api/v1/webhooks"):
        if text in (one["id"], one["name"]):
            return one
    raise CommandError(f"there is no webhook {text!r}", hint="`incident-rca webhooks list` shows them all.")


def _state(webhook: dict[str, Any]) -> str:
    if not webhook["enabled"]:
        return "disabled"
    if webhook["circuit"] == "open":
        return "failing"
    return "retrying" if webhook["failures"] else "well"
