"""The way to the platform through a proxy."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from preflight_platform import FakePlatform, certified_platforms, outcomes, target

from connectors.core.preflight import Outcome, as_text


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    with contextlib.closing(FakePlatform()) as fake:
        yield fake


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_platform(authority: trustme.CA) -> Iterator[Callable[..., FakePlatform]]:
    with certified_platforms(authority) as start:
        yield start


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


class Proxy:
    """A forward proxy that notes what it was asked and serves one upstream for every name."""

    def __init__(self, upstream_port: int, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> None:
        self.heads: list[bytes] = []
        self._upstream_port, self._answer = upstream_port, answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                part = connection.recv(4096)
                if not part:
                    return
                head += part
            self.heads.append(head)
            if head.startswith(b"CONNECT"):
                connection.sendall(self._answer)
                if b" 200 " not in self._answer:
                    return
            with socket.create_connection(("127.0.0.1", self._upstream_port)) as upstream:
                if not head.startswith(b"CONNECT"):
                    method, url, rest = head.split(b" ", 2)
                    upstream.sendall(
                        b" ".join((method, b"/" + url.split(b"/", 3)[3], rest.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)))
                    )
                back = threading.Thread(target=self._pump, args=(upstream, connection))
                back.start()
                self._pump(connection, upstream)
                back.join()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


@pytest.mark.sockets
def test_http_goes_through_the_proxy_with_its_credentials_and_never_shows_them(platform: FakePlatform, tmp_path: Path):
    with contextlib.closing(Proxy(platform.port)) as proxy:
        environ = {"HTTP_PROXY": f"http://me:hush%40@127.0.0.1:{proxy.port}"}
        results = outcomes(target("http://platform.internal:8000", tmp_path, environ=environ))
    assert {r.outcome for r in results.values()} == {Outcome.PASS}
    assert proxy.heads[0].startswith(b"GET http://platform.internal:8000/healthz ")
    assert b"Proxy-Authorization: Basic bWU6aHVzaEA=" in proxy.heads[0]
    assert "the proxy for platform.internal" in results["dns"].detail
    assert "hush" not in as_text(results.values())


@pytest.mark.sockets
def test_https_goes_through_the_proxy_in_a_tunnel(tls_platform: Callable[..., FakePlatform], tmp_path: Path, ca_file: str):
    fake = tls_platform("platform.internal")
    with contextlib.closing(Proxy(fake.port)) as proxy:
        environ = {"https_proxy": f"http://127.0.0.1:{proxy.port}"}
        results = outcomes(target("https://platform.internal", tmp_path, environ=environ, ca_file=ca_file))
    assert {r.outcome for r in results.values()} == {Outcome.PASS}
    assert proxy.heads[0].startswith(b"CONNECT platform.internal:443 ")


@pytest.mark.sockets
def test_a_proxy_that_refuses_the_tunnel_is_named(tmp_path: Path):
    with contextlib.closing(Proxy(1, b"HTTP/1.1 403 Forbidden\r\n\r\n")) as proxy:
        environ = {"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}"}
        result = outcomes(target("https://platform.internal", tmp_path, environ=environ))["tls"]
    assert result.outcome is Outcome.FAIL
    assert f"through the proxy http://127.0.0.1:{proxy.port}" in result.detail
    assert "CONNECT" in result.advice


@pytest.mark.sockets
def test_no_proxy_leads_straight_there(platform: FakePlatform, tmp_path: Path):
    environ = {"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1"}
    assert outcomes(target(f"http://127.0.0.1:{platform.port}", tmp_path, environ=environ))["http"].outcome is Outcome.PASS


def test_a_proxy_setting_that_cannot_be_used_fails_the_first_check(tmp_path: Path):
    results = outcomes(target("http://platform.internal", tmp_path, environ={"ALL_PROXY": "socks5://127.0.0.1:1080"}))
    assert results["dns"].outcome is Outcome.FAIL
    assert "ALL_PROXY" in results["dns"].advice


@pytest.mark.sockets
def test_a_proxy_where_nothing_listens_is_told_apart_from_the_platform(tmp_path: Path, free_port: int):
    result = outcomes(target("http://platform.internal", tmp_path, environ={"HTTP_PROXY": f"127.0.0.1:{free_port}"}))["tcp"]
    assert result.detail == f"127.0.0.1:{free_port} (the proxy) refuses connections"
    assert "proxy setting" in result.advice
