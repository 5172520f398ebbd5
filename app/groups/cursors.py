"""Where a page of a list ended, as an opaque text."""

from __future__ import annotations

import base64
import binascii

from app.errors import FieldError, InvalidRequestError


def encode(text: str) -> str:
    """The cursor of a page that ends with ``text``."""
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(cursor: str | None) -> str | None:
    """What the page before ended with; None without a cursor.

    Raises:
        InvalidRequestError: it is not a cursor of ours.
    """
    if cursor is None:
        return None
    try:
        return base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except (ValueError, binascii.Error) as exc:
        raise bad_cursor() from exc


def bad_cursor() -> InvalidRequestError:
    """The refusal of a cursor that is not one of the list."""
    return InvalidRequestError("the cursor is not valid", errors=[FieldError("cursor", "must be a next_cursor of this list")])
