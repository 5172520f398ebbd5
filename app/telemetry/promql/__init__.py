"""PromQL over the metric store."""

from __future__ import annotations

from app.telemetry.promql.engine import QueryEngine, Result
from app.telemetry.promql.errors import QueryExecutionError, QuerySyntaxError, QueryTimeoutError

__all__ = ["QueryEngine", "QueryExecutionError", "QuerySyntaxError", "QueryTimeoutError", "Result"]
