"""The database: engine, transactions and migrations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import event, make_url, text
from sqlalchemy.exc import DataError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from app.errors import InvalidRequestError, StartupError, StorageError

MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """One state database: SQLite (WAL) or PostgreSQL.

    Reading and writing are told apart because SQLite has one writer: ``write`` queues here, in order, instead of failing there.
    """

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        options: dict[str, Any] = {} if self.is_sqlite else {"pool_size": 10, "max_overflow": 5, "pool_pre_ping": True}
        self._engine: AsyncEngine = create_async_engine(self._url, **options)
        if self.is_sqlite:
            event.listen(self._engine.sync_engine, "connect", _prepare_sqlite)
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)
        self._writer = asyncio.Lock()

    async def open(self) -> None:
        """Bring the schema up to date.

        Raises:
            StartupError: the database cannot be reached, or was written by a newer version of the platform.
        """
        try:
            await asyncio.to_thread(self._migrate)
        except (SQLAlchemyError, OSError) as exc:
            raise StartupError(f"the database {self._url.render_as_string(hide_password=True)} cannot be used: {_first_line(exc)}") from exc
        except CommandError as exc:
            raise StartupError(f"the database was written by another version of the platform: {exc}") from exc

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session for reading.

        Raises:
            StorageError: the database failed.
            InvalidRequestError: it was given a value that no database can hold, such as text with the character NUL.
        """
        with _translated():
            async with self._sessions() as session:
                yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A transaction: committed when the block ends, rolled back when it raises.

        Raises:
            StorageError: the database failed; nothing of the block was kept.
            InvalidRequestError: as :meth:`read`; nothing of the block was kept.
        """
        async with self._writer if self.is_sqlite else _nothing():
            with _translated():
                async with self._sessions.begin() as session:
                    yield session

    async def ping(self) -> None:
        """Answer, or raise StorageError."""
        async with self.read() as session:
            await session.execute(text("SELECT 1"))

    async def size(self) -> int:
        """Bytes that it takes up on disk.

        Raises:
            StorageError: the database failed.
        """
        async with self.read() as session:
            if self.is_sqlite:
                statement = text("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()")
            else:
                statement = text("SELECT pg_database_size(current_database())")
            return int(await session.scalar(statement) or 0)

    async def revision(self) -> str:
        """The migration that its schema is at.

        Raises:
            StorageError: the database failed.
        """
        async with self.read() as session:
            return str(await session.scalar(text("SELECT version_num FROM alembic_version")) or "")

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["url"] = self._url.set(drivername="sqlite") if self.is_sqlite else self._url
        command.upgrade(config, "head")


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


@contextmanager
def _translated() -> Iterator[None]:
    """The errors of a database in our words. What cannot be bound at all comes from the drivers as Python's own errors."""
    try:
        yield
    except (DataError, OverflowError, UnicodeEncodeError) as exc:
        raise InvalidRequestError(f"a value cannot be stored: {_first_line(exc)}") from exc
    except DBAPIError as exc:
        raise StorageError(f"the database failed: {_first_line(exc)}") from exc


def _first_line(exc: BaseException) -> str:
    original = getattr(exc, "orig", None) or exc
    return (str(original).strip().splitlines() or [type(original).__name__])[0]
