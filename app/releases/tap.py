"""The Homebrew tap: a bare git repository in the platform's data directory, one commit for each release that Macs were offered.

``brew tap`` clones it and ``brew update`` fetches from it, over HTTP without git on this side: what git asks for are files. The history
only grows, so that every fetch is a fast-forward, whatever is published or withdrawn.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from app.errors import NotFoundError, StorageError
from app.releases import git_objects
from app.releases.release import Release
from connectors.core.files import write_atomically
from connectors.core.package_manifest import BUNDLE, PACKAGES_PATH, rfc3339
from connectors.server.homebrew import FORMULA_PATH, TAP, formula

DIRECTORY = "homebrew-agent.git"
INFO_REFS = "info/refs"
_BRANCH = "refs/heads/main"
_OBJECT = re.compile(r"objects/[0-9a-f]{2}/[0-9a-f]{38}")
_NAME = re.compile(r"[0-9a-f]{40}")


def tap_files(release: Release, platform_url: str, now: float) -> dict[str, bytes]:
    """What the tap holds while ``release`` is current, contents by path.

    Raises:
        NotFoundError: the release has expired, or has no bundle for macOS; the reason says what to do.
    """
    manifest = release.manifest
    if manifest.expires < now:
        raise NotFoundError(f"the release {manifest.version} expired at {rfc3339(manifest.expires)}: sign and publish it again")
    bundles = {
        file.arch: (f"{platform_url}{PACKAGES_PATH}/{quote(manifest.version)}/{quote(file.name)}", file.sha256)
        for file in manifest.files
        if file.kind == BUNDLE and file.os == "macos"
    }
    try:
        text = formula(manifest.version, platform_url, bundles)
    except ValueError as exc:
        raise NotFoundError(
            f"the release {manifest.version} that is current here has no bundle for macOS: make one with "
            "`incident-rca release build --download`, sign and publish it"
        ) from exc
    about = f"# {TAP}\n\nThe Homebrew tap of {platform_url}: `brew tap {TAP} {platform_url}/install/{DIRECTORY}`.\n"
    return {FORMULA_PATH: text.encode(), "README.md": about.encode()}


class TapRepository:
    """The repository as files in ``directory``. Everything here blocks."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def exists(self) -> bool:
        """Whether anything was ever recorded."""
        return (self._directory / _BRANCH).exists()

    def record(self, files: Mapping[str, bytes], *, message: str, time: int) -> str:
        """Add a commit of these files, unless they are what the last one holds; the name of the last commit.

        Raises:
            StorageError: the repository cannot be read or written; its history is as it was.
        """
        try:
            for place in ("objects", "refs/heads"):
                (self._directory / place).mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._directory, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)  # two who ask at once must not fork the history
                return self._record(files, message, time)
            finally:
                os.close(descriptor)
        except OSError as exc:
            raise StorageError(f"the tap in {self._directory} cannot be written: {exc.strerror}") from exc

    def _record(self, files: Mapping[str, bytes], message: str, time: int) -> str:
        last = self._last()
        objects = git_objects.trees(files)
        tree = objects[-1].name
        if last and self._tree(last) == tree:
            return last
        made = git_objects.commit(tree, last, time=time, message=message)
        for one in (*objects, made):
            path = self._directory / one.path
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, one.content, mode=0o444)
        write_atomically(self._directory / "HEAD", f"ref: {_BRANCH}\n".encode("ascii"), mode=0o644)
        write_atomically(self._directory / _BRANCH, f"{made.name}\n".encode("ascii"), mode=0o644)
        return made.name

    def read(self, path: str) -> bytes:
        """The file of the repository that git asks for by this path.

        Raises:
            NotFoundError: there is none.
            StorageError: it cannot be read.
        """
        if path == INFO_REFS and self.exists:
            return f"{self._last()}\t{_BRANCH}\n".encode("ascii")
        if path == "objects/info/packs" and self.exists:
            return b"\n"  # there are none
        if path in ("HEAD", _BRANCH) or _OBJECT.fullmatch(path):
            try:
                return (self._directory / path).read_bytes()
            except FileNotFoundError:
                pass
            except OSError as exc:
                raise StorageError(f"{path} of the tap cannot be read: {exc.strerror}") from exc
        raise NotFoundError(f"the tap has no {path[:64]!r}")

    def _last(self) -> str:
        try:
            name = (self._directory / _BRANCH).read_text(encoding="ascii", errors="replace").strip()
        except FileNotFoundError:
            return ""
        if not _NAME.fullmatch(name):
            raise StorageError(f"{self._directory / _BRANCH} holds no commit's name: restore it, or move {self._directory} away")
        return name

    def _tree(self, name: str) -> str:
        path = self._directory / f"objects/{name[:2]}/{name[2:]}"
        try:
            return git_objects.tree_of(path.read_bytes())
        except (FileNotFoundError, ValueError) as exc:
            raise StorageError(f"the tap's last commit {path} is damaged: restore it, or move {self._directory} away ({exc})") from exc
