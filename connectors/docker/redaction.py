"""Redaction, which every agent type shares, under the name that it has here."""

from __future__ import annotations

from connectors.core.redaction import MASK, redact

__all__ = ["MASK", "redact"]
