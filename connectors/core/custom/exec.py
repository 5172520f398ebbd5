"""Runs a declared command once and reads what it says: no shell, a process group of its own, bounded in time and output."""

from __future__ import annotations

import contextlib
import os
import pwd
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from connectors.core.custom.commands import Command
from connectors.core.custom.readings import json_metrics, prometheus_metrics
from connectors.core.errors import CollectorError
from connectors.core.redaction import redact
from connectors.core.telemetry import Metric

MAX_OUTPUT: Final = 1_048_576
"""Bytes of standard output that a command may write."""
_KEPT_ERRORS: Final = 4096
_TICK: Final = 0.1
_CHUNK: Final = 65_536
_ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
"""All that a command inherits: nothing of the agent's own environment."""


def run_command(command: Command, stopping: threading.Event) -> Sequence[Metric]:
    """The metrics that ``command`` writes to its standard output.

    Raises:
        CollectorError: it could not be started, failed, took too long, wrote too much or malformed output, or ``stopping`` was set.
    """
    output = _output(command, stopping)
    try:
        text = output.decode()
    except UnicodeDecodeError as exc:
        raise CollectorError("what it says is not UTF-8") from exc
    return json_metrics(text) if command.format == "json" else prometheus_metrics(text)


@dataclass(slots=True)
class _Heard:
    """What a command has written so far."""

    output: bytearray
    errors: bytearray


def _output(command: Command, stopping: threading.Event) -> bytes:
    deadline = time.monotonic() + command.timeout
    try:
        process = subprocess.Popen(
            command.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=_ENVIRONMENT,
            start_new_session=True,
            **_as_user(command.user),
        )
    except OSError as exc:
        raise CollectorError(f"{command.argv[0]} cannot be started: {exc.strerror or exc}") from exc
    except subprocess.SubprocessError as exc:
        raise CollectorError(f"{command.argv[0]} cannot be started: {exc}") from exc
    with process:
        try:
            heard = _listen(process, deadline, stopping, command.timeout)
        finally:
            # The group goes before its leader is reaped: until then its number cannot be another's.
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    if code:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
        said = redact(" ".join(heard.errors.decode(errors="replace").split()))[:200]
        raise CollectorError(f"{command.argv[0]} {how}{f': {said}' if said else ''}")
    return bytes(heard.output)


def _listen(process: subprocess.Popen[bytes], deadline: float, stopping: threading.Event, timeout: float) -> _Heard:
    """What the process writes until it ends, whatever its children hold open."""
    heard = _Heard(bytearray(), bytearray())
    assert process.stdout is not None  # noqa: S101 - both are pipes
    assert process.stderr is not None  # noqa: S101 - both are pipes
    with selectors.DefaultSelector() as selector:
        for pipe, kept in ((process.stdout, heard.output), (process.stderr, heard.errors)):
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, kept)
        ended = False
        while True:
            ready = selector.select(0 if ended else _TICK) if selector.get_map() else []
            for key, _events in ready:
                _read(key, selector, heard)
            if ended and not ready:
                return heard
            ended = ended or _has_ended(process)
            if not ended and not selector.get_map():
                time.sleep(_TICK / 10)
            if stopping.is_set():
                raise CollectorError("the agent stops")
            if time.monotonic() >= deadline:
                raise CollectorError(f"it took longer than {timeout:g} s and was killed")


def _read(key: selectors.SelectorKey, selector: selectors.BaseSelector, heard: _Heard) -> None:
    piece = os.read(key.fd, _CHUNK)
    if not piece:
        selector.unregister(key.fileobj)
        return
    key.data.extend(piece)
    del heard.errors[_KEPT_ERRORS:]
    if len(heard.output) > MAX_OUTPUT:
        raise CollectorError(f"it wrote more than {MAX_OUTPUT} bytes and was killed")


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended; it is not reaped where the system allows to look without."""
    if not hasattr(os, "waitid"):  # pragma: no cover - macOS
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _as_user(name: str) -> dict[str, Any]:
    """What makes a process run as the user ``name``."""
    if not name:
        return {}
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise CollectorError(f"there is no user {name}") from None
    if os.geteuid() == entry.pw_uid:
        return {}
    if os.geteuid() != 0:
        raise CollectorError(f"only an agent that runs as root can run a command as {name}")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": os.getgrouplist(name, entry.pw_gid)}
