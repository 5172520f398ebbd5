"""An agent whose collectors do what its options say, and a platform's side of remote configuration for it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import annotated_types as at

from connectors.core import opamp_pb2 as pb
from connectors.core.agent_config import AgentConfig, option
from connectors.core.errors import CollectorError, ConfigError
from connectors.core.telemetry import Collection, CollectorResult, Kind, Metric, Point, ResourceMetrics
from tests.running_agent import HOST, CountingAgent

APPLIED, APPLYING, FAILED = 1, 2, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialConfig(AgentConfig):
    """Options that make collectors behave."""

    value: float = option(1.0, "What is measured.")
    sick: tuple[str, ...] = option((), "Collectors that fail.")
    mode: str = option("", "How the agent behaves: broken, hanging, dead, fragile or impossible.")
    level: Annotated[int, at.Ge(0), at.Le(9)] = option(0, "A number with bounds.")
    where: str = option("here", "Something that only deployment decides.", scope="deploy")


class TrialAgent(CountingAgent):
    agent_type = "trial"
    config_class = TrialConfig
    closed = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.config.mode == "impossible":
            raise ConfigError("there is no such mode", field="mode")
        if self.config.mode == "fragile":
            raise RuntimeError("a fault of the type's own")

    def close(self):
        type(self).closed += 1

    def watch(self, emit, stopping):
        if self.config.mode == "dead":
            raise RuntimeError("the watch cannot go on")
        stopping.wait()

    def _gather_data(self):
        if self.config.mode == "broken":
            raise CollectorError("nothing works")
        if self.config.mode == "hanging":
            time.sleep(6)
        if self.config.mode == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        results = [CollectorResult(name, 0.001, "it is sick" if name in self.config.sick else "") for name in ("one", "two")]
        points = [Point(self.config.value)]
        return Collection(time.time_ns(), [ResourceMetrics(HOST, [Metric("test.value", "1", Kind.GAUGE, points)])], (), results)


class ConfigurationDesk:
    """Offers configuration to whoever beats, as long as they have not told that they have it, and keeps what they told."""

    def __init__(self, platform) -> None:
        self.platform = platform
        self.offer: tuple[bytes, Mapping[str, bytes]] | None = None
        self.statuses: list[tuple[bytes, int, str]] = []
        self.effective: dict[str, Any] = {}
        self.offered = 0
        self.always = False
        platform.heartbeat_interval = 1
        platform.answer_opamp = self._answer

    def push(self, digest: bytes, values: object | None) -> None:
        body = values if isinstance(values, bytes) else json.dumps(values).encode()
        self.offer = (digest, {} if values is None else {"agent.json": body})

    def _answer(self, message: pb.AgentToServer, answer: pb.ServerToAgent) -> None:
        if message.HasField("remote_config_status"):
            status = message.remote_config_status
            self.statuses.append((status.last_remote_config_hash, status.status, status.error_message))
        if message.HasField("effective_config"):
            self.effective = json.loads(message.effective_config.config_map.config_map["agent.json"].body)
        known = self.statuses[-1][0] if self.statuses else None
        if self.offer and (self.always or self.offer[0] != known):
            self.offered += 1
            digest, files = self.offer
            answer.remote_config.config_hash = digest
            answer.remote_config.config.SetInParent()
            for name, body in files.items():
                answer.remote_config.config.config_map[name].body = body
                answer.remote_config.config.config_map[name].content_type = "application/json"

    def told(self, digest: bytes, state: int) -> bool:
        return bool(self.statuses) and self.statuses[-1][:2] == (digest, state)

    def wait(self, digest: bytes, state: int) -> str:
        self.platform.wait(lambda: self.told(digest, state), 25)
        return self.statuses[-1][2]


@contextmanager
def running(agent):
    stopping, codes = threading.Event(), []
    thread = threading.Thread(target=lambda: codes.append(agent.run(stopping)), name="agent")
    thread.start()
    try:
        yield codes
    finally:
        stopping.set()
        thread.join(20)
    assert not thread.is_alive()


def options(state_dir, **more):
    return {"state_dir": str(state_dir), "collect_interval": 1, "heartbeat_interval": 5, "request_timeout": 2, **more}


def main() -> int:
    url, state_dir = sys.argv[1:3]
    return TrialAgent(url, "agent_test_token", options(state_dir)).run()


if __name__ == "__main__":
    sys.exit(main())
