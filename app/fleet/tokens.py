"""Enrolment tokens as people look at them: lists over all agents, one token with what it enrolled, and who was refused lately."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field
from sqlalchemy import ColumnElement, Row, Select, and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth.service import Identity
from app.cursors import decode_cursor, encode_cursor
from app.db.models import AgentRow, EnrolmentTokenRow, TokenUseRow
from app.db.session import Database
from app.errors import NotFoundError
from app.events import catalogue
from app.events.service import EventService
from app.events.views import EventView, Page
from app.fleet.enrolment import Enrolment
from app.fleet.registry import Registry
from app.fleet.views import Status

SHOWN = 100
"""Machines, and instances, of a token that its own view names at most."""


class TokenState(StrEnum):
    """What a token is good for: only an active one enrols machines that it has not enrolled before."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"
    USED_UP = "used-up"


class TokenView(BaseModel):
    """An enrolment token, without its text."""

    id: str
    prefix: str = Field(description="Its beginning, to recognise it by.")
    state: TokenState = Field(description="revoked, expired, used-up (it has enrolled as many as it may) or active.")
    agent_id: str
    agent_type: str
    environment_name: str
    uses: int = Field(description="Machines (for kubernetes: clusters) that it has enrolled.")
    max_uses: int = Field(description="Machines (for kubernetes: clusters) that it may enrol.")
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = Field(description="Null unless it was revoked.")


class TokenUseView(BaseModel):
    """A machine, or a cluster, that a token has enrolled."""

    machine: str = Field(description="Fingerprint of the machine, or UID of the cluster.")
    used_at: datetime = Field(description="When it was enrolled first.")


class TokenInstanceView(BaseModel):
    """An instance that came by a token."""

    id: str
    name: str
    status: Status
    has_credential: bool = Field(description="False once its credential has been revoked.")


class TokenDetailView(TokenView):
    """An enrolment token with what it enrolled, 100 of each at most."""

    machines: list[TokenUseView] = Field(description="The latest first.")
    instances: list[TokenInstanceView] = Field(description="Instances that came by it last, by name.")
    instance_count: int = Field(description="Instances that came by it last, listed here or not.")
    credential_count: int = Field(description="How many of them have a credential.")


@dataclass(frozen=True, slots=True)
class TokenFilter:
    """Which tokens are listed: all that meet every part; None and empty let all pass. ``search`` looks in prefix, environment and ids."""

    agent_id: str | None = None
    environment_name: str | None = None
    agent_type: str | None = None
    state: TokenState | None = None
    search: str = ""


_USES = select(func.count()).select_from(TokenUseRow).where(TokenUseRow.token_id == EnrolmentTokenRow.id).scalar_subquery()
_Found = Row[EnrolmentTokenRow, str, str, int]


class Tokens:
    """Answers questions about enrolment tokens; :class:`app.fleet.enrolment.Enrolment` makes and ends them."""

    def __init__(
        self, database: Database, registry: Registry, events: EventService, enrolment: Enrolment, clock: Callable[[], float]
    ) -> None:
        self._database = database
        self._registry = registry
        self._events = events
        self._enrolment = enrolment
        self._clock = clock

    async def list_tokens(
        self,
        wanted: TokenFilter = TokenFilter(),
        cursor: str | None = None,
        limit: int = 50,
        *,
        viewer: Identity | None = None,
    ) -> Page[TokenView]:
        """Tokens that meet the filter, newest first; of environments that the ``viewer`` sees only.

        Raises:
            InvalidRequestError: the cursor is not one of this list.
        """
        now, before = self._now(), decode_cursor(cursor, datetime, str)
        conditions = [*_conditions(wanted, now), *self._visible(viewer)]
        if before is not None:
            created, token_id = before
            older = and_(EnrolmentTokenRow.created_at == created, EnrolmentTokenRow.id < token_id)
            conditions.append(or_(EnrolmentTokenRow.created_at < created, older))
        statement = _select().where(*conditions).order_by(EnrolmentTokenRow.created_at.desc(), EnrolmentTokenRow.id.desc())
        async with self._database.read() as session:
            rows = (await session.execute(statement.limit(limit + 1))).all()
        items = [TokenView(**_columns(row, now)) for row in rows[:limit]]
        return Page[TokenView](items=items, next_cursor=encode_cursor(items[-1].created_at, items[-1].id) if len(rows) > limit else None)

    async def of_agent(self, agent_id: str, cursor: str | None = None, limit: int = 50) -> Page[TokenView]:
        """An agent's tokens, newest first.

        Raises:
            NotFoundError: no such agent.
            InvalidRequestError: the cursor is not one of this list.
        """
        if agent_id not in self._registry.agents:
            raise NotFoundError(f"there is no agent {agent_id}")
        return await self.list_tokens(TokenFilter(agent_id=agent_id), cursor, limit)

    async def get_token(self, token_id: str, *, viewer: Identity | None = None) -> TokenDetailView:
        """One token with what it enrolled.

        Raises:
            NotFoundError: no such token in an environment that the viewer sees.
        """
        async with self._database.read() as session:
            row = await _one(session, token_id, self._visible(viewer))
            used = select(TokenUseRow).where(TokenUseRow.token_id == token_id).order_by(TokenUseRow.used_at.desc(), TokenUseRow.machine)
            uses = (await session.scalars(used.limit(SHOWN))).all()
        instances = self._enrolment.came_by(token_id)
        return TokenDetailView(
            **_columns(row, self._now()),
            machines=[TokenUseView(machine=use.machine, used_at=use.used_at) for use in uses],
            instances=[
                TokenInstanceView(id=i.id, name=i.name, status=i.status, has_credential=i.has_credential) for i in instances[:SHOWN]
            ],
            instance_count=len(instances),
            credential_count=sum(i.has_credential for i in instances),
        )

    async def require(self, token_id: str, viewer: Identity) -> None:
        """Do nothing, or refuse to speak of a token.

        Raises:
            NotFoundError: no such token in an environment that the viewer sees.
        """
        async with self._database.read() as session:
            await _one(session, token_id, self._visible(viewer))

    async def refusals(self, *, viewer: Identity | None = None, agent_id: str | None = None, limit: int = 20) -> list[EventView]:
        """First contacts that were refused lately, newest first. Who does not see every environment sees those of known tokens only."""
        names = None if viewer is None or viewer.everywhere else self._names(viewer)
        name = catalogue.ENROLMENT_REFUSED.name
        return (await self._events.list_events(limit=limit, name=name, environment_names=names, agent_id=agent_id)).items

    def _visible(self, viewer: Identity | None) -> list[ColumnElement[bool]]:
        return [] if viewer is None or viewer.everywhere else [AgentRow.environment_name.in_(self._names(viewer))]

    def _names(self, viewer: Identity) -> Collection[str]:
        return sorted({a.environment_name for a in self._registry.agents.values() if viewer.sees(a.environment_name)})

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def state_of(row: EnrolmentTokenRow, uses: int, now: datetime) -> TokenState:
    """What a token that has enrolled ``uses`` machines is good for."""
    if row.revoked_at is not None:
        return TokenState.REVOKED
    if row.expires_at <= now:
        return TokenState.EXPIRED
    return TokenState.USED_UP if uses >= row.max_uses else TokenState.ACTIVE


async def _one(session: AsyncSession, token_id: str, visible: Sequence[ColumnElement[bool]]) -> _Found:
    row = (await session.execute(_select().where(EnrolmentTokenRow.id == token_id, *visible))).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no enrolment token {token_id}")
    return row


def _select() -> Select[EnrolmentTokenRow, str, str, int]:
    columns = (EnrolmentTokenRow, AgentRow.agent_type, AgentRow.environment_name, _USES)
    return select(*columns).join(AgentRow, AgentRow.id == EnrolmentTokenRow.agent_id)


def _columns(found: _Found, now: datetime) -> dict[str, Any]:
    row, agent_type, environment_name, uses = found
    names = ("id", "prefix", "agent_id", "max_uses", "created_at", "expires_at", "revoked_at")
    kept = {name: getattr(row, name) for name in names}
    return {**kept, "state": state_of(row, uses, now), "agent_type": agent_type, "environment_name": environment_name, "uses": uses}


def _conditions(wanted: TokenFilter, now: datetime) -> list[ColumnElement[bool]]:
    equal = (
        (EnrolmentTokenRow.agent_id, wanted.agent_id),
        (AgentRow.environment_name, wanted.environment_name),
        (AgentRow.agent_type, wanted.agent_type),
    )
    conditions: list[ColumnElement[bool]] = [column == value for column, value in equal if value]
    if wanted.state is not None:
        conditions.append(_in_state(wanted.state, now))
    if wanted.search:
        columns = (EnrolmentTokenRow.prefix, AgentRow.environment_name, EnrolmentTokenRow.id, EnrolmentTokenRow.agent_id)
        conditions.append(or_(*(column.icontains(wanted.search, autoescape=True) for column in columns)))
    return conditions


def _in_state(state: TokenState, now: datetime) -> ColumnElement[bool]:
    """The same as :func:`state_of`, for the database."""
    if state is TokenState.REVOKED:
        return EnrolmentTokenRow.revoked_at.is_not(None)
    kept, valid = EnrolmentTokenRow.revoked_at.is_(None), EnrolmentTokenRow.expires_at > now
    if state is TokenState.EXPIRED:
        return and_(kept, EnrolmentTokenRow.expires_at <= now)
    most = EnrolmentTokenRow.max_uses
    return and_(kept, valid, most <= _USES if state is TokenState.USED_UP else most > _USES)
