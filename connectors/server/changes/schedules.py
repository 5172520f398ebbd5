"""Cron and timers: the files that say what runs when."""

from __future__ import annotations

from typing import ClassVar, Final

from connectors.server.changes.filesets import FileSet, FileWatcher, Kind

PATTERNS: Final = (
    *(
        "/etc/crontab",
        "/etc/anacrontab",
        "/etc/cron.d/*",
        "/etc/cron.hourly/*",
        "/etc/cron.daily/*",
        "/etc/cron.weekly/*",
        "/etc/cron.monthly/*",
    ),
    *("/var/spool/cron/*", "/var/spool/cron/crontabs/*", "/etc/crontabs/*", "/etc/periodic/*/*", "/var/spool/cron/atjobs/*"),
    *("/etc/systemd/system/*.timer", "/etc/systemd/system/*.timer.d/*.conf", "/usr/local/lib/systemd/system/*.timer"),
)
EXCLUDED: Final = ("*/.placeholder", "*.dpkg-*", "*.rpmnew", "*.rpmsave", "*~", "*/.*.sw?", "*/.SEQ")


class ScheduleWatcher(FileWatcher):
    """Tells of crontabs, scripts in cron's directories and timers of systemd's that come, go or change."""

    name: ClassVar[str] = "schedules"
    interval: ClassVar[float] = 2.0

    def __init__(self, root: str = "") -> None:
        super().__init__(FileSet(PATTERNS, EXCLUDED, root), Kind("schedule", "The schedule"))
