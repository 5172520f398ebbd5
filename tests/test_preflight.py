from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from preflight_platform import TOKEN, FakePlatform, outcomes, target

from connectors.core import preflight_checks as checks
from connectors.core.preflight import Check, CheckResult, Outcome, as_document, as_text, failed, run_checks
from connectors.core.secret import Secret


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    with contextlib.closing(FakePlatform()) as fake:
        yield fake


# The framework.


def test_a_check_whose_need_failed_is_skipped_and_so_is_what_needs_it():
    results = run_checks(
        [
            Check("a", lambda: (Outcome.FAIL, "no", "do")),
            Check("b", lambda: (Outcome.PASS, "", ""), needs=("a",)),
            Check("c", lambda: (Outcome.PASS, "", ""), needs=("b",)),
            Check("d", lambda: (Outcome.WARN, "hm", "")),
        ]
    )
    assert [r.outcome for r in results] == [Outcome.FAIL, Outcome.SKIP, Outcome.SKIP, Outcome.WARN]
    assert failed(results)


def test_a_check_that_breaks_is_a_finding():
    (result,) = run_checks([Check("a", lambda: 1 / 0)])
    assert result.outcome is Outcome.FAIL
    assert "division" in result.detail


def test_warnings_are_no_failure():
    assert not failed([CheckResult("a", Outcome.WARN, "hm")])


def test_text_is_aligned_and_says_what_to_do_below():
    results = [
        CheckResult("dns", Outcome.PASS, "fine"),
        CheckResult("permissions", Outcome.FAIL, "no", "Do this."),
        CheckResult("x", Outcome.WARN, "w"),
    ]
    assert as_text(results).splitlines() == [
        "✓ dns          fine",
        "✗ permissions  no",
        "               → Do this.",
        "! x            w",
    ]
    assert as_text(results, unicode=False).splitlines() == [
        "ok   dns          fine",
        "FAIL permissions  no",
        "                  -> Do this.",
        "warn x            w",
    ]


def test_text_lets_no_terminal_control_through():
    assert "\x1b" not in as_text([CheckResult("http", Outcome.FAIL, "redirected to \x1b]0;owned\x07\nhere")])


def test_the_document_holds_every_result_in_order():
    document = as_document([CheckResult("a", Outcome.PASS, "x"), CheckResult("b", Outcome.SKIP, "y")])
    assert document == {
        "ok": True,
        "checks": [
            {"name": "a", "outcome": "pass", "detail": "x", "advice": ""},
            {"name": "b", "outcome": "skip", "detail": "y", "advice": ""},
        ],
    }


# The way to the platform.


@pytest.mark.sockets
def test_everything_passes_where_nothing_is_wrong(platform: FakePlatform, tmp_path: Path):
    results = outcomes(target(f"http://127.0.0.1:{platform.port}/base/", tmp_path))
    assert {name: r.outcome for name, r in results.items()} == dict.fromkeys(
        ("dns", "tcp", "http", "clock", "token", "permissions", "disk"), Outcome.PASS
    )
    assert [path for path, _ in platform.requests] == ["/base/healthz", "/base/api/v1/agent/whoami"]
    assert platform.requests[1][1]["authorization"] == f"Bearer {TOKEN}"
    assert "authorization" not in platform.requests[0][1]
    assert results["token"].detail == "enrolment token of a server agent in prod"
    assert not (tmp_path / "state").exists()


@pytest.mark.sockets
def test_a_name_that_does_not_resolve_is_named_and_the_rest_of_the_way_is_skipped(tmp_path: Path):
    results = outcomes(target("http://no-such-host.invalid:8000", tmp_path))
    assert results["dns"].outcome is Outcome.FAIL
    assert "no-such-host.invalid does not resolve" in results["dns"].detail
    assert {results[name].outcome for name in ("tcp", "http", "clock", "token")} == {Outcome.SKIP}
    assert results["permissions"].outcome is Outcome.PASS


@pytest.mark.sockets
def test_a_port_where_nothing_listens_refuses(tmp_path: Path, free_port: int):
    result = outcomes(target(f"http://127.0.0.1:{free_port}", tmp_path))["tcp"]
    assert (result.outcome, result.detail) == (Outcome.FAIL, f"127.0.0.1:{free_port} refuses connections")


def test_an_address_that_swallows_packets_is_a_matter_of_a_firewall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket, "create_connection", raising(TimeoutError("timed out")))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("192.0.2.1", 80))])
    result = outcomes(target("http://192.0.2.1", tmp_path))["tcp"]
    assert result.outcome is Outcome.FAIL
    assert "firewall" in result.advice


def test_a_network_without_a_route_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket, "create_connection", raising(OSError(113, "No route to host")))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("192.0.2.1", 80))])
    assert "No route to host" in outcomes(target("http://192.0.2.1", tmp_path))["tcp"].detail


def raising(exc: Exception) -> Callable[..., object]:
    def call(*args: object, **kwargs: object) -> object:
        raise exc

    return call


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("healthz", "headers", "words"),
    [
        ((200, b"<html>It works!</html>"), {}, "not as an incident-rca platform"),
        ((200, {"status": "ok"}), {}, "not as an incident-rca platform"),
        ((200, []), {}, "not as an incident-rca platform"),
        ((404, {}), {}, "answers 404"),
        ((503, {}), {}, "answers 503"),
        ((308, {}), {"Location": "https://elsewhere.example/healthz"}, "redirected to https://elsewhere.example/healthz"),
        ((407, {}), {}, "wants credentials"),
    ],
)
def test_what_is_not_the_platform_is_told_by_its_answer(
    platform: FakePlatform, tmp_path: Path, healthz: tuple[int, object], headers: dict[str, str], words: str
):
    platform.healthz, platform.headers = healthz, headers
    results = outcomes(target(f"http://127.0.0.1:{platform.port}", tmp_path))
    assert results["http"].outcome is Outcome.FAIL
    assert words in results["http"].detail
    assert results["token"].outcome is Outcome.SKIP


@pytest.mark.sockets
def test_a_server_that_speaks_no_http_is_a_failure(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"220 mail ready\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        results = outcomes(target(f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path))
        thread.join()
    assert results["http"].outcome is Outcome.FAIL
    assert "no HTTP answer" in results["http"].detail


# Clock.


@pytest.mark.parametrize(
    ("told", "outcome", "words"),
    [
        (1000.0, Outcome.PASS, "agrees"),
        (999.0, Outcome.PASS, "agrees"),
        (980.0, Outcome.PASS, "19 s ahead of"),
        (960.0, Outcome.WARN, "39 s ahead of"),
        (1100.0, Outcome.WARN, "99 s behind"),
        (1400.0, Outcome.FAIL, "7 min behind"),
        (1000.0 + 7300.0, Outcome.FAIL, "2 h behind"),
        (1000.0 - 200_000.0, Outcome.FAIL, "2 days ahead of"),
    ],
)
def test_skew_is_judged_by_what_the_answer_cannot_explain(told: float, outcome: Outcome, words: str):
    found, detail, advice = checks.judge_skew(told, sent_at=1000.2, received_at=1000.7)
    assert found is outcome
    assert words in detail
    assert bool(advice) is (outcome is not Outcome.PASS)


def test_a_slow_answer_is_no_skew():
    assert checks.judge_skew(1000.0, sent_at=1000.2, received_at=1050.0)[0] is Outcome.PASS


@pytest.mark.sockets
def test_a_platform_whose_clock_is_hours_off_fails_the_clock_check(platform: FakePlatform, tmp_path: Path):
    platform.date_offset = 3 * 3600
    assert "3 h behind" in outcomes(target(f"http://127.0.0.1:{platform.port}", tmp_path))["clock"].detail


@pytest.mark.sockets
def test_an_answer_without_a_date_is_a_warning(platform: FakePlatform, tmp_path: Path):
    platform.date_offset = None
    assert outcomes(target(f"http://127.0.0.1:{platform.port}", tmp_path))["clock"].outcome is Outcome.WARN


# Token.


@pytest.mark.sockets
@pytest.mark.parametrize("code", ["token-unknown", "token-expired", "token-used-up", "token-revoked", "unauthenticated"])
def test_every_reason_to_refuse_a_token_has_its_own_advice(platform: FakePlatform, tmp_path: Path, code: str):
    platform.whoami = (401, {"code": code, "detail": "because"})
    result = outcomes(target(f"http://127.0.0.1:{platform.port}", tmp_path))["token"]
    assert result.outcome is Outcome.FAIL
    assert result.detail == f"refused ({code}): because"
    assert result.advice
    assert TOKEN not in result.detail + result.advice


@pytest.mark.sockets
def test_without_a_token_the_check_names_the_variable(platform: FakePlatform, tmp_path: Path):
    result = outcomes(target(f"http://127.0.0.1:{platform.port}", tmp_path, secret=Secret("")))["token"]
    assert result.outcome is Outcome.FAIL
    assert "AGENT_TOKEN" in result.advice
    assert len(platform.requests) == 1


@pytest.mark.parametrize(("status", "words"), [(404, "does not know how"), (500, "answers 500")])
def test_a_platform_that_cannot_check_the_token_says_so(status: int, words: str):
    outcome, detail, _ = checks.explain_token(status, {})
    assert outcome is Outcome.FAIL
    assert words in detail


@pytest.mark.sockets
def test_a_platform_that_goes_away_before_the_token_check_is_a_failure(platform: FakePlatform, tmp_path: Path):
    *_, token, _, _ = checks.common_checks(target(f"http://127.0.0.1:{platform.port}", tmp_path))
    platform.close()
    assert token.run()[0] is Outcome.FAIL


# Permissions and disk.


def test_a_state_directory_that_stands_is_tried_and_left_as_it_was(tmp_path: Path):
    assert checks.check_permissions(tmp_path)[0] is Outcome.PASS
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_state_directory_fails(tmp_path: Path):
    (tmp_path / "state").write_text("")
    assert "not a directory" in checks.check_permissions(tmp_path / "state")[1]
    assert checks.check_permissions(tmp_path / "state" / "below")[0] is Outcome.FAIL


def test_a_state_directory_that_cannot_be_written_fails_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checks.tempfile, "TemporaryFile", raising(PermissionError(13, "Permission denied")))
    outcome, detail, advice = checks.check_permissions(tmp_path)
    assert outcome is Outcome.FAIL
    assert "Permission denied" in detail
    assert "STATE_DIR" in advice


def test_a_parent_that_cannot_be_written_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot be made" in checks.check_permissions(tmp_path / "a" / "b")[1]


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.mark.parametrize(
    ("free", "outcome"),
    [(1_000_000_000, Outcome.PASS), (100_000_000, Outcome.WARN), (1_000_000, Outcome.FAIL), (5_000_000_000_000, Outcome.PASS)],
)
def test_free_space_is_held_against_what_the_spool_may_still_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, outcome: Outcome
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free, 0, free))
    assert checks.check_disk(tmp_path / "not" / "yet", 268_435_456)[0] is outcome


def test_what_the_spool_holds_already_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "spool.db").write_bytes(b"x" * 2_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 20_000_000))
    assert checks.check_disk(tmp_path, 21_000_000)[0] is Outcome.PASS


def test_free_space_that_cannot_be_read_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", raising(OSError(5, "Input/output error")))
    assert checks.check_disk(tmp_path, 1)[0] is Outcome.WARN
