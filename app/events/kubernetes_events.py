"""The events that the kubernetes agent type records of its cluster."""

from __future__ import annotations

from app.events.event_type import EventType

KUBERNETES_EVENTS: tuple[EventType, ...] = ()
"""In the order in which they are documented."""
