"""Saved views: a page's filters under a name, for everybody. All of them in memory, with the database as their durable copy."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field
from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from app.audit.records import Actor, Target
from app.audit.service import AuditService
from app.auth.service import Identity
from app.db.models import SavedViewRow
from app.db.session import Database
from app.errors import ConflictError, FieldError, InvalidRequestError, NotFoundError
from app.fleet.registry import moment

PAGES: Mapping[str, frozenset[str]] = {
    "agents": frozenset({"status", "agent_type", "environment_name", "version", "label", "search", "sort", "order"}),
}
"""Pages that views can be saved of, with the parameters that each knows."""
MOST_VIEWS = 50
"""Views of one page."""
_MOST_NAME, _MOST_VALUE = 100, 500


class SavedView(BaseModel):
    """A page's filters under a name."""

    id: str
    page: str = Field(description="The page it is of: its path without the slash before.")
    name: str
    query: dict[str, str] = Field(description="The parameters that the page is asked for with.")
    created_by: str = Field(description="Name of whoever saved it.")
    created_at: datetime


class SavedViews:
    """Keeps the views."""

    def __init__(self, database: Database, audit: AuditService, clock: Callable[[], float]) -> None:
        self._database = database
        self._audit = audit
        self._clock = clock
        self._views: dict[str, SavedView] = {}

    @classmethod
    async def opened(cls, database: Database, audit: AuditService, clock: Callable[[], float]) -> SavedViews:
        """The views that the database holds."""
        made = cls(database, audit, clock)
        async with database.read() as session:
            made._views = {row.id: _view(row) for row in await session.scalars(select(SavedViewRow))}
        return made

    def of_page(self, page: str | None, identity: Identity) -> list[SavedView]:
        """The views of a page (None: of all), by name. Those of environments that ``identity`` does not see are left out."""
        found = (view for view in self._views.values() if page is None or view.page == page)
        seen = (view for view in found if identity.sees(view.query.get("environment_name")))
        return sorted(seen, key=lambda view: (view.page, view.name.casefold(), view.id))

    async def save(self, page: str, name: str, query: Mapping[str, str], actor: Actor) -> SavedView:
        """Save a page's filters under a name.

        Raises:
            InvalidRequestError: there is no such page, the name is not usable, or the page knows no such parameter.
            ConflictError: the page has a view of this name, or as many as it may have.
        """
        name, kept = name.strip(), {key: value.strip() for key, value in query.items() if value.strip()}
        _check(page, name, kept)
        if sum(view.page == page for view in self._views.values()) >= MOST_VIEWS:
            raise ConflictError(f"the page {page} has {MOST_VIEWS} saved views already: delete one that nobody uses")
        values: dict[str, Any] = {
            "id": str(uuid.uuid4()),
            "page": page,
            "name": name,
            "query": kept,
            "created_by": actor.name[:255],
            "created_at": moment(self._clock()),
        }
        async with self._database.write() as session:
            dialect: Any = sqlite if self._database.is_sqlite else postgresql
            statement = dialect.insert(SavedViewRow).values(**values).on_conflict_do_nothing(index_elements=["page", "name"])
            if await session.scalar(statement.returning(SavedViewRow.id)) is None:
                raise _taken(name)
            self._audit.add(session, actor, "saved-view.create", _target(values["id"], name), after={"page": page, "query": kept})
        view = SavedView(**values)
        self._views[view.id] = view
        return view

    async def delete(self, view_id: str, actor: Actor, identity: Identity) -> None:
        """Delete a view.

        Raises:
            NotFoundError: no such view, or none that ``identity`` may see.
        """
        view = self._views.get(view_id)
        if view is None or not identity.sees(view.query.get("environment_name")):
            raise NotFoundError(f"there is no saved view {view_id}")
        async with self._database.write() as session:
            await session.execute(delete(SavedViewRow).where(SavedViewRow.id == view_id))
            before = {"page": view.page, "query": view.query}
            self._audit.add(session, actor, "saved-view.delete", _target(view_id, view.name), before=before)
        self._views.pop(view_id, None)


def _check(page: str, name: str, query: Mapping[str, str]) -> None:
    known = PAGES.get(page)
    errors = []
    if known is None:
        errors.append(FieldError("page", f"must be one of {', '.join(sorted(PAGES))}"))
    if not 0 < len(name) <= _MOST_NAME or not name.isprintable():
        errors.append(FieldError("name", f"must have 1 to {_MOST_NAME} printable characters"))
    for key, value in query.items():
        if known is not None and key not in known:
            errors.append(FieldError(f"query.{key}"[:200], f"is no filter of this page: it knows {', '.join(sorted(known))}"))
        elif len(value) > _MOST_VALUE or not value.isprintable():
            errors.append(FieldError(f"query.{key}"[:200], f"must have at most {_MOST_VALUE} printable characters"))
    if not query:
        errors.append(FieldError("query", "must hold a filter or an order: without one it is the page itself"))
    if errors:
        raise InvalidRequestError("the view cannot be saved", errors=errors)


def _taken(name: str) -> ConflictError:
    return ConflictError(f"there is a view {name!r} of this page already: choose another name, or delete that one first")


def _target(view_id: str, name: str) -> Target:
    return Target("saved-view", view_id, name)


def _view(row: SavedViewRow) -> SavedView:
    query = {str(key): str(value) for key, value in row.query.items()}
    return SavedView(id=row.id, page=row.page, name=row.name, query=query, created_by=row.created_by, created_at=row.created_at)
