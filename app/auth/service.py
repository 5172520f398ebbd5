"""API keys, browser sessions and roles.

Keys and session tokens are random and long, so their SHA-256 digest is what is stored and looked up: nothing that leaks from the
database signs anybody in, and a look-up by digest gives no timing to learn from.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from fnmatch import fnmatchcase

from app.audit.records import SYSTEM, Actor, Target
from app.audit.service import AuditService
from app.auth import repository
from app.auth.rate_limit import FailureLimit
from app.db.models import ApiKeyRow, BrowserSessionRow
from app.db.session import Database
from app.errors import (
    FieldError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    TokenExpiredError,
    TokenRevokedError,
    UnauthenticatedError,
)

SESSION_COOKIE = "irca_session"
"""Name of the cookie that carries a browser's session token."""
SESSION_LIFETIME = timedelta(days=7)
SIGN_IN_BURST, SIGN_IN_EVERY = 10, 30.0
"""Failed sign-ins that an address may make at once, and seconds after which it may make one more."""
EVERYWHERE = ("*",)
"""Patterns of environments that leave out none."""
_KEY_PREFIX = "irca_"
_PRESET_AT_LEAST = 20
_SHOWN = 10  # characters of a key that lists show: enough to recognise it, far too few to guess the rest


class Role(IntEnum):
    """What a key may do; each role may do all that a lesser one may."""

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3

    @classmethod
    def named(cls, name: str) -> Role:
        """The role of this name.

        Raises:
            InvalidRequestError: there is none.
        """
        try:
            return cls[name.upper()]
        except KeyError:
            known = ", ".join(r.name.lower() for r in cls)
            raise InvalidRequestError(f"unknown role {name!r}", errors=[FieldError("role", f"must be one of {known}")]) from None


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is asking: an API key, directly or through a browser session. ``environments`` are patterns (``prod-*``) of names."""

    key_id: str
    name: str
    role: Role
    environments: tuple[str, ...] = ("*",)

    def require(self, role: Role) -> None:
        """Do nothing, or raise ForbiddenError when the role is not enough."""
        if self.role < role:
            raise ForbiddenError(f"this needs the role {role.name.lower()}; the key {self.name!r} has {self.role.name.lower()}")

    def sees(self, environment_name: str | None) -> bool:
        """Whether the role holds in this environment; what belongs to no environment (None) is seen by everybody."""
        return environment_name is None or any(fnmatchcase(environment_name, pattern) for pattern in self.environments)

    @property
    def everywhere(self) -> bool:
        """Whether the role holds in every environment; what is not of one environment (groups, webhooks, keys) takes that to change."""
        return "*" in self.environments


class AuthService:
    """Keeps the keys; all of them are in memory, the database is their durable copy."""

    def __init__(self, database: Database, clock: Callable[[], float], audit: AuditService | None = None) -> None:
        self._database = database
        self._clock = clock
        self._audit = audit or AuditService(database, clock)
        self._failures = FailureLimit(SIGN_IN_BURST, SIGN_IN_EVERY, clock)
        self._keys: dict[bytes, ApiKeyRow] = {}
        self._used: dict[str, datetime] = {}

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

    async def revoke_key(self, key_id: str, actor: Actor = SYSTEM) -> None:
        """Revoke a key and end its browser sessions, at once.

        Raises:
            NotFoundError: no such key.
            InvalidRequestError: it is the last admin key.
        """
        row = next((r for r in self._keys.values() if r.id == key_id), None)
        if row is None:
            raise NotFoundError(f"there is no API key {key_id}")
        admins = [r for r in self._keys.values() if r.role == "admin" and r.revoked_at is None]
        if admins == [row]:
            raise InvalidRequestError("this is the last admin key: create another before you revoke it")
        row.revoked_at = self._now()
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
            self._failures.failed(client_address)
            nobody = Actor("anonymous", "", "somebody", client_address, user_agent)
            await self._audit.record(nobody, "session.open", Target("session", ""), outcome="refused", reason=exc.reason)
            raise
        now, token = self._now(), secrets.token_urlsafe(32)
        row = BrowserSessionRow(token_hash=_digest(token), api_key_id=identity.key_id, created_at=now, expires_at=now + SESSION_LIFETIME)
        async with self._database.write() as session:
            await repository.delete_expired_sessions(session, now)
            session.add(row)
            actor = Actor("session", identity.key_id, identity.name, client_address, user_agent)
            self._audit.add(session, actor, "session.open", Target("api-key", identity.key_id, identity.name))
        return token, row.expires_at

    async def session(self, token: str) -> Identity | None:
        """Who this browser session belongs to; None when it is not, or no longer, valid."""
        async with self._database.read() as session:
            row = await repository.find_session(session, _digest(token))
        if row is None or row.expires_at <= self._now():
            return None
        key = next((k for k in self._keys.values() if k.id == row.api_key_id), None)
        try:
            return self._identity(key) if key else None
        except UnauthenticatedError:
            return None

    async def close_session(self, token: str) -> None:
        """End a browser session."""
        async with self._database.write() as session:
            await repository.delete_session(session, _digest(token))

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
        row = ApiKeyRow(
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
        after = {"role": row.role, "environments": row.environments, "expires_at": expires_at.isoformat() if expires_at else None}
        async with self._database.write() as session:
            session.add(row)
            self._audit.add(session, actor, "api-key.create", Target("api-key", row.id, name), after=after)
        self._keys[row.key_hash] = row
        return row

    def _identity(self, row: ApiKeyRow) -> Identity:
        if row.revoked_at is not None:
            raise TokenRevokedError("this API key has been revoked")
        if row.expires_at is not None and row.expires_at <= self._now():
            raise TokenExpiredError("this API key has expired")
        return Identity(row.id, row.name, Role.named(row.role), tuple(row.environments))

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
