"""``apply`` and ``export``: the fleet as a file that says how groups, configurations, labels and webhooks are to be."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.connection import JsonOption, UrlOption, connect
from app.commands.output import FAILED, USAGE, CommandError, print_json

if TYPE_CHECKING:
    from app.commands.client import PlatformClient
    from app.commands.fleet_apply import Outcome
    from app.commands.fleet_file import FleetFile
    from app.commands.fleet_plan import Actual, Change

PENDING = 2
"""Exit code of a dry run that found something to change."""


def apply(  # noqa: PLR0913, PLR0917 - one parameter for each option; typer passes them by name
    files: Annotated[
        list[str] | None, typer.Option("--file", "-f", help="A fleet file; - for standard input. Repeat for more.", metavar="FILE")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change. Exit code 2 when something would.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Also delete groups and webhooks that the files, having such a list, do not name.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    comment: Annotated[str | None, typer.Option("--comment", "-m", help="Why; kept in the history of configurations.")] = None,
    secrets: Annotated[
        Path | None, typer.Option("--secrets", help="Write the secrets of new webhooks into this new file instead of printing them.")
    ] = None,
    print_schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of fleet files, and do nothing else.")] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make groups, configurations, agents' labels and webhooks what fleet files say. Applying twice changes nothing more.

    It shows what changes, has the platform check it, and then makes one change after the other, each only if nobody else was faster. It
    stops at the first that fails and says what was done.
    """
    from app.commands import fleet_file  # noqa: PLC0415 - pydantic and Rich are heavy, and --help needs none

    if print_schema:
        print_json(fleet_file.schema())
        return
    if not files:
        raise CommandError("say which fleet file: --file fleet.yaml", exit_code=USAGE)
    wanted = fleet_file.load([_read(name) for name in files], lambda ref, at: fleet_file.read_reference(ref, at, os.environ))
    with connect(url) as client:
        changes, actual = _plan(client, wanted, prune=prune)
        if not as_json:
            _show(changes)
        if dry_run or not changes:
            _told(changes, as_json=as_json)
            return
        _confirm(changes, yes=yes, from_stdin="-" in files)
        outcome = _make(client, changes, actual, comment or f"Applied from {', '.join(files)}.", secrets)
    _report(changes, outcome, secrets, as_json=as_json)


def export(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file instead of standard output.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the fleet file that describes what the platform has. Applying it changes nothing.

    Secrets are not in it: the URL of a Slack webhook and PagerDuty's key are named as environment variables.
    """
    from app.commands.fleet_state import as_yaml, export_document, read_everything  # noqa: PLC0415 - as in apply

    with connect(url) as client:
        document = export_document(read_everything(client))
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n" if as_json else as_yaml(document)
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise CommandError(f"{output} cannot be written: {exc.strerror}", exit_code=USAGE) from exc
    typer.echo(f"Wrote {output}.", err=True)


def _read(name: str) -> tuple[str, str, Path]:
    try:
        if name == "-":
            return "standard input", sys.stdin.read(), Path()
        path = Path(name)
        return name, path.read_text(encoding="utf-8"), path.parent
    except OSError as exc:
        raise CommandError(f"{name} cannot be read: {exc.strerror}", exit_code=FAILED) from exc
    except UnicodeDecodeError as exc:
        raise CommandError(f"{name} is not text in UTF-8", exit_code=FAILED) from exc


def _plan(client: PlatformClient, wanted: FleetFile, *, prune: bool) -> tuple[list[Change], Actual]:
    from app.commands.fleet_apply import check  # noqa: PLC0415 - as in apply
    from app.commands.fleet_plan import plan  # noqa: PLC0415 - as in apply
    from app.commands.fleet_state import read_actual  # noqa: PLC0415 - as in apply

    actual = read_actual(client, wanted)
    changes = plan(wanted, actual, prune=prune)
    check(client, changes, wanted, actual)
    return changes, actual


def _show(changes: Sequence[Change]) -> None:
    from app.commands.fleet_apply import show  # noqa: PLC0415 - as in apply

    show(changes)


def _told(changes: Sequence[Change], *, as_json: bool) -> None:
    """Say what would be done, and exit with :data:`PENDING` when that is something."""
    from app.commands.fleet_apply import document  # noqa: PLC0415 - as in apply

    if as_json:
        print_json(document(changes, None))
    typer.echo(_summary(changes, "would be made"), err=True)
    if changes:
        raise typer.Exit(PENDING)


def _make(client: PlatformClient, changes: Sequence[Change], actual: Actual, comment: str, secrets: Path | None) -> Outcome:
    from app.commands.fleet_apply import make, secrets_file  # noqa: PLC0415 - as in apply

    with secrets_file(secrets) as file:
        outcome = make(client, changes, actual, comment)
        if file is not None and outcome.secrets:
            file.write_text(json.dumps(outcome.secrets, indent=2) + "\n", encoding="utf-8")
    return outcome


def _report(changes: Sequence[Change], outcome: Outcome, secrets: Path | None, *, as_json: bool) -> None:
    """Say what was done; raises the error that stopped it, if one did."""
    from app.commands.fleet_apply import document, failure  # noqa: PLC0415 - as in apply

    if as_json:
        print_json({**document(changes, outcome), "secrets": {} if secrets else outcome.secrets})
    elif outcome.secrets and secrets is None:
        typer.echo("The secrets of new webhooks. They are shown only now:", err=True)
        for name, secret in outcome.secrets.items():
            typer.echo(f"{name}: {secret}")
    if outcome.error is not None and outcome.failed is not None:
        raise failure(outcome, outcome.failed, outcome.error)
    typer.echo(_summary(changes, "made"), err=True)


def _confirm(changes: Sequence[Change], *, yes: bool, from_stdin: bool) -> None:
    """Ask before anything is deleted that somebody may have made by hand."""
    gone = sum(change.act == "delete" for change in changes)
    if not gone or yes:
        return
    if from_stdin or not sys.stdin.isatty():
        raise CommandError(f"{gone} deletions are not made without being asked for twice: add --yes", exit_code=USAGE)
    if not typer.confirm(f"Delete {gone}?", err=True):
        raise CommandError("nothing was changed")


def _summary(changes: Sequence[Change], verb: str) -> str:
    if not changes:
        return "Nothing to change."
    return f"{len(changes)} change{'' if len(changes) == 1 else 's'} {verb}."
