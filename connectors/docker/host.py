"""The host's own figures, for a docker agent that was given the host's ``/proc`` (option ``host_metrics``).

Read from the files themselves: psutil can look at another ``/proc`` only by a global switch, which would also mislead whoever measures
this process meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from connectors.core.errors import CollectorError
from connectors.core.procfs import cpu_metrics, load_metrics, memory_metrics
from connectors.core.telemetry import Attributes, Metric, Point, ResourceMetrics
from connectors.docker.metrics import metric

_ENGINE = ("dockerd", "containerd")


class HostCollector:
    """The host's CPU, memory, paging and load, and what the engine's own processes use. Metrics are of the agent's own resource."""

    name = "docker.host"

    def __init__(self, resource: Callable[[], Attributes], procfs: str = "/host/proc") -> None:
        self._resource = resource
        self._procfs = Path(procfs)

    def collect(self) -> Iterator[ResourceMetrics]:
        """One resource: the host.

        Raises:
            CollectorError: the host's ``/proc`` is not mounted, or is not Linux's.
        """
        try:
            stat, meminfo, loadavg = ((self._procfs / name).read_text(encoding="ascii") for name in ("stat", "meminfo", "loadavg"))
            ticks = os.sysconf("SC_CLK_TCK")
            metrics = [*cpu_metrics(stat, ticks), *memory_metrics(meminfo), *load_metrics(loadavg)]
            metrics += process_metrics(self._engine_processes(), ticks, os.sysconf("SC_PAGE_SIZE"))
        except OSError as exc:
            raise CollectorError(f"the host's /proc cannot be read at {self._procfs}: {exc.strerror}; mount it read-only") from exc
        except (ValueError, KeyError, IndexError) as exc:
            raise CollectorError(f"the host's /proc at {self._procfs} is not as expected: {type(exc).__name__}: {exc}") from exc
        yield ResourceMetrics(self._resource(), metrics)

    def _engine_processes(self) -> Iterator[tuple[str, str]]:
        """Name and ``stat`` of each of the engine's processes."""
        for directory in self._procfs.iterdir():
            if not directory.name.isdecimal():
                continue
            try:
                name = (directory / "comm").read_text(encoding="utf-8").strip()
                if name in _ENGINE:
                    yield name, (directory / "stat").read_text(encoding="utf-8")
            except OSError:
                continue  # it has just ended


def process_metrics(processes: Iterable[tuple[str, str]], ticks: int, page: int) -> Iterator[Metric]:
    """CPU time and resident memory by name of executable, from ``(name, /proc/<pid>/stat)`` with ``ticks`` a second and ``page`` bytes."""
    seconds: dict[str, float] = {}
    resident: dict[str, int] = {}
    for name, text in processes:
        fields = text.rpartition(")")[2].split()  # the name in it may contain anything; the third field comes first here
        seconds[name] = seconds.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / ticks
        resident[name] = resident.get(name, 0) + int(fields[21]) * page
    for metric_name, values in (("irca.engine.process.cpu.time", seconds), ("irca.engine.process.memory.usage", resident)):
        if values:
            yield metric(metric_name, [Point(float(value), {"process.executable.name": name}) for name, value in sorted(values.items())])
