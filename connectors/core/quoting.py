"""Quoting of values for the shell or tool that will read them. Every value that reaches a printed command passes through here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence

posix = shlex.quote
"""``text`` as one word of a POSIX shell."""


def posix_command(words: Sequence[str]) -> str:
    """A POSIX shell command line whose argv is ``words``."""
    return shlex.join(words)


def posix_lines(groups: Iterable[Sequence[str]]) -> str:
    """A POSIX command line over several lines, one group of words a line, joined by backslashes."""
    return " \\\n  ".join(shlex.join(words) for words in groups if words)


def powershell(text: str) -> str:
    """``text`` as a PowerShell literal string; PowerShell also takes typographic quotes for quotes, so they are doubled too."""
    return "'" + re.sub("(['\u2018\u2019\u201a\u201b])", r"\1\1", text) + "'"


def helm_key(segments: Sequence[str]) -> str:
    """A ``helm --set`` key of these path segments."""
    return ".".join(re.sub(r"([\\.,=\[\]{}])", r"\\\1", segment) for segment in segments)


def helm_value(text: str) -> str:
    """``text`` as the value of ``helm --set-string`` (which reads commas, backslashes and braces itself)."""
    return re.sub(r"([\\,{}\[\]])", r"\\\1", text)
