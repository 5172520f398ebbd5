"""Tables and consoles for people."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.commands.output import printable

_STYLES = {
    "healthy": "green",
    "degraded": "yellow",
    "offline": "red",
    "pending": "cyan",
    "stopped": "dim",
    "archived": "dim",
    "revoked": "dim",
}
_UNWRAPPED = 10_000


def make_console(*, stderr: bool = False) -> Console:
    """A console that wraps for a terminal and never for a pipe."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else _UNWRAPPED)


def make_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table without rulings; a cell that is a status gets its colour."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    return table


def show_live(columns: Sequence[str], rows: Callable[[], Iterable[Sequence[object]]], interval: float) -> None:
    """Show what ``rows`` gives as a table in place, again every ``interval`` seconds, until interrupted."""
    with Live(console=make_console(), auto_refresh=False) as live:
        while True:
            live.update(make_table(columns, rows()), refresh=True)
            time.sleep(interval)


def _cell(value: Any) -> Text:
    text = printable("" if value is None else value)
    return Text(text, style=_STYLES.get(text, ""))
