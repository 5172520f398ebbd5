from __future__ import annotations

import gzip
import socket
import socketserver
import ssl
import threading
import time
from email.utils import formatdate

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from connectors.core import http
from connectors.core.errors import AuthenticationError, ConfigError, RejectedError, TransportError
from connectors.core.http import parse_http_date
from connectors.core.proxies import proxy_for
from connectors.core.secret import Secret
from connectors.core.transport import USER_AGENT, Transport
from tests.fake_platform import FakePlatform, problem

BEARER = Secret("credential-x")


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


class RawServer:
    """Answers every connection with a script of bytes: one per request, or what a function does with the socket."""

    def __init__(self, *answers: bytes | None, close_after: bool = False) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0
        raw = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                raw.connections += 1
                while raw.answers:
                    data = b""
                    while b"\r\n\r\n" not in data:
                        piece = self.request.recv(65536)
                        if not piece:
                            return
                        data += piece
                    head, _, body = data.partition(b"\r\n\r\n")
                    wanted = next(
                        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
                    )
                    while len(body) < wanted:
                        body += self.request.recv(65536)
                    raw.requests.append(data)
                    answer = raw.answers.pop(0)
                    if answer is None:
                        return
                    self.request.sendall(answer)
                    if close_after:
                        return

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://localhost:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def raw():
    servers = []

    def start(*answers, **options):
        servers.append(RawServer(*answers, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def post(server, timeout=2.0, path="/v1/metrics", body=b"x"):
    transport = Transport(server.url, lambda: BEARER, timeout=timeout, environ={})
    try:
        return transport.post(path, body)
    finally:
        transport.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


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


# TLS.


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def server_context(authority, *names):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


@pytest.fixture
def tls_platform(authority):
    made = FakePlatform(context=server_context(authority, "localhost"))
    made.interfere = lambda *_: (200, {}, b"fine")
    yield made
    made.down()


@pytest.fixture
def ca_file(authority, tmp_path):
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.mark.sockets
def test_a_private_authority_is_trusted_when_named(tls_platform, ca_file):
    transport = Transport(tls_platform.url, lambda: BEARER, ca_file=ca_file, environ={})
    assert transport.post("/", b"x" * 5000).body == b"fine"
    assert transport.post("/", b"").body == b"fine"
    assert len(tls_platform.requests) == 2
    transport.close()


@pytest.mark.sockets
def test_an_unknown_authority_is_refused_and_says_how_to_trust_it(tls_platform):
    with pytest.raises(TransportError, match=r"certificate is not trusted: .*ca_file names a private CA"):
        Transport(tls_platform.url, lambda: BEARER, environ={}).post("/", b"")


@pytest.mark.sockets
def test_a_certificate_of_another_name_is_refused(authority, ca_file):
    platform = FakePlatform(context=server_context(authority, "elsewhere.example"))
    with pytest.raises(TransportError, match="not trusted: Hostname mismatch"):
        Transport(platform.url, lambda: BEARER, ca_file=ca_file, environ={}).post("/", b"")
    platform.down()


@pytest.mark.sockets
def test_the_systems_directory_is_enough_and_where_it_is_not_the_bundle_is_read(tls_platform, authority, tmp_path, monkeypatch):
    bundle, directory = tmp_path / "bundle.pem", tmp_path / "certs"
    directory.mkdir()
    authority.cert_pem.write_to_path(str(bundle))
    (directory / "0123abcd.0").write_text("")  # hashed, but our authority is not in it
    paths = ssl.get_default_verify_paths()._replace(capath=str(directory))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    loaded = []

    def load(context, purpose=ssl.Purpose.SERVER_AUTH):
        loaded.append(purpose)
        context.load_verify_locations(cafile=str(bundle))

    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", load)
    transport = Transport(tls_platform.url, lambda: BEARER, environ={})
    assert loaded == []
    assert transport.post("/", b"").body == b"fine"
    assert len(loaded) == 1
    transport.close()
    (directory / "0123abcd.0").unlink()
    Transport(tls_platform.url, lambda: BEARER, environ={}).close()
    assert len(loaded) == 2, "an empty directory is not relied upon"
    paths = paths._replace(capath=str(tmp_path / "missing"))
    Transport(tls_platform.url, lambda: BEARER, environ={}).close()
    assert len(loaded) == 3


def test_a_ca_file_that_cannot_be_read_is_a_configuration_error(tmp_path):
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    for name in (str(bad), str(tmp_path / "missing.pem")):
        with pytest.raises(ConfigError, match="ca_file") as caught:
            Transport("https://localhost", lambda: BEARER, ca_file=name, environ={})
        assert caught.value.field == "ca_file"


@pytest.mark.sockets
def test_plain_http_where_tls_was_expected_is_named(platform):
    with pytest.raises(TransportError, match="TLS failed"):
        Transport(platform.url.replace("http:", "https:"), lambda: BEARER, environ={}).post("/", b"")


# Proxies.


class Proxy:
    """A proxy that tunnels with CONNECT and forwards plain requests, and may ask for a password."""

    def __init__(self, password: str = "") -> None:
        self.lines: list[str] = []
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                data = b""
                while b"\r\n\r\n" not in data:
                    data += self.request.recv(65536)
                head = data.split(b"\r\n\r\n")[0].decode()
                line = head.split("\r\n")[0]
                proxy.lines.append(line)
                if password and f"Proxy-Authorization: Basic {password}" not in head:
                    self.request.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                    return
                if not line.startswith("CONNECT"):
                    self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nforwarded")
                    return
                port = int(line.split()[1].rsplit(":", 1)[1])
                with socket.create_connection(("127.0.0.1", port)) as upstream:
                    self.request.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    pumps = [threading.Thread(target=pump, args=pair) for pair in ((self.request, upstream), (upstream, self.request))]
                    for each in pumps:
                        each.start()
                    for each in pumps:
                        each.join()

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@pytest.mark.sockets
def test_tls_goes_through_the_proxys_tunnel_with_its_password(tls_platform, ca_file):
    proxy = Proxy("dXNlcjpwQHNz")
    transport = Transport(tls_platform.url, lambda: BEARER, ca_file=ca_file, environ={"HTTPS_PROXY": f"http://user:p%40ss@{proxy.address}"})
    assert transport.post("/", b"hello").body == b"fine"
    assert proxy.lines == [f"CONNECT localhost:{tls_platform.port} HTTP/1.1"]
    transport.close()
    with pytest.raises(TransportError, match="refuses the tunnel with 407"):
        Transport(tls_platform.url, lambda: BEARER, ca_file=ca_file, environ={"https_proxy": f"http://{proxy.address}"}).post("/", b"")
    proxy.stop()


@pytest.mark.sockets
def test_plain_http_is_forwarded_by_the_proxy_in_absolute_form():
    proxy = Proxy("dTpw")
    transport = Transport("http://platform.example:8000/base", lambda: BEARER, environ={"http_proxy": f"u:p@{proxy.address}"})
    assert transport.post("/v1/logs", b"").body == b"forwarded"
    assert proxy.lines == ["POST http://platform.example:8000/base/v1/logs HTTP/1.1"]
    transport.close()
    proxy.stop()


@pytest.mark.parametrize(
    ("url", "environ", "host"),
    [
        ("http://p.example", {}, None),
        ("http://p.example", {"HTTP_PROXY": "http://proxy:3128"}, "proxy"),
        ("https://p.example", {"HTTP_PROXY": "http://proxy:3128"}, None),
        ("https://p.example", {"ALL_PROXY": "proxy:3128"}, "proxy"),
        ("https://p.example", {"https_proxy": "http://lower", "HTTPS_PROXY": "http://upper"}, "lower"),
        ("https://p.example", {"HTTPS_PROXY": "http://proxy", "NO_PROXY": "example"}, None),
        ("https://p.example", {"HTTPS_PROXY": "http://proxy", "NO_PROXY": ".example"}, None),
        ("https://p.example", {"HTTPS_PROXY": "http://proxy", "NO_PROXY": "xample, other"}, "proxy"),
        ("https://p.example", {"HTTPS_PROXY": "http://proxy", "NO_PROXY": "*"}, None),
        ("https://p.example:8443", {"HTTPS_PROXY": "http://proxy", "NO_PROXY": "p.example:8443"}, None),
        ("https://p.example", {"HTTPS_PROXY": "http://proxy", "NO_PROXY": "p.example:8443"}, "proxy"),
        ("https://10.1.2.3", {"HTTPS_PROXY": "http://proxy", "NO_PROXY": "10.0.0.0/8"}, None),
        ("https://[::1]:8000", {"HTTPS_PROXY": "http://proxy", "NO_PROXY": "::1"}, None),
        ("https://10.1.2.3", {"HTTPS_PROXY": "http://proxy", "NO_PROXY": "example.com,10.1.2.4"}, "proxy"),
    ],
)
def test_the_proxy_is_found_as_other_programs_find_it(url, environ, host):
    proxy = proxy_for(url, environ)
    assert (proxy.host if proxy else None) == host


@pytest.mark.parametrize("value", ["https://proxy:3128", "socks5://proxy", "http://proxy:notaport", "http://"])
def test_a_proxy_of_another_kind_is_a_configuration_error(value):
    with pytest.raises(ConfigError, match="HTTPS_PROXY"):
        proxy_for("https://p.example", {"HTTPS_PROXY": value})


def test_a_proxys_password_does_not_show():
    assert "cGFzcw" not in repr(proxy_for("https://p.example", {"HTTPS_PROXY": "http://user:pass@proxy"}))


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
