"""The last lines that a container wrote before it died: bounded and redacted. Reading is thin, the rest pure."""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import requests
import urllib3.exceptions
from docker import APIClient

from connectors.docker.redaction import redact

MAX_BYTES = 16 * 1024
"""Most bytes of a tail, in UTF-8."""
MAX_LINE = 1024
"""Most bytes of one of its lines."""

_KEPT = 4 * MAX_BYTES
"""Bytes held while reading, of which the last count: more than are sent, for a secret must be seen whole to be recognised."""
_READ = 4 * 1024 * 1024
"""Bytes after which reading stops: the last fifty lines of a program may be of any length."""
_NEXT_LIFE = 2000
"""Lines that a container which was started anew may have written by the time its former life's log is read."""
_HEADER = 8
_CUT = "…"
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NO_READING = "does not support reading"


@dataclass(frozen=True, slots=True)
class Tail:
    """The last lines, or why there are none."""

    text: str = ""
    reason: str = ""


def read_tail(
    client: APIClient,
    container: str,
    *,
    lines: int,
    tty: bool,
    since: int,
    until: int,
    timeout: float,
    lives_again: bool = False,
) -> Tail:
    """The last ``lines`` lines that ``container`` wrote between two times (Unix nanoseconds; ``since`` 0 is its beginning).

    ``tty`` says whether it has a terminal, for the engine then sends its output as it is, and else in frames. Never raises for what the
    engine answers: that is the tail's reason. ``timeout`` (seconds) bounds each step and, doubled, the whole. ``lives_again`` says that
    the engine may have started the container anew.

    Raises:
        requests.exceptions.RequestException: the engine cannot be asked.
    """
    url = f"{client.base_url}/v{client.api_version}/containers/{container}/logs"
    # The engine counts lines from the end of the log before it looks at times: what the next life has written takes the place of some.
    from_end = lines + (_NEXT_LIFE if lives_again else 0)
    asked: dict[str, str | int] = {"stdout": 1, "stderr": 1, "tail": from_end, "since": stamp(since), "until": stamp(until)}
    deadline = time.monotonic() + 2 * timeout
    with client.get(url, params=asked, stream=True, timeout=timeout) as response:
        if response.status_code != requests.codes.ok:
            return Tail(reason=refusal(response.status_code, _message(response)))
        chunks: Iterable[bytes] = response.raw.stream(65_536, decode_content=True)
        return tail_of(chunks if tty else demultiplexed(chunks), lines, lambda: time.monotonic() > deadline)


def tail_of(pieces: Iterable[bytes], lines: int, is_late: Callable[[], bool] = lambda: False) -> Tail:
    """The last ``lines`` lines of what comes, holding little of it; what has come when it breaks, is too much or too late."""
    held, read, whole, reason = bytearray(), 0, True, ""
    try:
        for piece in pieces:
            held += piece
            read += len(piece)
            if len(held) > 2 * _KEPT:
                del held[:-_KEPT]
                whole = False
            if read > _READ or is_late():
                reason = "what follows was too much to read"
                break
    except urllib3.exceptions.HTTPError:
        reason = "the engine did not send all of it"
    text = tail_text(bytes(held), lines, whole=whole)
    return Tail(text, reason or ("" if text else "it wrote nothing"))


def demultiplexed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """What is in the frames of a container without a terminal: each has a header of 8 bytes (stream, three zeros, length).

    A frame that the engine broke off is yielded as far as it goes.
    """
    buffer, left = bytearray(), 0
    for chunk in chunks:
        buffer += chunk
        while buffer:
            if left:
                piece = bytes(buffer[:left])
                del buffer[: len(piece)]
                left -= len(piece)
                yield piece
            elif len(buffer) >= _HEADER:
                left = struct.unpack_from(">BxxxL", buffer)[1]
                del buffer[:_HEADER]
            else:
                break


def tail_text(written: bytes, lines: int, *, whole: bool = True) -> str:
    """The last ``lines`` lines of ``written``, readable, redacted and bounded. Without ``whole`` its first line is a rest and left out."""
    if not whole or len(written) > _KEPT:
        written = written[-_KEPT:]
        _rest, newline, written = written.partition(b"\n")
        if not newline:
            return f"[a line of more than {_KEPT // 1024} KiB]"
    text = _CONTROL.sub("", _ANSI.sub("", written.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")))
    # Redacted before it is cut: half a secret may not look like one.
    found = [shortened(line, MAX_LINE) for line in redact(text.strip("\n")).split("\n")][-lines:]
    kept: list[str] = []
    room = MAX_BYTES
    for line in reversed(found):
        room -= len(line.encode()) + 1
        if room < 0:
            break
        kept.append(line)
    return "\n".join(reversed(kept)).strip("\n")


def shortened(line: str, most: int) -> str:
    """``line`` in at most ``most`` bytes of UTF-8, an ellipsis at its end when it was cut."""
    encoded = line.encode()
    if len(encoded) <= most:
        return line
    return encoded[: most - len(_CUT.encode())].decode("utf-8", "ignore") + _CUT


def stamp(unix_nano: int) -> str:
    """A time as the engine takes it: seconds, a point and nine digits."""
    return f"{unix_nano // 1_000_000_000}.{unix_nano % 1_000_000_000:09d}"


def refusal(status: int, words: str) -> str:
    """Why there is no tail, from the engine's answer."""
    if _NO_READING in words:
        return "its logging driver cannot be read"
    if status in (requests.codes.not_found, requests.codes.conflict):
        return "it was removed before its log could be read"
    if status == requests.codes.forbidden:
        return "the engine, or a proxy before it, refuses to show logs"
    return shortened(redact(f"the engine answered {status}: {' '.join(words.split())}"), 300)


def _message(response: requests.Response) -> str:
    try:
        document: Any = response.json()
        return str(document["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:300]
