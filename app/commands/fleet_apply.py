"""Checking and making the changes that were planned from fleet files, one request after the other."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from app.commands.fleet_file import FleetFile, Source
from app.commands.fleet_plan import Actual, Change, Difference
from app.commands.output import USAGE, CommandError, printable
from app.commands.tables import make_console

if TYPE_CHECKING:
    from app.commands.client import PlatformClient

_MARKS = {"create": ("+", "green"), "update": ("~", "yellow"), "delete": ("-", "red")}


@dataclass(slots=True)
class Outcome:
    """What came of the changes: those that were made, the one that failed and why, those that were not tried; secrets by webhook."""

    done: list[Change] = field(default_factory=list)
    failed: Change | None = None
    error: CommandError | None = None
    left: list[Change] = field(default_factory=list)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)

    def state(self, change: Change) -> str:
        """``done``, ``failed`` or ``not done``."""
        if change is self.failed:
            return "failed"
        return "done" if any(one is change for one in self.done) else "not done"


def check(client: PlatformClient, changes: Sequence[Change], wanted: FleetFile, actual: Actual) -> None:
    """Have the platform validate what it can before anything is changed.

    Raises:
        CommandError: it refuses a configuration; each refused option with file and line.
    """
    touched = {one.name for one in changes if one.kind == "group" or (one.owner and one.owner.kind == "group")}
    for group in wanted.groups or ():
        if group.value.name in touched:
            current = actual.groups.get(group.value.name)
            config = group.value.config
            if config is None:
                if current is None:
                    continue
                config = client.get(f"/api/v1/groups/{current.id}/configuration")["config"]
            body = {"selector": group.value.selector.document(), "config": config}
            with _placed(f"group {group.value.name}", group.source, group.path):
                client.post("/api/v1/groups/preview", body)
    for agent in wanted.agents or ():
        for change in changes:
            if change.kind == "configuration" and change.owner and (change.owner.kind, change.name) == ("agent", agent.value.name):
                with _placed(str(change), agent.source, agent.path):
                    client.put(f"/api/v1/agents/{change.owner.id}/configuration?dry_run=true", change.body, version=change.version)


def make(client: PlatformClient, changes: Sequence[Change], actual: Actual, comment: str) -> Outcome:
    """Make the changes in their order, and stop at the first that fails."""
    outcome = Outcome()
    ids = {name: group.id for name, group in actual.groups.items()}
    for number, change in enumerate(changes):
        try:
            answer = _make(client, change, ids, comment)
        except CommandError as exc:
            outcome.failed, outcome.error, outcome.left = change, exc, list(changes[number + 1 :])
            return outcome
        outcome.done.append(change)
        if change.kind == "group" and change.act == "create":
            ids[change.name] = answer["id"]
        if change.kind == "webhook" and change.act == "create" and change.body["template"] != "pagerduty":
            outcome.secrets[change.name] = answer["secret"]
    return outcome


def failure(outcome: Outcome, failed: Change, error: CommandError) -> CommandError:
    """The error that says what was done and what was not."""
    lines = [error.hint] if error.hint else []
    lines += [f"done: {_named(change)}" for change in outcome.done]
    lines.append(f"failed: {_named(failed)}")
    lines += [f"not done: {_named(change)}" for change in outcome.left]
    lines.append("Applying again does what is left.")
    where = f"{failed.where}: " if failed.where else ""
    return CommandError(f"{where}{_named(failed)}: {error.message}", hint="\n".join(lines), exit_code=error.exit_code)


def document(changes: Sequence[Change], outcome: Outcome | None) -> dict[str, Any]:
    """The changes as JSON; with ``outcome``, what came of each."""
    listed = [
        {
            "act": change.act,
            "kind": change.kind,
            "name": change.name,
            "owner": change.owner.kind if change.owner else None,
            "where": change.where or None,
            "state": outcome.state(change) if outcome else "planned",
            "fields": [{"field": d.field, "kind": d.kind, "before": d.before, "after": d.after} for d in change.differences],
        }
        for change in changes
    ]
    return {"dry_run": outcome is None, "changes": listed, "error": outcome.error.message if outcome and outcome.error else None}


def show(changes: Sequence[Change]) -> None:
    """Print the changes, each with its fields."""
    console = make_console()
    for change in changes:
        mark, style = _MARKS[change.act]
        console.print(Text(f"{mark} {printable(change)}", style=f"bold {style}"), soft_wrap=True)
        for one in change.differences:
            console.print(_line(one), soft_wrap=True)


@contextlib.contextmanager
def secrets_file(path: Path | None) -> Iterator[Path | None]:
    """A new file that only its owner may read, made before anything changes; it is removed again if nothing was written to it.

    Raises:
        CommandError: it exists already, or cannot be made.
    """
    if path is None:
        yield None
        return
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as exc:
        raise CommandError(f"{path} cannot be made for the secrets: {exc.strerror}", exit_code=USAGE) from exc
    try:
        yield path
    finally:
        if path.stat().st_size == 0:
            path.unlink()


def _make(client: PlatformClient, change: Change, ids: Mapping[str, str], comment: str) -> Any:
    if change.owner is not None:
        owner = change.owner.id or ids[change.owner.name]
        if change.kind == "labels":
            return client.patch(f"/api/v1/agents/{owner}", change.body)
        body = {**change.body, "comment": comment}
        return client.put(f"/api/v1/{change.owner.kind}s/{owner}/configuration", body, version=change.version)
    path = f"/api/v1/{change.kind}s"
    if change.act == "delete":
        return client.delete(f"{path}/{change.id}", version=change.version)
    body = dict(change.body)
    if change.kind == "webhook":
        body["filters"] = {**body["filters"], "groups": [ids.get(name, name) for name in body["filters"]["groups"]]}
    return client.post(path, body) if change.act == "create" else client.put(f"{path}/{change.id}", body, version=change.version)


@contextlib.contextmanager
def _placed(what: str, source: Source, path: tuple[int | str, ...]) -> Iterator[None]:
    """Give a refusal the file and line of what it refuses."""
    try:
        yield
    except CommandError as exc:
        lines = []
        for line in exc.hint.splitlines():
            name = line.partition(":")[0].split(".")
            lines.append(f"{source.at(*path, *name)}: {line}" if name[0] in ("config", "selector") else line)
        raise CommandError(f"{source.at(*path)}: {what}: {exc.message}", hint="\n".join(lines), exit_code=exc.exit_code) from exc


def _named(change: Change) -> str:
    return f"deletion of {change}" if change.act == "delete" else str(change)


def _line(one: Difference) -> Text:
    before, after = (printable(json.dumps(value, ensure_ascii=False)) for value in (one.before, one.after))
    name = printable(one.field)
    if one.kind == "added":
        return Text(f"    + {name} = {after}", style="green")
    if one.kind == "removed":
        return Text(f"    - {name} = {before}", style="red")
    return Text.assemble((f"    ~ {name} = ", "yellow"), (before, "red"), " → ", (after, "green"))
