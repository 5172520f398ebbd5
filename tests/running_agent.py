"""An agent of a type for tests: what it gathers is numbered, so that a test knows each value that must arrive."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time

from connectors.core.base_agent import BaseAgent
from connectors.core.errors import CollectorError
from connectors.core.telemetry import Collection, CollectorResult, Event, Kind, Metric, Point, ResourceMetrics

HOST = {"host.name": "test-host", "os.type": "linux"}


class CountingAgent(BaseAgent):
    agent_type = "counting"
    per_round = 3

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.numbers = itertools.count(1)
        self.failing = ""
        self.broken = False
        self.events = []

    def start(self):
        """Nothing to control."""

    def stop(self):
        """Nothing to control."""

    def get_deployment_command(self):
        return "true"

    def machine_id(self):
        return "the-machine"

    def resource(self):
        return HOST

    def _gather_data(self):
        if self.broken:
            raise RuntimeError("everything is broken")
        points = [Point(float(next(self.numbers)), {"n": n}) for n in range(self.per_round)]
        events, self.events = self.events, []
        return Collection(
            time.time_ns(),
            [ResourceMetrics(HOST, [Metric("test.count", "1", Kind.GAUGE, points)])],
            events,
            [CollectorResult("counter", 0.001, self.failing)],
        )


class WatchingAgent(CountingAgent):
    agent_type = "watching"
    failures = 0

    def watch(self, emit, stopping):
        if self.failures:
            type(self).failures -= 1
            raise CollectorError("the engine went away")
        emit(Event("test.change", {"n": 1}))
        stopping.wait()
        emit(Event("test.last", {"n": 2}))


def _collect_fast(agent):
    while True:
        agent.runtime._append(agent._gather_data())
        time.sleep(0.01)


def main() -> int:
    url, state_dir, kind = sys.argv[1:4]
    agent = {"counting": CountingAgent, "watching": WatchingAgent}[kind](
        url, "agent_test_token", {"state_dir": state_dir, "collect_interval": 1, "heartbeat_interval": 5, "request_timeout": 2}
    )
    if os.environ.get("FAST"):
        threading.Thread(target=_collect_fast, args=(agent,), daemon=True).start()
    return agent.run()


if __name__ == "__main__":
    sys.exit(main())
