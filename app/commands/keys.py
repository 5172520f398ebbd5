"""``api-keys``: the keys that people and programs sign in with."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from app.commands.connection import JsonOption, UrlOption, connect
from app.commands.output import USAGE, CommandError, ago, print_json, print_table

api_keys = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def parse_duration(text: str) -> float:
    """Seconds of a duration such as ``90d``, ``12h``, ``30m`` or ``3600``.

    Raises:
        CommandError: it is none.
    """
    match = re.fullmatch(r"(\d{1,9})([smhdw]?)", text.strip())
    if not match or int(match[1]) == 0:
        raise CommandError(f"a duration must look like 90d, 12h, 30m or 3600 (seconds), not {text!r}", exit_code=USAGE)
    return float(int(match[1]) * _UNITS[match[2] or "s"])


@api_keys.command("create")
def create(
    name: Annotated[str, typer.Option("--name", help="What the key is for; lists show it.")],
    role: Annotated[str, typer.Option("--role", help="viewer, operator or admin.")] = "operator",
    expires_in: Annotated[str | None, typer.Option("--expires-in", help="Life of the key, for example 90d; default: for ever.")] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Write to the database in IRCA_DATA_DIR itself, without a key: for whoever is locked out.")
    ] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it. It is shown this once."""
    seconds = parse_duration(expires_in) if expires_in else None
    if offline:
        from app.commands import offline as locked_out  # noqa: PLC0415 - SQLAlchemy is heavy, and only this needs it

        made = locked_out.create_key(name, role, seconds)
    else:
        request: dict[str, Any] = {"name": name, "role": role}
        if seconds:
            request["expires_in"] = seconds
        with connect(url) as client:
            made = client.post("/api/v1/api-keys", request)
    if as_json:
        print_json(made)
        return
    typer.echo(f"API key {made['name']!r} with the role {made['role']}. It is shown only now:", err=True)
    typer.echo(made["key"])
    if offline:
        typer.echo("A platform that is running knows it after its next start.", err=True)


@api_keys.command("list")
def list_keys(url: UrlOption = None, as_json: JsonOption = False) -> None:
    """List the keys; their texts are not kept anywhere."""
    with connect(url) as client:
        found = list(client.items("/api/v1/api-keys"))
    if as_json:
        print_json({"items": found})
        return
    rows = [
        (
            k["name"],
            k["role"],
            f"{k['prefix']}…",
            "revoked" if k.get("revoked_at") else k.get("expires_at") or "never",
            ago(k.get("last_used_at")),
            k["id"],
        )
        for k in found
    ]
    print_table(("NAME", "ROLE", "KEY", "EXPIRES", "LAST USED", "ID"), rows, empty="No keys.")


@api_keys.command("revoke")
def revoke(key_id: Annotated[str, typer.Argument(help="The key's id, as `api-keys list` shows it.")], url: UrlOption = None) -> None:
    """Revoke a key, at once."""
    with connect(url) as client:
        client.delete(f"/api/v1/api-keys/{key_id}")
    typer.echo(f"Revoked {key_id}.", err=True)
