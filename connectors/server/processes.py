"""Collectors of processes and what they hold open: open files, and on request the processes that use the most.

The second one looks at every process in every round, which no other collector does; that is why it has to be asked for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from connectors.core.telemetry import Attributes, Kind, Metric, Point
from connectors.server.host_collector import HostCollector, read_proc

LONGEST_COMMAND_LINE: Final = 200
_SHORTENED: Final = 15
"""Characters that the kernel keeps of a process's name."""
_READ_OF_COMMAND_LINE: Final = 4096


class FileDescriptorCollector(HostCollector):
    """Open files of the whole host and how many there may be (Linux), and the agent's own."""

    name = "file_descriptors"
    _source = "open files"

    def _gather(self) -> Iterator[Sequence[Metric]]:
        if psutil.LINUX:
            allocated, unused, most = (int(word) for word in read_proc("sys/fs/file-nr").split())
            yield [
                Metric("irca.host.file_descriptor.count", "{file_descriptor}", Kind.UPDOWNCOUNTER, [Point(float(allocated - unused))]),
                Metric("irca.host.file_descriptor.limit", "{file_descriptor}", Kind.UPDOWNCOUNTER, [Point(float(most))]),
            ]
            own = len(os.listdir(f"{psutil.PROCFS_PATH}/self/fd")) - 1  # noqa: PTH208 - names only; less the one that lists them
        else:  # pragma: no cover - other systems only
            process: Any = psutil.Process()  # type checkers know the methods of the system that they run on
            own = process.num_handles() if psutil.WINDOWS else process.num_fds()
        name, unit = ("process.windows.handle.count", "{handle}") if psutil.WINDOWS else (_OWN_FILES, "{file_descriptor}")
        yield [Metric(name, unit, Kind.UPDOWNCOUNTER, [Point(float(own))])]


_OWN_FILES: Final = "process.unix.file_descriptor.count"


@dataclass(frozen=True, slots=True)
class Process:
    """A process as of one look: ``cpu_time`` in seconds since it started, ``memory`` the resident bytes.

    ``started`` is only good for telling it from a later process with the same id.
    """

    pid: int
    started: float
    name: str
    cpu_time: float
    memory: int


class TopProcessCollector(HostCollector):
    """The ``count`` processes that used the most CPU time since the last round, and the ``count`` with the most memory.

    Names only; with ``arguments`` also the beginning of their command lines, without what looks secret.
    """

    name = "top_processes"
    _source = "processes"

    def __init__(
        self,
        resource: Attributes,
        count: int,
        *,
        arguments: bool = False,
        look: Callable[[], Iterable[Process]] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(resource)
        self._count = count
        self._arguments = arguments
        self._look = look or every_process
        self._monotonic = monotonic
        self._cpus = psutil.cpu_count() or 1
        self._last: dict[tuple[int, float], float] = {}
        self._last_at = 0.0
        self._labels: dict[tuple[int, float], Attributes] = {}

    def _gather(self) -> Iterator[Sequence[Metric]]:
        processes = list(self._look())
        if not processes:
            return
        shares = self._shares(processes)
        by_memory = sorted(processes, key=lambda one: (-one.memory, one.pid))[: self._count]
        by_cpu = sorted((one for one in processes if shares.get(_key(one))), key=lambda one: (-shares[_key(one)], one.pid))[: self._count]
        chosen = sorted({_key(one): one for one in (*by_memory, *by_cpu)}.values(), key=lambda one: one.pid)
        self._labels = {_key(one): self._labels.get(_key(one)) or self._describe(one) for one in chosen}
        memory = [Point(float(one.memory), self._labels[_key(one)]) for one in chosen]
        metrics = [Metric("process.memory.usage", "By", Kind.UPDOWNCOUNTER, memory)]
        known = [one for one in chosen if _key(one) in shares]
        if known:
            points = [Point(shares[_key(one)], self._labels[_key(one)]) for one in known]
            metrics.append(Metric("process.cpu.utilization", "1", Kind.GAUGE, points))
        yield metrics

    def _shares(self, processes: Sequence[Process]) -> Mapping[tuple[int, float], float]:
        """Which share of the host's CPU time each process used since the last round; of those that were there then."""
        now, last, self._last = self._monotonic(), self._last, {_key(one): one.cpu_time for one in processes}
        whole, self._last_at = (now - self._last_at) * self._cpus, now
        if not last or whole <= 0:
            return {}
        return {key: min(1.0, max(0.0, spent - last[key]) / whole) for key, spent in self._last.items() if key in last}

    def _describe(self, process: Process) -> Attributes:
        labels: dict[str, str | int] = {"process.pid": process.pid, "process.executable.name": process.name}
        if self._arguments and (command_line := _command_line(process.pid)):
            labels["process.command_line"] = command_line
        return labels


def every_process() -> Iterator[Process]:
    """Every process of the host. One that ends meanwhile, or that the system hides, is left out.

    Raises:
        OSError: the system does not list its processes.
    """
    if not psutil.LINUX:  # pragma: no cover - other systems only
        yield from _portable()
        return
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    for pid in psutil.pids():
        try:
            text = read_proc(f"{pid}/stat")
        except OSError:
            continue
        begin, end = text.find(b"("), text.rfind(b")")  # the name may hold anything, parentheses and spaces included
        fields = text[end + 2 :].split()
        name = text[begin + 1 : end].decode("utf-8", "replace")
        yield Process(pid, float(fields[19]), name, (int(fields[11]) + int(fields[12])) / ticks, int(fields[21]) * page)


def _portable() -> Iterator[Process]:
    for one in psutil.process_iter(["name", "create_time", "cpu_times", "memory_info"]):
        info = one.info
        if info["cpu_times"] is not None and info["memory_info"] is not None:
            spent = info["cpu_times"].user + info["cpu_times"].system
            yield Process(one.pid, info["create_time"] or 0.0, info["name"] or "", spent, info["memory_info"].rss)


def _command_line(pid: int) -> str:
    from connectors.core.redaction import redact  # noqa: PLC0415 - its patterns take memory that only this option needs

    words = _words(pid)
    text = redact(" ".join(words))
    return text if len(text) <= LONGEST_COMMAND_LINE else text[: LONGEST_COMMAND_LINE - 1] + "…"


def _words(pid: int) -> Sequence[str]:
    """The words of a command line, the program without its folder; empty for a kernel thread and for what is hidden."""
    try:
        if psutil.LINUX:
            with open(f"{psutil.PROCFS_PATH}/{pid}/cmdline", "rb", buffering=0) as file:  # noqa: PTH123 - as read_proc
                words = file.read(_READ_OF_COMMAND_LINE).rstrip(b"\0").decode("utf-8", "replace").split("\0")
        else:  # pragma: no cover - other systems only
            words = psutil.Process(pid).cmdline()
    except (OSError, psutil.Error):
        return ()
    return [Path(words[0]).name, *words[1:]] if words and words[0] else ()


def _key(process: Process) -> tuple[int, float]:
    return process.pid, process.started
