"""PromQL over the platform's Prometheus HTTP API."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from app.client.errors import UnexpectedAnswerError
from app.client.session import Session, segment

_BASE = "/prometheus/api/v1"
Instant = datetime | float | str
"""An instant: with its zone, in Unix seconds, or in RFC 3339."""


class Prometheus:
    """Queries; each answers the ``data`` of Prometheus' answer as JSON has it.

    Every method raises ClientError: nothing answered, or the query was refused (``reason`` has Prometheus' own words).
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def query(self, query: str, *, time: Instant | None = None, timeout: str | None = None) -> dict[str, Any]:
        """The value of an expression at an instant (now): ``{resultType, result}``."""
        found: dict[str, Any] = self._data("/query", {"query": query, "time": time, "timeout": timeout})
        return found

    def query_range(self, query: str, *, start: Instant, end: Instant, step: float | str, timeout: str | None = None) -> dict[str, Any]:
        """The values of an expression over a range, a point every ``step`` (seconds, or a duration as ``5m``)."""
        asked = {"query": query, "start": start, "end": end, "step": step, "timeout": timeout}
        found: dict[str, Any] = self._data("/query_range", asked)
        return found

    def series(self, match: Iterable[str], *, start: Instant | None = None, end: Instant | None = None) -> list[dict[str, str]]:
        """The series that any of the selectors matches, as their labels."""
        found: list[dict[str, str]] = self._data("/series", {"match[]": list(match), "start": start, "end": end})
        return found

    def labels(self, *, match: Iterable[str] = (), start: Instant | None = None, end: Instant | None = None) -> list[str]:
        """The names of all labels."""
        found: list[str] = self._data("/labels", {"match[]": list(match), "start": start, "end": end})
        return found

    def label_values(self, name: str, *, match: Iterable[str] = (), start: Instant | None = None, end: Instant | None = None) -> list[str]:
        """The values of one label."""
        found: list[str] = self._data(f"/label/{segment(name)}/values", {"match[]": list(match), "start": start, "end": end})
        return found

    def metadata(self, *, metric: str | None = None) -> dict[str, list[dict[str, str]]]:
        """Type, unit and help of metrics."""
        found: dict[str, list[dict[str, str]]] = self._data("/metadata", {"metric": metric})
        return found

    def buildinfo(self) -> dict[str, str]:
        """What answers, as Grafana asks it."""
        found: dict[str, str] = self._data("/status/buildinfo", {})
        return found

    def _data(self, path: str, query: Mapping[str, Any]) -> Any:
        try:
            document = self._session.request("GET", _BASE + path, query=query).json()
        except json.JSONDecodeError as exc:
            raise UnexpectedAnswerError(f"what answers at {self._session.url} is not a Prometheus API") from exc
        if not isinstance(document, dict) or document.get("status") != "success":
            raise UnexpectedAnswerError(f"what answers at {self._session.url} is not a Prometheus API")
        return document.get("data")
