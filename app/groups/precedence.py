"""Which value of an option an instance gets, and why: pure functions of the layers that give values.

Lowest first: the option's default; what was provisioned; what the host's own environment variables or file say (known only from what
the instance reports); groups, the one of the highest priority last, of equal ones the first by name; the agent's own configuration.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from connectors.core.agent_config import Option

SourceKind = Literal["default", "provisioned", "local", "earlier", "group", "agent"]


@dataclass(frozen=True, slots=True)
class Source:
    """Who gives a value. ``id``, ``name`` and ``revision`` are those of a group or of an agent's own configuration."""

    kind: SourceKind
    name: str = ""
    id: str = ""
    revision: int | None = None


DEFAULT, PROVISIONED, LOCAL = Source("default"), Source("provisioned"), Source("local")
EARLIER = Source("earlier")
"""Groups and the agent's own configuration as they were when an instance last applied them."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Values that one source gives."""

    source: Source
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GivenValue:
    """A value and who gives it."""

    source: Source
    value: Any


@dataclass(frozen=True, slots=True)
class Explained:
    """One option of an instance.

    ``value`` is what it has, by its own report where it has made one; ``overridden`` are the values that this one won over, the
    nearest first. ``wanted`` is what should hold instead, where that is something else, and ``note`` says why it does not.
    """

    option: Option
    value: Any
    source: Source
    overridden: tuple[GivenValue, ...] = ()
    wanted: GivenValue | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A key whose value differs between two configurations; a value of None stands for none where ``kind`` says so."""

    key: str
    kind: Literal["added", "removed", "changed"]
    before: Any = None
    after: Any = None


@dataclass(frozen=True, slots=True)
class Desired:
    """What the platform means for an instance: the overlay, its hash, and the layers that it came from, lowest first.

    ``cohorts`` name the sets of instances that a change reaches together; ``groups`` are the ids of those that the instance is in.
    """

    config: Mapping[str, Any]
    hash: bytes
    cohorts: tuple[bytes, ...] = ()
    layers: tuple[Layer, ...] = ()
    groups: tuple[str, ...] = field(default=())


def plain(value: Any) -> Any:
    """``value`` as it looks after a journey through JSON."""
    return json.loads(json.dumps(value, default=dict))


def canonical(config: Mapping[str, Any]) -> bytes:
    """The configuration as JSON, always the same for the same."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def config_hash(config: Mapping[str, Any]) -> bytes:
    """SHA-256 of :func:`canonical`."""
    return hashlib.sha256(canonical(config)).digest()


def merged(layers: Iterable[Layer], options: Iterable[str]) -> dict[str, Any]:
    """What the layers give, lowest first, of ``options``."""
    known = set(options)
    return {key: value for layer in layers for key, value in layer.config.items() if key in known}


def desire(agent_type: str, agent_id: str, groups: Sequence[tuple[str, Layer]], own: Layer | None, options: Iterable[str]) -> Desired:
    """What ``groups`` (ids and layers, lowest first) and the agent's own configuration mean for an instance with these options."""
    known = set(options)
    layers = [layer for _, layer in groups if known & layer.config.keys()]
    from_groups = merged(layers, known)
    if own is not None and known & own.config.keys():
        layers.append(own)
    config = merged(layers, known)
    # A change of a group reaches all instances that get the same of their groups, one of an agent all of the agent's.
    cohorts = [_cohort(agent_type, config_hash(from_groups))] if from_groups else []
    if config != from_groups:
        cohorts.append(_cohort(agent_id, config_hash(config)))
    return Desired(config, config_hash(config), tuple(cohorts), tuple(layers), tuple(group_id for group_id, _ in groups))


def explain(
    options: Mapping[str, Option],
    provisioned: Mapping[str, Any],
    layers: Iterable[Layer],
    reported: Mapping[str, Any],
    undelivered: str = "",
    applied: Mapping[str, Any] | None = None,
) -> list[Explained]:
    """Every runtime option of an instance, in the type's order.

    Args:
        options: the type's.
        provisioned: what the agent was provisioned with.
        layers: of :class:`Desired`.
        reported: the configuration that the instance says it runs with; empty before it has said so.
        undelivered: why what the layers say need not hold yet; empty when it has been applied.
        applied: what was applied before, while something is undelivered.
    """
    layers = list(layers)
    locked = set(map(str, reported.get("locked_options") or ()))
    found: list[Explained] = []
    for key, option in options.items():
        if option.scope != "runtime":
            continue
        chain = [GivenValue(DEFAULT, plain(option.default))]
        if key in provisioned:
            chain.append(GivenValue(PROVISIONED, plain(provisioned[key])))
        chain += [GivenValue(layer.source, plain(layer.config[key])) for layer in layers if key in layer.config and option.remote]
        winner = chain[-1]
        value = reported.get(key, winner.value)
        place = next((n for n in range(len(chain) - 1, -1, -1) if chain[n].value == value), None)
        if place == len(chain) - 1:
            found.append(Explained(option, value, winner.source, tuple(reversed(chain[:-1]))))
            continue
        remote = winner.source.kind in ("group", "agent")
        if undelivered and applied and key in applied and plain(applied[key]) == value:
            below = [given for given in chain if given.source.kind in ("default", "provisioned")]
            found.append(Explained(option, value, EARLIER, tuple(reversed(below)), winner, undelivered))
            continue
        source = LOCAL if place is None or not remote or undelivered == "" else chain[place].source
        below = [given for given in chain if given.source.kind in ("default", "provisioned")] if source is LOCAL else chain[:place]
        if not remote:
            note = "set where the agent runs"
        elif key in locked:
            note = "locked where the agent runs"
        else:
            note = undelivered or "drifted: the instance says that it has another value"
        found.append(Explained(option, value, source, tuple(reversed(below)), winner if remote else None, note))
    return found


def drifted(wanted: Mapping[str, Any], reported: Mapping[str, Any]) -> list[str]:
    """Options that an instance reports to have another value than was applied; what its owner has locked may differ."""
    locked = set(map(str, reported.get("locked_options") or ()))
    return [key for key, value in wanted.items() if key in reported and key not in locked and reported[key] != plain(value)]


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """What changes between two configurations, by key."""
    changes: list[Change] = []
    for key in sorted(before.keys() | after.keys()):
        if key not in before:
            changes.append(Change(key, "added", None, after[key]))
        elif key not in after:
            changes.append(Change(key, "removed", before[key], None))
        elif before[key] != after[key]:
            changes.append(Change(key, "changed", before[key], after[key]))
    return changes


def _cohort(scope: str, hashed: bytes) -> bytes:
    return hashlib.sha256(scope.encode() + b"\0" + hashed).digest()
