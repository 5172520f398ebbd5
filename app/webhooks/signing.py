"""Signatures and secrets of the Standard Webhooks specification, and how secrets are kept.

A secret's text is ``whsec_`` and 32 random bytes in base64. The platform has to sign with it, so it is kept encrypted (Fernet) under a key
that lies in the data directory and not in the database.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.errors import StartupError, StorageError

PREFIX = "whsec_"
KEY_FILE = "keys/webhooks.key"
"""Below the data directory."""
_SECRET_BYTES = 32


def new_secret() -> str:
    """A new secret's text."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signature_header(keys: Sequence[str], message_id: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature``: one signature for each secret that is valid now, so that receivers can change over.

    Args:
        keys: the secrets' texts.
        message_id: value of ``webhook-id``.
        timestamp: value of ``webhook-timestamp``, Unix seconds.
        body: the request's body.
    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    macs = (hmac.new(base64.b64decode(key.removeprefix(PREFIX)), signed, hashlib.sha256).digest() for key in keys)
    return " ".join("v1," + base64.b64encode(mac).decode() for mac in macs)


class SecretBox:
    """Encrypts and decrypts texts that the database keeps and nobody shall read there.

    This one is for webhooks' secrets; others are :meth:`derived` from it.
    """

    def __init__(self, key: bytes, content: str = "a webhook's secret") -> None:
        self._fernet = Fernet(key)
        self._key = key
        self._content = content

    def derived(self, purpose: str, content: str) -> SecretBox:
        """A box with a key of its own that comes from this one's.

        Args:
            purpose: what the key is for; each has another key.
            content: what is kept in the box, for the error that it cannot be decrypted.
        """
        derivation = HKDF(hashes.SHA256(), 32, salt=None, info=f"incident-rca {purpose}".encode())
        return SecretBox(base64.urlsafe_b64encode(derivation.derive(base64.urlsafe_b64decode(self._key))), content)

    @classmethod
    def open(cls, data_dir: Path) -> SecretBox:
        """The box of this installation; its key is made at first use, readable by the platform's user alone.

        Raises:
            StartupError: the key cannot be read or made.
        """
        path = data_dir / KEY_FILE
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                return cls(path.read_bytes().strip())
            with os.fdopen(descriptor, "wb") as file:
                file.write(key := Fernet.generate_key())
                file.flush()
                os.fsync(file.fileno())
            return cls(key)
        except (OSError, ValueError) as exc:
            raise StartupError(f"the key of the webhooks' secrets, {path}, cannot be used: {exc}") from exc

    def seal(self, text: str) -> bytes:
        """``text``, encrypted."""
        return self._fernet.encrypt(text.encode())

    def unseal(self, sealed: bytes) -> str:
        """The text of :meth:`seal`.

        Raises:
            StorageError: it was encrypted under another key: the key file is not the one that belongs to the database.
        """
        try:
            return self._fernet.decrypt(sealed).decode()
        except InvalidToken as exc:
            raise StorageError(f"{self._content} cannot be decrypted: {KEY_FILE} is not the key that it was encrypted under") from exc
