from __future__ import annotations

import asyncio

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, make_url, text

import app.db.models  # noqa: F401 - registers the tables
from app.db.base import Base
from app.db.session import Database
from app.errors import StartupError, StorageError


def synchronous(url: str):
    parsed = make_url(url)
    return create_engine(parsed.set(drivername="sqlite") if parsed.get_backend_name() == "sqlite" else parsed)


async def test_the_migrations_make_exactly_what_the_models_say(database_url):
    database = Database(database_url)
    await database.open()
    await database.close()
    engine = synchronous(database_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), Base.metadata) == []
    engine.dispose()


async def test_opening_twice_changes_nothing(database_url):
    for _ in range(2):
        database = Database(database_url)
        await database.open()
        await database.ping()
        await database.close()


async def test_a_database_of_a_newer_platform_is_refused_in_one_line(database_url):
    database = Database(database_url)
    await database.open()
    async with database.write() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StartupError, match="another version of the platform"):
        await Database(database_url).open()
    await database.close()


async def test_a_database_that_cannot_be_opened_says_which_and_hides_the_password(tmp_path):
    with pytest.raises(StartupError, match="cannot be used"):
        await Database(f"sqlite+aiosqlite:///{tmp_path / 'missing' / 'state.db'}").open()


@pytest.mark.sockets
async def test_an_absent_server_says_so_without_the_password(free_port):
    with pytest.raises(StartupError) as caught:
        await Database(f"postgresql+psycopg://irca:hunter2@127.0.0.1:{free_port}/irca").open()
    assert "hunter2" not in str(caught.value)


async def test_a_block_that_raises_leaves_nothing_behind(parts):
    with pytest.raises(StorageError):  # noqa: PT012 - it is the second statement that fails
        async with parts.database.write() as session:
            await session.execute(text("INSERT INTO token_uses (token_id, machine, used_at) VALUES ('x', 'y', '2026-01-01')"))
            await session.execute(text("SELECT * FROM no_such_table"))
    async with parts.database.read() as session:
        assert (await session.execute(text("SELECT count(*) FROM token_uses"))).scalar() == 0


async def test_writers_queue_instead_of_failing(parts):
    async def one(number: int) -> None:
        await parts.fleet.create_agent("server", f"env-{number}", {}, "tester")

    await asyncio.gather(*(one(n) for n in range(20)))
    assert len((await parts.fleet.list_agents(limit=100)).items) == 20
