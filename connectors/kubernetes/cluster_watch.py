"""The cluster view at work: it stands for election, and watches and reports changes for as long as it leads."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from connectors.core import log
from connectors.kubernetes.cluster import Cluster
from connectors.kubernetes.kinds import Kind
from connectors.kubernetes.lease import Elector, Standing
from connectors.kubernetes.view import BATCH, Json, KindState, View
from connectors.kubernetes.watch import Watches

_LOG = logging.getLogger(__name__)
_POLL = 0.25
_GLANCE = 0.05
_TICK = 1.0
_LAST_WORDS = 1.0


class Reporter(Protocol):
    """Makes events of changes."""

    def __call__(self, kind: str, before: Json | None, after: Json | None, initial: bool) -> None:
        """Take a change, as :class:`~connectors.kubernetes.view.View` tells it."""

    def tick(self, now: float) -> None:
        """Report what was waited with; ``now`` is Unix seconds."""

    def close(self) -> None:
        """Report everything that was waited with: this is the end."""


MakeReporter = Callable[[float | None], Reporter]
"""Makes the reporter of a term, told until when another has led (Unix seconds; None: nobody has)."""


class ClusterWatch:
    """Keeps ``view`` up to date while ``elector`` says that we lead; else the view is empty.

    Args:
        cluster: what is watched.
        view: where it goes.
        elector: whether we lead.
        clock: Unix seconds.
    """

    def __init__(self, cluster: Cluster, view: View, elector: Elector, *, clock: Callable[[], float] = time.time) -> None:
        self._cluster = cluster
        self._view = view
        self._elector = elector
        self._clock = clock
        self._watches: Watches | None = None
        self._reporter: Reporter | None = None
        self._term = 0
        self._ticked = 0.0

    def run(self, make_reporter: MakeReporter, stopping: threading.Event) -> None:
        """Watch until ``stopping`` is set; each time that we begin to lead, changes go to a new reporter. Gives the Lease up at the end."""
        self._elector.start()
        try:
            while not stopping.is_set():
                self._round(make_reporter, stopping)
            self._say_last_words()
        finally:
            self._end()
            self._elector.stop()

    @property
    def leading(self) -> bool:
        """Whether we lead, and the view is ours to be told of."""
        standing, term = self._elector.standing
        return standing is Standing.LEADING and term == self._term and self._watches is not None

    def wait_for_lists(self, timeout: float) -> None:
        """Wait until it is known whether we lead, and if so until each kind's first list was read or has failed.

        At most ``timeout`` seconds; none once that is so.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            standing, _ = self._elector.standing
            if standing is Standing.SUSPENDED or (standing is Standing.STANDBY and self._elector.looked):
                return
            if self.leading and not any(s.served and not s.synced and not s.reason for s in map(self._state, self._view.kinds)):
                return
            time.sleep(_GLANCE)

    def _state(self, kind: Kind) -> KindState:
        return self._view.state(kind.name)

    def _round(self, make_reporter: MakeReporter, stopping: threading.Event) -> None:
        standing, term = self._elector.standing
        if self._watches is not None and (standing is Standing.STANDBY or term != self._term):
            self._end()
        if standing is not Standing.LEADING:
            # Suspended: nothing may be told, but the watches stand, and go on without a loss when the Lease is still ours.
            stopping.wait(_POLL)
            return
        if self._watches is None:
            self._begin(make_reporter(self._elector.led_until), term)
        self._view.wait(_POLL)
        if self.leading:  # still, after the waiting
            self._view.tell(0.0)
            self._tick()

    def _begin(self, reporter: Reporter, term: int) -> None:
        log.entry(_LOG, logging.INFO, "watch.begin", "watching the cluster", kinds=len(self._view.kinds))
        self._reporter, self._term = reporter, term
        self._view.listen(reporter)
        self._watches = Watches(self._cluster, self._view)
        self._watches.start()

    def _end(self) -> None:
        watches, self._watches = self._watches, None
        reporter, self._reporter = self._reporter, None
        if watches is not None:
            watches.stop()
            log.entry(_LOG, logging.INFO, "watch.end", "watching the cluster no more")
        if reporter is not None:
            self._view.forget(reporter)

    def _tick(self) -> None:
        now = self._clock()
        if self._reporter is not None and abs(now - self._ticked) >= _TICK:
            self._ticked = now
            self._reporter.tick(now)

    def _say_last_words(self) -> None:
        """Tell what waits, as far as that goes in a second: whoever leads next does not know it."""
        deadline = time.monotonic() + _LAST_WORDS
        while self.leading and time.monotonic() < deadline and self._view.tell(0.0) == BATCH:
            pass
        if self.leading and self._reporter is not None:
            self._reporter.close()
