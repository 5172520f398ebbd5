from __future__ import annotations

import gzip
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from connectors.core.errors import AuthenticationError, RejectedError, TransportError
from connectors.core.http import parse_http_date
from connectors.core.secret import Secret
from connectors.core.transport import USER_AGENT, Transport
from tests.fake_platform import FakePlatform, problem
from tests.transport_servers import BEARER


@pytest.fixture
def platform():
    made = FakePlatform()
    yield made
    made.down()


@pytest.fixture
def transport(platform):
    made = Transport(platform.url, lambda: BEARER, timeout=2, environ={})
    yield made
    made.close()


@pytest.mark.sockets
def test_requests_carry_the_bearer_and_large_bodies_are_compressed(platform, transport):
    got = []
    platform.interfere = lambda path, headers, body: got.append((path, headers, body)) or (200, {}, b"")
    transport.post("/v1/metrics", b"small")
    transport.post("/v1/logs", b"large" * 1000, "application/json")
    (path, headers, body), (_, large_headers, large_body) = got
    assert (path, body, headers["authorization"], headers["user-agent"]) == ("/v1/metrics", b"small", "Bearer credential-x", USER_AGENT)
    assert "content-encoding" not in headers
    assert (large_headers["content-encoding"], large_headers["content-type"]) == ("gzip", "application/json")
    assert gzip.decompress(large_body) == b"large" * 1000


@pytest.mark.sockets
def test_the_base_path_is_kept_and_a_rotated_bearer_is_used_at_once(platform):
    bearer = [Secret("one")]
    seen = []
    platform.interfere = lambda path, headers, body: seen.append((path, headers["authorization"])) or (200, {}, b"")
    transport = Transport(f"{platform.url}/base/path", lambda: bearer[0], environ={})
    transport.post("/v1/logs", b"")
    bearer[0] = Secret("two")
    transport.post("/v1/logs", b"")
    transport.close()
    assert seen == [("/base/path/v1/logs", "Bearer one"), ("/base/path/v1/logs", "Bearer two")]


@pytest.mark.sockets
def test_partial_success_gives_the_count_of_refused_items(platform, transport):
    answer = ExportMetricsServiceResponse()
    answer.partial_success.rejected_data_points = 3
    answer.partial_success.error_message = "bad"
    platform.interfere = lambda *_: (200, {}, answer.SerializeToString())
    assert transport.export_metrics(b"") == 3
    assert transport.export_logs(b"") == 3
    platform.interfere = lambda *_: (200, {}, b"")
    assert transport.export_metrics(b"") == 0


@pytest.mark.sockets
@pytest.mark.parametrize("code", ["token-unknown", "token-expired", "token-used-up", "token-revoked"])
def test_every_refusal_has_its_reason(platform, transport, code):
    platform.interfere = lambda *_: problem(401, code)
    with pytest.raises(AuthenticationError, match=f"it is {code}") as caught:
        transport.post("/v1/metrics", b"")
    assert (caught.value.refusal, caught.value.status, caught.value.retryable) == (code, 401, True)


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("status", "headers", "body", "refusal"),
    [
        (401, {"WWW-Authenticate": 'Bearer error="token-expired"'}, b"", "token-expired"),
        (401, {"Content-Type": "application/json"}, b"{not json", "unauthenticated"),
        (401, {"Content-Type": "application/json"}, b"[]", "unauthenticated"),
        (403, {}, b"", "forbidden"),
    ],
)
def test_refusals_without_a_problem_document_are_understood_too(platform, transport, status, headers, body, refusal):
    platform.interfere = lambda *_: (status, headers, body)
    with pytest.raises(AuthenticationError) as caught:
        transport.post("/v1/metrics", b"")
    assert (caught.value.refusal, caught.value.status) == (refusal, status)


@pytest.mark.sockets
@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_final_refusals_are_not_to_be_tried_again(platform, transport, status):
    platform.interfere = lambda *_: problem(status, "malformed-body")
    with pytest.raises(RejectedError, match="it is malformed-body") as caught:
        transport.export_metrics(b"x")
    assert (caught.value.status, caught.value.retryable) == (status, False)


@pytest.mark.sockets
@pytest.mark.parametrize("value", ["7", "7.0"])
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_passed_on(platform, transport, status, value):
    platform.interfere = lambda *_: problem(status, "overloaded", Retry_After=value)
    with pytest.raises(TransportError) as caught:
        transport.post("/v1/metrics", b"")
    assert (caught.value.retry_after, caught.value.status, caught.value.retryable) == (7.0, status, True)


@pytest.mark.sockets
def test_retry_after_may_be_a_date_and_nonsense_is_no_pause(platform, transport):
    platform.interfere = lambda *_: problem(503, "overloaded", Retry_After=formatdate(time.time() + 100, usegmt=True))
    with pytest.raises(TransportError) as caught:
        transport.post("/v1/metrics", b"")
    assert 95 < caught.value.retry_after <= 100
    platform.interfere = lambda *_: problem(502, "x", Retry_After="soon")
    with pytest.raises(TransportError) as caught:
        transport.post("/v1/metrics", b"")
    assert caught.value.retry_after is None


@pytest.mark.sockets
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_refused_with_the_place_they_point_to(platform, transport, status):
    other = []
    platform.interfere = lambda path, headers, body: other.append(path) or (status, {"Location": "https://evil.example/v1/metrics"}, b"")
    with pytest.raises(TransportError, match=r"redirects /v1/metrics to https://evil.example/v1/metrics") as caught:
        transport.post("/v1/metrics", b"")
    assert caught.value.status == status
    assert other == ["/v1/metrics"]


@pytest.mark.sockets
@pytest.mark.parametrize("ahead", [-7200.0, 0.0, 7200.0])
def test_the_platforms_date_gives_the_clock_skew(platform, ahead):
    platform.interfere = lambda *_: (200, {}, b"")
    transport = Transport(platform.url, lambda: BEARER, environ={}, clock=lambda: time.time() + ahead)
    assert transport.clock_skew is None
    transport.post("/", b"")
    assert transport.clock_skew == pytest.approx(ahead, abs=2)
    transport.close()


@pytest.mark.sockets
def test_an_answer_that_is_not_otlp_is_named(platform, transport):
    platform.interfere = lambda *_: (200, {"Content-Type": "text/html"}, b"<html>")
    with pytest.raises(TransportError, match="not the platform: text/html"):
        transport.export_metrics(b"")


@given(st.integers(0, 4_000_000_000))
def test_http_dates_are_read(at):
    assert parse_http_date(formatdate(at, usegmt=True)) == at


@pytest.mark.parametrize(
    "value", ["", "soon", "Sun, 06 Foo 1994 08:49:37 GMT", "Sun, 31 Feb 1994 08:49:37 GMT", "Sun, 06 Nov 1994 99:49:37 GMT"]
)
def test_what_is_no_http_date_is_none(value):
    assert parse_http_date(value) is None


def test_the_transport_needs_no_network_to_be_made():
    Transport("http://nowhere.invalid", lambda: BEARER, environ={}).close()
