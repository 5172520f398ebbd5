"""Certificates that are about to expire, and those that were replaced."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Final

from connectors.core.telemetry import AttributeValue, Severity
from connectors.server.changes.filesets import FileSet
from connectors.server.changes.model import Change, Look, Memory, Watcher, before_and_after, read_file

_LARGEST: Final = 1024 * 1024
_DAY: Final = 86_400.0
_NEVER: Final = 1e18
_LEAST: Final = -1
"""The threshold of a certificate that has expired."""
EXCLUDED: Final = ("*ca-bundle*", "*ca-certificates*", "*/cacert.pem", "*/dhparam*", "*.key", "*/privkey*.pem")


class CertificateWatcher(Watcher):
    """Reads each certificate once, and anew when its file was replaced. Each threshold of days is told once for each certificate.

    It says so from the first look on. A file with several certificates is as good as the one that ends first.
    """

    name: ClassVar[str] = "certificates"
    interval: ClassVar[float] = 60.0

    def __init__(self, patterns: Sequence[str], thresholds: Sequence[int], root: str = "", clock: Callable[[], float] = time.time) -> None:
        self._files = FileSet(patterns, EXCLUDED, root)
        self._thresholds = sorted(thresholds)
        self._clock = clock
        self._next = 0.0

    def directories(self) -> Iterable[str]:
        """As :meth:`Watcher.directories`."""
        return self._files.directories

    def look(self, memory: Memory) -> Look | None:
        """As :meth:`Watcher.look`."""
        marks = self._files.marks()
        self.note = f"this user may not list {', '.join(self._files.hidden[:5])}" if self._files.hidden else ""
        stamp = hashlib.blake2b(repr((marks, self._thresholds)).encode(errors="surrogateescape"), digest_size=12).hexdigest()
        now = self._clock()
        if stamp == memory.stamp and now < self._next:
            return None
        before = memory.state() or {}
        after: dict[str, str] = {}
        changes: list[Change] = []
        for path, known in marks.items():
            old: dict[str, Any] = json.loads(before[path]) if path in before else {}
            seen = old if old.get("mark") == known else self._ending_first(path, known)
            if "until" not in seen:
                after[path] = json.dumps({"mark": known})
                continue
            if "until" in old and old["fingerprint"] != seen["fingerprint"]:
                changes.append(_replaced(path, old, seen))
                seen["told"] = self._level(_NEVER)
            level = self._level((seen["until"] - now) / _DAY)
            if level < seen.get("told", self._level(_NEVER)):
                changes.append(_expiring(path, seen, level, now))
            seen["told"] = level
            after[path] = json.dumps(seen)
        self._next = self._soonest(after.values())
        return Look(stamp, after, changes) if changes or stamp != memory.stamp else None

    def _level(self, days: float) -> int:
        """The least threshold that so many days have passed; -1 once none are left, and more than all thresholds for none."""
        if days <= 0:
            return _LEAST
        return next((threshold for threshold in self._thresholds if days <= threshold), 1_000_000)

    def _soonest(self, seen: Iterable[str]) -> float:
        """When the next certificate passes its next threshold."""
        soonest = _NEVER
        for text in seen:
            each = json.loads(text)
            if "until" in each and each["told"] != _LEAST:
                ahead = [threshold for threshold in (0, *self._thresholds) if threshold < each["told"]]
                soonest = min(soonest, each["until"] - max(ahead) * _DAY)
        return soonest

    def _ending_first(self, path: str, known: str) -> dict[str, Any]:
        try:
            content = read_file(self._files.real(path), _LARGEST)
        except OSError:
            return {"mark": known}
        from connectors.server.changes.x509 import certificates  # noqa: PLC0415 - only a certificate that is new needs it

        found = certificates(content)
        if not found:
            return {"mark": known}
        first = min(found, key=lambda each: each.not_after)
        return {
            "mark": known,
            "until": first.not_after,
            "subject": first.subject,
            "issuer": first.issuer,
            "serial": first.serial,
            "fingerprint": first.fingerprint,
        }


def _expiring(path: str, seen: dict[str, Any], level: int, now: float) -> Change:
    days = (seen["until"] - now) / _DAY
    attributes = _attributes(path, seen) | {"irca.certificate.days_left": round(days, 2)}
    if level != _LEAST:
        attributes["irca.certificate.threshold"] = level
    what = f"expires in {days:.1f} days" if level != _LEAST else "has expired"
    body = f"The certificate of {seen['subject'] or path} in {path} {what}, at {_date(seen['until'])}"
    severity = Severity.ERROR if level <= 1 else Severity.WARN
    return Change("certificate.expiring", f"{path} {level} {seen['fingerprint']}", body, attributes, severity)


def _replaced(path: str, old: dict[str, Any], seen: dict[str, Any]) -> Change:
    attributes = _attributes(path, seen)
    attributes |= before_and_after("irca.certificate.not_after", _date(old["until"]), _date(seen["until"]))
    attributes |= before_and_after("irca.certificate.serial", old["serial"], seen["serial"])
    body = f"The certificate in {path} was replaced by one that ends at {_date(seen['until'])}"
    return Change("certificate.replaced", path, body, attributes)


def _attributes(path: str, seen: dict[str, Any]) -> dict[str, AttributeValue]:
    return {
        "file.path": path,
        "irca.certificate.subject": seen["subject"],
        "irca.certificate.issuer": seen["issuer"],
        "irca.certificate.serial": seen["serial"],
        "irca.certificate.not_after": _date(seen["until"]),
        "irca.certificate.fingerprint": seen["fingerprint"],
    }


def _date(unix: int) -> str:
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix))
    except (OverflowError, ValueError, OSError):  # a time that no clock here can say
        return "9999-12-31T23:59:59Z"
