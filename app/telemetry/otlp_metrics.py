"""OTLP metrics as samples of series: the full decoding, with every check.

- Gauges and cumulative sums are stored under their OTel name; of a sum, the kind says whether it only grows (counter) or not.
- A histogram becomes ``<name>_bucket`` with the label ``le`` (cumulative, as in Prometheus), ``<name>_count`` and ``<name>_sum``; a
  summary ``<name>`` with the label ``quantile``, ``<name>_count`` and ``<name>_sum``. Of an exponential histogram only count and sum
  are kept, and the sender is told.
- Delta temporality is refused: stored beside cumulative values it would be read as a wrong rate.
- A point that says "no recorded value" stores Prometheus' staleness marker.
- The instrumentation scope is not part of a series' identity. Where one request holds two values for one series and time, the first
  one counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

from app.auth.principal import Principal
from app.errors import MalformedBodyError
from app.telemetry.otlp_json import parse_json
from app.telemetry.otlp_labels import objection, platform_labels, resource_labels, series_labels, with_label
from app.telemetry.otlp_limits import OtlpLimits, Rejections, TimeBounds
from app.telemetry.store import MetricKind, SeriesKey

STALE = float(np.array([0x7FF0000000000002], np.uint64).view(np.float64)[0])
"""Prometheus' staleness marker, a NaN of its own."""

_NANOSECONDS_PER_MILLISECOND = 1_000_000
_NO_RECORDED_VALUE = pb.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
_CUMULATIVE = pb.AGGREGATION_TEMPORALITY_CUMULATIVE
_NOT_CUMULATIVE = "delta or unspecified aggregation temporality; export cumulative values"
_EXPONENTIAL = "of exponential histograms only count and sum are kept"

_Labels = tuple[tuple[str, str], ...]
_Sample = tuple[str, str, str, float]
"""One sample of a distribution: metric name, name and value of the label that it has besides (or empty), value."""
_DistributionPoint = pb.HistogramDataPoint | pb.ExponentialHistogramDataPoint | pb.SummaryDataPoint
_P = TypeVar("_P", pb.HistogramDataPoint, pb.ExponentialHistogramDataPoint, pb.SummaryDataPoint)


@dataclass(slots=True)
class DecodedMetrics:
    """The samples of a request in order, one *slot* each, and the account of its points.

    ``keys``, ``times_ms`` and ``values`` run in parallel. ``boundaries`` holds the first slots of each resource, of each scope and of
    each metric (in this order), so that samples can be stored in rows that keep their shape from one request to the next.
    ``points`` counts the data points accepted of each resource. ``plain`` says that every point of the request is a number that was
    accepted and stands in exactly one slot. ``series`` numbers the slots by series, in order of first appearance.
    """

    keys: list[SeriesKey]
    times_ms: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    boundaries: tuple[tuple[int, ...], ...]
    points: tuple[int, ...]
    rejections: Rejections
    plain: bool
    series: list[int]

    @property
    def repeats(self) -> bool:
        """Whether a series occurs more than once (at different times)."""
        return bool(self.series) and max(self.series) + 1 < len(self.series)


def parse_metrics(body: bytes, *, is_json: bool) -> ExportMetricsServiceRequest:
    """The request that ``body`` holds; an empty body is an empty request.

    Raises:
        MalformedBodyError: it holds none.
    """
    request = ExportMetricsServiceRequest()
    if is_json:
        return parse_json(body, request)
    try:
        request.ParseFromString(body)
    except DecodeError as error:
        raise MalformedBodyError(f"the body is not a valid ExportMetricsServiceRequest: {error}") from None
    return request


def decode_metrics(
    request: ExportMetricsServiceRequest, principals: Sequence[Principal], limits: OtlpLimits, bounds: TimeBounds
) -> DecodedMetrics:
    """The samples of ``request``; ``principals`` says for each of its resources which instance it belongs to.

    Bad points are left out and counted, each by itself; nothing is raised.
    """
    decoding = _Decoding(limits, bounds)
    points: list[int] = []
    for resource_metrics, principal in zip(request.resource_metrics, principals, strict=True):
        decoding.enter_resource(resource_metrics.resource.attributes, principal)
        before = decoding.points
        for scope_metrics in resource_metrics.scope_metrics:
            decoding.scopes.append(len(decoding.keys))
            for metric in scope_metrics.metrics:
                decoding.metrics.append(len(decoding.keys))
                decoding.add_metric(metric)
        points.append(decoding.points - before)
    return decoding.result(tuple(points))


@dataclass(slots=True)
class _Decoding:
    """The state of one run of :func:`decode_metrics`."""

    limits: OtlpLimits
    bounds: TimeBounds
    keys: list[SeriesKey] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    resources: list[int] = field(default_factory=list)
    scopes: list[int] = field(default_factory=list)
    metrics: list[int] = field(default_factory=list)
    rejections: Rejections = field(default_factory=Rejections)
    points: int = 0
    plain: bool = True
    series: list[int] = field(default_factory=list)
    _seen: set[tuple[_Labels, int]] = field(default_factory=set)
    _numbers: dict[_Labels, int] = field(default_factory=dict)
    _resource: dict[str, str] = field(default_factory=dict)
    _platform: dict[str, str] = field(default_factory=dict)

    def enter_resource(self, attributes: Iterable[KeyValue], principal: Principal) -> None:
        self.resources.append(len(self.keys))
        self._resource = resource_labels(attributes)
        self._platform = platform_labels(principal)

    def result(self, points: tuple[int, ...]) -> DecodedMetrics:
        return DecodedMetrics(
            keys=self.keys,
            times_ms=np.array(self.times, np.int64),
            values=np.array(self.values, np.float64),
            boundaries=(tuple(self.resources), tuple(self.scopes), tuple(self.metrics)),
            points=points,
            rejections=self.rejections,
            plain=self.plain and not self.rejections.count,
            series=self.series,
        )

    def add_metric(self, metric: pb.Metric) -> None:
        which = metric.WhichOneof("data")
        if which == "gauge":
            self._add_numbers(metric, metric.gauge.data_points, "gauge")
        elif which == "sum":
            if metric.sum.aggregation_temporality != _CUMULATIVE:
                self._reject(_NOT_CUMULATIVE, metric, len(metric.sum.data_points))
            else:
                self._add_numbers(metric, metric.sum.data_points, "counter" if metric.sum.is_monotonic else "updowncounter")
        elif which == "histogram":
            if metric.histogram.aggregation_temporality != _CUMULATIVE:
                self._reject(_NOT_CUMULATIVE, metric, len(metric.histogram.data_points))
            else:
                self._add_distributions(metric, metric.histogram.data_points, "histogram", _histogram_samples)
        elif which == "exponential_histogram":
            if metric.exponential_histogram.aggregation_temporality != _CUMULATIVE:
                self._reject(_NOT_CUMULATIVE, metric, len(metric.exponential_histogram.data_points))
            else:
                self._add_distributions(metric, metric.exponential_histogram.data_points, "histogram", _exponential_samples)
                if metric.exponential_histogram.data_points:
                    self.rejections.warn(_EXPONENTIAL, metric.name)
        elif which == "summary":
            self._add_distributions(metric, metric.summary.data_points, "summary", _summary_samples)

    def _add_numbers(self, metric: pb.Metric, points: Iterable[pb.NumberDataPoint], kind: MetricKind) -> None:
        for point in points:
            labels = self._admit(metric, point, 1)
            if labels is None:
                continue
            which = point.WhichOneof("value")
            if point.flags & _NO_RECORDED_VALUE:
                value = STALE
                self.plain = False
            elif which == "as_double":
                value = point.as_double
            elif which == "as_int":
                value = float(point.as_int)
            else:
                self._reject("no value", metric)
                continue
            self.points += 1
            self._store(labels, metric.unit, kind, point.time_unix_nano, value)

    def _add_distributions(
        self, metric: pb.Metric, points: Iterable[_P], kind: MetricKind, samples: Callable[[str, _P], list[_Sample] | str]
    ) -> None:
        self.plain = False
        for point in points:
            gathered = samples(metric.name, point)
            if isinstance(gathered, str):
                self._reject(gathered, metric)
                continue
            labels = self._admit(metric, point, len(gathered))
            if labels is None:
                continue
            self.points += 1
            for name, extra, text, value in gathered:
                self._store(with_label(labels, name, extra, text), metric.unit, kind, point.time_unix_nano, value)

    def _admit(self, metric: pb.Metric, point: pb.NumberDataPoint | _DistributionPoint, samples: int) -> _Labels | None:
        """The labels of a point that may be stored; None where it was rejected."""
        if not metric.name:
            reason = "a metric without a name"
        elif len(self.keys) + samples > self.limits.max_samples:
            reason = f"more than {self.limits.max_samples} samples in one request"
        else:
            reason = self.bounds.objection(point.time_unix_nano)
        if not reason:
            labels = series_labels(self._resource, point.attributes, self._platform, metric.name)
            reason = objection(labels, self.limits)
            if not reason:
                return labels
        self._reject(reason, metric)
        return None

    def _reject(self, reason: str, metric: pb.Metric, count: int = 1) -> None:
        if count:
            self.rejections.reject(reason, metric.name, count)

    def _store(self, labels: _Labels, unit: str, kind: MetricKind, time_unix_nano: int, value: float) -> None:
        time_ms = time_unix_nano // _NANOSECONDS_PER_MILLISECOND
        sample = (labels, time_ms)
        if sample in self._seen:
            self.plain = False
            return
        self._seen.add(sample)
        self.series.append(self._numbers.setdefault(labels, len(self._numbers)))
        self.keys.append(SeriesKey(labels, unit, kind))
        self.times.append(time_ms)
        self.values.append(value)


def _count_and_sum(name: str, point: _DistributionPoint, *, has_sum: bool) -> list[_Sample]:
    stale = bool(point.flags & _NO_RECORDED_VALUE)
    samples = [(f"{name}_count", "", "", STALE if stale else float(point.count))]
    if has_sum or stale:
        samples.append((f"{name}_sum", "", "", STALE if stale else point.sum))
    return samples


def _histogram_samples(name: str, point: pb.HistogramDataPoint) -> list[_Sample] | str:
    samples = _count_and_sum(name, point, has_sum=point.HasField("sum"))
    if point.flags & _NO_RECORDED_VALUE:
        return samples
    bounds, counts = list(point.explicit_bounds), point.bucket_counts
    if len(counts) != len(bounds) + 1 and (counts or bounds):
        return "a histogram whose buckets do not match its bounds"
    if not all(math.isfinite(bound) for bound in bounds) or any(low >= high for low, high in pairwise(bounds)):
        return "a histogram whose bounds do not increase"
    total = 0
    for bound, count in zip(bounds, counts, strict=False):
        total += count
        samples.append((f"{name}_bucket", "le", repr(bound), float(total)))
    samples.append((f"{name}_bucket", "le", "+Inf", float(total + counts[-1] if counts else point.count)))
    return samples


def _exponential_samples(name: str, point: pb.ExponentialHistogramDataPoint) -> list[_Sample] | str:
    return _count_and_sum(name, point, has_sum=point.HasField("sum"))


def _summary_samples(name: str, point: pb.SummaryDataPoint) -> list[_Sample] | str:
    samples = _count_and_sum(name, point, has_sum=True)
    if not point.flags & _NO_RECORDED_VALUE:
        samples.extend((name, "quantile", repr(item.quantile), item.value) for item in point.quantile_values)
    return samples
