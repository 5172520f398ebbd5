"""Browser sessions: opened, looked up, listed and ended. Each belongs to an API key or to a user of the OpenID provider."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from sqlalchemy.ext.asyncio import AsyncSession

from app.audit.records import Actor, Target
from app.audit.service import AuditService
from app.auth import repository
from app.auth.identity import Identity, Role, digest
from app.db.models import BrowserSessionRow
from app.db.session import Database
from app.errors import NotFoundError, UnauthenticatedError

SessionKind = Literal["key", "link", "oidc"]
"""How somebody signed in: with an API key, by a one-time link of one, or through the OpenID provider."""

SESSION_LIFETIME = timedelta(days=7)
"""Of a session of an API key."""
_ID_LENGTH = 12  # hex digits of the token's digest: enough to tell sessions apart, of no use to whoever wants to be in one


@dataclass(frozen=True, slots=True)
class SessionView:
    """A browser session as lists show it. ``key_id`` is None for a user of the OpenID provider, ``subject`` for a key."""

    id: str
    kind: SessionKind
    key_id: str | None
    subject: str | None
    name: str
    role: str
    environments: tuple[str, ...]
    created_at: datetime
    expires_at: datetime
    client_address: str
    user_agent: str


class Sessions:
    """The browser sessions. ``key_of`` is who holds the API key of an id; it raises UnauthenticatedError where nobody does any more."""

    def __init__(self, database: Database, clock: Callable[[], float], audit: AuditService, key_of: Callable[[str], Identity]) -> None:
        self._database = database
        self._clock = clock
        self._audit = audit
        self._key_of = key_of

    async def add(
        self, session: AsyncSession, identity: Identity, kind: SessionKind, lifetime: timedelta, client_address: str, user_agent: str
    ) -> tuple[str, datetime]:
        """Open a session for ``identity`` in the caller's transaction: its token and when it ends, which is never after its key does."""
        now, token = self._now(), secrets.token_urlsafe(32)
        ends = now + lifetime if identity.expires_at is None else min(now + lifetime, identity.expires_at)
        user = identity.subject is not None
        row = BrowserSessionRow(
            token_hash=digest(token),
            api_key_id=None if user else identity.key_id,
            subject=identity.subject,
            name=identity.name[:255] if user else None,
            role=identity.role.name.lower() if user else None,
            environments=list(identity.environments) if user else None,
            kind=kind,
            client_address=client_address[:64],
            user_agent=user_agent[:255],
            created_at=now,
            expires_at=ends,
        )
        await repository.delete_expired_sessions(session, now)
        session.add(row)
        target = Target("user" if user else "api-key", identity.subject or identity.key_id, identity.name)
        after = {"kind": kind, "role": identity.role.name.lower(), "environments": list(identity.environments)}
        actor = identity.actor(client_address, user_agent)
        self._audit.add(session, actor, "session.open", target, after={**after, "expires_at": ends.isoformat()})
        return token, ends

    async def find(self, token: str) -> Identity | None:
        """Who this session belongs to; None when it is not, or no longer, valid."""
        async with self._database.read() as session:
            row = await repository.find_session(session, digest(token))
        if row is None or row.expires_at <= self._now():
            return None
        return self._identity(row)

    async def close(self, token: str, client_address: str, user_agent: str) -> None:
        """End the session of somebody who signs out; nothing where there is none."""
        async with self._database.write() as session:
            row = await repository.find_session(session, digest(token))
            if row is None:
                return
            await repository.delete_session(session, row.token_hash)
            if (identity := self._identity(row)) is not None:
                target = Target("session", _id(row), identity.name)
                self._audit.add(session, identity.actor(client_address, user_agent), "session.close", target)

    async def list_live(self) -> list[SessionView]:
        """The sessions that are valid now, newest first."""
        async with self._database.read() as session:
            rows = await repository.live_sessions(session, self._now())
        return [_view(row, identity) for row in rows if (identity := self._identity(row)) is not None]

    async def end(self, session_id: str, actor: Actor) -> None:
        """End somebody's session, at once.

        Raises:
            NotFoundError: there is none of this id.
        """
        async with self._database.write() as session:
            rows = await repository.live_sessions(session, self._now())
            row = next((r for r in rows if _id(r) == session_id), None)
            if row is None:
                raise NotFoundError(f"there is no session {session_id}")
            await repository.delete_session(session, row.token_hash)
            identity = self._identity(row)
            self._audit.add(session, actor, "session.end", Target("session", session_id, identity.name if identity else ""))

    async def end_users(self) -> None:
        """End the sessions of the OpenID provider's users: for a platform that no longer has one."""
        async with self._database.write() as session:
            await repository.delete_user_sessions(session)

    def _identity(self, row: BrowserSessionRow) -> Identity | None:
        if row.api_key_id is None:
            role, environments = Role.named(row.role or ""), tuple(row.environments or ())
            return Identity(f"oidc:{row.subject}", row.name or "", role, environments, row.subject, row.expires_at)
        try:
            key = self._key_of(row.api_key_id)
        except UnauthenticatedError:
            return None
        return dataclasses.replace(key, expires_at=min(row.expires_at, key.expires_at or row.expires_at))

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def _id(row: BrowserSessionRow) -> str:
    return row.token_hash.hex()[:_ID_LENGTH]


def _view(row: BrowserSessionRow, identity: Identity) -> SessionView:
    kind: SessionKind = "link" if row.kind == "link" else "oidc" if row.kind == "oidc" else "key"
    return SessionView(
        id=_id(row),
        kind=kind,
        key_id=row.api_key_id,
        subject=row.subject,
        name=identity.name,
        role=identity.role.name.lower(),
        environments=identity.environments,
        created_at=row.created_at,
        expires_at=identity.expires_at or row.expires_at,
        client_address=row.client_address,
        user_agent=row.user_agent,
    )
