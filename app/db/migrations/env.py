"""Alembic's entry: runs the migrations over the URL that app.db.session hands in."""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine, pool

import app.db.models  # noqa: F401 - registers every table with the metadata
from app.db.base import Base


def _run() -> None:
    engine = create_engine(context.config.attributes["url"], poolclass=pool.NullPool)
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=engine.dialect.name == "sqlite",
            compare_type=True,
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


_run()
