"""Histories for the tests of the pages: an instance that was degraded, offline and in maintenance in its last day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from app.fleet import history
from app.fleet.history import Change, Life
from app.fleet.timeline import AvailabilityView, HistoryView, SpanView, StretchView
from app.fleet.views import Status


class FakeHistory:
    """Tells the same of every instance."""

    async def of_instance(
        self, _instance_id: str, start: datetime | None = None, end: datetime | None = None, *, last: float = 86_400.0
    ) -> tuple[HistoryView, AvailabilityView]:
        until = end or datetime.now(UTC)
        begin = start or until - timedelta(seconds=last)
        hours = until.timestamp() - 3600 * 20
        changes = [
            Change(hours, Status.PENDING, Status.HEALTHY),
            Change(hours + 36_000, Status.HEALTHY, Status.DEGRADED, "missed two heartbeats"),
            Change(hours + 36_060, Status.DEGRADED, Status.OFFLINE, "no heartbeat since 2 min or more"),
            Change(hours + 39_000, Status.OFFLINE, Status.HEALTHY),
            Change(until.timestamp() - 180, Status.HEALTHY, Status.DEGRADED, "Collector filesystem failed"),
        ]
        life = Life(changes, Status.DEGRADED, "", hours - 60)
        stretches = history.timeline(life, begin.timestamp(), until.timestamp())
        spans = [(hours + 37_000, hours + 38_000)]
        figures = history.availability(stretches, spans)
        views = [
            StretchView(start=_time(s.start), end=_time(s.end), seconds=s.seconds, status=s.status, reason=s.reason, replaced=s.replaced)
            for s in stretches
        ]
        told = HistoryView(start=begin, end=until, stretches=views, maintenance=[SpanView(start=_time(a), end=_time(b)) for a, b in spans])
        return told, AvailabilityView(
            start=begin,
            end=until,
            available=figures.available,
            seconds=dict(figures.seconds),
            maintenance_seconds=figures.maintenance,
            unknown_seconds=figures.unknown,
            replaced_seconds=figures.replaced,
            outages=figures.outages,
        )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
