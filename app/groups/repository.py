"""SQL for groups, revisions of configurations, and how they fare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import and_, bindparam, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import AgentRow, ConfigRevisionRow, GroupRow, InstanceConfigRow

_CHUNK = 500


async def all_groups(session: AsyncSession) -> list[GroupRow]:
    """Every group."""
    return list((await session.scalars(select(GroupRow))).all())


async def current_revisions(session: AsyncSession) -> list[ConfigRevisionRow]:
    """The newest revision of every group and agent that has one."""
    newest = (
        select(ConfigRevisionRow.scope_kind, ConfigRevisionRow.scope_id, func.max(ConfigRevisionRow.revision).label("revision"))
        .group_by(ConfigRevisionRow.scope_kind, ConfigRevisionRow.scope_id)
        .subquery()
    )
    joined = and_(
        ConfigRevisionRow.scope_kind == newest.c.scope_kind,
        ConfigRevisionRow.scope_id == newest.c.scope_id,
        ConfigRevisionRow.revision == newest.c.revision,
    )
    return list((await session.scalars(select(ConfigRevisionRow).join(newest, joined))).all())


async def all_instances(session: AsyncSession) -> list[InstanceConfigRow]:
    """How configurations fare everywhere."""
    return list((await session.scalars(select(InstanceConfigRow))).all())


async def change_group(session: AsyncSession, group_id: str, values: Mapping[str, Any]) -> None:
    """Change a group."""
    await session.execute(update(GroupRow).where(GroupRow.id == group_id).values(**values))


async def delete_group(session: AsyncSession, group_id: str) -> None:
    """Delete a group with the revisions of its configuration."""
    await session.execute(delete(ConfigRevisionRow).where(ConfigRevisionRow.scope_kind == "group", ConfigRevisionRow.scope_id == group_id))
    await session.execute(delete(GroupRow).where(GroupRow.id == group_id))


async def revisions(session: AsyncSession, kind: str, scope_id: str, before: int | None, limit: int) -> list[ConfigRevisionRow]:
    """Revisions of one configuration, newest first, those before ``before``."""
    query = select(ConfigRevisionRow).where(ConfigRevisionRow.scope_kind == kind, ConfigRevisionRow.scope_id == scope_id)
    if before is not None:
        query = query.where(ConfigRevisionRow.revision < before)
    return list((await session.scalars(query.order_by(ConfigRevisionRow.revision.desc()).limit(limit))).all())


async def find_revision(session: AsyncSession, kind: str, scope_id: str, revision: int) -> ConfigRevisionRow | None:
    """One revision."""
    return await session.get(ConfigRevisionRow, (kind, scope_id, revision))


async def save_labels(session: AsyncSession, labels: Mapping[str, Mapping[str, str]]) -> None:
    """Replace the labels of agents, by id, in one statement; sorted, so that concurrent writers cannot deadlock."""
    if not labels:
        return
    table = AgentRow.__table__
    statement = table.update().where(table.c.id == bindparam("_id")).values(labels=bindparam("_labels"))  # type: ignore[attr-defined]  # a mapped class's table is a Table
    await (await session.connection()).execute(statement, [{"_id": key, "_labels": dict(labels[key])} for key in sorted(labels)])


async def save_instances(session: AsyncSession, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert or overwrite how configurations fare at these instances."""
    dialect: Any = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    for start in range(0, len(rows), _CHUNK):
        statement = dialect.insert(InstanceConfigRow).values(list(rows[start : start + _CHUNK]))
        changed = {name: statement.excluded[name] for name in rows[0] if name != "instance_id"}
        await session.execute(statement.on_conflict_do_update(index_elements=["instance_id"], set_=changed))
