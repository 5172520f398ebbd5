from __future__ import annotations

import itertools
import threading
import time

import httpx2
import pytest
from served_platform import ADMIN_KEY, serve

from app.client import Client
from app.client import errors as client_errors
from app.client.generated.agent_models import ProvisionRequest
from app.client.live import Live, LiveEvent, _Reader
from app.client.session import Session


def events_in(reader: _Reader, text: str) -> list[LiveEvent]:
    return [event for line in text.split("\n") if (event := reader.read(line)) is not None]


def live(*answers: httpx2.Response | Exception) -> tuple[Live, list[httpx2.Request]]:
    waiting, asked = list(answers), []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        found = waiting.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    session = Session("http://platform.test", http=httpx2.Client(transport=httpx2.MockTransport(answer)), sleep=lambda _: None)
    return Live(session), asked


def test_the_format_is_read_with_comments_ids_without_data_and_data_of_several_lines():
    reader = _Reader("")
    text = 'retry: 500\nid: 7-0\n\n: heartbeat\nid: 7-3\n\nid: 7-4\nevent: event\ndata: {"a":\ndata: 1}\n\ndata: {}\n\n'
    assert events_in(reader, text) == [LiveEvent("event", "7-4", {"a": 1}), LiveEvent("message", "7-4", {})]
    assert (reader.retry, reader.id) == (0.5, "7-4")
    assert events_in(reader, 'id: 7-5\ndata: {"cut":') == []
    reader.forget()
    assert reader.id == "7-4"


def test_a_connection_that_breaks_is_made_again_after_the_last_event():
    follower, asked = live(
        httpx2.Response(200, text='id: 7-1\nevent: event\ndata: {"n": 1}\n\nid: 7-2\nevent: ev'),
        httpx2.ConnectError("refused"),
        httpx2.Response(503, json={"code": "overloaded", "detail": "busy"}, headers={"Retry-After": "1"}),
        httpx2.Response(200, text='id: 7-2\nevent: event\ndata: {"n": 2}\n\n'),
    )
    got = list(itertools.islice(follower.follow(topic=["event"], agent=["a", "b"]), 2))
    assert [event.data["n"] for event in got] == [1, 2]
    assert [request.headers.get("last-event-id") for request in asked] == [None, "7-1", "7-1", "7-1"]
    assert str(asked[0].url).endswith("/api/v1/live?topic=event&agent=a&agent=b")


def test_a_refusal_ends_it_and_so_does_an_absence_beyond_patience():
    follower, _ = live(httpx2.Response(401, json={"code": "unauthenticated", "detail": "no"}))
    with pytest.raises(client_errors.UnauthenticatedError):
        next(follower.follow())
    follower, asked = live(httpx2.ConnectError("refused"))
    with pytest.raises(client_errors.UnreachableError):
        next(follower.follow(patience=-1.0, last_event_id="7-9"))
    assert asked[0].headers["last-event-id"] == "7-9"


@pytest.mark.sockets
def test_events_of_a_real_platform_arrive_in_order_over_a_connection_that_is_cut(tmp_path):
    names = [f"env-{n}" for n in range(6)]
    with serve(tmp_path / "data") as served:
        connected = threading.Event()

        def work() -> None:
            assert connected.wait(20)
            with Client(served.url, ADMIN_KEY) as platform:
                for name in names:
                    platform.agent.provision(ProvisionRequest(agent_type="server", environment_name=name))

        worker = threading.Thread(target=work, name="provisioning")
        worker.start()
        got: list[str] = []
        last = None
        with Client(served.url, ADMIN_KEY) as listener:
            with listener.session.stream("/api/v1/live") as answer:
                for line in answer.iter_lines():
                    if line.startswith("id: "):
                        last = line.removeprefix("id: ")
                        break
            connected.set()
            worker.join(30)
            give_up = time.monotonic() + 20
            while len(got) < len(names) and time.monotonic() < give_up:
                follower = listener.live.follow(topic=["event"], last_event_id=last)
                for event in itertools.islice(follower, 2):
                    got.append(str(event.data.get("id") or event.data))
                    last = event.id
                    assert event.topic == "event"
                follower.close()
            found = [e.id for e in listener.events.iterate_events() if e.name == "irca.agent.provisioned"]
        assert len(set(got)) == len(got) == len(found) == len(names)
