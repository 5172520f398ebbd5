"""Which machine a docker agent is on: the engine's identity, for a container's own host name and network card change with every container.

What was found is kept in the state volume, so that an engine that cannot be asked when the agent starts makes no new machine of it.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from pathlib import Path

from connectors.core.errors import ConnectorError
from connectors.core.files import write_atomically

MACHINE_FILE = "machine"
_ENGINE, _VOLUME = "engine:", "volume:"


def machine_id(state_dir: Path, engine_id: Callable[[], str]) -> str:
    """What tells this machine from others, from now on.

    The engine's identity where it has a lasting one (``engine_id`` asks for it and may raise a ``ConnectorError``); otherwise what was
    kept; at the first start, a random name that stays with the volume. A volume that was copied to another engine's machine shows by
    the engine's identity.
    """
    path, kept = state_dir / MACHINE_FILE, ""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        kept = path.read_text("utf-8").strip()
    if kept.startswith(_VOLUME):
        return kept
    found = _lasting(engine_id, kept)
    if not found:
        if kept.startswith(_ENGINE):
            return kept
        found = _VOLUME + secrets.token_hex(16)
    if found != kept:
        with contextlib.suppress(OSError):  # a full disk or a read-only volume is the spool's to report
            write_atomically(path, f"{found}\n".encode())
    return found


def _lasting(engine_id: Callable[[], str], kept: str) -> str:
    """The engine's identity, asked for twice where it is new: some engines that speak Docker's API make up another for each answer."""
    try:
        first = engine_id().strip()
        if not first or _ENGINE + first == kept or engine_id().strip() == first:
            return _ENGINE + first if first else ""
    except ConnectorError:
        pass
    return ""
