"""Logging: structlog's rendering over the standard library's loggers, as text or JSON, one line a record, on standard error."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

LINK_PATH = "/sign-in/link/"
"""Where a one-time sign-in link leads: the token follows, which is a secret until it has been used."""


def _without_colour(_logger: Any, _method: str, record: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Drop uvicorn's second, coloured copy of its message."""
    record.pop("color_message", None)
    return record


def configure_logging(level: str, log_format: str) -> None:
    """Send every logger's records to standard error in ``log_format`` (text or json), from ``level`` on."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_colour,
    ]
    renderer: structlog.typing.Processor = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(),
        exception_formatter=structlog.dev.plain_traceback,  # the richer one prints local variables, secrets among them
    )
    if log_format == "json":
        shared.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer()
    handler = logging.StreamHandler(sys.stderr)
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[remove_meta, renderer]))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("uvicorn.access", "aiosqlite", "alembic"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers[:] = []
        logging.getLogger(name).propagate = True


def loggable(path: str) -> str:
    """A request's path as logs may hold it: without the token of a one-time sign-in link."""
    return LINK_PATH + "…" if path.startswith(LINK_PATH) else path
