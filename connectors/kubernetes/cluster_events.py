"""The cluster's own events of type Warning, by series: one record when a series begins, then at most one a minute with what came since.

A series is what was said for one reason about one object (or container of a pod). The cluster itself counts repetitions in an event, but
also makes many events that differ in a name only; both are one series here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from connectors.core.redaction import redact
from connectors.core.telemetry import AttributeValue, Severity
from connectors.kubernetes.change_event import Finding, message_attribute, plural_of
from connectors.kubernetes.lru import Recent
from connectors.kubernetes.resources import Find, Json, timestamp

INTERVAL = 60.0
"""Seconds between two records of a series."""
MOST_SERIES = 5_000
MOST_EVENTS = 20_000
"""Events whose count is remembered."""

_MAX_REASON = 128


@dataclass(slots=True)
class _Series:
    """A series: when it was told last (Unix seconds), what came since, and the event that came last, if it was not told yet."""

    told: float
    since_told: int = 0
    untold: Json | None = None


class Warnings:
    """Follows all series.

    Args:
        find: looks up what a warning is about, by kind, namespace and name.
        since: until when another leader has told warnings, in Unix seconds; None where there was none.
    """

    def __init__(self, find: Find, since: float | None) -> None:
        self._find = find
        self._since = since
        self._series: Recent[tuple[str, ...], _Series] = Recent(MOST_SERIES)
        self._counts: Recent[str, int] = Recent(MOST_EVENTS)

    def take(self, item: Json, *, initial: bool, now: float) -> Iterator[Finding]:
        """A warning that came; ``now`` is Unix seconds."""
        number = self._count(item, initial=initial)
        key = series_key(item)
        series = self._series.get(key)
        if not number:
            return
        if initial and (self._since is None or (happened(item) or 0.0) < self._since):
            return
        if series is None or (now - series.told >= INTERVAL and series.untold is None):
            self._series.put(key, _Series(now))
            yield self._finding(item, number)
        else:
            series.since_told += number
            series.untold = item
            self._series.put(key, series)

    def tick(self, now: float, *, at_once: bool = False) -> Iterator[Finding]:
        """Series of which something came since they were told, once the time for it is there."""
        for series in self._series.values():
            if series.untold is not None and (at_once or now - series.told >= INTERVAL):
                item, number = series.untold, series.since_told
                series.told, series.untold, series.since_told = now, None, 0
                yield self._finding(item, number)

    def _count(self, item: Json, *, initial: bool) -> int:
        """How often it happened since we saw this event last."""
        meta, total = item.get("metadata") or {}, count(item)
        key = str(meta.get("uid") or "")
        known = self._counts.get(key)
        self._counts.put(key, total)
        if known is not None:
            return max(0, total - known)
        first = timestamp(item.get("firstTimestamp"))
        # What a former leader, or nobody, has counted is not news; what began in our time is.
        began_before = initial and (self._since is None or first is None or first < self._since)
        return 1 if began_before else total

    def _finding(self, item: Json, number: int) -> Finding:
        about: Mapping[str, Any] = item.get("involvedObject") or {}
        kind = plural_of(str(about.get("kind") or ""))
        reason = str(item.get("reason") or "")[:_MAX_REASON]
        name = "/".join(str(about[key]) for key in ("namespace", "name") if about.get(key))
        source = (item.get("source") or {}).get("component") or item.get("reportingComponent") or ""
        said = message_attribute(item.get("message"))
        attributes: dict[str, AttributeValue] = {
            "irca.k8s.event.reason": reason,
            "irca.k8s.event.count": count(item),
            "irca.k8s.event.delta": number,
            "irca.k8s.event.name": str((item.get("metadata") or {}).get("name") or ""),
        }
        if source:
            attributes["irca.k8s.event.source"] = str(source)
        inner = {"k8s.container.name": container} if (container := container_of(str(about.get("fieldPath") or ""))) else {}
        known = self._find(kind, str(about.get("namespace") or ""), str(about.get("name") or ""))
        same = known is not None and (known.get("metadata") or {}).get("uid") == about.get("uid")
        return Finding(
            "warning.recorded",
            kind,
            known if known is not None and same else {"metadata": {key: about.get(key) for key in ("name", "namespace", "uid")}},
            redact(f"{reason} of {about.get('kind') or 'an object'} {name}: {said.get('irca.k8s.message', '')}").removesuffix(": "),
            key=(str((item.get("metadata") or {}).get("uid") or ""), str(count(item))),
            time=happened(item),
            severity=Severity.WARN,
            attributes=attributes | dict(said),
            inner=inner,
        )


def series_key(item: Json) -> tuple[str, ...]:
    """What warnings of one series have in common."""
    about = item.get("involvedObject") or {}
    who = about.get("uid") or f"{about.get('kind')}/{about.get('namespace')}/{about.get('name')}"
    return str(who), str(item.get("reason") or ""), str(about.get("fieldPath") or "")


def count(item: Json) -> int:
    """How often an event has happened, by whichever of two fields says so."""
    return max(1, int(item.get("count") or 0), int((item.get("series") or {}).get("count") or 0))


def happened(item: Json) -> float | None:
    """When an event happened last, in Unix seconds."""
    told = (
        item.get("lastTimestamp"),
        (item.get("series") or {}).get("lastObservedTime"),
        item.get("eventTime"),
        item.get("firstTimestamp"),
        (item.get("metadata") or {}).get("creationTimestamp"),
    )
    return next((time for text in told if (time := timestamp(text)) is not None), None)


def container_of(path: str) -> str:
    """``app`` of ``spec.containers{app}``, the way events name a container."""
    before, _, rest = path.partition("{")
    return rest.rstrip("}") if before.startswith("spec.") and "ontainers" in before else ""
