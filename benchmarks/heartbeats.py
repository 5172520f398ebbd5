"""Heartbeats a second and core: OpAMP exchanges over keep-alive connections, divided by the CPU time that the platform spent."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from ingest import PROTOBUF, Connection, enrol, heartbeat, platform
from processes import answers, free_port, running, wait_for


def measure(agents: int = 50, beats: int = 400) -> float:
    """Heartbeats per second of CPU."""
    folder, port = Path(tempfile.mkdtemp(prefix="irca-bench-")), free_port()
    argv, env = platform(port, folder)
    with running(argv, env, folder) as server:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/readyz"), "start of the platform")
        instances = []
        for number in range(agents):
            uid, credential = enrol(port, f"env-{number}")
            instances.append((Connection(port), uid, {"authorization": f"Bearer {credential}", "content-type": PROTOBUF}))
        before = server.cpu_seconds()
        for beat in range(beats):
            for connection, uid, head in instances:
                connection.post("/v1/opamp", heartbeat(uid, beat + 3), head)
        time.sleep(2)
        return agents * beats / (server.cpu_seconds() - before)


if __name__ == "__main__":
    print(f"heartbeats: {measure():,.0f} a second and core")
