"""Fixtures of the platform's parts on a real database; imported by conftest."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from sqlalchemy import create_engine, make_url, text

from app.auth.service import AuthService
from app.db.session import Database
from app.events.service import EventService
from app.events.stream import LiveStream
from app.fleet.service import FleetService
from app.settings import Settings

START = 1_800_000_000.0


@dataclass
class Clock:
    """A clock that moves when told."""

    now: float = START

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Parts:
    """The platform without HTTP: what services need of one another."""

    database: Database
    clock: Clock
    settings: Settings
    live: LiveStream = field(default_factory=LiveStream)

    def __post_init__(self) -> None:
        self.events = EventService(self.database, self.live)
        self.auth = AuthService(self.database, self.clock)
        self.fleet = FleetService(self.database, self.events, self.live, self.settings, self.clock)

    async def restarted(self) -> Parts:
        """The same platform after a restart: nothing kept but the database."""
        fresh = Parts(self.database, self.clock, self.settings)
        await fresh.auth.load()
        await fresh.fleet.load()
        return fresh

    async def event_names(self, **filters) -> list[str]:
        return [e.name for e in (await self.events.list_events(limit=500, **filters)).items]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.requires("postgresql"))])
def database_url(request, tmp_path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'state.db'}"
    server = make_url(os.environ["IRCA_TEST_POSTGRESQL_URL"]).set(drivername="postgresql+psycopg")
    name = f"irca_test_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"  # a database for each of the workers that run side by side
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return server.set(database=name).render_as_string(hide_password=False)


@pytest.fixture
async def parts(database_url, clock, tmp_path) -> AsyncIterator[Parts]:
    database = Database(database_url)
    await database.open()
    made = Parts(database, clock, Settings(data_dir=tmp_path))
    await made.auth.load()
    await made.fleet.load()
    yield made
    await database.close()
