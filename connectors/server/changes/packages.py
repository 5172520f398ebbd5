"""Packages that are installed, upgraded, downgraded and removed: dpkg, rpm, apk, Homebrew and Windows Installer."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import ClassVar, Final

from connectors.core.errors import CollectorError
from connectors.core.telemetry import AttributeValue
from connectors.server.changes.model import Change, Memory, State, StateWatcher, before_and_after, differences, mark

DPKG: Final = "/var/lib/dpkg/status"
APK: Final = "/lib/apk/db/installed"
APK_NEW: Final = "/usr/lib/apk/db/installed"
RPM: Final = ("/var/lib/rpm", "/usr/lib/sysimage/rpm", "/usr/share/rpm")
_RPM_FILES: Final = ("rpmdb.sqlite", "rpmdb.sqlite-wal", "Packages", "Packages.db")
CELLARS: Final = (
    "/opt/homebrew/Cellar",
    "/opt/homebrew/Caskroom",
    "/usr/local/Cellar",
    "/usr/local/Caskroom",
    "/home/linuxbrew/.linuxbrew/Cellar",
)
_PART: Final = re.compile(r"\d+|[a-zA-Z]+|~|\^")


class PackageWatcher(StateWatcher):
    """Reads the databases of the package managers that there are, each whenever it was written."""

    name: ClassVar[str] = "packages"
    interval: ClassVar[float] = 2.0

    def __init__(self, root: str = "") -> None:
        self._root = root

    def directories(self) -> Iterable[str]:
        """As :meth:`Watcher.directories`."""
        # Every cellar's formulas are directories of their own, which would be many.
        places = (os.path.dirname(DPKG), os.path.dirname(APK), os.path.dirname(APK_NEW), *RPM)  # noqa: PTH120 - paths of ours
        return [place for each in places if os.path.isdir(place := self._root + each)]  # noqa: PTH112 - a Path costs more than the call

    def _stamp(self) -> str:
        marks = [mark(self._root + path) for path in (DPKG, APK, APK_NEW)]
        marks += [mark(f"{self._root}{base}/{name}") for base in RPM for name in _RPM_FILES]
        for base in CELLARS:
            if found := mark(self._root + base):
                marks += [found, *self._formula_marks(self._root + base)]
        if os.name == "nt":  # pragma: no cover - Windows only
            from connectors.server.changes.package_readers import msi_stamp  # noqa: PLC0415 - Windows only

            marks.append(msi_stamp())
        return " ".join(marks)

    def _read(self) -> State:
        from connectors.server.changes import package_readers as readers  # noqa: PLC0415 - only a database that was written needs them

        state: dict[str, str] = {}
        state |= readers.read_dpkg(self._root + DPKG)
        for path in (APK, APK_NEW):
            state |= readers.read_apk(self._root + path)
        self.note = ""
        if any(mark(f"{self._root}{base}/{name}") for base in RPM for name in _RPM_FILES):
            try:
                state |= readers.read_rpm(self._root)
            except CollectorError as exc:
                if not state:
                    raise
                self.note = f"there is an rpm database beside another manager's: {exc.reason}"
        for base in CELLARS:
            state |= readers.read_cellar(self._root + base)
        if os.name == "nt":  # pragma: no cover - Windows only
            state |= readers.read_msi()
        return state

    def _compare(self, before: State, after: State, memory: Memory) -> Iterable[Change]:
        from connectors.server.changes.package_readers import dpkg_times  # noqa: PLC0415 - as above

        times = dpkg_times(f"{self._root}/var/log/dpkg.log", memory.boundary)
        for key, old, new in differences(before, after):
            yield package_change(key, old, new, times.get(key.partition(" ")[2], 0))

    def _formula_marks(self, cellar: str) -> Iterator[str]:
        try:
            names = sorted(os.listdir(cellar))  # noqa: PTH208 - as above
        except OSError:
            return
        yield from (mark(f"{cellar}/{name}") for name in names)


def package_change(key: str, old: str | None, new: str | None, time_unix_nano: int = 0) -> Change:
    """The change of the package ``key`` (manager, blank, name) from one version to another; None for not installed."""
    manager, _, name = key.partition(" ")
    attributes: dict[str, AttributeValue] = {"irca.package.name": name, "irca.package.manager": manager}
    attributes |= before_and_after("irca.package.version", old, new)
    if old is None:
        return Change("package.installed", key, f"{name} {new} was installed", attributes, time_unix_nano=time_unix_nano)
    if new is None:
        return Change("package.removed", key, f"{name} {old} was removed", attributes, time_unix_nano=time_unix_nano)
    what = "downgraded" if is_lower(new, old) else "upgraded"
    return Change(f"package.{what}", key, f"{name} was {what} from {old} to {new}", attributes, time_unix_nano=time_unix_nano)


def is_lower(version: str, than: str) -> bool:
    """Whether a version is lower than another, by an epoch before a colon, numbers and words, with ``~`` before everything."""
    return _sortable(version) < _sortable(than)


def _sortable(version: str) -> tuple[int, list[tuple[int, int, str]]]:
    epoch, colon, rest = version.partition(":")
    if not (colon and epoch.isdecimal()):
        epoch, rest = "0", version
    parts = []
    for part in _PART.findall(rest):
        rank = -1 if part == "~" else 3 if part.isdecimal() else 2
        parts.append((rank, int(part) if part.isdecimal() else 0, part if rank == 2 else ""))  # noqa: PLR2004 - the rank of words
    return int(epoch), [*parts, (0, 0, "")]
