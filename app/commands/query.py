"""``query``: PromQL over what was collected, as a table or JSON."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.connection import JsonOption, UrlOption, connect
from app.commands.keys import parse_duration
from app.commands.output import USAGE, CommandError, print_json, print_table

if TYPE_CHECKING:
    from app.commands.client import PlatformClient

_POINTS = 240
_INSTANCE = "$instance"


def query(
    promql: Annotated[
        str, typer.Argument(help="The query in PromQL; $instance in it stands for the id of --instance.", show_default=False)
    ],
    length: Annotated[str | None, typer.Option("--range", help="Over this last while, for example 1h or 7d.", metavar="DURATION")] = None,
    step: Annotated[str | None, typer.Option("--step", help="Time between points, for example 1m.", metavar="DURATION")] = None,
    instance: Annotated[str | None, typer.Option("--instance", help="Name or id that $instance stands for.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask for metrics in PromQL, now or over a range."""
    if step is not None and length is None:
        raise CommandError("--step goes with --range", exit_code=USAGE)
    if (instance is None) is (_INSTANCE in promql):
        raise CommandError("--instance and $instance in the query go together, as in 'up{instance=\"$instance\"}'", exit_code=USAGE)
    with connect(url) as client:
        if instance is not None:
            promql = promql.replace(_INSTANCE, _instance_id(client, instance))
        if length is None:
            answer = client.get("/prometheus/api/v1/query", query=promql)
        else:
            seconds = parse_duration(length)
            end = time.time()
            between = parse_duration(step) if step else max(1, math.ceil(seconds / _POINTS))
            answer = client.get("/prometheus/api/v1/query_range", query=promql, start=end - seconds, end=end, step=between)
    if as_json:
        print_json(answer["data"])
        return
    kind, result = answer["data"]["resultType"], answer["data"]["result"]
    if kind == "matrix":
        rows = [(series_text(one["metric"]), *figures([value for _, value in one["values"]])) for one in result]
        print_table(("SERIES", "POINTS", "LAST", "MIN", "AVG", "MAX"), rows, empty="No samples.")
    else:
        values = [("", result[1])] if kind in ("scalar", "string") else [(series_text(one["metric"]), one["value"][1]) for one in result]
        print_table(("SERIES", "VALUE"), values, empty="No samples.")


def series_text(labels: Mapping[str, str]) -> str:
    """A series as PromQL writes it."""
    inner = ", ".join(f'{name}="{value}"' for name, value in sorted(labels.items()) if name != "__name__")
    return labels.get("__name__", "") + (f"{{{inner}}}" if inner else "") or "{}"


def figures(values: Sequence[str]) -> tuple[str, str, str, str, str]:
    """How many values there are, and the last, least, average and greatest of them; ``-`` where none is a number."""
    known = [value for value in map(float, values) if math.isfinite(value)]
    if not known:
        return str(len(values)), "-", "-", "-", "-"
    last, least, most = known[-1], min(known), max(known)
    return str(len(values)), _short(last), _short(least), _short(math.fsum(known) / len(known)), _short(most)


def _short(value: float) -> str:
    return f"{value:.6g}"


def _instance_id(client: PlatformClient, wanted: str) -> str:
    found: list[dict[str, Any]] = [
        one for one in client.items("/api/v1/instances", {"with_replaced": "true"}) if wanted in (one["id"], one["name"])
    ]
    if len({one["id"] for one in found}) == 1:
        return re.sub(r'["\\\n]', "", str(found[0]["id"]))
    if not found:
        raise CommandError(f"there is no instance {wanted!r}", hint="`incident-rca instances list` shows them.")
    names = "\n".join(f"{one['id']}  {one['environment_name']}" for one in found)
    raise CommandError(f"{len(found)} instances are called {wanted!r}; give the id of one", hint=names, exit_code=USAGE)
