"""Keys that sign releases: made here, kept in files that only their owner reads, and the public halves that are trusted.

A releaser's private key never comes near the platform: ``incident-rca release sign`` runs where the key is, and the platform is told
the public half (``release trust``). A platform for which nobody publishes signs what it builds itself with a key of its own, which
proves no more than the connection over which a host fetches it.
"""

from __future__ import annotations

import base64
import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from app.errors import ReleaseError
from connectors.core import package_manifest
from connectors.core.files import sync_directory, write_atomically

KEY_DIRECTORY = "keys"
INSTALLATION_KEY = "package-signing.pem"
"""File below ``KEY_DIRECTORY`` of the data directory that holds the platform's own private key."""
TRUSTED_DIRECTORY = "trusted"
"""Directory below ``KEY_DIRECTORY`` of public keys, ``<key id>.pem`` each."""
PUBLIC_SUFFIX = ".pub"
"""What is added to a private key's file name for the public half beside it."""
_LARGEST_KEY_FILE = 16_384
_OTHERS = 0o077


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private Ed25519 key, never shown."""

    _private: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> SigningKey:
        """A new one."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def read(cls, path: Path, passphrase: str = "") -> SigningKey:
        """The one in this PEM file, which nobody but its owner may read.

        Raises:
            ReleaseError: it cannot be read, others may read it, the passphrase is wrong or missing, or it holds no Ed25519 key.
        """
        content = _read(path, "private key")
        if os.name != "nt" and path.stat().st_mode & _OTHERS:
            raise ReleaseError(f"the private key {path} can be read by others: chmod 600 it, and make a new one if they may have")
        try:
            loaded = serialization.load_pem_private_key(content, passphrase.encode() or None)
        except TypeError as exc:  # cryptography's word for a passphrase too many or too few
            said = "is not encrypted, but a passphrase was given" if passphrase else "is encrypted, and no passphrase was given"
            raise ReleaseError(f"the private key {path} {said}") from exc
        except (ValueError, UnsupportedAlgorithm) as exc:
            said = "or the passphrase is wrong" if passphrase else "in PEM"
            raise ReleaseError(f"{path} holds no private key {said}") from exc
        if not isinstance(loaded, Ed25519PrivateKey):
            raise ReleaseError(f"{path} holds a key of another kind than Ed25519")
        return cls(loaded)

    def write(self, path: Path, passphrase: str = "") -> Path:
        """Write it to a new file of mode 0600, encrypted if there is a passphrase, and the public half beside it; that file's path.

        Raises:
            ReleaseError: there is such a file already, or it cannot be written.
        """
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase:
            encryption = serialization.BestAvailableEncryption(passphrase.encode())
        content = self._private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        public = path.with_name(path.name + PUBLIC_SUFFIX)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as exc:
            raise ReleaseError(f"{path} is there already, and a key is never overwritten") from exc
        except OSError as exc:
            raise ReleaseError(f"the key {path} cannot be written: {exc.strerror}") from exc
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            write_atomically(public, public_pem(self.public), mode=0o644)
        except OSError as exc:
            with contextlib.suppress(OSError):
                path.unlink()
            raise ReleaseError(f"the key {path} cannot be written: {exc.strerror}") from exc
        sync_directory(path.parent)
        return public

    @property
    def public(self) -> bytes:
        """The public half, 32 raw bytes."""
        return self._private.public_key().public_bytes_raw()

    @property
    def key_id(self) -> str:
        """What manifests call it."""
        return package_manifest.key_id(self.public)

    def sign(self, content: bytes) -> bytes:
        """The signature over ``content``, 64 bytes."""
        return self._private.sign(content)


def is_encrypted(path: Path) -> bool:
    """Whether the private key in this PEM file asks for a passphrase.

    Raises:
        ReleaseError: it cannot be read.
    """
    return b"ENCRYPTED" in _read(path, "private key")


def public_pem(public_key: bytes) -> bytes:
    """A public key (32 raw bytes) as SubjectPublicKeyInfo in PEM, which openssl reads."""
    key = Ed25519PublicKey.from_public_bytes(public_key)
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def public_base64(public_key: bytes) -> str:
    """A public key (32 raw bytes) as install scripts carry it: 44 characters of base64."""
    return base64.b64encode(public_key).decode("ascii")


def read_public_key(path: Path) -> bytes:
    """The public key (32 raw bytes) in this PEM file.

    Raises:
        ReleaseError: it cannot be read, or holds no public Ed25519 key.
    """
    content = _read(path, "public key")
    try:
        loaded = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as exc:
        said = ": that is the private half, which stays with the releaser" if b"PRIVATE KEY" in content else " in PEM"
        raise ReleaseError(f"{path} holds no public key{said}") from exc
    if not isinstance(loaded, Ed25519PublicKey):
        raise ReleaseError(f"{path} holds a key of another kind than Ed25519")
    return loaded.public_bytes_raw()


def trusted_keys(directory: Path) -> dict[str, bytes]:
    """The public keys (32 raw bytes) in ``directory`` by key id; none where there is no such directory.

    Raises:
        ReleaseError: a ``.pem`` file in it is no public key: a key that is silently not trusted would be looked for for long.
    """
    try:
        files = sorted(directory.glob("*.pem"))
    except OSError as exc:
        raise ReleaseError(f"the trusted keys in {directory} cannot be read: {exc.strerror}") from exc
    keys = [read_public_key(file) for file in files]
    return {package_manifest.key_id(key): key for key in keys}


def trust(directory: Path, public_key: bytes) -> Path:
    """Add a public key (32 raw bytes) to those in ``directory``; the file that holds it. Removing the file ends the trust.

    Raises:
        ReleaseError: the file cannot be written.
    """
    path = directory / f"{package_manifest.key_id(public_key)}.pem"
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomically(path, public_pem(public_key), mode=0o644)
    except OSError as exc:
        raise ReleaseError(f"the trusted key {path} cannot be written: {exc.strerror}") from exc
    return path


def installation_key(data_dir: Path) -> SigningKey:
    """The platform's own key, made when it is first asked for.

    Raises:
        ReleaseError: it can be neither read nor made.
    """
    path = data_dir / KEY_DIRECTORY / INSTALLATION_KEY
    if not path.exists():
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise ReleaseError(f"{path.parent} cannot be made: {exc.strerror}") from exc
        key = SigningKey.generate()
        key.write(path)
        return key
    return SigningKey.read(path)


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST_KEY_FILE)
    except OSError as exc:
        raise ReleaseError(f"the {what} {path} cannot be read: {exc.strerror}") from exc
