"""How the configuration that is meant for an instance fares there. Pure: what was said before and now decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from app.groups.precedence import Desired, config_hash, drifted

ACCEPTS_REMOTE_CONFIG = 0x2
REPORTS_REMOTE_CONFIG = 0x1000
NOTHING = config_hash({})
"""The hash of a configuration without options."""


class ConfigStatus(StrEnum):
    """How the configuration that is meant for an instance fares there."""

    NONE = "none"
    UNSUPPORTED = "unsupported"
    PENDING = "pending"
    OFFERED = "offered"
    APPLYING = "applying"
    APPLIED = "applied"
    FAILED = "failed"
    DRIFTED = "drifted"


UNDER_WAY = frozenset({ConfigStatus.PENDING, ConfigStatus.OFFERED, ConfigStatus.APPLYING})
_REPORTED = {1: ConfigStatus.APPLIED, 2: ConfigStatus.APPLYING, 3: ConfigStatus.FAILED}


@dataclass(frozen=True, slots=True)
class Reported:
    """What an instance last said of remote configuration; without a hash it has none."""

    hash: bytes = b""
    status: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """The last configuration that was offered and how it fares. Times are Unix seconds.

    ``applied`` is the last one that was applied: what the instance works with while a new one is under way, and goes back to.
    """

    hash: bytes
    config: Mapping[str, Any]
    status: ConfigStatus
    reason: str = ""
    offered_at: float = 0.0
    reported_at: float | None = None
    applied: Mapping[str, Any] = field(default_factory=dict)


def after_report(
    standing: Standing | None, desired: Desired, reported: Reported | None, effective: Mapping[str, Any], now: float
) -> Standing | None:
    """The standing once the instance has said this; it counts as applied only where what the instance runs with says so, too.

    Args:
        standing: as it was.
        desired: what the platform means for the instance.
        reported: what the instance last said; None when it has said nothing since the platform started.
        effective: the configuration that it reports to run with.
        now: Unix seconds.
    """
    if reported is not None and not reported.hash and not desired.config and standing is not None and standing.config:
        return Standing(desired.hash, {}, ConfigStatus.APPLIED, "", now, now)  # it lost what it is to give up
    if reported is None or reported.hash != desired.hash or reported.status not in _REPORTED:
        return standing
    status, reason = _REPORTED[reported.status], reported.error if reported.status == 3 else ""  # noqa: PLR2004 - FAILED
    if status is ConfigStatus.APPLIED and (keys := drifted(desired.config, effective)):
        status, reason = ConfigStatus.DRIFTED, f"the instance reports another value of {', '.join(keys)}"
    known = standing if standing is not None and standing.hash == desired.hash else None
    before = known or offer_of(standing, desired, now)
    applied = desired.config if status in (ConfigStatus.APPLIED, ConfigStatus.DRIFTED) else before.applied
    if known is not None and (known.status, known.reason) == (status, reason):
        return known
    reason = reason or ("no reason given" if status is ConfigStatus.FAILED else "")
    return replace(before, status=status, reason=reason, reported_at=now, applied=applied)


def offer_of(standing: Standing | None, desired: Desired, now: float) -> Standing:
    """The standing once the configuration was offered, which may be for the second time."""
    known = standing is not None and standing.hash == desired.hash
    offered_at = standing.offered_at if standing is not None and known else now
    applied = standing.applied if standing is not None else {}
    return Standing(desired.hash, desired.config, ConfigStatus.OFFERED, offered_at=offered_at, applied=applied)


def is_due(standing: Standing | None, desired: Desired, capabilities: int, reported: Reported | None) -> bool:
    """Whether the configuration has to be offered (again): the instance does not have it and has not refused it."""
    if not capabilities & ACCEPTS_REMOTE_CONFIG:
        return False
    known = standing is not None and standing.hash == desired.hash
    if reported is None or not capabilities & REPORTS_REMOTE_CONFIG:
        return not known and (desired.config != {} or standing is not None)
    if reported.hash == desired.hash:
        return False
    return desired.config != {} or reported.hash not in (b"", NOTHING)


def status_of(standing: Standing | None, desired: Desired, capabilities: int | None) -> ConfigStatus:
    """How what is meant for an instance fares; ``capabilities`` is None while it has not been heard since the platform started."""
    if standing is not None and standing.hash == desired.hash and (desired.config or standing.status is not ConfigStatus.APPLIED):
        return standing.status
    if capabilities is not None and not capabilities & ACCEPTS_REMOTE_CONFIG:
        return ConfigStatus.UNSUPPORTED if desired.config else ConfigStatus.NONE
    if not desired.config and (standing is None or standing.hash == desired.hash or not standing.config):
        return ConfigStatus.NONE
    return ConfigStatus.PENDING
