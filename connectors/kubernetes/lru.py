"""A mapping that forgets: what is remembered of a cluster has to be bounded, whatever the cluster does."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """At most ``most`` entries; those that were not put for longest are forgotten first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[Key, Value] = OrderedDict()

    def put(self, key: Key, value: Value) -> None:
        """Remember ``value`` under ``key``."""
        self._held[key] = value
        self._held.move_to_end(key)
        while len(self._held) > self._most:
            self._held.popitem(last=False)

    def get(self, key: Key) -> Value | None:
        """What is remembered under ``key``."""
        return self._held.get(key)

    def pop(self, key: Key) -> Value | None:
        """What is remembered under ``key``, and is no longer."""
        return self._held.pop(key, None)

    def items(self) -> list[tuple[Key, Value]]:
        """Everything remembered, that put first first."""
        return list(self._held.items())

    def values(self) -> list[Value]:
        """The values of everything remembered."""
        return list(self._held.values())

    def __contains__(self, key: Key) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._held))
