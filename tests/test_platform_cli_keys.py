"""``api-keys``, on the platform and offline."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_process import Served, run_json

from app import cli
from app.commands import keys
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


@pytest.mark.sockets
def test_keys_are_made_listed_and_revoked(signed_in: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    made = run_json(capsys, "api-keys", "create", "--name", "ci", "--role", "viewer", "--expires-in", "90d")
    assert cli.main(["api-keys", "list"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if made["id"] in line]
    assert row.split()[:2] == ["ci", "viewer"]
    assert made["key"] not in row
    monkeypatch.setenv("IRCA_API_KEY", made["key"])
    assert cli.main(["agents", "list"]) == 0
    capsys.readouterr()
    assert cli.main(["provision", "--type", "server", "--environment", "x"]) == 1
    assert "Use a key with that role" in capsys.readouterr().err
    monkeypatch.setenv("IRCA_API_KEY", signed_in.key)
    assert cli.main(["api-keys", "revoke", made["id"]]) == 0
    assert capsys.readouterr().err == f"Revoked {made['id']}.\n"
    (row,) = [k for k in run_json(capsys, "api-keys", "list")["items"] if k["id"] == made["id"]]
    assert row["revoked_at"]
    monkeypatch.setenv("IRCA_API_KEY", made["key"])
    assert cli.main(["agents", "list"]) == 1
    assert "token-revoked" in capsys.readouterr().err


@pytest.mark.sockets
def test_a_keys_text_alone_goes_to_standard_output(signed_in: Served, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["api-keys", "create", "--name", "me"]) == 0
    captured = capsys.readouterr()
    assert re.fullmatch(r"irca_\S+\n", captured.out)
    assert "shown only now" in captured.err


@pytest.mark.sockets
def test_whoever_is_locked_out_makes_a_key_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("IRCA_DATA_DIR", str(tmp_path / "data"))
    made = run_json(capsys, "api-keys", "create", "--name", "rescue", "--role", "admin", "--expires-in", "1h", "--offline")
    assert cli.main(["api-keys", "create", "--name", "another", "--offline"]) == 0
    assert "after its next start" in capsys.readouterr().err
    assert cli.main(["api-keys", "create", "--name", "x", "--role", "king", "--offline"]) == 1
    assert "must be one of viewer, operator, admin" in capsys.readouterr().err
    running = Served(tmp_path / "data")
    try:
        monkeypatch.setenv("IRCA_API_KEY", made["key"])
        assert cli.main(["api-keys", "list", "--url", running.url]) == 0
        assert "rescue" in capsys.readouterr().out
    finally:
        running.stop()


@pytest.mark.parametrize(
    ("text", "seconds"), [("90d", 7_776_000.0), ("12h", 43_200.0), ("30m", 1800.0), ("2w", 1_209_600.0), ("60", 60.0), ("5s", 5.0)]
)
def test_durations_are_read(text: str, seconds: float):
    assert keys.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0d", "-1h", "soon", "1y", "1.5h"])
def test_what_is_no_duration_is_wrong_usage(text: str):
    with pytest.raises(CommandError) as caught:
        keys.parse_duration(text)
    assert caught.value.exit_code == 2
