"""What the collectors of a server agent have in common: the host's boot time, exclusions, reading /proc, and one way to fail."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import psutil

from connectors.core.errors import CollectorError
from connectors.core.telemetry import Attributes, Metric, ResourceMetrics

_CLOCK_STEP: Final = 5.0


class BootTime:
    """When the host booted. The answer stays the same from round to round unless somebody sets the clock.

    Linux derives the boot time from the clock, so that it moves when the clock is stepped; it is read anew only then.
    """

    def __init__(self, clock: Callable[[], float] = time.time, steady: Callable[[], float] | None = None) -> None:
        self._clock = clock
        self._steady = steady or _steady
        self._offset = 0.0
        self._nanoseconds = 0

    def nanoseconds(self) -> int:
        """Unix time of the boot in nanoseconds, to the second; never in the future."""
        now = self._clock()
        offset = now - self._steady()
        if not self._nanoseconds or abs(offset - self._offset) > _CLOCK_STEP:
            try:
                booted = psutil.boot_time()
            except (OSError, RuntimeError):  # a container may hide it
                booted = offset
            self._nanoseconds = int(min(booted, now)) * 1_000_000_000
            self._offset = offset
        return self._nanoseconds


class Exclusion:
    """Names that are not reported: those that one of the patterns matches as a whole. Each name is matched once and remembered."""

    _LARGEST_MEMORY = 4096

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = [re.compile(pattern) for pattern in patterns]
        self._known: dict[str, bool] = {}

    def __contains__(self, name: str) -> bool:
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= self._LARGEST_MEMORY:  # names that come and go (veth…) must not add up
                self._known.clear()
            known = self._known[name] = any(pattern.fullmatch(name) for pattern in self._patterns)
        return known


class HostCollector(ABC):
    """A collector that reports for the host, and turns whatever the system refuses into a ``CollectorError`` that says what."""

    name = ""
    _source = ""

    def __init__(self, resource: Attributes) -> None:
        self._resource = resource

    def collect(self) -> Iterator[ResourceMetrics]:
        """This round's metrics.

        Raises:
            CollectorError: the source, or a part of it, cannot be read; ``reason`` says which and why.
        """
        try:
            for metrics in self._gather():
                yield ResourceMetrics(self._resource, metrics)
        except PermissionError as exc:
            raise CollectorError(f"no permission to read {exc.filename or self._source}") from exc
        except OSError as exc:
            raise CollectorError(f"{exc.filename or self._source} cannot be read: {exc.strerror or exc}") from exc
        except psutil.AccessDenied as exc:
            raise CollectorError(f"no permission to read {self._source}") from exc
        except NotImplementedError as exc:
            raise CollectorError(f"this system does not tell its {self._source}") from exc
        except (psutil.Error, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as exc:
            raise CollectorError(f"{self._source} cannot be understood: {type(exc).__name__}: {exc}") from exc

    @abstractmethod
    def _gather(self) -> Iterator[Sequence[Metric]]: ...


def read_proc(name: str) -> bytes:
    """The content of a file in /proc (or where ``psutil.PROCFS_PATH`` says that it is).

    Raises:
        OSError: it cannot be read.
    """
    with open(f"{psutil.PROCFS_PATH}/{name}", "rb", buffering=0) as file:  # noqa: PTH123 - a Path costs more than the read
        return file.readall()


def _steady() -> float:
    """A clock that nobody sets, suspended time included where the system can."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
