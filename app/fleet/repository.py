"""SQL for agents, instances and enrolment tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import AgentRow, EnrolmentTokenRow, InstanceRow, TokenUseRow

_BEAT = (
    "last_seen_at",
    "healthy",
    "last_error",
    "components",
    "effective_config",
    "good_beats",
    "said_goodbye",
    "version",
    "resource",
    "name",
)


async def all_agents(session: AsyncSession) -> list[AgentRow]:
    """Every agent."""
    return list((await session.scalars(select(AgentRow))).all())


async def all_instances(session: AsyncSession) -> list[InstanceRow]:
    """Every instance."""
    return list((await session.scalars(select(InstanceRow))).all())


async def save_instance(session: AsyncSession, columns: Mapping[str, Any]) -> None:
    """Insert the instance, or overwrite the one with its id."""
    dialect: Any = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(InstanceRow).values(**columns)
    changed = {name: statement.excluded[name] for name in columns if name != "id"}
    await session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=changed))


async def save_beats(session: AsyncSession, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write what heartbeats told, for many instances in one statement; sorted, so that concurrent writers cannot deadlock."""
    table = InstanceRow.__table__
    statement = (
        table.update()  # type: ignore[attr-defined]  # a mapped class's table is a Table
        .where(table.c.id == bindparam("_id"))
        .values({name: bindparam(f"_{name}") for name in _BEAT})
    )
    parameters = [{"_id": r["id"], **{f"_{name}": r[name] for name in _BEAT}} for r in sorted(rows, key=lambda r: r["id"])]
    await (await session.connection()).execute(statement, parameters)


async def save_status(session: AsyncSession, instance_id: str, values: Mapping[str, Any]) -> None:
    """Write a transition."""
    await session.execute(update(InstanceRow).where(InstanceRow.id == instance_id).values(**values))


async def save_statuses(session: AsyncSession, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write transitions of many instances in one statement; each row holds its ``id`` and the same columns as all others."""
    if not rows:
        return
    table = InstanceRow.__table__
    columns = [name for name in rows[0] if name != "id"]
    statement = table.update().where(table.c.id == bindparam("_id")).values({name: bindparam(f"_{name}") for name in columns})  # type: ignore[attr-defined]  # a mapped class's table is a Table
    parameters = [{f"_{name}": value for name, value in row.items()} for row in sorted(rows, key=lambda row: row["id"])]
    await (await session.connection()).execute(statement, parameters)


async def drop_credentials_of(session: AsyncSession, instance_ids: Sequence[str]) -> None:
    """Take the credentials of these instances, in one statement."""
    await save_statuses(session, [{"id": key, "credential_hash": None, "candidate_hash": None} for key in instance_ids])


async def save_credentials(session: AsyncSession, instance_id: str, credential: bytes | None, candidate: bytes | None) -> None:
    """Replace an instance's credential digests."""
    values = {"credential_hash": credential, "candidate_hash": candidate}
    await session.execute(update(InstanceRow).where(InstanceRow.id == instance_id).values(**values))


async def drop_credentials(session: AsyncSession, token_id: str) -> None:
    """Take the credentials of every instance that came by a token last."""
    await session.execute(update(InstanceRow).where(InstanceRow.token_id == token_id).values(credential_hash=None, candidate_hash=None))


async def find_token(session: AsyncSession, token_hash: bytes) -> EnrolmentTokenRow | None:
    """The enrolment token of this digest."""
    return (await session.scalars(select(EnrolmentTokenRow).where(EnrolmentTokenRow.token_hash == token_hash))).one_or_none()


async def tokens_of(session: AsyncSession, agent_id: str) -> list[EnrolmentTokenRow]:
    """An agent's tokens, newest first."""
    query = select(EnrolmentTokenRow).where(EnrolmentTokenRow.agent_id == agent_id).order_by(EnrolmentTokenRow.created_at.desc())
    return list((await session.scalars(query)).all())


async def count_uses(session: AsyncSession, token_id: str) -> int:
    """How many machines a token has enrolled."""
    return int(await session.scalar(select(func.count()).select_from(TokenUseRow).where(TokenUseRow.token_id == token_id)) or 0)


async def find_use(session: AsyncSession, token_id: str, machine: str) -> TokenUseRow | None:
    """The record that this token enrolled this machine."""
    return await session.get(TokenUseRow, (token_id, machine))
