"""A release on disk: a directory of files with ``manifest.json`` and, once signed, ``manifest.json.sig``."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from app.errors import ReleaseError
from app.releases.signing import SigningKey
from connectors.core import package_manifest
from connectors.core.ed25519 import SIGNATURE_BYTES
from connectors.core.errors import PackageError
from connectors.core.files import write_atomically
from connectors.core.package_manifest import LARGEST_MANIFEST, MANIFEST_FILE, SIGNATURE_FILE, Manifest, PackageFile, encode, parse

SHORTEST_LIFE = 3600.0
LONGEST_LIFE = 86_400.0 * 1100
"""Seconds between a signature and its expiry: a manifest that is believed for ever lets an attacker keep a host on an old version."""


@dataclass(frozen=True, slots=True)
class Release:
    """A release whose signature has been verified: ``content`` and ``signature`` are the manifest's bytes as they are served."""

    directory: Path
    manifest: Manifest
    content: bytes
    signature: bytes
    public_key: bytes
    built_here: bool = False

    @property
    def version(self) -> str:
        """Its version."""
        return self.manifest.version

    def path(self, file: PackageFile) -> Path:
        """Where that file of it lies."""
        return self.directory / file.name


def sign(directory: Path, key: SigningKey, *, now: float, life: float) -> Manifest:
    """Sign what :func:`app.releases.build.build` made, to be believed from ``now`` for ``life`` seconds; signing anew renews it.

    Raises:
        ReleaseError: the directory holds no release, a file is not as the manifest says, or the life is out of bounds.
    """
    if not SHORTEST_LIFE <= life <= LONGEST_LIFE:
        raise ReleaseError(f"a release must expire after {SHORTEST_LIFE / 3600:g} hours to {LONGEST_LIFE / 86_400:g} days")
    try:
        unsigned = parse(_read(directory / MANIFEST_FILE, LARGEST_MANIFEST))
        check_files(directory, unsigned.files)
        manifest = dataclasses.replace(unsigned, key_id=key.key_id, created=float(int(now)), expires=float(int(now + life)))
        content = encode(manifest)
    except PackageError as exc:
        raise ReleaseError(f"{directory}: {exc.reason}") from exc
    write(directory, content, key.sign(content))
    return manifest


def write(directory: Path, content: bytes, signature: bytes) -> None:
    """Write a manifest and its signature. A reader between the two sees a pair that does not verify, never one that is wrong.

    Raises:
        ReleaseError: they cannot be written.
    """
    try:
        write_atomically(directory / MANIFEST_FILE, content, mode=0o644)
        write_atomically(directory / SIGNATURE_FILE, signature, mode=0o644)
    except OSError as exc:
        raise ReleaseError(f"the manifest in {directory} cannot be written: {exc.strerror}") from exc


def read(directory: Path, trusted: Iterable[bytes], *, built_here: bool = False) -> Release:
    """The signed release in ``directory``, its signature verified by one of the ``trusted`` public keys (32 raw bytes each).

    The files' checksums are for :func:`check_files`.

    Raises:
        ReleaseError: there is none, it is not signed, or not by a trusted key.
    """
    content = _read(directory / MANIFEST_FILE, LARGEST_MANIFEST)
    if not (directory / SIGNATURE_FILE).exists():
        raise ReleaseError(f"the release in {directory} is not signed: incident-rca release sign {directory} --key FILE")
    signature = _read(directory / SIGNATURE_FILE, SIGNATURE_BYTES)
    keys = {package_manifest.key_id(key): key for key in trusted}
    try:
        manifest = package_manifest.verify(content, signature, keys.values())
    except PackageError as exc:
        raise ReleaseError(f"the release in {directory} is refused: {exc.reason}") from exc
    return Release(directory, manifest, content, signature, keys[manifest.key_id], built_here)


def check_files(directory: Path, files: Iterable[PackageFile]) -> None:
    """Compare files with what a manifest says of them.

    Raises:
        ReleaseError: one is missing, of another size or of another checksum.
    """
    for file in files:
        path = directory / file.name
        try:
            if path.is_symlink() or path.stat().st_size != file.size:
                raise ReleaseError(f"{path} is not {file.size} bytes, as the manifest says")
            with path.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as exc:
            raise ReleaseError(f"{path} cannot be read: {exc.strerror}") from exc
        if digest != file.sha256:
            raise ReleaseError(f"{path} has not the checksum that the manifest says")


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as exc:
        raise ReleaseError(f"{path} cannot be read: {exc.strerror}") from exc
