"""A host for the tests of watchers: a root of files, what a watcher remembers, and the looks of one watcher after the other."""

from __future__ import annotations

import os
import time
from pathlib import Path

from app.events.catalogue import CATALOGUE

NANO = 1_000_000_000


class Remembered:
    """What a watcher remembers, in memory, as the watch keeps it on disk."""

    key = b"k" * 32

    def __init__(self):
        self.stamp = None
        self.boundary = 0.0
        self._state = None
        self.texts = {}

    def state(self):
        return self._state

    def text(self, key):
        return self.texts.get(key)

    def take(self, look):
        """Remember a look; its changes."""
        if look is None:
            return []
        self.stamp = look.stamp
        self._state = look.state if look.state is not None else self._state
        self.texts.update(look.texts)
        for change in look.changes:
            known = CATALOGUE[f"irca.host.{change.name}"]
            assert set(change.attributes) <= set(known.attributes), change
            assert change.body
        return list(look.changes)


class Host:
    """Files below ``root``; :meth:`write` always leaves another time than before."""

    def __init__(self, root: Path):
        self.path = root
        self.root = str(root)
        self._tick = 0

    def write(self, name: str, content: str | bytes, mode: int = 0o644) -> Path:
        path = self.path / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)
        self._tick += 1
        when = time.time_ns() + self._tick * NANO
        os.utime(path, ns=(when, when))
        os.utime(path.parent, ns=(when, when))
        return path

    def remove(self, name: str) -> None:
        path = self.path / name.lstrip("/")
        path.unlink()
        self._tick += 1
        when = time.time_ns() + self._tick * NANO
        os.utime(path.parent, ns=(when, when))


def names(changes) -> list[str]:
    return [change.name for change in changes]
