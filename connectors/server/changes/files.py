"""Watched configuration files: which changed, and what differs in them without what looks like a secret."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from connectors.server.changes.filesets import FileSet, FileWatcher, Kind


class ConfigFileWatcher(FileWatcher):
    """Tells of the files of the options ``watch_files`` and ``watch_files_exclude``."""

    name: ClassVar[str] = "files"
    interval: ClassVar[float] = 2.0

    def __init__(self, patterns: Sequence[str], excluded: Sequence[str], root: str = "") -> None:
        super().__init__(FileSet(patterns, excluded, root), Kind("file", "The file"))
