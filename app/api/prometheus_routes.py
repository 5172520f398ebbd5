"""The Prometheus HTTP API under ``/prometheus``, so that Grafana, promtool and our own pages ask the same way.

Answers and errors have Prometheus' shapes, errors included: 400 ``bad_data``, 422 ``execution``, 503 ``timeout`` or ``unavailable``.
Handlers take the bare request and give the bare response: nothing is validated twice on the way.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import wraps
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from fastapi import APIRouter, Request, Response

from app.errors import BodyTooLargeError, OverloadedError, Problem, StorageError
from app.platform import Platform
from app.telemetry.promql.encode import result_json
from app.telemetry.promql.engine import EARLIEST_MS, LATEST_MS, QueryEngine, Result
from app.telemetry.promql.errors import QuerySyntaxError, QueryTimeoutError
from app.telemetry.promql.model import Allowance
from app.telemetry.promql.parse import parse_selector
from app.telemetry.store import Matcher

router = APIRouter(prefix="/prometheus/api/v1", tags=["prometheus"])

API_LEVEL = "2.42.0"
"""The version of Prometheus whose semantics and API this is; Grafana chooses its requests by it."""

_log = logging.getLogger(__name__)
_DURATION = re.compile(r"(?:(\d+)y)?(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?")
_DURATION_UNITS = (31_536_000_000, 604_800_000, 86_400_000, 3_600_000, 60_000, 1000, 1)
_FARTHEST_MS = 2**53
_DIGITS = 18  # of a number that fits into 64 bits
_TRUNCATED = "results truncated due to limit"
_METADATA_TYPES = {"updowncounter": "gauge"}

Parameters = Mapping[str, list[str]]
Endpoint = Callable[[Request], Awaitable[Response]]
Encode = Callable[[Result], tuple[bytes, bool]]
Run = Callable[[Allowance, Encode], Awaitable[tuple[bytes, bool]]]


def _endpoint(handler: Endpoint) -> Endpoint:
    """``handler`` with its errors turned into Prometheus' shape."""

    @wraps(handler)
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Exception as error:  # noqa: BLE001 - whatever it is, this API promises its own error shape
            return _failure(error)

    return answer


def _failure(error: Exception) -> Response:
    problem = Problem.of(error)
    status, kind = problem.treatment.status, "execution"
    if isinstance(error, QuerySyntaxError):
        status, kind = 400, "bad_data"
    elif isinstance(error, QueryTimeoutError):
        status, kind = 503, "timeout"
    elif isinstance(error, StorageError | OverloadedError):
        kind = "unavailable"
    elif isinstance(error, BodyTooLargeError):
        kind = "bad_data"
    elif status >= 500:  # noqa: PLR2004 - the class of statuses that are our own fault
        kind = "internal"
        _log.error("a query failed unexpectedly", exc_info=error)
    body = msgspec.json.encode({"status": "error", "errorType": kind, "error": problem.detail})
    return Response(body, status, problem.headers(), "application/json")


def _success(data: bytes, *, truncated: bool = False) -> Response:
    warnings = b',"warnings":%s' % msgspec.json.encode([_TRUNCATED]) if truncated else b""
    return Response(b'{"status":"success"%s,"data":%s}' % (warnings, data), media_type="application/json")


def _platform(request: Request) -> Platform:
    platform: Platform = request.app.state.platform
    return platform


def _engine(request: Request) -> QueryEngine:
    """The engine over the platform's store, made at the first request."""
    store = _platform(request).metrics
    engine: QueryEngine | None = getattr(request.app.state, "query_engine", None)
    if engine is None or engine.store is not store:
        engine = request.app.state.query_engine = QueryEngine(store)
    return engine


async def _parameters(request: Request) -> Parameters:
    """Parameters of the form body, then of the URL."""
    pairs: list[tuple[str, str]] = []
    if request.method == "POST" and request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        limit, body = _platform(request).settings.max_body_bytes, bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise BodyTooLargeError(f"the form is larger than {limit} bytes")
        pairs = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)
    pairs += parse_qsl(request.url.query, keep_blank_values=True)
    parameters: dict[str, list[str]] = {}
    for name, value in pairs:
        parameters.setdefault(name, []).append(value)
    return parameters


def _bad(name: str, problem: object) -> QuerySyntaxError:
    return QuerySyntaxError(f'invalid parameter "{name}": {problem}')


def _time(parameters: Parameters, name: str, default: int | None = None) -> int:
    """A time (seconds or RFC 3339) in milliseconds."""
    text = parameters.get(name, [""])[0]
    if not text and default is not None:
        return default
    try:
        seconds = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            raise _bad(name, f'cannot parse "{text}" to a valid timestamp') from None
        seconds = moment.timestamp()
    if not math.isfinite(seconds) or abs(seconds) * 1000 > _FARTHEST_MS:
        raise _bad(name, f'cannot parse "{text}" to a valid timestamp')
    return round(seconds * 1000)


def _duration(parameters: Parameters, name: str) -> int:
    """A duration (seconds, or as PromQL writes them) in milliseconds."""
    text = parameters.get(name, [""])[0]
    try:
        milliseconds = float(text) * 1000
    except ValueError:
        found = _DURATION.fullmatch(text)
        if not text or found is None:
            raise _bad(name, f'cannot parse "{text}" to a valid duration') from None
        milliseconds = sum(float(part) * unit for part, unit in zip(found.groups("0"), _DURATION_UNITS, strict=True))
    if not math.isfinite(milliseconds) or abs(milliseconds) > _FARTHEST_MS:
        raise _bad(name, f'cannot parse "{text}" to a valid duration. It overflows int64')
    return round(milliseconds)


def _limit(parameters: Parameters, name: str = "limit") -> int:
    text = parameters.get(name, [""])[0] or "0"
    if not text.isdecimal() or len(text) > _DIGITS:
        raise _bad(name, "limit must be a non-negative number")
    return int(text)


def _selectors(parameters: Parameters, *, required: bool = False) -> list[tuple[Matcher, ...]]:
    texts = parameters.get("match[]", [])
    if required and not texts:
        raise QuerySyntaxError("no match[] parameter provided")
    selectors = []
    for text in texts:
        try:
            selectors.append(parse_selector(text))
        except QuerySyntaxError as error:
            raise _bad("match[]", error.reason) from None
    return selectors


def _window(parameters: Parameters) -> tuple[int, int]:
    start, end = _time(parameters, "start", EARLIEST_MS), _time(parameters, "end", LATEST_MS)
    if end < start:
        raise _bad("end", "end timestamp must not be before start time")
    return start, end


def _timeout(request: Request, parameters: Parameters) -> float:
    allowed = _platform(request).settings.query_timeout
    if not parameters.get("timeout", [""])[0]:
        return allowed
    asked = _duration(parameters, "timeout") / 1000
    return min(allowed, max(asked, 0.0))


async def _query(request: Request, run: Run, parameters: Parameters, *, matrix: bool) -> Response:
    limit = _limit(parameters)
    allowance = Allowance(_timeout(request, parameters), _platform(request).settings.query_max_samples)

    def encode(result: Result) -> tuple[bytes, bool]:
        return result_json(result, matrix=matrix, limit=limit)

    try:
        data, truncated = await run(allowance, encode)
    except QuerySyntaxError as error:
        raise (_bad("query", error.reason) if error.reason.startswith("parse error") else error) from None
    return _success(data, truncated=truncated)


@router.get("/query", summary="Evaluate a query at one time")
@router.post("/query", summary="Evaluate a query at one time", include_in_schema=False)
@_endpoint
async def query(request: Request) -> Response:
    """``query``, ``time`` (now), ``timeout``, ``limit``."""
    parameters = await _parameters(request)
    moment = _time(parameters, "time", round(time.time() * 1000))
    engine, text = _engine(request), parameters.get("query", [""])[0]

    def run(allowance: Allowance, encode: Encode) -> Awaitable[tuple[bytes, bool]]:
        return engine.instant(text, moment, allowance, encode)

    return await _query(request, run, parameters, matrix=False)


@router.get("/query_range", summary="Evaluate a query at steps over a range")
@router.post("/query_range", summary="Evaluate a query at steps over a range", include_in_schema=False)
@_endpoint
async def query_range(request: Request) -> Response:
    """``query``, ``start``, ``end``, ``step``, ``timeout``, ``limit``."""
    parameters = await _parameters(request)
    start, end, step = _time(parameters, "start"), _time(parameters, "end"), _duration(parameters, "step")
    engine, text = _engine(request), parameters.get("query", [""])[0]

    def run(allowance: Allowance, encode: Encode) -> Awaitable[tuple[bytes, bool]]:
        return engine.range(text, start, end, step, allowance, encode)

    return await _query(request, run, parameters, matrix=True)


@router.get("/series", summary="Label sets of series")
@router.post("/series", summary="Label sets of series", include_in_schema=False)
@_endpoint
async def series(request: Request) -> Response:
    """``match[]`` (at least one), ``start``, ``end``, ``limit``."""
    parameters = await _parameters(request)
    found = await _within(request, _engine(request).series(_selectors(parameters, required=True), *_window(parameters)))
    return _list([dict(labels) for labels in found], _limit(parameters))


@router.get("/labels", summary="Names of labels")
@router.post("/labels", summary="Names of labels", include_in_schema=False)
@_endpoint
async def labels(request: Request) -> Response:
    """``match[]``, ``start``, ``end``, ``limit``."""
    parameters = await _parameters(request)
    found = await _within(request, _engine(request).label_names(_selectors(parameters), *_window(parameters)))
    return _list(found, _limit(parameters))


@router.get("/label/{name}/values", summary="Values of a label")  # noqa: FAST003 - the bare request carries it
@_endpoint
async def label_values(request: Request) -> Response:
    """``match[]``, ``start``, ``end``, ``limit``; the name may also be the OTel attribute's."""
    parameters = await _parameters(request)
    name = request.path_params["name"]
    found = await _within(request, _engine(request).label_values(name, _selectors(parameters), *_window(parameters)))
    return _list(found, _limit(parameters))


@router.get("/metadata", summary="Type and unit of metrics")
@_endpoint
async def metadata(request: Request) -> Response:
    """``metric``, ``limit``, ``limit_per_metric``."""
    parameters = await _parameters(request)
    limit, each = _limit(parameters), _limit(parameters, "limit_per_metric")
    wanted = parameters.get("metric", [""])[0]
    known: dict[str, list[dict[str, str]]] = {}
    for name, one in await _within(request, _engine(request).metadata()):
        if wanted and name != wanted:
            continue
        entry = {"type": _METADATA_TYPES.get(one.kind, one.kind), "help": f"OpenTelemetry metric {one.name}", "unit": one.unit}
        entries = known.setdefault(name, [])
        if not each or len(entries) < each:
            entries.append(entry)
    chosen = dict(list(known.items())[:limit]) if limit else known
    return _success(msgspec.json.encode(chosen))


@router.get("/status/buildinfo", summary="Which API this is")
@_endpoint
async def buildinfo(request: Request) -> Response:  # noqa: ARG001 - handlers are called alike
    """The level of the Prometheus API that is served; Grafana asks for it."""
    level = {"version": API_LEVEL, "revision": "", "branch": "", "buildUser": "", "buildDate": "", "goVersion": ""}
    return _success(msgspec.json.encode(level))


async def _within(request: Request, asked: Awaitable[list[Any]]) -> list[Any]:
    timeout = _platform(request).settings.query_timeout
    try:
        async with asyncio.timeout(timeout):
            return await asked
    except TimeoutError:
        raise QueryTimeoutError(f"query timed out: it took longer than {timeout:g} s") from None


def _list(found: list[Any], limit: int) -> Response:
    truncated = 0 < limit < len(found)
    return _success(msgspec.json.encode(found[:limit] if truncated else found), truncated=truncated)
