"""The systemd unit collector: how many units are in which state, and the state of each that failed or was asked for.

Asking systemd costs a process (``systemctl``), so it is done once a minute; the rounds between tell the same again, which keeps every
series going. A host without systemd has no units and is no worse for it.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from connectors.core.errors import CollectorError
from connectors.core.telemetry import Attributes, Kind, Metric, Point
from connectors.server.host_collector import Exclusion, HostCollector

ASKED_EVERY: Final = 60.0
"""Seconds between two looks at the units."""
STATES: Final = ("active", "activating", "deactivating", "failed", "inactive", "reloading")
MOST_UNITS: Final = 100
"""Units that are reported one by one, at most; those that failed come first."""
_COMMAND: Final = ("systemctl", "list-units", "--all", "--plain", "--full", "--no-legend", "--no-pager")
_BOOTED: Final = Path("/run/systemd/system")
_PATIENCE: Final = 5.0


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit and its states, in systemd's words."""

    name: str
    load_state: str
    active_state: str


class UnitsCollector(HostCollector):
    """systemd's units by state; one point a state for each unit that failed since the agent started or that ``watched`` names."""

    name = "systemd"
    _source = "systemd's units"

    def __init__(
        self,
        resource: Attributes,
        watched: Iterable[str],
        *,
        ask: Callable[[], str] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(resource)
        self._watched = Exclusion(watched)
        self._ask = ask or list_units
        self._monotonic = monotonic
        self._due = 0.0
        self._failed: dict[str, None] = {}
        self._count_labels = [{"irca.systemd.unit.active_state": state} for state in STATES]
        self._labels: dict[str, list[Attributes]] = {}
        self._metrics: list[Metric] = []
        self._reason = ""

    def _gather(self) -> Iterator[Sequence[Metric]]:
        now = self._monotonic()
        if not self._due or now >= self._due:
            self._due = now + ASKED_EVERY
            self._look()
        yield self._metrics
        if self._reason:
            raise CollectorError(self._reason)

    def _look(self) -> None:
        self._reason = ""
        try:
            text = self._ask()
        except subprocess.TimeoutExpired:
            self._reason = f"systemd did not list its units within {_PATIENCE:.0f} s"
        except OSError as exc:
            self._reason = f"systemd's units cannot be listed: {exc.strerror or exc}"
        except subprocess.CalledProcessError as exc:
            said = " ".join(str(exc.stderr or "").split())[:300]
            self._reason = f"systemd does not list its units to the agent: {said or f'exit code {exc.returncode}'}"
        else:
            self._metrics = self._describe(parse_units(text)) if text else []
            return
        self._metrics = []  # what was true a while ago is not told as if it still were

    def _describe(self, units: Sequence[Unit]) -> list[Metric]:
        counts = dict.fromkeys(STATES, 0)
        for unit in units:
            if unit.active_state in counts:
                counts[unit.active_state] += 1
            if unit.active_state == "failed":
                self._failed[unit.name] = None
        metrics = [
            Metric(
                "irca.systemd.unit.count",
                "{unit}",
                Kind.UPDOWNCOUNTER,
                [Point(float(count), label) for count, label in zip(counts.values(), self._count_labels, strict=True)],
            )
        ]
        by_name = {unit.name: unit for unit in units}
        self._failed = {name: None for name in self._failed if name in by_name}  # systemd forgets a unit that is gone
        chosen = self._choose(units, by_name)
        self._labels = {name: self._labels.get(name) or _state_labels(name) for name in chosen}
        points = [
            Point(float(label["irca.systemd.unit.active_state"] == by_name[name].active_state), label)
            for name, labels in self._labels.items()
            for label in labels
        ]
        if points:
            metrics.append(Metric("irca.systemd.unit.state", "{unit}", Kind.UPDOWNCOUNTER, points))
        return metrics

    def _choose(self, units: Sequence[Unit], by_name: dict[str, Unit]) -> list[str]:
        failed = sorted(self._failed, key=lambda name: (by_name[name].active_state != "failed", name))
        watched = [unit.name for unit in units if unit.name in self._watched and unit.name not in self._failed]
        return [*failed, *watched][:MOST_UNITS]


def list_units(booted: Path = _BOOTED) -> str:
    """What ``systemctl list-units`` prints; empty where systemd does not run the host.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be run, refuses, or takes too long.
    """
    if not booted.is_dir():
        return ""
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}
    done = subprocess.run(
        _COMMAND,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=_PATIENCE,
        check=True,
        env=environment,
    )
    return done.stdout


def parse_units(text: str) -> list[Unit]:
    """The units that ``systemctl list-units`` printed, without those that others only mention (``not-found``)."""
    units = []
    for line in text.splitlines():
        words = line.removeprefix("●").split(maxsplit=4)
        if len(words) >= 4 and words[1] != "not-found":  # noqa: PLR2004 - unit, load, active and sub state
            units.append(Unit(words[0], words[1], words[2]))
    return units


def _state_labels(name: str) -> list[Attributes]:
    return [{"irca.systemd.unit.name": name, "irca.systemd.unit.active_state": state} for state in STATES]
