"""Named, supervised loops: each in a thread of its own; one that cannot go on stops the agent with a reason."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from connectors.core import log
from connectors.core.backoff import Backoff
from connectors.core.collector import describe_failure
from connectors.core.errors import ConnectorError

_LOG = logging.getLogger(__name__)
SETTLED_AFTER = 60.0
"""A loop that ran this long before it failed begins its pauses anew."""
LONGEST_PAUSE = 10.0
"""Seconds. What a loop talks to is near, and is to be followed again within one interval of its coming back."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The loop that died for good, and why."""

    loop: str
    reason: str


class Runner:
    """Runs loops until ``stopping`` is set.

    Args:
        stopping: set by whoever wants an end; the runner sets it itself when a loop dies for good.
        random: numbers in [0, 1), for the pauses between restarts.
        on_change: told (loop, reason) when a loop failed and waits for its restart, and (loop, "") when it runs again.

    A loop is a function of ``stopping``. One that raises a retryable ``ConnectorError``, or returns early, is restarted after a pause;
    one that raises anything else stops the agent.
    """

    def __init__(
        self, stopping: threading.Event, random: Callable[[], float], on_change: Callable[[str, str], None] = lambda _loop, _reason: None
    ) -> None:
        self._stopping = stopping
        self._random = random
        self._on_change = on_change
        self._loops: list[tuple[str, Callable[[threading.Event], None]]] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._failure: Failure | None = None

    @property
    def failure(self) -> Failure | None:
        """The first loop that died for good, if one did."""
        return self._failure

    @property
    def alive(self) -> bool:
        """Whether every loop's thread is."""
        return all(thread.is_alive() for thread in self._threads)

    def add(self, name: str, loop: Callable[[threading.Event], None]) -> None:
        """Supervise ``loop`` under ``name`` once :meth:`start` is called."""
        self._loops.append((name, loop))

    def start(self) -> None:
        """Start every loop."""
        for name, loop in self._loops:
            # Daemon, so that a loop stuck in a system call cannot keep a stopped process alive; none of them dies unseen.
            thread = threading.Thread(target=self._supervise, args=(name, loop), name=f"irca-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def join(self, timeout: float) -> list[str]:
        """Wait for the loops to end, ``timeout`` seconds at most in all; the names of those that did not."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return [thread.name.removeprefix("irca-") for thread in self._threads if thread.is_alive()]

    def _supervise(self, name: str, loop: Callable[[threading.Event], None]) -> None:
        backoff = Backoff(self._random, last=LONGEST_PAUSE)
        while not self._stopping.is_set():
            begun = time.monotonic()
            try:
                if backoff.attempts:
                    self._on_change(name, "")
                loop(self._stopping)
                if self._stopping.is_set():
                    return
                reason = "it ended without being told to"
            except Exception as exc:  # noqa: BLE001 - whatever ends a loop must be seen
                reason = describe_failure(exc)
                if not (isinstance(exc, ConnectorError) and exc.retryable):
                    self._give_up(name, reason, exc)
                    return
            if time.monotonic() - begun > SETTLED_AFTER:
                backoff.reset()
            pause = backoff.pause()
            log.entry(_LOG, logging.WARNING, "runner.restart", "a loop failed and will be restarted", loop=name, reason=reason, pause=pause)
            self._on_change(name, reason)
            self._stopping.wait(pause)

    def _give_up(self, name: str, reason: str, exc: Exception) -> None:
        with self._lock:
            self._failure = self._failure or Failure(name, reason)
        _LOG.critical(
            "a loop died; stopping the agent", exc_info=exc, extra={"action": "runner.died", "facts": {"loop": name, "reason": reason}}
        )
        self._stopping.set()
