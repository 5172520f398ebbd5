"""The command itself: help, version, exit codes, times and tables."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app import cli
from app.commands import output


def test_help_names_every_command_and_loads_nothing_heavy():
    script = (
        "import sys, app.cli\n"
        "assert app.cli.main(['--help']) == 0\n"
        "heavy = ('fastapi', 'sqlalchemy', 'uvicorn', 'pydantic', 'httpx2', 'numpy', 'structlog')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip() == "[]"
    for command in ("up", "serve", "provision", "types", "agents", "api-keys", "--install-completion"):
        assert command in done.stdout


def test_version_is_the_products(capsys: pytest.CaptureFixture[str]):
    from connectors import __version__

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"incident-rca {__version__}\n"


def test_wrong_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["serv"]) == 2
    assert "No such command" in capsys.readouterr().err


def test_without_the_platforms_packages_one_line_says_what_to_install(tmp_path: Path):
    (tmp_path / "typer.py").write_text("raise ImportError('no typer here')\n")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import app.cli"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "incident-rca: the platform is not installed here: pip install 'incident-rca[platform]'\n"


def test_ctrl_c_is_no_error(monkeypatch: pytest.MonkeyPatch):
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    assert cli.main([]) == 0


# Output.


@pytest.mark.parametrize(
    ("time_then", "text"),
    [
        (None, "never"),
        ("2026-01-01T11:59:50Z", "10 s ago"),
        ("2026-01-01T11:50:00Z", "10 min ago"),
        ("2025-12-01T12:00:00+00:00", "31 days ago"),
    ],
)
def test_times_are_told_as_distances(time_then: str | None, text: str):
    assert output.ago(time_then, datetime(2026, 1, 1, 12, tzinfo=UTC)) == text


def test_tables_are_not_wrapped_in_a_pipe(capsys: pytest.CaptureFixture[str]):
    output.print_table(("A", "B"), [("x" * 300, "[red]markup[/red]"), (None, 3)], empty="")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["x" * 300, "[red]markup[/red]"]
    assert len(lines) == 3
