"""The lossless column codec: float64 columns of one sealed hour to bytes and back, bit for bit.

Each column is coded by itself, so that one series can be read without its neighbours:

1. Decimal scaling: the smallest ``e`` with ``value == integer / 10**e`` for all values. A few values that do not fit (NaN with any
   payload, infinities, -0.0) travel as exceptions; a column where most do not fit keeps its bit patterns instead.
2. Differences of order 0, 1 or 2, whichever looks cheapest, less their median; trailing zero bits that all share are dropped.
3. Zigzag, then either Rice coding (quotients in unary, remainders in fixed bits: what noise wants) or byte planes deflated
   (what patterns want), whichever is shorter.

Planning is vectorised over all columns of a chunk; only the last step runs per column.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Unsigned = npt.NDArray[np.uint64]
Booleans = npt.NDArray[np.bool_]

MAX_EXPONENT = 9
_LIMIT = float(2**53)
_PROBE = 24
_POSITIVE = np.int64(2**63 - 1)
_MAX_REMAINDER_BITS = 40
_DEFLATE_FROM = 24  # bytes below which deflate cannot win against its own header
_REPETITIVE, _NOISE_BITS = 0.3, 2.5  # below both, deflate has nothing to find: measured, it would only cost time
_LEVEL, _WINDOW, _MEMORY = 6, -12, 6

_INTEGERS, _BITS = 0, 1  # what the coded integers stand for: scaled decimals, or the patterns of the floats
_CONSTANT, _RICE, _PLANES, _DEFLATED = 0, 1, 2, 3


class CodecError(ValueError):
    """The bytes are no column of this codec, or were damaged."""


def encode_columns(plan: DecimalPlan) -> list[bytes]:
    """Code the matrix that was planned with :func:`plan_decimals` into one byte string for each column; at least one sample."""
    columns = plan.columns
    integers = plan.integers
    for column in np.flatnonzero(plan.exponents < 0).tolist():
        integers[column] = columns[column].view(np.int64)
    bodies = encode_integers(integers)
    coded: list[bytes] = []
    for column, body in enumerate(bodies):
        exponent = int(plan.exponents[column])
        if exponent < 0:
            coded.append(bytes([_BITS << 4]) + body)
            continue
        head = bytearray([_INTEGERS << 4 | exponent])
        wrong = np.flatnonzero(~plan.exact[column]) if not plan.all_exact[column] else None
        _put_varint(head, 0 if wrong is None else len(wrong))
        if wrong is not None:
            head += wrong.astype("<u4").tobytes() + columns[column][wrong].tobytes()
        coded.append(bytes(head) + body)
    return coded


def decode_column(coded: bytes | memoryview, samples: int) -> Floats:
    """The column that :func:`encode_columns` coded.

    Raises:
        CodecError: the bytes cannot be such a column.
    """
    try:
        view = bytes(coded)
        if view[0] >> 4 == _BITS:
            return _decode_integers(view, 1, samples).view(np.float64)
        exponent = view[0] & 0x0F
        exceptions, at = _get_varint(view, 1)
        positions = np.frombuffer(view, "<u4", exceptions, at)
        at += 4 * exceptions
        patterns = np.frombuffer(view, "<i8", exceptions, at)
        values = _decode_integers(view, at + 8 * exceptions, samples).astype(np.float64)
        if exponent:
            values /= 10.0**exponent
        if exceptions:
            values.view(np.int64)[positions] = patterns
    except (IndexError, ValueError, zlib.error) as error:
        raise CodecError(f"damaged column: {error}") from error
    return values


def encode_times(times: Integers) -> bytes:
    """Code timestamps (ascending milliseconds, at least one)."""
    return encode_integers(times.reshape(1, -1))[0]


def decode_times(coded: bytes | memoryview, samples: int) -> Integers:
    """The timestamps that :func:`encode_times` coded.

    Raises:
        CodecError: the bytes cannot be such timestamps.
    """
    try:
        return _decode_integers(bytes(coded), 0, samples)
    except (IndexError, ValueError, zlib.error) as error:
        raise CodecError(f"damaged timestamps: {error}") from error


@dataclass(frozen=True, slots=True)
class DecimalPlan:
    """Columns as scaled decimals: ``integers / 10**exponents``; exponent -1 where that does not hold for enough of a column."""

    columns: Floats
    exponents: npt.NDArray[np.int8]
    integers: Integers
    exact: Booleans
    all_exact: Booleans


def plan_decimals(values: Floats) -> DecimalPlan:
    """Find each column's decimal exponent; ``values`` is samples x columns, the plan is columns x samples."""
    columns = np.ascontiguousarray(values.T)
    count, samples = columns.shape
    exponents = np.full(count, -1, np.int8)
    integers = np.zeros((count, samples), np.int64)
    exact = np.zeros((count, samples), np.bool_)
    fewest = np.full(count, samples // 16 + 1, np.int64)  # more exceptions than this cost more than bit patterns do
    open_still = np.ones(count, np.bool_)
    undecided = np.arange(count)
    probe = columns[:, :: max(1, samples // _PROBE)]
    with np.errstate(invalid="ignore", over="ignore"):
        for exponent in range(MAX_EXPONENT + 1):
            if not undecided.size:
                break
            _, fits = _scaled(probe[undecided], exponent)
            promising = undecided[fits.sum(axis=1) * 4 >= fits.shape[1] * 3]
            if not promising.size:
                continue
            candidate, fits = _scaled(columns[promising], exponent)
            wrong = samples - fits.sum(axis=1)
            better = wrong < fewest[promising]
            chosen = promising[better]
            integers[chosen], exact[chosen] = candidate[better], fits[better]
            fewest[chosen], exponents[chosen] = wrong[better], exponent
            open_still[promising[wrong == 0]] = False
            undecided = np.flatnonzero(open_still)
    all_exact: Booleans = exact.min(axis=1)
    for column in np.flatnonzero((exponents >= 0) & ~all_exact):
        _fill_forward(integers[column], exact[column])
    return DecimalPlan(columns, exponents, integers, exact, all_exact)


def _scaled(columns: Floats, exponent: int) -> tuple[Integers, Booleans]:
    """Columns times 10**exponent as integers, and where dividing again gives the very same bits."""
    scaled = np.rint(columns * 10.0**exponent)
    small = np.abs(scaled) < _LIMIT
    integers = np.where(small, scaled, 0.0).astype(np.int64)
    back = integers.astype(np.float64)
    if exponent:
        back /= 10.0**exponent
    return integers, small & (back.view(np.int64) == columns.view(np.int64))


def _fill_forward(integers: Integers, exact: Booleans) -> None:
    """Put the last exact value in place of each exception, so that differences there are small."""
    source = np.where(exact, np.arange(len(integers)), 0)
    np.maximum.accumulate(source, out=source)
    first = int(np.argmax(exact))
    source[:first] = first
    integers[:] = integers[source]


def encode_integers(integers: Integers) -> list[bytes]:
    """Code rows of int64 (columns x samples); differences wrap around, so any pattern survives."""
    count, samples = integers.shape
    first = integers[:, 0].copy()
    with np.errstate(over="ignore"):
        rest = integers - first[:, None]
        shared = np.bitwise_or.reduce(rest, axis=1)
        shifts = _trailing_zeros(shared)
        rest >>= shifts[:, None]
        step = rest[:, 1:] - rest[:, :-1]
        candidates = [rest[:, 1:], step]
        if samples > 4:  # noqa: PLR2004 - a second difference of fewer is mostly header
            candidates.append(step[:, 1:] - step[:, :-1])
        centres = [
            np.partition(c, c.shape[1] // 2, axis=1)[:, c.shape[1] // 2] if c.shape[1] else np.zeros(count, np.int64) for c in candidates
        ]
        zigzagged = [_zigzag(c - centre[:, None]) for c, centre in zip(candidates, centres, strict=True)]
    costs = np.stack([np.log2(z.astype(np.float64) + 1.0).sum(axis=1) for z in zigzagged])
    orders = costs.argmin(axis=0)
    coded: list[bytes] = [b""] * count
    for order, (centre, zigzag) in enumerate(zip(centres, zigzagged, strict=True)):
        members = np.flatnonzero((orders == order) & (shared != 0))
        if not members.size:
            continue
        if order == 1:
            flat = zigzag[members].max(axis=1) == 0
            for member in members[flat]:
                head = bytearray([_CONSTANT << 6 | order << 4, int(shifts[member])])
                _put_varint(head, _zigzag_one(int(first[member])))
                _put_varint(head, _zigzag_one(int(centre[member])))
                coded[member] = bytes(head)
            members = members[~flat]
        bodies = _encode_residuals(zigzag[members])
        for member, (kind, parameter, body) in zip(members, bodies, strict=True):
            head = bytearray([kind << 6 | order << 4, parameter, int(shifts[member])])
            _put_varint(head, _zigzag_one(int(first[member])))
            _put_varint(head, _zigzag_one(int(centre[member])))
            if order == 2:  # noqa: PLR2004 - the order of the differences
                _put_varint(head, _zigzag_one(int(step[member, 0])))
            coded[member] = bytes(head) + body
    for member in np.flatnonzero(shared == 0):
        head = bytearray([_CONSTANT << 6])
        _put_varint(head, _zigzag_one(int(first[member])))
        coded[member] = bytes(head)
    return coded


def _decode_integers(coded: bytes, at: int, samples: int) -> Integers:
    kind, order = coded[at] >> 6, coded[at] >> 4 & 0x03
    if kind == _CONSTANT:
        return _decode_line(coded, at, samples, order)
    parameter, shift = coded[at + 1], coded[at + 2]
    first, at = _get_varint(coded, at + 3)
    centre, at = _get_varint(coded, at)
    step = 0
    if order == 2:  # noqa: PLR2004 - the order of the differences
        step, at = _get_varint(coded, at)
    count = samples - max(order, 1)
    zigzag = _decode_rice(coded, at, count, parameter) if kind == _RICE else _decode_planes(coded, at, count, parameter, kind == _DEFLATED)
    residuals = (zigzag >> 1) & _POSITIVE  # the sign bit would be shifted along
    residuals ^= -(zigzag & 1)
    if centre:
        residuals += _unzigzag_one(centre)
    result = np.empty(samples, np.int64)
    result[0] = 0
    if order == 0:
        result[1:] = residuals
    elif order == 1:
        residuals.cumsum(out=result[1:])
    else:
        result[1] = _unzigzag_one(step)
        result[2:] = residuals
        rest = result[1:]
        rest.cumsum(out=rest)
        rest.cumsum(out=rest)
    if shift:
        result <<= shift
    if first:
        result += _unzigzag_one(first)
    return result


def _decode_line(coded: bytes, at: int, samples: int, order: int) -> Integers:
    """A constant (order 0) or a steady rise (order 1)."""
    if order == 0:
        return np.full(samples, _unzigzag_one(_get_varint(coded, at + 1)[0]), np.int64)
    shift = coded[at + 1]
    first, at = _get_varint(coded, at + 2)
    step, _ = _get_varint(coded, at)
    result = np.arange(samples, dtype=np.int64)
    result *= _unzigzag_one(step)
    result <<= shift
    result += _unzigzag_one(first)
    return result


def _encode_residuals(zigzag: Unsigned) -> list[tuple[int, int, bytes]]:
    """Code rows of small unsigned integers: ``(kind, parameter, body)`` for each, the shorter of Rice and planes."""
    count, samples = zigzag.shape
    bits, rice_bytes = _rice_parameters(zigzag)
    widths = np.clip((_bit_lengths(zigzag.max(axis=1)) + 7) // 8, 1, 8)
    planes = np.ascontiguousarray(zigzag.view(np.uint8).reshape(count, samples, 8).transpose(0, 2, 1))
    quotients = (zigzag >> bits[:, None].astype(np.uint64)).view(np.int64)
    repeats = (zigzag[:, 1:] == zigzag[:, :-1]).mean(axis=1) if samples > 1 else np.zeros(count)
    noisy = (repeats < _REPETITIVE) & (rice_bytes * 8 < np.log2(zigzag.astype(np.float64) + 1.0).sum(axis=1) + _NOISE_BITS * samples)
    coded: list[tuple[int, int, bytes]] = []
    for row in range(count):
        width, rice = int(widths[row]), float(rice_bytes[row])
        body = planes[row, :width].tobytes()
        kind = _PLANES
        if len(body) >= _DEFLATE_FROM and not noisy[row]:
            deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW, _MEMORY)
            deflated = deflate.compress(body) + deflate.flush()
            if len(deflated) < len(body):
                kind, body = _DEFLATED, deflated
        if rice < len(body):
            coded.append((_RICE, int(bits[row]), _encode_rice(zigzag[row], quotients[row], int(bits[row]))))
        else:
            coded.append((kind, width, body))
    return coded


def _rice_parameters(zigzag: Unsigned) -> tuple[Integers, Floats]:
    """The best number of remainder bits for each row, and the bytes that Rice coding with it takes."""
    samples = zigzag.shape[1]
    guess = _bit_lengths(zigzag.mean(axis=1, dtype=np.float64).astype(np.uint64)) if samples else np.zeros(len(zigzag), np.int64)
    best_bits = np.zeros(len(zigzag), np.int64)
    best = np.full(len(zigzag), np.inf)
    for offset in (-2, -1, 0):
        bits = np.clip(guess + offset, 0, _MAX_REMAINDER_BITS)
        unary = (zigzag >> bits[:, None].astype(np.uint64)).sum(axis=1, dtype=np.float64) + samples
        size = np.ceil(unary / 8) + np.ceil(samples * bits / 8)
        better = size < best
        best_bits[better], best[better] = bits[better], size[better]
    return best_bits, best


def _encode_rice(zigzag: Unsigned, quotients: Integers, bits: int) -> bytes:
    ends = np.cumsum(quotients + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1, np.uint8)
    unary[ends] = 1
    if not bits:
        return np.packbits(unary).tobytes()
    low = zigzag.astype(">u8").view(np.uint8).reshape(-1, 8)
    remainder = np.unpackbits(low, axis=1)[:, 64 - bits :] if bits > 8 else np.unpackbits(low[:, 7:], axis=1)[:, 8 - bits :]  # noqa: PLR2004 - bits of a byte
    return np.packbits(remainder).tobytes() + np.packbits(unary).tobytes()


def _decode_rice(coded: bytes, at: int, count: int, bits: int) -> Integers:
    packed = np.frombuffer(coded, np.uint8, offset=at)
    low = (count * bits + 7) // 8
    ends = np.unpackbits(packed[low:]).nonzero()[0]
    if len(ends) != count:
        raise CodecError(f"{len(ends)} values where {count} were expected")
    quotients = ends.astype(np.int64)
    quotients[1:] -= ends[:-1]
    quotients[1:] -= 1
    if not bits:
        return quotients
    remainders = np.unpackbits(packed[:low], count=count * bits).reshape(count, bits)
    if bits <= 8:  # noqa: PLR2004 - bits of a byte
        short = np.packbits(remainders, axis=1)[:, 0] >> (8 - bits)
        quotients <<= bits
        quotients |= short
        return quotients
    width = 2 if bits <= 16 else 4 if bits <= 32 else 8  # noqa: PLR2004 - bits of the unsigned types
    padded = np.zeros((count, 8 * width), np.uint8)
    padded[:, 8 * width - bits :] = remainders
    quotients <<= bits
    quotients |= np.packbits(padded, axis=1).view(f">u{width}").reshape(count).astype(np.int64)
    return quotients


def _decode_planes(coded: bytes, at: int, count: int, width: int, deflated: bool) -> Integers:
    raw = zlib.decompress(coded[at:], wbits=_WINDOW, bufsize=max(1, count * width)) if deflated else coded[at:]
    if len(raw) != count * width or width > 8:  # noqa: PLR2004 - bytes of an int64
        raise CodecError(f"{len(raw)} bytes where {count * width} were expected")
    if width == 1:
        return np.frombuffer(raw, np.uint8).astype(np.int64)
    wide = np.zeros((count, 8), np.uint8)
    wide[:, :width] = np.frombuffer(raw, np.uint8).reshape(width, count).T
    return wide.view("<i8").reshape(count)


def _zigzag(values: Integers) -> Unsigned:
    return ((values << 1) ^ (values >> 63)).view(np.uint64)


def _bit_lengths(values: Unsigned) -> Integers:
    """Bits that each value needs; exact, or one too many just below a power of two beyond 2**53."""
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def _trailing_zeros(values: Integers) -> Integers:
    """Trailing zero bits of each value; 0 for 0."""
    lowest = (values & -values).view(np.uint64)
    return np.maximum(_bit_lengths(lowest) - 1, 0)


def _zigzag_one(value: int) -> int:
    return (value << 1 ^ value >> 63) & 0xFFFF_FFFF_FFFF_FFFF


def _unzigzag_one(value: int) -> int:
    return value >> 1 ^ -(value & 1)


def _put_varint(target: bytearray, value: int) -> None:
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        target.append(value & 0x7F | 0x80)
        value >>= 7
    target.append(value)


def _get_varint(source: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = source[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:  # noqa: PLR2004 - the continuation bit
            return value, at
        shift += 7
        if shift > 63:  # noqa: PLR2004 - bits of an int64
            raise CodecError("a number is too long")
