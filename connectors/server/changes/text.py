"""Texts of configuration files: without what looks like a secret, and what differs between two of them. Pure functions."""

from __future__ import annotations

import re
from typing import Final

from connectors.core.redaction import MASK, redact

MOST_LINES: Final = 60
"""Lines of a difference that are told."""
_LONGEST_LINE: Final = 300
_CONTEXT_LIMIT: Final = 400
_TAIL: Final = re.compile(re.escape(MASK) + r"(?!@)(?=[^\n]*[^\s\"'\n])[^\n]*")
_SPACED: Final = re.compile(
    r"(?im)^(?P<key>[ \t]*(?:set[ \t]+)?[\w.:/-]*"
    r"(?:pass|pwd|secret|token|credential|auth|psk|bindpw|community|apikey|privkey|private[_-]?key)[\w.-]*[ \t]+)(?P<value>\S[^\n]*)"
)
_PLAIN: Final = re.compile(
    r"(?i)(?:[\"']?(?:yes|no|on|off|true|false|none|any|all|default|\d{1,3})[\"']?[ \t]*(?:[;#].*)?$"
    r"|(?:required|requisite|sufficient|optional|include|substack)\b|[\"']?(?:[/.]|%h/)|\[)"
)
_BLOCK: Final = re.compile(
    r"(?i)(?P<indent>[ \t]*)(?:- )?[\"']?[\w.-]*(?:pass|pwd|secret|token|credential|private[_-]?key)[\w.-]*[\"']?"
    r"[ \t]*:[ \t]*(?:[|>][+-]?\d?)?[ \t]*"
)
_QUOTED_KEY: Final = re.compile(r"(?im)^(?P<key>[ \t]*(?:key|secret|psk)[ \t]+)(?P<value>[\"'][^\n]+|[A-Za-z0-9+/=]{16,}[^\n]*)")
_PROGRAM: Final = re.compile(
    r"(?P<key>\b(?:mysql|mysqldump|mysqladmin|mariadb|mariadb-dump|sshpass|ldapsearch|smbclient)\b[^\n]*?[ \t](?:-p|-w|-U)[ \t]*)"
    r"(?P<value>[^\s;|&]+)"
)
_USER_OPTION: Final = re.compile(r"(?P<key>\bcurl\b[^\n]*?[ \t](?:-u|--user|-U|--proxy-user)[ \t=]*)(?P<value>[^\s;|&]+)")
_CRYPT: Final = re.compile(r"\$(?:1|2[aby]?|5|6|7|y|apr1|argon2\w*|pbkdf2\S*)\$[^\s:\"']+")


def without_secrets(text: str) -> str:
    """The text without values that look like secrets, and without anything that follows one on its line.

    Beside what :func:`connectors.core.redaction.redact` takes out: values behind a blank (``requirepass x``, as many configuration files
    have them) unless they are plainly none (yes, no, small numbers, paths), passwords in options of well-known programs, and crypt hashes.
    """
    text = _CRYPT.sub(MASK, _without_blocks(text))
    text = _SPACED.sub(_spaced, text)
    text = _QUOTED_KEY.sub(rf"\g<key>{MASK}", text)
    text = _USER_OPTION.sub(rf"\g<key>{MASK}", _PROGRAM.sub(rf"\g<key>{MASK}", text))
    # The line's rest goes as well: a password may hold blanks, and where it ends depends on whose file this is.
    return _TAIL.sub(MASK, redact(text))


def difference(before: str, after: str) -> tuple[list[str], int, int]:
    """The lines that differ, each with ``-`` or ``+`` before it, in order and bounded; how many were added, and how many removed."""
    old, new = before.splitlines(), after.splitlines()
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    steps = _steps(old[start : len(old) - end], new[start : len(new) - end])
    added = sum(step[0] == "+" for step in steps)
    shown = [step[:_LONGEST_LINE] for step in steps[:MOST_LINES]]
    if len(steps) > MOST_LINES:
        shown.append(f"… {len(steps) - MOST_LINES} more lines")
    return shown, added, len(steps) - added


def _steps(old: list[str], new: list[str]) -> list[str]:
    """What is taken away and what is put, by the longest common sequence of lines where that is not too much to work out."""
    if not old or not new or max(len(old), len(new)) > _CONTEXT_LIMIT:
        return [f"-{line}" for line in old] + [f"+{line}" for line in new]
    lengths = [[0] * (len(new) + 1) for _ in range(len(old) + 1)]
    for i in range(len(old) - 1, -1, -1):
        row, below = lengths[i], lengths[i + 1]
        for j in range(len(new) - 1, -1, -1):
            row[j] = below[j + 1] + 1 if old[i] == new[j] else max(below[j], row[j + 1])
    steps, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        if i < len(old) and j < len(new) and old[i] == new[j]:
            i, j = i + 1, j + 1
        elif j == len(new) or (i < len(old) and lengths[i + 1][j] >= lengths[i][j + 1]):
            steps.append(f"-{old[i]}")
            i += 1
        else:
            steps.append(f"+{new[j]}")
            j += 1
    return steps


def _without_blocks(text: str) -> str:
    """Without what stands below a secret-looking key on lines of its own, as YAML has it."""
    if not any(_BLOCK.fullmatch(line) for line in text.splitlines()):
        return text
    kept: list[str] = []
    key: int | None = None  # how far the key is indented below which we are
    for line in text.split("\n"):
        body = line.lstrip(" \t")
        depth = len(line) - len(body)
        if body and key is not None and (depth > key or (depth == key and body.startswith("- "))):
            kept.append(f"{line[:depth]}{MASK}")
            continue
        if body:
            key = depth if _BLOCK.fullmatch(line) else None
        kept.append(line)
    return "\n".join(kept)


def _spaced(match: re.Match[str]) -> str:
    return match[0] if _PLAIN.match(match["value"]) else f"{match['key']}{MASK}"
