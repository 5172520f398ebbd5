"""Events of a watch, gathered for a moment."""

import itertools
import threading

import pytest
from waiting import eventually

from connectors.core import event_buffer
from connectors.core.event_buffer import EventBuffer
from connectors.core.telemetry import Event


@pytest.fixture
def written():
    return []


@pytest.fixture
def buffer(written):
    return EventBuffer(written.append)


def burst(buffer, count):
    events = [Event("test.burst", {"n": n}) for n in range(count)]
    for event in events:
        buffer.add(event)
    return events


def test_events_wait_until_they_are_written_together(buffer, written):
    events = burst(buffer, 3)
    assert written == []
    buffer.flush()
    assert written == [events]


def test_many_events_at_once_do_not_wait(buffer, written, monkeypatch):
    monkeypatch.setattr(event_buffer, "MOST", 10)
    events = burst(buffer, 25)
    assert written == [events[:10], events[10:20]]
    buffer.flush()
    assert list(itertools.chain.from_iterable(written)) == events


def test_what_comes_is_written_by_the_loop_until_it_is_told_to_stop(buffer, written, monkeypatch):
    monkeypatch.setattr(event_buffer, "PAUSE", 0.01)
    stopping = threading.Event()
    loop = threading.Thread(target=buffer.run, args=(stopping,))
    loop.start()
    first = burst(buffer, 2)
    eventually(lambda: list(itertools.chain.from_iterable(written)) == first)
    stopping.set()
    buffer.wake.set()
    loop.join(10)
    assert not loop.is_alive()
