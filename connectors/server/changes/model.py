"""What the watchers of a host have in common: a change, a look, and how a watcher that compares states looks.

A watcher is asked every now and then. It answers nothing (None) where a few ``stat`` calls show that nothing has changed, and reads its
source only otherwise. What it saw is remembered on disk, so that the first look after a start finds what changed while nobody looked.
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, Protocol

from connectors.core.errors import CollectorError
from connectors.core.telemetry import Attributes, AttributeValue, Severity

State = Mapping[str, str]
"""What a watcher saw: a text for each thing, by the thing's own key."""

PREFIX: Final = "irca.host"
LONGEST: Final = 1024
"""Characters of an attribute that came from the host."""
MOST_ITEMS: Final = 20_000
"""Things of a state. What is beyond is not watched."""
_LONGEST_VALUE: Final = 4096
_PROGRAM_TIMEOUT: Final = 10.0
_LARGEST_OUTPUT: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Change:
    """Something that changed. ``subject`` tells it from the others of the same look; ``name`` lacks the prefix ``irca.host.``.

    ``time_unix_nano`` is when it happened where the source says so, else 0. ``identity`` is set where the source itself names each
    happening: then it alone decides the event's id.
    """

    name: str
    subject: str
    body: str
    attributes: Attributes = field(default_factory=dict)
    severity: Severity = Severity.INFO
    time_unix_nano: int = 0
    identity: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """What a look brought. ``state`` and ``stamp`` replace what is remembered; a ``state`` of None leaves it as it is.

    ``texts`` are bulky values kept beside the state (None forgets one). ``lasting`` is False where losing this look to a crash only
    means doing it again, so that it need not be written down at once.
    """

    stamp: str
    state: State | None = None
    changes: Sequence[Change] = ()
    texts: Mapping[str, str | None] = field(default_factory=dict)
    lasting: bool = True


class Memory(Protocol):
    """What is remembered of a watcher's last look."""

    @property
    def stamp(self) -> str | None:
        """What its last look left as a stamp; None at the very first look."""
        ...

    @property
    def key(self) -> bytes:
        """A key of this agent's, for hashes."""
        ...

    @property
    def boundary(self) -> float:
        """Unix time since when something may have changed unseen."""
        ...

    def state(self) -> State | None:
        """What its last look saw; None at the very first look."""
        ...

    def text(self, key: str) -> str | None:
        """A bulky value that a look left; None where there is none."""
        ...


class Watcher(ABC):
    """Watches one kind of change. ``interval`` are the seconds between two looks, unless the option ``change_interval`` is longer."""

    name: ClassVar[str]
    interval: ClassVar[float]

    note: str = ""
    """What this user is not allowed to see, in one line: normal for an agent without root, and no failure."""

    @abstractmethod
    def look(self, memory: Memory) -> Look | None:
        """Look; None where nothing is new.

        Raises:
            CollectorError: the source cannot be read.
            OSError: the same.
        """

    def directories(self) -> Iterable[str]:
        """Directories in which something happens when there is something to see."""
        return ()

    def close(self) -> None:  # noqa: B027 - most watchers hold nothing open
        """Let go of what looking opened."""


class StateWatcher(Watcher):
    """A watcher that compares what is with what was, whenever its stamp is another one."""

    def look(self, memory: Memory) -> Look | None:
        """As :meth:`Watcher.look`."""
        stamp = self._stamp()
        if stamp == memory.stamp:
            return None
        before, after = memory.state(), bounded_state(self._read())
        changes = self._first(after) if before is None else self._compare(before, after, memory)
        return Look(stamp, after, list(changes))

    @abstractmethod
    def _stamp(self) -> str:
        """What is another text whenever the state may be another one, and cheap to find out."""

    @abstractmethod
    def _read(self) -> State: ...

    @abstractmethod
    def _compare(self, before: State, after: State, memory: Memory) -> Iterable[Change]: ...

    def _first(self, after: State) -> Iterable[Change]:  # noqa: ARG002 - for watchers of conditions, which stand from the start
        """What the very first look tells: nothing, for nothing is known to have changed."""
        return ()


def differences(before: State, after: State) -> Iterator[tuple[str, str | None, str | None]]:
    """(key, value before, value after) of each key whose value differs, in order of keys; None where there is none."""
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if old != new:
            yield key, old, new


def bounded_state(state: State) -> State:
    """The state, cut to what may be remembered: the same things every time, so that the cut is no change."""
    if len(state) > MOST_ITEMS:
        state = {key: state[key] for key in sorted(state)[:MOST_ITEMS]}
    return {key: value[:_LONGEST_VALUE] for key, value in state.items()}


def before_and_after(name: str, old: AttributeValue | None, new: AttributeValue | None) -> dict[str, AttributeValue]:
    """``<name>.before`` and ``<name>.after``, each where it is known."""
    return {f"{name}.{when}": bounded(value) for when, value in (("before", old), ("after", new)) if value is not None}


def bounded(value: AttributeValue) -> AttributeValue:
    """The value with its texts, and the number of them, cut to what an attribute should hold."""
    if isinstance(value, str):
        return value if len(value) <= LONGEST else value[: LONGEST - 1] + "…"
    if isinstance(value, (bool, int, float)):
        return value
    return [text[:LONGEST] for text in value[:100]]


def mark(path: str) -> str:
    """What is another text whenever the file was written, replaced or given other rights; empty where there is none that can be seen.

    For a directory also whenever an entry came or went.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - a Path costs more than the call, which is made thousands of times an hour
    except OSError:
        return ""
    if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
        return f"{found.st_mtime_ns:x}.{found.st_size:x}.{found.st_ino:x}.{found.st_ctime_ns:x}"
    return f"{found.st_mode:o}"


def read_file(path: str, limit: int) -> bytes:
    """The file's first ``limit`` bytes, without waiting for whoever should write into it.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
    try:
        parts, left = [], limit
        while left > 0 and (part := os.read(descriptor, min(left, 65_536))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def output_of(argv: Sequence[str], timeout: float = _PROGRAM_TIMEOUT) -> bytes:
    """What a program of the host prints, in the C locale.

    Raises:
        CollectorError: it is not installed, fails, prints too much or does not end in time.
    """
    import subprocess  # noqa: PLC0415 - psutil has brought it by the time that a watcher needs it; importing this module must not

    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin"
    environ = {"LC_ALL": "C", "PATH": search.lstrip(":"), "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}
    try:
        done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout, check=False, env=environ)
    except FileNotFoundError as exc:
        raise CollectorError(f"{argv[0]} is not installed") from exc
    except subprocess.TimeoutExpired as exc:
        raise CollectorError(f"{argv[0]} did not answer within {timeout:.0f} s") from exc
    except OSError as exc:
        raise CollectorError(f"{argv[0]} cannot be run: {exc.strerror or exc}") from exc
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise CollectorError(f"{argv[0]} ended with exit code {done.returncode}{f': {said[-1][:200]}' if said else ''}")
    if len(done.stdout) > _LARGEST_OUTPUT:
        raise CollectorError(f"{argv[0]} printed {len(done.stdout)} bytes, which is more than can be compared")
    return done.stdout
