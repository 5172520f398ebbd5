"""Make the virtual environment and install into it what the lock file names; ``make install`` runs it.

What stands already and still fits is left alone, so that a second run takes no time. The Makefile picks the interpreter; run by hand
with an old one, it says so.

    python3 tools/bootstrap.py [--dev] [--venv DIR]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MINIMUM = (3, 11)
STAMP = "incident-rca-stamp.json"
LAST_LINES = 15
"""Lines of a failed command's output that are shown."""


class BootstrapError(Exception):
    """The environment cannot be made; the message is for a person."""


class Progress:
    """Short lines about what is under way: one that changes in place on a terminal, one now and then elsewhere."""

    PAUSE = 5.0

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._last = 0.0
        self._dirty = False

    def step(self, text: str) -> None:
        """A step begins."""
        self._clear()
        print(text, flush=True)
        self._last = time.monotonic()

    def detail(self, text: str) -> None:
        """Something of a step is under way."""
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            print("\r\033[K  " + text[: width - 2], end="", flush=True)
            self._dirty = True
        elif time.monotonic() - self._last >= self.PAUSE:
            self._last = time.monotonic()
            print("  " + text, flush=True)

    def _clear(self) -> None:
        if self._dirty:
            print("\r\033[K", end="")
            self._dirty = False

    def close(self) -> None:
        """Leave a clean line."""
        self._clear()
        sys.stdout.flush()


def main() -> int:
    """Returns the exit code: 0 when everything stands, 1 with one clear message when it does not."""
    parser = argparse.ArgumentParser(description="Make the virtual environment from the lock files.")
    parser.add_argument("--dev", action="store_true", help="with what tests and checks need")
    parser.add_argument("--venv", default=".venv", help="directory of the environment (default: .venv)")
    arguments = parser.parse_args()
    progress = Progress()
    try:
        bootstrap((ROOT / arguments.venv).absolute(), arguments.dev, progress)
    except BootstrapError as exc:
        progress.close()
        print(f"incident-rca: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        progress.close()
        print("Interrupted; the next run goes on from here.", file=sys.stderr)
        return 130
    progress.close()
    return 0


def bootstrap(venv: Path, dev: bool, progress: Progress) -> None:
    """Bring ``venv`` up to date."""
    check_python()
    python = make_venv(venv, progress)
    stamp = read_stamp(venv)
    for lock in ("requirements-dev.lock",) if dev else ("requirements.lock",):
        if stamp.get(lock) != digest(lock):
            install_lock(python, lock, progress)
            stamp[lock] = digest(lock)
            if dev:
                stamp["requirements.lock"] = digest("requirements.lock")  # the development lock holds all of it
            write_stamp(venv, stamp)
    if stamp.get("project") != digest("pyproject.toml", "connectors/_version.py"):
        progress.step("Installing incident-rca itself …")
        run([python, "-m", "pip", *PIP_OPTIONS, "install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)], progress)
        stamp["project"] = digest("pyproject.toml", "connectors/_version.py")
        write_stamp(venv, stamp)


def check_python() -> None:
    """Refuse a Python that is too old, and one without the module that makes environments."""
    if sys.version_info < MINIMUM:
        found = ".".join(map(str, sys.version_info[:3]))
        raise BootstrapError(f"Python {MINIMUM[0]}.{MINIMUM[1]} or newer is needed, and {sys.executable} is {found}")
    try:
        import ensurepip  # noqa: F401, PLC0415 - only whether it is there; Debian packs it apart
    except ImportError:
        raise BootstrapError(
            f"{sys.executable} cannot make virtual environments: install the package that brings ensurepip"
            f" (Debian, Ubuntu: apt install python{MINIMUM[0]}-venv)"
        ) from None


def make_venv(venv: Path, progress: Progress) -> str:
    """The environment's interpreter; the environment is made anew where it is missing, broken or of an old Python."""
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    test = f"import sys, pip; sys.exit(sys.version_info < {MINIMUM})"
    if python.exists() and subprocess.run([python, "-c", test], stderr=subprocess.DEVNULL, timeout=60, check=False).returncode == 0:
        return str(python)
    progress.step(f"Making the virtual environment {venv.name} with Python {sys.version.split()[0]} …")
    run([sys.executable, "-m", "venv", "--clear", str(venv)], progress)
    return str(python)


PIP_OPTIONS = ("--disable-pip-version-check", "--no-input")


def install_lock(python: str, lock: str, progress: Progress) -> None:
    """Install exactly what the lock file names, each file checked against its hash."""
    total = len(re.findall(r"^[A-Za-z0-9._-]+==", (ROOT / lock).read_text(encoding="utf-8"), re.MULTILINE))
    progress.step(f"Installing {total} packages from {lock} (the first time takes a minute or two) …")
    seen = 0

    def follow(line: str) -> None:
        nonlocal seen
        if match := re.match(r"(?:Collecting|Requirement already satisfied:) ([A-Za-z0-9._-]+)", line):
            seen += 1
            progress.detail(f"[{min(seen, total)}/{total}] {match[1]}")
        elif line.startswith("Installing collected packages"):
            progress.step("Unpacking them …")

    options = ["--require-hashes", "--progress-bar", "off", "--requirement", str(ROOT / lock)]
    run([python, "-m", "pip", *PIP_OPTIONS, "install", *options], progress, follow)


def run(command: list[str], progress: Progress, follow: object = None) -> None:
    """Run ``command`` quietly, handing each line of its output to ``follow``.

    Raises:
        BootstrapError: it failed; the message ends with its last lines.
    """
    lines: list[str] = []
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, errors="replace", env=environment
    ) as process:
        if process.stdout is not None:
            for line in process.stdout:
                lines.append(line.rstrip())
                if callable(follow):
                    follow(line)
    if process.returncode:
        progress.close()
        shown = "\n".join(f"  {line}" for line in lines[-LAST_LINES:])
        raise BootstrapError(f"{' '.join(command[:4])} … failed with exit code {process.returncode}:\n{shown}")


def digest(*names: str) -> str:
    """A digest over files of the checkout."""
    return hashlib.sha256(b"\0".join((ROOT / name).read_bytes() for name in names)).hexdigest()


def read_stamp(venv: Path) -> dict[str, str]:
    """What was installed, by name; empty where that is not known."""
    try:
        stamp = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(venv: Path, stamp: dict[str, str]) -> None:
    """Remember what was installed."""
    (venv / STAMP).write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
