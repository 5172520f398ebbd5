"""The probe: what an orchestrator hears of the agent beside it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from platform_fixtures import START

from connectors.core import probe
from connectors.core.status import AgentStatus, SpoolStatus, write_status


def status(**values):
    known = {
        "pid": os.getpid(),
        "version": "1",
        "agent_type": "kubernetes",
        "instance_id": "i",
        "platform_url": "https://p.example.com",
        "state": "healthy",
        "reasons": {},
        "started_at": START,
        "written_at": START,
        "enrolled": True,
        "last_collection_at": None,
        "last_send_at": None,
        "last_heartbeat_at": None,
        "heartbeat_interval": 30.0,
        "clock_skew": None,
        "spool": SpoolStatus(),
    }
    return AgentStatus(**{**known, **values})


@pytest.mark.parametrize(
    ("values", "now", "live", "ready"),
    [
        ({}, START, 0, 0),
        ({"state": "degraded", "reasons": {"transport": "the platform is away"}}, START + 60, 0, 0),
        ({"enrolled": False, "state": "degraded", "reasons": {"transport": "the token has expired"}}, START, 0, 1),
        ({}, START + 600, 1, 1),
        ({"state": "stopped"}, START, 1, 1),
        ({"pid": 2**22 + 1}, START, 1, 1),
    ],
    ids=["healthy", "degraded", "not enrolled", "silent", "stopped", "dead"],
)
def test_a_restart_is_asked_for_only_where_it_helps(tmp_path, capsys, values, now, live, ready):
    write_status(tmp_path, status(**values))

    answers = [probe.main([question], {"STATE_DIR": str(tmp_path)}, lambda: now) for question in ("live", "ready")]

    assert answers == [live, ready]
    assert bool(capsys.readouterr().out) == bool(live or ready)


def test_the_reason_is_where_kubernetes_shows_it(tmp_path, capsys):
    write_status(tmp_path, status(enrolled=False, reasons={"transport": "the token has expired"}))
    assert probe.main(["ready"], {"STATE_DIR": str(tmp_path)}, lambda: START) == 1
    assert capsys.readouterr().out == "not enrolled yet; the token has expired\n"


@pytest.mark.parametrize("words", [[], ["alive"], ["live", "ready"]])
def test_wrong_usage_is_told_apart_from_no(words, capsys):
    assert probe.main(words, {}) == 2
    assert "usage" in capsys.readouterr().err


def test_it_runs_as_the_chart_runs_it_and_loads_little(tmp_path):
    code = "import runpy, sys\nsys.argv=['probe', 'live']\ntry: runpy.run_module('connectors.core.probe', run_name='__main__')\n"
    code += "except SystemExit as e: print(e.code, [m for m in ('ssl', 'argparse', 'google.protobuf', 'psutil') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "STATE_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == [f"no agent has run on the state directory {tmp_path}", "1 []"]
