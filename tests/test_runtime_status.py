"""What the runtime tells of itself: its health, its status file and its log."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest

from connectors.core import log
from connectors.core.errors import StateError
from connectors.core.health import Facts, health, reasons
from connectors.core.status import read_status
from connectors.core.telemetry import CollectorResult
from tests.runtime_agents import made_agents

pytestmark = pytest.mark.sockets


@pytest.fixture
def make(tmp_path):
    with made_agents(tmp_path) as agent:
        yield agent


def test_health_is_a_function_of_facts_and_clock():
    fine = Facts(started_at=0.0, collect_interval=10.0, last_collection_at=100.0, collectors=(CollectorResult("cpu", 0.1),))
    assert health(fine, 110.0).healthy
    late = health(fine, 200.0)
    assert reasons(late) == {"collectors": "no data was collected for 3 intervals"}
    assert (late.status, late.healthy) == ("degraded", False)
    assert not health(Facts(0.0, 10.0), 100.0).healthy
    assert health(Facts(0.0, 10.0, clock_skew=59.0), 1.0).healthy


def test_a_status_is_judged_by_process_and_age(tmp_path, make):
    agent = make("http://localhost:1")
    agent.runtime._write_status()
    folder = tmp_path / "state"
    assert read_status(folder, time.time).state == "healthy"
    assert read_status(folder, lambda: time.time() + 1000).state == "stale"
    document = json.loads((folder / "status.json").read_text())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid in (gone.pid, 0):
        (folder / "status.json").write_text(json.dumps({**document, "pid": pid, "later_field": 1}))
        dead = read_status(folder, time.time)
        assert dead.state == "dead"
        assert "gone" in dead.reasons["process"]
    (folder / "status.json").write_text(json.dumps({**document, "pid": 1}))
    assert read_status(folder, time.time).state == "healthy"


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"spool": {}}', b"\xff"])
def test_a_status_that_cannot_be_read_is_a_clear_error(tmp_path, content):
    (tmp_path / "status.json").write_bytes(content)
    with pytest.raises(StateError, match="damaged"):
        read_status(tmp_path, time.time)


def test_where_no_agent_has_run_there_is_no_status(tmp_path):
    with pytest.raises(StateError, match="no agent has run"):
        read_status(tmp_path, time.time)
    (tmp_path / "status.json").mkdir()
    with pytest.raises(StateError, match="cannot be read"):
        read_status(tmp_path, time.time)


def test_a_status_that_cannot_be_written_is_no_reason_to_stop(make, tmp_path):
    agent = make("http://localhost:1")
    assert agent.runtime
    (tmp_path / "state" / "status.json").mkdir()
    agent.runtime._write_status()


# The log.


@pytest.fixture
def stream():
    yield (made := StringIO())
    log.configure("info", "text", sys.stderr)
    assert made is not None


def test_log_lines_are_single_and_carry_action_and_facts(stream):
    log.configure("debug", "text", stream)
    logger = logging.getLogger("connectors.test")
    log.entry(logger, logging.INFO, "test.action", "it happened", path="a b", number=1.5, empty="")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("failed\nbadly")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].endswith('Z info test.action it happened path="a b" number=1.5 empty=""')
    assert " error connectors.test failed\\nbadly exception=" in lines[1]


def test_log_lines_as_json_are_json(stream):
    log.configure("info", "json", stream)
    logger = logging.getLogger("connectors.test")
    log.entry(logger, logging.DEBUG, "test.hidden", "not shown")
    log.entry(logger, logging.WARNING, "test.action", "it\nhappened", path=Path("x"))
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("failed")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["level"], first["action"], first["message"], first["path"]) == ("warning", "test.action", "it\nhappened", "x")
    assert "ValueError: why" in second["exception"]
