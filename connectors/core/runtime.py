"""The running instance: what :class:`~connectors.core.base_agent.BaseAgent` does inside the environment."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from connectors._version import __version__
from connectors.core import log
from connectors.core.backoff import Backoff, around, next_round, unit_random
from connectors.core.collector import describe_failure
from connectors.core.delivery import Outbox, Sender
from connectors.core.errors import AuthenticationError, TransportError
from connectors.core.event_buffer import EventBuffer
from connectors.core.generation import COLLECT, CUSTOM, Generation, check_successor, make_intake
from connectors.core.health import Facts, health
from connectors.core.identity import StateDirectory
from connectors.core.machine import this_machine
from connectors.core.management import Management
from connectors.core.notify import Notifier
from connectors.core.opamp import Component, Report
from connectors.core.own_metrics import own_metrics, with_own_metrics
from connectors.core.remote_config import RemoteConfig
from connectors.core.runner import Failure, Runner
from connectors.core.self_report import report_of, status_of
from connectors.core.signals import received_signals
from connectors.core.spool import Spool
from connectors.core.status import AgentStatus, write_status
from connectors.core.telemetry import SCOPE_NAME, Attributes, Collection, CollectorResult, Event, event_payloads, metric_payloads
from connectors.core.transport import Transport

if TYPE_CHECKING:
    from connectors.core.agent_config import AgentConfig
    from connectors.core.base_agent import BaseAgent
    from connectors.core.ledger import Signal
    from connectors.core.opamp import ConfigOffer

_LOG = logging.getLogger(__name__)
SPOOL_FILE = "spool.db"
MAX_PAYLOAD = 900 * 1024
"""Bytes of one request before compression; the platform takes 1 MiB."""
STOP_WITHIN = 10.0
_JOIN_WITHIN = 4.0
_POLL = 1.0
_MIN_HEARTBEAT_PAUSE = 1.0
_STUCK_AFTER = 300.0
"""Seconds (and five intervals at least) after which a collection that does not end is a hang, and the watchdog is let run out."""


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
        self._environ = environ
        self._config = agent.config
        self._state = StateDirectory(agent.state_dir, clock)
        try:
            self._open(environ)
        except BaseException:
            self._state.close()
            raise

    def _open(self, environ: Mapping[str, str]) -> None:
        clock = self._clock
        self._lock = threading.RLock()
        self._remote = RemoteConfig(self._state.path, self._config, check_successor(self._agent, environ), clock)
        self._wanted: AgentConfig | None = None
        self._generation: Generation | None = None
        if (config := self._remote.begin()) != self._config:
            self._agent, configured = self._agent.successor(config), self._agent
            configured.close()
            self._config = config
        agent = self._agent
        self._facts = Facts(clock(), config.collect_interval)
        self._told = self._announced = Component()
        self._interval = config.heartbeat_interval
        self._notifier = Notifier.from_environment(environ, time.monotonic)
        self._collected = time.monotonic()
        self._wake_send, self._retry_send, self._wake_heartbeat = threading.Event(), threading.Event(), threading.Event()
        self._events = EventBuffer(self._append_events)
        identity, events = self._state.identity(this_machine(agent.machine_id(), environ))
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
        self._open_spool = lambda: Spool(path, self._config.spool_max_bytes, self._config.spool_max_age, clock)
        self._outbox = Outbox(self._open_spool, clock)
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
        return status_of(self._agent, self.instance_id, facts, self._interval, self._outbox.statistics(), now)

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
        with received_signals() as signals:
            runner.start()
            self._begin(self._agent)
            self._notifier.ready(self._summary())
            self._wait(stopping, signals, runner)
            stopping.set()
            self._stop(runner)
        return 1 if self._died(runner) else 0

    def close(self) -> None:
        """Close what is open and unlock the state directory. What is spooled stays."""
        self._agent.close()
        self._transport.close()
        self._outbox.close()
        self._state.close()

    # Loops, each in a thread of its own.

    def _loops(self) -> Iterator[tuple[str, Callable[[threading.Event], None]]]:
        """Those of the instance; :meth:`_work` has those that a change of configuration replaces."""
        yield "heartbeat", self._heartbeat_loop
        yield "send", self._send_loop
        if self._watches:
            yield "events", self._events.run

    def _work(self, generation: Generation) -> Iterator[tuple[str, Callable[[threading.Event], None]]]:
        agent = generation.agent
        yield "collect", partial(self._collect_loop, generation)
        if self._watches:
            yield "watch", lambda stopping: agent.watch(self._events.add, stopping)
        intake = make_intake(
            agent,
            append=self._append_payload,
            tell=lambda event: self._append_events([event]),
            heard=partial(self._heard_custom, generation),
            resource=self._resource,
        )
        if intake is None:
            return
        for source in generation.sources:
            yield CUSTOM + source.name, partial(source.run, intake)

    @property
    def _watches(self) -> bool:
        from connectors.core.base_agent import BaseAgent  # noqa: PLC0415 - the agent's module imports this one

        return type(self._agent).watch is not BaseAgent.watch

    def _collect_loop(self, generation: Generation, stopping: threading.Event) -> None:
        interval = generation.agent.config.collect_interval
        offset = self._random() * min(1.0, interval / 10)
        while not stopping.is_set():
            self._collect_once(generation)
            now = self._clock()
            stopping.wait(next_round(now, interval, offset) - now)

    def _collect_once(self, generation: Generation) -> None:
        self._collected = time.monotonic()
        try:
            collection = generation.agent.collect_metrics()
        except Exception as exc:  # noqa: BLE001 - a type whose gathering fails whole is degraded, not dead
            reason = describe_failure(exc)
            log.entry(_LOG, logging.ERROR, "collect.failed", "nothing could be collected", reason=reason)
            generation.heard(COLLECT, (), reason)
            if generation is self._generation:
                self._note(collect_reason=reason)
            return
        if generation is self._generation:  # else another has taken over while this one gathered
            self._append(collection)
            generation.heard(COLLECT, collection.collectors)

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

    def _append_payload(self, signal: Signal, payload: bytes, items: int) -> None:
        self._outbox.append(signal, payload, items)
        self._note(spool_reason=self._outbox.reason)
        self._wake_send.set()

    def _heard_custom(self, generation: Generation, result: CollectorResult) -> None:
        """How a source of custom metrics fared."""
        if generation is not self._generation:
            return
        with self._lock:
            others = tuple(known for known in self._facts.custom if known.name != result.name)
            self._facts = replace(self._facts, custom=tuple(sorted((*others, result), key=lambda each: each.name)))
        generation.heard(result.name, [result])
        self._announce()

    def _append_events(self, events: list[Event]) -> None:
        if not events:
            return
        complete = [event if event.resource else replace(event, resource=self._resource()) for event in events]
        for payload, count in event_payloads(complete, int(self._clock() * 1e9), min(MAX_PAYLOAD, self._outbox.max_payload)):
            self._outbox.append("logs", payload, count)
        self._note(spool_reason=self._outbox.reason)
        self._wake_send.set()

    def _heartbeat(self) -> TransportError | None:
        if not all(self._host.get(key) for key in self._agent.needed_resource):
            self._host = dict(self._agent.resource())
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
                if answer.remote_config is not None:
                    self._offered(answer.remote_config)
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
        return report_of(self._agent, self._management.identity, self._host, told, self._facts, self._remote.status)

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

    # Configuration.

    def _offered(self, offer: ConfigOffer) -> None:
        with self._lock:
            failing = [result.name for result in (*self._facts.collectors, *self._facts.custom) if not result.ok]
        before = self._remote.status
        wanted = self._remote.offered(offer, failing)
        if wanted is not None:
            with self._lock:
                self._wanted = wanted
        if self._remote.status != before:
            self._wake_heartbeat.set()

    def _reconfigure(self) -> None:
        """Go on under another configuration, where one waits or the one on trial has failed."""
        generation = self._generation
        with self._lock:
            wanted, self._wanted = self._wanted, None
        if wanted is None and generation is not None:
            verdict = generation.verdict(time.monotonic())
            if verdict is None:
                return
            wanted = self._remote.judged(generation.candidate, verdict)
            self._wake_heartbeat.set()
        if wanted is not None and generation is not None:
            self._replace(generation, wanted)

    def _replace(self, generation: Generation, config: AgentConfig) -> None:
        stuck = generation.stop(_JOIN_WITHIN)
        if stuck:
            log.entry(_LOG, logging.WARNING, "config.switch", "some loops still work under the old configuration", loops=",".join(stuck))
        agent, before = generation.agent.successor(config), self._config
        generation.agent.close()
        with self._lock:
            self._agent, self._config = agent, config
            self._facts = self._facts.renewed(config.collect_interval)
        self._transport.timeout = config.request_timeout
        if config.heartbeat_interval != before.heartbeat_interval:
            self._interval = config.heartbeat_interval
        if (config.log_level, config.log_format) != (before.log_level, before.log_format):
            log.configure(config.log_level, config.log_format)
        if (config.spool_max_bytes, config.spool_max_age) != (before.spool_max_bytes, before.spool_max_age):
            self._outbox.reopen(self._open_spool)
        self._host = dict(agent.resource())
        self._begin(agent)

    def _begin(self, agent: BaseAgent) -> None:
        self._collected = time.monotonic()
        self._generation = generation = Generation(agent, self._remote.candidate, self._environ)
        generation.start(self._work(generation), self._random, self._loop_changed, time.monotonic())

    def _died(self, runner: Runner) -> Failure | None:
        """The loop that died for good, if one did."""
        return runner.failure or (self._generation.failure if self._generation else None)

    # The end.

    def _wait(self, stopping: threading.Event, signals: queue.SimpleQueue[int], runner: Runner) -> None:
        while not stopping.is_set():
            try:
                number = signals.get(timeout=_POLL)
            except queue.Empty:
                self._announce()  # time alone can change it
                self._reconfigure()
                if self._died(runner):
                    return
                working = runner.alive and self._generation is not None and self._generation.alive
                if working and time.monotonic() - self._collected < max(_STUCK_AFTER, 5 * self._config.collect_interval):
                    self._notifier.alive(self._summary())
                continue
            log.entry(_LOG, logging.INFO, "agent.stop", "told to stop", signal=signal.Signals(number).name)
            return

    def _summary(self) -> str:
        """How this instance is, in one line for the service manager."""
        with self._lock:
            announced = self._announced
        return announced.status + (f": {announced.reason}" if announced.reason else "")

    def _stop(self, runner: Runner) -> None:
        self._notifier.stopping("flushing what is spooled")
        deadline = time.monotonic() + STOP_WITHIN
        for event in (self._wake_send, self._retry_send, self._wake_heartbeat, self._events.wake):
            event.set()
        if self._generation:
            self._generation.stopping.set()
        stuck = runner.join(_JOIN_WITHIN)
        stuck += self._generation.stop(_JOIN_WITHIN / 2) if self._generation else []
        if stuck:
            log.entry(_LOG, logging.WARNING, "agent.stop", "some loops are still busy", loops=",".join(stuck))
        self._events.flush()
        self._transport.stop_by(deadline)
        if self._management.enrolled and "send" not in stuck:
            drained = self._sender.drain(lambda: time.monotonic() < deadline - 1)
            self._note_sent(drained.taken, drained.error)
        if "heartbeat" not in stuck:
            try:
                self._management.goodbye(self._transport)
            except TransportError as exc:
                log.entry(_LOG, logging.INFO, "agent.goodbye", "the platform could not be told", reason=exc.reason)
        failure = self._died(runner)
        left = self._outbox.statistics()
        stopped = replace(self.status(), state="stopped")
        if failure:
            stopped = replace(stopped, reasons={failure.loop: failure.reason, **stopped.reasons})
        self._write_status(stopped)
        log.entry(_LOG, logging.INFO, "agent.stopped", "the agent stopped", batches_left=left.batches)
        self.close()
