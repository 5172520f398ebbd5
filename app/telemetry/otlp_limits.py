"""What one OTLP request may carry, and the account of what of it was refused."""

from __future__ import annotations

from dataclasses import dataclass, field

_DAY = 86_400.0
_NANOSECONDS = 1_000_000_000
_LONGEST_MESSAGE = 2_000


@dataclass(frozen=True, slots=True)
class OtlpLimits:
    """Bounds of one request; what exceeds them is rejected item by item and counted in the answer's partial success.

    Sizes are bytes of UTF-8, durations seconds. ``max_samples`` counts stored samples: a number point is one, a histogram point one
    for each bucket and two more. Retentions are the ages past which data would be dropped at once.
    """

    max_samples: int = 100_000
    max_labels: int = 64
    max_label_bytes: int = 1_024
    max_records: int = 10_000
    max_record_bytes: int = 65_536
    max_in_flight: int = 2_048
    future_tolerance: float = _DAY
    metrics_retention: float = 30 * _DAY
    events_retention: float = 90 * _DAY

    def metric_times(self, now: float) -> TimeBounds:
        """The times that samples may have when it is ``now`` (seconds since the epoch)."""
        return TimeBounds.around(now, self.metrics_retention, self.future_tolerance)

    def event_times(self, now: float) -> TimeBounds:
        """The times that events may have when it is ``now`` (seconds since the epoch)."""
        return TimeBounds.around(now, self.events_retention, self.future_tolerance)


@dataclass(frozen=True, slots=True)
class TimeBounds:
    """The times that are taken, both ends included, in nanoseconds since the epoch; ``now`` lies between them."""

    now: int
    earliest: int
    latest: int

    @classmethod
    def around(cls, now: float, past: float, future: float) -> TimeBounds:
        """From ``past`` seconds before ``now`` to ``future`` seconds after it."""
        moment = int(now * _NANOSECONDS)
        return cls(moment, max(1, moment - int(past * _NANOSECONDS)), moment + int(future * _NANOSECONDS))

    def objection(self, time_unix_nano: int) -> str:
        """Why this time is not taken; empty when it is."""
        if time_unix_nano == 0:
            return "no time"
        if time_unix_nano < self.earliest:
            return "older than the retention"
        if time_unix_nano > self.latest:
            return f"more than {(self.latest - self.now) // (_NANOSECONDS * 3600)} h in the future; check the sender's clock"
        return ""


@dataclass(slots=True)
class Rejections:
    """How many items were rejected, why, and what the sender is to know besides."""

    count: int = 0
    reasons: dict[str, tuple[int, str]] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)

    def reject(self, reason: str, example: str, count: int = 1) -> None:
        """Count ``count`` items as rejected for ``reason``; the first ``example`` (a metric's name) is told to the sender."""
        self.count += count
        known, first = self.reasons.get(reason, (0, example))
        self.reasons[reason] = (known + count, first)

    def warn(self, warning: str, example: str) -> None:
        """Tell the sender something about what was accepted."""
        self.warnings.setdefault(warning, example)

    def message(self) -> str:
        """One line for the sender; empty when there is nothing to say."""
        parts = [f"{count} rejected: {reason} (first: {_shown(first)})" for reason, (count, first) in self.reasons.items()]
        parts.extend(f"{warning} (first: {_shown(first)})" for warning, first in self.warnings.items())
        text = "; ".join(parts)
        return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 1] + "…"


def _shown(example: str) -> str:
    return repr(example if len(example) <= 100 else example[:99] + "…")  # noqa: PLR2004 - enough of a name to find it
