"""Metrics in, stored and queried."""
