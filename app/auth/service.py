"""API keys, browser sessions and roles.

Keys and session tokens are random and long, so their SHA-256 digest is what is stored and looked up: nothing that leaks from the
database signs anybody in, and a look-up by digest gives no timing to learn from.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from app.audit.records import SYSTEM, Actor, Target
from app.audit.service import AuditService
from app.auth import repository
from app.auth.identity import EVERYWHERE, Identity, Role
from app.auth.identity import digest as _digest
from app.auth.links import LINK_LIFETIME, SignInLinks
from app.auth.rate_limit import FailureLimit
from app.auth.sessions import SESSION_LIFETIME, SessionKind, Sessions, SessionView
from app.db.models import ApiKeyRow
from app.db.session import Database
from app.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PlatformError,
    TokenExpiredError,
    TokenRevokedError,
    TokenUnknownError,
    UnauthenticatedError,
)

__all__ = [
    "EVERYWHERE",
    "KEY_OVERLAP",
    "LINK_LIFETIME",
    "SESSION_COOKIE",
    "SESSION_LIFETIME",
    "AuthService",
    "Identity",
    "Role",
    "SessionKind",
    "SessionView",
]

SESSION_COOKIE = "irca_session"
"""Name of the cookie that carries a browser's session token; under TLS with a prefix, see :mod:`app.auth.cookies`."""
SIGN_IN_BURST, SIGN_IN_EVERY = 10, 30.0
"""Failed sign-ins that an address may make at once, and seconds after which it may make one more."""
KEY_OVERLAP = timedelta(hours=1)
"""How long a rotated key stays valid beside its successor, unless the request says otherwise."""
_KEY_PREFIX = "irca_"
_PRESET_AT_LEAST = 20
_SHOWN = 10  # characters of a key that lists show: enough to recognise it, far too few to guess the rest


class AuthService:
    """Keeps the keys; all of them are in memory, the database is their durable copy."""

    def __init__(self, database: Database, clock: Callable[[], float], audit: AuditService | None = None) -> None:
        self._database = database
        self._clock = clock
        self._audit = audit or AuditService(database, clock)
        self._failures = FailureLimit(SIGN_IN_BURST, SIGN_IN_EVERY, clock)
        self._keys: dict[bytes, ApiKeyRow] = {}
        self._used: dict[str, datetime] = {}
        self._sessions = Sessions(database, clock, self._audit, self._identity_of)
        self._links = SignInLinks(database, clock, self._audit, self._identity_of)

    async def load(self) -> None:
        """Read the keys from the database; once, first."""
        async with self._database.read() as session:
            self._keys = {row.key_hash: row for row in await repository.all_keys(session)}

    async def ensure_first_key(self, preset: str = "") -> str | None:
        """Make the first admin key where none exists, or make sure that the preset one does.

        Returns:
            The text of a generated key, to be shown once; None when nothing was generated.

        Raises:
            InvalidRequestError: the preset is shorter than 20 characters.
        """
        if preset:
            if len(preset) < _PRESET_AT_LEAST:
                raise InvalidRequestError("IRCA_ADMIN_API_KEY must have at least 20 characters")
            if _digest(preset) not in self._keys:
                await self._insert("preset", Role.ADMIN, preset, None)
            return None
        if any(row.role == Role.ADMIN.name.lower() and row.revoked_at is None for row in self._keys.values()):
            return None
        _, text = await self.create_key("first", Role.ADMIN)
        return text

    async def create_key(
        self,
        name: str,
        role: Role,
        expires_in: timedelta | None = None,
        *,
        environments: Sequence[str] = EVERYWHERE,
        actor: Actor = SYSTEM,
    ) -> tuple[ApiKeyRow, str]:
        """A new key: its record, and its text, which nobody can learn again.

        Args:
            name: who or what will use it.
            role: what it may do.
            expires_in: how long it lasts; None for ever.
            environments: patterns of the environments in which it may do that.
            actor: who makes it.
        """
        text = _KEY_PREFIX + secrets.token_urlsafe(32)
        row = await self._insert(name, role, text, self._now() + expires_in if expires_in else None, environments, actor)
        return row, text

    def list_keys(self) -> list[ApiKeyRow]:
        """All keys, oldest first."""
        return sorted(self._keys.values(), key=lambda row: (row.created_at, row.id))

    def get_key(self, key_id: str) -> ApiKeyRow:
        """One key.

        Raises:
            NotFoundError: no such key.
        """
        row = next((r for r in self._keys.values() if r.id == key_id), None)
        if row is None:
            raise NotFoundError(f"there is no API key {key_id}")
        return row

    async def rotate_key(self, key_id: str, overlap: timedelta = KEY_OVERLAP, actor: Actor = SYSTEM) -> tuple[ApiKeyRow, str]:
        """A new key in the place of one: its record, and its text, which nobody can learn again. The one before ends after ``overlap``.

        The new one has the same name, role and environments, and lasts as long as the one before was meant to. Browser sessions of the one
        before end with it.

        Raises:
            NotFoundError: no such key.
            ConflictError: it has been revoked, or has expired.
        """
        before = self.get_key(key_id)
        now = self._now()
        if before.revoked_at is not None or (before.expires_at is not None and before.expires_at <= now):
            raise ConflictError("this API key is no longer valid: create another")
        ends = now + overlap if before.expires_at is None else min(before.expires_at, now + overlap)
        lasts = None if before.expires_at is None else now + (before.expires_at - before.created_at)
        text = _KEY_PREFIX + secrets.token_urlsafe(32)
        row = self._row(before.name, Role.named(before.role), text, lasts, before.environments)
        async with self._database.write() as session:
            session.add(row)
            await repository.set_expiry(session, key_id, ends)
            after = {
                "id": row.id,
                "prefix": row.prefix,
                "expires_at": lasts.isoformat() if lasts else None,
                "overlap": overlap.total_seconds(),
            }
            self._audit.add(session, actor, "api-key.rotate", Target("api-key", key_id, before.name), after=after)
        before.expires_at = ends
        self._keys[row.key_hash] = row
        return row, text

    async def revoke_key(self, key_id: str, actor: Actor = SYSTEM) -> None:
        """Revoke a key and end its browser sessions, at once.

        Raises:
            NotFoundError: no such key.
            InvalidRequestError: it is the last admin key.
        """
        row, now = self.get_key(key_id), self._now()
        lasting = [
            r for r in self._keys.values() if r.role == "admin" and r.revoked_at is None and (r.expires_at is None or r.expires_at > now)
        ]
        if lasting == [row]:
            raise InvalidRequestError("this is the last admin key: create another before you revoke it")
        row.revoked_at = now
        async with self._database.write() as session:
            await repository.set_revoked(session, key_id, row.revoked_at)
            self._audit.add(session, actor, "api-key.revoke", Target("api-key", row.id, row.name))

    def verify_key(self, text: str) -> Identity:
        """Who holds this key.

        Raises:
            UnauthenticatedError: unknown, expired or revoked; the subclass and code tell which.
        """
        row = self._keys.get(_digest(text))
        if row is None:
            raise UnauthenticatedError("this API key is not known to the platform")
        identity = self._identity(row)
        self._used[row.id] = self._now()
        return identity

    async def open_session(self, text: str, client_address: str = "", user_agent: str = "") -> tuple[str, datetime]:
        """A browser session for the holder of this key: its token and when it ends.

        Raises:
            UnauthenticatedError: as :meth:`verify_key`.
            TooManyRequestsError: too many have failed from this address; it says when to try again.
        """
        self._failures.check(client_address)
        try:
            identity = self.verify_key(text)
        except UnauthenticatedError as exc:
            await self.refuse_sign_in(exc, client_address, user_agent)
            raise
        async with self._database.write() as session:
            return await self._sessions.add(session, identity, "key", SESSION_LIFETIME, client_address, user_agent)

    async def open_session_by_link(self, token: str, client_address: str = "", user_agent: str = "") -> tuple[str, datetime]:
        """A browser session by a one-time link, which is used up: the session's token and when it ends.

        Raises:
            UnauthenticatedError: the link is unknown, used, expired, or its key no longer valid; the subclass tells which.
            TooManyRequestsError: as :meth:`open_session`.
        """
        self._failures.check(client_address)
        try:
            async with self._database.write() as session:
                identity = await self._links.use(session, token)
                opened = await self._sessions.add(session, identity, "link", SESSION_LIFETIME, client_address, user_agent)
        except UnauthenticatedError as exc:
            await self.refuse_sign_in(exc, client_address, user_agent)
            raise
        self._used[identity.key_id] = self._now()
        return opened

    async def open_user_session(
        self, user: Identity, lifetime: timedelta, client_address: str = "", user_agent: str = ""
    ) -> tuple[str, datetime]:
        """A browser session for a user whom the OpenID provider has vouched for: its token and when it ends."""
        async with self._database.write() as session:
            return await self._sessions.add(session, user, "oidc", lifetime, client_address, user_agent)

    def may_try(self, client_address: str) -> None:
        """Do nothing, or raise TooManyRequestsError when too many sign-ins have failed from this address."""
        self._failures.check(client_address)

    async def refuse_sign_in(
        self, exc: PlatformError, client_address: str, user_agent: str, who: Actor | None = None, *, counted: bool = True
    ) -> None:
        """Put on record that a sign-in was refused, and count it against the address.

        Args:
            exc: why.
            client_address: the other end of the connection.
            user_agent: what the browser says it is.
            who: whoever it was, where that is known.
            counted: whether it may have been a guess; False for what is nobody's fault.
        """
        if counted:
            self._failures.failed(client_address)
        actor = who or Actor("anonymous", "", "somebody", client_address, user_agent)
        await self._audit.record(actor, "session.open", Target("session", ""), outcome="refused", reason=exc.reason)

    async def session(self, token: str) -> Identity | None:
        """Who this browser session belongs to; None when it is not, or no longer, valid."""
        return await self._sessions.find(token)

    async def close_session(self, token: str, client_address: str = "", user_agent: str = "") -> None:
        """End a browser session, for whoever is in it."""
        await self._sessions.close(token, client_address, user_agent)

    async def list_sessions(self) -> list[SessionView]:
        """The browser sessions that are valid now, newest first."""
        return await self._sessions.list_live()

    async def end_session(self, session_id: str, actor: Actor = SYSTEM) -> None:
        """End somebody's browser session, at once.

        Raises:
            NotFoundError: there is none of this id.
        """
        await self._sessions.end(session_id, actor)

    async def end_user_sessions(self) -> None:
        """End the browser sessions of the OpenID provider's users: for a platform that no longer has one."""
        await self._sessions.end_users()

    async def create_link(self, key_id: str, actor: Actor = SYSTEM, lifetime: timedelta = LINK_LIFETIME) -> tuple[str, datetime]:
        """A one-time sign-in link for a key: its token, which nobody can learn again, and when it ends.

        Raises:
            InvalidRequestError: there is no such key, or it is no longer valid.
        """
        return await self._links.create(key_id, actor, lifetime)

    async def look_at_link(self, token: str, client_address: str = "") -> tuple[Identity, datetime]:
        """Whom a one-time link would sign in, and until when; it is not used up by that.

        Raises:
            UnauthenticatedError: as :meth:`open_session_by_link`.
            TooManyRequestsError: as :meth:`open_session`.
        """
        self._failures.check(client_address)
        try:
            return await self._links.look(token)
        except TokenUnknownError:
            self._failures.failed(client_address)
            raise

    async def flush(self) -> None:
        """Write when keys were last used."""
        used, self._used = self._used, {}
        if used:
            for row in self._keys.values():
                row.last_used_at = used.get(row.id, row.last_used_at)
            async with self._database.write() as session:
                await repository.set_last_used(session, used)

    async def _insert(
        self,
        name: str,
        role: Role,
        text: str,
        expires_at: datetime | None,
        environments: Sequence[str] = EVERYWHERE,
        actor: Actor = SYSTEM,
    ) -> ApiKeyRow:
        row = self._row(name, role, text, expires_at, environments)
        after = {"role": row.role, "environments": row.environments, "expires_at": expires_at.isoformat() if expires_at else None}
        async with self._database.write() as session:
            session.add(row)
            self._audit.add(session, actor, "api-key.create", Target("api-key", row.id, name), after=after)
        self._keys[row.key_hash] = row
        return row

    def _row(self, name: str, role: Role, text: str, expires_at: datetime | None, environments: Sequence[str]) -> ApiKeyRow:
        return ApiKeyRow(
            id=str(uuid.uuid4()),
            name=name,
            role=role.name.lower(),
            environments=list(environments),
            prefix=text[:_SHOWN],
            key_hash=_digest(text),
            created_at=self._now(),
            expires_at=expires_at,
            last_used_at=None,
            revoked_at=None,
        )

    def _identity(self, row: ApiKeyRow) -> Identity:
        if row.revoked_at is not None:
            raise TokenRevokedError("this API key has been revoked")
        if row.expires_at is not None and row.expires_at <= self._now():
            raise TokenExpiredError("this API key has expired")
        return Identity(row.id, row.name, Role.named(row.role), tuple(row.environments), expires_at=row.expires_at)

    def _identity_of(self, key_id: str) -> Identity:
        row = next((r for r in self._keys.values() if r.id == key_id), None)
        if row is None:
            raise UnauthenticatedError("this API key is not known to the platform")
        return self._identity(row)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)
