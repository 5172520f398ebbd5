"""OTLP's AnyValue from a Python value, through the official messages: what the agent's own encoder is compared with."""

from __future__ import annotations

from opentelemetry.proto.common.v1.common_pb2 import AnyValue


def any_value(value: object) -> AnyValue:
    """``value`` as OTLP's AnyValue."""
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, str):
        return AnyValue(string_value=value)
    result = AnyValue()
    result.array_value.values.extend(any_value(item) for item in value)
    return result
