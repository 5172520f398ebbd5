"""``tokens``: the enrolment tokens that deployment commands carry."""

from __future__ import annotations

import urllib.parse
from typing import Annotated, Any

import typer

from app.commands.connection import JsonOption, UrlOption, connect
from app.commands.keys import parse_duration
from app.commands.output import USAGE, CommandError, ago, print_json, print_table

tokens = typer.Typer(help="List, show, revoke and rotate enrolment tokens.", no_args_is_help=True)

_STATES = ("active", "expired", "revoked", "used-up")
_Id = Annotated[str, typer.Argument(help="The token's id, as `tokens list` shows it.")]


@tokens.command("list")
def list_tokens(
    environment: Annotated[str | None, typer.Option("--environment", "-e", help="Only of this environment.")] = None,
    agent_type: Annotated[str | None, typer.Option("--type", "-t", help="Only of agents of this type.")] = None,
    agent: Annotated[str | None, typer.Option("--agent", help="Only of the agent of this id.")] = None,
    state: Annotated[str | None, typer.Option("--state", help="active, expired, revoked or used-up.")] = None,
    search: Annotated[str | None, typer.Option("--search", help="Looks in prefix, environment and ids.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most this many.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the tokens, newest first; their texts are not kept anywhere."""
    if state is not None and state not in _STATES:
        raise CommandError(f"the state must be one of {', '.join(_STATES)}, not {state!r}", exit_code=USAGE)
    filters = {"environment_name": environment, "agent_type": agent_type, "agent_id": agent, "state": state, "search": search}
    with connect(url) as client:
        found = list(client.items("/api/v1/enrolment-tokens", filters, limit=limit))
    if as_json:
        print_json({"items": found})
        return
    rows = [(t["environment_name"], t["agent_type"], t["state"], _uses(t), f"{t['prefix']}…", t["expires_at"], t["id"]) for t in found]
    print_table(("ENVIRONMENT", "TYPE", "STATE", "USED", "TOKEN", "EXPIRES", "ID"), rows, empty="No tokens.")


@tokens.command("show")
def show(token_id: _Id, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show a token: what it has enrolled, and which instances came by it."""
    with connect(url) as client:
        found = client.get(_path(token_id))
    if as_json:
        print_json(found)
        return
    facts = (
        ("Token", f"{found['prefix']}…"),
        ("State", found["state"]),
        ("Agent", f"{found['environment_name']} ({found['agent_type']}, {found['agent_id']})"),
        ("Used", _uses(found)),
        ("Created", found["created_at"]),
        ("Revoked", found["revoked_at"]) if found["revoked_at"] else ("Expires", found["expires_at"]),
        ("Instances", f"{found['instance_count']}, {found['credential_count']} with a credential"),
    )
    print_table(("", ""), facts, empty="")
    rows = [(i["name"], i["status"], "valid" if i["has_credential"] else "none", i["id"]) for i in found["instances"]]
    print_table(("INSTANCE", "STATUS", "CREDENTIAL", "ID"), rows, empty="No instance came by it.")
    machines = [(m["machine"], ago(m["used_at"])) for m in found["machines"]]
    print_table(("ENROLLED", "FIRST"), machines, empty="It has enrolled nothing.")


@tokens.command("revoke")
def revoke(
    token_id: _Id,
    instances: Annotated[
        bool, typer.Option("--instances", help="Also the credentials of the instances that came by it: they are refused from then on.")
    ] = False,
    url: UrlOption = None,
) -> None:
    """Revoke a token, at once."""
    with connect(url) as client:
        before = client.get(_path(token_id))
        client.delete(_path(token_id) + ("?revoke_instances=true" if instances else ""))
    typer.echo(f"Revoked {before['prefix']}…", err=True)
    count = before["credential_count"]
    if count and instances:
        typer.echo(f"{count} instances lost their credentials.", err=True)
    elif count:
        typer.echo(f"{count} instances that came by it keep their credentials; --instances takes them, too.", err=True)


@tokens.command("rotate")
def rotate(
    token_id: _Id,
    overlap: Annotated[str, typer.Option("--overlap", help="How long the one before stays valid, for example 1h; 0 for no longer.")] = "1h",
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a new token in the place of one and print it. It is shown this once."""
    seconds = 0.0 if overlap.strip() == "0" else parse_duration(overlap)
    with connect(url) as client:
        made = client.post(f"{_path(token_id)}/rotate", {"overlap": seconds})
    if as_json:
        print_json(made)
        return
    typer.echo(f"The new token of {made['environment_name']}, id {made['id']}. It is shown only now:", err=True)
    typer.echo(made["token"])


def _path(token_id: str) -> str:
    return f"/api/v1/enrolment-tokens/{urllib.parse.quote(token_id, safe='')}"


def _uses(token: dict[str, Any]) -> str:
    return f"{token['uses']} of {token['max_uses']}"
