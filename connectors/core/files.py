"""Files of the state directory: written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_atomically(path: Path, content: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace ``path`` by ``content`` so that a reader, or a crash, sees the old file or the new one.

    ``durable`` also survives a power loss (two fsyncs); without it a power loss may leave the old content.

    Raises:
        OSError: nothing was replaced.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            if hasattr(os, "fchmod"):
                os.fchmod(descriptor, mode)  # the umask must not decide who may read a credential
            _write_all(descriptor, content)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames in ``path`` durable, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_aside(path: Path, stamp: float) -> Path:
    """Rename ``path`` to ``<name>.corrupt-<unix time>`` (with a number where that is taken) and return the new path.

    Raises:
        OSError: it could not be renamed.
    """
    base = target = path.with_name(f"{path.name}.corrupt-{int(stamp)}")
    number = 1
    while target.exists():
        target = base.with_name(f"{base.name}-{number}")
        number += 1
    path.replace(target)
    return target


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


class Ballast:
    """A file that does nothing but hold ``size`` bytes of disk, to be let go when the disk is full and room must be found."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size

    @property
    def laid(self) -> bool:
        """Whether it holds its bytes."""
        try:
            return self.path.stat().st_size >= self.size
        except OSError:
            return False

    def lay(self) -> None:
        """Take the bytes, unless they are held already.

        Raises:
            OSError: the disk has no room for them; none are held.
        """
        if self.laid:
            return
        try:
            with self.path.open("wb") as file:
                for _ in range(0, self.size, 65_536):
                    file.write(bytes(min(65_536, self.size)))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            self.drop()
            raise

    def drop(self) -> bool:
        """Let the bytes go; whether any were held."""
        try:
            self.path.unlink()
        except OSError:
            return False
        return True
