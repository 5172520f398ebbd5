"""The ledger under kill -9: what was produced is what is stored plus what was counted as dropped; nothing is doubled."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from connectors.core.spool import Spool

pytestmark = [pytest.mark.sockets, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
KEY = "a-preset-admin-key-for-tests"
KILLS = 20


class Platform:
    """A platform process on one port and data directory, which can be killed and started again."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"
        self.env = {
            **os.environ,
            "IRCA_PORT": str(port),
            "IRCA_DATA_DIR": str(folder / "data"),
            "IRCA_ADMIN_API_KEY": KEY,
            "IRCA_LOG_LEVEL": "warning",
            "PYTHONPATH": str(ROOT),
        }
        self.client = httpx2.Client(base_url=self.url, headers={"authorization": f"Bearer {KEY}"}, timeout=30)
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        with (self.folder / "platform.log").open("ab") as log:
            argv = [sys.executable, "-m", "app.cli", "serve"]
            self.process = subprocess.Popen(argv, env=self.env, cwd=self.folder, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if self.client.get("/readyz").status_code == 200:
                    return
            except httpx2.TransportError:
                time.sleep(0.05)
        raise AssertionError((self.folder / "platform.log").read_text()[-2000:])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def token(self) -> str:
        body = {"agent_type": "server", "environment_name": "ledger"}
        return self.client.post("/api/v1/agent/provision", json=body).raise_for_status().json()["agent_token"]

    def stored_points(self) -> int:
        """Distinct (series, time) pairs of all that the agent sent, asked for as a user would."""
        names = self.client.get("/prometheus/api/v1/label/__name__/values").raise_for_status().json()["data"]
        total = 0
        for name in names:
            query = {"query": f"sum(count_over_time({name}[1h]))"}
            result = self.client.get("/prometheus/api/v1/query", params=query).raise_for_status().json()["data"]["result"]
            total += int(float(result[0]["value"][1])) if result else 0
        return total

    def stored_events(self) -> list[str]:
        found, cursor = [], None
        while True:
            params = {"name": "ledger.event", "limit": 500, **({"cursor": cursor} if cursor else {})}
            page = self.client.get("/api/v1/events", params=params).raise_for_status().json()
            found += [e["id"] for e in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                return found


@contextmanager
def agent(folder: Path, platform: Platform, token: str) -> Iterator[subprocess.Popen]:
    env = {**os.environ, "AGENT_TOKEN": token, "PYTHONPATH": str(ROOT)}
    with (folder / "agent.log").open("ab") as log:
        argv = [sys.executable, str(Path(__file__).parent / "ledger_agent.py"), str(folder / "agent"), platform.url]
        process = subprocess.Popen(argv, env=env, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def platform(tmp_path, free_port) -> Iterator[Platform]:
    made = Platform(tmp_path, free_port)
    made.start()
    yield made
    made.kill()
    made.client.close()


def finish_and_compare(folder: Path, platform: Platform, token: str) -> None:
    with agent(folder, platform, token) as process:
        time.sleep(1.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0, (folder / "agent.log").read_text()[-3000:]
    spool = Spool(folder / "agent" / "spool.db", 268_435_456, 604_800, time.time)
    ledger = spool.statistics().ledger
    spool.close()
    assert ledger.waiting("metrics") == ledger.waiting("logs") == 0
    assert ledger.produced["metrics"] > KILLS * 200
    events = platform.stored_events()
    assert len(events) == len(set(events))
    assert platform.stored_points() + ledger.dropped_of("metrics") == ledger.produced["metrics"]
    assert len(events) + ledger.dropped_of("logs") == ledger.produced["logs"]


@pytest.mark.parametrize("seed", [1])
def test_an_agent_killed_in_mid_send_loses_and_doubles_nothing(tmp_path, platform, seed):
    chance, token = random.Random(seed), platform.token()
    for _ in range(KILLS):
        with agent(tmp_path, platform, token):
            time.sleep(0.5 + chance.random() * 0.5)
    finish_and_compare(tmp_path, platform, token)


@pytest.mark.parametrize("seed", [2])
def test_a_platform_killed_in_mid_write_loses_and_doubles_nothing(tmp_path, platform, seed):
    chance, token = random.Random(seed), platform.token()
    with agent(tmp_path, platform, token) as process:
        for _ in range(KILLS):
            time.sleep(0.2 + chance.random() * 0.6)
            platform.kill()
            platform.start()
        assert process.poll() is None
    finish_and_compare(tmp_path, platform, token)
