from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import trustme

ROOT = Path(__file__).resolve().parents[2]
UP = [sys.executable, "-m", "app.cli", "up"]


class Running:
    """A command whose standard output is read line by line while it runs."""

    def __init__(self, command: list[str], environment: dict[str, str], cwd: Path = ROOT) -> None:
        self.process = subprocess.Popen(
            command, env=environment, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.lines)),
            threading.Thread(target=self._read, args=(self.process.stderr, self.errors)),
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: object, lines: list[str]) -> None:
        lines.extend([]) if stream is None else [lines.append(line.rstrip("\n")) for line in stream]

    def wait_for(self, words: str, timeout: float = 60) -> str:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if found := [line for line in self.lines if words in line]:
                return found[0]
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"{words!r} never came; got {self.lines} and {self.errors}")

    def finish(self, timeout: float = 60) -> int:
        code = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(10)
        self.process.stdout.close()
        self.process.stderr.close()
        return code

    def press_ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def begin(*arguments: str, command: list[str] = UP, **variables: str) -> Running:
        # Not a make within make: the one that may run these tests would have the other talk about directories.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
        environment = {**inherited, "IRCA_DATA_DIR": str(tmp_path / "data"), "IRCA_PORT": "0", "COLLECT_INTERVAL": "1", **variables}
        running.append(Running([*command, *arguments], environment))
        return running[-1]

    yield begin
    for each in running:
        if each.process.poll() is None:
            each.process.terminate()
            try:
                each.finish(30)
            except subprocess.TimeoutExpired:
                each.process.kill()


def agents_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children(recursive=True) if "run" in child.cmdline()]


def ask(*arguments: str, data_dir: Path, url: str) -> dict[str, object]:
    environment = {**os.environ, "IRCA_DATA_DIR": str(data_dir), "IRCA_URL": url}
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments, "--json"], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.sockets
def test_up_connects_this_machine_says_so_and_stops_both_on_ctrl_c(start: Callable[..., Running], tmp_path: Path):
    first = start("--environment", "laptop")
    url = first.wait_for("is ready at").split()[-1]
    key = first.wait_for("  irca_").strip()
    first.wait_for("are arriving")
    (agent,) = agents_of(first.process)
    token = (tmp_path / "data" / "agent-token").read_text().strip()
    assert token.startswith("agent_laptop_")
    assert token not in " ".join(agent.cmdline())
    assert token not in " ".join(psutil.Process(first.process.pid).cmdline())
    for name in ("agent-token", "local-api-key", "agent/credential"):
        assert stat.S_IMODE((tmp_path / "data" / name).stat().st_mode) == 0o600
    deadline = time.monotonic() + 30
    while True:
        (shown,) = ask("agents", "list", data_dir=tmp_path / "data", url=url)["items"]
        if shown["status"] != "pending" or time.monotonic() > deadline:
            break
    assert (shown["agent_type"], shown["environment_name"], shown["status"]) == ("server", "laptop", "healthy")
    first.press_ctrl_c()
    assert first.finish() == 0
    assert first.lines[-2:] == ["Stopping the agent, then the platform …", "Stopped."]
    assert first.errors == []
    assert not agent.is_running()

    second = start(IRCA_PORT=url.rsplit(":", 1)[1])
    second.wait_for("are arriving")
    (again,) = ask("agents", "list", data_dir=tmp_path / "data", url=url)["items"]
    assert [i["id"] for i in again["instances"]] == [i["id"] for i in shown["instances"]]
    second.process.terminate()
    assert second.finish() == 0
    output = "\n".join(second.lines)
    assert key not in output
    assert "Provisioning" not in output
    assert "api-keys create" in output


@pytest.mark.sockets
def test_up_works_over_tls_with_a_private_ca(start: Callable[..., Running], tmp_path: Path):
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = {"IRCA_TLS_CERTIFICATE": str(tmp_path / "server.pem"), "IRCA_TLS_KEY": str(tmp_path / "server.pem")}
    running = start(**tls, CA_FILE=str(tmp_path / "ca.pem"))
    assert running.wait_for("is ready at").split()[-1].startswith("https://localhost:")
    running.wait_for("are arriving")
    running.press_ctrl_c()
    assert running.finish() == 0
    untrusting = start(**tls)
    assert untrusting.finish() == 1
    assert "CA_FILE" in "\n".join(untrusting.errors)
    assert "Traceback" not in "\n".join(untrusting.errors)


@pytest.mark.sockets
def test_an_agent_whose_sign_in_was_revoked_is_provisioned_again(start: Callable[..., Running], tmp_path: Path):
    first = start()
    first.wait_for("are arriving")
    first.press_ctrl_c()
    first.finish()
    (tmp_path / "data" / "agent-token").write_text("agent_local_wrong\n")
    (tmp_path / "data" / "agent" / "credential").unlink()
    (tmp_path / "data" / "local-api-key").write_text("irca_wrong\n")
    second = start()
    second.wait_for("are arriving")
    assert "Provisioning this machine as a server agent …" in second.lines
    second.press_ctrl_c()
    assert second.finish() == 0


@pytest.mark.sockets
def test_when_the_agent_dies_the_platform_stops_with_a_clear_line(start: Callable[..., Running]):
    running = start()
    running.wait_for("are arriving")
    (agent,) = agents_of(running.process)
    agent.kill()
    assert running.finish() == 1
    assert "The agent stopped by itself (exit code -9)" in "\n".join(running.errors)
    assert not any("Traceback" in line for line in running.errors)


@pytest.mark.sockets
def test_an_agent_that_a_killed_up_left_behind_is_stopped_by_the_next(start: Callable[..., Running]):
    first = start()
    first.wait_for("are arriving")
    (orphan,) = agents_of(first.process)
    first.process.kill()
    first.finish()
    assert orphan.is_running()
    second = start()
    second.wait_for(f"left behind (process {orphan.pid})")
    second.wait_for("are arriving")
    assert not orphan.is_running()
    second.press_ctrl_c()
    assert second.finish() == 0


@pytest.mark.sockets
def test_ctrl_c_while_it_starts_is_an_orderly_stop(start: Callable[..., Running], tmp_path: Path):
    running = start()
    running.wait_for("Starting the platform")
    running.press_ctrl_c()
    assert running.finish() == 0
    assert "Traceback" not in "\n".join(running.errors)


# make: what stands before the platform starts.


def make(*arguments: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")} | variables
    return subprocess.run(
        [shutil.which("make"), *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    target = tmp_path / "checkout"
    for name in (
        "Makefile",
        "pyproject.toml",
        "requirements.lock",
        "requirements-dev.lock",
        "tools/bootstrap.py",
        "connectors/_version.py",
    ):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)
    return target


def old_python(directory: Path) -> Path:
    directory.mkdir()
    for name in ("python3", "python3.13", "python3.12", "python3.11", "python3.14"):
        program = directory / name
        program.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.10" && exit 0\nexit 1\n')
        program.chmod(0o755)
    for name in ("sh", "make"):
        (directory / name).symlink_to(shutil.which(name))
    return directory


def test_an_old_python_is_one_clear_line(checkout: Path, tmp_path: Path):
    done = make("up", cwd=checkout, PATH=str(old_python(tmp_path / "bin")))
    assert done.returncode == 2
    told = [line for line in done.stderr.splitlines() if not line.startswith("make:")]
    assert len(told) == 1
    assert told[0].startswith("incident-rca: Python 3.11 or newer is needed and none is on the path (found: Python 3.8.10)")


def test_an_old_python_named_by_hand_is_told_so_by_the_installer_too(checkout: Path):
    script = (
        "import sys\n"
        f"sys.path.insert(0, {str(checkout / 'tools')!r})\n"
        "import bootstrap\n"
        "bootstrap.MINIMUM, sys.argv = (99, 0), ['bootstrap.py']\n"
        "sys.exit(bootstrap.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"incident-rca: Python 99\.0 or newer is needed, and \S+ is \S+\n", done.stderr)
    assert not (checkout / ".venv").exists()


def test_an_installation_that_fails_shows_why_and_no_traceback(checkout: Path):
    for name in ("requirements.lock", "requirements-dev.lock"):
        (checkout / name).write_text("no-such-package==1.0 --hash=sha256:" + "0" * 64 + "\n")
    done = make("install", cwd=checkout, PYTHON=sys.executable, PIP_NO_INDEX="1")
    assert done.returncode == 2
    assert "Installing 1 packages from requirements.lock" in done.stdout
    assert "No matching distribution found for no-such-package" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_installed_and_fits_the_lock_is_left_alone(checkout: Path):
    venv = checkout / ".venv"
    for name in ("requirements.lock", "requirements-dev.lock"):
        (checkout / name).write_text("")
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=120)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(checkout / 'tools')!r})\n"
        "import bootstrap as b\n"
        "project = b.digest('pyproject.toml', 'connectors/_version.py')\n"
        f"b.write_stamp(Path({str(venv)!r}), {{'requirements.lock': b.digest('requirements.lock'), 'project': project}})\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    done = make("install", cwd=checkout, PYTHON=sys.executable, PIP_NO_INDEX="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_help_lists_every_target(checkout: Path):
    done = make(cwd=checkout)
    assert done.returncode == 0
    for target in ("up", "install", "test", "check", "bench", "proto", "lock", "docs", "clean"):
        assert re.search(rf"^  make {target} ", done.stdout, re.MULTILINE)


@pytest.mark.sockets
def test_make_up_in_an_environment_that_stands_starts_at_once_and_ctrl_c_leaves_no_traceback(start: Callable[..., Running], tmp_path: Path):
    if not (Path(sys.prefix) / "incident-rca-stamp.json").exists():
        pytest.skip("this environment was not made by make install")
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = start(command=[shutil.which("make"), "up", f"VENV={sys.prefix}"], IRCA_PORT=str(port))
    running.wait_for("are arriving", 120)
    running.press_ctrl_c()
    running.finish()
    assert running.lines[-1] == "Stopped."
    assert "Traceback" not in "\n".join(running.errors)
