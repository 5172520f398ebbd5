"""Remote configuration: options that the platform lays over the local ones, in use only once they have proven themselves.

What was offered is first a *candidate*. It becomes *good* when the agent has worked with it; otherwise it is *refused*, with the reason,
and the agent goes back to the last good one. All three are on disk before they are acted on, so that a process that is killed in between
knows at its next start: a candidate is tried once more then, and a second end without proof refuses it.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from connectors.core import log
from connectors.core.agent_config import AgentConfig
from connectors.core.errors import ConfigError
from connectors.core.files import move_aside, write_atomically
from connectors.core.opamp import CONFIG_FILE_NAME, ConfigOffer, ConfigState, ConfigStatus
from connectors.core.telemetry import CollectorResult

_LOG = logging.getLogger(__name__)
REMOTE_CONFIG_FILE = "remote-config.json"
STARTS = 2
"""Times that a candidate is tried: when it came, and after an end of the process in between."""


@dataclass(frozen=True, slots=True)
class Overlay:
    """Options as offered, under the hash of the offer."""

    hash: bytes
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An overlay on trial: in its ``starts``-th start, with the collectors that were failing before it came."""

    overlay: Overlay
    failing: frozenset[str] = frozenset()
    starts: int = 1


@dataclass(frozen=True, slots=True)
class Refusal:
    """An offer that failed, and why. It is not tried again."""

    hash: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Standing:
    """Where remote configuration stands. Every change is a new value; the caller keeps it on disk."""

    good: Overlay | None = None
    candidate: Candidate | None = None
    refusal: Refusal | None = None

    @property
    def status(self) -> ConfigStatus:
        """What the platform is told."""
        if self.candidate is not None:
            return ConfigStatus(self.candidate.overlay.hash, ConfigState.APPLYING)
        if self.refusal is not None:
            return ConfigStatus(self.refusal.hash, ConfigState.FAILED, self.refusal.reason)
        if self.good is not None:
            return ConfigStatus(self.good.hash, ConfigState.APPLIED)
        return ConfigStatus()

    def proven(self) -> Standing:
        """The candidate is good."""
        return Standing(good=self.candidate.overlay if self.candidate else self.good)

    def refused(self, digest: bytes, reason: str) -> Standing:
        """The offer under that hash failed; a candidate is dropped."""
        return Standing(self.good, None, Refusal(digest, reason))

    def restarted(self) -> Standing:
        """The process starts again."""
        if self.candidate is None:
            return self
        if self.candidate.starts >= STARTS:
            return self.refused(self.candidate.overlay.hash, f"the agent ended {STARTS} times while it was tried")
        return replace(self, candidate=replace(self.candidate, starts=self.candidate.starts + 1))


class RemoteConfig:
    """The remote configuration of one instance, kept in ``state_dir``. Methods may be called from any thread.

    Args:
        state_dir: where it is kept.
        local: the configuration that the host gave, over which it is laid.
        check: raises a ConfigError where the agent cannot work with a configuration that is valid by itself.
    """

    def __init__(self, state_dir: Path, local: AgentConfig, check: Callable[[AgentConfig], object], clock: Callable[[], float]) -> None:
        self._path = state_dir / REMOTE_CONFIG_FILE
        self._local = local
        self._check = check
        self._lock = threading.RLock()
        self._standing = self._read(clock)

    @property
    def status(self) -> ConfigStatus:
        """What the platform is told."""
        return self._standing.status

    @property
    def candidate(self) -> Candidate | None:
        """What is on trial, if anything is."""
        return self._standing.candidate

    def begin(self) -> AgentConfig:
        """The configuration that a starting process works with."""
        with self._lock:
            self._become(self._standing.restarted())
            if (candidate := self._standing.candidate) is not None:
                try:
                    return self._laid(candidate.overlay)
                except ConfigError as exc:
                    self._become(self._standing.refused(candidate.overlay.hash, _explain(exc)))
            return self._last_good()

    def offered(self, offer: ConfigOffer, failing: Iterable[str] = ()) -> AgentConfig | None:
        """Take an offer; the configuration to try now, or to go back to, and None where nothing is to be done.

        ``failing`` are the collectors that fail already, for which the new configuration is not to blame.
        """
        with self._lock:
            standing = self._standing
            if offer.hash == standing.status.hash and standing.status.state:
                return None
            if standing.good is not None and offer.hash == standing.good.hash:
                self._become(Standing(good=standing.good))
                return self._last_good() if standing.candidate else None
            log.entry(_LOG, logging.INFO, "config.offered", "remote configuration was offered", hash=offer.hash.hex())
            try:
                overlay = Overlay(offer.hash, _values(offer))
                config = self._laid(overlay)
            except ConfigError as exc:
                self._refuse(offer.hash, _explain(exc))
                return self._last_good() if standing.candidate else None
            if not self._become(Standing(standing.good, Candidate(overlay, frozenset(failing)))):
                self._refuse(offer.hash, "it could not be kept in the state directory")
                return self._last_good() if standing.candidate else None
            return config

    def judged(self, candidate: Candidate | None, reason: str) -> AgentConfig | None:
        """The candidate has failed for ``reason``: the configuration to go back to. Or it has proven itself (an empty reason): None.

        Where something else has been offered since, nothing changes.
        """
        with self._lock:
            if candidate is None or self.candidate != candidate:
                return None
            if reason:
                self._refuse(candidate.overlay.hash, reason)
                return self._last_good()
            log.entry(_LOG, logging.INFO, "config.applied", "remote configuration is in use", hash=candidate.overlay.hash.hex())
            self._become(self._standing.proven())
            return None

    def _refuse(self, digest: bytes, reason: str) -> None:
        log.entry(_LOG, logging.WARNING, "config.failed", "remote configuration was refused", hash=digest.hex(), reason=reason)
        self._become(self._standing.refused(digest, reason))

    def _last_good(self) -> AgentConfig:
        good = self._standing.good
        if good is None:
            return self._local
        try:
            return self._laid(good)
        except ConfigError as exc:  # it was good under another version, or before the host's owner changed what is allowed
            self._refuse(good.hash, _explain(exc))
            self._become(replace(self._standing, good=None))
            return self._local

    def _laid(self, overlay: Overlay) -> AgentConfig:
        config = self._local.overlaid(overlay.values)
        self._check(config)
        return config

    def _become(self, standing: Standing) -> bool:
        """Hold ``standing``, and write it down where it is new; whether that could be done."""
        if standing == self._standing:
            return True
        self._standing = standing
        try:
            write_atomically(self._path, json.dumps(_document(standing), indent=1).encode() + b"\n")
        except OSError as exc:
            reason = exc.strerror or str(exc)
            log.entry(_LOG, logging.ERROR, "config.keep", "the remote configuration could not be kept", reason=reason)
            return False
        return True

    def _read(self, clock: Callable[[], float]) -> Standing:
        try:
            return _standing(json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            return Standing()
        except OSError as exc:
            reason = exc.strerror or str(exc)
            log.entry(_LOG, logging.ERROR, "config.read", "the remote configuration cannot be read; using the local one", reason=reason)
            return Standing()
        except (ValueError, KeyError, TypeError, AttributeError):
            log.entry(_LOG, logging.WARNING, "config.damaged", "the remote configuration is damaged; it was set aside", path=self._path)
            try:
                move_aside(self._path, clock())
            except OSError:
                return Standing()  # it will be written over
            return Standing()


class Trial:
    """What a new configuration has still to show: every part of the agent once, without a new failure.

    Args:
        awaited: the parts that must report: ``collect``, and each source of custom metrics.
        failing: collectors that failed before and may fail on.
        deadline: monotonic seconds by which all must have reported.
    """

    def __init__(self, awaited: Iterable[str], failing: frozenset[str], deadline: float) -> None:
        self._awaited = set(awaited)
        self._failing = failing
        self._deadline = deadline
        self._reason = ""
        self._lock = threading.Lock()

    def heard(self, part: str, results: Sequence[CollectorResult], reason: str = "") -> None:
        """``part`` has run: with these results, or not at all for ``reason``."""
        new = "; ".join(f"{each.name}: {each.reason}" for each in results if not each.ok and each.name not in self._failing)
        with self._lock:
            self._awaited.discard(part)
            self._reason = self._reason or reason or new

    def verdict(self, now: float) -> str | None:
        """None while it is open, empty when the configuration has proven itself, else why it has failed. ``now`` is monotonic."""
        with self._lock:
            if self._reason:
                return self._reason
            if not self._awaited:
                return ""
            return f"{', '.join(sorted(self._awaited))}: not done in time" if now >= self._deadline else None


def _explain(exc: ConfigError) -> str:
    return exc.reason if exc.field is None or exc.field in exc.reason else f"{exc.field}: {exc.reason}"


def _values(offer: ConfigOffer) -> Mapping[str, Any]:
    if not offer.files:
        return {}
    if CONFIG_FILE_NAME not in offer.files:
        raise ConfigError(f"the offered configuration has no file {CONFIG_FILE_NAME}")
    try:
        values = json.loads(offer.files[CONFIG_FILE_NAME] or b"{}")
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{CONFIG_FILE_NAME} is not JSON") from exc
    if not isinstance(values, dict):
        raise ConfigError(f"{CONFIG_FILE_NAME} must hold an object of options")
    return values


def _document(standing: Standing) -> dict[str, Any]:
    good, candidate, refusal = standing.good, standing.candidate, standing.refusal
    return {
        "good": good and {"hash": good.hash.hex(), "values": good.values},
        "candidate": candidate
        and {
            "hash": candidate.overlay.hash.hex(),
            "values": candidate.overlay.values,
            "failing": sorted(candidate.failing),
            "starts": candidate.starts,
        },
        "refusal": refusal and {"hash": refusal.hash.hex(), "reason": refusal.reason},
    }


def _standing(document: Any) -> Standing:
    good, candidate, refusal = document["good"], document["candidate"], document["refusal"]
    return Standing(
        good and _overlay(good),
        candidate and Candidate(_overlay(candidate), frozenset(map(str, candidate["failing"])), int(candidate["starts"])),
        refusal and Refusal(bytes.fromhex(refusal["hash"]), str(refusal["reason"])),
    )


def _overlay(document: Any) -> Overlay:
    return Overlay(bytes.fromhex(document["hash"]), dict(document["values"]))
