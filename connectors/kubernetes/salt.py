"""The key of this instance's hashes: kept on disk, so that hashes stay comparable when the process is another."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from connectors.core import log
from connectors.core.files import write_atomically

_LOG = logging.getLogger(__name__)
FILE = "kubernetes-hashes.key"
_SIZE = 32


def kept_salt(state_dir: Path) -> bytes:
    """The key in ``state_dir``, made where there is none. One that cannot be kept lasts as long as the process."""
    path = state_dir / FILE
    try:
        salt = path.read_bytes()
        if len(salt) == _SIZE:
            return salt
    except OSError:
        pass  # there is none yet, or it cannot be read: then it cannot be kept either, which is said below
    salt = os.urandom(_SIZE)
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(path, salt)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        log.entry(_LOG, logging.WARNING, "changes.memory", "the key of the hashes cannot be kept on disk", reason=reason)
    return salt
