"""Metric requests of OTLP for tests, and what they decode to."""

from __future__ import annotations

from attribute_values import any_value
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

from app.auth.principal import Principal
from app.telemetry.otlp_limits import OtlpLimits
from app.telemetry.otlp_metrics import decode_metrics

PRINCIPAL = Principal("credential", "agent-1", "server", "prod", "instance-1")
LIMITS = OtlpLimits()
NOW = 1_800_000_000.0
BOUNDS = LIMITS.metric_times(NOW)
T = int(NOW) * 10**9
PLATFORM = {"agent": "agent-1", "agent_type": "server", "environment": "prod", "instance": "instance-1"}
CUMULATIVE, DELTA = pb.AGGREGATION_TEMPORALITY_CUMULATIVE, pb.AGGREGATION_TEMPORALITY_DELTA


def attributes(**values):
    return [KeyValue(key=key, value=any_value(value)) for key, value in values.items()]


def request(*metrics, resource=()):
    whole = ExportMetricsServiceRequest()
    one = whole.resource_metrics.add()
    one.resource.attributes.extend(resource)
    one.scope_metrics.add().metrics.extend(metrics)
    return whole


def gauge(*points, name="m", unit="1"):
    return pb.Metric(name=name, unit=unit, gauge=pb.Gauge(data_points=points))


def number(value=1.0, time=T, **labels):
    kind = {"as_int": value} if isinstance(value, int) else {"as_double": value}
    return pb.NumberDataPoint(time_unix_nano=time, attributes=attributes(**labels), **kind)


def decode(message, limits=LIMITS, principal=PRINCIPAL):
    return decode_metrics(message, [principal] * len(message.resource_metrics), limits, limits.metric_times(NOW))


def series(decoded):
    """Values by labels without those that the platform sets."""
    return {
        tuple((k, v) for k, v in key.labels if k not in PLATFORM): value
        for key, value in zip(decoded.keys, decoded.values.tolist(), strict=True)
    }
