"""What the kernel's messages mean: processes killed for want of memory, and other alarms. Pure but for what an alarm begun earlier left."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from connectors.core.telemetry import AttributeValue, Severity
from connectors.server.changes.kernel_log import Message
from connectors.server.changes.model import LONGEST, Change

TOGETHER: Final = 300.0
"""Seconds in which alarms of one kind and subject, after the first, are counted and told as one."""
_MOST_SUBJECTS: Final = 200

_OOM_CONTEXT: Final = re.compile(
    r"oom-kill:constraint=(?P<constraint>\w+).*?(?:,oom_memcg=(?P<limited>[^,]*))?,task_memcg=(?P<cgroup>[^,]*),task="
)
_OOM_KILLED: Final = re.compile(
    r"(?:Out of memory|Memory cgroup out of memory)[^:]*: Kill(?:ed)? process (?P<pid>\d+) \((?P<program>.{0,64}?)\)"
    r"(?P<rest>,? (?:total-vm|score|anon-rss|UID).*)"
)
_OOM_SIZES: Final = re.compile(r"(total-vm|anon-rss|file-rss|shmem-rss|UID|oom_score_adj):(-?\d+)")
_CONTAINER: Final = re.compile(r"[0-9a-f]{64}")
_DEVICE: Final = r"\((?:device )?(?P<subject>[^): ]+)[^)]*\)"

_ALARMS: Final[tuple[tuple[str, Severity, str], ...]] = (
    ("machine_check", Severity.ERROR, r"mce: \[Hardware Error\]|Machine check events logged|\[Hardware Error\]: .*[Ee]rror"),
    ("memory_error", Severity.ERROR, r"EDAC (?P<subject>MC\d+): \d+ [CU]E"),
    ("hung_task", Severity.ERROR, r"INFO: task (?P<subject>\S+?):\d+ blocked for more than \d+ seconds"),
    (
        "lockup",
        Severity.ERROR,
        r"(?P<subject>soft lockup|[Hh]ard LOCKUP)|rcu: INFO: \S+ (?:self-)?detected|rcu_\w+ (?:self-)?detected stall",
    ),
    ("io_error", Severity.ERROR, r"I/O error,? (?:on )?dev(?:ice)? (?P<subject>[\w!-]+)"),
    ("io_error", Severity.ERROR, r"critical (?:medium|target|space allocation) error, dev (?P<subject>[\w!-]+)"),
    (
        "read_only_remount",
        Severity.ERROR,
        rf"(?:EXT[234]-fs|BTRFS|XFS)[^(]*{_DEVICE}.*(?:[Rr]emounting filesystem read-only|forced readonly)",
    ),
    ("filesystem_error", Severity.ERROR, rf"(?:EXT[234]-fs (?:error|warning)|BTRFS:? (?:error|critical)) {_DEVICE}"),
    ("filesystem_error", Severity.ERROR, rf"(?:XFS|F2FS-fs|FAT-fs) ?{_DEVICE}.*(?:[Ee]rror|[Cc]orrupt|[Ss]hut ?[Dd]own)"),
    ("segfault", Severity.WARN, r"(?P<subject>[^\[\n]{1,64})\[\d+\]: segfault at "),
    ("segfault", Severity.WARN, r"traps: (?P<subject>[^\[\n]{1,64})\[\d+\] (?:general protection|trap invalid opcode|trap divide error)"),
    ("kernel_bug", Severity.ERROR, r"kernel BUG at (?P<subject>\S+?)!|BUG: (?:unable to handle|kernel NULL|scheduling while atomic)"),
    ("kernel_bug", Severity.ERROR, r"Oops: |general protection fault|Kernel panic"),
    ("page_allocation", Severity.WARN, r"(?P<subject>\S{1,64}): page allocation failure"),
    ("conntrack_full", Severity.WARN, r"nf_conntrack: (?:nf_conntrack: )?table full, dropping packet"),
    ("syn_flood", Severity.WARN, r"Possible SYN flooding on port (?P<subject>\S+?)\.? "),
    ("link_down", Severity.WARN, r"(?P<subject>[\w@.-]{1,32}):? (?:NIC )?[Ll]ink is [Dd]own"),
    ("thermal", Severity.WARN, r"(?P<subject>CPU\d+): (?:Core|Package) temperature (?:is )?above threshold|critical temperature reached"),
)
"""Kind, severity and what its messages hold, the first that fits; ``subject`` is what it is about."""


@dataclass(slots=True)
class _Series:
    """Alarms of one kind and subject: the first was told at ``since``; ``count`` more have come, the last of them ``last``."""

    since: float
    severity: Severity
    count: int = 0
    last: Message | None = None


class Alarms:
    """Turns messages into changes. Of a flood of alarms of one kind and subject the first is told, and the rest as a number."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], _Series] = {}
        self._context: dict[str, str] = {}

    def take(self, message: Message, now: float) -> Change | None:
        """What the message means; None where it is no alarm, or one to be counted. ``now`` are seconds of any steady clock."""
        text = message.text
        if found := _OOM_CONTEXT.search(text):
            self._context = {key: value or "" for key, value in found.groupdict().items()}
            return None
        if found := _OOM_KILLED.search(text):
            context, self._context = self._context, {}
            return _oom_kill(message, found, context)
        for kind, severity, pattern in _ALARMS:
            if found := re.search(pattern, text):
                subject = str(found.groupdict().get("subject") or "").strip()
                return self._enter(message, kind, subject, severity, now)
        return None

    def settle(self, now: float) -> Iterator[Change]:
        """The numbers of those that came after the first of their kind, once their time is over."""
        for (kind, subject), series in list(self._series.items()):
            if now - series.since < TOGETHER:
                continue
            if series.last is None:
                del self._series[kind, subject]
            else:
                yield _alarm(series.last, kind, subject, series.severity, series.count)
                self._series[kind, subject] = _Series(now, series.severity)

    def _enter(self, message: Message, kind: str, subject: str, severity: Severity, now: float) -> Change | None:
        series = self._series.get((kind, subject))
        if series is None and len(self._series) < _MOST_SUBJECTS:
            self._series[kind, subject] = _Series(now, severity)
            return _alarm(message, kind, subject, severity, 1)
        if series is None:
            series = self._series.setdefault((kind, ""), _Series(now, severity))
        series.count += 1
        series.last = message
        return None


def _oom_kill(message: Message, found: re.Match[str], context: dict[str, str]) -> Change:
    sizes = {key: int(value) for key, value in _OOM_SIZES.findall(found["rest"])}
    program, pid = found["program"], int(found["pid"])
    attributes: dict[str, AttributeValue] = {
        "process.executable.name": program,
        "process.pid": pid,
        "log.record.original": message.text[:LONGEST],
    }
    for name, key in (("anonymous", "anon-rss"), ("file", "file-rss"), ("shared", "shmem-rss"), ("virtual", "total-vm")):
        if key in sizes:
            attributes[f"irca.oom.memory.{name}"] = sizes[key] * 1024
    if "UID" in sizes:
        attributes["user.id"] = str(sizes["UID"])
    if context:
        attributes["irca.oom.constraint"] = context["constraint"].removeprefix("CONSTRAINT_").lower()
        attributes["irca.oom.cgroup"] = context["cgroup"]
        if context["limited"]:
            attributes["irca.oom.limited_cgroup"] = context["limited"]
        if container := _CONTAINER.findall(context["cgroup"]):
            attributes["container.id"] = container[-1]
    where = f" in {context['cgroup']}" if context.get("cgroup", "/") != "/" else ""
    body = f"The kernel killed {program} ({pid}){where}: out of memory"
    return Change("oom_kill", f"{pid}", body, attributes, Severity.ERROR, message.time_unix_nano, message.identity)


def _alarm(message: Message, kind: str, subject: str, severity: Severity, count: int) -> Change:
    attributes: dict[str, AttributeValue] = {
        "irca.kernel.alarm": kind,
        "irca.kernel.alarm.count": count,
        "log.record.original": message.text[:LONGEST],
    }
    if subject:
        attributes["irca.kernel.alarm.subject"] = subject
    times = f" ({count} times more)" if count > 1 else ""
    body = f"The kernel reports {kind.replace('_', ' ')}{f' of {subject}' if subject else ''}{times}: {message.text[:200]}"
    return Change("kernel.alarm", f"{kind} {subject}", body, attributes, severity, message.time_unix_nano, message.identity)
