"""What agents gather, as values, and their OTLP form.

Names, units and attributes are OpenTelemetry semantic conventions. A *metric* has *points*; a *collection* is what one round
gathered, by resource; an *event* is an OTel log record with an event name and an id of its own (delivery is at least once; the
platform stores each id once).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum

from connectors._version import __version__
from connectors.core import wire

AttributeValue = str | bool | int | float | Sequence[str]
Attributes = Mapping[str, AttributeValue]

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
SCOPE_NAME = "incident-rca-agent"
EVENT_ID = "irca.event.id"
"""The attribute that carries an event's id on the wire."""


_CUMULATIVE = 2
_SCOPE = wire.text(1, SCOPE_NAME) + wire.text(2, __version__)


def new_event_id() -> str:
    """A random id of 32 hexadecimal digits."""
    return os.urandom(16).hex()


class Kind(StrEnum):
    """How a metric's values add up: OTel's gauge, monotonic cumulative sum, and non-monotonic cumulative sum."""

    GAUGE = "gauge"
    COUNTER = "counter"
    UPDOWNCOUNTER = "updowncounter"


class Severity(IntEnum):
    """OTel severity numbers that the agent uses."""

    INFO = 9
    WARN = 13
    ERROR = 17
    FATAL = 21


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a metric and the attributes that tell it from its siblings."""

    value: float
    attributes: Attributes = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's points at one time. ``start_time_unix_nano`` is when a counter began (boot time, container start)."""

    name: str
    unit: str
    kind: Kind
    points: Sequence[Point]
    start_time_unix_nano: int = 0


@dataclass(frozen=True, slots=True)
class ResourceMetrics:
    """Metrics of one resource (a host, a container, a pod), named by its attributes."""

    resource: Attributes
    metrics: Sequence[Metric]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: ``name`` is the event name, ``attributes`` its facts, ``resource`` what it happened to."""

    name: str
    attributes: Attributes = field(default_factory=dict)
    severity: Severity = Severity.INFO
    body: str = ""
    resource: Attributes = field(default_factory=dict)
    time_unix_nano: int = field(default_factory=time.time_ns)
    id: str = field(default_factory=new_event_id)


@dataclass(frozen=True, slots=True)
class CollectorResult:
    """How one collector's run went. ``reason`` is empty when it succeeded."""

    name: str
    duration: float
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether the collector succeeded."""
        return not self.reason


@dataclass(frozen=True, slots=True)
class Collection:
    """What one round gathered, stamped with one time for all its points."""

    time_unix_nano: int
    resources: Sequence[ResourceMetrics]
    events: Sequence[Event] = ()
    collectors: Sequence[CollectorResult] = ()

    @property
    def point_count(self) -> int:
        """How many data points it holds."""
        return sum(len(m.points) for r in self.resources for m in r.metrics)


def encode_metrics(collection: Collection) -> bytes:
    """The collection's metrics as a serialised ``ExportMetricsServiceRequest``.

    Every point carries the collection's time, so that the layout of two rounds of the same shape is byte for byte the same but for
    times and values: the platform recognises such a layout without parsing it again.
    """
    return b"".join([_resource_metrics(r.resource, r.metrics, collection.time_unix_nano) for r in collection.resources if r.metrics])


def encode_events(events: Iterable[Event], observed_time_unix_nano: int) -> bytes:
    """The events as a serialised ``ExportLogsServiceRequest``, grouped by resource in order of first appearance."""
    by_resource: dict[tuple[tuple[str, str], ...], list[Event]] = {}
    for event in events:
        by_resource.setdefault(tuple((k, repr(v)) for k, v in event.resource.items()), []).append(event)
    return b"".join(
        _of_resource(group[0].resource, b"".join(wire.message(2, _log_record(event, observed_time_unix_nano)) for event in group))
        for group in by_resource.values()
    )


def metric_payloads(collection: Collection, max_bytes: int) -> Iterator[tuple[bytes, int]]:
    """:func:`encode_metrics` in as few requests as keep each at ``max_bytes`` or below, with the data points of each.

    Each resource is encoded once and stays whole where it fits. A single point that is larger goes out alone: the platform decides.
    """
    packed: list[bytes] = []
    size = points = 0
    for resource in collection.resources:
        for part, count in _resource_payloads(resource, collection.time_unix_nano, max_bytes):
            if packed and size + len(part) > max_bytes:
                yield b"".join(packed), points
                packed, size, points = [], 0, 0
            packed.append(part)
            size += len(part)
            points += count
    if packed:
        yield b"".join(packed), points


def event_payloads(events: Sequence[Event], observed_time_unix_nano: int, max_bytes: int) -> Iterator[tuple[bytes, int]]:
    """:func:`encode_events` in as many requests as keep each at ``max_bytes`` or below, with the events of each.

    A single event that is larger goes out alone.
    """
    if not events:
        return
    payload = encode_events(events, observed_time_unix_nano)
    if len(payload) <= max_bytes or len(events) == 1:
        yield payload, len(events)
        return
    middle = len(events) // 2
    yield from event_payloads(events[:middle], observed_time_unix_nano, max_bytes)
    yield from event_payloads(events[middle:], observed_time_unix_nano, max_bytes)


def _resource_payloads(gathered: ResourceMetrics, time_unix_nano: int, max_bytes: int) -> Iterator[tuple[bytes, int]]:
    """A resource's metrics, encoded whole where they fit, else by halves of its metrics or of its only metric's points."""
    metrics = [metric for metric in gathered.metrics if metric.points]
    points = sum(len(metric.points) for metric in metrics)
    if not points:
        return
    encoded = _resource_metrics(gathered.resource, gathered.metrics, time_unix_nano)
    if len(encoded) <= max_bytes or points == 1:
        yield encoded, points
        return
    if len(metrics) > 1:
        middle = len(metrics) // 2
        halves = [metrics[:middle], metrics[middle:]]
    else:
        metric, middle = metrics[0], points // 2
        halves = [[replace(metric, points=metric.points[:middle])], [replace(metric, points=metric.points[middle:])]]
    for half in halves:
        yield from _resource_payloads(ResourceMetrics(gathered.resource, half), time_unix_nano, max_bytes)


def _resource_metrics(resource: Attributes, metrics: Sequence[Metric], time_unix_nano: int) -> bytes:
    return _of_resource(resource, b"".join([wire.message(2, _metric(metric, time_unix_nano)) for metric in metrics]))


def _of_resource(resource: Attributes, content: bytes) -> bytes:
    """One ResourceMetrics or ResourceLogs, which have the same shape, of a request; ``content`` are its metrics or log records."""
    scope = wire.message(1, _SCOPE) + content
    return wire.message(1, wire.message(1, wire.attributes(1, resource)) + wire.message(2, scope) + wire.text(3, SCHEMA_URL))


def _metric(metric: Metric, time_unix_nano: int) -> bytes:
    times = wire.fixed64(2, metric.start_time_unix_nano) + wire.fixed64(3, time_unix_nano)
    points = b"".join(
        [wire.message(1, times + wire.double(4, point.value) + wire.attributes(7, point.attributes)) for point in metric.points]
    )
    names = wire.text(1, metric.name) + wire.text(3, metric.unit)
    if metric.kind is Kind.GAUGE:
        return names + (wire.message(5, points) if points else b"")
    return names + wire.message(7, points + wire.integer(2, _CUMULATIVE) + wire.boolean(3, metric.kind is Kind.COUNTER))


def _log_record(event: Event, observed_time_unix_nano: int) -> bytes:
    return b"".join(
        (
            wire.fixed64(1, event.time_unix_nano),
            wire.integer(2, event.severity),
            wire.text(3, event.severity.name),
            wire.message(5, wire.any_value(event.body)),
            wire.attributes(6, {EVENT_ID: event.id, **event.attributes}),
            wire.fixed64(11, observed_time_unix_nano),
            wire.text(12, event.name),
        )
    )
