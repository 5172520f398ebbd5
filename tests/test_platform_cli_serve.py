"""``serve``: how it starts, what it says when it cannot, and how it stops."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import trustme
from command_process import COMMAND, Served, environment

from app import cli
from app.commands import setup


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    running = Served(tmp_path_factory.mktemp("platform") / "data")
    yield running
    assert running.stop()[0] == 0


@pytest.mark.sockets
def test_the_first_key_is_shown_once_and_both_signals_stop_in_order(tmp_path: Path):
    first = Served(tmp_path / "data")
    assert first.lines[0] == f"incident-rca is ready at {first.url}"
    assert first.key.startswith("irca_")
    assert "shown only now" in first.lines[1]
    assert first.stop(signal.SIGTERM)[:2] == (0, "The platform has stopped.\n")
    second = Served(tmp_path / "data")
    assert second.key == ""
    assert "api-keys create" in second.lines[1]
    code, out, err = second.stop(signal.SIGINT)
    assert (code, out) == (0, "The platform has stopped.\n")
    assert "Traceback" not in err


@pytest.mark.sockets
def test_a_port_in_use_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--data-dir", str(tmp_path), "--port", str(port)]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"incident-rca: 127.0.0.1:{port} is in use"
    assert "IRCA_PORT" in lines[1]


@pytest.mark.sockets
@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid"])
def test_an_address_that_is_not_this_machines_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], host: str):
    assert cli.main(["serve", "--data-dir", str(tmp_path), "--host", host, "--port", "0"]) == 3
    assert f"cannot listen on {host}:0" in capsys.readouterr().err


def test_no_permission_for_the_port_says_which_ports_need_none():
    error = setup._explain_bind(PermissionError(13, "Permission denied"), "0.0.0.0:80")
    assert (error.exit_code, error.message) == (3, "no permission to listen on 0.0.0.0:80")
    assert "1023" in error.hint


def test_a_data_directory_that_cannot_be_written_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "data").write_text("a file")
    assert cli.main(["serve", "--data-dir", str(tmp_path / "data")]) == 3
    assert "data directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"IRCA_PORT": "eighty"}, "IRCA_PORT: "),
        ({"IRCA_PORT": "70000"}, "IRCA_PORT: "),
        ({"IRCA_LOG_LEVEL": "loud"}, "IRCA_LOG_LEVEL: "),
        ({"IRCA_TRUSTED_PROXIES": "the-proxy"}, "IRCA_TRUSTED_PROXIES: "),
        ({"IRCA_TLS_CERTIFICATE": "cert.pem"}, "belong together"),
    ],
)
def test_a_bad_setting_is_named_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, variables: dict[str, str], words: str
):
    for name, value in {"IRCA_DATA_DIR": str(tmp_path), **variables}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["serve"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("variables", "prepare", "words"),
    [
        ({}, lambda data: (data / "state.db").write_bytes(b"not a database" * 100), "the platform cannot start"),
        ({"IRCA_ADMIN_API_KEY": "short"}, lambda data: None, "IRCA_ADMIN_API_KEY must have at least 20 characters"),
        (
            {"IRCA_TLS_CERTIFICATE": "/no/cert", "IRCA_TLS_KEY": "/no/key"},
            lambda data: None,
            "IRCA_TLS_CERTIFICATE and IRCA_TLS_KEY cannot be used",
        ),
    ],
)
def test_what_fails_while_starting_is_one_line_without_a_traceback(tmp_path: Path, variables: dict[str, str], prepare: object, words: str):
    prepare(tmp_path)
    done = subprocess.run(
        [*COMMAND, "serve"],
        env=environment(tmp_path, IRCA_LOG_LEVEL="error", **variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.sockets
def test_a_second_platform_on_the_same_directory_is_refused(served: Served):
    done = subprocess.run([*COMMAND, "serve"], env=environment(served.data_dir), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "another platform is running" in done.stderr


@pytest.mark.sockets
def test_tls_by_settings_serves_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    for number, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(str(tmp_path / "cert.pem"), append=bool(number))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    running = Served(tmp_path / "data", IRCA_TLS_CERTIFICATE=str(tmp_path / "cert.pem"), IRCA_TLS_KEY=str(tmp_path / "key.pem"))
    try:
        assert running.url.startswith("https://localhost:")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        monkeypatch.setenv("IRCA_API_KEY", running.key)
        assert cli.main(["types", "--url", running.url]) == 0
        assert "server" in capsys.readouterr().out
    finally:
        running.stop()


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("trusted", "seen"),
    [
        (None, "203.0.113.9"),
        ("127.0.0.0/8 203.0.113.9", "198.51.100.7"),
        ("", "127.0.0.1"),
        ("10.0.0.5", "127.0.0.1"),
    ],
    ids=["this machine's by default", "a chain of them", "nobody", "another's"],
)
def test_only_a_trusted_proxy_is_believed_whom_it_speaks_for(tmp_path: Path, trusted: str | None, seen: str):
    platform = Served(tmp_path / "data", **({} if trusted is None else {"IRCA_TRUSTED_PROXIES": trusted}))
    headers = {"authorization": f"Bearer {platform.key}", "x-forwarded-for": "192.0.2.1, 198.51.100.7, 203.0.113.9"}
    with httpx2.Client(base_url=platform.url, headers=headers, timeout=30, trust_env=False) as client:
        client.post("/api/v1/agent/provision", json={"agent_type": "server", "environment_name": "prod"}).raise_for_status()
        entries = client.get("/api/v1/audit").raise_for_status().json()["items"]
    assert platform.stop()[0] == 0
    assert {entry["client_address"] for entry in entries if entry["client_address"]} == {seen}
