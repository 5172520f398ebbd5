"""A string that does not show itself: not in ``repr``, not in logs, not in tracebacks."""

from __future__ import annotations

import hmac


class Secret:
    """A token or credential. ``reveal()`` is the only way to its text; comparison takes constant time."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The secret's text, for the one place that must send it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('**********')" if self._text else "Secret('')"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._text))


NO_SECRET = Secret("")
"""Where there is none."""
