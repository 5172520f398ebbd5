"""The command ``incident-rca`` in processes of its own, and in this one with its answer read as JSON."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app import cli

COMMAND = [sys.executable, "-m", "app.cli"]


def environment(data_dir: Path, **variables: str) -> dict[str, str]:
    return {**os.environ, "IRCA_DATA_DIR": str(data_dir), "IRCA_PORT": "0", "NO_COLOR": "1", **variables}


class Served:
    """``incident-rca serve`` in a process of its own."""

    def __init__(self, data_dir: Path, *arguments: str, **variables: str) -> None:
        self.data_dir = data_dir
        self.process = subprocess.Popen(
            [*COMMAND, "serve", *arguments],
            env=environment(data_dir, **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if "Sign in with an API key" in line or line.startswith("  irca_"):
                break
        else:
            raise AssertionError(self.process.communicate()[1])
        self.url = re.search(r"https?://\S+", self.lines[0])[0]
        self.key = self.lines[-1].strip() if self.lines[-1].startswith("  ") else ""

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> object:
    assert cli.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)
