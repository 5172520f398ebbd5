"""One kind of event, as a value: what the tables of events are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

INFO, WARN, ERROR = 9, 13, 17
"""OTel severity numbers."""


@dataclass(frozen=True, slots=True)
class EventType:
    """One kind of event. ``source`` is who records it: the platform or an agent."""

    name: str
    severity: int
    meaning: str
    attributes: Mapping[str, str]
    source: str = "platform"
