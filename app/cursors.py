"""Positions in lists as opaque text: the ``next_cursor`` that a page carries and the next one is asked for with."""

from __future__ import annotations

import base64
import json
import math
from datetime import UTC, datetime
from typing import Any

from app.errors import FieldError, InvalidRequestError

_LARGEST = 2**63 - 1


def encode_cursor(*key: float | str | datetime) -> str:
    """A position as text; ``key`` is what the list is sorted by, its last part an id."""
    parts = [part.isoformat() if isinstance(part, datetime) else part for part in key]
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None, *kinds: type) -> tuple[Any, ...] | None:
    """The position that :func:`encode_cursor` was given, of parts of these ``kinds`` (int, float, str, datetime); None for None.

    Raises:
        InvalidRequestError: it is no such position. Numbers are finite and fit into 64 bits, times carry their zone.
    """
    if cursor is None:
        return None
    try:
        parts = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if isinstance(parts, list) and len(parts) == len(kinds):
            return tuple(_part(part, kind) for part, kind in zip(parts, kinds, strict=True))
    except (ValueError, RecursionError):
        pass
    raise InvalidRequestError("the cursor is not valid", errors=[FieldError("cursor", "must be a next_cursor of this list")])


def _part(part: object, kind: type) -> object:
    if kind is datetime and isinstance(part, str):
        moment = datetime.fromisoformat(part)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    finite = not isinstance(part, float) or math.isfinite(part)
    if type(part) is kind and finite and not (isinstance(part, int) and abs(part) > _LARGEST):
        return part
    raise ValueError(part)
