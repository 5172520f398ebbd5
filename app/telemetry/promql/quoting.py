"""Text inside PromQL."""

from __future__ import annotations

import re

_REGEX_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")


def quoted(text: str) -> str:
    """``text`` as a PromQL string literal, double quotes included."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def any_of(texts: list[str]) -> str:
    """A string literal for ``=~`` that matches exactly these texts."""
    return quoted("|".join(_REGEX_SPECIAL.sub(r"\\\g<0>", text) for text in texts))
