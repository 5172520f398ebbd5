"""Protocol Buffers' wire format, as much of it as the agent speaks.

The agent writes and reads a handful of messages. Doing it here costs 5 MB of resident memory less than importing the protobuf runtime and
the generated modules, and no more time; tests compare every message with those modules, byte for byte.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Mapping, Sequence

Value = str | bool | int | float | Sequence[str]

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_FIXED64 = struct.Struct("<Q")
_DOUBLE = struct.Struct("<d")
_UINT64 = (1 << 64) - 1
_MAX_VARINT_BYTES = 10


class WireError(ValueError):
    """The bytes are not a message."""


def varint(number: int) -> bytes:
    """A number of up to 64 bits; negative ones in two's complement."""
    number &= _UINT64
    if number < 0x80:  # noqa: PLR2004 - seven bits fit in one byte
        return bytes((number,))
    encoded = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits a byte
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


@functools.cache
def tag(field: int, kind: int) -> bytes:
    """What stands before a field's value."""
    return varint(field << 3 | kind)


def message(field: int, content: bytes) -> bytes:
    """A field of bytes or of a message, even an empty one."""
    return b"%b%b%b" % (tag(field, LENGTH), varint(len(content)), content)


def text(field: int, content: str) -> bytes:
    """A string field, left out when empty. What is not valid Unicode is replaced: one odd file name must not lose a batch."""
    return message(field, _utf8(content)) if content else b""


def data(field: int, content: bytes) -> bytes:
    """A bytes field, left out when empty."""
    return message(field, content) if content else b""


def integer(field: int, number: int) -> bytes:
    """An integer or enumeration field, left out when 0."""
    return tag(field, VARINT) + varint(number) if number else b""


def boolean(field: int, value: bool) -> bytes:
    """A boolean field, left out when false."""
    return tag(field, VARINT) + b"\x01" if value else b""


def fixed64(field: int, number: int) -> bytes:
    """A field of 64 fixed bits, left out when 0."""
    return tag(field, FIXED64) + _FIXED64.pack(number & _UINT64) if number else b""


def double(field: int, value: float) -> bytes:
    """A member of a ``oneof`` that is a double, written even when 0."""
    return tag(field, FIXED64) + _DOUBLE.pack(value)


def any_value(value: Value) -> bytes:
    """OTLP's AnyValue."""
    if isinstance(value, str):
        return message(1, _utf8(value))
    if isinstance(value, bool):
        return tag(2, VARINT) + (b"\x01" if value else b"\x00")
    if isinstance(value, int):
        return tag(3, VARINT) + varint(value)
    if isinstance(value, float):
        return double(4, value)
    return message(5, b"".join(message(1, any_value(item)) for item in value))


def attributes(field: int, values: Mapping[str, Value]) -> bytes:
    """A repeated field of OTLP's KeyValue."""
    return b"".join([message(field, text(1, key) + message(2, any_value(value))) for key, value in values.items()])


def fields(content: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """The fields of a message: number, wire type, and value (a number, or bytes).

    Raises:
        WireError: ``content`` is not a message.
    """
    at, end = 0, len(content)
    while at < end:
        key, at = _read_varint(content, at)
        field, kind = key >> 3, key & 7
        if not field:
            raise WireError("a field has the number 0")
        if kind == VARINT:
            number, at = _read_varint(content, at)
            yield field, kind, number
            continue
        if kind == LENGTH:
            size, at = _read_varint(content, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise WireError(f"there is no wire type {kind}")
        if at + size > end:
            raise WireError("the message ends in the middle of a field")
        value = content[at : at + size]
        at += size
        yield field, kind, value if kind == LENGTH else int.from_bytes(value, "little")


def numbers(content: bytes) -> dict[int, int]:
    """The last value of every numeric field.

    Raises:
        WireError: ``content`` is not a message.
    """
    return {field: value for field, _kind, value in fields(content) if isinstance(value, int)}


def blobs(content: bytes) -> dict[int, list[bytes]]:
    """The values of every field that holds bytes, text or a message, in order.

    Raises:
        WireError: ``content`` is not a message.
    """
    found: dict[int, list[bytes]] = {}
    for field, _kind, value in fields(content):
        if isinstance(value, bytes):
            found.setdefault(field, []).append(value)
    return found


def _utf8(content: str) -> bytes:
    return content.encode("utf-8", "replace")


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    number = 0
    for index in range(_MAX_VARINT_BYTES):
        if at + index >= len(content):
            raise WireError("the message ends in the middle of a number")
        byte = content[at + index]
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:  # noqa: PLR2004 - the high bit says that more follows
            return number & _UINT64, at + index + 1
    raise WireError("a number has more than 64 bits")
