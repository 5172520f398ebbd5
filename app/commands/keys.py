"""``api-keys``: the keys that people and programs sign in with."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from app.commands.connection import JsonOption, UrlOption, connect
from app.commands.output import USAGE, CommandError, ago, print_json, print_table

api_keys = typer.Typer(help="Make, list, rotate and revoke API keys.", no_args_is_help=True)

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
    environments: Annotated[
        str | None, typer.Option("--environments", help="Only in these environments, such as prod-*,staging; default: in all.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Write to the database in IRCA_DATA_DIR itself, without a key: for whoever is locked out.")
    ] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it. It is shown this once."""
    seconds = parse_duration(expires_in) if expires_in else None
    only = [name.strip() for name in (environments or "").split(",") if name.strip()]
    if environments is not None and not only:
        raise CommandError("--environments must name environments, such as prod-*,staging", exit_code=USAGE)
    if offline:
        from app.commands import offline as locked_out  # noqa: PLC0415 - SQLAlchemy is heavy, and only this needs it

        made = locked_out.create_key(name, role, seconds, only or ("*",))
    else:
        request: dict[str, Any] = {"name": name, "role": role}
        if seconds:
            request["expires_in"] = seconds
        if only:
            request["environments"] = only
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
            ", ".join(k["environments"]),
            f"{k['prefix']}…",
            "revoked" if k.get("revoked_at") else k.get("expires_at") or "never",
            ago(k.get("last_used_at")),
            k["id"],
        )
        for k in found
    ]
    print_table(("NAME", "ROLE", "ENVIRONMENTS", "KEY", "EXPIRES", "LAST USED", "ID"), rows, empty="No keys.")


@api_keys.command("rotate")
def rotate(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `api-keys list` shows it.")],
    overlap: Annotated[str, typer.Option("--overlap", help="How long the key before stays valid, for example 1h; 0 for no longer.")] = "1h",
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a new key of the same name, role and environments in the place of one and print it. It is shown this once."""
    seconds = 0.0 if overlap.strip() == "0" else parse_duration(overlap)
    with connect(url) as client:
        made = client.post(f"/api/v1/api-keys/{key_id}/rotate", {"overlap": seconds})
    if as_json:
        print_json(made)
        return
    typer.echo(f"The new key of {made['name']!r}, id {made['id']}. It is shown only now:", err=True)
    typer.echo(made["key"])


@api_keys.command("revoke")
def revoke(key_id: Annotated[str, typer.Argument(help="The key's id, as `api-keys list` shows it.")], url: UrlOption = None) -> None:
    """Revoke a key, at once."""
    with connect(url) as client:
        client.delete(f"/api/v1/api-keys/{key_id}")
    typer.echo(f"Revoked {key_id}.", err=True)
