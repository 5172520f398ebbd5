"""Connections that are kept, broken, slow or endless, and how their answers are read."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from connectors.core import http
from connectors.core.errors import TransportError
from connectors.core.secret import Secret
from connectors.core.transport import Transport
from tests.fake_platform import FakePlatform
from tests.transport_servers import BEARER, OK, RawServer, post


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


@pytest.fixture
def raw():
    servers = []

    def start(*answers, **options):
        servers.append(RawServer(*answers, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.mark.sockets
def test_one_connection_is_kept_for_data_and_one_for_management(raw):
    server = raw(OK, OK, OK, OK)
    transport = Transport(server.url, lambda: BEARER, environ={})
    transport.post("/a", b"")
    transport.post("/b", b"")
    transport.opamp(b"message")
    transport.opamp(b"message", Secret("other"))
    assert server.connections == 2
    assert b"Bearer other" in server.requests[3]
    transport.close()


@pytest.mark.sockets
def test_a_stale_connection_is_replaced_once_without_the_caller_noticing(raw):
    server = raw(OK, OK, OK, close_after=True)
    transport = Transport(server.url, lambda: BEARER, environ={})
    for _ in range(3):
        assert transport.post("/a", b"body").body == b"ok"
        time.sleep(0.05)
    assert server.connections == 3
    transport.close()


@pytest.mark.sockets
def test_a_fresh_connection_that_ends_is_not_tried_again(raw):
    server = raw(None, OK)
    with pytest.raises(TransportError, match="ended before the answer was complete"):
        post(server)
    assert len(server.requests) == 1


@pytest.mark.sockets
def test_an_answer_that_breaks_off_on_a_kept_connection_is_not_sent_twice(raw):
    server = raw(OK, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", close_after=False)
    transport = Transport(server.url, lambda: BEARER, timeout=0.5, environ={})
    transport.post("/a", b"")
    with pytest.raises(TransportError):
        transport.post("/a", b"")
    assert len(server.requests) == 2
    transport.close()


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nTrailer: t\r\n\r\n",
            b"abc0123456789",
        ),
        (b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nto the end", b"to the end"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202\r\nContent-Length: 1\r\n\r\nz", b"z"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nq", b"q"),
    ],
)
def test_every_framing_of_an_answer_is_read(raw, answer, body):
    assert post(raw(answer, close_after=True)).body == body


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "not an HTTP server"),
        (b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n", "malformed header"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "malformed length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", "larger than"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "malformed chunk"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", "ended before"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000, "headers are too large"),
    ],
)
def test_answers_that_are_no_http_are_named(raw, answer, why):
    with pytest.raises(TransportError, match=why):
        post(raw(answer, close_after=True))


@pytest.mark.sockets
def test_an_endless_answer_is_cut_off(raw, monkeypatch):
    monkeypatch.setattr(http, "MAX_RESPONSE_BYTES", 1000)
    with pytest.raises(TransportError, match="larger than 1000 bytes"):
        post(raw(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 5000, close_after=True))
    with pytest.raises(TransportError, match="larger than 1000 bytes"):
        post(raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1F4\r\n" + b"x" * 500 + b"\r\n" + b"300\r\n" + b"x" * 768))


@pytest.mark.sockets
def test_a_server_that_does_not_answer_costs_one_timeout(raw):
    server = raw(b"", OK)
    begun = time.monotonic()
    with pytest.raises(TransportError, match=r"did not answer within 0\.3 s"):
        post(server, timeout=0.3)
    assert time.monotonic() - begun < 5


@pytest.mark.sockets
def test_a_server_that_drips_cannot_stretch_the_timeout(platform):
    def drip(connection):
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        try:
            for _ in range(200):
                connection.sendall(b"x")
                time.sleep(0.05)
        except OSError:
            pass
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: drip(listener.accept()[0]))
        thread.start()
        transport = Transport(f"http://127.0.0.1:{listener.getsockname()[1]}", lambda: BEARER, timeout=0.5, environ={})
        with pytest.raises(TransportError, match="did not answer within"):
            transport.post("/", b"")
        thread.join()


@pytest.mark.sockets
def test_a_heartbeat_does_not_wait_behind_a_slow_send(platform, transport):
    release = threading.Event()
    platform.credentials["credential-x"] = b"u" * 16
    platform.interfere = lambda path, headers, body: release.wait(5) and None if path == "/v1/metrics" else None
    sender = threading.Thread(target=lambda: transport.export_metrics(b""))
    sender.start()
    platform.wait(lambda: any(path == "/v1/metrics" for path, _, _ in platform.requests))
    transport.opamp(b"")
    assert sender.is_alive()
    release.set()
    sender.join()


@pytest.mark.sockets
def test_closing_wakes_a_call_under_way(platform):
    release = threading.Event()
    platform.interfere = lambda *_: release.wait(10) and (200, {}, b"")
    transport = Transport(platform.url, lambda: BEARER, timeout=30, environ={})
    failures = []

    def call():
        try:
            transport.post("/slow", b"")
        except TransportError as exc:
            failures.append(exc)

    thread = threading.Thread(target=call)
    thread.start()
    platform.wait(lambda: bool(platform.requests))
    transport.close()
    thread.join(5)
    assert len(failures) == 1
    release.set()


@pytest.mark.sockets
def test_after_the_last_deadline_nothing_is_tried(transport):
    transport.stop_by(time.monotonic() - 1)
    with pytest.raises(TransportError, match="did not answer"):
        transport.post("/", b"")


@pytest.mark.sockets
def test_nobody_listening_and_no_such_name_are_told_apart(free_port, monkeypatch):
    with pytest.raises(TransportError, match="nothing listens there"):
        Transport(f"http://127.0.0.1:{free_port}", lambda: BEARER, environ={}).post("/", b"")

    def unknown(*_args, **_kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(TransportError, match="cannot be resolved: Name or service not known"):
        Transport("http://nowhere.invalid", lambda: BEARER, environ={}).post("/", b"")
