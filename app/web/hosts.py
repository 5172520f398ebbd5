"""A host on its page: what the template draws of it, as texts and widths. Pure functions of the host and its events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.events.views import EventView
from app.telemetry.hosts import HostView, UnitView
from app.web.formats import duration, format_value

CHANGES = "irca.host."
"""How the names of events begin that are changes of a host."""
CHANGES_SHOWN = 30
UNITS_SHOWN = 30
FULL, NEARLY_FULL = 0.95, 0.85
_LONGEST_VALUE = 200
_CPU_ORDER = ("user", "system", "nice", "interrupt", "steal", "iowait")
_UNIT_LOOKS = {"active": "healthy", "failed": "offline", "inactive": "stopped"}
_DIFF = ".diff"
_NONE = "\N{EN DASH}"
_NO_LIMIT = 2**53
"""Beyond this, the limit of open files is Linux' word for none."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A share of something: ``width`` is 0 to 100, ``look`` a status class for how bad it is, ``text`` the same in words."""

    title: str
    width: float
    look: str
    text: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a stacked bar: where it begins and how wide it is, of 100; ``series`` numbers its colour from 1."""

    name: str
    start: float
    width: float
    series: int
    text: str


@dataclass(frozen=True, slots=True)
class UnitRow:
    """A systemd unit with the look of its state."""

    unit: UnitView
    look: str


@dataclass(frozen=True, slots=True)
class Difference:
    """What a change changed: the value before and after, None where there was none."""

    what: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """A change of the host: the event, its values before and after, and its unified diff where it has one."""

    event: EventView
    differences: Sequence[Difference]
    diff: str


@dataclass(frozen=True, slots=True)
class HostPanel:
    """What the template draws; ``error`` says why there is no host."""

    host: HostView | None
    changes: Sequence[ChangeRow]
    error: str = ""
    facts: Sequence[tuple[str, str]] = ()
    cpu: Sequence[Part] = ()
    cpu_used: str = ""
    bars: Sequence[Bar] = ()
    filesystems: Sequence[tuple[str, str, Bar]] = ()
    disks: Sequence[Sequence[str]] = ()
    interfaces: Sequence[Sequence[str]] = ()
    unit_counts: Sequence[tuple[str, int, str]] = ()
    units: Sequence[UnitRow] = ()
    units_left_out: int = 0
    processes: Sequence[Sequence[str]] = ()
    with_arguments: bool = False


def make_panel(host: HostView, events: Sequence[EventView]) -> HostPanel:
    """The panel of a host and of the changes among the events."""
    rows = [UnitRow(unit, _UNIT_LOOKS.get(unit.active_state, "pending")) for unit in host.units]
    return HostPanel(
        host=host,
        changes=change_rows(events),
        facts=_facts(host),
        cpu=_cpu_parts(host.cpu.modes),
        cpu_used=_share(host.cpu.used),
        bars=_bars(host),
        filesystems=[
            (
                one.device,
                f"{one.type}, read only" if one.mode == "ro" else one.type,
                _space(one.mountpoint, one.used, one.limit, one.utilization),
            )
            for one in host.filesystems
        ],
        disks=[
            (one.device, _rate(one.read_bytes), _rate(one.written_bytes), _number(one.operations), _share(one.busy)) for one in host.disks
        ],
        interfaces=[
            (one.name, _rate(one.received_bytes), _rate(one.sent_bytes), _number(one.errors), _number(one.dropped))
            for one in host.interfaces
        ],
        unit_counts=sorted(
            ((state, count, _UNIT_LOOKS.get(state, "pending")) for state, count in host.unit_counts.items()),
            key=lambda one: (one[0] != "failed", -one[1]),
        ),
        units=rows[:UNITS_SHOWN],
        units_left_out=len(rows[UNITS_SHOWN:]),
        processes=[
            (one.name, str(one.pid), _cores(one.cpu_utilization, host.cpu.logical_count), _size(one.memory), one.command_line)
            for one in host.processes
        ],
        with_arguments=any(one.command_line for one in host.processes),
    )


def change_rows(events: Sequence[EventView]) -> list[ChangeRow]:
    """The changes of the host among the events, in their order."""
    return [
        ChangeRow(event, differences(event.attributes), next((_lines(v) for k, v in event.attributes.items() if k.endswith(_DIFF)), ""))
        for event in events
        if event.name.startswith(CHANGES)
    ][:CHANGES_SHOWN]


def differences(attributes: Mapping[str, object]) -> list[Difference]:
    """What the attributes ``<name>.before`` and ``<name>.after`` tell, by name; hashes, which say nothing to a person, are left out."""
    names = sorted({key.rpartition(".")[0] for key in attributes if key.endswith((".before", ".after"))})
    return [
        Difference(_words(name), _shown(attributes.get(f"{name}.before")), _shown(attributes.get(f"{name}.after")))
        for name in names
        if not name.endswith(".hash")
    ]


def _lines(value: object) -> str:
    return "\n".join(str(one) for one in value) if isinstance(value, list | tuple) else str(value)


def _words(name: str) -> str:
    parts = name.removeprefix("irca.").split(".")
    return " ".join(parts[-2:]).replace("_", " ")


def _shown(value: object) -> str | None:
    if value is None:
        return None
    text = ", ".join(str(one) for one in value) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def _facts(host: HostView) -> list[tuple[str, str]]:
    load = [host.load.one, host.load.five, host.load.fifteen]
    files = "" if host.open_files is None else _number(host.open_files)
    if host.open_files and host.open_files_limit and host.open_files_limit < _NO_LIMIT:
        files += f" of {_number(host.open_files_limit)}"
    facts = {
        "Uptime": "" if host.uptime_seconds is None else duration(host.uptime_seconds),
        "Load": " · ".join(_number(one) for one in load) if load[0] is not None else "",
        "CPUs": "" if host.cpu.logical_count is None else str(host.cpu.logical_count),
        "Processes": "" if host.process_count is None else str(host.process_count),
        "Connections": ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in host.connections.items()),
        "Open files": files,
    }
    return [(title, text) for title, text in facts.items() if text]


def _cpu_parts(modes: Mapping[str, float]) -> list[Part]:
    parts: list[Part] = []
    start = 0.0
    for place, mode in enumerate(_CPU_ORDER, 1):
        if (share := modes.get(mode, 0.0)) > 0:
            width = min(100.0 - start, share * 100)
            parts.append(Part(mode, round(start, 2), round(width, 2), place, format_value(share, "ratio")))
            start += width
    return parts


def _bars(host: HostView) -> list[Bar]:
    bars = []
    if host.memory.used is not None and host.memory.limit:
        cached = sum(one or 0.0 for one in (host.memory.cached, host.memory.buffers))
        detail = f"{_size(host.memory.available)} available, {_size(cached)} cache" if host.memory.available is not None else ""
        bars.append(_space("Memory", host.memory.used, host.memory.limit, host.memory.used / host.memory.limit, detail))
    if host.swap.used is not None and host.swap.limit:
        bars.append(_space("Swap", host.swap.used, host.swap.limit, host.swap.used / host.swap.limit))
    return bars


def _space(title: str, used: float | None, limit: float | None, share: float | None, detail: str = "") -> Bar:
    known = share or 0.0
    look = "offline" if known >= FULL else "degraded" if known >= NEARLY_FULL else "healthy"
    text = f"{_share(share)} · {_size(used)} of {_size(limit)}" if limit is not None else _share(share)
    return Bar(title, round(min(1.0, max(0.0, known)) * 100, 1), look, text, detail)


def _size(value: float | None) -> str:
    return _NONE if value is None else format_value(value, "bytes")


def _rate(value: float | None) -> str:
    return _NONE if value is None else format_value(value, "bytes/s")


def _number(value: float | None) -> str:
    return _NONE if value is None else format_value(value, "number")


def _share(value: float | None) -> str:
    return _NONE if value is None else format_value(value, "ratio")


def _cores(share: float | None, cpus: int | None) -> str:
    return _NONE if share is None else format_value(share * (cpus or 1), "number")
