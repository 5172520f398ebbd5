"""The kernel's word that something happens in a directory (inotify), through the C library: Python has no module for it.

What calls the library is the part of ``ctypes`` that is written in C. Without the rest of it the agent is a quarter of a megabyte smaller,
and it works in a service that may make no memory executable, which importing ``ctypes`` tries to do.
"""

from __future__ import annotations

import _ctypes
import errno
import os
import struct
from collections.abc import Iterable
from typing import Final

from connectors.server.changes.watch import Notifier

MOST: Final = 256
"""Directories that are watched; a host allows 8,192 for all programs of a user by default."""
_HEAD: Final = struct.Struct("iIII")
_CLOSE_WRITE, _ATTRIB, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = 8, 4, 64, 128, 256, 512, 1024, 2048
_MASK: Final = _CLOSE_WRITE | _ATTRIB | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
_ONLY_DIRECTORIES: Final = 0x0100_0000
_OVERFLOW, _IGNORED = 0x4000, 0x8000
_FLAGS: Final = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)


class Inotify(Notifier):
    """Watches directories for whoever asks.

    Raises:
        OSError: the kernel, or the limits of this user, do not allow it.
    """

    def __init__(self) -> None:
        library = _ctypes.dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type] # None is this process, as dlopen(3) has it
        make, self._add, self._remove = (_ctypes.dlsym(library, f"inotify_{name}") for name in ("init1", "add_watch", "rm_watch"))
        self._descriptor = int(_ctypes.call_function(make, (_FLAGS,)))
        if self._descriptor < 0:
            raise OSError(errno.EMFILE, "the kernel gives no inotify instance")
        self._numbers: dict[str, int] = {}
        self._places: dict[str, frozenset[str]] = {}

    def watch(self, name: str, directories: Iterable[str]) -> bool:
        """As :meth:`Notifier.watch`. A directory that does not exist is watched for by the nearest one that does."""
        places = frozenset(_existing(each) for each in directories)
        if not places:
            return False
        if self._places.get(name) != places:
            self._places[name] = places
            self._let_go()
        # Added anew each time: that costs a call, and finds out that a directory was replaced by another of the same name.
        watched = [self._watch(directory) for directory in places]
        return all(watched)

    def woken(self) -> set[str]:
        """As :meth:`Notifier.woken`."""
        numbers: set[int] = set()
        everybody = False
        while content := self._read():
            at = 0
            while at + _HEAD.size <= len(content):
                number, mask, _, length = _HEAD.unpack_from(content, at)
                at += _HEAD.size + length
                everybody = everybody or bool(mask & (_OVERFLOW | _IGNORED))
                numbers.add(number)
                if mask & _IGNORED:  # the directory is gone, or was let go
                    self._numbers = {path: known for path, known in self._numbers.items() if known != number}
        if everybody:
            return set(self._places)
        touched = {path for path, number in self._numbers.items() if number in numbers}
        return {name for name, places in self._places.items() if touched & places}

    def close(self) -> None:
        """As :meth:`Notifier.close`."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _watch(self, directory: str) -> bool:
        if directory not in self._numbers and len(self._numbers) >= MOST:
            return False
        number = int(_ctypes.call_function(self._add, (self._descriptor, os.fsencode(directory), _MASK | _ONLY_DIRECTORIES)))
        if number < 0:
            self._numbers.pop(directory, None)
            return False
        self._numbers[directory] = number
        return True

    def _let_go(self) -> None:
        """Give up the directories that nobody wants any more."""
        wanted = {directory for places in self._places.values() for directory in places}
        for directory in self._numbers.keys() - wanted:
            _ctypes.call_function(self._remove, (self._descriptor, self._numbers.pop(directory)))

    def _read(self) -> bytes:
        try:
            return os.read(self._descriptor, 16_384)
        except BlockingIOError:
            return b""


def _existing(directory: str) -> str:
    """The directory, or the nearest above it that exists."""
    while directory not in ("", "/") and not os.path.isdir(directory):  # noqa: PTH112 - a Path costs more than the call
        directory = os.path.dirname(directory)  # noqa: PTH120 - as above
    return directory or "/"
