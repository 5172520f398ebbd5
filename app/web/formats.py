"""How values and times read on a page. ``static/charts.js`` and ``static/app.js`` write the same forms."""

from __future__ import annotations

import math
from datetime import UTC, datetime

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def format_value(value: float, unit: str) -> str:
    """A value in a chart's unit: ``ratio`` as per cent, ``bytes`` with binary prefixes, ``bytes/s`` likewise a second."""
    if not math.isfinite(value):
        return "-"
    if unit == "ratio":
        return f"{_significant(value * 100)} %"
    if unit in ("bytes", "bytes/s"):
        return _bytes(value) + ("/s" if unit == "bytes/s" else "")
    return _significant(value)


def format_otel(value: float, unit: str) -> str:
    """A value in its OTel unit (``By``, ``s``, ``1``, ``{thread}``)."""
    if unit == "By":
        return format_value(value, "bytes")
    shown = format_value(value, "number")
    plain = unit.strip("{}")
    return shown if plain in ("", "1") else f"{shown} {plain}"


def ago(then: datetime | None, now: datetime) -> str:
    """How long ago, in one unit: ``12 s ago``, ``3 min ago``, ``5 h ago``, ``2 d ago``; ``never`` for None."""
    if then is None:
        return "never"
    seconds = max(0, int((now - then).total_seconds()))
    for size, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= size:
            return f"{seconds // size} {name} ago"
    return f"{seconds} s ago" if seconds else "now"


def duration(seconds: float) -> str:
    """A stretch of time in at most two units: ``12 s``, ``3 min``, ``5 h 20 min``, ``2 d 4 h``, ``40 d``."""
    left = max(0, int(seconds))
    if left < _HOUR:
        return f"{left // _MINUTE} min" if left >= _MINUTE else f"{left} s"
    (big, name), (small, least) = ((_DAY, "d"), (_HOUR, "h")) if left >= _DAY else ((_HOUR, "h"), (_MINUTE, "min"))
    rest = left % big // small if left < 10 * _DAY else 0
    return f"{left // big} {name}" + (f" {rest} {least}" if rest else "")


def instant(time: datetime) -> str:
    """The exact instant for ``<time datetime>``: ISO 8601 in UTC, to the millisecond."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def exact(time: datetime) -> str:
    """The exact instant for people without JavaScript, in UTC; with it the viewer's own zone is shown."""
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _bytes(value: float) -> str:
    size = abs(value)
    for prefix in _BINARY:
        if size < 1024 or prefix == _BINARY[-1]:  # noqa: PLR2004 - the step between binary prefixes
            return f"{'-' if value < 0 else ''}{_significant(size)} {prefix}"
        size /= 1024
    raise AssertionError("the last prefix takes everything")


def _significant(value: float) -> str:
    size = abs(value)
    if size >= 100 or value == int(value):  # noqa: PLR2004 - three digits are enough
        return f"{value:,.0f}".replace(",", " ")
    text = f"{value:.1f}" if size >= 10 else f"{value:.2f}"  # noqa: PLR2004 - likewise
    return text.rstrip("0").rstrip(".")
