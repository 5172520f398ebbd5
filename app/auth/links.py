"""One-time sign-in links: each signs one browser in, once, with the rights of the API key that it was made for."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from app.audit.records import Actor, Target
from app.audit.service import AuditService
from app.auth import repository
from app.auth.identity import Identity, digest
from app.db.models import SignInLinkRow
from app.db.session import Database
from app.errors import (
    InvalidRequestError,
    TokenExpiredError,
    TokenRevokedError,
    TokenUnknownError,
    TokenUsedUpError,
    UnauthenticatedError,
)

LINK_LIFETIME = timedelta(minutes=15)
_KEPT = timedelta(days=1)  # after its end, so that whoever opens it late is told why it does not work


class SignInLinks:
    """The links. ``key_of`` is who holds the API key of an id; it raises UnauthenticatedError where nobody does any more."""

    def __init__(self, database: Database, clock: Callable[[], float], audit: AuditService, key_of: Callable[[str], Identity]) -> None:
        self._database = database
        self._clock = clock
        self._audit = audit
        self._key_of = key_of

    async def create(self, key_id: str, actor: Actor, lifetime: timedelta) -> tuple[str, datetime]:
        """A link for the key of this id: its token, which nobody can learn again, and when it ends.

        Raises:
            InvalidRequestError: the key has expired or been revoked, or there is none.
        """
        try:
            identity = self._key_of(key_id)
        except UnauthenticatedError as exc:
            raise InvalidRequestError(f"no link can be made for the API key {key_id}: {exc.reason}") from exc
        now, token = self._now(), secrets.token_urlsafe(32)
        row = SignInLinkRow(token_hash=digest(token), api_key_id=key_id, created_at=now, expires_at=now + lifetime, used_at=None)
        async with self._database.write() as session:
            await repository.delete_links_before(session, now - _KEPT)
            session.add(row)
            after = {"expires_at": row.expires_at.isoformat()}
            self._audit.add(session, actor, "link.create", Target("api-key", key_id, identity.name), after=after)
        return token, row.expires_at

    async def look(self, token: str) -> tuple[Identity, datetime]:
        """Whom the link would sign in, and until when; it is not used up by that.

        Raises:
            UnauthenticatedError: it is unknown, used, expired, or its key no longer valid; the subclass tells which.
        """
        async with self._database.read() as session:
            return self._usable(await repository.find_link(session, digest(token)))

    async def use(self, session: AsyncSession, token: str) -> Identity:
        """Use the link up in the caller's transaction: whom it signs in.

        Raises:
            UnauthenticatedError: as :meth:`look`.
        """
        identity, _ = self._usable(await repository.find_link(session, digest(token)))
        if not await repository.use_link(session, digest(token), self._now()):
            raise _used()
        return identity

    def _usable(self, row: SignInLinkRow | None) -> tuple[Identity, datetime]:
        if row is None:
            raise TokenUnknownError("this sign-in link is not known to the platform; it may have been cut off when it was copied")
        if row.used_at is not None:
            raise _used()
        if row.expires_at <= self._now():
            raise TokenExpiredError("this sign-in link has expired")
        try:
            return self._key_of(row.api_key_id), row.expires_at
        except UnauthenticatedError as exc:
            raise TokenRevokedError("the API key that this sign-in link was made for is no longer valid") from exc

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def _used() -> TokenUsedUpError:
    return TokenUsedUpError("this sign-in link has been used; each works once")
