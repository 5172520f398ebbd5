"""The events that the server agent type records of its host."""

from __future__ import annotations

from app.events.event_type import EventType

SERVER_EVENTS: tuple[EventType, ...] = ()
"""In the order in which they are documented."""
