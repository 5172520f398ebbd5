"""``GET /api/v1/live``: what just happened, as Server-Sent Events.

A client that reconnects says which event it had last (``Last-Event-ID``) and goes on after it. What happened is kept for a few minutes
only; one that stayed away longer, fell behind further or comes back after a restart is told so by an event ``lagged`` and should read
again what it shows.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from app.api.dependencies import IdentityDependency, PlatformDependency, get_identity
from app.errors import UnauthenticatedError
from app.events.stream import CLOSED, LAGGED, LiveMessage, LiveStream
from app.platform import Platform

router = APIRouter(prefix="/api/v1", tags=["live"])

HEARTBEAT = 15.0
"""Seconds of silence after which a comment is sent; at the same cadence the key or session behind the stream is checked again."""
RETRY_MS = 2000
"""Milliseconds after which a client should reconnect."""

Topic = Literal["agent", "instance", "samples", "event", "delivery"]


@dataclass(frozen=True, slots=True)
class LiveFilter:
    """Which messages a client wants; an empty set wants all."""

    topics: frozenset[str] = frozenset()
    instances: frozenset[str] = frozenset()
    agents: frozenset[str] = frozenset()

    def wants(self, message: LiveMessage) -> bool:
        """Whether the message passes; that the client lost some (``lagged``) always does."""
        if message.topic == LAGGED:
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
    last_event_id: Annotated[str | None, Header(description="Id of the last event that the client had; EventSource sends it.")] = None,
    after: Annotated[
        str | None, Query(alias="last_event_id", description="The same for clients that cannot send headers; the header wins.")
    ] = None,
) -> StreamingResponse:
    """Each event's name is its topic: ``agent`` and ``instance`` (its row changed), ``samples`` (new metrics arrived), ``event`` (a
    timeline event), ``delivery`` (a webhook delivery was tried), ``lagged`` (some were lost: read again what you show). With the id of the
    last event the stream goes on after it; what happened is kept for five minutes, at most 4,096 events of each topic. The stream ends when
    the platform stops or the key or session is no longer valid.
    """  # noqa: D205 - the OpenAPI description, which has the route's summary above it
    wanted = LiveFilter(frozenset(topic or ()), frozenset(instance or ()), frozenset(agent or ()))
    last = after if last_event_id is None else last_event_id
    events = stream(platform.live, wanted, allowed=lambda: _is_allowed(request, platform), last_event_id=last)
    return _LiveResponse(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})


async def stream(
    live: LiveStream,
    wanted: LiveFilter,
    *,
    allowed: Callable[[], Awaitable[bool]],
    last_event_id: str | None = None,
    heartbeat: float = HEARTBEAT,
) -> AsyncIterator[str]:
    """The text of the event stream, piece by piece, until the live stream closes or ``allowed`` says no.

    A piece with an id and no data moves a client's last event id without an event: what does not pass its filter never has it lag.
    """
    async with live.subscribe(wanted.topics, last_event_id=last_event_id) as subscription:
        # One that resumes keeps the id that it has until it has heard what it missed.
        first_id = "" if last_event_id is not None else f"id: {live.id_of(subscription.position)}\n"
        yield f"retry: {RETRY_MS}\n{first_id}\n"
        loop = asyncio.get_running_loop()
        check_at = loop.time() + heartbeat
        while True:
            if loop.time() >= check_at:  # asked for itself: a queue that always holds something never lets a timeout strike
                if not await allowed():
                    return
                check_at = loop.time() + heartbeat
                yield f": heartbeat\nid: {live.id_of(subscription.position)}\n\n"
            try:
                async with asyncio.timeout_at(check_at):
                    message = await subscription.get()
            except TimeoutError:
                continue
            if message.topic == CLOSED:
                return
            if wanted.wants(message):
                yield format_event(message, live.id_of(message.number))


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
