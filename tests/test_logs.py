from __future__ import annotations

import json
import logging

import pytest

from app.logs import configure_logging


@pytest.fixture(autouse=True)
def _root_as_before():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def _fail() -> None:
    password = "hunter2"  # noqa: F841 - a local variable that a traceback must not show
    raise RuntimeError("it broke")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_failure_is_logged_without_local_variables(capsys, log_format):
    configure_logging("info", log_format)
    try:
        _fail()
    except RuntimeError:
        logging.getLogger("app.test").exception("a job failed", extra={"action": "job_failed"})
    text = capsys.readouterr().err
    assert "it broke" in text
    assert "job_failed" in text
    assert "hunter2" not in text


def test_json_lines_are_one_object_each_with_level_logger_and_extras(capsys):
    configure_logging("warning", "json")
    logging.getLogger("app.test").info("not shown")
    logging.getLogger("app.test").warning("shown %s", "once", extra={"action": "x", "color_message": "never"})
    (line,) = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert (record["event"], record["level"], record["logger"], record["action"]) == ("shown once", "warning", "app.test", "x")
    assert "color_message" not in record
