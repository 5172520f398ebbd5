"""What commands write: plain text to paste, tables for people, JSON for programs, and one clear line for a failure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

import typer

FAILED: Final = 1
USAGE: Final = 2
CANNOT_START: Final = 3


class CommandError(Exception):
    """A command failed for a reason that its user can understand: the message is all that is shown.

    ``exit_code`` is 1 for a failure, 2 for wrong usage or settings, 3 when the platform cannot start. ``hint`` says what to do.
    """

    def __init__(self, message: str, *, hint: str = "", exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


def report(error: CommandError) -> None:
    """Write ``error`` to standard error, the hint on a line of its own."""
    typer.echo(f"incident-rca: {printable(error.message)}", err=True)
    for line in error.hint.splitlines():
        typer.echo(f"  {printable(line)}", err=True)


def print_json(document: object) -> None:
    """Write one JSON document to standard output."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def printable(text: object) -> str:
    """``text`` on one line and without terminal controls: names and reasons come from other machines."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Write a table, or ``empty`` where it would have no rows."""
    listed = list(rows)
    if not listed:
        typer.echo(empty)
        return
    from app.commands.tables import make_console, make_table  # noqa: PLC0415 - Rich costs what --help and --json need not pay

    make_console().print(make_table(columns, listed))


def ago(time: str | None, now: datetime | None = None) -> str:
    """How long ago an RFC 3339 time was: ``12 s ago``; ``never`` for None."""
    if not time:
        return "never"
    then = datetime.fromisoformat(time)
    seconds = max(0.0, ((now or datetime.now(UTC)) - then).total_seconds())
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
