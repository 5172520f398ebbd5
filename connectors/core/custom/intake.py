"""Where sources of custom metrics deliver to: bounded in series and bytes, and from there into the spool.

A source over a limit loses what is beyond it, is unhealthy while that lasts, and an event tells of it once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from connectors.core.backoff import around, unit_random
from connectors.core.collector import describe_failure
from connectors.core.errors import CollectorError
from connectors.core.ledger import Signal
from connectors.core.telemetry import (
    Attributes,
    Collection,
    CollectorResult,
    Event,
    Metric,
    ResourceMetrics,
    Severity,
    metric_payloads,
)

OVER_LIMIT_EVENT = "irca.agent.custom_metrics.over_limit"
"""The event that tells of metrics that were lost for a limit."""
SOURCE_ATTRIBUTE = "irca.custom.source"
MAX_PAYLOAD = 900 * 1024
_WINDOW = 60.0
Limit = Literal["series", "bytes"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What all sources of an agent may send together: series, and bytes in a minute (before compression)."""

    series: int
    bytes: int


class OverLimitError(CollectorError):
    """Custom metrics are over a limit."""

    code = "over-limit"

    def __init__(self, limit: Limit, allowed: int, lost: int) -> None:
        option = f"custom_max_{limit}"
        what = "series are" if limit == "series" else "bytes were not taken; they are"
        super().__init__(f"{lost} {what} over the limit of {allowed} ({option})")
        self.limit: Limit = limit
        self.allowed = allowed
        self.lost = lost


class Budget:
    """Counts series and bytes against ``limits``. Series that were admitted go before new ones; ``clock`` is monotonic seconds."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._series: dict[str, frozenset[Hashable]] = {}
        self._room = float(limits.bytes)
        self._asked = clock()

    def admitted(self, source: str, keys: Iterable[Hashable], *, keep: bool = False) -> tuple[frozenset[Hashable], int]:
        """The series of ``source`` that may be sent, and how many may not.

        Without ``keep``, series of the source that are not among ``keys`` make room for others.
        """
        wanted = dict.fromkeys(keys)
        with self._lock:
            before = self._series.get(source, frozenset())
            others = sum(len(series) for name, series in self._series.items() if name != source)
            held = before if keep else frozenset(key for key in wanted if key in before)
            room = max(0, self._limits.series - others - len(held))
            new = [key for key in wanted if key not in held]
            self._series[source] = held | frozenset(new[:room])
            return self._series[source], len(new[room:])

    def take(self, size: int) -> bool:
        """Whether ``size`` more bytes may be sent now; they count when they may."""
        with self._lock:
            now = self._clock()
            self._room = min(float(self._limits.bytes), self._room + (now - self._asked) * self._limits.bytes / _WINDOW)
            self._asked = now
            if size > self._room:
                return False
            self._room -= size
            return True


class Intake:
    """Takes what sources deliver.

    Args:
        limits: of all sources together.
        append: puts a payload of so many items into the spool.
        tell: records an event.
        heard: told how each run of a source went.
        resource: the resource that metrics are of.
    """

    def __init__(
        self,
        limits: Limits,
        append: Callable[[Signal, bytes, int], None],
        tell: Callable[[Event], None],
        heard: Callable[[CollectorResult], None],
        resource: Callable[[], Attributes],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.resource = resource
        self.append = append
        self.limits = limits
        self.budget = Budget(limits, clock)
        self._tell = tell
        self._heard = heard
        self._over: set[tuple[str, Limit]] = set()

    def metrics(self, source: str, metrics: Sequence[Metric], time_unix_nano: int) -> None:
        """Take the metrics of one run.

        Raises:
            OverLimitError: some were over a limit and are lost; the others are taken.
        """
        keys = [(metric.name, *sorted(point.attributes.items())) for metric in metrics for point in metric.points]
        allowed, over = self.budget.admitted(source, keys)
        mark = {SOURCE_ATTRIBUTE: source}
        kept = []
        for metric in metrics:
            points = [p for p in metric.points if (metric.name, *sorted(p.attributes.items())) in allowed]
            if points:
                kept.append(replace(metric, points=[replace(point, attributes={**point.attributes, **mark}) for point in points]))
        collection = Collection(time_unix_nano, [ResourceMetrics(self.resource(), kept)])
        refused = 0
        for payload, items in metric_payloads(collection, MAX_PAYLOAD) if kept else ():
            if self.budget.take(len(payload)):
                self.append("metrics", payload, items)
            else:
                refused += len(payload)
        if over:
            raise OverLimitError("series", self.limits.series, over)
        if refused:
            raise OverLimitError("bytes", self.limits.bytes, refused)

    def ran(self, source: str, duration: float, failure: Exception | None = None) -> None:
        """A run of ``source`` took ``duration`` seconds and went well, or failed."""
        self._heard(CollectorResult(f"custom/{source}", duration, describe_failure(failure) if failure else ""))
        self._tell_over(source, failure if isinstance(failure, OverLimitError) else None)

    def _tell_over(self, source: str, over: OverLimitError | None) -> None:
        if over is None:
            self._over = {known for known in self._over if known[0] != source}
            return
        if (source, over.limit) in self._over:
            return
        self._over.add((source, over.limit))
        self._tell(
            Event(
                OVER_LIMIT_EVENT,
                {
                    SOURCE_ATTRIBUTE: source,
                    "irca.custom.limit": over.limit,
                    "irca.custom.limit.allowed": over.allowed,
                    "irca.custom.lost": over.lost,
                },
                Severity.WARN,
                f"Custom metrics of {source} are lost: {over.reason}.",
            )
        )


class Source(Protocol):
    """Something that delivers custom metrics, in a supervised thread of its own."""

    name: str
    timeout: float

    def run(self, intake: Intake, stopping: threading.Event) -> None:
        """Deliver until ``stopping`` is set; a failure is told to the intake, not raised."""
        ...


class PeriodicSource:
    """A source that gathers every ``interval`` seconds (10 % more or less); ``gather`` may raise whatever it likes."""

    def __init__(self, name: str, interval: float, timeout: float, gather: Callable[[threading.Event], Sequence[Metric]]) -> None:
        self.name = name
        self.timeout = timeout
        self._interval = interval
        self._gather = gather

    def run(self, intake: Intake, stopping: threading.Event) -> None:
        """As every source's."""
        while not stopping.is_set():
            begun = time.monotonic()
            failure: Exception | None = None
            try:
                intake.metrics(self.name, self._gather(stopping), time.time_ns())
            except Exception as exc:  # noqa: BLE001 - a source's failure, whatever it is, must not end the agent
                failure = exc
            if stopping.is_set():
                return
            took = time.monotonic() - begun
            intake.ran(self.name, took, failure)
            stopping.wait(max(0.1, around(self._interval, unit_random) - took))
