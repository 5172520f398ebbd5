"""Where the platform is, by what key it is asked, and what its refusals mean."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from command_process import Served

from app import cli
from app.commands import client as http
from app.commands import connection, output
from app.commands.output import CommandError


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    running = Served(tmp_path_factory.mktemp("platform") / "data")
    yield running
    assert running.stop()[0] == 0


@pytest.fixture
def signed_in(served: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    monkeypatch.setenv("IRCA_URL", served.url)
    monkeypatch.setenv("IRCA_API_KEY", served.key)
    return served


@pytest.mark.parametrize(
    ("option", "environ", "url"),
    [
        (None, {}, "http://localhost:8000"),
        (None, {"IRCA_PORT": "9000"}, "http://localhost:9000"),
        (None, {"IRCA_PUBLIC_URL": "https://p.example.com/"}, "https://p.example.com"),
        (None, {"IRCA_URL": "https://u.example.com", "IRCA_PUBLIC_URL": "https://p.example.com"}, "https://u.example.com"),
        ("https://o.example.com/base/", {"IRCA_URL": "https://u.example.com"}, "https://o.example.com/base"),
    ],
)
def test_the_platforms_url_is_found_by_precedence(option: str | None, environ: dict[str, str], url: str):
    assert connection.platform_url(option, environ) == url


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://x:port"])
def test_what_is_no_url_is_wrong_usage(url: str):
    with pytest.raises(CommandError) as caught:
        connection.platform_url(url, {})
    assert caught.value.exit_code == 2


def test_the_local_key_is_shown_to_this_machine_alone(tmp_path: Path):
    (tmp_path / connection.LOCAL_KEY_FILE).write_text("irca_local\n")
    environ = {"IRCA_DATA_DIR": str(tmp_path)}
    assert [
        connection.find_key(url, environ) for url in ("http://localhost:8000", "http://127.0.0.1:1", "http://[::1]:1", "http://a.localhost")
    ] == ["irca_local"] * 4
    assert connection.find_key("https://platform.example.com", environ) == ""
    assert connection.find_key("http://localhost:8000", {**environ, "IRCA_API_KEY": "irca_mine"}) == "irca_mine"
    assert connection.find_key("http://localhost:8000", {"IRCA_DATA_DIR": str(tmp_path / "none")}) == ""


@pytest.mark.sockets
def test_without_a_platform_the_error_says_how_to_start_one(capsys: pytest.CaptureFixture[str], free_port: int):
    assert cli.main(["agents", "list", "--url", f"http://127.0.0.1:{free_port}"]) == 1
    err = capsys.readouterr().err
    assert f"nothing answers at http://127.0.0.1:{free_port}" in err
    assert "incident-rca up" in err


@pytest.mark.sockets
@pytest.mark.parametrize("key", ["", "irca_wrong"])
def test_without_a_valid_key_the_error_says_how_to_get_one(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, key: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IRCA_API_KEY", key)
    assert cli.main(["agents", "list", "--url", served.url]) == 1
    err = capsys.readouterr().err
    assert "unauthenticated" in err
    assert "IRCA_API_KEY" in err


class Stranger:
    """A server that is no platform."""

    def __init__(self, status: int, body: bytes, pause: float = 0) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                time.sleep(pause)
                with contextlib.suppress(OSError):
                    if status == 0:
                        self.wfile.write(b"SSH-2.0\r\n")
                        return
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"<html>", "is not an incident-rca platform"),
        (404, b"nothing here", "answers 404, but not as an incident-rca platform"),
        (500, b"[]", "answers 500"),
        (0, b"", "no answer from"),
    ],
)
def test_another_server_is_not_taken_for_the_platform(status: int, body: bytes, words: str, capsys: pytest.CaptureFixture[str]):
    with contextlib.closing(Stranger(status, body)) as stranger:
        assert cli.main(["agents", "list", "--url", stranger.url]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.sockets
def test_a_platform_that_does_not_answer_in_time_is_told_so():
    with (
        contextlib.closing(Stranger(200, b"{}", pause=0.5)) as slow,
        http.PlatformClient(slow.url, "", timeout=0.1) as client,
        pytest.raises(CommandError, match="did not answer in time"),
    ):
        client.get("/api/v1/agents")


@pytest.mark.sockets
def test_this_machine_is_reached_past_any_proxy(signed_in: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert cli.main(["types"]) == 0


def test_a_refusal_shows_its_fields_and_no_terminal_controls(capsys: pytest.CaptureFixture[str]):
    problem = {
        "code": "invalid-config",
        "detail": "no\x1b[2J good",
        "errors": [{"field": "config.replicas", "message": "must be at least 1"}],
    }
    output.report(http.explain(422, problem, "http://x"))
    assert capsys.readouterr().err == "incident-rca: no [2J good (invalid-config)\n  config.replicas: must be at least 1\n"
