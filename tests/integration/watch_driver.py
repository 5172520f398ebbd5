"""Runs a server agent's watch and writes each event as a line of JSON: ``watch_driver.py STATE_DIR OUT [OPTIONS AS JSON]``."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from pathlib import Path

from connectors.server.server_agent import ServerAgent


def main() -> None:
    state_dir, out, *rest = sys.argv[1:]
    options = json.loads(rest[0]) if rest else {}
    agent = ServerAgent("http://localhost:1", "agent_test_token", {"state_dir": state_dir, **options})
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    with Path(out).open("a", buffering=1, encoding="utf-8") as file:

        def emit(event) -> None:
            document = {"id": event.id, "name": event.name, "body": event.body, "severity": int(event.severity), "received": time.time()}
            file.write(json.dumps({**document, "time": event.time_unix_nano, "attributes": dict(event.attributes)}) + "\n")

        thread = threading.Thread(target=agent.watch, args=(emit, stopping))
        thread.start()
        while thread.is_alive():
            changes = agent._changes
            if changes is not None and len(changes._due) == len(changes._watchers):
                file.write(json.dumps({"name": "ready", "failures": [r.reason for r in changes.failures()]}) + "\n")
                break
            time.sleep(0.1)
        while not stopping.wait(0.5):
            pass
        thread.join()
        file.write(json.dumps({"name": "stopped", "failures": [r.reason for r in agent._changes.failures()]}) + "\n")


if __name__ == "__main__":
    main()
