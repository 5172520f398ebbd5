"""The watch of a Docker engine: its events as ours, each once, with what differs when a container takes another's place.

The engine keeps its last 256 events, of all kinds, until it is restarted. A mark on disk says which event was taken last. If the engine
still knows that one, nothing was missed, and what followed it is caught up with; if not, the stretch since then is recorded as a gap, and
what stands is compared with what was remembered.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from connectors.core import log
from connectors.core.collector import describe_failure
from connectors.core.errors import CollectorError, ConnectorError, ControlError, NotDeployedError
from connectors.core.telemetry import Attributes, AttributeValue, Event, Severity
from connectors.docker import difference, events
from connectors.docker.config import DockerAgentConfig
from connectors.docker.death_logs import Tail, read_tail
from connectors.docker.difference import Description
from connectors.docker.engine import Engine
from connectors.docker.event_stream import Ended, EventStream, read_past
from connectors.docker.events import Death, EngineEvent, RateLimit
from connectors.docker.predecessors import FILE, Mark, Predecessors
from connectors.docker.stats import COMPOSE_LABELS, container_resource, unix_nano

_LOG = logging.getLogger(__name__)
NANO = 1_000_000_000
ENGINE_KEEPS = 256
"""Events that the engine keeps."""
MOST_A_SECOND = 600
"""Events that are recorded in a second; half of it for what is not vital."""

_POLL = 0.25
_QUIET = 15.0
_OVERLAP = NANO
"""The engine's events may be out of order by as much as it takes to write one down; what comes twice is known by its id."""
_LATE = 5 * NANO
_SEEN = 4 * ENGINE_KEEPS
_CONTAINERS = 4_000
_IMAGES = 500
_OOM_BEFORE = 10 * NANO
_OOM_AFTER = 0.3
_STOP_SIGNALS = frozenset({"2", "3", "6", "9", "15", "28", "37"})
"""Signals that end a container, or that images name as their stop signal (WINCH, RTMIN+3)."""
_KILLED = "137"
_INSPECTED = frozenset({"create", "start", "rename", "update", "die"})


@dataclass(slots=True)
class _Container:
    """What the watch knows of a container while it runs: enough for a resource, and what led to its death."""

    summary: dict[str, Any]
    died_at: int = 0
    oom_at: int = 0
    stop_requested: bool = False


class ChangeWatch:
    """Follows one engine. :meth:`run` may be called again after it has raised: it goes on where it was.

    Args:
        engine: whom to follow.
        config: labels to send, whether and how many lines to send of a dead container's log.
        state_dir: where to remember.
        clock: Unix nanoseconds.
        quiet: seconds of silence after which the engine is asked whether there is really nothing.
    """

    def __init__(
        self,
        engine: Engine,
        config: DockerAgentConfig,
        state_dir: Path,
        *,
        clock: Callable[[], int] = time.time_ns,
        quiet: float = _QUIET,
    ) -> None:
        self._engine = engine
        self._config = config
        self._clock = clock
        self._quiet = quiet
        self._memory = Predecessors(state_dir / FILE)
        self._hashed = difference.hasher(self._memory.salt)
        self._limit = RateLimit(MOST_A_SECOND)
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._containers: OrderedDict[str, _Container] = OrderedDict()
        self._images: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._engine_id = ""
        self._last = (0, "")

    def run(self, emit: Callable[[Event], None], stopping: threading.Event) -> None:
        """Report changes through ``emit`` until ``stopping`` is set.

        Raises:
            CollectorError: the engine is not there, does not answer or refuses; calling again is worth while.
        """
        try:
            self._follow(emit, stopping)
        except ControlError as exc:
            raise CollectorError(exc.reason) from exc
        finally:
            # An orderly end writes the events down after us; after a failure what waits goes on waiting.
            self._memory.save(at_once=stopping.is_set())

    def _follow(self, emit: Callable[[Event], None], stopping: threading.Event) -> None:
        with self._engine.client() as client:
            info = client.info()
            summaries: list[dict[str, Any]] = client.containers(all=True)
        now = unix_nano(str(info.get("SystemTime") or "")) or self._clock()
        self._engine_id = str(info.get("ID") or self._engine.host)
        gap, past = self._catch_up(self._memory.mark, now)
        for summary in summaries:
            self._know(summary)
            self._image(summary.get("ImageID") or "")
        if gap:
            emit(gap)
        for event in past:
            self._take(event, emit, None, stopping)
        # Whoever took another's place unseen is found by comparing, after those have been told that were seen.
        self._compare(summaries, emit)
        if gap:
            self._last = self._position(past[-1]) if past else (now, "")
        self._memory.advance(Mark(self._engine_id, *self._last))
        log.entry(_LOG, logging.INFO, "changes.follow", "following the engine's events", since=self._last[0], caught_up=len(past))
        with EventStream(self._engine, max(1, self._last[0] - _OVERLAP)) as stream:
            self._listen(stream, emit, stopping)

    def _listen(self, stream: EventStream, emit: Callable[[Event], None], stopping: threading.Event) -> None:
        heard = time.monotonic()
        while not stopping.is_set():
            came = stream.next(_POLL)
            for kind, number in stream.left_out().items():
                self._limit.count(kind, number, self._clock())
            if isinstance(came, Ended):
                raise came.error
            if came is not None:
                heard = time.monotonic()
                self._take(came, emit, stream, stopping)
            elif time.monotonic() - heard > self._quiet:
                self._ask_whether_quiet()
                heard = time.monotonic()
            if settled := self._limit.settle(self._clock()):
                counts, since = settled
                emit(events.dropped_event(self._engine_id, counts, since, self._clock()))
            self._memory.save()

    def _catch_up(self, mark: Mark | None, now: int) -> tuple[Event | None, list[EngineEvent]]:
        """What followed the mark, and a gap where the engine does not know the mark's event any more."""
        if mark is None:
            # The very first look: nothing is told, but the last event is remembered, for it tells later whether something was missed.
            past = read_past(self._engine, 1, now)
            self._last = self._position(past[-1]) if past else (now, "")
            for event in past:
                self._remember(self._position(event)[1])
            return None, []
        past = read_past(self._engine, max(1, mark.time_unix_nano - _OVERLAP), now)
        known = {events.identity(mark.engine, event) for event in past}
        self._last = (mark.time_unix_nano, mark.event)
        reason = ""
        if mark.engine != self._engine_id:
            reason = "engine-replaced"
        elif len(past) >= ENGINE_KEEPS and mark.event not in known:
            reason = "buffer-overflow"
        elif mark.event and mark.event not in known:
            reason = "engine-restarted"
        if not reason:
            # What came before the mark's event has been told by whoever set the mark; the stream must not bring it again.
            told = next((number + 1 for number, event in enumerate(past) if self._position(event)[1] == mark.event), 0)
            for event in past[:told]:
                self._remember(self._position(event)[1])
            return None, past[told:]
        end = past[0].time_unix_nano if past else now
        return events.gap_event(self._engine_id, mark.time_unix_nano, max(end, mark.time_unix_nano), reason), past

    def _ask_whether_quiet(self) -> None:
        """Ask the engine for what followed the last event.

        Raises:
            ControlError: it does not answer, or there is something that the stream should have brought long ago.
        """
        with self._engine.client() as client:
            now = unix_nano(str(client.info().get("SystemTime") or "")) or self._clock()
        missed = [
            event
            for event in read_past(self._engine, max(1, self._last[0] - _OVERLAP), now - _LATE)
            if events.identity(self._engine_id, event) not in self._seen and event.time_unix_nano > self._last[0]
        ]
        if missed:
            raise CollectorError("the stream of the Docker engine's events is stuck: there are events that it did not bring")

    # One event.

    def _position(self, event: EngineEvent) -> tuple[int, str]:
        return event.time_unix_nano, events.identity(self._engine_id, event)

    def _take(self, event: EngineEvent, emit: Callable[[Event], None], stream: EventStream | None, stopping: threading.Event) -> None:
        """Tell what an event means, once; ``stream`` is where it came from, if it is not one of the past."""
        position = self._position(event)
        if position[1] in self._seen:
            return
        try:
            if event.is_recorded and (stream is None or self._limit.admits(event, self._clock())):
                for told in self._tell(event, stream, stopping):
                    emit(told)
            elif event.type == "container":
                self._note(event)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            # An answer of a shape that no engine we know gives must not stop the watch, nor be met again and again.
            log.entry(
                _LOG, logging.ERROR, "changes.event", "an event could not be understood", kind=event.kind, reason=describe_failure(exc)
            )
            self._limit.count(event.kind, 1, self._clock())
        self._remember(position[1])
        self._last = position
        self._memory.advance(Mark(self._engine_id, *position))

    def _tell(self, event: EngineEvent, stream: EventStream | None, stopping: threading.Event) -> Iterator[Event]:
        if event.type != "container":
            if event.type == "image":
                self._images.clear()  # names and digests may be others now
            yield events.to_event(self._engine_id, event, self._resource(event.container_id))
            return
        if event.action == "die" and stream is not None and event.attributes.get("exitCode") == _KILLED:
            self._wait_for_oom(event, stream, stopping)
        container = self._note(event)
        inspection: dict[str, Any] = {}
        failure: ControlError | None = None
        if event.action in _INSPECTED:
            try:
                inspection = self._inspect(event.actor)
            except ControlError as exc:
                failure = exc  # the event is told all the same: it may not come again
        if inspection:
            container.summary["ImageID"] = inspection.get("Image") or ""
            container.summary["Reference"] = (inspection.get("Config") or {}).get("Image") or ""
        death = self._death(event, container, inspection) if event.action == "die" else None
        extra = self._updated(inspection) if event.action == "update" and inspection else {}
        # A container that was only made stands in nobody's place yet, and not all of its networks may be known.
        changed = self._succeed(inspection, event.time_unix_nano) if event.action in ("start", "rename") and inspection else None
        yield events.to_event(self._engine_id, event, self._resource(event.actor), death=death, extra=extra)
        if changed:
            yield changed
        self._settle(event, container)
        if failure:
            raise failure

    def _note(self, event: EngineEvent) -> _Container:
        """Keep what the event tells about its container."""
        told = event.attributes
        container = self._containers.get(event.actor)
        if container is None:
            container = self._containers[event.actor] = _Container({"Id": event.actor})
            while len(self._containers) > _CONTAINERS:
                self._containers.popitem(last=False)
        self._containers.move_to_end(event.actor)
        if name := told.get("name"):
            container.summary["Names"] = [f"/{name}"]
        if image := told.get("image"):
            container.summary.setdefault("Image", image)
        # The event's attributes hold the labels among others: the allow-list picks from them.
        container.summary.setdefault("Labels", self._allowed(told))
        if event.action == "start":
            container.oom_at, container.stop_requested = 0, False
        elif event.action == "oom":
            container.oom_at = event.time_unix_nano
        elif event.action == "kill" and told.get("signal") in _STOP_SIGNALS:
            container.stop_requested = True
        return container

    def _settle(self, event: EngineEvent, container: _Container) -> None:
        if event.action == "destroy":
            self._containers.pop(event.actor, None)
        elif event.action == "die":
            container.died_at, container.oom_at, container.stop_requested = event.time_unix_nano, 0, False

    def _wait_for_oom(self, event: EngineEvent, stream: EventStream, stopping: threading.Event) -> None:
        """The kernel's word that memory ran out may come just after the death that it caused."""
        container = self._containers.get(event.actor)
        if container and (container.oom_at or container.stop_requested):
            return
        if stream.waiting < ENGINE_KEEPS and not stream.has_waiting("container", "oom", event.actor):
            stopping.wait(_OOM_AFTER)
        if stream.has_waiting("container", "oom", event.actor):
            self._note(EngineEvent("container", "oom", event.actor, event.time_unix_nano, event.attributes))

    def _death(self, event: EngineEvent, container: _Container, inspection: Mapping[str, Any]) -> Death:
        state = inspection.get("State") or {}
        oom = bool(container.oom_at and event.time_unix_nano - container.oom_at <= _OOM_BEFORE)
        restarts: int | None = None
        # What the engine says now may be about a later death than the one that is told.
        if abs(unix_nano(state.get("FinishedAt", "")) - event.time_unix_nano) < _LATE:
            oom = oom or bool(state.get("OOMKilled"))
            restarts = int(inspection.get("RestartCount") or 0)
        tail = self._tail(event, container, inspection) if self._config.death_logs else Tail()
        return Death(oom, container.stop_requested, restarts, tail.text, tail.reason)

    def _tail(self, event: EngineEvent, container: _Container, inspection: Mapping[str, Any]) -> Tail:
        tty = bool((inspection.get("Config") or {}).get("Tty"))
        if not inspection:
            return Tail(reason="it was removed before its log could be read")
        try:
            with self._engine.client() as client:
                return read_tail(
                    client,
                    event.actor,
                    lines=self._config.death_log_lines,
                    tty=tty,
                    # What an earlier life wrote ends with its death; the start is told only after the first words of a short life.
                    since=container.died_at,
                    until=event.time_unix_nano,
                    timeout=self._engine.timeout,
                    lives_again=(inspection.get("HostConfig") or {}).get("RestartPolicy", {}).get("Name") not in (None, "", "no"),
                )
        except ConnectorError as exc:
            return Tail(reason=exc.reason)

    def _inspect(self, identity: str) -> dict[str, Any]:
        """The container's inspection; empty when it has gone.

        Raises:
            ControlError: the engine cannot be asked.
        """
        try:
            with self._engine.client() as client:
                found: dict[str, Any] = client.inspect_container(identity)
                return found
        except NotDeployedError:
            return {}

    def _resource(self, identity: str) -> Attributes:
        if not identity:
            return {}
        container = self._containers.get(identity)
        summary = container.summary if container else {"Id": identity}
        reference, image = summary.get("Reference") or "", self._images.get(summary.get("ImageID") or "")
        return container_resource(summary, self._config.label_allow_list, reference=reference, image=image)

    def _remember(self, identity: str) -> None:
        self._seen[identity] = None
        while len(self._seen) > _SEEN:
            self._seen.popitem(last=False)

    # Who took whose place.

    def _know(self, summary: dict[str, Any]) -> None:
        """Keep what the list of containers tells about one."""
        identity, labels = summary["Id"], summary.get("Labels") or {}
        container = self._containers.setdefault(identity, _Container({"Id": identity}))
        container.summary |= {key: summary[key] for key in ("Names", "Image", "ImageID") if summary.get(key)}
        container.summary["Labels"] = self._allowed(labels)

    def _allowed(self, labels: Mapping[str, str]) -> dict[str, str]:
        return {key: labels[key] for key in (*COMPOSE_LABELS, *self._config.label_allow_list) if key in labels}

    def _compare(self, summaries: Iterable[dict[str, Any]], emit: Callable[[Event], None]) -> None:
        """Find who took another's place while nobody looked, and remember who stands."""
        for summary in sorted(summaries, key=lambda each: each.get("Created") or 0):
            name = min(summary.get("Names") or ["/"], key=lambda each: each.count("/")).lstrip("/")
            before = self._memory.get(difference.key_of(name, summary.get("Labels") or {}))
            if summary.get("State") == "created" or (before is not None and before.identity == summary["Id"]):
                continue
            if inspection := self._inspect(summary["Id"]):
                started = unix_nano((inspection.get("State") or {}).get("StartedAt", ""))
                if changed := self._succeed(inspection, started or self._clock()):
                    emit(changed)

    def _describe(self, inspection: Mapping[str, Any]) -> tuple[str, Description]:
        """A container's key and what is compared of it."""
        described = difference.describe(inspection, self._hashed, self._image(str(inspection.get("Image") or "")).get("RepoDigests") or ())
        return difference.key_of(described.name, (inspection.get("Config") or {}).get("Labels") or {}), described

    def _image(self, identity: str) -> dict[str, Any]:
        """The image; empty where the engine does not know or tell."""
        if identity and identity not in self._images:
            try:
                with self._engine.client() as client:
                    found: Any = client.inspect_image(identity)  # type: ignore[no-untyped-call]  # the stubs leave it out
            except ControlError:
                return {}
            self._images[identity] = {key: found.get(key) for key in ("RepoTags", "RepoDigests")}
            while len(self._images) > _IMAGES:
                self._images.popitem(last=False)
        return self._images.get(identity, {})

    def _succeed(self, inspection: Mapping[str, Any], when: int) -> Event | None:
        """Remember a container under its key; the event that tells how it differs from the one that was there before."""
        key, after = self._describe(inspection)
        before = self._memory.get(key)
        if before is not None and before.identity == after.identity:
            return None
        self._memory.put(key, after)
        if before is None:
            return None
        found = difference.differences(before.parts, after.parts)
        resource = self._resource(after.identity)
        attributes: dict[str, AttributeValue] = {
            name: resource[name] for name in ("container.id", "container.name", "container.image.name") if name in resource
        }
        attributes |= {"irca.container.previous_id": before.identity}
        attributes |= dict(difference.difference_attributes(before.parts, after.parts, found))
        what = difference.summary(found)
        return Event(
            name=events.CHANGED,
            attributes=attributes,
            severity=Severity.INFO,
            body=f"{after.name} took the place of an earlier container; {f'other: {what}' if what else 'nothing differs'}",
            resource=resource,
            time_unix_nano=when,
            # The same whether it was seen to happen or found later.
            id=events.event_id(self._engine_id, "changed", key, before.identity, after.identity),
        )

    def _updated(self, inspection: Mapping[str, Any]) -> dict[str, AttributeValue]:
        """What ``docker update`` changed in a container that is known."""
        key, after = self._describe(inspection)
        before = self._memory.get(key)
        if before is None or before.identity != after.identity:
            return {}
        self._memory.put(key, after)
        found = difference.differences(before.parts, after.parts)
        found = {part: found[part] for part in ("limits", "restart_policy") if part in found}
        return dict(difference.difference_attributes(before.parts, after.parts, found)) if found else {}
