"""The agent's log: one line an entry on standard error, as text or JSON, each with an ``action`` and its facts. Secrets never."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Literal, TextIO

ROOT = "connectors"
_handler: logging.Handler | None = None


def configure(level: str = "info", form: Literal["text", "json"] = "text", stream: TextIO | None = None) -> None:
    """Send the ``connectors`` loggers' entries of at least ``level`` to ``stream`` (standard error). Calling again replaces that."""
    global _handler  # noqa: PLW0603 - the handler is process-wide, as loggers are
    logger = logging.getLogger(ROOT)
    if _handler is not None:
        logger.removeHandler(_handler)
    _handler = logging.StreamHandler(stream or sys.stderr)
    _handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logger.addHandler(_handler)
    logger.setLevel(level.upper())


def entry(logger: logging.Logger, level: int, action: str, message: str, **facts: Any) -> None:
    """Log ``message`` under ``action`` (dotted, what was being done) with ``facts``."""
    if logger.isEnabledFor(level):
        logger.log(level, message, extra={"action": action, "facts": facts})


class TextFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.123Z info spool.open message key=value``; line breaks are escaped, so an entry stays one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        words = [_time(record), record.levelname.lower(), _action(record), record.getMessage()]
        words += [f"{key}={_word(value)}" for key, value in _facts(record).items()]
        if record.exc_info:
            words.append(f"exception={_word(self.formatException(record.exc_info))}")
        return " ".join(words).replace("\r", "\\r").replace("\n", "\\n")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``action``, ``message`` and the entry's facts."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        document = {
            **_facts(record),
            "time": _time(record),
            "level": record.levelname.lower(),
            "action": _action(record),
            "message": record.getMessage(),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _action(record: logging.LogRecord) -> str:
    return getattr(record, "action", record.name)


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    return dict(getattr(record, "facts", {}))


def _word(value: Any) -> str:
    text = f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(c.isspace() or c in '"=' for c in text) else text
