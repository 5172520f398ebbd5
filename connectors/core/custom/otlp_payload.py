"""An OTLP request of somebody else's, as bytes: counted, bounded and marked with where it came from. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator

from connectors.core import wire
from connectors.core.telemetry import EVENT_ID, Attributes, new_event_id

_DATA = (5, 7, 9, 10, 11)
"""The fields of a metric that hold its points: gauge, sum, histogram, exponential histogram, summary."""
_POINT_ATTRIBUTES = {5: 7, 7: 7, 9: 9, 10: 1, 11: 7}
_RESOURCE, _SCOPES, _ITEMS = 1, 2, 2
_RECORD_ATTRIBUTES = 6

Series = Hashable
"""What tells a series from others, within one process."""


def series_of(request: bytes) -> list[Series]:
    """The series of every data point of an ExportMetricsServiceRequest, in order.

    Raises:
        WireError: it is no such message.
    """
    return [series for resource in _all(request, 1) for series in _series_of_resource(resource)]


def records_of(request: bytes) -> int:
    """How many log records an ExportLogsServiceRequest holds.

    Raises:
        WireError: it is no such message.
    """
    return sum(len(_all(scope, _ITEMS)) for resource in _all(request, 1) for scope in _all(resource, _SCOPES))


def with_resource(request: bytes, added: Attributes) -> bytes:
    """The request with the attributes ``added`` on each resource that does not have them.

    Raises:
        WireError: it is no OTLP request.
    """
    return b"".join(wire.message(1, _marked(resource, added)) for resource in _all(request, 1))


def with_event_ids(request: bytes) -> bytes:
    """The logs request with an id on each record that has none, so that a record sent twice is stored once.

    Raises:
        WireError: it is no such message.
    """

    def record(content: bytes) -> bytes:
        keys = {_text(pair) for pair in _all(content, _RECORD_ATTRIBUTES)}
        return content if EVENT_ID in keys else content + wire.attributes(_RECORD_ATTRIBUTES, {EVENT_ID: new_event_id()})

    def scope(content: bytes) -> bytes:
        return _mapped(content, _ITEMS, record)

    return _mapped(request, 1, lambda resource: _mapped(resource, _SCOPES, scope))


def only_series(request: bytes, allowed: frozenset[Series]) -> bytes:
    """The metrics request without the points of other series.

    Raises:
        WireError: it is no such message.
    """
    return _mapped(request, 1, lambda resource: _only(resource, allowed))


def _only(resource: bytes, allowed: frozenset[Series]) -> bytes:
    origin = b"".join(_all(resource, _RESOURCE))

    def metric(content: bytes) -> bytes:
        name = _text(content)
        for data in _DATA:
            content = _mapped(
                content,
                data,
                lambda points, data=data: _mapped(  # type: ignore[misc]  # mypy cannot infer a lambda with a default
                    points, 1, lambda point: point if _series(origin, name, data, point) in allowed else None
                ),
            )
        return content

    return _mapped(resource, _SCOPES, lambda scope: _mapped(scope, _ITEMS, metric))


def _series_of_resource(resource: bytes) -> Iterator[Series]:
    origin = b"".join(_all(resource, _RESOURCE))
    for scope in _all(resource, _SCOPES):
        for metric in _all(scope, _ITEMS):
            name = _text(metric)
            for data in _DATA:
                for points in _all(metric, data):
                    for point in _all(points, 1):
                        yield _series(origin, name, data, point)


def _series(origin: bytes, name: str, data: int, point: bytes) -> Series:
    return hash(origin), name, hash(tuple(sorted(_all(point, _POINT_ATTRIBUTES[data]))))


def _marked(resource: bytes, added: Attributes) -> bytes:
    known = b"".join(_all(resource, _RESOURCE))
    keys = {_text(pair) for pair in _all(known, 1)}
    missing = {key: value for key, value in added.items() if key not in keys}
    rest = b"".join(_encoded(*each) for each in wire.fields(resource) if each[0] != _RESOURCE)
    return wire.message(_RESOURCE, known + wire.attributes(1, missing)) + rest


def _mapped(content: bytes, field: int, change: Callable[[bytes], bytes | None]) -> bytes:
    """The message with each value of ``field`` changed, or left out where ``change`` gives None."""
    parts = []
    for number, kind, value in wire.fields(content):
        if number == field and isinstance(value, bytes):
            if (changed := change(value)) is not None:
                parts.append(wire.message(number, changed))
        else:
            parts.append(_encoded(number, kind, value))
    return b"".join(parts)


def _encoded(number: int, kind: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return wire.message(number, value)
    if kind == wire.VARINT:
        return wire.tag(number, kind) + wire.varint(value)
    return wire.tag(number, kind) + value.to_bytes(8 if kind == wire.FIXED64 else 4, "little")


def _all(content: bytes, field: int) -> list[bytes]:
    return wire.blobs(content).get(field, [])


def _text(content: bytes) -> str:
    """The first field of a message, as text: the name of a metric, the key of an attribute."""
    return _all(content, 1)[-1].decode(errors="replace") if _all(content, 1) else ""
