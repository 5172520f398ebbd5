"""The events that the server agent type records of its host."""

from __future__ import annotations

from collections.abc import Mapping

from app.events.event_type import ERROR, INFO, WARN, EventType

_FOUND = {
    "irca.change.start_time_unix_nano": "When the watcher had last looked: the change happened since.",
    "irca.change.end_time_unix_nano": "When it was found.",
    "irca.change.while_away": "True when the agent was not running in between.",
}
_FILE = {
    "file.path": "File.",
    "file.size": "Its size in bytes.",
    "file.mode": "Its mode, in octal digits.",
    "irca.file.hash.before": "Hash before: of the text without what looks like a secret, or of all under a key of this agent.",
    "irca.file.hash.after": "Hash now.",
    "file.size.before": "Size before.",
    "file.size.after": "Size now.",
    "file.mode.before": "Mode before.",
    "file.mode.after": "Mode now.",
    "irca.file.uid.before": "Number of the owner before.",
    "irca.file.uid.after": "Number of the owner now.",
    "irca.file.link.before": "Where the link led.",
    "irca.file.link.after": "Where the link leads.",
    "irca.file.diff": "Lines that differ, with - or + before them, without what looks like a secret; 60 at most.",
    "irca.file.diff.reason": "Why no lines are told.",
    "irca.file.lines.added": "How many lines are new.",
    "irca.file.lines.removed": "How many lines are gone.",
}
_PACKAGE = {
    "irca.package.name": "Package, with its architecture where the manager has several.",
    "irca.package.manager": "dpkg, rpm, apk, brew or msi.",
    "irca.package.version.before": "Version before.",
    "irca.package.version.after": "Version now.",
}
_UNIT = {
    "irca.unit.name": "Unit.",
    "irca.unit.state.before": "State before, with the finer one in parentheses.",
    "irca.unit.state.after": "State now.",
}
_USER = {
    "user.name": "User.",
    "user.id": "Its number.",
    "user.id.before": "Number before.",
    "user.id.after": "Number now.",
    "irca.user.gid.before": "Number of its group before.",
    "irca.user.gid.after": "Number of its group now.",
    "irca.user.home.before": "Home directory before.",
    "irca.user.home.after": "Home directory now.",
    "irca.user.shell.before": "Shell before.",
    "irca.user.shell.after": "Shell now.",
}
_GROUP = {
    "irca.group.name": "Group.",
    "irca.group.id": "Its number.",
    "irca.group.id.before": "Number before.",
    "irca.group.id.after": "Number now.",
    "irca.group.members.before": "Members before.",
    "irca.group.members.after": "Members now.",
}
_PORT = {
    "network.transport": "tcp or udp.",
    "network.local.address": "Address.",
    "network.local.port": "Port.",
    "user.id": "Number of the user who holds it.",
    "process.executable.name": "Program that holds it, where the agent may know.",
    "process.pid": "Its process.",
}
_CERTIFICATE = {
    "file.path": "File; of several certificates in it the one that ends first.",
    "irca.certificate.subject": "Whose it is: common name, else organisation.",
    "irca.certificate.issuer": "Who gave it.",
    "irca.certificate.serial": "Its serial number, in hexadecimal digits.",
    "irca.certificate.fingerprint": "SHA-256 of it.",
    "irca.certificate.not_after": "When it ends.",
}
_FILESYSTEM = {
    "system.filesystem.mountpoint": "Where it is mounted.",
    "system.device": "Device.",
    "system.filesystem.type": "Type.",
    "irca.filesystem.resource": "space or inodes.",
    "irca.filesystem.utilization": "Share in use.",
    "irca.filesystem.free": "Bytes or inodes left.",
}
_KERNEL = {"irca.kernel.release.before": "Kernel before.", "irca.kernel.release.after": "Kernel now."}


def _host(what: str, meaning: str, attributes: Mapping[str, str], severity: int = INFO) -> EventType:
    return EventType(f"irca.host.{what}", severity, meaning, attributes, source="agent")


def _found(what: str, meaning: str, attributes: Mapping[str, str], severity: int = INFO) -> EventType:
    return _host(what, meaning, {**attributes, **_FOUND}, severity)


def _file_events(what: str, noun: str) -> tuple[EventType, ...]:
    return (
        _found(f"{what}.added", f"{noun} appeared.", _FILE),
        _found(f"{what}.changed", f"{noun} was changed: its content, mode or owner.", _FILE),
        _found(f"{what}.removed", f"{noun} was removed.", _FILE),
    )


SERVER_EVENTS: tuple[EventType, ...] = (
    _found(
        "rebooted", "The host was rebooted.", {"irca.boot.id.before": "Boot before.", "irca.boot.id.after": "Boot now."} | _KERNEL, WARN
    ),
    _found("kernel.changed", "Another kernel runs.", _KERNEL),
    _found(
        "kernel.parameters_changed",
        "The kernel was booted with other parameters.",
        {"irca.kernel.parameters.before": "Parameters before.", "irca.kernel.parameters.after": "Parameters now."},
    ),
    _host(
        "oom_kill",
        "The kernel killed a process because memory ran out.",
        {
            "process.executable.name": "Program that was killed.",
            "process.pid": "Its process.",
            "user.id": "Number of its user.",
            "container.id": "Its container, where its control group names one.",
            "irca.oom.constraint": "Whose memory ran out: none (the host's), memcg (a control group's), cpuset or memory_policy.",
            "irca.oom.cgroup": "The process's control group.",
            "irca.oom.limited_cgroup": "The control group whose limit was reached.",
            "irca.oom.memory.anonymous": "Bytes of anonymous memory that it held.",
            "irca.oom.memory.file": "Bytes of files that it held in memory.",
            "irca.oom.memory.shared": "Bytes of shared memory that it held.",
            "irca.oom.memory.virtual": "Bytes of its address space.",
            "irca.oom.count": "How many, where the agent may only read their number.",
            "log.record.original": "The kernel's message.",
        }
        | _FOUND,
        ERROR,
    ),
    _host(
        "kernel.alarm",
        "The kernel reports trouble. Its severity is warn for what concerns one program or link. After the first of a kind and subject the "
        "others of five minutes are one event.",
        {
            "irca.kernel.alarm": "machine_check, memory_error, hung_task, lockup, io_error, filesystem_error, read_only_remount, segfault, "
            "kernel_bug, page_allocation, conntrack_full, syn_flood, link_down or thermal.",
            "irca.kernel.alarm.subject": "Device, program, task or port that it is about.",
            "irca.kernel.alarm.count": "How many messages this event stands for.",
            "log.record.original": "The kernel's message, the last of them.",
        },
        ERROR,
    ),
    _found(
        "clock.stepped",
        "The clock was set. Its severity is warn from a minute on.",
        {
            "irca.clock.step": "Seconds; negative for back.",
            "irca.clock.before_time_unix_nano": "What the clock would say now without that.",
            "irca.clock.after_time_unix_nano": "What it says now.",
        },
    ),
    _found(
        "unit.failed",
        "A systemd unit failed.",
        _UNIT
        | {
            "irca.unit.result": "What systemd says of it: exit-code, signal, timeout, oom-kill, start-limit-hit and so on.",
            "irca.unit.exit_status": "Exit status of its main process.",
            "irca.unit.exit_signal": "Number of the signal that ended it.",
            "irca.unit.restarts": "How often systemd had restarted it since the last look.",
        },
        ERROR,
    ),
    _found("unit.recovered", "A systemd unit that had failed has no longer.", _UNIT),
    _found("unit.started", "A systemd unit that lasts was started.", _UNIT),
    _found("unit.stopped", "A systemd unit that lasts was stopped.", _UNIT),
    _found(
        "unit.restarted",
        "A systemd unit was restarted. Its severity is warn when it had ended by itself.",
        _UNIT
        | {"irca.unit.automatic": "True when systemd did it.", "irca.unit.restarts": "How often systemd restarted it since the last look."},
    ),
    *_file_events("unit_file", "A unit file, drop-in or a link that enables a unit"),
    _found("package.installed", "A package was installed.", _PACKAGE),
    _found("package.upgraded", "A package was upgraded.", _PACKAGE),
    _found("package.downgraded", "A package was replaced by a lower version.", _PACKAGE),
    _found("package.removed", "A package was removed.", _PACKAGE),
    *_file_events("file", "A watched configuration file"),
    *_file_events("schedule", "A crontab, a script of cron's or a timer"),
    _found("user.added", "A user was added. Its severity is warn when its number is the superuser's.", _USER),
    _found("user.changed", "A user's number, group, home or shell was changed.", _USER),
    _found("user.removed", "A user was removed.", _USER),
    _found("group.added", "A group was added.", _GROUP),
    _found("group.changed", "A group's number or members were changed.", _GROUP),
    _found("group.removed", "A group was removed.", _GROUP),
    *_file_events("sudoers", "A file that says who may become root"),
    _found("port.opened", "A port is listened on.", _PORT),
    _found("port.closed", "A port is listened on no longer.", _PORT),
    _found(
        "port.changed",
        "Another program or user listens on a port.",
        _PORT
        | {
            "process.executable.name.before": "Program before.",
            "process.executable.name.after": "Program now.",
            "user.id.before": "User before.",
            "user.id.after": "User now.",
        },
    ),
    _found(
        "sysctl.changed",
        "A kernel setting has another value.",
        {
            "irca.sysctl.name": "Setting, as sysctl names it.",
            "irca.sysctl.value.before": "Value before.",
            "irca.sysctl.value.after": "Value now.",
        },
    ),
    _found(
        "certificate.expiring",
        "A certificate ends soon, or has ended. Its severity is error on the last day.",
        _CERTIFICATE
        | {
            "irca.certificate.days_left": "Days left; negative once it has ended.",
            "irca.certificate.threshold": "The threshold in days that it has passed; none once it has ended.",
        },
        WARN,
    ),
    _found(
        "certificate.replaced",
        "A certificate was replaced.",
        _CERTIFICATE
        | {
            "irca.certificate.not_after.before": "When the one before ends.",
            "irca.certificate.not_after.after": "When this one ends.",
            "irca.certificate.serial.before": "Serial number of the one before.",
            "irca.certificate.serial.after": "Serial number of this one.",
        },
    ),
    _found(
        "filesystem.nearly_full",
        "A filesystem is nearly full. Its severity is error from 98 % on, which is told again.",
        _FILESYSTEM | {"irca.filesystem.threshold": "Share from which on it is told."},
        WARN,
    ),
    _found("filesystem.recovered", "A filesystem that was nearly full has room again.", _FILESYSTEM),
    _host(
        "changes.dropped",
        "An agent left out changes of its host because too many came at a time.",
        {
            "irca.watcher.name": "Watcher that found them.",
            "irca.events.dropped": "How many.",
            "irca.events.dropped.kinds": "Their events, with their counts.",
            "irca.events.dropped.subjects": "What the first hundred are about.",
            "irca.change.start_time_unix_nano": "When the watcher had last looked.",
            "irca.change.end_time_unix_nano": "When they were found.",
        },
        WARN,
    ),
    _host(
        "changes.limited",
        "A watcher does not see everything there is, usually because the agent does not run as root.",
        {"irca.watcher.name": "Watcher.", "irca.watcher.note": "What it does not see."},
    ),
    _host(
        "changes.gap",
        "What an agent remembered of its host was damaged: changes made while it was not running are not known.",
        {
            "irca.gap.reason": "corrupt.",
            "irca.gap.start_time_unix_nano": "Start of the stretch.",
            "irca.gap.end_time_unix_nano": "End of the stretch.",
        },
        WARN,
    ),
)
"""In the order in which they are documented."""
