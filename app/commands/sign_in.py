"""``sign-in-link``: a link that signs a browser in once, for a machine without a browser or a browser without the key."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from app.commands.connection import JsonOption, UrlOption, connect
from app.commands.keys import parse_duration
from app.commands.output import CommandError, print_json


def sign_in_link(
    key: Annotated[
        str | None,
        typer.Option("--key", help="Name or id of the API key to sign in with; default: the one in use; another takes an admin."),
    ] = None,
    expires_in: Annotated[str | None, typer.Option("--expires-in", help="How long it can be used, such as 1h; default: 15m.")] = None,
    offline: Annotated[
        bool,
        typer.Option(
            "--offline", help="Write to the database in IRCA_DATA_DIR itself, without a key; for the oldest admin key by default."
        ),
    ] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a link that signs one browser in, once, with the rights of an API key."""
    seconds = parse_duration(expires_in) if expires_in else None
    if offline:
        from app.commands import offline as locked_out  # noqa: PLC0415 - SQLAlchemy is heavy, and only this needs it

        made = locked_out.create_link(key, seconds)
    else:
        made = _ask(url, key, seconds)
    if as_json:
        print_json(made)
        return
    typer.echo(made["url"])
    typer.echo(f"It signs one browser in, once, until {made['expires_at']}. Give it to nobody else.", err=True)


def _ask(url: str | None, key: str | None, seconds: float | None) -> Any:
    request: dict[str, Any] = {"expires_in": seconds} if seconds else {}
    with connect(url) as client:
        if key:
            found = [one["id"] for one in client.items("/api/v1/api-keys") if key in (one["id"], one["name"]) and not one.get("revoked_at")]
            if not found:
                raise CommandError(f"there is no API key {key!r}")
            request["api_key_id"] = found[0]
        return client.post("/api/v1/sign-in-links", request)
