"""OTLP over HTTP: ``POST /v1/metrics`` and ``POST /v1/logs``, as the OpenTelemetry protocol specification says.

Bodies are protobuf (``application/x-protobuf``) or JSON (``application/json``), plain or compressed; the answer has the request's
content type. A request that was taken is answered 200, with ``partial_success`` where single items were rejected. A request that was
not is answered with a ``google.rpc.Status`` in the same encoding (JSON where the request's is neither); its message begins with the
platform's error code, as in ``token-expired: …``, which ``WWW-Authenticate`` carries too. 400, 413 and 415 are final; 429 and 503 come
with ``Retry-After``. Other endpoints of the platform answer errors as problem+json; OTLP clients expect a Status.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from prometheus_client import Counter

from app.api.asgi import BodyLimits, Receive, Scope, Send, bearer, client_address, media_type, read_body, send_answer
from app.auth.principal import Principal
from app.errors import (
    MethodNotAllowedError,
    NotFoundError,
    OverloadedError,
    Problem,
    UnauthenticatedError,
    UnsupportedMediaTypeError,
)
from app.events.stream import LiveStream
from app.telemetry import instruments
from app.telemetry.otlp_ingest import LogIngest, MetricIngest, Receipt, RecordEvents, ResolveInstance
from app.telemetry.otlp_json import render_json
from app.telemetry.otlp_limits import OtlpLimits
from app.telemetry.store import MetricStore

Authenticate = Callable[[str], Awaitable[Principal]]
Refuse = Callable[[UnauthenticatedError, str, str], Awaitable[None]]
"""Told of a refusal: why, the token or credential (empty for none), the client's address. May raise what is answered instead."""

PROTOBUF, JSON = "application/x-protobuf", "application/json"
_OK = 200
_RETRY_AFTER = 5.0
"""Seconds after which a client may try again where the error itself does not say."""

_GRPC_CODES: Mapping[int, int] = {400: 3, 401: 16, 403: 7, 404: 5, 405: 12, 413: 3, 415: 3, 422: 3, 429: 8, 503: 14}
_GRPC_INTERNAL = 13

_log = logging.getLogger(__name__)


class _Ingest(Protocol):
    async def take(self, principal: Principal, body: bytes, *, is_json: bool) -> Receipt: ...


@dataclass(frozen=True, slots=True)
class _Signal:
    """One of the two paths: how it is taken and answered, and its counters (looked up once, for that is dear)."""

    name: str
    ingest: _Ingest
    answer: Callable[[Receipt], Message]
    answered: Counter
    received: Counter
    accepted: Counter
    rejected: Counter

    @classmethod
    def of(cls, name: str, ingest: _Ingest, answer: Callable[[Receipt], Message]) -> _Signal:
        return cls(
            name=name,
            ingest=ingest,
            answer=answer,
            answered=instruments.OTLP_REQUESTS.labels(name, "200"),
            received=instruments.OTLP_BYTES.labels(name),
            accepted=instruments.OTLP_ACCEPTED.labels(name),
            rejected=instruments.OTLP_REJECTED.labels(name),
        )


class OtlpEndpoint:
    """A plain ASGI application for both paths (also below a mount).

    ``authenticate`` turns the bearer token into a principal or raises an :class:`~app.errors.UnauthenticatedError`;
    ``resolve_instance`` finds or creates the instance that a resource of an enrolment token's request belongs to; ``record_events``
    stores events (a known id is skipped) and gives how many were new; ``limits`` bound the body as bytes, ``items`` what it holds;
    ``clock`` gives seconds since the epoch; ``refuse`` is told whom ``authenticate`` does not know;
    ``awaited`` is for :class:`~app.telemetry.otlp_ingest.MetricIngest`.
    """

    def __init__(  # noqa: PLR0913 - one for each thing that it works with
        self,
        *,
        authenticate: Authenticate,
        resolve_instance: ResolveInstance,
        metrics: MetricStore,
        record_events: RecordEvents,
        live: LiveStream,
        limits: BodyLimits,
        clock: Callable[[], float],
        items: OtlpLimits | None = None,
        awaited: MutableMapping[str, float] | None = None,
        refuse: Refuse | None = None,
    ) -> None:
        self._authenticate = authenticate
        self._refuse = refuse
        self._limits = limits
        self._items = items = OtlpLimits() if items is None else items
        self._in_flight = 0
        ingest = MetricIngest(metrics, resolve_instance, live, items, clock, awaited=awaited)
        self._signals = (
            ("/v1/metrics", _Signal.of("metrics", ingest, _metrics_answer)),
            ("/v1/logs", _Signal.of("logs", LogIngest(record_events, resolve_instance, items, clock), _logs_answer)),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Nothing is raised: whatever goes wrong becomes an answer, and is logged."""
        signal = next((signal for path, signal in self._signals if scope["path"].endswith(path)), None)
        is_json = media_type(scope) != PROTOBUF
        self._in_flight += 1
        try:
            answer = await self._take(signal, scope, receive, is_json=is_json)
            status, headers = _OK, {}
            body = render_json(answer) if is_json else answer.SerializeToString()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the boundary: every failure becomes an answer, the unforeseen ones are logged in full
            problem = Problem.of(error)
            status = problem.treatment.status
            _log_problem(problem, error, str(scope["path"]))
            body = _status_body(problem, is_json=is_json)
            headers = _headers(problem)
        finally:
            self._in_flight -= 1
        if signal is not None:
            (signal.answered if status == _OK else instruments.OTLP_REQUESTS.labels(signal.name, str(status))).inc()
        await send_answer(send, status, body, JSON if is_json else PROTOBUF, headers)

    async def _principal(self, scope: Scope) -> Principal:
        text = ""
        try:
            text = bearer(scope)
            return await self._authenticate(text)
        except UnauthenticatedError as exc:
            if self._refuse is not None:
                await self._refuse(exc, text, client_address(scope))
            raise

    async def _take(self, signal: _Signal | None, scope: Scope, receive: Receive, *, is_json: bool) -> Message:
        if signal is None:
            raise NotFoundError("OTLP is taken at /v1/metrics and /v1/logs")
        if scope["method"] != "POST":
            raise MethodNotAllowedError("OTLP requests are POST requests", headers={"Allow": "POST"})
        if self._in_flight > self._items.max_in_flight:
            raise OverloadedError("too many requests are being answered at once", retry_after=1)
        principal = await self._principal(scope)
        if is_json and media_type(scope) != JSON:
            raise UnsupportedMediaTypeError(f"the content type must be {PROTOBUF} or {JSON}", headers={"Accept": f"{PROTOBUF}, {JSON}"})
        body = await read_body(scope, receive, self._limits)
        receipt = await signal.ingest.take(principal, body, is_json=is_json)
        signal.received.inc(len(body))
        signal.accepted.inc(receipt.accepted)
        if receipt.rejected:
            signal.rejected.inc(receipt.rejected)
            _log.info("rejected %d %s items of agent %s: %s", receipt.rejected, signal.name, principal.agent_id, receipt.message)
        return signal.answer(receipt)


def _metrics_answer(receipt: Receipt) -> Message:
    answer = ExportMetricsServiceResponse()
    if receipt.message:
        answer.partial_success.rejected_data_points = receipt.rejected
        answer.partial_success.error_message = receipt.message
    return answer


def _logs_answer(receipt: Receipt) -> Message:
    answer = ExportLogsServiceResponse()
    if receipt.message:
        answer.partial_success.rejected_log_records = receipt.rejected
        answer.partial_success.error_message = receipt.message
    return answer


def _headers(problem: Problem) -> dict[str, str]:
    headers = problem.headers()
    if problem.treatment.status in {429, 503} and "Retry-After" not in headers:
        headers["Retry-After"] = str(round(_RETRY_AFTER))
    return headers


def _status_body(problem: Problem, *, is_json: bool) -> bytes:
    """The problem as a ``google.rpc.Status``: a gRPC code (field 1) and a message (field 2)."""
    code = _GRPC_CODES.get(problem.treatment.status, _GRPC_INTERNAL)
    message = f"{problem.code}: {problem.detail}"
    if is_json:
        return json.dumps({"code": code, "message": message}).encode()
    text = message.encode("utf-8", "replace")
    return b"\x08" + _varint(code) + b"\x12" + _varint(len(text)) + text


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits a byte
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _log_problem(problem: Problem, error: Exception, path: str) -> None:
    unforeseen = problem.code == "internal-error"
    _log.log(problem.treatment.log_level, "%s answered %s: %s", path, problem.code, problem.detail, exc_info=error if unforeseen else None)
