"""The watch of an engine in a thread, as the runtime has it, and waiting for what it tells."""

from __future__ import annotations

import threading
from contextlib import contextmanager

from waiting import eventually

from connectors.core.errors import CollectorError
from connectors.docker.changes import ChangeWatch
from connectors.docker.config import DockerAgentConfig
from connectors.docker.engine import Engine

SECOND = 1_000_000_000


class Watch:
    """A watch in a thread, as the runtime has it: what it told, and what it ended with."""

    def __init__(self, engine, state_dir, *, again=None, quiet=60.0, timeout=2.0, **config):
        self.told = []
        self.error = None
        self.stopping = threading.Event()
        made = Engine({}, host=engine.host, timeout=timeout)
        self.watch = again or ChangeWatch(made, DockerAgentConfig.from_mapping(config), state_dir, quiet=quiet)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        try:
            self.watch.run(self.told.append, self.stopping)
        except CollectorError as exc:
            self.error = exc

    def names(self):
        return [event.name.removeprefix("irca.docker.") for event in self.told]

    def wait(self, name, count=1):
        eventually(lambda: self.names().count(name) >= count or not self.thread.is_alive())
        return [event for event in self.told if event.name == f"irca.docker.{name}"]

    def ended(self):
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.error

    def stop(self):
        self.stopping.set()
        self.ended()


@contextmanager
def watching(engine, state_dir, **options):
    follows = engine.requests.count("/events")
    watch = Watch(engine, state_dir, **options)
    # The first request for events looks back, the second follows.
    eventually(lambda: engine.requests.count("/events") >= follows + 2 or not watch.thread.is_alive())
    try:
        yield watch
    finally:
        watch.stop()
