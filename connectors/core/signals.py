"""Signals that end the agent."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def received_signals() -> Iterator[queue.SimpleQueue[int]]:
    """SIGTERM and SIGINT as numbers in a queue, while the block runs. Only the main thread can have them; elsewhere none come.

    A queue, for setting an event inside a handler can deadlock with the wait that the handler interrupted.
    """
    received: queue.SimpleQueue[int] = queue.SimpleQueue()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, lambda number, _frame: received.put(number)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
