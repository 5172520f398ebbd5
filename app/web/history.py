"""The history of an instance's status as its page shows it: a strip, a table that says the same, and the share of time it was heard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.fleet.timeline import AvailabilityView, HistoryView, StretchView
from app.fleet.views import InstanceView, Status
from app.platform import Platform
from app.web.formats import duration, exact

RANGES = {"1d": ("24 hours", timedelta(days=1)), "7d": ("7 days", timedelta(days=7)), "30d": ("30 days", timedelta(days=30))}
"""Ranges that the page offers, by their name in its URL."""
DEFAULT = "1d"
WIDTH = 1000.0
"""Width of the strip in its own units."""
MOST_ROWS = 50
_NARROWEST = 1.5


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the strip, in its units; ``look`` is a status, ``unknown`` or ``maintenance``."""

    x: float
    width: float
    look: str
    title: str


@dataclass(frozen=True, slots=True)
class Row:
    """A stretch as the table says it."""

    status: Status | None
    reason: str
    start: datetime
    duration: str


@dataclass(frozen=True, slots=True)
class HistoryPanel:
    """What the partial template shows."""

    chosen: str
    ranges: Sequence[tuple[str, str]]
    segments: Sequence[Segment]
    maintenance: Sequence[Segment]
    rows: Sequence[Row]
    left_out: int
    available: str
    outages: int
    summary: str
    start: datetime
    end: datetime
    can_archive: bool
    can_revive: bool


async def history_panel(platform: Platform, instance: InstanceView, name: str) -> HistoryPanel:
    """The panel of an instance over the range of this name; an unknown one is the default.

    Raises:
        NotFoundError: no such instance.
    """
    chosen = name if name in RANGES else DEFAULT
    title, length = RANGES[chosen]
    told, figures = await platform.fleet.history.of_instance(instance.id, last=length.total_seconds())
    rows = [Row(one.status, one.reason, one.start, duration(one.seconds)) for one in reversed(told.stretches)]
    return HistoryPanel(
        chosen=chosen,
        ranges=[(key, text) for key, (text, _) in RANGES.items()],
        segments=[_segment(one, told) for one in told.stretches],
        maintenance=[
            Segment(_x(one.start, told), _width(one.start, one.end, told), "maintenance", f"maintenance until {exact(one.end)}")
            for one in told.maintenance
        ],
        rows=rows[:MOST_ROWS],
        left_out=max(0, len(rows) - MOST_ROWS),
        available=percentage(figures.available),
        outages=figures.outages,
        summary=_summary(figures, title),
        start=told.start,
        end=told.end,
        can_archive=instance.status in (Status.OFFLINE, Status.STOPPED, Status.PENDING),
        can_revive=instance.status is Status.ARCHIVED and not instance.replaced,
    )


def percentage(share: float | None) -> str:
    """A share for people: never rounded up to the whole; ``-`` for None."""
    if share is None:
        return "-"
    if share == 1:
        return "100 %"
    return f"{min(int(share * 100_000) / 1000, 99.999):.3f}".rstrip("0").rstrip(".") + " %"


def _summary(figures: AvailabilityView, title: str) -> str:
    """The strip in words, for whoever cannot see it."""
    parts = [f"{status.value} {duration(seconds)}" for status, seconds in figures.seconds.items() if seconds >= 1]
    if figures.maintenance_seconds >= 1:
        parts.append(f"in maintenance {duration(figures.maintenance_seconds)}")
    if figures.unknown_seconds >= 1:
        parts.append(f"not known {duration(figures.unknown_seconds)}")
    return f"Status over the last {title}: " + ", ".join(parts or ["nothing yet"])


def _segment(one: StretchView, told: HistoryView) -> Segment:
    look = one.status.value if one.status else "unknown"
    title = f"{look if one.status else 'not known'} for {duration(one.seconds)} from {exact(one.start)}" + (
        f": {one.reason}" if one.reason else ""
    )
    return Segment(_x(one.start, told), _width(one.start, one.end, told), look, title)


def _x(time: datetime, told: HistoryView) -> float:
    return round((time - told.start) / (told.end - told.start) * WIDTH, 2)


def _width(start: datetime, end: datetime, told: HistoryView) -> float:
    return round(max((end - start) / (told.end - told.start) * WIDTH, _NARROWEST), 2)
