from __future__ import annotations

import asyncio
import gzip
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.asgi import BodyLimits, bearer, decompress, media_type, read_body, send_problem
from app.errors import (
    BodyTooLargeError,
    MalformedBodyError,
    OverloadedError,
    Problem,
    TokenExpiredError,
    UnauthenticatedError,
    UnsupportedMediaTypeError,
)

LIMITS = BodyLimits(max_body_bytes=10_000, max_decompressed_bytes=50_000, timeout=5)


def scope(**headers: str):
    return {
        "type": "http",
        "method": "POST",
        "path": "/",
        "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
    }


def receiver(*parts: bytes, complete: bool = True):
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    if complete:
        messages[-1]["more_body"] = False
    else:
        messages.append({"type": "http.disconnect"})
    left = iter(messages)

    async def receive():
        return next(left)

    return receive


async def test_a_body_in_one_piece_or_in_many_is_read_whole():
    assert await read_body(scope(), receiver(b"abc"), LIMITS) == b"abc"
    assert await read_body(scope(), receiver(b"a", b"", b"bc"), LIMITS) == b"abc"
    assert await read_body(scope(), receiver(b""), LIMITS) == b""


@pytest.mark.parametrize(
    ("encoding", "fold"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda data: zlib.compress(data, wbits=-15)),
        ("identity", bytes),
    ],
)
async def test_a_body_is_unfolded_by_its_content_encoding(encoding, fold):
    assert await read_body(scope(content_encoding=encoding), receiver(fold(b"abc" * 900)), LIMITS) == b"abc" * 900


async def test_a_gzip_body_of_several_members_is_joined():
    assert await read_body(scope(content_encoding="gzip"), receiver(gzip.compress(b"ab") + gzip.compress(b"c")), LIMITS) == b"abc"


async def test_an_empty_compressed_body_is_empty():
    assert await read_body(scope(content_encoding="gzip"), receiver(b""), LIMITS) == b""


async def test_a_large_compressed_body_is_unfolded_as_well():
    data = bytes(i * 7919 % 251 for i in range(200_000))
    noise = zlib.compress(data, 0)
    limits = BodyLimits(max_body_bytes=1_000_000, max_decompressed_bytes=1_000_000)
    assert await read_body(scope(content_encoding="deflate"), receiver(noise), limits) == data


async def test_a_body_that_says_it_is_too_long_is_refused_unread():
    async def receive():
        raise AssertionError("nothing is read")

    with pytest.raises(BodyTooLargeError):
        await read_body(scope(content_length="10001"), receive, LIMITS)


@pytest.mark.parametrize("parts", [(b"x" * 10_001,), (b"x" * 6_000, b"x" * 6_000, b"never read")])
async def test_a_body_that_is_too_long_is_refused_where_the_limit_is_passed(parts):
    with pytest.raises(BodyTooLargeError):
        await read_body(scope(), receiver(*parts), LIMITS)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_body_that_unfolds_to_more_than_the_limit_is_refused(encoding):
    fold = gzip.compress if encoding == "gzip" else zlib.compress
    bomb = fold(bytes(5_000_000))
    assert len(bomb) < LIMITS.max_body_bytes
    with pytest.raises(BodyTooLargeError):
        await read_body(scope(content_encoding=encoding), receiver(bomb), LIMITS)


def test_many_gzip_members_share_one_limit():
    with pytest.raises(BodyTooLargeError):
        decompress(gzip.compress(bytes(400)) * 3, "gzip", 1_000)
    assert len(decompress(gzip.compress(bytes(400)) * 3, "gzip", 1_200)) == 1_200


@pytest.mark.parametrize(
    "body",
    [b"not gzip", gzip.compress(b"abc")[:-3], gzip.compress(b"abc") + b"tail"],
    ids=["garbage", "cut", "trailing"],
)
async def test_damaged_compressed_data_are_malformed(body):
    with pytest.raises(MalformedBodyError):
        await read_body(scope(content_encoding="gzip"), receiver(body), LIMITS)


async def test_bytes_after_deflate_data_are_malformed():
    with pytest.raises(MalformedBodyError):
        await read_body(scope(content_encoding="deflate"), receiver(zlib.compress(b"abc") + b"tail"), LIMITS)


async def test_an_unknown_encoding_is_unsupported():
    with pytest.raises(UnsupportedMediaTypeError):
        await read_body(scope(content_encoding="br"), receiver(b"abc"), LIMITS)


async def test_a_client_that_goes_away_in_the_middle_leaves_a_malformed_body():
    with pytest.raises(MalformedBodyError):
        await read_body(scope(), receiver(b"abc", complete=False), LIMITS)


async def test_a_body_that_does_not_arrive_in_time_may_be_sent_again():
    async def receive():
        await asyncio.sleep(60)

    with pytest.raises(OverloadedError) as refused:
        await read_body(scope(), receive, BodyLimits(timeout=0.01))
    assert refused.value.retryable
    assert refused.value.retry_after


@given(st.binary(max_size=300), st.sampled_from(["gzip", "x-gzip", "deflate"]))
def test_arbitrary_bytes_unfold_or_are_refused(data, encoding):
    try:
        unfolded = decompress(data, encoding, 1_000)
    except (MalformedBodyError, BodyTooLargeError):
        return
    assert len(unfolded) <= 1_000


def test_the_bearer_token_is_taken_from_the_header():
    assert bearer(scope(authorization="Bearer abc")) == "abc"
    assert bearer(scope(authorization="bearer  abc ")) == "abc"


@pytest.mark.parametrize("headers", [{}, {"authorization": ""}, {"authorization": "Basic abc"}, {"authorization": "Bearer "}])
def test_a_request_without_bearer_token_is_not_authenticated(headers):
    with pytest.raises(UnauthenticatedError):
        bearer(scope(**headers))


def test_the_media_type_is_told_without_parameters():
    assert media_type(scope(content_type="Application/JSON; charset=utf-8")) == "application/json"
    assert media_type(scope()) == ""


async def test_an_error_is_answered_as_a_problem_document():
    sent = []

    async def send(message):
        sent.append(message)

    await send_problem(send, Problem.of(TokenExpiredError()))
    start, end = sent
    headers = dict(start["headers"])
    assert start["status"] == 401
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"www-authenticate"] == b'Bearer error="token-expired"'
    assert int(headers[b"content-length"]) == len(end["body"])
    assert json.loads(end["body"])["code"] == "token-expired"
