"""How the status of an agent or instance went, and how available it was."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.keys import parse_duration
from app.commands.output import print_json, print_table

if TYPE_CHECKING:
    from app.commands.client import PlatformClient

SinceOption = Annotated[str | None, typer.Option("--since", help="Only of this last while, for example 24h or 7d.", metavar="DURATION")]


def since(text: str | None, now: datetime | None = None) -> str | None:
    """The RFC 3339 time that lies a duration such as ``24h`` back; None for None.

    Raises:
        CommandError: it is no duration.
    """
    return None if text is None else ((now or datetime.now(UTC)) - timedelta(seconds=parse_duration(text))).isoformat()


def print_history(client: PlatformClient, path: str, start: str | None, *, as_json: bool) -> None:
    """Print the history and availability of what is at ``path`` since ``start``, by default of the last day."""
    history = client.get(f"{path}/history", start=start)
    available = client.get(f"{path}/availability", start=start)
    if as_json:
        print_json({"history": history, "availability": available})
        return
    rows = [(s["start"], s["status"] or "not known", length(s["seconds"]), s["reason"]) for s in history["stretches"]]
    print_table(("SINCE", "STATUS", "FOR", "REASON"), rows, empty="Nothing is known of that time.")
    share, outages = available["available"], available["outages"]
    told = "not known" if share is None else f"{100 * share:.3f} %"
    typer.echo(f"Available: {told}, {outages} outage{'' if outages == 1 else 's'}.", err=True)


def length(seconds: float) -> str:
    """A length of time in its two greatest units: ``3 h 20 min``."""
    left, parts = round(seconds), []
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"
