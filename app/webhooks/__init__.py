"""Webhooks: events delivered to other systems, signed, in order, at least once."""
