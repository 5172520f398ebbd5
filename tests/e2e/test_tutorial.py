"""The tutorial is walked through, block by block, with this machine as the agent. `make up` itself is run by test_make_up.py."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest
from waiting import eventually

pytestmark = [
    pytest.mark.sockets,
    pytest.mark.skipif(sys.platform != "linux", reason="part 4 is about a change that is seen on Linux only"),
]

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "docs" / "tutorial.md").read_text(), re.MULTILINE | re.DOTALL)
BASH = [text for language, text in BLOCKS if language == "bash"]
YAML = [text for language, text in BLOCKS if language == "yaml"]
(RECEIVER,) = (text for language, text in BLOCKS if language == "python")
SHELL = ["IRCA_WEBHOOK_ALLOWED_NETWORKS=127.0.0.0/8 make up\n", ".venv/bin/python receiver.py\n"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@dataclass
class Desk:
    """The reader's directory, terminals and ports."""

    folder: Path
    environment: dict[str, str]
    ports: dict[str, str]

    def own(self, text: str) -> str:
        for printed, real in self.ports.items():
            text = text.replace(printed, real)
        return text

    def run(self, part: str) -> str:
        (text,) = [block for block in BASH if part in block]
        done = subprocess.run(
            ["bash", "-ec", self.own(text)], env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def ask(self, *arguments: str) -> list[dict]:
        command = [sys.executable, "-m", "app.cli", *arguments, "--json"]
        environment = {**self.environment, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=60, check=True)
        return json.loads(done.stdout)["items"]

    def until(self, holds: Callable[[], object], what: str) -> None:
        eventually(holds, why=lambda: what)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    port, ports = str(free_port()), {"8765": str(free_port()), "9099": str(free_port()), "sleep 15": "sleep 4"}
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("IRCA_")},
        "IRCA_DATA_DIR": str(tmp_path / "data"),
        "IRCA_PORT": port,
        "IRCA_HEARTBEAT_INTERVAL": "1",
        "IRCA_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
        "COLLECT_INTERVAL": "1",
        "CHANGE_INTERVAL": "2",
        "NO_COLOR": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with (tmp_path / "up.log").open("w") as log:
        up = subprocess.Popen([sys.executable, "-m", "app.cli", "up"], env=environment, cwd=ROOT, stdout=log, stderr=log)
        made = Desk(tmp_path, environment, ports)
        try:
            made.until(lambda: "are arriving" in (tmp_path / "up.log").read_text() or up.poll() is not None, "the platform does not start")
            assert up.poll() is None, (tmp_path / "up.log").read_text()
            yield made
        finally:
            up.send_signal(signal.SIGINT)
            up.wait(60)


@dataclass
class Terminal:
    """The receiver in a terminal of its own."""

    desk: Desk

    def __enter__(self) -> Self:
        self.log = (self.desk.folder / "receiver.log").open("a")
        self.process = subprocess.Popen([sys.executable, "receiver.py"], cwd=self.desk.folder, stdout=self.log, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(20)
        self.log.close()


def test_every_block_of_the_tutorial_is_one_that_this_file_runs():
    assert {language for language, _ in BLOCKS} == {"sh", "bash", "yaml", "python"}
    assert [text for language, text in BLOCKS if language == "sh"] == SHELL
    assert (len(BASH), len(YAML)) == (12, 2)


def test_the_tutorial_leads_from_nothing_to_a_webhook(desk: Desk):
    printed = (desk.folder / "receiver.log").read_text
    assert "incident-rca" in desk.run("--version")
    desk.until(lambda: "healthy" in desk.run("agents list"), "this machine is not healthy")
    assert "docker run" in desk.run("--type docker")
    desk.run("http.server")
    for what in ("opened", "closed"):
        wanted = ("events", "list", "--environment", "local", "--name", f"irca.host.port.{what}")
        desk.until(lambda wanted=wanted: any(desk.ports["8765"] in e["body"] for e in desk.ask(*wanted)), f"the port is not {what}")

    (desk.folder / "fleet.yaml").write_text(YAML[0])
    assert "configuration of group desks" in desk.run("--dry-run")
    status = ("config", "status", "--group", "desks")
    desk.until(lambda: [m["status"] for m in desk.ask(*status)] == ["applied"], "the configuration is not applied")
    assert "group desks revision 1" in desk.run("config explain")

    (desk.folder / "webhook.yaml").write_text(desk.own(YAML[1]))
    (desk.folder / "receiver.py").write_text(desk.own(RECEIVER))
    desk.run("--secrets secrets.json")
    with Terminal(desk):
        desk.until(lambda: desk.ports["9099"] in printed(), "the receiver is not told of its own port")
        assert "is on its way" in desk.run("webhooks test")
        desk.until(lambda: "A test delivery to tutorial" in printed(), "the test does not arrive")

    desk.run("--limit 3")
    waiting = ("webhooks", "deliveries", "tutorial", "--status", "pending")
    desk.until(lambda: any(d["last_error"] for d in desk.ask(*waiting)), "nothing waits for the receiver")
    lost = {d["event_id"] for d in desk.ask(*waiting)}
    with Terminal(desk):
        desk.until(lambda: all(event in printed() for event in lost), "what waited does not arrive")
        before = len(printed().splitlines())
        assert "1 deliveries are on their way" in desk.run("webhooks replay")
        desk.until(lambda: len(printed().splitlines()) > before, "the replay does not arrive")

    assert "webhook.replay" in desk.run("audit list")
    assert "2 changes made" in desk.run("--prune --yes")
    assert desk.ask("groups", "list") == desk.ask("webhooks", "list") == []
