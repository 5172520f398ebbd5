from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cursors import decode_cursor, encode_cursor
from app.errors import InvalidRequestError

WHOLE = st.integers(-(2**63) + 1, 2**63 - 1)


@given(WHOLE, st.floats(allow_nan=False, allow_infinity=False), st.text(), st.datetimes(timezones=st.just(UTC)))
def test_a_position_comes_back_as_it_was(number: int, fraction: float, text: str, moment: datetime) -> None:
    cursor = encode_cursor(number, fraction, moment, text)
    assert decode_cursor(cursor, int, float, datetime, str) == (number, fraction, moment, text)
    assert cursor.isascii()
    assert not set(cursor) & set("+/= ")


def test_no_cursor_is_no_position() -> None:
    assert decode_cursor(None, int, str) is None


@given(st.one_of(st.text(), st.binary().map(lambda raw: raw.decode("latin-1"))))
def test_a_text_that_is_no_cursor_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        decode_cursor(text, int, str)
    assert [error.field for error in refused.value.errors] == ["cursor"]


@pytest.mark.parametrize(
    ("key", "kinds"),
    [
        ((1, "x"), (str, str)),
        (("x",), (str, str)),
        ((True, "x"), (int, str)),
        ((2**63, "x"), (int, str)),
        ((float("inf"), "x"), (float, str)),
        (("soon", "x"), (datetime, str)),
    ],
)
def test_a_cursor_of_another_list_or_out_of_range_is_refused(key: tuple, kinds: tuple) -> None:
    with pytest.raises(InvalidRequestError, match="cursor"):
        decode_cursor(encode_cursor(*key), *kinds)
