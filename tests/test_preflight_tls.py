"""Refusals of a certificate and of a handshake are told apart, each with its advice."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from preflight_platform import FakePlatform, certified_platforms, outcomes, target

from connectors.core import preflight_checks as checks
from connectors.core.preflight import Outcome


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


@pytest.mark.sockets
def test_a_certificate_of_a_private_ca_passes_with_the_ca_file_and_names_the_ca_without(
    tls_platform: Callable[..., FakePlatform], tmp_path: Path, ca_file: str
):
    fake = tls_platform("127.0.0.1")
    results = outcomes(target(f"https://127.0.0.1:{fake.port}", tmp_path, ca_file=ca_file))
    assert {r.outcome for r in results.values()} == {Outcome.PASS}
    assert "certificate valid for another" in results["tls"].detail
    refused = outcomes(target(f"https://127.0.0.1:{fake.port}", tmp_path))
    assert "CA is not trusted by this machine" in refused["tls"].detail
    assert "CA_FILE" in refused["tls"].advice
    assert refused["http"].outcome is Outcome.SKIP


@pytest.mark.sockets
def test_a_certificate_for_another_name_is_told_apart_from_an_untrusted_one(
    tls_platform: Callable[..., FakePlatform], tmp_path: Path, ca_file: str
):
    fake = tls_platform("platform.example.com")
    result = outcomes(target(f"https://localhost:{fake.port}", tmp_path, ca_file=ca_file))["tls"]
    assert result.outcome is Outcome.FAIL
    assert result.detail.startswith("the certificate is not for localhost")


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("valid_from", "valid_to", "outcome", "words"),
    [
        (-60, -1, Outcome.FAIL, "has expired"),
        (1, 60, Outcome.FAIL, "not valid yet"),
        (-60, 5, Outcome.WARN, "another 5 days"),
    ],
)
def test_the_certificates_dates_are_judged(
    tls_platform: Callable[..., FakePlatform], tmp_path: Path, ca_file: str, valid_from: int, valid_to: int, outcome: Outcome, words: str
):
    now = datetime.now(UTC)
    fake = tls_platform("127.0.0.1", not_before=now + timedelta(days=valid_from), not_after=now + timedelta(days=valid_to, hours=1))
    result = outcomes(target(f"https://127.0.0.1:{fake.port}", tmp_path, ca_file=ca_file))["tls"]
    assert result.outcome is outcome
    assert words in result.detail


@pytest.mark.sockets
def test_https_to_a_port_that_serves_http_says_so(platform: FakePlatform, tmp_path: Path):
    result = outcomes(target(f"https://127.0.0.1:{platform.port}", tmp_path))["tls"]
    assert result.outcome is Outcome.FAIL
    assert "does not speak TLS" in result.detail


@pytest.mark.sockets
def test_a_connection_that_breaks_before_tls_says_so(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            for _ in range(2):
                listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        result = outcomes(target(f"https://127.0.0.1:{listener.getsockname()[1]}", tmp_path))["tls"]
        thread.join()
    assert result.outcome is Outcome.FAIL


@pytest.mark.sockets
@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_a_ca_file_that_cannot_be_used_is_named(platform: FakePlatform, tmp_path: Path, content: str | None):
    path = tmp_path / "private.pem"
    if content:
        path.write_text(content)
    result = outcomes(target(f"https://127.0.0.1:{platform.port}", tmp_path, ca_file=str(path)))["tls"]
    assert result.outcome is Outcome.FAIL
    assert str(path) in result.detail


def test_every_other_refusal_of_a_certificate_keeps_openssls_words():
    exc = ssl.SSLCertVerificationError()
    exc.verify_code, exc.verify_message = 23, "certificate revoked"
    assert checks.explain_certificate(exc, "host", "")[1] == "the certificate is refused: certificate revoked"


def test_a_failed_handshake_keeps_its_reason():
    exc = ssl.SSLError(1, "sslv3 alert handshake failure")
    exc.reason = "SSLV3_ALERT_HANDSHAKE_FAILURE"
    route = checks.plan_route("https://platform.example.com", {})
    assert "SSLV3_ALERT_HANDSHAKE_FAILURE" in checks._explain_handshake(exc, route, "")[1]
