"""Agents for the tests of the runtime, run whole or a step at a time, and what of theirs arrived."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

from connectors.core.spool import Spool
from tests.running_agent import CountingAgent


@contextmanager
def made_agents(tmp_path):
    """A function that makes agents of one state directory below ``tmp_path``; their runtimes are closed at the end."""
    made = []

    def agent(url, kind=CountingAgent, token="agent_test_token", **config):
        config = {"state_dir": str(tmp_path / "state"), "collect_interval": 1, "heartbeat_interval": 5, "request_timeout": 2} | config
        made.append(kind(url, token, config))
        return made[-1]

    yield agent
    for each in made:
        if each._runtime is not None:
            each._runtime.close()


@contextmanager
def running(agent):
    stopping, codes = threading.Event(), []
    thread = threading.Thread(target=lambda: codes.append(agent.run(stopping)))
    thread.start()
    try:
        yield codes
    finally:
        stopping.set()
        thread.join(20)
    assert not thread.is_alive()


def spool_of(tmp_path):
    return Spool(tmp_path / "state" / "spool.db", 256 << 20, 1e9, time.time)


def counted(platform):
    return sorted(platform.values("test.count"))
