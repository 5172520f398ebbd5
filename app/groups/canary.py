"""Who is offered a new configuration first: a few instances, and the rest once one of them has proven it. Pure state and rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SHARE = 10
"""One in so many is offered an unproven configuration, and one at least."""
PATIENCE = 600.0
"""Seconds after which an instance that does not answer an offer gives its place to another."""


def places(members: int, proven: int, tried: int) -> int:
    """How many more instances may be offered a configuration that ``tried`` have been offered without having proven it."""
    if proven:
        return members
    return max(0, max(1, members // SHARE) - tried)


@dataclass(slots=True)
class Cohort:
    """Instances that one change reaches together, by id."""

    members: set[str] = field(default_factory=set)
    proven: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    """Why it failed there."""
    offered: dict[str, float] = field(default_factory=dict)
    """When an instance that has not answered yet was offered it, in Unix seconds."""

    def has_place(self, instance_id: str, now: float) -> bool:
        """Whether ``instance_id`` may be offered the configuration now."""
        if instance_id in self.offered or instance_id in self.failed:
            return True
        tried = len(self.failed) + sum(now - at < PATIENCE for at in self.offered.values())
        return places(len(self.members), len(self.proven), tried) > 0

    def forget(self, instance_id: str) -> None:
        """It is no member any more."""
        self.members.discard(instance_id)
        self._settle(instance_id)

    def note(self, instance_id: str, status: str, reason: str, offered_at: float) -> None:
        """How the configuration fares at a member."""
        self.members.add(instance_id)
        self._settle(instance_id)
        if status in ("applied", "drifted"):
            self.proven.add(instance_id)
        elif status == "failed":
            self.failed[instance_id] = reason
        elif status in ("offered", "applying"):
            self.offered[instance_id] = offered_at

    def _settle(self, instance_id: str) -> None:
        self.proven.discard(instance_id)
        self.failed.pop(instance_id, None)
        self.offered.pop(instance_id, None)


@dataclass(slots=True)
class Cohorts:
    """The cohorts by name."""

    _by_name: dict[bytes, Cohort] = field(default_factory=dict)

    def join(self, instance_id: str, names: Sequence[bytes], left: Sequence[bytes] = ()) -> None:
        """An instance belongs to these cohorts now, and no longer to those."""
        for name in set(left) - set(names):
            if (cohort := self._by_name.get(name)) is not None:
                cohort.forget(instance_id)
                if not cohort.members:
                    del self._by_name[name]
        for name in names:
            self._by_name.setdefault(name, Cohort()).members.add(instance_id)

    def note(self, instance_id: str, names: Sequence[bytes], status: str, reason: str, offered_at: float) -> None:
        """How the configuration fares at a member."""
        for name in names:
            self._by_name.setdefault(name, Cohort()).note(instance_id, status, reason, offered_at)

    def has_place(self, instance_id: str, names: Sequence[bytes], now: float) -> bool:
        """Whether every one of its cohorts lets the instance be offered the configuration now."""
        return all(self._by_name[name].has_place(instance_id, now) for name in names if name in self._by_name)

    def failures(self, names: Sequence[bytes]) -> Mapping[str, str]:
        """Where an unproven configuration has failed, and why."""
        return {
            key: reason
            for name in names
            if (cohort := self._by_name.get(name)) is not None and not cohort.proven
            for key, reason in cohort.failed.items()
        }
