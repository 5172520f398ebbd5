"""``groups``: who is configured together."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.connection import JsonOption, UrlOption, connect
from app.commands.output import CommandError, print_json, print_table, printable

if TYPE_CHECKING:
    from app.commands.client import PlatformClient

groups = typer.Typer(help="Make, list, change and delete groups of instances.", no_args_is_help=True)

_Group = Annotated[str, typer.Argument(help="The group's name or id.")]
SelectorOption = Annotated[
    str, typer.Option("--selector", "-l", help="Whom it selects, as kubectl writes it: team=web,environment in (prod,staging).")
]


@groups.command("list")
def list_groups(
    search: Annotated[str | None, typer.Option("--search", help="Only groups with this in name, description or selector.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the groups."""
    with connect(url) as client:
        found = list(client.items("/api/v1/groups", {"search": search}))
    if as_json:
        print_json({"items": found})
        return
    rows = [
        (g["name"], g["selector_text"] or "everybody", g["priority"], ", ".join(g["options"]) or "-", g["instances"], g["id"])
        for g in found
    ]
    print_table(
        ("NAME", "SELECTS", "PRIORITY", "SETS", "INSTANCES", "ID"), rows, empty="No groups. `incident-rca groups create` makes one."
    )


@groups.command("show")
def show_group(group: _Group, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show a group, and how its configuration fares at each member."""
    with connect(url) as client:
        found = find_group(client, group)
        configuration = client.get(f"/api/v1/groups/{found['id']}/configuration")
        members = list(client.items(f"/api/v1/groups/{found['id']}/instances"))
    if as_json:
        print_json({**found, "configuration": configuration["config"], "members": members})
        return
    fields = [
        ("Name", found["name"]),
        ("Description", found["description"] or "-"),
        ("Selects", found["selector_text"] or "everybody"),
        ("Priority", found["priority"]),
        ("Configuration", ", ".join(f"{k}={v}" for k, v in configuration["config"].items()) or "nothing"),
        ("Revision", configuration["revision"]),
        ("Id", found["id"]),
    ]
    for name, value in fields:
        typer.echo(f"{name:<14} {printable(value)}")
    typer.echo()
    rows = [(m["name"], m["environment_name"], m["status"], m["reason"], m["instance_id"]) for m in members]
    print_table(("INSTANCE", "ENVIRONMENT", "STATUS", "REASON", "ID"), rows, empty="No members.")


@groups.command("create")
def create_group(
    name: Annotated[str, typer.Argument(help="Its name.")],
    selector: SelectorOption = "",
    description: Annotated[str, typer.Option("--description", help="What it is for.")] = "",
    priority: Annotated[int, typer.Option("--priority", help="Where several groups set an option, the highest wins.")] = 0,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a group. `incident-rca config apply` configures it."""
    body = {"name": name, "description": description, "selector": parse_selector(selector), "priority": priority}
    with connect(url) as client:
        made = client.post("/api/v1/groups", body)
    if as_json:
        print_json(made)
        return
    typer.echo(f"Group {made['name']!r} selects {made['instances']} instances, id {made['id']}.", err=True)


@groups.command("update")
def update_group(
    group: _Group,
    name: Annotated[str | None, typer.Option("--name", help="A new name.")] = None,
    selector: Annotated[str | None, typer.Option("--selector", "-l", help="Whom it selects from now on.")] = None,
    description: Annotated[str | None, typer.Option("--description", help="What it is for.")] = None,
    priority: Annotated[int | None, typer.Option("--priority", help="Where several groups set an option, the highest wins.")] = None,
    url: UrlOption = None,
) -> None:
    """Change a group; what is not given stays."""
    with connect(url) as client:
        found = find_group(client, group)
        given = {"name": name, "description": description, "priority": priority}
        body: dict[str, Any] = {key: found[key] if value is None else value for key, value in given.items()}
        body["selector"] = found["selector"] if selector is None else parse_selector(selector)
        made = client.put(f"/api/v1/groups/{found['id']}", body, version=found["version"])
    typer.echo(f"Group {made['name']!r} selects {made['instances']} instances.", err=True)


@groups.command("delete")
def delete_group(group: _Group, url: UrlOption = None) -> None:
    """Delete a group. Its members give up what it configured."""
    with connect(url) as client:
        found = find_group(client, group)
        client.delete(f"/api/v1/groups/{found['id']}")
    typer.echo(f"Deleted {found['name']}.", err=True)


def find_group(client: PlatformClient, text: str) -> dict[str, Any]:
    """The group with the id or name ``text``.

    Raises:
        CommandError: there is none.
    """
    try:
        uuid.UUID(text)
    except ValueError:
        for one in client.items("/api/v1/groups", {"search": text}):
            if one["name"] == text:
                return one
        raise CommandError(f"there is no group {text!r}", hint="`incident-rca groups list` shows them all.") from None
    found: dict[str, Any] = client.get(f"/api/v1/groups/{text}")
    return found


def parse_selector(text: str) -> dict[str, Any]:
    """The selector as the API takes it.

    Raises:
        CommandError: it cannot be read.
    """
    from app.errors import InvalidRequestError  # noqa: PLC0415 - with the next: pydantic is heavy, and --help needs none
    from app.groups.selectors import parse  # noqa: PLC0415 - as above

    try:
        return parse(text).document()
    except InvalidRequestError as exc:
        raise CommandError(f"the selector is not valid: {exc.errors[0].message}", exit_code=2) from exc
