"""How two descriptions differ, and how that is told in an event: pure functions.

A *description* has parts (``image``, ``env`` …), each a mapping of keys to texts. Where a text may come from a secret it is a keyed hash
already: nothing here sees the value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from connectors.core.telemetry import AttributeValue

Parts = Mapping[str, Mapping[str, str]]

PREFIX = "irca.k8s"
MAX_KEYS = 100
"""Entries of one list in an event."""
MAX_TEXT = 512
"""Characters of one entry."""


@dataclass(frozen=True, slots=True)
class Telling:
    """How the parts of a description are told.

    ``open`` are those whose values are told before and after, ``hashed`` those whose texts are keyed hashes and are told as what they are
    now, so that a value that comes back can be recognised. Of every other part the keys are told, by what became of them.
    """

    open: frozenset[str] = frozenset()
    hashed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PartDifference:
    """Keys of one part by what became of them."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.added, *self.removed, *self.changed)


def differences(before: Parts, after: Parts) -> dict[str, PartDifference]:
    """The parts that differ, by name in order; a part that a side lacks is empty there."""
    found = {}
    for part in sorted(before.keys() | after.keys()):
        old, new = before.get(part) or {}, after.get(part) or {}
        if old != new:
            found[part] = PartDifference(
                added=tuple(sorted(new.keys() - old.keys())),
                removed=tuple(sorted(old.keys() - new.keys())),
                changed=tuple(sorted(key for key in new.keys() & old.keys() if new[key] != old[key])),
            )
    return found


def difference_attributes(
    before: Parts, after: Parts, found: Mapping[str, PartDifference], telling: Telling
) -> Iterator[tuple[str, AttributeValue]]:
    """What differs, as attributes of an event. Lists are bounded."""
    yield f"{PREFIX}.changed", list(found)
    hashes: list[str] = []
    for part, difference in found.items():
        if part in telling.open:
            yield f"{PREFIX}.change.{part}.from", _values(before.get(part) or {}, difference.keys)
            yield f"{PREFIX}.change.{part}.to", _values(after.get(part) or {}, difference.keys)
            continue
        for became in ("added", "removed", "changed"):
            if keys := getattr(difference, became):
                yield f"{PREFIX}.change.{part}.{became}", bounded(keys)
        if part in telling.hashed:
            hashes += [f"{part}.{key}={after[part][key]}" for key in (*difference.added, *difference.changed)]
    if hashes:
        yield f"{PREFIX}.change.hashes", bounded(hashes)


def summary(found: Mapping[str, PartDifference], telling: Telling) -> str:
    """What differs, in words: ``image, env (2 keys)``."""
    return ", ".join(
        part.replace("_", " ") if part in telling.open else f"{part.replace('_', ' ')} ({_number(len(d.keys))})"
        for part, d in found.items()
    )


def digest(value: Any) -> str:
    """A text that differs where ``value`` does. Only for comparing: whoever knows the hash of a short value can find the value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def bounded(values: Sequence[str]) -> list[str]:
    """As many of ``values`` as a list in an event holds, none longer than an entry is."""
    return [value[:MAX_TEXT] for value in values[:MAX_KEYS]]


def _number(keys: int) -> str:
    return f"{keys} {'key' if keys == 1 else 'keys'}"


def _values(entries: Mapping[str, str], keys: Iterable[str]) -> list[str]:
    return bounded([f"{key}={entries[key]}" for key in keys if key in entries])
