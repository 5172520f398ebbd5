"""OTLP log records as events of the timeline.

An event keeps the id that its sender gave it in the attribute ``irca.event.id``. A record of a foreign client has none: its id is a
digest of what it says (instance, time, name, severity, body, attributes), so that a record that is sent again is stored once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from app.auth.principal import Principal
from app.errors import MalformedBodyError
from app.events.records import EventRecord
from app.telemetry.otlp_json import parse_json
from app.telemetry.otlp_limits import OtlpLimits, Rejections, TimeBounds
from app.telemetry.otlp_values import clean_text, json_attributes, json_value
from connectors.core.telemetry import EVENT_ID

EVENT_NAME = "event.name"
"""The attribute under which older clients send an event's name."""
DEFAULT_NAME = "log"
"""The name of a log record that has none."""

_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_LONGEST_NAME = 200
_INFO, _MOST_SEVERE = 9, 24


@dataclass(slots=True)
class DecodedLogs:
    """The events of a request in order, and the account of what was rejected of it."""

    events: list[EventRecord]
    rejections: Rejections


def parse_logs(body: bytes, *, is_json: bool) -> ExportLogsServiceRequest:
    """The request that ``body`` holds; an empty body is an empty request.

    Raises:
        MalformedBodyError: it holds none.
    """
    request = ExportLogsServiceRequest()
    if is_json:
        return parse_json(body, request)
    try:
        request.ParseFromString(body)
    except DecodeError as error:
        raise MalformedBodyError(f"the body is not a valid ExportLogsServiceRequest: {error}") from None
    return request


def decode_logs(request: ExportLogsServiceRequest, principals: Sequence[Principal], limits: OtlpLimits, bounds: TimeBounds) -> DecodedLogs:
    """The events of ``request``; ``principals`` says for each of its resources which instance it belongs to.

    Records that break a limit are left out and counted, each by itself; nothing is raised.
    """
    events: list[EventRecord] = []
    rejections = Rejections()
    for resource_logs, principal in zip(request.resource_logs, principals, strict=True):
        resource = json_attributes(resource_logs.resource.attributes)
        for scope_logs in resource_logs.scope_logs:
            for record in scope_logs.log_records:
                reason = _objection(record, len(events), limits, bounds)
                if reason:
                    rejections.reject(reason, record.event_name or DEFAULT_NAME)
                else:
                    events.append(_event(record, resource, principal, bounds.now))
    return DecodedLogs(events, rejections)


def _objection(record: LogRecord, accepted: int, limits: OtlpLimits, bounds: TimeBounds) -> str:
    if accepted >= limits.max_records:
        return f"more than {limits.max_records} records in one request"
    if record.ByteSize() > limits.max_record_bytes:
        return f"a record larger than {limits.max_record_bytes} bytes"
    return bounds.objection(record.time_unix_nano or record.observed_time_unix_nano or bounds.now)


def _event(record: LogRecord, resource: dict[str, Any], principal: Principal, now: int) -> EventRecord:
    attributes = json_attributes(record.attributes)
    given = attributes.pop(EVENT_ID, None)
    named = attributes.pop(EVENT_NAME, None)
    name = clean_text(record.event_name) or (named if isinstance(named, str) else "") or DEFAULT_NAME
    time = record.time_unix_nano or record.observed_time_unix_nano or now
    severity = min(record.severity_number, _MOST_SEVERE) if record.severity_number > 0 else _INFO
    body = _text(record.body)
    if record.trace_id:
        attributes.setdefault("trace_id", record.trace_id.hex())
    if record.span_id:
        attributes.setdefault("span_id", record.span_id.hex())
    if not (isinstance(given, str) and _ID.fullmatch(given)):
        given = _digest(principal.agent_id, principal.instance_id, time, name, severity, body, attributes, given)
    observed = record.observed_time_unix_nano
    return EventRecord(
        id=given,
        name=name[:_LONGEST_NAME],
        time_unix_nano=time,
        severity=severity,
        body=body,
        attributes=attributes,
        resource=resource,
        observed_time_unix_nano=observed if 0 < observed <= now else now,
        agent_id=principal.agent_id,
        instance_id=principal.instance_id,
        agent_type=principal.agent_type,
        environment_name=principal.environment_name,
    )


def _text(body: AnyValue) -> str:
    """A body as text: strings as they are, everything structured as JSON."""
    value = json_value(body)
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _digest(*parts: object) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
