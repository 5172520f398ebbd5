"""The client: a session, the generated operations, queries and the live stream."""

from __future__ import annotations

from typing import Self

import httpx2

from app.client.generated.root import Operations
from app.client.live import Live
from app.client.prometheus import Prometheus
from app.client.session import RETRIES, TIMEOUT, Session


class Client(Operations):
    """The platform, for one thread at a time. Every method raises :class:`~app.client.errors.ClientError` when it did not do what it says.

    Args:
        url: where the platform is.
        key: API key.
        timeout: seconds within which the platform must connect, and then answer.
        retries: how often at most a request is repeated; see :class:`~app.client.session.Session`.
        http: makes the requests instead of a client of its own; it stays open.
    """

    def __init__(
        self, url: str, key: str = "", *, timeout: float = TIMEOUT, retries: int = RETRIES, http: httpx2.Client | None = None
    ) -> None:
        self.session = Session(url, key, timeout=timeout, retries=retries, http=http)
        self.prometheus = Prometheus(self.session)
        self.live = Live(self.session)
        super().__init__(self.session)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.session.close()
