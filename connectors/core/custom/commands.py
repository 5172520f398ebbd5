"""Commands that measure: which ones the host's owner allows.

A command is declared in a file of the host (JSON) and nowhere else: configuration, remote configuration above all, can only select
declared commands by name. The file counts only when nobody but root and the agent's own user can have written it.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from connectors.core.errors import ConfigError

FILE_VARIABLE: Final = "AGENT_CUSTOM_COMMANDS_FILE"
DEFAULT_FILE: Final = "/etc/incident-rca/commands.json"
_LARGEST_FILE: Final = 1_048_576
_KEYS: Final = frozenset({"name", "command", "interval", "timeout", "user", "format"})
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
Format = Literal["prometheus", "json"]


@dataclass(frozen=True, slots=True)
class Command:
    """A declared command: what runs (no shell), how often and how long at most (seconds), as whom, and the form of its output."""

    name: str
    argv: tuple[str, ...]
    interval: float = 60.0
    timeout: float = 10.0
    user: str = ""
    format: Format = "prometheus"


def selected_command(name: str, declared: Mapping[str, Command], path: Path) -> Command:
    """The declared command of that name.

    Raises:
        ConfigError: there is none; the reason lists the others.
    """
    if name not in declared:
        known = f"it declares {', '.join(sorted(declared))}" if declared else "it declares none"
        raise ConfigError(f"no command {name!r} is declared in {path} of the host; {known}", field="custom_commands")
    return declared[name]


def commands_file(environ: Mapping[str, str]) -> Path:
    """Where the host's owner declares commands."""
    return Path(environ.get(FILE_VARIABLE) or DEFAULT_FILE)


def declared_commands(path: Path) -> dict[str, Command]:
    """The commands that ``path`` declares, by name; none where there is no such file.

    Raises:
        ConfigError: others than root and the agent's user can write the file or its folder, or it is malformed.
    """
    if os.name == "nt":
        raise ConfigError("commands that measure run on POSIX systems only", field="custom_commands")
    content = _trusted_content(path)
    if content is None:
        return {}
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise _refusal(path, "is not JSON") from exc
    if not isinstance(document, dict) or document.keys() != {"commands"} or not isinstance(document["commands"], list):
        raise _refusal(path, 'must be {"commands": [...]}')
    commands = [_command(item, path) for item in document["commands"]]
    by_name = {command.name: command for command in commands}
    if len(by_name) != len(commands):
        raise _refusal(path, "declares a name twice")
    return by_name


def is_trusted(status: os.stat_result, owners: Iterable[int]) -> bool:
    """Whether nobody but ``owners`` can change what has this status."""
    return status.st_uid in owners and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _trusted_content(path: Path) -> bytes | None:
    owners = {0, os.geteuid()}
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise _refusal(path, f"cannot be read: {exc.strerror}") from exc
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _refusal(path, "is not a file")
        if not (is_trusted(status, owners) and is_trusted(path.resolve().parent.stat(), owners)):
            raise _refusal(path, "and its folder must belong to root (or the agent's user), and nobody else may write them")
        content = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise _refusal(path, f"is larger than {_LARGEST_FILE} bytes")
    return content


def _command(item: Any, path: Path) -> Command:
    if not isinstance(item, dict) or not item.keys() <= _KEYS:
        raise _refusal(path, f"must hold commands with {', '.join(sorted(_KEYS))}")
    name, argv = item.get("name"), item.get("command")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _refusal(path, f"holds a command whose name does not match {_NAME.pattern}")
    if not isinstance(argv, list) or not argv or not all(isinstance(word, str) and "\0" not in word for word in argv):
        raise _refusal(path, f"must give {name}'s command as a list of strings")
    if not argv[0].startswith("/"):
        raise _refusal(path, f"must give {name}'s program by its absolute path")
    user, form = item.get("user", ""), item.get("format", "prometheus")
    if not isinstance(user, str) or form not in ("prometheus", "json"):
        raise _refusal(path, f"must give {name}'s user as a string, and its format as prometheus or json")
    interval, timeout = (_seconds(item, key, name, default, path) for key, default in (("interval", 60.0), ("timeout", 10.0)))
    return Command(name, tuple(argv), interval, timeout, user, form)


def _seconds(item: Mapping[str, Any], key: str, name: str, default: float, path: Path) -> float:
    value = item.get(key, default)
    least, most = (1, 86_400) if key == "interval" else (0.1, 300)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise _refusal(path, f"must give {name}'s {key} as {least} to {most} seconds")
    return float(value)


def _refusal(path: Path, what: str) -> ConfigError:
    return ConfigError(f"the file of custom commands {path} {what}", field="custom_commands")
