"""The way through a proxy."""

from __future__ import annotations

import socket
import socketserver
import threading

import pytest
import trustme

from connectors.core.errors import ConfigError, TransportError
from connectors.core.proxies import proxy_for
from connectors.core.transport import Transport
from tests.fake_platform import FakePlatform
from tests.transport_servers import BEARER, server_context


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


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
