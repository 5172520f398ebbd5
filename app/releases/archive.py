"""Gzipped tarballs that are the same bytes for the same members."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO


@contextmanager
def gzipped_tar(file: IO[bytes]) -> Iterator[tarfile.TarFile]:
    """A tarball to add members to, gzipped into ``file``; neither it nor a fresh ``TarInfo`` carries a time or an owner."""
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=9) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        yield archive


def tarball(members: Mapping[str, bytes]) -> bytes:
    """A gzipped tarball of ``members`` (contents by path)."""
    packed = io.BytesIO()
    with gzipped_tar(packed) as archive:
        for path, content in members.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()
