from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app.telemetry.embedded.chunk import Chunk, encode_chunk, merge
from app.telemetry.embedded.codec import CodecError, decode_column, decode_times, encode_columns, encode_times, plan_decimals
from app.telemetry.embedded.rollup import HOUR_MS, Steps, coarsen, decode_steps, encode_steps, summarise

SPECIAL = np.array(
    [
        0x7FF0_0000_0000_0001,
        0x7FF8_0000_0000_0000,
        0xFFFF_FFFF_FFFF_FFFF,
        0x7FF0_0000_0000_0000,
        0xFFF0_0000_0000_0000,
        1 << 63,
        1,
        0xF_FFFF_FFFF_FFFF,
    ],
    np.uint64,
).view(np.float64)
samples = st.integers(1, 70)
any_floats = st.one_of(
    st.floats(),
    st.integers(-(2**53), 2**53).map(float),
    st.integers(-(10**6), 10**6).map(lambda n: n / 100),
    st.sampled_from(range(len(SPECIAL))).map(lambda i: SPECIAL[i]),
)


def survives(values: np.ndarray) -> None:
    for index, coded in enumerate(encode_columns(plan_decimals(values))):
        assert decode_column(coded, len(values)).tobytes() == np.ascontiguousarray(values[:, index]).tobytes()


def rolled(times: np.ndarray, values: np.ndarray) -> Steps:
    return summarise(times, values, plan_decimals(values).exponents)


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    rows, columns = draw(samples), draw(st.integers(1, 4))
    return np.stack([draw(hnp.arrays(np.uint64, rows)).view(np.float64) for _ in range(columns)], axis=1)


@settings(deadline=None)
@given(matrices())
def test_any_bit_patterns_survive(values: np.ndarray) -> None:
    survives(values)


@settings(deadline=None)
@given(st.lists(any_floats, min_size=1, max_size=200))
@example([0.0, -0.0, 0.0])
@example([2.0**53, 2.0**53 - 1, -(2.0**53)])
@example([5e-324, 0.1, 1e308])
@example([1.0] * 40 + [float("nan")] + [2.0] * 40)
@example([float("nan")] * 3 + [1.5] * 100)
def test_mixed_values_survive(values: list[float]) -> None:
    survives(np.array(values, np.float64).reshape(-1, 1))


@settings(deadline=None)
@given(st.integers(0, 2**53), st.lists(st.integers(0, 2**33), min_size=1, max_size=400), st.integers(0, 399))
def test_counters_with_resets_survive(start: int, steps: list[int], reset: int) -> None:
    values = start + np.cumsum(np.array(steps, np.int64))
    values[reset:] -= values[min(reset, len(values) - 1)]
    survives(values.astype(np.float64).reshape(-1, 1))


@settings(deadline=None)
@given(st.integers(0, 12), st.lists(st.integers(-(10**9), 10**9), min_size=1, max_size=400))
def test_decimals_survive(exponent: int, numbers: list[int]) -> None:
    survives((np.array(numbers) / 10.0**exponent).reshape(-1, 1))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_noise_of_every_width_survives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    survives(np.stack([rng.integers(0, 2**bits, 360).astype(np.float64) for bits in range(1, 54, 2)], axis=1))


@settings(deadline=None)
@given(st.lists(st.integers(0, 253_402_300_799_999), min_size=1, max_size=300, unique=True).map(sorted))
@example([0])
@example(list(range(0, 3_600_000, 10_000)))
def test_timestamps_survive(times: list[int]) -> None:
    assert decode_times(encode_times(np.array(times, np.int64)), len(times)).tolist() == times


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), samples)
def test_foreign_bytes_give_a_codec_error_or_values(coded: bytes, count: int) -> None:
    for decode in (decode_column, decode_times):
        try:
            assert len(decode(coded, count)) == count
        except CodecError:
            continue


def test_decimals_are_recognised_by_their_digits() -> None:
    values = np.array([[1.0, 0.1, 0.25, np.pi, 1e300], [2.0, 0.2, 0.5, np.e, 1.0]])
    assert plan_decimals(values).exponents.tolist() == [0, 1, 2, -1, -1]


def test_a_constant_column_takes_a_few_bytes_however_long() -> None:
    assert all(len(coded) < 8 for coded in encode_columns(plan_decimals(np.tile([0.0, 42.0, 99.9], (3600, 1)))))


def test_regular_timestamps_take_a_few_bytes() -> None:
    assert len(encode_times(np.arange(360) * 10_000 + 1_790_000_000_000)) < 16


def test_a_chunk_gives_back_each_column_and_reads_no_more_than_it_needs() -> None:
    times = np.arange(100) * 1000 + 5
    values = np.random.default_rng(1).normal(size=(100, 50)).round(3)
    coded = encode_chunk(times, plan_decimals(values))
    asked: list[int] = []

    def read(start: int, end: int) -> bytes:
        asked.append(end - start)
        return coded[start:end]

    chunk = Chunk(read)
    assert chunk.times.tolist() == times.tolist()
    assert chunk.column(7).tobytes() == values[:, 7].copy().tobytes()
    assert sum(asked) < len(coded) / 5
    assert Chunk(coded).matrix().tobytes() == values.tobytes()


@pytest.mark.parametrize("place", [0, 5, 9, 25, 40, -1])
def test_a_flipped_bit_in_a_chunk_is_noticed(place: int) -> None:
    coded = bytearray(encode_chunk(np.arange(20) * 1000, plan_decimals(np.random.default_rng(2).normal(size=(20, 3)))))
    coded[place] ^= 4
    with pytest.raises(CodecError):
        Chunk(bytes(coded)).matrix()


@pytest.mark.parametrize("size", [0, 10, 30])
def test_a_chunk_that_is_cut_off_is_noticed(size: int) -> None:
    with pytest.raises(CodecError):
        Chunk(encode_chunk(np.arange(20) * 1000, plan_decimals(np.ones((20, 3))))[:size])


def test_a_column_that_was_lost_says_so_instead_of_inventing_values() -> None:
    chunk = Chunk(encode_chunk(np.arange(3) * 1000, plan_decimals(np.ones((3, 2))), lost=frozenset({1})))
    assert chunk.column(0).tolist() == [1, 1, 1]
    with pytest.raises(CodecError):
        chunk.column(1)


def test_merging_keeps_the_earlier_pieces_value() -> None:
    pieces = [(np.array(t), np.array(v, np.float64)) for t, v in (([1, 5], [10, 50]), ([3], [30]), ([1, 3, 4], [0, 0, 40]))]
    times, values = merge(pieces)
    assert dict(zip(times.tolist(), values.tolist(), strict=True)) == {1: 10, 3: 30, 4: 40, 5: 50}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(any_floats, min_size=3, max_size=3), min_size=1, max_size=80), st.integers(1_000, 400_000))
def test_rollups_agree_with_plain_arithmetic_and_survive(rows: list[list[float]], step: int) -> None:
    values = np.array(rows, np.float64)
    times = np.arange(len(rows), dtype=np.int64) * step
    for steps, width in ((rolled(times, values), 300_000), (coarsen(rolled(times, values), HOUR_MS), HOUR_MS)):
        again = decode_steps(encode_steps(steps))
        for part in ("times", "minimum", "maximum", "sum", "last", "count"):
            assert np.ascontiguousarray(getattr(again, part)).tobytes() == np.ascontiguousarray(getattr(steps, part)).tobytes(), part
        for index, start in enumerate(steps.times.tolist()):
            for column in range(3):
                within = [
                    v
                    for t, v in zip(times.tolist(), values[:, column].tolist(), strict=True)
                    if start <= t < start + width and not np.isnan(v)
                ]
                assert steps.count[index, column] == len(within)
                if within:
                    assert (steps.minimum[index, column], steps.maximum[index, column]) == (min(within), max(within))
                    assert steps.last[index, column] == within[-1]


def test_sums_of_decimals_are_decimals() -> None:
    steps = rolled(np.arange(10) * 1000, np.full((10, 1), 0.1))
    assert steps.sum.tolist() == [[1.0]]


@pytest.mark.parametrize("coded", [b"", b"nonsense", encode_steps(rolled(np.arange(3), np.ones((3, 2))))[:-9]])
def test_a_damaged_rollup_is_noticed(coded: bytes) -> None:
    with pytest.raises(CodecError):
        decode_steps(coded)
