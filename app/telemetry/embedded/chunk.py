"""The chunk: all samples of one schema in one hour, every series' column addressable by itself and guarded by a checksum.

Layout, little-endian: version u8, reserved u8 x 3, samples u32, columns u32, bytes of the timestamps u32, CRC-32 of what follows up to
the columns u32; the timestamps; where each column ends (u32, from the end of the directory); 16 checksum bits a column; the columns.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from app.telemetry.embedded.codec import (
    CodecError,
    DecimalPlan,
    Floats,
    Integers,
    decode_column,
    decode_times,
    encode_columns,
    encode_times,
)

_HEADER = struct.Struct("<B3xIIII")
_VERSION = 1
_DIRECTORY_ENTRY = 6


Read = Callable[[int, int], bytes]  # the bytes from a start to an end


def encode_chunk(times: Integers, plan: DecimalPlan, *, lost: frozenset[int] = frozenset()) -> bytes:
    """The chunk of the values that ``plan`` is of, at ascending ``times`` (int64 milliseconds).

    Columns in ``lost`` are left empty: reading them says that they are damaged, where inventing values would not.
    """
    coded_times = encode_times(times)
    columns = [b"" if index in lost else column for index, column in enumerate(encode_columns(plan))]
    ends = np.cumsum([len(c) for c in columns], dtype=np.int64).astype("<u4")
    checks = np.array([zlib.crc32(c) & 0xFFFF for c in columns], "<u2")
    front = coded_times + ends.tobytes() + checks.tobytes()
    return b"".join([_HEADER.pack(_VERSION, len(times), len(columns), len(coded_times), zlib.crc32(front)), front, *columns])


class Chunk:
    """A chunk to read from: ``times`` at once, columns on demand.

    Args:
        source: the chunk's bytes, or a function that reads only what is asked for.

    Raises:
        CodecError: the front of the chunk is damaged.
    """

    def __init__(self, source: bytes | Read) -> None:
        read: Read = (lambda start, end: source[start:end]) if isinstance(source, bytes) else source
        head = read(0, _HEADER.size)
        if len(head) != _HEADER.size:
            raise CodecError("a chunk is cut off")
        version, self.samples, self.columns, times_size, check = _HEADER.unpack(head)
        self._body = _HEADER.size + times_size + _DIRECTORY_ENTRY * self.columns
        front = read(_HEADER.size, self._body)
        if version != _VERSION or zlib.crc32(front) != check:
            raise CodecError("a chunk's directory does not match its checksum")
        self.times: Integers = decode_times(front[:times_size], self.samples)
        self._ends = np.frombuffer(front, "<u4", self.columns, times_size)
        self._checks = np.frombuffer(front, "<u2", self.columns, times_size + 4 * self.columns)
        self._read = read

    def column(self, index: int) -> Floats:
        """One series' values, as many as ``times``.

        Raises:
            CodecError: the column is damaged.
        """
        start = int(self._ends[index - 1]) if index else 0
        coded = self._read(self._body + start, self._body + int(self._ends[index]))
        if zlib.crc32(coded) & 0xFFFF != int(self._checks[index]):
            raise CodecError(f"column {index} of a chunk does not match its checksum")
        return decode_column(coded, self.samples)

    def matrix(self) -> Floats:
        """All values, samples x columns.

        Raises:
            CodecError: a column is damaged.
        """
        return stack([self.column(index) for index in range(self.columns)], self.samples)


def stack(columns: Sequence[Floats], samples: int) -> Floats:
    """Columns side by side: samples x columns."""
    values = np.empty((samples, len(columns)), np.float64)
    for index, column in enumerate(columns):
        values[:, index] = column
    return values


def merge(pieces: Sequence[tuple[Integers, Floats]]) -> tuple[Integers, Floats]:
    """Pieces joined in time order; where a time occurs twice, the value of the earlier piece stays. Values may have columns."""
    if len(pieces) == 1:
        return pieces[0]
    times = np.concatenate([piece[0] for piece in pieces])
    values = np.concatenate([piece[1] for piece in pieces])
    if (times[1:] > times[:-1]).all():
        return times, values
    order = np.argsort(times, kind="stable")
    times = times[order]
    keep = np.ones(len(times), np.bool_)
    keep[1:] = times[1:] != times[:-1]
    return times[keep], values[order[keep]]
