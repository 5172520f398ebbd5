"""From the body of an OTLP request to what is stored durably, and word of it on the live stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import ResourceMetrics

from app.auth.principal import Principal
from app.events.records import EventRecord
from app.events.stream import LiveMessage, LiveStream
from app.telemetry import instruments
from app.telemetry.otlp_layout import LayoutCache, Range, Template, row_ranges
from app.telemetry.otlp_limits import OtlpLimits, Rejections, TimeBounds
from app.telemetry.otlp_logs import DecodedLogs, decode_logs, parse_logs
from app.telemetry.otlp_metrics import DecodedMetrics, decode_metrics, parse_metrics
from app.telemetry.otlp_values import json_attributes
from app.telemetry.store import MetricStore, Row, SeriesKey

_T = TypeVar("_T")
ResolveInstance = Callable[[Principal, Mapping[str, Any]], Awaitable[Principal]]
RecordEvents = Callable[[Sequence[EventRecord]], Awaitable[int]]

_THREAD_ABOVE = 65_536
"""Bodies larger than this are decoded in a thread, so that the event loop goes on answering."""

_RECOGNISED = instruments.OTLP_LAYOUTS.labels("recognised")
_IN_FULL = instruments.OTLP_LAYOUTS.labels("in_full")


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a request: items accepted and rejected, and what the sender is to be told (empty: nothing)."""

    accepted: int
    rejected: int = 0
    message: str = ""

    @classmethod
    def of(cls, accepted: int, rejections: Rejections) -> Receipt:
        """The receipt that the account of rejections makes."""
        return cls(accepted, rejections.count, rejections.message())


class MetricIngest:
    """Takes metrics requests: recognises their layout or decodes them in full, and stores their samples in rows.

    ``awaited`` holds 0 for each instance whose first metrics somebody waits for; the time takes its place when they come.
    """

    def __init__(
        self,
        store: MetricStore,
        resolve_instance: ResolveInstance,
        live: LiveStream,
        limits: OtlpLimits,
        clock: Callable[[], float],
        layouts: LayoutCache | None = None,
        awaited: MutableMapping[str, float] | None = None,
    ) -> None:
        self._store = store
        self._resolve_instance = resolve_instance
        self._live = live
        self._limits = limits
        self._clock = clock
        self._layouts = LayoutCache() if layouts is None else layouts
        self._awaited: MutableMapping[str, float] = {} if awaited is None else awaited

    async def take(self, principal: Principal, body: bytes, *, is_json: bool) -> Receipt:
        """Store what ``body`` holds; durable on return.

        Raises:
            MalformedBodyError: it holds no metrics request; nothing of it was stored.
            StorageError, OverloadedError: nothing of it was stored; the sender may try again.
        """
        bounds = self._limits.metric_times(self._clock())
        if not is_json:
            for template in self._layouts.candidates(principal, len(body)):
                rows = template.rows(body, bounds)
                if rows is None or not await self._still_owned(principal, template):
                    continue
                await self._store.append(rows)
                _RECOGNISED.inc()
                self._publish(principal.agent_id, template.points, rows)
                return Receipt(template.count)
        return await self._take_in_full(principal, body, bounds, is_json=is_json)

    async def _take_in_full(self, principal: Principal, body: bytes, bounds: TimeBounds, *, is_json: bool) -> Receipt:
        _IN_FULL.inc()
        request: ExportMetricsServiceRequest = await _off_loop(len(body), lambda: parse_metrics(body, is_json=is_json))
        resources, owners = await _owners(principal, request.resource_metrics, self._resolve_instance)

        def decode() -> tuple[DecodedMetrics, Template | None]:
            decoded = decode_metrics(request, owners, self._limits, bounds)
            return decoded, None if is_json else Template.of(body, decoded)

        decoded, template = await _off_loop(len(body), decode)
        accepted = sum(decoded.points)
        if decoded.keys:
            ranges = row_ranges(decoded.times_ms, decoded.boundaries)
            schemas = await self._register(decoded.keys, ranges)
            rows = [Row(schemas[r], int(decoded.times_ms[r[0]]), decoded.values[r[0] : r[1]]) for r in ranges]
            await self._store.append(rows)
            points = _points_by_instance(owners, decoded.points)
            self._publish(principal.agent_id, points, rows)
            if template is not None:
                anonymous = principal.instance_id is None
                template.points, template.schemas = points, schemas
                template.resources, template.owners = (resources, tuple(owners)) if anonymous else ((), ())
                self._layouts.add(principal, template)
        return Receipt.of(accepted, decoded.rejections)

    async def _register(self, keys: Sequence[SeriesKey], ranges: Sequence[Range]) -> dict[Range, int]:
        """The ids of the schemas of these rows; equal ones are registered once."""
        wanted = {r: tuple(keys[r[0] : r[1]]) for r in ranges}
        distinct = list(dict.fromkeys(wanted.values()))
        schemas = await asyncio.gather(*(self._store.register(series) for series in distinct))
        ids = {series: schema.id for series, schema in zip(distinct, schemas, strict=True)}
        return {r: ids[series] for r, series in wanted.items()}

    async def _still_owned(self, principal: Principal, template: Template) -> bool:
        """Whether the resources of a recognised layout still belong to the instances that its series name."""
        for resource, owner in zip(template.resources, template.owners, strict=True):
            if owner.instance_id is not None and await self._resolve_instance(principal, resource) != owner:
                return False
        return True

    def _publish(self, agent_id: str, points: Sequence[tuple[str, int]], rows: Sequence[Row]) -> None:
        if self._awaited:
            for instance_id, _ in points:
                if self._awaited.get(instance_id) == 0.0:
                    self._awaited[instance_id] = self._clock()
        if self._live.followed:
            newest = max(row.time_ms for row in rows)
            for instance_id, count in points:
                about = {"instance_id": instance_id, "agent_id": agent_id}
                self._live.publish(LiveMessage("samples", {**about, "time_ms": newest, "points": count}))


class LogIngest:
    """Takes logs requests and records them as events."""

    def __init__(
        self, record_events: RecordEvents, resolve_instance: ResolveInstance, limits: OtlpLimits, clock: Callable[[], float]
    ) -> None:
        self._record_events = record_events
        self._resolve_instance = resolve_instance
        self._limits = limits
        self._clock = clock

    async def take(self, principal: Principal, body: bytes, *, is_json: bool) -> Receipt:
        """Record what ``body`` holds; durable on return.

        Raises:
            MalformedBodyError: it holds no logs request; nothing of it was stored.
            StorageError, OverloadedError: nothing of it was stored; the sender may try again.
        """
        request: ExportLogsServiceRequest = await _off_loop(len(body), lambda: parse_logs(body, is_json=is_json))
        _, owners = await _owners(principal, request.resource_logs, self._resolve_instance)
        bounds = self._limits.event_times(self._clock())
        decoded: DecodedLogs = await _off_loop(len(body), lambda: decode_logs(request, owners, self._limits, bounds))
        if decoded.events:
            await self._record_events(decoded.events)
        return Receipt.of(len(decoded.events), decoded.rejections)


async def _off_loop(size: int, work: Callable[[], _T]) -> _T:
    return await asyncio.to_thread(work) if size > _THREAD_ABOVE else work()


async def _owners(
    principal: Principal, resources: Sequence[ResourceMetrics | ResourceLogs], resolve: ResolveInstance
) -> tuple[tuple[Mapping[str, Any], ...], list[Principal]]:
    """Attributes of each resource, and the principal that it belongs to.

    A credential belongs to one instance, whatever resources it tells of. With an enrolment token each resource says whose it is.
    """
    if principal.instance_id is not None:
        return (), [principal] * len(resources)
    attributes = tuple(json_attributes(each.resource.attributes) for each in resources)
    owners: list[Principal] = []
    known: dict[str, Principal] = {}
    for each, described in zip(resources, attributes, strict=True):
        if not _holds_anything(each):
            owners.append(principal)  # nothing to own: no reason to create an instance
            continue
        text = repr(sorted(described.items(), key=lambda pair: pair[0]))
        if text not in known:
            known[text] = await resolve(principal, described)
        owners.append(known[text])
    return attributes, owners


def _holds_anything(resource: ResourceMetrics | ResourceLogs) -> bool:
    if isinstance(resource, ResourceMetrics):
        return any(scope.metrics for scope in resource.scope_metrics)
    return any(scope.log_records for scope in resource.scope_logs)


def _points_by_instance(owners: Sequence[Principal], points: Sequence[int]) -> tuple[tuple[str, int], ...]:
    totals: dict[str, int] = {}
    for owner, count in zip(owners, points, strict=True):
        if count and owner.instance_id is not None:
            totals[owner.instance_id] = totals.get(owner.instance_id, 0) + count
    return tuple(totals.items())
