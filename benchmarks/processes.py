"""Processes under measurement: started with a log, measured through /proc, stopped by their pid."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PYTHON = sys.executable


@dataclass
class Measured:
    """A running process and its log file."""

    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pids(self) -> list[int]:
        """The process and its children."""
        found = [self.popen.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                found += [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return found

    def cpu_seconds(self) -> float:
        """User and system time so far, children included."""
        total = 0
        for pid in self.pids:
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def rss_mb(self) -> float:
        """Resident memory, MB (10^6 bytes)."""
        total = 0
        for pid in self.pids:
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmRSS:"):
                        total += int(line.split()[1]) * 1024
        return total / 1e6


@contextlib.contextmanager
def running(argv: list[str], env: dict[str, str] | None = None, folder: Path | None = None) -> Iterator[Measured]:
    """``argv`` as a process of its own until the block ends."""
    folder = folder or Path(tempfile.mkdtemp(prefix="irca-bench-"))
    log = folder / f"{Path(argv[0]).name}.log"
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # compiling at every start is nobody's normal case
    with log.open("wb") as output:
        popen = subprocess.Popen(argv, env={**inherited, **(env or {})}, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=folder)
        try:
            yield Measured(popen, log)
        finally:
            popen.terminate()
            try:
                popen.wait(20)
            except subprocess.TimeoutExpired:
                popen.kill()
                popen.wait()


def free_port() -> int:
    """A port of loopback that nobody used a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], object], what: str, seconds: float = 30.0) -> object:
    """The first true answer of ``condition``; SystemExit when it takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, urllib.error.URLError):
            if answer := condition():
                return answer
        time.sleep(0.05)
    raise SystemExit(f"benchmark: {what} did not happen within {seconds:g} s")


def answers(url: str, context: object = None) -> bool:
    """Whether a GET of ``url`` succeeds."""
    with urllib.request.urlopen(url, timeout=5, context=context) as response:
        return bool(response.status == 200)


def peer(*names: str) -> str | None:
    """The path of a rival's program, if it is installed."""
    return next((path for name in names if (path := shutil.which(name))), None)
