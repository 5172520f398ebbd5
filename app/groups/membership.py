"""Which of many selectors an instance's labels meet, without asking each of them. Pure functions of selectors and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app.groups.selectors import Selector

_COMMON = frozenset({"agent_type", "os.type", "host.arch"})
"""Labels of few values: where a selector names another one, too, that one tells more apart."""


class SelectorIndex:
    """Selectors by a value that each of them needs; those that need none are asked every time."""

    def __init__(self, selectors: Sequence[Selector]) -> None:
        self._selectors = selectors
        self._always: list[int] = []
        self._by_value: dict[str, dict[str, list[int]]] = {}
        for place, selector in enumerate(selectors):
            needed = _needed(selector)
            if needed is None:
                self._always.append(place)
                continue
            key, values = needed
            for value in values:
                self._by_value.setdefault(key, {}).setdefault(value, []).append(place)

    def matching(self, labels: Mapping[str, str]) -> list[int]:
        """Places of the selectors that these labels meet, in order."""
        found = list(self._always)
        for key, by_value in self._by_value.items():
            found += by_value.get(labels.get(key, ""), ()) if key in labels else ()
        return [place for place in sorted(found) if self._selectors[place].matches(labels)]


def _needed(selector: Selector) -> tuple[str, Sequence[str]] | None:
    """A label without which the selector cannot be met, and the values of which it must have one; None when there is none."""
    needed: list[tuple[str, Sequence[str]]] = [(key, [value]) for key, value in selector.match_labels.items()]
    needed += [(one.key, list(dict.fromkeys(one.values))) for one in selector.match_expressions if one.operator == "In"]
    return min(needed, key=lambda one: (one[0] in _COMMON, len(one[1])), default=None)
