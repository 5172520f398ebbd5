"""The running instance: what :class:`~connectors.core.base_agent.BaseAgent` does inside the environment."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from connectors._version import __version__
from connectors.core import log
from connectors.core.backoff import Backoff, around, unit_random
from connectors.core.collector import describe_failure
from connectors.core.delivery import Outbox, Sender
from connectors.core.errors import AuthenticationError, TransportError
from connectors.core.health import Facts, health, reasons
from connectors.core.identity import StateDirectory, machine_fingerprint
from connectors.core.management import Management
from connectors.core.opamp import Component, Report
from connectors.core.own_metrics import own_metrics, with_own_metrics
from connectors.core.runner import Runner
from connectors.core.spool import Spool
from connectors.core.status import AgentStatus, SpoolStatus, write_status
from connectors.core.telemetry import SCOPE_NAME, Attributes, Collection, Event, event_payloads, metric_payloads
from connectors.core.transport import Transport

if TYPE_CHECKING:
    from connectors.core.base_agent import BaseAgent

_LOG = logging.getLogger(__name__)
SPOOL_FILE = "spool.db"
MAX_PAYLOAD = 900 * 1024
"""Bytes of one request before compression; the platform takes 1 MiB."""
STOP_WITHIN = 10.0
_JOIN_WITHIN = 4.0
_POLL = 1.0
_EVENT_PAUSE = 1.0
_MAX_BUFFERED_EVENTS = 500
_MIN_HEARTBEAT_PAUSE = 1.0


class Runtime:
    """An instance of ``agent`` at work. Opens (and locks) the state directory; ``clock`` gives Unix seconds.

    Raises:
        StateError: the state directory cannot be used.
        ConfigError: the CA file or a proxy variable is not usable.
    """

    def __init__(
        self,
        agent: BaseAgent,
        clock: Callable[[], float],
        *,
        random: Callable[[], float] = unit_random,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._agent = agent
        self._clock = clock
        self._random = random
        self._config = agent.config
        self._state = StateDirectory(agent.state_dir, clock)
        try:
            self._open(environ)
        except BaseException:
            self._state.close()
            raise

    def _open(self, environ: Mapping[str, str]) -> None:
        agent, config, clock = self._agent, self._config, self._clock
        self._lock = threading.RLock()
        self._facts = Facts(clock(), config.collect_interval)
        self._told = self._announced = Component()
        self._interval = config.heartbeat_interval
        self._wake_send, self._retry_send, self._wake_heartbeat = threading.Event(), threading.Event(), threading.Event()
        self._wake_events = threading.Event()
        self._events: list[Event] = []
        self._fingerprint = machine_fingerprint(agent.machine_id(), environ)
        identity, events = self._state.identity(self._fingerprint)
        self._host: Attributes = dict(agent.resource())
        self._management = Management(self._state, identity, agent.platform_url, agent._token, self._credential_changed)  # noqa: SLF001 - the runtime is the agent's other half
        self._transport = Transport(
            agent.platform_url,
            self._management.bearer,
            timeout=config.request_timeout,
            ca_file=config.ca_file,
            environ=environ,
            clock=clock,
        )
        path = self._state.path / SPOOL_FILE
        self._outbox = Outbox(lambda: Spool(path, config.spool_max_bytes, config.spool_max_age, clock), clock)
        self._sender = Sender(self._outbox, self._transport, self._resource(), clock)
        self._note(enrolled=self._management.enrolled, spool_reason=self._outbox.reason)
        self._append_events(events)

    @property
    def instance_id(self) -> str:
        """This instance's UUID in text form."""
        return self._management.identity.instance_id

    def send_data(self, collection: Collection) -> int:
        """Spool ``collection``, then send until the spool is empty or the platform is away; how many batches the platform took."""
        self._append(collection)
        if not self._management.enrolled and not self.heartbeat():
            return 0
        drained = self._sender.drain()
        self._note_sent(drained.taken, drained.error)
        return drained.taken

    def heartbeat(self) -> bool:
        """One OpAMP exchange (more at first contact); whether the platform answered."""
        return self._heartbeat() is None

    def status(self) -> AgentStatus:
        """What the status file says."""
        with self._lock:
            facts, now = self._facts, self._clock()
        component = health(facts, now)
        return AgentStatus(
            pid=os.getpid(),
            version=__version__,
            agent_type=self._agent.agent_type,
            instance_id=self.instance_id,
            platform_url=self._agent.platform_url,
            state="healthy" if component.healthy else "degraded",
            reasons=reasons(component),
            started_at=facts.started_at,
            written_at=now,
            enrolled=facts.enrolled,
            last_collection_at=facts.last_collection_at,
            last_send_at=facts.last_send_at,
            last_heartbeat_at=facts.last_heartbeat_at,
            heartbeat_interval=self._interval,
            clock_skew=facts.clock_skew,
            spool=SpoolStatus.of(self._outbox.statistics()),
        )

    def run(self, stopping: threading.Event | None = None) -> int:
        """Run every loop until a signal or ``stopping``; then flush what fits in 10 s and say goodbye. 0, or 1 when a loop died."""
        stopping = stopping or threading.Event()
        log.configure(self._config.log_level, self._config.log_format)
        log.entry(
            _LOG,
            logging.INFO,
            "agent.start",
            "the agent starts",
            version=__version__,
            agent_type=self._agent.agent_type,
            instance_id=self.instance_id,
            platform_url=self._agent.platform_url,
            state_dir=self._state.path,
        )
        runner = Runner(stopping, self._random, self._loop_changed)
        for name, loop in self._loops():
            runner.add(name, loop)
        with _signals() as signals:
            runner.start()
            self._wait(stopping, signals)
            stopping.set()
            self._stop(runner)
        return 1 if runner.failure else 0

    def close(self) -> None:
        """Close what is open and unlock the state directory. What is spooled stays."""
        self._transport.close()
        self._outbox.close()
        self._state.close()

    # Loops, each in a thread of its own.

    def _loops(self) -> Iterator[tuple[str, Callable[[threading.Event], None]]]:
        from connectors.core.base_agent import BaseAgent  # noqa: PLC0415 - the agent's module imports this one

        yield "collect", self._collect_loop
        yield "heartbeat", self._heartbeat_loop
        yield "send", self._send_loop
        if type(self._agent).watch is not BaseAgent.watch:
            yield "watch", lambda stopping: self._agent.watch(self._emit, stopping)
            yield "events", self._events_loop

    def _collect_loop(self, stopping: threading.Event) -> None:
        interval = self._config.collect_interval
        offset = self._random() * min(1.0, interval / 10)
        while not stopping.is_set():
            self._collect_once()
            now = self._clock()
            stopping.wait(next_round(now, interval, offset) - now)

    def _collect_once(self) -> None:
        try:
            collection = self._agent.collect_metrics()
        except Exception as exc:  # noqa: BLE001 - a type whose gathering fails whole is degraded, not dead
            reason = describe_failure(exc)
            log.entry(_LOG, logging.ERROR, "collect.failed", "nothing could be collected", reason=reason)
            self._note(collect_reason=reason)
            return
        self._append(collection)

    def _heartbeat_loop(self, stopping: threading.Event) -> None:
        # Retried no more slowly than it beats: a platform that is back is no busier than usual.
        backoff = Backoff(self._random, last=self._interval)
        while not stopping.is_set():
            self._wake_heartbeat.clear()
            error = self._heartbeat()
            self._write_status()
            if error is not None:
                stopping.wait(backoff.pause(error.retry_after))
                continue
            backoff.reset()
            due = time.monotonic() + around(self._interval, self._random)
            stopping.wait(min(_MIN_HEARTBEAT_PAUSE, self._interval))  # a change of health is told at once, but not in bursts
            self._wake_heartbeat.wait(max(0.0, due - time.monotonic()))

    def _send_loop(self, stopping: threading.Event) -> None:
        backoff = Backoff(self._random)
        while not stopping.is_set():
            self._wake_send.clear()
            self._retry_send.clear()
            if self._management.enrolled:
                drained = self._sender.drain(lambda: not stopping.is_set())
                self._note_sent(drained.taken, drained.error)
                if drained.error is not None:
                    self._retry_send.wait(backoff.pause(drained.error.retry_after))
                    continue
                backoff.reset()
            self._wake_send.wait()

    def _events_loop(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            self._wake_events.wait()
            stopping.wait(_EVENT_PAUSE)
            self._flush_events()

    def _emit(self, event: Event) -> None:
        """Take an event from a watch: it is on disk within a second, at once when many come."""
        with self._lock:
            self._events.append(event)
            full = len(self._events) >= _MAX_BUFFERED_EVENTS
        if full:
            self._flush_events()
        else:
            self._wake_events.set()

    def _flush_events(self) -> None:
        with self._lock:
            self._wake_events.clear()
            events, self._events = self._events, []
        self._append_events(events)

    # What the loops do.

    def _append(self, collection: Collection) -> None:
        statistics = self._outbox.statistics()
        own = own_metrics(statistics, self._facts.started_at)
        complete = with_own_metrics(collection, self._host, self._resource(), own)
        for payload, points in metric_payloads(complete, min(MAX_PAYLOAD, self._outbox.max_payload)):
            self._outbox.append("metrics", payload, points)
        self._append_events(list(collection.events))
        for result in collection.collectors:
            if not result.ok and all(known.name != result.name or known.ok for known in self._facts.collectors):
                log.entry(_LOG, logging.WARNING, "collect.collector", "a collector failed", collector=result.name, reason=result.reason)
        self._note(
            collectors=tuple(collection.collectors), collect_reason="", last_collection_at=self._clock(), spool_reason=self._outbox.reason
        )
        self._wake_send.set()

    def _append_events(self, events: list[Event]) -> None:
        if not events:
            return
        complete = [event if event.resource else replace(event, resource=self._resource()) for event in events]
        for payload, count in event_payloads(complete, int(self._clock() * 1e9), min(MAX_PAYLOAD, self._outbox.max_payload)):
            self._outbox.append("logs", payload, count)
        self._note(spool_reason=self._outbox.reason)
        self._wake_send.set()

    def _heartbeat(self) -> TransportError | None:
        with self._lock:
            facts, now = self._facts, self._clock()
        # What the platform reads has got through, so a failure of the last heartbeat is no news in this one.
        told = health(replace(facts, heartbeat_reason=""), now)
        try:
            answers = self._management.exchange(self._transport, self._report(told), now)
        except TransportError as exc:
            if facts.heartbeat_reason != exc.reason:
                log.entry(_LOG, logging.WARNING, "heartbeat.failed", "the heartbeat did not get through", code=exc.code, reason=exc.reason)
            self._note(heartbeat_reason=exc.reason, enrolled=self._management.enrolled, clock_skew=self._transport.clock_skew)
            return exc
        with self._lock:
            self._told = told
            for answer in answers:
                self._interval = answer.heartbeat_interval or self._interval
                if answer.destination.rstrip("/") not in ("", f"{self._agent.platform_url}/v1/opamp"):
                    log.entry(
                        _LOG, logging.WARNING, "heartbeat.destination", "an offered endpoint is not followed", endpoint=answer.destination
                    )
        if facts.heartbeat_reason:
            log.entry(_LOG, logging.INFO, "heartbeat.recovered", "the platform answers again")
            self._retry_send.set()
        self._note(
            heartbeat_reason="",
            last_heartbeat_at=self._clock(),
            enrolled=self._management.enrolled,
            clock_skew=self._transport.clock_skew,
        )
        return None

    def _report(self, told: Component) -> Report:
        identifying = {
            "service.name": SCOPE_NAME,
            "service.instance.id": self.instance_id,
            "service.version": __version__,
            "host.id": self._fingerprint,
        }
        rest = {key: value for key, value in self._host.items() if key not in identifying}
        rest |= {"irca.agent.type": self._agent.agent_type, "irca.machine.fingerprint": self._fingerprint}
        config = {each.name: getattr(self._config, each.name) for each in fields(self._config)}
        return Report(identifying, rest, {"platform_url": self._agent.platform_url, **config}, told, self._facts.started_at)

    def _resource(self) -> dict[str, Any]:
        """The agent's own resource: what it runs on, and which instance it is."""
        return {**self._host, "service.name": SCOPE_NAME, "service.instance.id": self.instance_id}

    def _credential_changed(self) -> None:
        self._wake_send.set()
        self._retry_send.set()

    def _loop_changed(self, loop: str, reason: str) -> None:
        if loop == "watch":
            self._note(watch_reason=reason)

    def _note_sent(self, taken: int, error: TransportError | None) -> None:
        if error is not None and self._facts.send_reason != error.reason:
            log.entry(
                _LOG, logging.WARNING, "send.failed", "data could not be sent; it waits in the spool", code=error.code, reason=error.reason
            )
        changes: dict[str, Any] = {"send_reason": error.reason if error else "", "spool_reason": self._outbox.reason}
        if taken:
            changes["last_send_at"] = self._clock()
        self._note(**changes)
        if isinstance(error, AuthenticationError):
            self._wake_heartbeat.set()

    def _note(self, **changes: Any) -> None:
        """Record facts; a change of health is written down and told at once."""
        with self._lock:
            self._facts = replace(self._facts, **changes)
        self._announce()

    def _announce(self) -> None:
        with self._lock:
            before, after = self._announced, health(self._facts, self._clock())
            self._announced = after
        if after == before:
            return
        if (before.healthy, before.reason) != (after.healthy, after.reason):
            level = logging.INFO if after.healthy else logging.WARNING
            log.entry(_LOG, level, "health.changed", f"the agent is {after.status}", reason=after.reason)
            self._write_status()
        if after != self._told:
            self._wake_heartbeat.set()

    def _write_status(self, status: AgentStatus | None = None) -> None:
        try:
            write_status(self._state.path, status or self.status())
        except OSError as exc:
            log.entry(_LOG, logging.DEBUG, "status.write", "the status file could not be written", reason=exc.strerror or str(exc))

    # The end.

    def _wait(self, stopping: threading.Event, signals: queue.SimpleQueue[int]) -> None:
        while not stopping.is_set():
            try:
                number = signals.get(timeout=_POLL)
            except queue.Empty:
                self._announce()  # time alone can change it
                continue
            log.entry(_LOG, logging.INFO, "agent.stop", "told to stop", signal=signal.Signals(number).name)
            return

    def _stop(self, runner: Runner) -> None:
        deadline = time.monotonic() + STOP_WITHIN
        for event in (self._wake_send, self._retry_send, self._wake_heartbeat, self._wake_events):
            event.set()
        stuck = runner.join(_JOIN_WITHIN)
        if stuck:
            log.entry(_LOG, logging.WARNING, "agent.stop", "some loops are still busy", loops=",".join(stuck))
        self._flush_events()
        self._transport.stop_by(deadline)
        if self._management.enrolled and "send" not in stuck:
            drained = self._sender.drain(lambda: time.monotonic() < deadline - 1)
            self._note_sent(drained.taken, drained.error)
        if "heartbeat" not in stuck:
            try:
                self._management.goodbye(self._transport)
            except TransportError as exc:
                log.entry(_LOG, logging.INFO, "agent.goodbye", "the platform could not be told", reason=exc.reason)
        failure = runner.failure
        left = self._outbox.statistics()
        stopped = replace(self.status(), state="stopped")
        if failure:
            stopped = replace(stopped, reasons={failure.loop: failure.reason, **stopped.reasons})
        self._write_status(stopped)
        log.entry(_LOG, logging.INFO, "agent.stopped", "the agent stopped", batches_left=left.batches)
        self.close()


def next_round(now: float, interval: float, offset: float) -> float:
    """When the next collection is due: at a multiple of ``interval`` plus ``offset``, no sooner than half an interval from ``now``."""
    earliest = now + interval / 2
    rounds = -(-(earliest - offset) // interval)
    return rounds * interval + offset


@contextmanager
def _signals() -> Iterator[queue.SimpleQueue[int]]:
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
