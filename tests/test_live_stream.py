from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
import uvicorn
from starlette.testclient import TestClient
from waiting import eventually

from app.api.live_routes import LiveFilter, format_event, stream
from app.events.stream import LiveMessage, LiveStream
from tests.page_platform import KEY, PagePlatform, make_app


async def _allowed() -> bool:
    return True


async def _next(pieces: AsyncIterator[str]) -> str:
    return await asyncio.wait_for(anext(pieces), 5)


def test_a_message_becomes_one_event_with_id_name_and_json_on_one_line():
    text = format_event(LiveMessage("instance", {"instance_id": "a", "body": "two\nlines"}), "7-1")
    lines = text.splitlines()
    assert lines[:2] == ["id: 7-1", "event: instance"]
    assert json.loads(lines[2].removeprefix("data: ")) == {"instance_id": "a", "body": "two\nlines"}
    assert text.endswith("\n\n")
    assert len(lines) == 4


def test_an_empty_filter_wants_everything_and_each_set_narrows_it():
    about = LiveMessage("samples", {"instance_id": "i1", "agent_id": "a1"})
    assert LiveFilter().wants(about)
    assert LiveFilter(frozenset({"samples"}), frozenset({"i1", "i2"}), frozenset({"a1"})).wants(about)
    assert not LiveFilter(topics=frozenset({"event"})).wants(about)
    assert not LiveFilter(instances=frozenset({"i2"})).wants(about)
    assert not LiveFilter(agents=frozenset({"a2"})).wants(about)
    assert not LiveFilter(instances=frozenset({"i1"})).wants(LiveMessage("agent", {"agent_id": "a1"}))
    assert LiveFilter(frozenset({"event"}), frozenset({"i2"})).wants(LiveMessage("lagged"))


async def test_the_stream_tells_the_retry_time_then_what_passes_the_filter_under_its_number():
    live = LiveStream(started=7)
    pieces = stream(live, LiveFilter(topics=frozenset({"instance"})), allowed=_allowed)
    assert await _next(pieces) == "retry: 2000\nid: 7-0\n\n"
    live.publish(LiveMessage("samples", {"instance_id": "i1"}))
    for name in ("i1", "i2"):
        live.publish(LiveMessage("instance", {"instance_id": name}))
    first, second = await _next(pieces), await _next(pieces)
    assert "i1" in first
    assert "i2" in second
    assert [text.splitlines()[0] for text in (first, second)] == ["id: 7-2", "id: 7-3"]
    await pieces.aclose()
    assert live.subscribers == 0


async def test_silence_is_filled_with_heartbeat_comments_that_move_the_last_event_id():
    live = LiveStream(started=7)
    pieces = stream(live, LiveFilter(), allowed=_allowed, heartbeat=0.01)
    await _next(pieces)
    assert await _next(pieces) == ": heartbeat\nid: 7-0\n\n"
    live.publish(LiveMessage("event", {"id": "e"}))
    while (piece := await _next(pieces)).startswith(": heartbeat"):
        pass
    assert "event: event" in piece
    assert await _next(pieces) == ": heartbeat\nid: 7-1\n\n"
    await pieces.aclose()


async def test_the_stream_ends_at_the_next_heartbeat_when_the_key_or_session_is_no_longer_valid():
    live = LiveStream(started=7)

    async def refused() -> bool:
        return False

    assert [piece async for piece in stream(live, LiveFilter(), allowed=refused, heartbeat=0.01)] == ["retry: 2000\nid: 7-0\n\n"]
    assert live.subscribers == 0


async def test_a_busy_stream_checks_the_key_all_the_same():
    live = LiveStream()
    asked = 0

    async def allowed() -> bool:
        nonlocal asked
        asked += 1
        return asked < 3

    pieces = 0
    async for _ in stream(live, LiveFilter(), allowed=allowed, heartbeat=0.02):
        live.publish(LiveMessage("event"))
        pieces += 1
        await asyncio.sleep(0.001)
    assert asked == 3
    assert pieces > 3


async def test_a_client_that_comes_back_goes_on_after_what_it_had_within_its_filter():
    live = LiveStream(started=7)
    async with live.subscribe():
        for number in range(1, 7):
            live.publish(LiveMessage("instance" if number % 2 else "samples", {"instance_id": f"i{number}"}))
        pieces = stream(live, LiveFilter(frozenset({"instance"}), frozenset({"i3", "i5"})), allowed=_allowed, last_event_id="7-3")
        assert await _next(pieces) == "retry: 2000\n\n", "it keeps its id until it has heard what it missed"
        assert (await _next(pieces)).splitlines()[0] == "id: 7-5"
        live.publish(LiveMessage("instance", {"instance_id": "i3"}))
        assert (await _next(pieces)).splitlines()[0] == "id: 7-7"
        await pieces.aclose()


@pytest.mark.parametrize("last", ["6-3", "7-9", "7-x", "7-", "", "nonsense", "7-" + "1" * 30])
async def test_an_id_of_another_start_or_of_nobody_is_answered_with_lagged(last):
    live = LiveStream(started=7)
    async with live.subscribe():
        live.publish(LiveMessage("event"))
        pieces = stream(live, LiveFilter(topics=frozenset({"instance"})), allowed=_allowed, last_event_id=last)
        await _next(pieces)
        assert (await _next(pieces)).splitlines()[:2] == ["id: 7-1", "event: lagged"]
        live.publish(LiveMessage("instance"))
        assert "id: 7-2" in await _next(pieces)
        await pieces.aclose()


async def test_a_client_that_comes_back_for_more_than_is_kept_is_told_and_gets_what_is_left():
    live = LiveStream(queue_size=2, started=7)
    async with live.subscribe():
        for number in range(1, 6):
            live.publish(LiveMessage("event", {"number": number}))
        for _ in range(9):
            live.publish(LiveMessage("samples"))
        async with live.subscribe({"event"}, last_event_id="7-2") as behind:
            assert [(m.topic, m.number) for m in [await behind.get() for _ in range(3)]] == [("lagged", 3), ("event", 4), ("event", 5)]
            assert behind.empty()
            assert behind.position == 14
        async with live.subscribe({"event"}, last_event_id="7-3") as still:
            assert [m.number for m in [await still.get() for _ in range(2)]] == [4, 5], "other topics push nothing out"


async def test_what_is_older_than_the_stream_keeps_is_lost_to_who_comes_back():
    now = 0.0
    live = LiveStream(max_age=10.0, clock=lambda: now, started=7)
    async with live.subscribe():
        live.publish(LiveMessage("event"))
        now = 6.0
        live.publish(LiveMessage("event"))
        now = 12.0
        async with live.subscribe(last_event_id="7-0") as behind:
            assert [(m.topic, m.number) for m in [await behind.get() for _ in range(2)]] == [("lagged", 1), ("event", 2)]
        async with live.subscribe(last_event_id="7-1") as kept:
            assert (await kept.get()).number == 2


async def test_a_stream_that_nobody_followed_for_long_does_not_pretend_to_know_what_happened():
    now = 0.0
    live = LiveStream(max_age=10.0, clock=lambda: now, started=7)
    assert not live.followed
    async with live.subscribe():
        assert live.followed
    now = 9.0
    assert live.followed, "who left may come back for samples"
    now = 10.0
    assert not live.followed
    async with live.subscribe(last_event_id="7-0") as back:
        assert (await back.get()).topic == "lagged"
        with pytest.raises(asyncio.QueueEmpty):
            back.get_nowait()


async def test_a_client_that_falls_behind_is_told_and_gets_the_newest():
    live = LiveStream(queue_size=4)
    pieces = stream(live, LiveFilter(), allowed=_allowed)
    await _next(pieces)
    for number in range(6):
        live.publish(LiveMessage("event", {"number": number}))
    got = [await _next(pieces) for _ in range(5)]
    assert any("event: lagged" in text for text in got)
    assert '"number": 5' in got[-1]
    await pieces.aclose()


async def test_every_stream_ends_when_the_live_stream_closes_even_one_that_begins_later():
    live = LiveStream()
    pieces = stream(live, LiveFilter(topics=frozenset({"event"})), allowed=_allowed)
    await _next(pieces)
    live.close()
    with pytest.raises(StopAsyncIteration):
        await _next(pieces)
    assert len([piece async for piece in stream(live, LiveFilter(), allowed=_allowed)]) == 1


def test_the_live_route_wants_a_key_or_session_and_known_topics(tmp_path: Path):
    platform = PagePlatform(tmp_path)
    with TestClient(make_app(platform)) as client:
        refused = client.get("/api/v1/live")
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
        assert client.get("/api/v1/live", headers={"Authorization": "Bearer irca_wrong"}).status_code == 401
        assert client.get("/api/v1/live?topic=weather", headers={"Authorization": f"Bearer {KEY}"}).status_code == 422
        platform.live.close()
        answer = client.get("/api/v1/live", headers={"Authorization": f"Bearer {KEY}"})
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        assert answer.text.startswith("retry: 2000\nid: ")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, PagePlatform, Callable[[LiveMessage], None], uvicorn.Server]]:
    platform = PagePlatform(tmp_path)
    loops: list[asyncio.AbstractEventLoop] = []
    app = make_app(platform)

    async def run(server: uvicorn.Server, listener: socket.socket) -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve([listener])

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
        thread = threading.Thread(target=lambda: asyncio.run(run(server, listener)), name="live-server")
        thread.start()
        eventually(lambda: server.started)
        yield (
            f"http://127.0.0.1:{listener.getsockname()[1]}",
            platform,
            lambda m: loops[0].call_soon_threadsafe(platform.live.publish, m) and None,
            server,
        )
        loops[0].call_soon_threadsafe(platform.live.close)
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.sockets
def test_over_http_events_arrive_as_they_happen_and_the_subscription_ends_when_the_client_goes(served):
    base, platform, publish, _ = served
    query = urlencode([("topic", "instance"), ("instance", "i1")])
    request = Request(f"{base}/api/v1/live?{query}", headers={"Authorization": f"Bearer {KEY}"})
    with urlopen(request, timeout=10) as answer:
        assert answer.readline() == b"retry: 2000\n"
        assert answer.readline().startswith(b"id: ")
        answer.readline()
        publish(LiveMessage("instance", {"instance_id": "i2"}))
        publish(LiveMessage("instance", {"instance_id": "i1"}))
        assert answer.readline().startswith(b"id: ")
        assert answer.readline() == b"event: instance\n"
        assert json.loads(answer.readline().removeprefix(b"data: ")) == {"instance_id": "i1"}
        assert platform.live.subscribers == 1
    eventually(lambda: platform.live.subscribers == 0)


@pytest.mark.sockets
@pytest.mark.parametrize("how", ["header", "query"])
def test_over_http_a_connection_dropped_in_the_middle_goes_on_without_loss_or_doubling(served, how):
    base, platform, publish, _ = served
    got: list[int] = []
    last = ""
    for part in range(4):
        query = "?topic=event" + (f"&last_event_id={last}" if last and how == "query" else "")
        headers = {"Authorization": f"Bearer {KEY}", **({"Last-Event-ID": last} if last and how == "header" else {})}
        with urlopen(Request(f"{base}/api/v1/live{query}", headers=headers), timeout=10) as answer:
            answer.readline()
            for number in range(part * 10, part * 10 + 10):
                publish(LiveMessage("event", {"number": number}))
                publish(LiveMessage("samples", {"number": -1}))
            while not got or got[-1] < part * 10 + 5:  # and then it breaks, with what follows on its way
                line = answer.readline().decode()
                if line.startswith("id: "):
                    last = line[4:].strip()
                elif line.startswith("event: "):
                    assert line == "event: event\n"
                elif line.startswith("data: "):
                    got.append(json.loads(line[6:])["number"])
        eventually(lambda: platform.live.subscribers == 0)
    assert got == list(range(36))


@pytest.mark.sockets
def test_over_http_the_stream_ends_when_the_platform_stops(served):
    base, platform, _, _ = served
    request = Request(f"{base}/api/v1/live", headers={"Authorization": f"Bearer {KEY}"})
    with urlopen(request, timeout=10) as answer:
        for _ in range(3):
            answer.readline()
        platform.live.close()
        assert answer.read() == b""
