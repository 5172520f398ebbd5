"""Idempotency keys: the first answer to a request that creates something is kept for a day and given again when the request is repeated.

An answer may hold a secret that is shown once, so answers are encrypted; their key lies in the data directory and not in the database.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from sqlalchemy import delete, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from app.db.models import IdempotencyRow
from app.db.session import Database
from app.errors import IdempotencyKeyReusedError, RequestInProgressError

LIFETIME = timedelta(hours=24)
"""For how long an answer is kept."""
ABANDONED_AFTER = timedelta(seconds=60)
"""A request that has no answer by then is taken for lost with the platform that was answering it, and made anew when it is repeated."""


class Box(Protocol):
    """Encrypts and decrypts texts."""

    def seal(self, text: str) -> bytes:
        """``text``, encrypted."""
        ...

    def unseal(self, sealed: bytes) -> str:
        """The text of :meth:`seal`."""
        ...


@dataclass(frozen=True, slots=True)
class KeyedRequest:
    """A request that carries an idempotency key.

    ``actor_id`` is whose key it is, ``route`` what is asked (``POST /api/v1/groups``), ``request_hash`` the SHA-256 of all that makes it
    the same request.
    """

    actor_id: str
    key: str
    route: str
    request_hash: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer: status, the headers that belong to its content, and body."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Begun:
    """The right to answer a request: what :meth:`IdempotencyStore.finish` and :meth:`IdempotencyStore.forget` want."""

    request: KeyedRequest
    at: datetime


class IdempotencyStore:
    """Which keyed requests were begun, and what was answered."""

    def __init__(self, database: Database, box: Box, clock: Callable[[], float]) -> None:
        self._database = database
        self._box = box
        self._clock = clock

    async def begin(self, request: KeyedRequest) -> Begun | Answer:
        """The right to answer, or the answer of the first time.

        Raises:
            IdempotencyKeyReusedError: the key was used for another request.
            RequestInProgressError: the first request is still being answered.
            StorageError: the database failed, or the answer cannot be decrypted.
        """
        now = self._now()
        values = {
            "actor_id": request.actor_id,
            "key": request.key,
            "route": request.route,
            "request_hash": request.request_hash,
            "status_code": None,
            "response": None,
            "created_at": now,
        }
        insert: Any = sqlite_insert if self._database.is_sqlite else postgresql_insert
        statement = (
            insert(IdempotencyRow).values(values).on_conflict_do_nothing(index_elements=["actor_id", "key"]).returning(IdempotencyRow.key)
        )
        async with self._database.write() as session:
            if (await session.execute(statement)).scalar() is not None:
                return Begun(request, now)
            found = await session.get(IdempotencyRow, (request.actor_id, request.key), with_for_update=True)
            if found is None:
                raise RequestInProgressError(retry_after=1)  # it was forgotten this very moment
            if found.created_at > now - LIFETIME:
                if (found.route, found.request_hash) != (request.route, request.request_hash):
                    raise IdempotencyKeyReusedError(
                        f"the idempotency key was used before, for {found.route}{_other(found.route, request)}; "
                        "take a new key for each request"
                    )
                if found.status_code is not None and found.response is not None:
                    return self._opened(found.status_code, found.response)
                if (left := found.created_at + ABANDONED_AFTER - now) > timedelta(0):
                    raise RequestInProgressError(retry_after=min(2.0, left.total_seconds()))
            found.route, found.request_hash, found.created_at = request.route, request.request_hash, now
            found.status_code = found.response = None
        return Begun(request, now)

    async def finish(self, begun: Begun, answer: Answer) -> None:
        """Keep the answer; does nothing when somebody else has taken the request over meanwhile.

        Raises:
            StorageError: the database failed.
        """
        document = {"headers": dict(answer.headers), "body": base64.b64encode(answer.body).decode("ascii")}
        sealed = self._box.seal(json.dumps(document))
        async with self._database.write() as session:
            await session.execute(update(IdempotencyRow).where(*_mine(begun)).values(status_code=answer.status, response=sealed))

    async def forget(self, begun: Begun) -> None:
        """Let the request be made again under its key: nothing came of it.

        Raises:
            StorageError: the database failed.
        """
        async with self._database.write() as session:
            await session.execute(delete(IdempotencyRow).where(*_mine(begun)))

    async def drop_older(self) -> None:
        """Drop the answers whose time is over.

        Raises:
            StorageError: the database failed.
        """
        async with self._database.write() as session:
            await session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at <= self._now() - LIFETIME))

    def _opened(self, status: int, sealed: bytes) -> Answer:
        document = json.loads(self._box.unseal(sealed))
        return Answer(status, base64.b64decode(document["body"]), document["headers"])

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def _other(route: str, request: KeyedRequest) -> str:
    return "" if route != request.route else " with other content or rights"


def _mine(begun: Begun) -> tuple[Any, ...]:
    return (
        IdempotencyRow.actor_id == begun.request.actor_id,
        IdempotencyRow.key == begun.request.key,
        IdempotencyRow.created_at == begun.at,
        IdempotencyRow.status_code.is_(None),
    )
