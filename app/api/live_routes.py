"""``GET /api/v1/live``: what just happened, as Server-Sent Events.

There is no history behind the stream. A client that reconnects (it sends ``Last-Event-ID``) or falls behind is told so by an event
``lagged`` and should read again what it shows.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from app.api.dependencies import IdentityDependency, PlatformDependency, get_identity
from app.errors import UnauthenticatedError
from app.events.stream import LiveMessage, LiveStream
from app.platform import Platform

router = APIRouter(prefix="/api/v1", tags=["live"])

HEARTBEAT = 15.0
"""Seconds of silence after which a comment is sent; at the same cadence the key or session behind the stream is checked again."""
RETRY_MS = 2000
"""Milliseconds after which a client should reconnect."""

Topic = Literal["agent", "instance", "samples", "event"]


@dataclass(frozen=True, slots=True)
class LiveFilter:
    """Which messages a client wants; an empty set wants all."""

    topics: frozenset[str] = frozenset()
    instances: frozenset[str] = frozenset()
    agents: frozenset[str] = frozenset()

    def wants(self, message: LiveMessage) -> bool:
        """Whether the message passes; that the client lost some (``lagged``) always does."""
        if message.topic == "lagged":
            return True
        return (
            _passes(self.topics, message.topic)
            and _passes(self.instances, message.data.get("instance_id"))
            and _passes(self.agents, message.data.get("agent_id"))
        )


class _LiveResponse(StreamingResponse):
    media_type = "text/event-stream"


@router.get(
    "/live",
    summary="Follow what happens, as Server-Sent Events",
    response_class=_LiveResponse,
    responses={200: {"description": "Events named by topic; data are JSON objects.", "content": {"text/event-stream": {}}}},
)
async def follow(
    request: Request,
    platform: PlatformDependency,
    _identity: IdentityDependency,
    topic: Annotated[list[Topic] | None, Query(description="Only these topics.")] = None,
    instance: Annotated[list[str] | None, Query(description="Only what concerns these instances.")] = None,
    agent: Annotated[list[str] | None, Query(description="Only what concerns these agents.")] = None,
    last_event_id: Annotated[str | None, Header(description="Sent by a client that reconnects.")] = None,
) -> StreamingResponse:
    """Each event's name is its topic: ``agent`` and ``instance`` (its row changed), ``samples`` (new metrics arrived), ``event`` (a
    timeline event), ``lagged`` (some were lost: read again what you show). The stream ends when the platform stops or the key or
    session is no longer valid.
    """  # noqa: D205 - the OpenAPI description, which has the route's summary above it
    wanted = LiveFilter(frozenset(topic or ()), frozenset(instance or ()), frozenset(agent or ()))
    events = stream(platform.live, wanted, allowed=lambda: _is_allowed(request, platform), resumed=last_event_id is not None)
    return _LiveResponse(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})


async def stream(
    live: LiveStream,
    wanted: LiveFilter,
    *,
    allowed: Callable[[], Awaitable[bool]],
    resumed: bool = False,
    heartbeat: float = HEARTBEAT,
) -> AsyncIterator[str]:
    """The text of the event stream, piece by piece, until the live stream closes or ``allowed`` says no."""
    numbers = itertools.count(1)
    started = int(time.time() * 1000)
    async with live.subscribe() as queue:
        yield f"retry: {RETRY_MS}\n\n"
        if resumed:
            yield format_event(LiveMessage("lagged"), f"{started}-0")
        loop = asyncio.get_running_loop()
        check_at = loop.time() + heartbeat
        while True:
            if loop.time() >= check_at:  # asked for itself: a queue that always holds something never lets a timeout strike
                if not await allowed():
                    return
                check_at = loop.time() + heartbeat
                yield ": heartbeat\n\n"
            try:
                async with asyncio.timeout_at(check_at):
                    message = await queue.get()
            except TimeoutError:
                continue
            if message.topic == "closed":
                return
            if wanted.wants(message):
                yield format_event(message, f"{started}-{next(numbers)}")


def format_event(message: LiveMessage, event_id: str) -> str:
    """A message in the event stream format. JSON holds no line break, so one ``data`` line is enough."""
    return f"id: {event_id}\nevent: {message.topic}\ndata: {json.dumps(dict(message.data), default=str)}\n\n"


async def _is_allowed(request: Request, platform: Platform) -> bool:
    try:
        await get_identity(request, platform)
    except UnauthenticatedError:
        return False
    return True


def _passes(wanted: Collection[str], value: object) -> bool:
    return not wanted or value in wanted
