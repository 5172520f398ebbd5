"""Tell the service manager how this process is: systemd's notification protocol, one datagram a message.

Where no service manager listens (``NOTIFY_SOCKET`` is not set), every call does nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import Final, Self

SOCKET_VARIABLE: Final = "NOTIFY_SOCKET"
WATCHDOG_VARIABLE: Final = "WATCHDOG_USEC"
WATCHDOG_PID_VARIABLE: Final = "WATCHDOG_PID"
_WATCHDOG_SHARE: Final = 3
"""Signs of life in one watchdog period: two may be late without harm."""
_LONGEST_STATUS: Final = 500
_SEND_TIMEOUT: Final = 1.0


class Notifier:
    """Sends to the service manager's socket.

    Args:
        address: path of a Unix datagram socket, or ``@`` and an abstract name; empty means that nobody listens.
        watchdog: seconds within which the manager wants a sign of life; 0 means that it wants none.
        clock: monotonic seconds.
    """

    def __init__(self, address: str, watchdog: float, clock: Callable[[], float]) -> None:
        self._address = address
        self._pause = watchdog / _WATCHDOG_SHARE
        self._clock = clock
        self._due = 0.0
        self._status = ""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], clock: Callable[[], float], pid: int | None = None) -> Self:
        """The one that the variables of this process (``pid``; by default this one's) describe."""
        address = environ.get(SOCKET_VARIABLE, "")
        known = address.startswith(("/", "@")) and hasattr(socket, "AF_UNIX")
        return cls(address if known else "", _watchdog(environ, os.getpid() if pid is None else pid), clock)

    def ready(self, status: str) -> bool:
        """Say that the start is done, and how this process is; whether somebody was told."""
        self._status = status
        return self._send("READY=1", _status_line(status))

    def alive(self, status: str) -> bool:
        """Say that this process works, as often as the watchdog asks, and how it is if that changed; whether somebody was told."""
        now = self._clock()
        words = []
        if self._pause and now >= self._due:
            words.append("WATCHDOG=1")
            self._due = now + self._pause
        if status != self._status:
            words.append(_status_line(status))
            self._status = status
        return bool(words) and self._send(*words)

    def stopping(self, status: str) -> bool:
        """Say that this process is about to end; whether somebody was told."""
        return self._send("STOPPING=1", _status_line(status))

    def _send(self, *words: str) -> bool:
        if not self._address:
            return False
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
                peer.settimeout(_SEND_TIMEOUT)
                peer.connect(address)
                peer.send("\n".join(words).encode())
        except OSError:
            return False  # a manager that does not listen will act on the silence
        return True


def _watchdog(environ: Mapping[str, str], pid: int) -> float:
    """Seconds of the watchdog's period, 0 where it is not on for this process."""
    if environ.get(WATCHDOG_PID_VARIABLE, str(pid)) != str(pid):
        return 0.0
    text = environ.get(WATCHDOG_VARIABLE, "")
    return int(text) / 1e6 if text.isascii() and text.isdigit() else 0.0


def _status_line(status: str) -> str:
    return f"STATUS={' '.join(status.split())[:_LONGEST_STATUS]}"
