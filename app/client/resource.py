"""What the operations under one tag share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from app.client.session import Session

_Item = TypeVar("_Item")
_Item_co = TypeVar("_Item_co", covariant=True)


class Paged(Protocol[_Item_co]):
    """One page of a list."""

    @property
    def items(self) -> Sequence[_Item_co]:
        """What is on it."""
        ...

    @property
    def next_cursor(self) -> str | None:
        """Where the next page begins; None on the last."""
        ...


class Resource:
    """Operations over one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @staticmethod
    def _items(page: Callable[[str | None], Paged[_Item]]) -> Iterator[_Item]:
        """Items of pages, asked for one after another, beginning without a cursor."""
        cursor: str | None = None
        while True:
            found = page(cursor)
            yield from found.items
            cursor = found.next_cursor
            if not cursor:
                return
