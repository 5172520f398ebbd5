"""Recognising the layout of a metrics request that was decoded before, so that only times and values are read from it.

In OTLP's protobuf form everything that changes from one collection to the next has a fixed width of eight bytes: a number point's
time, its start time and its value (double or 64-bit integer). Two requests of the same shape are therefore equal byte for byte
outside those spans. A *template* keeps the bytes of a decoded request with its spans zeroed, and where the spans are. A later body
of that length is copied, zeroed at the same places and compared as a whole; when it is equal, the spans hold all there is to know.

A template is made only of a request that is *plain* (:class:`~app.telemetry.otlp_metrics.DecodedMetrics`) and whose wire form is
unambiguous: every field at most once where it may stand once, no unknown fields, no exemplars. All else is decoded in full each
time. Whether a template reads from its own body exactly what the decoding found is checked before it is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from app.auth.principal import Principal
from app.telemetry.otlp_limits import TimeBounds
from app.telemetry.otlp_metrics import DecodedMetrics
from app.telemetry.store import Row

Range = tuple[int, int]
"""The slots of one row: the first one, and the one after the last."""

Boundaries = Sequence[int] | npt.NDArray[np.int32]
"""The first slots of the resources (scopes, metrics) of a request."""

_NANOSECONDS_PER_MILLISECOND = 1_000_000
_SPAN = 8
_LARGEST_BODY = 4_194_304
_ALTERNATIVES = 4  # templates of one length and principal: more than one is a coincidence
_OVERHEAD = 1_024  # bytes that a template costs beside its arrays, about

_VARINT, _FIXED64, _LENGTH = 0, 1, 2
_START, _TIME, _DOUBLE, _INTEGER, _ATTRIBUTES, _FLAGS = 2, 3, 4, 6, 7, 8  # the fields of NumberDataPoint that a template may have


def row_ranges(times_ms: npt.NDArray[np.int64], boundaries: Sequence[Boundaries]) -> list[Range]:
    """How samples are divided into rows of one time each.

    The whole request is one row where all times are equal, as they are for our agents. Where they are not, it is divided into its
    resources, a resource into its scopes, a scope into its metrics, a metric into its samples: only as far as it must be, and by
    the request's structure, so that rows have the same shape again in the next request.
    """
    ranges: list[Range] = []
    _divide(times_ms, 0, len(times_ms), boundaries, ranges)
    return ranges


def _divide(times_ms: npt.NDArray[np.int64], start: int, stop: int, boundaries: Sequence[Boundaries], ranges: list[Range]) -> None:
    if start == stop:
        return
    if stop - start == 1 or bool((times_ms[start:stop] == times_ms[start]).all()):
        ranges.append((start, stop))
        return
    if not boundaries:
        ranges.extend((slot, slot + 1) for slot in range(start, stop))
        return
    inner = boundaries[0]
    edges = np.asarray(inner)
    cuts = [start, *dict.fromkeys(edges[(edges > start) & (edges < stop)].tolist()), stop]
    for low, high in pairwise(cuts):
        _divide(times_ms, low, high, boundaries[1:], ranges)


@dataclass(frozen=True, slots=True)
class Spans:
    """Where a body's number points keep their spans, in order of the points.

    Offsets of times and values, offsets of start times (of the points that have one), and which values are integers.
    """

    times: tuple[int, ...]
    values: tuple[int, ...]
    starts: tuple[int, ...]
    integers: tuple[bool, ...]


class _NotPlainError(Exception):
    """The body's wire form is not one that a template may be made of."""


def find_spans(body: bytes) -> Spans | None:
    """The spans of a serialised ``ExportMetricsServiceRequest`` that protobuf has parsed already; None where its form is not plain."""
    times: list[int] = []
    values: list[int] = []
    starts: list[int] = []
    integers: list[bool] = []
    try:
        for low, high in _messages(body, 0, len(body), {1}):
            for scope_low, scope_high in _messages(body, low, high, {2}, skip={1: _LENGTH, 3: _LENGTH}):
                for metric_low, metric_high in _messages(body, scope_low, scope_high, {2}, skip={1: _LENGTH, 3: _LENGTH}):
                    data = list(_messages(body, metric_low, metric_high, {5, 7}, skip=dict.fromkeys((1, 2, 3, 12), _LENGTH)))
                    if len(data) > 1:
                        return None  # protobuf merges or replaces here
                    for data_low, data_high in data:
                        for point_low, point_high in _messages(body, data_low, data_high, {1}, skip={2: _VARINT, 3: _VARINT}):
                            time, value, start, integer = _number_point(body, point_low, point_high)
                            times.append(time)
                            values.append(value)
                            integers.append(integer)
                            if start is not None:
                                starts.append(start)
    except _NotPlainError:
        return None
    return Spans(tuple(times), tuple(values), tuple(starts), tuple(integers))


def _number_point(body: bytes, low: int, high: int) -> tuple[int, int, int | None, bool]:
    """Offsets of a NumberDataPoint's time, value and start time (if any), and whether the value is an integer."""
    places: dict[int, int] = {}
    for number, wire, offset, _ in _fields(body, low, high):
        if wire == _FIXED64 and number in {_START, _TIME, _DOUBLE, _INTEGER} and number not in places:
            places[number] = offset
        elif (number, wire) not in {(_ATTRIBUTES, _LENGTH), (_FLAGS, _VARINT)}:
            raise _NotPlainError
    integer = _INTEGER in places
    if _TIME not in places or integer == (_DOUBLE in places):  # no time; no value or two
        raise _NotPlainError
    return places[_TIME], places[_INTEGER if integer else _DOUBLE], places.get(_START), integer


def _messages(body: bytes, low: int, high: int, wanted: set[int], *, skip: Mapping[int, int] | None = None) -> Iterator[Range]:
    """Where the contents of the wanted sub-messages stand; fields in ``skip`` (number to wire type) are passed over."""
    passed = skip or {}
    for number, wire, offset, end in _fields(body, low, high):
        if number in wanted and wire == _LENGTH:
            yield offset, end
        elif passed.get(number) != wire:
            raise _NotPlainError


def _fields(body: bytes, low: int, high: int) -> Iterator[tuple[int, int, int, int]]:
    """Each field: its number, its wire type, and where its contents begin and end."""
    at = low
    while at < high:
        tag, at = _varint(body, at)
        wire = tag & 7
        begin = at
        if wire == _LENGTH:
            length, begin = _varint(body, at)
            at = begin + length
        elif wire == _FIXED64:
            at += _SPAN
        elif wire == _VARINT:
            _, at = _varint(body, at)
        else:
            raise _NotPlainError
        if at > high:
            raise _NotPlainError
        yield tag >> 3, wire, begin, at


def _varint(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(body):
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the continuation bit
            return value, at
        shift += 7
    raise _NotPlainError


@dataclass(slots=True)
class Template:
    """A layout that was decoded before; see the module's text.

    ``series`` numbers the slots by series where one occurs more than once. ``points`` are (instance id, number of points) by instance.
    ``resources`` and ``owners`` say what the request's resources were
    and which principals they resolved to: an enrolment token's request is recognised only while that still holds.
    """

    masked: bytes
    spans: npt.NDArray[np.int32]
    integers: npt.NDArray[np.bool_] | bool
    boundaries: tuple[npt.NDArray[np.int32], ...]
    series: npt.NDArray[np.int32] | None
    count: int
    points: tuple[tuple[str, int], ...] = ()
    resources: tuple[Mapping[str, Any], ...] = ()
    owners: tuple[Principal, ...] = ()
    schemas: dict[Range, int] = field(default_factory=dict)

    @classmethod
    def of(cls, body: bytes, decoded: DecodedMetrics) -> Template | None:
        """The template of a request that was decoded from ``body``; None where none can be made safely."""
        if not decoded.plain or not decoded.keys or len(body) > _LARGEST_BODY:
            return None
        spans = find_spans(body)
        if spans is None or len(spans.times) != len(decoded.keys):
            return None
        offsets = np.array(spans.times + spans.values + spans.starts, np.int32)
        integers = np.array(spans.integers, np.bool_)
        masked = bytearray(body)
        _window(masked)[offsets] = 0
        template = cls(
            masked=bytes(masked),
            spans=offsets,
            integers=bool(integers[0]) if bool((integers == integers[0]).all()) else integers,
            boundaries=tuple(np.array(level, np.int32) for level in decoded.boundaries),
            series=np.array(decoded.series, np.int32) if decoded.repeats else None,
            count=len(decoded.keys),
        )
        found = template.read(body)
        if found is None:
            return None
        times, values = found
        same = np.array_equal(times // _NANOSECONDS_PER_MILLISECOND, decoded.times_ms.astype(np.uint64)) and np.array_equal(
            values.view(np.uint64), decoded.values.view(np.uint64)
        )
        return template if same else None

    @property
    def size(self) -> int:
        """Bytes of memory that it holds, about."""
        arrays = self.spans.nbytes + sum(level.nbytes for level in self.boundaries) + (self.count if self.integers is not True else 0)
        return len(self.masked) + arrays + (0 if self.series is None else self.series.nbytes) + 100 * len(self.schemas) + _OVERHEAD

    def read(self, body: bytes) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float64]] | None:
        """Times (nanoseconds) and values of the points of ``body``, which has the template's length; None where the layout differs."""
        masked = bytearray(body)
        window = _window(masked)
        contents = window[self.spans].astype(np.uint64, copy=False)
        window[self.spans] = 0
        if masked != self.masked:
            return None
        times, raw = contents[: self.count], contents[self.count : 2 * self.count]
        if self.integers is False:
            return times, raw.view(np.float64)
        whole = raw.view(np.int64).astype(np.float64)
        if self.integers is True:
            return times, whole
        return times, np.where(self.integers, whole, raw.view(np.float64))

    def rows(self, body: bytes, bounds: TimeBounds) -> list[Row] | None:
        """The rows to store; None where the body must be decoded in full.

        That is: another layout, a time that is not taken, a division into rows that was not stored before, or two values for one
        series and time.
        """
        found = self.read(body)
        if found is None:
            return None
        times, values = found
        first = int(times[0])
        if self.series is None and bool((times == first).all()):
            schema = self.schemas.get((0, self.count))
            if schema is None or not bounds.earliest <= first <= bounds.latest:
                return None
            return [Row(schema, first // _NANOSECONDS_PER_MILLISECOND, values)]
        if int(times.min()) < bounds.earliest or int(times.max()) > bounds.latest:
            return None
        times_ms = (times // _NANOSECONDS_PER_MILLISECOND).astype(np.int64)
        if self.series is not None and _has_duplicates(self.series, times_ms):
            return None
        rows: list[Row] = []
        for start, stop in row_ranges(times_ms, self.boundaries):
            schema = self.schemas.get((start, stop))
            if schema is None:
                return None
            rows.append(Row(schema, int(times_ms[start]), values[start:stop]))
        return rows


class LayoutCache:
    """Templates by principal and length of body, bounded in bytes for each principal and overall; those unused longest go first."""

    def __init__(self, max_bytes: int = 268_435_456, max_bytes_per_principal: int = 8_388_608) -> None:
        self._max_bytes = max_bytes
        self._max_bytes_per_principal = max_bytes_per_principal
        self._shelves: OrderedDict[Principal, _Shelf] = OrderedDict()
        self.size = 0

    def candidates(self, principal: Principal, length: int) -> Sequence[Template]:
        """Templates that a body of ``length`` bytes from ``principal`` may match."""
        shelf = self._shelves.get(principal)
        if shelf is None:
            return ()
        self._shelves.move_to_end(principal)
        templates = shelf.templates.get(length)
        if templates is None:
            return ()
        shelf.templates.move_to_end(length)
        return templates

    def add(self, principal: Principal, template: Template) -> None:
        """Keep ``template``; where its layout is known already, the rows known of both are joined."""
        shelf = self._shelves.setdefault(principal, _Shelf())
        self._shelves.move_to_end(principal)
        length = len(template.masked)
        known = shelf.templates.get(length, [])
        for other in known:
            if other.masked == template.masked and other.owners == template.owners:
                template.schemas = {**other.schemas, **template.schemas}
        kept = [template, *(other for other in known if other.masked != template.masked)]
        shelf.templates[length] = kept[:_ALTERNATIVES]
        shelf.templates.move_to_end(length)
        self.size -= shelf.size
        while shelf.recount() > self._max_bytes_per_principal:
            shelf.templates.popitem(last=False)
        self.size += shelf.size
        while self.size > self._max_bytes:
            _, dropped = self._shelves.popitem(last=False)
            self.size -= dropped.size


@dataclass(slots=True)
class _Shelf:
    """The templates of one principal by length of body."""

    templates: OrderedDict[int, list[Template]] = field(default_factory=OrderedDict)
    size: int = 0

    def recount(self) -> int:
        self.size = sum(template.size for alternatives in self.templates.values() for template in alternatives)
        return self.size


def _has_duplicates(series: npt.NDArray[np.int32], times_ms: npt.NDArray[np.int64]) -> bool:
    order = np.lexsort((times_ms, series))
    same_series = np.diff(series[order]) == 0
    return bool((same_series & (np.diff(times_ms[order]) == 0)).any())


def _window(data: bytearray) -> npt.NDArray[np.uint64]:
    """The eight bytes at every offset of ``data`` as a number: an overlapping view."""
    return np.ndarray((len(data) - _SPAN + 1,), "<u8", data, 0, (1,))
