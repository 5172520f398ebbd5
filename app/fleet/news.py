"""What a verdict changes and which events tell of it: a new status, going quiet, coming back. Pure functions of instance and clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.events import catalogue
from app.events.event_type import INFO, WARN
from app.events.records import EventRecord
from app.fleet.registry import Instance, moment
from app.fleet.status import Verdict, count_setbacks, describe_span
from app.fleet.views import Status

_GONE = (Status.OFFLINE, Status.ARCHIVED)


@dataclass(frozen=True, slots=True)
class Quiet:
    """Where an instance stands: since when it is quiet (None: it is not), whether only maintenance knows, when it began to return."""

    since: float | None
    muted: bool = False
    returned_at: float | None = None

    @classmethod
    def of(cls, instance: Instance) -> Quiet:
        """Where ``instance`` stands now."""
        return cls(instance.quiet_since, instance.quiet_muted, instance.returned_at)

    def keep(self, instance: Instance) -> None:
        """Let ``instance`` stand here from now on."""
        instance.quiet_since, instance.quiet_muted, instance.returned_at = self.since, self.muted, self.returned_at


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of an instance with a verdict, and the events that tell of it; without any, nothing needs to be written."""

    instance: Instance
    verdict: Verdict
    now: float
    quiet: Quiet
    records: tuple[EventRecord, ...]

    def columns(self) -> dict[str, Any]:
        """What is written of it."""
        columns: dict[str, Any] = {"quiet_since": moment(self.quiet.since), "status_reason": self.verdict.reason}
        if self.verdict.status is not self.instance.status:
            columns |= {"status": self.verdict.status.value, "status_since": moment(self.now)}
        return columns

    def keep(self) -> None:
        """Let the instance be so from now on."""
        instance, verdict = self.instance, self.verdict
        if verdict.status is not instance.status:
            calm = None if instance.recovered_at is None else self.now - instance.recovered_at
            instance.setbacks = count_setbacks(instance.setbacks, instance.status, verdict.status, calm)
            if verdict.status is Status.HEALTHY and instance.status in (Status.DEGRADED, Status.OFFLINE):
                instance.recovered_at = self.now
            instance.status, instance.status_since = verdict.status, self.now
        instance.status_reason = verdict.reason
        self.quiet.keep(instance)


def change_of(instance: Instance, verdict: Verdict, now: float) -> Change:
    """What ``verdict`` changes for ``instance``."""
    quiet, told = news(instance, verdict, now)
    records = [status_event(instance, verdict, now)] if verdict.status is not instance.status else []
    return Change(instance, verdict, now, quiet, (*records, *([told] if told else [])))


def status_event(instance: Instance, verdict: Verdict, now: float, *, by_hand: bool = False) -> EventRecord:
    """The event that tells of a new status: a warning where it is a bad one, unless somebody set it."""
    bad = verdict.status in (Status.DEGRADED, Status.OFFLINE) and not verdict.replaced and not by_hand
    body = f"{instance.name} is {verdict.status.value}" + (f": {verdict.reason}" if verdict.reason else "") + "."
    return catalogue.make_event(
        catalogue.INSTANCE_STATUS_CHANGED,
        time_unix_nano=int(now * 1e9),
        body=body,
        severity=WARN if bad else INFO,
        attributes={
            "irca.status.previous": instance.status.value,
            "irca.status": verdict.status.value,
            "irca.status.reason": verdict.reason,
            **({"irca.instance.replaced": True} if verdict.replaced else {}),
        },
        about=instance.about(),
    )


def news(instance: Instance, verdict: Verdict, now: float) -> tuple[Quiet, EventRecord | None]:
    """Where an instance stands with ``verdict``, and the event that tells of it, if there is news.

    It went quiet when it turned offline, unless another pod does its work. It is back when it is well again, or tells that it is not, or
    says goodbye: a sign of life in the middle of its recovery is no news, lest a bad network tells of it again and again.
    """
    before = Quiet.of(instance)
    in_maintenance = instance.agent.maintenance_until is not None
    if verdict.status is Status.OFFLINE and not verdict.replaced:
        since = before.since if before.since is not None else (instance.heard or now)
        if before.since is None:
            return Quiet(since, in_maintenance), _went_quiet(instance, since, now)
        if before.muted and not in_maintenance:
            return Quiet(since), _went_quiet(instance, since, now, still=True)
        return Quiet(since, before.muted), None
    if before.since is None or verdict.status in (*_GONE, Status.PENDING):
        return before, None
    returned = now if before.returned_at is None else before.returned_at
    proved = verdict.status is not Status.DEGRADED or (instance.healthy is False and not verdict.silent)
    if not proved:
        return Quiet(before.since, before.muted, returned), None
    return Quiet(None), _back(instance, before.since, returned, now)


def _went_quiet(instance: Instance, since: float, now: float, *, still: bool = False) -> EventRecord:
    how_long = describe_span(now - since)
    body = f"{instance.name} went quiet: nothing was heard of it for {how_long}, and it did not say goodbye."
    if still:
        body = f"{instance.name} is still quiet after its maintenance: nothing was heard of it for {how_long}."
    attributes: dict[str, Any] = {**_silence(since, now - since), **({"irca.maintenance.ended": True} if still else {})}
    time = int(now * 1e9)
    return catalogue.make_event(
        catalogue.INSTANCE_WENT_QUIET, time_unix_nano=time, body=body, attributes=attributes, about=instance.about()
    )


def _back(instance: Instance, since: float, returned: float, now: float) -> EventRecord:
    silence = max(0.0, returned - since)
    return catalogue.make_event(
        catalogue.INSTANCE_BACK,
        time_unix_nano=int(now * 1e9),
        body=f"{instance.name} is back after {describe_span(silence)} of silence.",
        attributes=_silence(since, silence),
        about=instance.about(),
    )


def _silence(since: float, seconds: float) -> dict[str, Any]:
    return {"irca.silence.start_time_unix_nano": int(since * 1e9), "irca.silence.seconds": round(seconds, 3)}
