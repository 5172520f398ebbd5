"""The sockets that wait for somebody, from the kernel: asked for by netlink, else read in ``/proc/net``.

The tables in ``/proc/net`` cost milliseconds whatever is in them, for the kernel walks all connections that there could be. Netlink
(``sock_diag``) walks the listening sockets only, and any user may ask.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_SOCK_DIAG, _BY_FAMILY, _DUMP, _DONE, _ERROR = 4, 20, 0x301, 3, 2
_HEAD: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBxI48x")
_ANSWER: Final = struct.Struct("=BBBBH2x16s16s24xII")
"""Family, state, timer, retransmissions, port (in network order), address, the peer's address, user and inode of an inet_diag_msg."""
_STATES: Final = {"tcp": 10, "udp": 7}
_PROTOCOLS: Final = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
_FAMILIES: Final = {"": socket.AF_INET, "6": socket.AF_INET6}
_TIMEOUT: Final = 2.0
_BUFFER: Final = 65_536
_IPV4: Final = 4
_CHUNK: Final = 4_096
_LARGEST: Final = 4 * 1024 * 1024
_COLUMNS: Final = 10


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    """A socket that waits: transport, address, port, its user's number and its inode."""

    transport: str
    address: str
    port: int
    uid: str
    inode: str


def listeners(proc: str = "/proc", *, ask: bool = True) -> list[Listener]:
    """All of them, in order. ``ask`` is whether the kernel may be asked by netlink.

    Raises:
        OSError: the kernel's tables cannot be read.
    """
    found: list[Listener] = []
    for transport in ("tcp", "udp"):
        for suffix in ("", "6"):
            try:
                found += _asked(transport, suffix) if ask else _read(proc, transport, suffix)
            except OSError:
                if ask:  # the kernel lacks the part that answers, or this user may open no such socket
                    found += _read(proc, transport, suffix)
                elif not suffix:
                    raise
    return sorted(found)


def endpoint(text: str) -> tuple[str, int]:
    """Address and port of an endpoint as the kernel's tables write it: ``0100007F:0016`` is 127.0.0.1 and 22."""
    host, _, port = text.partition(":")
    raw = bytes.fromhex(host)
    words = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    return socket.inet_ntop(socket.AF_INET if len(raw) == _IPV4 else socket.AF_INET6, words), int(port, 16)


def _asked(transport: str, suffix: str) -> list[Listener]:
    """By netlink.

    Raises:
        OSError: the kernel does not answer this question.
    """
    family = _FAMILIES[suffix]
    body = _REQUEST.pack(family, _PROTOCOLS[transport], 0, 1 << _STATES[transport])
    found: list[Listener] = []
    with socket.socket(getattr(socket, "AF_NETLINK", -1), socket.SOCK_RAW, _SOCK_DIAG) as asked:
        asked.settimeout(_TIMEOUT)
        asked.send(_HEAD.pack(_HEAD.size + len(body), _BY_FAMILY, _DUMP, 1, 0) + body)
        while True:
            answer = asked.recv(_BUFFER)
            at = 0
            while at + _HEAD.size <= len(answer):
                length, kind, _, _, _ = _HEAD.unpack_from(answer, at)
                if kind == _DONE:
                    return found
                if kind == _ERROR or length < _HEAD.size:
                    raise OSError("the kernel does not tell its sockets by netlink")
                if kind == _BY_FAMILY and length >= _HEAD.size + _ANSWER.size:
                    found.append(_listener(transport, family, answer, at + _HEAD.size))
                at += (length + 3) & ~3


def _listener(transport: str, family: int, answer: bytes, at: int) -> Listener:
    _, _, _, _, port, source, _, uid, inode = _ANSWER.unpack_from(answer, at)
    address = socket.inet_ntop(family, source[: _IPV4 if family == socket.AF_INET else 16])
    return Listener(transport, address, socket.ntohs(port), str(uid), str(inode))


def _read(proc: str, transport: str, suffix: str) -> list[Listener]:
    """From ``/proc/net``: the listening sockets of TCP stand first, so that the rest need not be read."""
    wanted = f"{_STATES[transport]:02X}"
    try:
        descriptor = os.open(f"{proc}/net/{transport}{suffix}", os.O_RDONLY)
    except FileNotFoundError:
        if suffix:  # a kernel without IPv6
            return []
        raise
    try:
        return list(_lines(descriptor, transport, wanted))
    finally:
        os.close(descriptor)


def _lines(descriptor: int, transport: str, wanted: str) -> Iterator[Listener]:
    rest, head, size = "", True, 0
    while size < _LARGEST and (part := os.read(descriptor, _CHUNK)):
        size += len(part)
        *lines, rest = (rest + part.decode("ascii", "replace")).split("\n")
        for line in lines:
            fields = line.split()
            if head or len(fields) < _COLUMNS:
                head = False
            elif fields[3] == wanted:
                yield Listener(transport, *endpoint(fields[1]), fields[7], fields[9])
            elif transport == "tcp":
                return
