"""A receiver that goes away and a platform that is killed: every event arrives at least once, in order for each instance."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from waiting import eventually
from webhook_receiver import Received, receiver

pytestmark = pytest.mark.sockets

ROOT = Path(__file__).resolve().parents[2]
KEY = "a-preset-admin-key-for-tests"
AGENTS = 40


class RunningPlatform:
    """The platform as a process on a data directory that outlives it."""

    def __init__(self, data: Path, port: int) -> None:
        self.environment = {
            **os.environ,
            "IRCA_DATA_DIR": str(data),
            "IRCA_PORT": str(port),
            "IRCA_ADMIN_API_KEY": KEY,
            "IRCA_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
            "IRCA_LOG_LEVEL": "error",
        }
        self.base = f"http://127.0.0.1:{port}"
        self.client = self.make_client()
        self.start()

    def make_client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.base, headers={"authorization": f"Bearer {KEY}"}, timeout=10)

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "app.cli", "serve"], cwd=ROOT, env=self.environment)
        eventually(self.answers)

    def answers(self) -> bool:
        assert self.process.poll() is None, "the platform ended"
        try:
            return self.client.get("/healthz").status_code == 200
        except httpx2.HTTPError:
            return False

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.client.close()
        self.client = self.make_client()

    def provision(self, environment: str) -> None:
        response = self.client.post("/api/v1/agent/provision", json={"agent_type": "server", "environment_name": environment})
        assert response.status_code == 200, response.text

    def revoke_tokens(self, environment: str) -> None:
        agent = self.client.get("/api/v1/agents", params={"environment_name": environment}).json()["items"][0]
        for token in self.client.get(f"/api/v1/agents/{agent['id']}/tokens").json()["items"]:
            self.client.delete(f"/api/v1/enrolment-tokens/{token['id']}")


def first_arrivals(received: list[Received]) -> dict[str, list[str]]:
    """Event types by agent, in the order in which each event first arrived."""
    seen, order = set(), {}
    for one in received:
        data = one.message["data"]
        if data["id"] not in seen:
            seen.add(data["id"])
            order.setdefault(data["agent_id"], []).append(one.message["type"])
    return order


def test_every_event_arrives_in_order_though_receiver_and_platform_die_in_the_middle(tmp_path, free_port):
    platform = RunningPlatform(tmp_path / "data", free_port)
    try:
        with receiver() as before:
            port = before.port
            body = {"name": "hook", "url": before.url, "filters": {"event_types": ["irca.agent.provisioned", "irca.token.revoked"]}}
            assert platform.client.post("/api/v1/webhooks", json=body).status_code == 201
            for number in range(AGENTS):
                platform.provision(f"env-{number}")
            eventually(lambda: before.received)
        platform.revoke_tokens("env-0")  # nobody listens now
        time.sleep(1.2)
        platform.kill()
        platform.start()
        for number in range(1, 6):
            platform.revoke_tokens(f"env-{number}")
        platform.kill()
        with receiver(port) as after:
            platform.start()
            wanted = AGENTS + 6
            eventually(lambda: sum(map(len, first_arrivals(before.received + after.received).values())) >= wanted, 120)
            order = first_arrivals(before.received + after.received)
        assert len(order) == AGENTS
        assert sum(map(len, order.values())) == wanted
        assert sorted(map(tuple, order.values()), key=len)[-6:] == [("irca.agent.provisioned", "irca.token.revoked")] * 6
    finally:
        platform.kill()
        platform.client.close()
