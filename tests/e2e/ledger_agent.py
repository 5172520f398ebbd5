"""An agent that produces as fast as it can: metrics and events through the spool to the platform, until it is killed or told to stop.

Run as a process: ``ledger_agent.py STATE_DIR PLATFORM_URL``; the token is in AGENT_TOKEN. On SIGTERM it sends what is left and exits.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from connectors.core.base_agent import BaseAgent
from connectors.core.telemetry import Collection, Event, Kind, Metric, Point, ResourceMetrics

POINTS, EVENTS = 200, 3


class LedgerAgent(BaseAgent):
    agent_type = "server"

    def start(self):
        raise AssertionError("not under control")

    stop = start

    def get_deployment_command(self):
        return ""

    def resource(self):
        return {"host.name": "ledger"}

    def _gather_data(self):
        points = [Point(float(n), {"n": str(n)}) for n in range(POINTS)]
        metrics = [Metric("ledger.value", "1", Kind.GAUGE, points)]
        events = [Event("ledger.event", {"n": n}) for n in range(EVENTS)]
        return Collection(time.time_ns(), [ResourceMetrics(self.resource(), metrics)], events)


def main() -> None:
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    state_dir, url = sys.argv[1:]
    agent = LedgerAgent(url, os.environ["AGENT_TOKEN"], {"state_dir": state_dir, "request_timeout": 10})
    while not stopping.is_set():
        agent.send_data(agent.collect_metrics())
        agent.heartbeat()
        time.sleep(0.02)  # points are kept to the millisecond: two collections in one would be one
    deadline = time.monotonic() + 60
    while sum(agent.runtime.status().spool.waiting.values()) and time.monotonic() < deadline:
        agent.runtime._sender.drain()
        time.sleep(0.1)
    agent.runtime.close()


main()
