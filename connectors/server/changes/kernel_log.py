"""The kernel's log: from ``/dev/kmsg`` where this user may read it, else from systemd's journal, else only the count of OOM kills.

The count is in ``/proc/vmstat``, which everybody may read: a process that was killed for want of memory is told even by an agent that may
read no log, only without its name.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from connectors.core.telemetry import Severity
from connectors.server.changes.model import Change, Look, Memory, Watcher, output_of, read_file

if TYPE_CHECKING:
    from connectors.server.changes.kernel_alarms import Alarms

JOURNAL_INTERVAL: Final = 30.0
"""Seconds between two questions to the journal, which are asked only when something was written to it."""
MOST_AT_ONCE: Final = 5_000
"""Messages that are read at a look; the rest waits for the next."""
HINTS: Final = (
    *("rror", "blocked for more", "ockup", "LOCKUP", "stall", "-fs", "XFS", "BTRFS", "segfault", "traps:", "BUG", "Oops", "panic", "emory"),
    *("oom-kill", "allocation failure", "table full", "SYN flooding", "ink is", "emperature", "protection", "achine check", "EDAC"),
)
"""What a message must hold to be looked at more closely."""
_RECORD: Final = 8_192
_KERNEL: Final = 8
"""Messages whose facility, the priority's higher bits, is another were written by programs."""
_NANO: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the kernel's. ``identity`` is the same whenever it is read again; the time is Unix nanoseconds."""

    identity: str
    text: str
    time_unix_nano: int
    priority: int = 6


class KernelLogWatcher(Watcher):
    """Follows the kernel's messages and tells of alarms among them. What came while the agent was not running is told as well."""

    name: ClassVar[str] = "kernel_log"
    interval: ClassVar[float] = 2.0

    def __init__(self, root: str = "", monotonic: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._monotonic = monotonic
        self._alarms: Alarms | None = None
        self._source: _Kmsg | _Journal | None = None
        self._chosen = False

    def look(self, memory: Memory) -> Look | None:
        """As :meth:`Watcher.look`."""
        known: dict[str, str] = json.loads(memory.stamp) if memory.stamp else {}
        if not self._chosen:
            self._source, self.note = self._choose()
            self._chosen = True
        now, position = self._monotonic(), dict(known)
        changes = []
        if self._source is not None:
            for message in self._source.messages(position, first=not known):
                if change := self._take(message, now):
                    changes.append(change)  # noqa: PERF401 - what was taken counts even where the next message cannot be read
            changes += self._alarms.settle(now) if self._alarms is not None else ()
        changes += self._counted(position, known, named=self._source is not None)
        if position == known and not changes:
            return None
        return Look(json.dumps(position), None if known else {}, changes, lasting=bool(changes) or not known)

    def close(self) -> None:
        """As :meth:`Watcher.close`."""
        if isinstance(self._source, _Kmsg):
            self._source.close()
        self._source, self._chosen = None, False

    def _take(self, message: Message, now: float) -> Change | None:
        if not any(hint in message.text for hint in HINTS):
            return None
        if self._alarms is None:
            from connectors.server.changes.kernel_alarms import Alarms  # noqa: PLC0415 - its patterns are for hosts that have had an alarm

            self._alarms = Alarms()
        return self._alarms.take(message, now)

    def _choose(self) -> tuple[_Kmsg | _Journal | None, str]:
        try:
            return _Kmsg(f"{self._root}/dev/kmsg", self._boot()), ""
        except OSError:
            pass
        if journal := _Journal.find(self._root):
            return journal, ""
        return None, "the kernel's log is not readable to this user (group systemd-journal lets it); OOM kills are told without a name"

    def _boot(self) -> str:
        return read_file(f"{self._root}/proc/sys/kernel/random/boot_id", 64).decode(errors="replace").strip()

    def _counted(self, position: dict[str, str], known: dict[str, str], *, named: bool) -> Iterator[Change]:
        """OOM kills by the kernel's count, where no log names them."""
        try:
            statistics = read_file(f"{self._root}/proc/vmstat", 65_536) if not named else b""
        except OSError:
            return
        at = statistics.find(b"\noom_kill ")
        if at < 0:
            position.pop("oom", None)
            return
        count, boot = int(statistics[at + 10 :].split(maxsplit=1)[0]), self._boot()
        position["oom"] = f"{boot} {count}"
        before, _, text = known.get("oom", "").partition(" ")
        new = count - int(text) if before == boot and text else 0
        if new > 0:
            body = f"The kernel killed {new} process{'es' if new > 1 else ''}: out of memory"
            yield Change("oom_kill", f"{boot} {count}", body, {"irca.oom.count": new}, Severity.ERROR)


class _Kmsg:
    """The kernel's ring of messages. ``messages`` moves the position: which boot's, and which message was taken last.

    Raises:
        OSError: this user may not read it.
    """

    def __init__(self, path: str, boot: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._boot = boot
        self._since = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self._begun = False

    def messages(self, position: dict[str, str], *, first: bool) -> Iterator[Message]:
        if not self._begun:
            self._begun = True
            if first:
                self._skip()
        taken = int(position.get("sequence", "-1")) if position.get("boot") == self._boot else -1
        position["boot"] = self._boot
        for _ in range(MOST_AT_ONCE):
            if not (record := self._next()):
                return
            parsed = parse_record(record)
            if parsed is None or parsed[0] <= taken:
                continue
            sequence, priority, microseconds, text = parsed
            position["sequence"] = str(sequence)
            if priority < _KERNEL:
                yield Message(f"{self._boot} {sequence}", text, self._since + microseconds * 1_000, priority)

    def close(self) -> None:
        os.close(self._descriptor)

    def _next(self) -> bytes:
        """The next record; nothing where there is none yet."""
        while True:
            try:
                return os.read(self._descriptor, _RECORD)
            except BlockingIOError:
                return b""
            except OSError as exc:
                # Some were overwritten before they were read, or one is longer than we read: the next read goes on behind them.
                if exc.errno not in (errno.EPIPE, errno.EINVAL):
                    raise

    def _skip(self) -> None:
        """At the very first look, what is there is no news."""
        os.lseek(self._descriptor, 0, os.SEEK_END)


class _Journal:
    """The kernel's messages in systemd's journal, asked for with ``journalctl`` when the journal was written to."""

    def __init__(self, files: list[str]) -> None:
        self._files = files
        self._mark: list[int] = []
        self._asked = float("-inf")

    @classmethod
    def find(cls, root: str) -> _Journal | None:
        """The journal, where there is one that this user may read."""
        for base in (f"{root}/var/log/journal", f"{root}/run/log/journal"):
            try:
                machines = sorted(os.listdir(base))  # noqa: PTH208 - a Path costs more than the call
            except OSError:
                continue
            files = [path for machine in machines if os.access(path := f"{base}/{machine}/system.journal", os.R_OK)]
            if files:
                return cls(files)
        return None

    def messages(self, position: dict[str, str], *, first: bool) -> Iterator[Message]:
        now = time.monotonic()
        mark = [_written(path) for path in self._files]
        if now - self._asked < JOURNAL_INTERVAL or mark == self._mark:
            return
        self._asked, self._mark = now, mark
        argv = ["journalctl", "_TRANSPORT=kernel", "-o", "json", "-q", "--no-pager", "--output-fields=MESSAGE,PRIORITY"]
        if cursor := position.get("cursor"):
            argv += ["--after-cursor", cursor]
        elif since := position.get("since"):
            argv += ["--since", f"@{since}"]
        argv += ["-n", "1" if first else str(MOST_AT_ONCE)]
        for line in output_of(argv).splitlines():
            entry = _entry(line)
            if entry is None:
                continue
            position["cursor"], message = entry
            if not first:
                yield message
        if not cursor and not position.get("cursor"):
            position.setdefault("since", str(int(time.time())))


def parse_record(record: bytes) -> tuple[int, int, int, str] | None:
    """Sequence number, priority with facility, microseconds since boot and text of a record of ``/dev/kmsg``; None where it is none."""
    head, _, rest = record.partition(b";")
    fields = head.split(b",")
    try:
        priority, sequence, microseconds = (int(field) for field in fields[:3])
    except ValueError:
        return None
    return sequence, priority, microseconds, unescaped(rest.partition(b"\n")[0])


def unescaped(text: bytes) -> str:
    r"""The text of a record, in which the kernel writes unprintable bytes as ``\x1b``."""
    if b"\\x" in text:
        parts = text.split(b"\\x")
        text = parts[0] + b"".join(_unhex(part) for part in parts[1:])
    return text.decode("utf-8", "replace")


def _unhex(part: bytes) -> bytes:
    try:
        return bytes.fromhex(part[:2].decode("ascii")) + part[2:]
    except ValueError:
        return b"\\x" + part


def _entry(line: bytes) -> tuple[str, Message] | None:
    """Cursor and message of an entry of the journal's."""
    try:
        entry = json.loads(line)
        text = entry.get("MESSAGE") or ""
        if isinstance(text, list):  # bytes that are no text
            text = bytes(text).decode("utf-8", "replace")
        when = int(entry["__REALTIME_TIMESTAMP"]) * 1_000
        cursor = str(entry["__CURSOR"])
        return cursor, Message(cursor, str(text), when, int(entry.get("PRIORITY", 6)))
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _written(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116 - a Path costs more than the call
    except OSError:
        return 0
