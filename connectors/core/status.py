"""The status file: what a running agent says of itself to the machine it runs on, and how it is read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from connectors.core.errors import StateError
from connectors.core.files import write_atomically
from connectors.core.ledger import SpoolStatistics

STATUS_FILE = "status.json"
State = Literal["healthy", "degraded", "stopped", "dead", "stale"]


@dataclass(frozen=True, slots=True)
class SpoolStatus:
    """The spool in figures; items by signal, dropped ones by signal and reason."""

    size_bytes: int = 0
    batches: int = 0
    oldest_at: float | None = None
    waiting: Mapping[str, int] = field(default_factory=dict)
    produced: Mapping[str, int] = field(default_factory=dict)
    sent: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, statistics: SpoolStatistics) -> SpoolStatus:
        """The figures of ``statistics``."""
        ledger = statistics.ledger
        dropped: dict[str, dict[str, int]] = {}
        for (signal, reason), items in sorted(ledger.dropped.items()):
            if items:
                dropped.setdefault(signal, {})[reason] = items
        return cls(
            statistics.size_bytes,
            statistics.batches,
            statistics.oldest_at,
            dict(statistics.waiting),
            dict(ledger.produced),
            dict(ledger.sent),
            dropped,
        )


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """An agent's status. Times are Unix seconds.

    ``state`` as written is healthy, degraded or stopped; as read it is ``dead`` when the process is gone without a goodbye, and
    ``stale`` when it lives but has not written for long. ``reasons`` says why, by component.
    """

    pid: int
    version: str
    agent_type: str
    instance_id: str
    platform_url: str
    state: State
    reasons: Mapping[str, str]
    started_at: float
    written_at: float
    enrolled: bool
    last_collection_at: float | None
    last_send_at: float | None
    last_heartbeat_at: float | None
    heartbeat_interval: float
    clock_skew: float | None
    spool: SpoolStatus


def write_status(state_dir: Path, status: AgentStatus) -> None:
    """Replace the status file. Everybody may read it; it holds no secrets.

    Raises:
        OSError: it could not be written; the old one stays.
    """
    write_atomically(state_dir / STATUS_FILE, json.dumps(asdict(status), indent=1).encode() + b"\n", mode=0o644, durable=False)


def read_status(state_dir: Path, clock: Callable[[], float]) -> AgentStatus:
    """The status of the agent that uses, or last used, ``state_dir``, judged by ``clock`` (Unix seconds).

    Raises:
        StateError: no agent has run there, or the file cannot be read.
    """
    path = state_dir / STATUS_FILE
    try:
        document = json.loads(path.read_bytes())
        known = {each.name for each in fields(AgentStatus)}
        written = AgentStatus(**{**{k: v for k, v in document.items() if k in known}, "spool": _spool(document["spool"])})
        age = clock() - float(written.written_at)
        limit = max(4 * float(written.heartbeat_interval), 90.0)
        pid = int(written.pid)
    except FileNotFoundError:
        raise StateError(f"no agent has run on the state directory {state_dir}") from None
    except OSError as exc:
        raise StateError(f"the status file {path} cannot be read: {exc.strerror or exc}") from exc
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise StateError(f"the status file {path} is damaged: {exc}") from exc
    if written.state == "stopped":
        return written
    if not _is_running(pid):
        return _changed(written, "dead", "the agent's process is gone and did not say goodbye")
    if age > limit:
        return _changed(written, "stale", f"the agent has not written its status for {age:.0f} s")
    return written


def _changed(status: AgentStatus, state: State, why: str) -> AgentStatus:
    values: dict[str, Any] = {each.name: getattr(status, each.name) for each in fields(status)}
    return AgentStatus(**{**values, "state": state, "reasons": {"process": why, **status.reasons}})


def _spool(document: Mapping[str, Any]) -> SpoolStatus:
    known = {each.name for each in fields(SpoolStatus)}
    return SpoolStatus(**{k: v for k, v in document.items() if k in known})


def _is_running(pid: int) -> bool:
    if pid <= 0:
        return False
    if os.name == "nt":  # pragma: no cover - a signal 0 would end the process there
        import psutil  # noqa: PLC0415 - the status of a POSIX agent needs none

        return psutil.pid_exists(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
